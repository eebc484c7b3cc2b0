"""The signer's own record, beside the keystore: how many attempts were ever committed, and which was the last.

A ledger that lacks that attempt is older than the signer: a copy was put back, or the ledger was lost and begun
anew. The record is never part of a backup: there it would be as old as the ledger that it is to tell of.

May import: core, secretfile, sqlite3. Never: tells of an attempt that is not durable in the ledger.
"""

import json
import os
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from payagent.core.problem import Refused
from payagent.secretfile import sync_folder

SIGNER_FILE = "signer.json"


@dataclass(frozen=True, slots=True)
class Signed:
    """The last attempt that is durable, and how many there are with it."""

    attempts: int
    tx_id: str
    ttl_slot: int


class SignerRecord(Protocol):
    """Where the last attempt is noted. `write` returns once it is durable and raises OSError when it is not."""

    def read(self) -> Signed | None: ...

    def write(self, signed: Signed) -> None: ...


class SignerFile:
    """The record in a file of its own, for its owner alone, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: Signed | None = None

    def read(self) -> Signed | None:
        """None when there is none. Refused: `store_failed`, for what nobody of ours has written.

        What was written here is remembered: the daemon cannot read what is new beside the keystore (`fence`).
        """
        if self._written is not None:
            return self._written
        try:
            told = json.loads(self._path.read_bytes())
            return Signed(int(told["attempts"]), str(told["tx_id"]), int(told["ttl_slot"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise Refused("store_failed", f"{self._path} cannot be read as the signer's record") from None

    def write(self, signed: Signed) -> None:
        new = self._path.with_name(f".{self._path.name}.new")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(json.dumps(asdict(signed)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)
        sync_folder(self._path.parent)
        self._written = signed


def last_signed(conn: sqlite3.Connection) -> Signed | None:
    """The newest attempt of a ledger; their numbers have no gaps, since none is ever removed."""
    row = conn.execute("SELECT rowid, tx_id, ttl_slot FROM attempts ORDER BY rowid DESC LIMIT 1").fetchone()
    return None if row is None else Signed(*row)


def lacks(conn: sqlite3.Connection, signed: Signed | None) -> bool:
    """Whether the signer signed what a ledger does not know of."""
    if signed is None:
        return False
    known = conn.execute("SELECT 1 FROM attempts WHERE tx_id = ?", (signed.tx_id,)).fetchone()
    last = last_signed(conn)
    return known is None or last is None or last.attempts < signed.attempts


def caught_up_at(conn: sqlite3.Connection, signed: Signed | None) -> int | None:
    """How many attempts a ledger had when it caught up with this very record; None when it has not.

    The record stays as it is until the next attempt is noted.
    """
    row = conn.execute(
        "SELECT detail ->> '$.signed', detail ->> '$.attempts' FROM events "
        "WHERE payment_id IS NULL AND event = 'caught_up' ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return int(row[1]) if row is not None and signed is not None and row[0] == signed.tx_id else None
