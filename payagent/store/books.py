"""What an audit reads: every row of the tables of record, row by row, and all that belongs to one payment.

May import: core, store.queries, store.schema, sqlite3. Never: writes; judges; holds a table in memory.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from payagent.core.money import LOVELACE
from payagent.store import queries
from payagent.store.queries import AttemptKind, EntryRow, OutputRow
from payagent.store.schema import KEPT

TABLES = tuple(sorted(KEPT))
"""The tables of record: what is in them stays."""


@dataclass(frozen=True, slots=True)
class SignedRow:
    """An attempt; `inputs` as they stand in its row."""

    tx_id: str
    kind: AttemptKind
    anchor: str
    invoice: int | None
    inputs: tuple[str, ...]
    cbor: bytes
    fee_lovelace: int
    ttl_slot: int
    signed_at_ms: int


@dataclass(frozen=True, slots=True)
class EventRow:
    seq: int
    event: str
    state: str
    detail: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class SightingRow:
    seq: int
    tx_id: str
    block_hash: str
    block_height: int
    block_slot: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class InvoiceTerms:
    seq: int
    origin: str
    invoice_id: str
    dialect: str
    terms_hash: str
    outputs: tuple[OutputRow, ...]
    batch_target: int | None
    handed_over: bool
    commitment: str | None


@dataclass(frozen=True, slots=True)
class Case:
    """A payment with everything that is recorded of it, each list in the order in which it was written.

    `holds` are (asset, units, at_ms, released_at_ms), `submissions` (seq, provider, at_ms), `coins` what its
    attempts made for us, by their refs. `intent` is the app and the origin of its intent.
    """

    id: str
    kind: str
    app_id: str
    outputs: tuple[OutputRow, ...]
    state: str
    delivery: str
    anchor: str | None
    tx_id: str | None
    block: tuple[str | None, int | None, int | None]
    created_at_ms: int
    intent: tuple[str, str] | None
    invoice: InvoiceTerms | None
    attempts: tuple[SignedRow, ...]
    events: tuple[EventRow, ...]
    holds: tuple[tuple[str, int, int, int | None], ...]
    entries: tuple[EntryRow, ...]
    sightings: tuple[SightingRow, ...]
    submissions: tuple[tuple[int, str, int], ...]
    coins: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Sealed:
    """One entry as its postings have it, (seq, account, asset, units), with its journal row, if there is one."""

    entry: int
    kind: str | None
    payment_id: str | None
    ref: str | None
    postings: tuple[tuple[int, str, str, int], ...]


def cases(conn: sqlite3.Connection) -> Iterator[Case]:
    """Every payment, oldest first."""
    rows = conn.execute(
        "SELECT p.id, p.kind, p.app_id, p.outputs, p.state, p.delivery, p.anchor, p.tx_id, p.block_hash, "
        "p.block_height, p.block_slot, p.created_at_ms, i.app_id, i.origin, v.seq, v.origin, v.invoice_id, "
        "v.dialect, v.terms_hash, v.outputs, v.batch_target, v.handed_over, v.commitment FROM payments p "
        "LEFT JOIN intents i ON i.id = p.intent_id LEFT JOIN invoices v ON v.seq = p.invoice ORDER BY p.seq"
    )
    for row in rows:
        signed = _attempts(conn, row[0])
        yield Case(
            id=row[0],
            kind=row[1],
            app_id=row[2],
            outputs=queries.load_outputs(row[3]),
            state=row[4],
            delivery=row[5],
            anchor=row[6],
            tx_id=row[7],
            block=(row[8], row[9], row[10]),
            created_at_ms=row[11],
            intent=None if row[12] is None else (row[12], row[13]),
            invoice=None if row[14] is None else _invoice(row[14:]),
            attempts=signed,
            events=tuple(EventRow(*event) for event in queries.events(conn, row[0])),
            holds=tuple(conn.execute(_HOLDS, (row[0],)).fetchall()),
            entries=_entries(conn, row[0]),
            sightings=tuple(SightingRow(*seen) for seen in _of(conn, _SIGHTINGS, signed)),
            submissions=tuple(_of(conn, _SUBMISSIONS, signed)),
            coins={ref: value_of(lovelace, assets) for ref, lovelace, assets in _of(conn, _COINS, signed)},
        )


_HOLDS = "SELECT asset, units, at_ms, released_at_ms FROM holds WHERE payment_id = ?"
_SIGHTINGS = "SELECT seq, tx_id, block_hash, block_height, block_slot, at_ms FROM sightings WHERE tx_id = ?"
_SUBMISSIONS = "SELECT seq, provider, at_ms FROM submissions WHERE tx_id = ?"
_COINS = "SELECT ref, lovelace, assets FROM coins WHERE tx_id = ?"


def _of(conn: sqlite3.Connection, sql: str, signed: tuple[SignedRow, ...]) -> list[Any]:
    return sorted(row for attempt in signed for row in conn.execute(sql, (attempt.tx_id,)))


def _attempts(conn: sqlite3.Connection, payment_id: str) -> tuple[SignedRow, ...]:
    rows = conn.execute(
        "SELECT tx_id, kind, anchor, invoice, inputs, cbor, fee_lovelace, ttl_slot, signed_at_ms FROM attempts "
        "WHERE payment_id = ? ORDER BY rowid",
        (payment_id,),
    )
    return tuple(_signed(*row) for row in rows)


def _signed(
    tx_id: str, kind: AttemptKind, anchor: str, invoice: int | None, inputs: str, cbor: bytes, *numbers: int
) -> SignedRow:
    return SignedRow(tx_id, kind, anchor, invoice, tuple(inputs.split(" ")), cbor, *numbers)


def _invoice(row: tuple[Any, ...]) -> InvoiceTerms:
    seq, origin, invoice_id, dialect, terms_hash, outputs, batch_target, handed_over, commitment = row
    paid = queries.load_outputs(outputs)
    return InvoiceTerms(
        seq, origin, invoice_id, dialect, terms_hash, paid, batch_target, bool(handed_over), commitment
    )


def _entries(conn: sqlite3.Connection, payment_id: str) -> tuple[EntryRow, ...]:
    rows = conn.execute(
        "SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, q.account, q.asset, q.units FROM journal j "
        "LEFT JOIN postings q ON q.entry = j.id WHERE j.payment_id = ? ORDER BY j.id, q.seq",
        (payment_id,),
    )
    return tuple(
        EntryRow(number, kind, owner, ref, at_ms, tuple(line[5:] for line in lines))
        for (number, kind, owner, ref, at_ms), lines in groupby(rows, key=lambda row: row[:5])
    )


def value_of(lovelace: int, assets: str) -> dict[str, int]:
    """What a coin holds, per asset."""
    return {LOVELACE: lovelace, **json.loads(assets)}


def sealed_entries(conn: sqlite3.Connection) -> Iterator[Sealed]:
    """Every entry, in the order in which its postings were written."""
    rows = conn.execute(
        "SELECT q.entry, j.kind, j.payment_id, j.ref, q.seq, q.account, q.asset, q.units FROM postings q "
        "LEFT JOIN journal j ON j.id = q.entry ORDER BY q.seq"
    )
    for (entry, kind, payment_id, ref), lines in groupby(rows, key=lambda row: row[:4]):
        yield Sealed(entry, kind, payment_id, ref, tuple(line[4:] for line in lines))


def gaps(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int, int]]:
    """(first, last) of the numbers that no row has, before the last row: rows are numbered from 1 on."""
    return conn.execute(
        "SELECT before + 1, number - 1 FROM (SELECT rowid AS number, LAG(rowid, 1, 0) OVER (ORDER BY rowid) "  # noqa: S608
        f"AS before FROM {table}) WHERE number <> before + 1"
    )


def broken_references(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int | None, str]]:
    """(row number, the table that lacks the row that it refers to)."""
    return ((number, parent) for _, number, parent, _ in conn.execute(f"PRAGMA foreign_key_check({table})"))


def unposted(conn: sqlite3.Connection) -> Iterator[int]:
    """Journal rows without a posting."""
    rows = conn.execute("SELECT id FROM journal j WHERE NOT EXISTS (SELECT 1 FROM postings WHERE entry = j.id)")
    return (number for (number,) in rows)


def deposited(conn: sqlite3.Connection, ref: str) -> tuple[dict[str, int] | None, bool]:
    """What the coin of a deposit holds, if it is known, and whether the deposit was ever taken back."""
    row = conn.execute(
        "SELECT lovelace, assets FROM coins WHERE ref = ? AND source = 'deposit'", (ref,)
    ).fetchone()
    if row is not None:
        return value_of(*row), False
    back = conn.execute("SELECT 1 FROM journal WHERE kind = 'undeposit' AND ref = ?", (ref,)).fetchone()
    return None, back is not None


# a coin counts from when what made it is booked until what spent it is
_BOOKED = """EXISTS (SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id
             WHERE a.tx_id = c.{} AND p.state IN ('confirmed', 'settled', 'void'))"""
_COUNTED = f"""
SELECT c.ref, c.lovelace, c.assets,
       (c.source = 'deposit' OR {_BOOKED.format("tx_id")})
         - (c.spent_by IS NOT NULL AND {_BOOKED.format("spent_by")}),
       c.source = 'deposit' AND NOT c.ref IN (SELECT ref FROM journal WHERE kind = 'deposit'),
       c.spent_by IS NOT NULL AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.tx_id = c.spent_by
                                              AND instr(' ' || a.inputs || ' ', ' ' || c.ref || ' '))
FROM coins c ORDER BY c.rowid
"""  # noqa: S608  names of ours


@dataclass(frozen=True, slots=True)
class CoinCount:
    """A coin as the books count it: once, not, or (spent by a booked transaction, and not booked itself) less."""

    ref: str
    value: Mapping[str, int]
    times: int
    is_unbooked: bool
    is_spent_by_nothing: bool


def coin_counts(conn: sqlite3.Connection) -> Iterator[CoinCount]:
    """Every coin that ever was."""
    for ref, lovelace, assets, times, unbooked, unspent in conn.execute(_COUNTED):
        yield CoinCount(ref, value_of(lovelace, assets), times, bool(unbooked), bool(unspent))
