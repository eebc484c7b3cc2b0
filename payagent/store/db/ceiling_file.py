"""How much vouchers may promise before this file is written again: `channels.json`, beside the keystore.

An older ledger has forgotten the last vouchers. The file has, for each channel, an amount that no voucher before
the last write passed. A backup never contains it.

Never: lowers a ceiling before the ledger has the amount that replaces it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from payagent.core.problems import Refused
from payagent.secret_file import put_in_place

CEILING_FILE = "channels.json"


class CeilingFile:
    """The file, read once: a sandboxed daemon cannot open what it created itself (`payagent.sandbox`)."""

    def __init__(self, path: Path) -> None:
        """Refused: `store_failed` for a file that payagent did not write."""
        self._path = path
        try:
            self.known = {str(name): int(amount) for name, amount in json.loads(path.read_bytes()).items()}
        except FileNotFoundError:
            self.known = {}
        except (OSError, ValueError, TypeError, AttributeError):
            raise Refused("store_failed", f"{path} cannot be read as the ceilings of the channels") from None

    def write(self, ceilings: Mapping[str, int]) -> None:
        """Replace the file, durably. Refused: `store_failed`."""
        new = self._path.with_name(f".{self._path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(new, flags, 0o600), "w") as file:
                json.dump(dict(ceilings), file)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(new, self._path)
        except OSError as error:
            raise Refused("store_failed", f"{self._path} cannot be written: {error.strerror}") from None
        self.known = dict(ceilings)
