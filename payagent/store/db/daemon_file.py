"""What a daemon of a fleet keeps in its data folder, in `daemon.json`: its id, and the databases that it used.

The newest timeline of each database server tells an old primary from the new one, also after a restart. The file
is replaced as a whole. A sandboxed daemon cannot read the new one (`payagent.sandbox`), so it is read once.

Never: forgets a timeline; keeps an id in a copy of the folder.
"""

import json
from pathlib import Path
from secrets import token_hex
from typing import Any

from payagent.core.problems import Refused
from payagent.secret_file import make_secret_file, put_in_place

DAEMON_FILE = "daemon.json"


class DaemonFile:
    """The file; without a `path`, the same in memory.

    `timelines`: the newest timeline that was used on this machine, by the identifier of the database server.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Refused: `store_failed` for a file that payagent did not write."""
        self._path = path
        self.timelines: dict[str, int] = {}
        self._id: list[Any] = []
        try:
            if path is not None:
                content = json.loads(path.read_bytes())
                self.timelines = {key: int(one) for key, one in content["timelines"].items()}
                self._id = list(content.get("id", ()))
        except FileNotFoundError:
            pass  # this machine has used no database yet
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise Refused(
                "store_failed",
                f"{path} cannot be read: {error!r}. It names the database timelines that this machine used, so "
                "nothing was changed. Stop every database server but the primary, then remove the file: a "
                "new one gets a new id",
            ) from None

    def note_timeline(self, system: str, timeline: int) -> None:
        """Keep a timeline, if it is newer. It is durable then. Refused: `store_failed`."""
        if timeline <= self.timelines.get(system, 0):
            return
        self._keep(self.timelines | {system: timeline}, self._id)

    def own_id(self, lock: Path) -> str:
        """The daemon's id, made when it is first asked for. Refused: `store_failed`.

        It is bound to the device and inode of `lock`, the folder's lock file, which is never replaced. A copy of
        the folder has another one, and gets an id of its own.
        """
        status = lock.stat()
        place = [status.st_dev, status.st_ino]
        if self._id[1:] != place:
            self._keep(self.timelines, [token_hex(8), *place])
        return str(self._id[0])

    def _keep(self, timelines: dict[str, int], own_id: list[Any]) -> None:
        if self._path is not None:
            new = self._path.with_name(f".{self._path.name}.new")
            try:
                new.unlink(missing_ok=True)
                make_secret_file(new, json.dumps({"id": own_id, "timelines": timelines}))
                put_in_place(new, self._path)
            except (OSError, Refused) as error:
                raise Refused("store_failed", f"{self._path} could not be written: {error}") from error
        self.timelines, self._id = timelines, own_id
