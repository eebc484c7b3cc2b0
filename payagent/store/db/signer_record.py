"""The signer's own record, beside the keystore: the last attempt that was committed, and its number.

Each account of the wallet has a record of its own.

A ledger that lacks that attempt is older than the signer: someone restored a copy, or the ledger was lost and
created anew. A backup never contains the record, because it would then be as old as the ledger that it checks.
In a fleet the record also has where that ledger was: the database server, its timeline, and the end of its chain.

Never: records an attempt that is not durable in the ledger.
"""

import hashlib
import json
import os
import sqlite3
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from payagent.core.problems import Refused
from payagent.secret_file import sync_folder
from payagent.store.db.sql import find_one

SIGNER_FILE = "signer.json"


def signer_file(account: int) -> str:
    """The name of an account's file: `signer.json` for the first, then `signer-1.json` and so on."""
    return f"signer-{account}.json" if account else SIGNER_FILE


_PLACE_BYTES = 4096
"""Size of each of the file's two slots. A torn write damages one slot at most, whatever the disk's write size."""


@dataclass(frozen=True, slots=True)
class DatabaseMark:
    """The database with the attempt: its server's identifier and timeline, and the event that ended its commit.

    `event_seq` is 0 if that event is not known, because another daemon committed the attempt.
    """

    system: str
    timeline: int
    event_seq: int
    event_hash: str


@dataclass(frozen=True, slots=True)
class LastSigned:
    """The last durable attempt of an account, and its number among all attempts in the order of their commits.

    `database`: where it was committed; None for a file.
    """

    attempts: int
    tx_id: str
    ttl_slot: int
    database: DatabaseMark | None = field(default=None, compare=False)


class SignerRecord(Protocol):
    """Where the last attempt is noted. `write` returns when it is durable, and raises OSError otherwise."""

    def read(self) -> LastSigned | None: ...

    def write(self, signed: LastSigned) -> None: ...


