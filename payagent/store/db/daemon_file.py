"""What a daemon of a fleet keeps about itself in its data folder, in `daemon.json`: the databases that it used.

The newest timeline of each database server tells an old primary from the new one, also after a restart. The file
is replaced as a whole. A sandboxed daemon cannot read the new file (`payagent.sandbox`), so it is read once.

May import: core, secret_file. Never: forgets a timeline.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from payagent.core.problems import Refused
from payagent.secret_file import put_in_place

DAEMON_FILE = "daemon.json"


class DaemonFile:
    """The file, or the same in memory alone without a `path`."""

    def __init__(self, path: Path | None = None) -> None:
        """Refused: `store_failed` for a file that payagent did not write."""
        self._path = path
        self._values: dict[str, Any] = {"timelines": {}}
        if path is None or not path.exists():
            return
        try:
            self._values = {**self._values, **json.loads(path.read_bytes())}
            self._values["timelines"] = {str(key): int(one) for key, one in self._values["timelines"].items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Refused(
                "store_failed",
                f"{path} cannot be read: {error}. It names the database timelines that this machine has used, so "
                "nothing was changed. Stop every server but the primary, then remove the file",
            ) from None

    @property
    def timelines(self) -> Mapping[str, int]:
        """The newest timeline that was used on this machine, by the database server's identifier."""
        return dict(self._values["timelines"])

    def note_timeline(self, system: str, timeline: int) -> None:
        """Keep a timeline, if it is newer. Returns when it is durable. Refused: `store_failed`."""
        known = self.timelines
        if timeline > known.get(system, 0):
            self._write(self._values | {"timelines": {**known, system: timeline}})

    def _write(self, values: dict[str, Any]) -> None:
        if self._path is not None:
            new = self._path.with_name(f".{self._path.name}.new")
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                with os.fdopen(os.open(new, flags, 0o600), "w") as file:
                    json.dump(values, file)
                    file.flush()
                    os.fsync(file.fileno())
                put_in_place(new, self._path)
            except OSError as error:
                raise Refused("store_failed", f"{self._path} could not be written: {error}") from error
        self._values = values
