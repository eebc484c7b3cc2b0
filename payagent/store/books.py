"""What an audit reads: every row of the tables of record, row by row, and all that belongs to one payment.

Its rows are tuples, which are made fastest.
May import: core, store.journal, .payments, .queries, .schema, .seals, .spending, sqlite3. Never: writes; judges;
holds a table in memory.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.store.journal import EntryRow
from payagent.store.payments import OutputRow, load_outputs
from payagent.store.queries import AttemptKind
from payagent.store.schema import GUARDS, KEPT
from payagent.store.seals import row_text
from payagent.store.spending import OPEN_MS, SPANS_MS

_LEAST, _MOST = -(2**63), 2**63 - 1
"""What numbers a row may have."""

REFERRING = (*sorted(KEPT), "reservations")
"""The tables of record, in which what is there stays, and who has which coins."""


class SignedRow(NamedTuple):
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


class EventRow(NamedTuple):
    """An event; of all rows there are most of them."""

    seq: int
    event: str
    state: str | None
    detail: str
    at_ms: int


class SightingRow(NamedTuple):
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
    """An intent, and when a call that it bought was first served."""

    number: int
    app_id: str
    origin: str
    derived: bool
    ended_at_ms: int | None
    served_at_ms: int | None


class CoinMade(NamedTuple):
    """A coin that a transaction of ours makes for us."""

    ref: str
    value: Mapping[str, int]
    state: str


class Case(NamedTuple):
    """A payment with everything that is recorded of it, each list in the order in which it was written.

    `invoices` are those that it goes by or was signed for, by their numbers; `outputs` are of the first.
    `standing` are the columns of its row that may change (`STANDING`). `holds` are (asset, units, at_ms,
    released_at_ms), `submissions` (seq, provider, at_ms), `coins` what its attempts made for us, `reserved` the
    coins that it has for itself.
    """

    id: str
    kind: str
    app_id: str
    outputs: tuple[OutputRow, ...]
    is_prepaid: bool
    created_at_ms: int
    standing: Mapping[str, object]
    intent: IntentFacts | None
    first_invoice: int | None
    invoices: Mapping[int, InvoiceTerms]
    attempts: tuple[SignedRow, ...]
    events: tuple[EventRow, ...]
    holds: tuple[tuple[str, int, int, int | None], ...]
    entries: tuple[EntryRow, ...]
    sightings: tuple[SightingRow, ...]
    submissions: tuple[tuple[int, str, int], ...]
    coins: tuple[CoinMade, ...]
    reserved: frozenset[str]


class Seal(NamedTuple):
    """The seal of what one commit added (store.seals). There are several of each payment."""

    seq: int
    what: str
    marks: bytes
    hash: str


STANDING = (
    *("state", "delivery", "anchor", "ttl_slot", "tx_id", "block_hash", "block_height", "block_slot", "invoice"),
    "void_by",
    *("merchant_status", "reason_code", "reason", "changed_at_ms"),
)
"""The columns of a payment that may change."""

_CASES = f"""
SELECT p.seq, p.id, p.kind, p.app_id, p.outputs, p.pool IS NOT NULL, p.created_at_ms, p.first_invoice,
       {", ".join(f"p.{name}" for name in STANDING)},
       i.rowid, i.id, i.app_id, i.origin, i.derived, i.ended_at_ms,
       (SELECT COUNT(*) FROM payments q WHERE q.intent_id = p.intent_id),
       v.seq, v.origin, v.invoice_id, v.dialect, v.terms_hash, v.outputs, v.batch_target, v.commitment
