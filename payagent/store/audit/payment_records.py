"""Reads everything that is recorded about payments, for an audit: payment by payment, in spans of many.

Rows are tuples, the fastest values that Python can make.
Never: writes; judges; holds a whole table in memory.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from payagent.core.aggregate import AttemptKind, OutputRow
from payagent.core.money import LOVELACE
from payagent.store.db.sql import find_all, places
from payagent.store.rows.events import EventRow
from payagent.store.rows.journal import EntryRow
from payagent.store.rows.payments import load_outputs

_LEAST, _MOST = -(2**63), 2**63 - 1
"""The smallest and the largest row number that SQLite allows."""


class SignedRow(NamedTuple):
    """A signed attempt; `inputs` in the order of its row."""

    tx_id: str
    kind: AttemptKind
    nonce_utxo: str
    invoice_seq: int | None
    inputs: tuple[str, ...]
    cbor: bytes
    fee_lovelace: int
    ttl_slot: int
    signed_at_ms: int


class SignedTransaction(NamedTuple):
    """The bytes of an attempt. `seq`: its place in the order of signing."""

    seq: int
    payment_id: str
    account: int
    tx_id: str
    cbor: bytes


class BlockObservationRow(NamedTuple):
    seq: int
    tx_id: str
    block_hash: str
    block_height: int
    block_slot: int
    at_ms: int


class InvoiceTerms(NamedTuple):
    seq: int
    origin: str
    invoice_id: str
    dialect: str
    terms_hash: str
    outputs: tuple[OutputRow, ...]
    batch_target: int | None
    commitment: str | None


class IntentFacts(NamedTuple):
    """An intent, and when a request that it paid for was first served.

    `ended_at_ms`: None if a call of a channel paid for it, whose answer ends it.
    """

    number: int
    app_id: str
    origin: str
    is_key_derived: bool
    ended_at_ms: int | None
    served_at_ms: int | None


class UtxoMade(NamedTuple):
    """One of our UTxOs that one of our transactions makes."""

    ref: str
    value: Mapping[str, int]
    state: str


class Case(NamedTuple):
    """A payment with everything that is recorded about it; each list is in the order of writing.

    `invoices`: the invoices that it pays or had attempts for, by number. `outputs`: those of the first invoice.
    `standing`: the columns of its row that may change (`STANDING`).
    `holds`: (asset, units, at_ms, released_at_ms). `submissions`: (seq, provider, at_ms).
    `utxos`: what its attempts made for its account. `reserved`: the UTxOs reserved for it.
    `spent`: of a transfer that changes a channel, the value of each of the wallet's UTxOs that it spends; None of
    any other payment. The `inputs` of its attempts are then only these.
    """

    id: str
    kind: str
    app_id: str
    outputs: tuple[OutputRow, ...]
    is_prepaid: bool
    created_at_ms: int
    standing: Mapping[str, object]
    intent: IntentFacts | None
    first_invoice_seq: int | None
    invoices: Mapping[int, InvoiceTerms]
    attempts: tuple[SignedRow, ...]
    events: tuple[EventRow, ...]
    holds: tuple[tuple[str, int, int, int | None], ...]
    entries: tuple[EntryRow, ...]
    block_observations: tuple[BlockObservationRow, ...]
    submissions: tuple[tuple[int, str, int], ...]
    utxos: tuple[UtxoMade, ...]
    reserved: frozenset[str]
    account: int = 0
    spent: Mapping[str, Mapping[str, int]] | None = None


STANDING = (
    "state", "delivery", "nonce_utxo", "ttl_slot", "tx_id", "block_hash", "block_height", "block_slot",
    "invoice_seq", "void_tx_id", "merchant_status", "code", "reason", "detail", "updated_at_ms",
)  # fmt: skip
"""The columns of a payment that may change."""

_CASES = f"""
SELECT p.seq, p.id, p.kind, p.app_id, p.outputs, p.pool_id IS NOT NULL, p.created_at_ms, p.first_invoice_seq,
       p.account, {", ".join(f"p.{name}" for name in STANDING)},
       i.rowid, i.id, i.app_id, i.origin, i.is_key_derived,
       CASE WHEN NOT EXISTS (SELECT 1 FROM channel_calls n WHERE n.intent_id = i.id AND n.state <> 'void')
         THEN i.ended_at_ms END,
       (SELECT COUNT(*) FROM payments q WHERE q.intent_id = p.intent_id),
       v.seq, v.origin, v.invoice_id, v.dialect, v.terms_hash, v.outputs, v.batch_target, v.commitment
