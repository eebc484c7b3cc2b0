"""How much the vouchers of each channel may promise before this file is written again: `channels.json`.

It is beside the keystore, and no backup has it. An older ledger has forgotten the last vouchers, and this file
says how far they went at most.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from payagent.core.problems import Refused
from payagent.secret_file import make_secret_file, put_in_place


def ceiling_file(account: int) -> str:
    """The name of an account's file: `channels.json` for the first, then `channels-1.json` and so on."""
    return f"channels-{account}.json" if account else "channels.json"


class CeilingFile:
    """The file, read once: a sandboxed daemon cannot open what it created itself (`payagent.sandbox`).

    Refused `config_invalid` if it is not of that form.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.known: dict[str, int] = json.loads(path.read_bytes()) if path.exists() else {}
            if any(type(ceiling) is not int for ceiling in self.known.values()):
                raise ValueError
        except (ValueError, AttributeError):
            raise Refused(
                "config_invalid",
                f"{path} is not what payagent wrote",
                money="Nothing was signed, and the channels keep what is locked in them.",
                fix="If the ledger is not an older copy, remove the file and start again.",
            ) from None

    def write(self, ceilings: Mapping[str, int]) -> None:
        """Replace the file, durably. Refused `config_invalid` if it cannot be written."""
        new = self._path.with_name(f".{self._path.name}.new")
        new.unlink(missing_ok=True)
        make_secret_file(new, json.dumps(ceilings))
        put_in_place(new, self._path)
        self.known = dict(ceilings)