FROM payments p LEFT JOIN intents i ON i.id = p.intent_id LEFT JOIN invoices v ON v.seq = p.invoice
WHERE p.seq BETWEEN ?1 AND ?2 ORDER BY p.seq
"""  # noqa: S608  names of ours
_INTENT_AT = 8 + len(STANDING)
_INVOICE_AT = _INTENT_AT + 7

_ATTEMPTS = "CROSS JOIN attempts a ON a.payment_id = p.id"
_OF_PAYMENTS = {
    "attempts": (
        "a.tx_id, a.kind, a.anchor, a.invoice, a.inputs, a.cbor, a.fee_lovelace, a.ttl_slot, a.signed_at_ms",
        _ATTEMPTS,
        "a.rowid",
    ),
    "invoices": (
        "v.seq, v.origin, v.invoice_id, v.dialect, v.terms_hash, v.outputs, v.batch_target, v.commitment",
        f"{_ATTEMPTS} CROSS JOIN invoices v ON v.seq = a.invoice AND v.seq IS NOT p.invoice",
        "a.rowid",
    ),
    "events": (
        "e.seq, e.event, e.state, e.detail, e.at_ms",
        "CROSS JOIN events e ON e.payment_id = p.id",
        "e.seq",
    ),
    "holds": (
        "h.asset, h.units, h.at_ms, h.released_at_ms",
        "CROSS JOIN holds h ON h.payment_id = p.id AND h.stage = 'pay'",
        "h.asset",
    ),
    "journal": (
        "j.id, j.kind, j.payment_id, j.ref, j.at_ms, q.account, q.asset, q.units",
        "CROSS JOIN journal j ON j.payment_id = p.id LEFT JOIN postings q ON q.entry = j.id",
        "j.id, q.seq",
    ),
    "sightings": (
        "s.seq, s.tx_id, s.block_hash, s.block_height, s.block_slot, s.at_ms",
        f"{_ATTEMPTS} CROSS JOIN sightings s ON s.tx_id = a.tx_id",
        "a.rowid, s.seq",
    ),
    "submissions": (
        "s.seq, s.provider, s.at_ms",
        f"{_ATTEMPTS} CROSS JOIN submissions s ON s.tx_id = a.tx_id",
        "a.rowid, s.at_ms",
    ),
    "coins": (
        "c.ref, c.lovelace, c.assets, c.state",
        f"{_ATTEMPTS} CROSS JOIN coins c ON c.tx_id = a.tx_id",
        "a.rowid, c.rowid",
    ),
    "reservations": ("r.ref", "CROSS JOIN reservations r ON r.payment_id = p.id", "r.rowid"),
}
"""What belongs to payments, as columns, join and order: read side by side with them, in their order."""


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
    """The first and the last number of every so many payments; fewer, where numbers are missing."""
    last = _LEAST
    while True:
        (first,) = conn.execute("SELECT MIN(seq) FROM payments WHERE seq > ?", (last,)).fetchone()
        if first is None:
            return
        last = min(first + count - 1, _MOST)
        yield first, last


def path_of(conn: sqlite3.Connection) -> Path | None:
    """The file that a connection reads; None when it is in memory."""
    (_, _, name), *_ = conn.execute("PRAGMA database_list").fetchall()
    return Path(name) if name else None


def cases(conn: sqlite3.Connection, first: int, last: int) -> Iterator[Case]:
    """Every payment of these numbers, oldest first."""
    tables = {table: _Belongings(conn, table, first, last) for table in _OF_PAYMENTS}
    for row in conn.execute(_CASES, (first, last)):
        theirs = {table: rows.of(row[0]) for table, rows in tables.items()}
        events = tuple(EventRow._make(event[1:]) for event in theirs["events"])
        yield Case(
            id=row[1],
            kind=row[2],
            app_id=row[3],
            outputs=_outputs(row[4]),
            is_prepaid=bool(row[5]),
            created_at_ms=row[6],
            first_invoice=row[7],
            standing=dict(zip(STANDING, row[8:_INTENT_AT], strict=True)),
            intent=_intent(conn, row[_INTENT_AT:_INVOICE_AT], events),
            invoices={
                terms[0]: _invoice(*terms)
                for terms in (row[_INVOICE_AT:], *(one[1:] for one in theirs["invoices"]))
                if terms[0] is not None
            },
            attempts=tuple(_signed(*attempt[1:]) for attempt in theirs["attempts"]),
            events=events,
            holds=tuple(hold[1:] for hold in theirs["holds"]),
            entries=_entries(theirs["journal"]),
            sightings=tuple(SightingRow(*seen[1:]) for seen in sorted(theirs["sightings"])),
            submissions=tuple(sent[1:] for sent in sorted(theirs["submissions"])),
            coins=tuple(
                CoinMade(ref, value_of(lovelace, assets), state)
                for _, ref, lovelace, assets, state in theirs["coins"]
            ),
            reserved=frozenset(ref for _, ref in theirs["reservations"]),
        )


_SERVED = """
SELECT e.at_ms FROM payments p CROSS JOIN events e ON e.payment_id = p.id AND e.event = 'delivery_accept'
WHERE p.intent_id = ? ORDER BY e.seq LIMIT 1
"""


def _intent(conn: sqlite3.Connection, row: tuple[Any, ...], events: tuple[EventRow, ...]) -> IntentFacts | None:
    number, intent_id, app_id, origin, derived, ended_at_ms, payments = row
    if number is None:
        return None
    served_at_ms = next((event.at_ms for event in events if event.event == "delivery_accept"), None)
    if payments > 1:
        (served_at_ms,) = conn.execute(_SERVED, (intent_id,)).fetchone() or (None,)
    return IntentFacts(number, app_id, origin, bool(derived), ended_at_ms, served_at_ms)


def unpaid_ends(conn: sqlite3.Connection) -> Iterator[int]:
    """Intents that ended without a payment."""
    rows = conn.execute(
        "SELECT rowid FROM intents i WHERE ended_at_ms IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM payments WHERE intent_id = i.id)"
    )
    return (number for (number,) in rows)


@lru_cache(maxsize=1000)
def _outputs(text: str) -> tuple[OutputRow, ...]:
    """A payment has the outputs of its invoice, and often those of many before. What cannot be read is none."""
    try:
        return load_outputs(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _signed(
    tx_id: str, kind: AttemptKind, anchor: str, invoice: int | None, inputs: str, cbor: bytes, *numbers: int
) -> SignedRow:
    return SignedRow(tx_id, kind, anchor, invoice, tuple(inputs.split(" ")), cbor, *numbers)


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
    """What a coin holds, per asset. Where that cannot be read, it is as no coin is."""
    if assets == "{}":
        return {LOVELACE: lovelace}
    try:
        return {LOVELACE: lovelace, **{str(asset): int(units) for asset, units in json.loads(assets).items()}}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {LOVELACE: lovelace, "": 0}


def entries_of_no_payment(conn: sqlite3.Connection) -> Iterator[EntryRow]:
    """Every entry that names no payment, in order."""
    rows = conn.execute(
        "SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, q.account, q.asset, q.units FROM journal j "
        "LEFT JOIN postings q ON q.entry = j.id WHERE j.payment_id IS NULL ORDER BY j.id, q.seq"
    )
    for (number, kind, owner, ref, at_ms), lines in groupby(rows, key=itemgetter(0, 1, 2, 3, 4)):
        yield EntryRow(number, kind, owner, ref, at_ms, tuple(line[5:] for line in lines if line[5] is not None))


def row_texts(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int, bytes]]:
    """(number, what of it is sealed) of every row, in order."""
    return conn.execute(f"SELECT rowid, {row_text(conn, table)} FROM {table} ORDER BY rowid")  # noqa: S608


def seals(conn: sqlite3.Connection) -> Iterator[Seal]:
    """Every seal, in order."""
    return map(Seal._make, conn.execute("SELECT seq, what, marks, hash FROM seals ORDER BY seq"))


def event_texts(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str, bytes]]:
    """(seq, prev_hash, hash, what the hash is of) of every event, in order."""
    return conn.execute(
        "SELECT seq, prev_hash, hash, CAST(json_array(prev_hash, seq, payment_id, event, state, detail, at_ms) AS "
        "BLOB) FROM events ORDER BY seq"
    )


def unposted(conn: sqlite3.Connection) -> Iterator[int]:
    """Journal rows without a posting."""
    rows = conn.execute("SELECT id FROM journal j WHERE NOT EXISTS (SELECT 1 FROM postings WHERE entry = j.id)")
    return (number for (number,) in rows)


def other_triggers(conn: sqlite3.Connection) -> Iterator[str]:
    """The triggers that no guard of ours is."""
    ours = {guard.name for guard in GUARDS}
    rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
    return (name for (name,) in rows if name not in ours)


def broken_references(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int | None, str]]:
    """(row number, the table that lacks the row that it refers to)."""
    return ((number, parent) for _, number, parent, _ in conn.execute(f"PRAGMA foreign_key_check({table})"))


def unmoved(conn: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """(entry, how many moves of a prepaid balance it books) of those that book another number than one."""
    return conn.execute(
        "SELECT j.id, COUNT(m.seq) FROM journal j LEFT JOIN prepaid_moves m ON m.entry = j.id "
        "WHERE j.kind IN ('use', 'unuse') GROUP BY j.id HAVING COUNT(m.seq) <> 1"
    )


def deposited(conn: sqlite3.Connection, ref: str) -> tuple[dict[str, int] | None, bool]:
    """What the coin of a deposit holds, if it is known, and whether the deposit was ever taken back."""
    row = conn.execute(
        "SELECT lovelace, assets FROM coins WHERE ref = ? AND source = 'deposit'", (ref,)
    ).fetchone()
    if row is not None:
        return value_of(*row), False
    back = conn.execute(
        "SELECT 1 FROM journal WHERE payment_id IS NULL AND kind = 'undeposit' AND ref = ?", (ref,)
    ).fetchone()
    return None, back is not None


_EXPECTED = """CASE WHEN p.kind <> 'invoice' THEN NULL WHEN h.released_at_ms IS NULL THEN h.units
    WHEN p.state = 'void' AND h.asset = 'lovelace' AND h.stage = 'pay'
    THEN COALESCE((SELECT fee_lovelace FROM attempts WHERE tx_id = p.tx_id), 0) ELSE 0 END"""


def miscounted(conn: sqlite3.Connection) -> Iterator[tuple[str, str, int | None, int | None]]:
    """(payment, asset, what of its hold counts against limits, what ought to) of those that disagree."""
    return conn.execute(
        f"SELECT h.payment_id, h.asset, h.counted_units, {_EXPECTED} AS expected FROM holds h "  # noqa: S608
        "JOIN payments p ON p.id = h.payment_id WHERE h.counted_units IS NOT expected ORDER BY h.rowid"
    )


def unlike_asked(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of holds for a question that ended at another time than the question did."""
    return conn.execute(
        "SELECT h.payment_id, h.asset FROM holds h WHERE h.stage = 'ask' AND h.released_at_ms IS NOT "
        "(SELECT e.at_ms FROM events e WHERE e.payment_id = h.payment_id AND e.event IN ('hold', 'deny') "
        "ORDER BY e.seq LIMIT 1) ORDER BY h.rowid"
    )