FROM payments p LEFT JOIN intents i ON i.id = p.intent_id LEFT JOIN invoices v ON v.seq = p.invoice_seq
WHERE p.seq BETWEEN ?1 AND ?2 ORDER BY p.seq
"""  # noqa: S608  our own names
_INTENT_AT = 9 + len(STANDING)
_INVOICE_AT = _INTENT_AT + 7
_ATTEMPTS = "CROSS JOIN attempts a ON a.payment_id = p.id"
_OF_PAYMENTS = {
    "attempts": (
        "a.tx_id, a.kind, a.nonce_utxo, a.invoice_seq, a.inputs, a.cbor, a.fee_lovelace, a.ttl_slot, "
        "a.signed_at_ms",
        _ATTEMPTS,
        "a.rowid",
    ),
    "invoices": (
        "v.seq, v.origin, v.invoice_id, v.dialect, v.terms_hash, v.outputs, v.batch_target, v.commitment",
        f"{_ATTEMPTS} CROSS JOIN invoices v ON v.seq = a.invoice_seq AND v.seq IS DISTINCT FROM p.invoice_seq",
        "a.rowid",
    ),
    "events": (
        "e.seq, e.payment_id, e.event, e.state, e.detail, e.at_ms",
        "CROSS JOIN events e ON e.payment_id = p.id",
        "e.seq",
    ),
    "holds": (
        "h.asset, h.units, h.at_ms, h.released_at_ms",
        "CROSS JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment'",
        "h.asset",
    ),
    "entries": (
        "j.id, j.kind, j.payment_id, j.ref, j.at_ms, q.account, q.asset, q.units",
        "CROSS JOIN entries j ON j.payment_id = p.id LEFT JOIN postings q ON q.entry_id = j.id",
        "j.id, q.seq",
    ),
    "block_observations": (
        "s.seq, s.tx_id, s.block_hash, s.block_height, s.block_slot, s.at_ms",
        f"{_ATTEMPTS} CROSS JOIN block_observations s ON s.tx_id = a.tx_id",
        "a.rowid, s.seq",
    ),
    "submissions": (
        "s.seq, s.provider, s.at_ms",
        f"{_ATTEMPTS} CROSS JOIN submissions s ON s.tx_id = a.tx_id",
        "a.rowid, s.at_ms",
    ),
    "utxos": (
        "c.ref, c.lovelace, c.assets, c.state",
        f"{_ATTEMPTS} CROSS JOIN utxos c ON c.tx_id = a.tx_id AND c.account = a.account",
        "a.rowid, c.rowid",
    ),
    "reservations": ("r.ref", "CROSS JOIN reservations r ON r.payment_id = p.id", "r.rowid"),
}
"""Tables with rows that belong to payments: columns, join and order. Each is read in step with the payments."""


class _Belongings:
    """The rows of one table that belong to payments, handed out payment by payment."""

    def __init__(self, conn: sqlite3.Connection, table: str, first: int, last: int) -> None:
        columns, source, order = _OF_PAYMENTS[table]
        rows = conn.execute(
            f"SELECT p.seq, {columns} FROM payments p {source} WHERE p.seq BETWEEN ?1 AND ?2 "  # noqa: S608
            f"ORDER BY p.seq, {order}",
            (first, last),
        )
        self._groups = groupby(rows, key=itemgetter(0))
        self._next = next(self._groups, None)

    def of(self, seq: int) -> list[Any]:
        if self._next is None or self._next[0] != seq:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows


def payment_spans(conn: sqlite3.Connection, count: int) -> Iterator[tuple[int, int]]:
    """(first, last) row numbers of spans of `count` numbers each. A span with gaps holds fewer payments."""
    last = _LEAST
    while True:
        (first,) = conn.execute("SELECT MIN(seq) FROM payments WHERE seq > ?", (last,)).fetchone()
        if first is None:
            return
        last = min(first + count - 1, _MOST)
        yield first, last


def cases(conn: sqlite3.Connection, first: int, last: int) -> Iterator[Case]:
    """Every payment with a number in this span, oldest first."""
    tables = {table: _Belongings(conn, table, first, last) for table in _OF_PAYMENTS}
    for row in conn.execute(_CASES, (first, last)):
        belongings = {table: rows.of(row[0]) for table, rows in tables.items()}
        events = tuple(EventRow(*event[1:]) for event in belongings["events"])
        attempts = tuple(_signed(*attempt[1:]) for attempt in belongings["attempts"])
        spent = None
        if row[2] == "send" and row[_INTENT_AT + 3]:
            spent = values_of(conn, [ref for attempt in attempts for ref in attempt.inputs])
            attempts = tuple(one._replace(inputs=tuple(filter(spent.get, one.inputs))) for one in attempts)
        yield Case(
            id=row[1],
            kind=row[2],
            app_id=row[3],
            outputs=_outputs(row[4]),
            is_prepaid=bool(row[5]),
            created_at_ms=row[6],
            first_invoice_seq=row[7],
            account=row[8],
            standing=dict(zip(STANDING, row[9:_INTENT_AT], strict=True)),
            intent=_intent(conn, row[_INTENT_AT:_INVOICE_AT], events),
            invoices={
                terms[0]: _invoice(*terms)
                for terms in (row[_INVOICE_AT:], *(row_terms[1:] for row_terms in belongings["invoices"]))
                if terms[0] is not None
            },
            attempts=attempts,
            spent=spent,
            events=events,
            holds=tuple(hold[1:] for hold in belongings["holds"]),
            entries=_entries(belongings["entries"]),
            block_observations=tuple(
                BlockObservationRow(*observation[1:]) for observation in sorted(belongings["block_observations"])
            ),
            submissions=tuple(submission[1:] for submission in sorted(belongings["submissions"])),
            utxos=tuple(
                UtxoMade(ref, value_of(lovelace, assets), state)
                for _, ref, lovelace, assets, state in belongings["utxos"]
            ),
            reserved=frozenset(ref for _, ref in belongings["reservations"]),
        )


def values_of(conn: sqlite3.Connection, refs: list[str]) -> dict[str, dict[str, int]]:
    """The value of each of these UTxOs that the ledger has."""
    rows = conn.execute(f"SELECT ref, lovelace, assets FROM utxos WHERE ref IN ({places(len(refs))})", refs)  # noqa: S608
    return {ref: value_of(lovelace, assets) for ref, lovelace, assets in rows}


def signed_transactions(conn: sqlite3.Connection, before_seq: int | None, limit: int) -> list[SignedTransaction]:
    """A page of all transactions that were signed, newest first."""
    return find_all(
        conn,
        SignedTransaction,
        "SELECT rowid, payment_id, account, tx_id, cbor FROM attempts WHERE rowid < ? ORDER BY rowid DESC LIMIT ?",
        (_MOST if before_seq is None else before_seq, limit),
    )


_SERVED = """
SELECT e.at_ms FROM payments p CROSS JOIN events e ON e.payment_id = p.id AND e.event = 'delivery_accept'
WHERE p.intent_id = ? ORDER BY e.seq LIMIT 1
"""


def _intent(conn: sqlite3.Connection, row: tuple[Any, ...], events: tuple[EventRow, ...]) -> IntentFacts | None:
    number, intent_id, app_id, origin, is_key_derived, ended_at_ms, payments = row
    if number is None:
        return None
    served_at_ms = next((event.at_ms for event in events if event.event == "delivery_accept"), None)
    if payments > 1:
        (served_at_ms,) = conn.execute(_SERVED, (intent_id,)).fetchone() or (None,)
    return IntentFacts(number, app_id, origin, bool(is_key_derived), ended_at_ms, served_at_ms)


@lru_cache(maxsize=1000)
def _outputs(text: str) -> tuple[OutputRow, ...]:
    """The outputs in a row's text; empty if unreadable. Cached, because many payments have the same outputs."""
    try:
        return load_outputs(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _signed(
    tx_id: str,
    kind: AttemptKind,
    nonce_utxo: str,
    invoice_seq: int | None,
    inputs: str,
    cbor: bytes,
    *numbers: int,
) -> SignedRow:
    return SignedRow(tx_id, kind, nonce_utxo, invoice_seq, tuple(inputs.split(" ")), cbor, *numbers)


def _invoice(
    seq: int,
    origin: str,
    invoice_id: str,
    dialect: str,
    terms_hash: str,
    outputs: str,
    batch_target: int | None,
    commitment: str | None,
) -> InvoiceTerms:
    return InvoiceTerms(seq, origin, invoice_id, dialect, terms_hash, _outputs(outputs), batch_target, commitment)


def _entries(rows: list[Any]) -> tuple[EntryRow, ...]:
    return tuple(
        EntryRow(number, kind, owner, ref, at_ms, tuple(line[6:] for line in lines if line[6] is not None))
        for (number, kind, owner, ref, at_ms), lines in groupby(rows, key=itemgetter(1, 2, 3, 4, 5))
    )


def value_of(lovelace: int, assets: str) -> dict[str, int]:
    """The value of a UTxO, per asset. Unreadable text becomes a value that no UTxO can have."""
    if assets == "{}":
        return {LOVELACE: lovelace}
    try:
        return {LOVELACE: lovelace, **{str(asset): int(units) for asset, units in json.loads(assets).items()}}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {LOVELACE: lovelace, "": 0}