class SignerFile:
    """The record in its own file, readable by its owner only.

    The file has two slots, written alternately. A torn write leaves the other slot intact, and the higher count is
    valid. Writing in place asks less of a failing or full disk than replacing the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: LastSigned | None = None
        self._handle: int | None = None
        self._place = 0

    def read(self) -> LastSigned | None:
        """The record; None if there is none. Refused: `store_failed`, for a file that payagent did not write.

        Our own last write is remembered: the sandboxed daemon cannot open new files beside the keystore
        (`payagent.sandbox`).
        """
        if self._written is not None:
            return self._written
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            raw = b""
        places = raw[:_PLACE_BYTES], raw[_PLACE_BYTES:]  # split by position: the end of a line may be lost too
        records = [signed for place in places if (signed := _read(place, is_alone=not places[1])) is not None]
        if not records:
            raise Refused("store_failed", f"{self._path} cannot be read as the signer's record")
        return max(records, key=lambda signed: signed.attempts)

    def write(self, signed: LastSigned) -> None:
        values = {key: value for key, value in asdict(signed).items() if value is not None}
        line = json.dumps(values | {"check": _check(signed)}).encode()
        place = line.ljust(_PLACE_BYTES - 1) + b"\n"
        if self._handle is not None and self._is_there(self._handle):
            self._write_in_turn(self._handle, place)
        else:
            self._replace_file(place)
        self._written = signed

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _write_in_turn(self, handle: int, place: bytes) -> None:
        turn = 1 - self._place
        if os.pwrite(handle, place, turn * _PLACE_BYTES) != len(place):
            raise OSError(f"{self._path} was written only in part")
        os.fdatasync(handle)
        self._place = turn

    def _is_there(self, handle: int) -> bool:
        """Whether our open file is still the file at the path; a copy may have replaced it."""
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(handle))
        except FileNotFoundError:
            return False

    def _replace_file(self, place: bytes) -> None:
        """Write a new file at its full size and rename it over the old one."""
        self.close()
        new = self._path.with_name(f".{self._path.name}.new")
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            room = place + b" " * (_PLACE_BYTES - 1) + b"\n"
            if os.write(handle, room) != len(room):
                raise OSError(f"{new} was written only in part")
            os.fsync(handle)
            new.rename(self._path)
            sync_folder(self._path.parent)
        except BaseException:
            os.close(handle)
            raise
        self._handle, self._place = handle, 0


def _check(signed: LastSigned) -> str:
    """A checksum that a torn slot does not match."""
    text = f"{signed.attempts} {signed.tx_id} {signed.ttl_slot}"
    if signed.database is not None:
        text += " " + " ".join(map(str, asdict(signed.database).values()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(place: bytes, *, is_alone: bool) -> LastSigned | None:
    """The record in a slot; None if torn or empty. A single line without a checksum was written as a whole."""
    try:
        values = json.loads(place)
        mark = _read_mark(values["database"]) if "database" in values else None
        signed = LastSigned(int(values["attempts"]), str(values["tx_id"]), int(values["ttl_slot"]), mark)
        is_whole = values["check"] == _check(signed) if "check" in values else is_alone
        return signed if is_whole else None
    except (ValueError, KeyError, TypeError):
        return None


def _read_mark(values: Any) -> DatabaseMark:
    return DatabaseMark(
        str(values["system"]), int(values["timeline"]), int(values["event_seq"]), str(values["event_hash"])
    )


def last_signed(conn: sqlite3.Connection, account: int = 0) -> LastSigned | None:
    """The newest attempt of an account. Row numbers have no gaps, because attempts are never deleted."""
    return find_one(
        conn,
        LastSigned,
        "SELECT rowid, tx_id, ttl_slot FROM attempts WHERE account = ? ORDER BY rowid DESC LIMIT 1",
        (account,),
    )


def lacks(conn: sqlite3.Connection, signed: LastSigned | None, account: int = 0) -> bool:
    """Whether the signer signed an attempt for the account that the ledger does not have.

    In a fleet, also whether the ledger has another past than the one in which that attempt was committed.
    """
    if signed is None:
        return False
    row = conn.execute("SELECT 1 FROM attempts WHERE tx_id = ?", (signed.tx_id,)).fetchone()
    last = last_signed(conn, account)
    if row is None or last is None or last.attempts < signed.attempts:
        return True
    mark = signed.database
    if mark is None or mark.event_seq == 0:
        return False
    end = conn.execute("SELECT hash FROM events WHERE seq = ?", (mark.event_seq,)).fetchone()
    return bool(end != (mark.event_hash,))


def is_forgotten(conn: sqlite3.Connection, signed: LastSigned | None, account: int = 0) -> bool:
    """Whether the ledger lacks what the signer signed, and no event says that this was noticed."""
    if signed is None or not lacks(conn, signed, account) or caught_up_at(conn, signed, account) is not None:
        return False
    noticed = conn.execute(
        "SELECT 1 FROM events WHERE payment_id IS NULL AND event = 'ledger_behind' AND detail ->> 'signed' = ?",
        (signed.tx_id,),
    )
    return noticed.fetchone() is None


def caught_up_at(conn: sqlite3.Connection, signed: LastSigned | None, account: int = 0) -> int | None:
    """The account's last attempt in a ledger when it caught up; None if it has not since this record was written.

    It has if it caught up with this very record, or after the recorded attempt had landed or expired. The record
    stays unchanged until the next attempt is noted.
    """
    row = conn.execute(
        "SELECT detail ->> 'signed', detail ->> 'attempts', detail ->> 'slot' FROM events "
        "WHERE payment_id IS NULL AND event = 'caught_up' AND COALESCE(detail ->> 'account', '0') = ? "
        "ORDER BY seq DESC LIMIT 1",
        (str(account),),
    ).fetchone()
    if row is None or signed is None:
        return None
    return int(row[1]) if row[0] == signed.tx_id or int(row[2] or 0) > signed.ttl_slot else None