_EXPECTED_FROM = """CASE WHEN p.state IN ('confirmed', 'settled', 'void') AND h.counted_units > 0
    THEN (SELECT IIF(json_valid(e.detail), e.detail ->> '$.counts_from_ms', NULL) FROM events e
          WHERE e.payment_id = p.id AND e.event IN ('confirm', 'void') ORDER BY e.seq DESC LIMIT 1) END"""


def counted_otherwise(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of holds that do not count from when their payment ended, as its event tells it."""
    return conn.execute(
        "SELECT h.payment_id, h.asset FROM holds h JOIN payments p ON p.id = h.payment_id "  # noqa: S608
        f"WHERE h.counted_from_ms IS NOT {_EXPECTED_FROM} ORDER BY h.rowid"
    )


def put_back_clocks(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of holds that were counted at an earlier time of the limits' clock than the one before."""
    return conn.execute(
        "SELECT payment_id, asset FROM (SELECT rowid, payment_id, asset, counted_at_ms, "
        "LAG(counted_at_ms, 1, 0) OVER (ORDER BY rowid) AS before_ms FROM holds) WHERE counted_at_ms < before_ms "
        "ORDER BY rowid"
    )


def limits_set(conn: sqlite3.Connection) -> Iterator[str]:
    """What each event tells that set a limit, in order."""
    rows = conn.execute("SELECT detail FROM events WHERE payment_id IS NULL AND event = 'limit_set' ORDER BY seq")
    return (detail for (detail,) in rows)


def wallet_events(conn: sqlite3.Connection, names: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """(event, what it tells, when) of the wallet's own events of these names, in order."""
    return conn.execute(
        "SELECT event, detail, at_ms FROM events WHERE payment_id IS NULL "
        "AND event IN (SELECT value FROM json_each(?)) ORDER BY seq",
        (json.dumps(list(names)),),
    )


def pins(conn: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """(origin, role, address) of every address that any merchant may be paid at."""
    return conn.execute("SELECT origin, role, address FROM pins")


def agreed_prices(conn: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """(origin, method, path, asset, calls, units) of every price that was agreed to."""
    return conn.execute("SELECT origin, method, path, asset, calls, units FROM agreed_prices")


def strikes(conn: sqlite3.Connection) -> Iterator[tuple[str, int, int | None]]:
    """(origin, how many in a row, since when it is stopped) of every merchant that ever left one unserved."""
    return conn.execute("SELECT origin, count, stopped_at_ms FROM strikes")


def tokens(conn: sqlite3.Connection) -> Iterator[tuple[int, str, int | None]]:
    """(row number, whose, when it was revoked) of every token, in order."""
    return conn.execute("SELECT rowid, app_id, revoked_at_ms FROM tokens ORDER BY rowid")


def token_events(conn: sqlite3.Connection) -> Iterator[tuple[str | None, str, int]]:
    """(app, event, when) of each token that was given or revoked, in order."""
    return conn.execute(
        "SELECT IIF(json_valid(detail), detail ->> '$.app', NULL), event, at_ms FROM events "
        "WHERE payment_id IS NULL "
        "AND event IN ('token_given', 'app_revoked') ORDER BY seq"
    )


_FINEST, *_COARSER = SPANS_MS[:-1]
_HALVES = "SUM({0}high) + (SUM({0}low) >> 32), SUM({0}low) & 4294967295"
_NARROW = "s.app <> '' AND s.merchant <> ''"
_ALL, _PAID = "", " AND s.what = 'paid'"
_SPENT = "(app, merchant, asset, span_ms, start_ms, what, high, low)"
_SOME = "WHERE high <> 0 OR low <> 0"
_COUNTED_AT = f"COALESCE(h.counted_from_ms, {OPEN_MS})"


def misspent(conn: sqlite3.Connection) -> Iterator[tuple[str, str, str, int, int]]:
    """(app, merchant, asset, span, its start) where what is kept as spent is not what the holds and uses count.

    Of an app at a merchant in the finest spans, that is asked of them; of all other rows, of those. Uses count for
    apps alone.
    """
    counted = "SUM(h.counted_units >> 32) + (SUM(h.counted_units & 4294967295) >> 32), "
    counted += "SUM(h.counted_units & 4294967295) & 4294967295"
    of_holds = (
        f"SELECT p.app_id, i.origin, h.asset, {_FINEST}, {_COUNTED_AT} / {_FINEST} * {_FINEST}, 'paid', {counted} "  # noqa: S608
        "FROM holds h JOIN payments p ON p.id = h.payment_id JOIN intents i ON i.id = p.intent_id "
        "WHERE h.counted_units IS NOT NULL GROUP BY 1, 2, 3, 5"
    )
    of_uses = (
        f"SELECT h.app_id, o.origin, h.asset, {_FINEST}, "  # noqa: S608
        f"h.counted_at_ms / {_FINEST} * {_FINEST}, 'used', {counted} "
        "FROM uses h JOIN prepaid_pools o ON o.id = h.pool GROUP BY 1, 2, 3, 5"
    )
    yield from _unlike(conn, f"{of_holds} UNION ALL {of_uses}", f"s.span_ms = {_FINEST} AND {_NARROW}")
    for span_ms in (*_COARSER, 0):
        start = f"s.start_ms / {span_ms} * {span_ms}" if span_ms else "0"
        wider = (
            f"SELECT s.app, s.merchant, s.asset, {span_ms}, {start}, s.what, {_HALVES.format('s.')} FROM spent s "  # noqa: S608
            f"WHERE s.span_ms = {_FINEST} AND {_NARROW} GROUP BY 1, 2, 3, 5, 6"
        )
        yield from _unlike(conn, wider, f"s.span_ms = {span_ms} AND {_NARROW}")
    for app, merchant in (("s.app", "''"), ("''", "s.merchant"), ("''", "''")):
        wider = (
            f"SELECT {app}, {merchant}, s.asset, s.span_ms, s.start_ms, s.what, "  # noqa: S608
            f"{_HALVES.format('s.')} FROM spent s "
            f"WHERE {_NARROW}{_ALL if app == 's.app' else _PAID} GROUP BY 1, 2, 3, 4, 5, 6"
        )
        is_any = (
            f"s.{name} {'=' if value == chr(39) * 2 else '<>'} ''"
            for name, value in (("app", app), ("merchant", merchant))
        )
        yield from _unlike(conn, wider, " AND ".join(is_any))


def misshared(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
    """(pool, app, asset) where what is kept of an app's part in a balance is not what payments and uses say."""
    told = (
        "SELECT pool, app_id, asset, SUM(paid) AS paid, SUM(used) AS used, SUM(counted) AS counted FROM ("
        "SELECT p.pool, p.app_id, h.asset, h.counted_units AS paid, 0 AS used, 0 AS counted FROM holds h "
        "JOIN payments p ON p.id = h.payment_id WHERE p.pool IS NOT NULL AND h.stage = 'pay' "
        "UNION ALL SELECT pool, app_id, asset, 0, units, counted_units FROM uses) GROUP BY 1, 2, 3"
    )
    some = "WHERE paid <> 0 OR used <> 0 OR counted <> 0"
    rows = conn.execute(
        f"WITH told AS ({told}), kept AS (SELECT * FROM prepaid_shares {some}) "  # noqa: S608
        f"SELECT * FROM (SELECT * FROM told {some} EXCEPT SELECT * FROM kept) "
        "UNION SELECT * FROM (SELECT * FROM kept EXCEPT SELECT * FROM told)"
    )
    return ((pool, app_id, asset) for pool, app_id, asset, *_ in rows)


def _unlike(conn: sqlite3.Connection, wanted: str, where: str) -> Iterator[tuple[str, str, str, int, int]]:
    """Rows that are in one of the two only; what came to nothing is as if it were not there."""
    kept = f"SELECT s.* FROM spent s WHERE {where}"  # noqa: S608
    rows = conn.execute(
        f"WITH wanted{_SPENT} AS ({wanted}), kept{_SPENT} AS ({kept}) "  # noqa: S608
        f"SELECT * FROM (SELECT * FROM wanted {_SOME} EXCEPT SELECT * FROM kept) "
        f"UNION SELECT * FROM (SELECT * FROM kept {_SOME} EXCEPT SELECT * FROM wanted)"
    )
    return ((app, merchant, asset, span_ms, start_ms) for app, merchant, asset, span_ms, start_ms, *_ in rows)


# a coin counts from when what made it is booked until what spent it is
_BOOKED = """EXISTS (SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id
             WHERE a.tx_id = c.{} AND p.state IN ('confirmed', 'settled', 'void'))"""
_FOREIGN = """EXISTS (SELECT 1 FROM foreign_sightings f WHERE f.tx_id = c.spent_by AND f.there = 1
                     AND instr(' ' || f.inputs || ' ', ' ' || c.ref || ' '))"""
_COUNTED = f"""
SELECT c.ref, c.lovelace, c.assets,
       ((c.source = 'deposit' AND c.state <> 'vanished') OR {_BOOKED.format("tx_id")})
         - (c.spent_by IS NOT NULL AND ({_BOOKED.format("spent_by")} OR {_FOREIGN})),
       c.source = 'deposit' AND NOT c.ref IN (SELECT ref FROM journal WHERE kind = 'deposit'),
       c.spent_by IS NOT NULL AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.tx_id = c.spent_by
                                              AND instr(' ' || a.inputs || ' ', ' ' || c.ref || ' '))
         AND NOT {_FOREIGN},
       c.ref <> c.tx_id || '#' || c.output_index
         OR (c.source = 'change' AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.tx_id = c.tx_id))
FROM coins c ORDER BY c.rowid
"""  # noqa: S608  names of ours


class CoinCount(NamedTuple):
    """A coin as the books count it: once, not, or (spent by a booked transaction, and not booked itself) less."""

    ref: str
    value: Mapping[str, int]
    times: int
    is_unbooked: bool
    is_spent_by_nothing: bool
    is_made_by_nothing: bool


def coin_counts(conn: sqlite3.Connection) -> Iterator[CoinCount]:
    """Every coin that ever was."""
    for ref, lovelace, assets, times, *wrong in conn.execute(_COUNTED):
        yield CoinCount(ref, value_of(lovelace, assets), times, *map(bool, wrong))


class MoveRow(NamedTuple):
    """One change of a prepaid balance; `entry` is where what it used up is booked."""

    seq: int
    pool: int
    unit: str
    kind: str
    bought: int
    used: int
    unexplained: int
    payment_id: str | None
    entry: int | None


def prepaid_moves(conn: sqlite3.Connection) -> Iterator[MoveRow]:
    """Every move, oldest first."""
    rows = conn.execute(
        "SELECT seq, pool, unit, kind, bought, used, unexplained, payment_id, entry FROM prepaid_moves "
        "ORDER BY seq"
    )
    return (MoveRow(*row) for row in rows)


def bought_by(conn: sqlite3.Connection, move: MoveRow) -> int | None:
    """The entry that posted the payment of a buying, or of the buying that is taken back: the first for the first.

    A payment is posted again where a fork let its block, or another attempt of it, come back.
    """
    row = conn.execute(
        "SELECT id FROM journal WHERE payment_id = ?1 AND kind = 'post' ORDER BY id LIMIT 1 OFFSET "
        "(SELECT COUNT(*) - 1 FROM prepaid_moves WHERE payment_id = ?1 AND kind = 'buy' AND seq <= ?2)",
        (move.payment_id, move.seq),
    ).fetchone()
    return None if row is None else int(row[0])


_EVENTS_TOLD = (
    "(SELECT seq, payment_id, event, at_ms, IIF(json_valid(detail), detail, '{}') AS detail FROM events)"
)
"""Events whose detail can be asked: of what is no JSON SQLite tells nothing, and breaks off."""


def topup_ends(conn: sqlite3.Connection) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """(row number, why an order was stopped, when and why it ended by its row, the same by its events).

    None for what is not said.
    """
    stops = {
        topup_id: (code, reason)
        for topup_id, code, reason in conn.execute(
            f"SELECT detail ->> '$.topup', detail ->> '$.code', detail ->> '$.reason' FROM {_EVENTS_TOLD} "  # noqa: S608
            "WHERE payment_id IS NULL AND event = 'topup_stopped'"
        )
    }
    ends = {
        topup_id: (at_ms, clock_ms, code, reason)
        for at_ms, topup_id, clock_ms, code, reason in conn.execute(
            "SELECT at_ms, detail ->> '$.topup', detail ->> '$.clock_ms', detail ->> '$.code', "  # noqa: S608  ours
            f"detail ->> '$.reason' FROM {_EVENTS_TOLD} WHERE payment_id IS NULL AND event = 'topup_ended'"
        )
    }
    for number, topup_id, *told in conn.execute(
        "SELECT seq, id, stop_code, stop_reason, ended_at_ms, ended_clock_ms, reason_code, reason FROM topups "
        "ORDER BY seq"
    ):
        by_events = (*stops.get(topup_id, (None,) * 2), *ends.get(topup_id, (None,) * 4))
        yield number, tuple(told), by_events


def foreign_sums(conn: sqlite3.Connection) -> Iterator[tuple[int, str, bool, dict[str, int]]]:
    """(row number, transaction, whether it is there, what its coins held) of every sighting of a foreign one.

    Where none of the coins was forgotten since, that is what they hold; else what the sighting says.
    """
    rows = conn.execute("SELECT seq, tx_id, there, inputs, spent FROM foreign_sightings ORDER BY seq").fetchall()
    for number, tx_id, there, inputs, spent in rows:
        refs = inputs.split(" ")
        coins = conn.execute(
            f"SELECT lovelace, assets FROM coins WHERE ref IN ({','.join('?' * len(refs))})",  # noqa: S608
            refs,
        ).fetchall()
        held = add(value_of(*coin) for coin in coins) if len(coins) == len(refs) else _units(spent)
        yield number, tx_id, bool(there), held


def _units(text: str) -> dict[str, int]:
    """Units per asset, as JSON; what cannot be read is what no coins hold."""
    try:
        return {str(asset): int(units) for asset, units in json.loads(text).items()} or {"": 0}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {"": 0}


def foreign_entries(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str | None]]:
    """(entry, kind, transaction) of what was booked of foreign ones, in order."""
    return conn.execute("SELECT id, kind, ref FROM journal WHERE kind IN ('foreign', 'unforeign') ORDER BY id")


def unseen_voids(conn: sqlite3.Connection) -> Iterator[int]:
    """Events that say that somebody else's or another payment's transaction made a payment void, which no sighting
    in that block bears out.
    """
    yield from _unseen_foreign_voids(conn)
    rows = conn.execute(
        f"SELECT seq FROM {_EVENTS_TOLD} e "  # noqa: S608  names of ours
        "WHERE event = 'void' AND payment_id IS NOT NULL AND detail ->> '$.void_by' IS NOT NULL AND NOT EXISTS ("
        "SELECT 1 FROM sightings s WHERE s.tx_id = e.detail ->> '$.void_by' "
        "AND s.block_hash = e.detail ->> '$.block_hash') AND NOT EXISTS ("
        "SELECT 1 FROM foreign_sightings f WHERE f.there = 1 AND f.tx_id = e.detail ->> '$.void_by' "
        "AND f.block_hash = e.detail ->> '$.block_hash') ORDER BY seq"
    )
    yield from (number for (number,) in rows)


def _unseen_foreign_voids(conn: sqlite3.Connection) -> Iterator[int]:
    rows = conn.execute(
        f"SELECT e.seq FROM {_EVENTS_TOLD} e "  # noqa: S608  names of ours
        "JOIN payments p ON p.id = e.payment_id "
        "WHERE e.event = 'void' AND e.detail ->> '$.foreign' IS NOT NULL AND NOT EXISTS ("
        "SELECT 1 FROM foreign_sightings f WHERE f.there = 1 AND f.tx_id = e.detail ->> '$.tx_id' "
        "AND f.block_hash = e.detail ->> '$.block_hash' "
        "AND instr(' ' || f.inputs || ' ', ' ' || p.anchor || ' ')) ORDER BY e.seq"
    )
    return (number for (number,) in rows)
