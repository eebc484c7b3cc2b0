"""What is read from the ledger database. Every function takes a connection: a reader's, or a job's own.

Rows become frozen values in this room and nowhere else. What is of one kind of row alone, such as apps or top-ups,
is read in a module of its own.
May import: core, store.halves, store.schema, sqlite3. Never: writes.
"""

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

from payagent.core.invoice import Proof, Role
from payagent.core.payment import Delivery, State
from payagent.store.halves import sums, whole
from payagent.store.schema import GENESIS, IS_SPEND

AttemptKind = Literal["pay", "cancel"]
Stage = Literal["ask", "pay"]
"""Of a hold: while a person is to decide, and from the decision on."""


_SUMS = sums("units")


@dataclass(frozen=True, slots=True)
class OutputRow:
    role: Role
    address: str
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class IntentRow:
    id: str
    app_id: str
    key: str
    derived: bool
    fingerprint: str
    origin: str
    request_id: str


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    seq: int
    origin: str
    invoice_id: str
    intent_id: str
    dialect: str
    terms_hash: str
    batch_target: int | None
    proof: str
    handed_over: bool
    received_at_ms: int
    expires_at_ms: int | None


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment with what it is for. `tx_id` is the attempt that counts now: the last one, or the one in a block.

    There is none while it is replaced. Its invoice and outputs are that attempt's; so are `ttl_slot`,
    `fee_lovelace`, `cbor`, `accepted_by_provider` and `seen_in_block` (ever). `refused`: by its merchant,
    before it broadcast anything. `is_first`: nothing was signed for its intent before. `void_by`: the transaction
    of another payment without which its anchor would be there. `attempt` is its number among all, and `is_noted`
    is False of one that the signer's own record lacks yet: nobody is shown a proof of it.
    """

    seq: int
    id: str
    kind: str
    app_id: str
    intent_id: str
    origin: str | None
    dialect: str | None
    invoice_id: str | None
    invoice: int | None
    terms_hash: str | None
    batch_target: int | None
    expires_at_ms: int | None
    request_id: str
    outputs: tuple[OutputRow, ...]
    state: State
    delivery: Delivery
    anchor: str | None
    ttl_slot: int | None
    tx_id: str | None
    fee_lovelace: int | None
    block_hash: str | None
    block_height: int | None
    block_slot: int | None
    merchant_status: str | None
    reason_code: str | None
    reason: str | None
    accepted_by_provider: bool
    proof: Proof
    handed_over: bool
    echo: str | None
    commitment: str | None
    refused: bool
    is_first: bool
    cbor: bytes | None = field(repr=False)
    seen_in_block: bool
    pool: int | None
    topup: str | None
    void_by: str | None
    created_at_ms: int
    changed_at_ms: int
    attempt: int | None
    is_noted: bool = True

    @property
    def shown_by(self) -> str:
        """The transaction whose block the payment's state stands on: its own, or the one that keeps it off."""
        return self.void_by or self.tx_id or ""


@dataclass(frozen=True, slots=True)
class OpenPayment:
    """What of a payment tells whether a step is due, small enough to be kept of every open one.

    As in `PaymentRow`; `is_cancel`: whether the attempt that counts now is one.
    """

    seq: int
    id: str
    state: State
    delivery: Delivery
    ttl_slot: int | None
    attempt: int | None
    is_cancel: bool
    block_height: int | None
    handed_over: bool
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class AttemptRow:
    tx_id: str
    payment_id: str
    kind: AttemptKind
    anchor: str
    invoice: int | None
    inputs: tuple[str, ...]
    cbor: bytes
    fee_lovelace: int
    ttl_slot: int


@dataclass(frozen=True, slots=True)
class CoinRow:
    ref: str
    tx_id: str
    output_index: int
    lovelace: int
    assets: Mapping[str, int]
    source: str
    state: str
    reserved_for: str | None

    @property
    def is_gone(self) -> bool:
        """Whether nothing can be built on it now: the list lacks it, or it was seen spent."""
        return self.state in ("missing", "vanished", "spent")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of the books: None does not select. The period holds `since_ms` and not `until_ms`.

    `origin`, `app` (id or name) and `state` are those of an entry's payment; of what is used of a prepaid balance,
    its merchant and the app whose call it was. `asset` selects postings. `text` is part of what names an entry or
    its payment (`_NAMES`), in upper or lower case.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    origin: str | None = None
    app: str | None = None
    asset: str | None = None
    kind: str | None = None
    state: str | None = None
    text: str | None = None


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class SpendRow:
    """What left the wallet of one asset: to merchants (also for prepaid), as fees, and sent by the operator.

    `payments`: how many took it, less those that a rollback took back.
    """

    group: tuple[str | None, ...]
    asset: str
    paid: int
    fees: int
    sent: int
    payments: int

    @property
    def total(self) -> int:
        return self.paid + self.fees + self.sent


class EntryRow(NamedTuple):
    id: int
    kind: str
    payment_id: str | None
    ref: str | None
    at_ms: int
    postings: tuple[tuple[str, str, int], ...]


FEW_MAX = 1_000
"""So many payments since a time are put in order rather than met on the way back from the newest."""

_PAYMENT_BY = """
SELECT p.seq, p.id, p.kind, p.app_id, p.intent_id, v.origin, v.dialect, v.invoice_id, p.invoice, v.terms_hash,
       v.batch_target, v.expires_at_ms, i.request_id, COALESCE(v.outputs, p.outputs), p.state,
       p.delivery, p.anchor,
       COALESCE(a.ttl_slot, p.ttl_slot), p.tx_id, a.fee_lovelace, p.block_hash, p.block_height, p.block_slot,
       p.merchant_status, p.reason_code, p.reason,
       EXISTS (SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.event = 'provider_accepted'
               AND e.detail ->> '$.tx_id' = p.tx_id),
       COALESCE(v.proof, 'tx_hash'), COALESCE(v.handed_over, 0), v.echo, v.commitment,
       EXISTS (SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.event = 'merchant_refused'),
       NOT EXISTS (SELECT 1 FROM attempts f JOIN payments q ON q.id = f.payment_id
                   WHERE q.intent_id = p.intent_id AND q.seq < p.seq), a.cbor,
       EXISTS (SELECT 1 FROM sightings s WHERE s.tx_id = p.tx_id),
       p.pool, p.topup, p.void_by, p.created_at_ms, p.changed_at_ms, a.rowid
FROM payments p {}
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice
LEFT JOIN attempts a ON a.tx_id = p.tx_id
"""
_PAYMENT, _PAYMENT_BY_TIME = _PAYMENT_BY.format(""), _PAYMENT_BY.format("INDEXED BY payments_by_time")


def _payment(row: tuple[object, ...]) -> PaymentRow:
    values = list(row)
    values[13] = load_outputs(str(values[13]))
    values[14], values[15] = State(str(values[14])), Delivery(str(values[15]))
    for flag in (26, 28, 31, 32, 34):
        values[flag] = bool(values[flag])
    return PaymentRow(*values)  # type: ignore[arg-type]


def dump_outputs(outputs: Iterable[OutputRow]) -> str:
    rows = [{"role": o.role, "address": o.address, "asset": o.asset, "units": str(o.units)} for o in outputs]
    return json.dumps(rows, separators=(",", ":"))


@lru_cache(maxsize=1000)  # a look at the chain reads every payment that is not settled, and merchants ask alike
def load_outputs(text: str) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(o["role"], o["address"], o["asset"], int(o["units"])) for o in json.loads(text))


def payment(conn: sqlite3.Connection, payment_id: str) -> PaymentRow | None:
    row = conn.execute(f"{_PAYMENT} WHERE p.id = ?", (payment_id,)).fetchone()
    return _payment(row) if row else None


def tx_of(conn: sqlite3.Connection, payment_id: str) -> str:
    """The attempt that counts now; empty while there is none."""
    (tx_id,) = conn.execute("SELECT COALESCE(tx_id, '') FROM payments WHERE id = ?", (payment_id,)).fetchone()
    return str(tx_id)


def payments_in(conn: sqlite3.Connection, states: Iterable[State]) -> list[PaymentRow]:
    """Payments in any of the states, oldest first."""
    names = [str(state) for state in states]
    marks = ",".join("?" * len(names))
    rows = conn.execute(f"{_PAYMENT} WHERE p.state IN ({marks}) ORDER BY p.seq", names)
    return [_payment(row) for row in rows]


def version(conn: sqlite3.Connection) -> tuple[int, int]:
    """Another one than before if anything was committed since, by this connection or another."""
    (by_others,) = conn.execute("PRAGMA data_version").fetchone()
    return by_others, conn.total_changes


def payments_of_topup(conn: sqlite3.Connection, topup_id: str) -> list[PaymentRow]:
    """Oldest first."""
    return [_payment(row) for row in conn.execute(f"{_PAYMENT} WHERE p.topup = ? ORDER BY p.seq", (topup_id,))]


def payments_page(
    conn: sqlite3.Connection,
    *,
    app_id: str | None,
    state: str | None,
    origin: str | None,
    since_ms: int | None,
    before_seq: int | None,
    limit: int,
    asked_or_of: str | None = None,
) -> list[PaymentRow]:
    """Newest first. Filters that are None do not filter. `asked_or_of`: of that app, or asked about.

    The few since a time are found by it; many are met on the way back from the newest. Not by their numbers alone:
    a clock may have been set back between them. The merchant's come last: of a big one there are more than of an
    app or in a state.
    """
    is_few = since_ms is not None and _are_few(conn, since_ms, before_seq)
    filters = {
        "p.app_id = ?": app_id,
        "(p.app_id = ? OR EXISTS (SELECT 1 FROM approvals a WHERE a.payment_id = p.id))": asked_or_of,
        "p.state = ?": state,
        ("p.origin = ?" if app_id is None and state is None else "+p.origin = ?"): origin,
        "p.created_at_ms >= ?": since_ms,
        "p.seq < ?": before_seq,
    }
    used = {clause: value for clause, value in filters.items() if value is not None}
    where = " WHERE " + " AND ".join(used) if used else ""
    select = _PAYMENT_BY_TIME if is_few else _PAYMENT
    rows = conn.execute(f"{select}{where} ORDER BY p.seq DESC LIMIT ?", (*used.values(), limit))
    return [_payment(row) for row in rows]


def _are_few(conn: sqlite3.Connection, since_ms: int, before_seq: int | None) -> bool:
    """Whether so few payments are left since a time that putting them in order costs nothing."""
    (count,) = conn.execute(
        "SELECT COUNT(*) FROM (SELECT 1 FROM payments INDEXED BY payments_by_time "
        "WHERE created_at_ms >= ?1 AND (?2 IS NULL OR seq < ?2) LIMIT ?3)",
        (since_ms, before_seq, FEW_MAX + 1),
    ).fetchone()
    return bool(count <= FEW_MAX)


_INTENT = "SELECT id, app_id, key, derived, fingerprint, origin, request_id FROM intents"


def live_intent(conn: sqlite3.Connection, app_id: str, key: str) -> IntentRow | None:
    where = "WHERE app_id = ? AND key = ? AND ended_at_ms IS NULL"
    row = conn.execute(f"{_INTENT} {where}", (app_id, key)).fetchone()
    return None if row is None else _intent(row)


def live_payment_of(conn: sqlite3.Connection, intent_id: str) -> PaymentRow | None:
    """The intent's payment that is not rejected, denied or void.

    A rollback can make it two, of which one can land: what is in a block counts first, what is cancelled last.
    """
    row = conn.execute(
        f"{_PAYMENT} WHERE p.intent_id = ? AND p.state NOT IN ('rejected', 'denied', 'void') "
        "ORDER BY p.state IN ('in_block', 'confirmed', 'settled') DESC, p.state = 'cancelling', p.seq DESC "
        "LIMIT 1",
        (intent_id,),
    ).fetchone()
    return _payment(row) if row else None


def invoice(conn: sqlite3.Connection, origin: str, invoice_id: str) -> InvoiceRow | None:
    row = conn.execute(
        "SELECT seq, origin, invoice_id, intent_id, dialect, terms_hash, batch_target, proof, handed_over, "
        "received_at_ms, expires_at_ms FROM invoices WHERE origin = ? AND invoice_id = ?",
        (origin, invoice_id),
    ).fetchone()
    return InvoiceRow(*(*row[:8], bool(row[8]), *row[9:])) if row else None


def payment_of_invoice(conn: sqlite3.Connection, invoice_seq: int) -> str | None:
    """The id of the one payment that was not refused for this invoice, or ever signed for it, if there is one."""
    row = conn.execute(
        "SELECT id FROM payments WHERE invoice = ?1 AND state NOT IN ('rejected', 'denied') "
        "UNION SELECT payment_id FROM attempts WHERE invoice = ?1",
        (invoice_seq,),
    ).fetchone()
    return row[0] if row else None


def hold(conn: sqlite3.Connection, payment_id: str, stage: Stage = "pay") -> dict[str, int]:
    rows = conn.execute("SELECT asset, units FROM holds WHERE payment_id = ? AND stage = ?", (payment_id, stage))
    return dict(rows.fetchall())


def attempts(conn: sqlite3.Connection, payment_id: str) -> list[AttemptRow]:
    """All attempts of a payment, oldest first."""
    rows = conn.execute(
        "SELECT tx_id, payment_id, kind, anchor, invoice, inputs, cbor, fee_lovelace, ttl_slot FROM attempts "
        "WHERE payment_id = ? ORDER BY rowid",
        (payment_id,),
    )
    return [AttemptRow(r[0], r[1], r[2], r[3], r[4], tuple(r[5].split(" ")), r[6], r[7], r[8]) for r in rows]


def replacement_inputs(conn: sqlite3.Connection, payment_id: str) -> tuple[str, ...]:
    """The coins that a payment that is `replacing` was given for its next attempt."""
    (refs,) = conn.execute(
        "SELECT detail ->> '$.inputs' FROM events WHERE payment_id = ? AND event = 'replace' "
        "ORDER BY seq DESC LIMIT 1",
        (payment_id,),
    ).fetchone()
    return tuple(refs.split(" "))


def was_told(conn: sqlite3.Connection, payment_id: str, tx_id: str | None, kind: str) -> bool:
    """Whether a provider ever answered so to an attempt (chain.source.SubmitKind)."""
    row = conn.execute(
        "SELECT 1 FROM events WHERE payment_id = ? AND event = 'provider_answered' "
        "AND detail ->> '$.kind' = ? AND detail ->> '$.tx_id' = ? LIMIT 1",
        (payment_id, kind, tx_id),
    ).fetchone()
    return row is not None


_OPEN = """
SELECT p.seq, p.id, p.state, p.delivery, COALESCE(a.ttl_slot, p.ttl_slot), a.rowid,
       COALESCE(a.kind = 'cancel', 0), p.block_height, COALESCE(v.handed_over, 0), p.created_at_ms
FROM payments p
LEFT JOIN invoices v ON v.seq = p.invoice
LEFT JOIN attempts a ON a.tx_id = p.tx_id
"""
_IS_OPEN = """
p.state IN ('reserved', 'signed', 'in_flight', 'replacing', 'cancelling', 'in_block', 'confirmed')
OR (p.state = 'void' AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id))
"""


def open_payments(conn: sqlite3.Connection) -> list[OpenPayment]:
    """Admitted payments whose state may still change, `watched_voids` among them; oldest first."""
    return [_open(row) for row in conn.execute(f"{_OPEN} WHERE {_IS_OPEN} ORDER BY p.seq")]


def open_payment(conn: sqlite3.Connection, payment_id: str) -> OpenPayment | None:
    """One of them, if it is."""
    row = conn.execute(f"{_OPEN} WHERE p.id = ? AND ({_IS_OPEN})", (payment_id,)).fetchone()
    return None if row is None else _open(row)


def _open(row: tuple[Any, ...]) -> OpenPayment:
    seq, payment_id, state, delivery, ttl_slot, attempt, is_cancel, height, handed_over, created_at_ms = row
    return OpenPayment(
        *(seq, payment_id, State(state), Delivery(delivery), ttl_slot, attempt),
        *(bool(is_cancel), height, bool(handed_over), created_at_ms),
    )


def payments_after(conn: sqlite3.Connection, event_seq: int) -> set[str]:
    """Payments that something happened to after an event: no other one has another state than then."""
    rows = conn.execute("SELECT payment_id FROM events WHERE seq > ?", (event_seq,))
    return {payment_id for (payment_id,) in rows if payment_id is not None}


def watched_voids(conn: sqlite3.Connection) -> list[PaymentRow]:
    """Cancelled payments whose cancel a rollback may still take away: they keep their reservations until then."""
    rows = conn.execute(
        f"{_PAYMENT} WHERE p.state = 'void' "  # noqa: S608  names of ours
        "AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id) ORDER BY p.seq"
    )
    return [_payment(row) for row in rows]


def watched_voids_of(conn: sqlite3.Connection, intent_id: str) -> list[str]:
    """What made payments of the intent void (their cancels, mostly), while a rollback may still take it away."""
    rows = conn.execute(
        "SELECT DISTINCT COALESCE(void_by, tx_id) FROM payments p WHERE intent_id = ? AND state = 'void' "
        "AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id) ORDER BY seq",
        (intent_id,),
    )
    return [tx_id for (tx_id,) in rows]


def free_descendants(conn: sqlite3.Connection, tx_id: str) -> list[CoinRow]:
    """Coins that selection may take and that are only there when a transaction is: made by it or after it.

    Those of the most lovelace first.
    """
    rows = conn.execute(
        "WITH RECURSIVE line(tx) AS (SELECT ? UNION SELECT c.spent_by FROM coins c JOIN line ON c.tx_id = line.tx "  # noqa: S608
        f"WHERE c.spent_by IS NOT NULL) {_COIN} WHERE c.tx_id IN (SELECT tx FROM line) AND c.state = 'free' "
        "AND r.payment_id IS NULL ORDER BY c.lovelace DESC, c.ref",
        (tx_id,),
    )
    return [_coin(row) for row in rows]


def submissions(conn: sqlite3.Connection, tx_id: str) -> tuple[int, int]:
    """How often the bytes were about to be sent to the provider that got them most, and when last to any.

    Both are 0 when never. The last is the one that was written last, whatever the clock said then.
    """
    (count,) = conn.execute(
        "SELECT COALESCE(MAX(times), 0) FROM "
        "(SELECT COUNT(*) AS times FROM submissions WHERE tx_id = ? GROUP BY provider)",
        (tx_id,),
    ).fetchone()
    last = conn.execute("SELECT at_ms FROM submissions WHERE tx_id = ? ORDER BY seq DESC LIMIT 1", (tx_id,))
    (last_ms,) = last.fetchone() or (0,)
    return count, last_ms


_COIN = """
SELECT c.ref, c.tx_id, c.output_index, c.lovelace, c.assets, c.source, c.state, r.payment_id
FROM coins c LEFT JOIN reservations r ON r.ref = c.ref
"""


def _coin(row: tuple[str, str, int, int, str, str, str, str | None]) -> CoinRow:
    assets = {} if row[4] == "{}" else json.loads(row[4])
    return CoinRow(row[0], row[1], row[2], row[3], assets, row[5], row[6], row[7])


def coins(conn: sqlite3.Connection) -> list[CoinRow]:
    """Every coin that is not spent, as we know them; of change to come, that of each payment's last attempt.

    What an attempt before it was to make is kept beside these for as long as a fork may bring it.
    """
    of_another = (
        "SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id "
        "WHERE a.tx_id = c.tx_id AND p.tx_id IS NOT a.tx_id"
    )
    rows = conn.execute(
        f"{_COIN} WHERE c.state IN ('pending', 'free', 'locked', 'missing') "
        f"AND NOT (c.state = 'pending' AND r.payment_id IS NULL AND EXISTS ({of_another})) ORDER BY c.ref"
    )
    return [_coin(row) for row in rows]


def coin_states(conn: sqlite3.Connection) -> dict[str, str]:
    """The state of every coin that is not spent, as we know them, by its ref."""
    rows = conn.execute(
        "SELECT ref, state FROM coins WHERE state IN ('pending', 'free', 'locked', 'missing') ORDER BY ref"
    )
    return {ref: sys.intern(state) for ref, state in rows}


def free_coins(conn: sqlite3.Connection) -> list[CoinRow]:
    """Coins that selection may take: free and not reserved."""
    rows = conn.execute(f"{_COIN} WHERE c.state = 'free' AND r.payment_id IS NULL ORDER BY c.ref")
    return [_coin(row) for row in rows]


def coins_reserved_for(conn: sqlite3.Connection, payment_id: str) -> list[CoinRow]:
    rows = conn.execute(f"{_COIN} WHERE r.payment_id = ? ORDER BY c.ref", (payment_id,))
    return [_coin(row) for row in rows]


def coin(conn: sqlite3.Connection, ref: str) -> CoinRow | None:
    row = conn.execute(f"{_COIN} WHERE c.ref = ?", (ref,)).fetchone()
    return _coin(row) if row else None


def is_made(conn: sqlite3.Connection, ref: str) -> bool:
    """Whether what made a coin is on the chain: a deposit, or an attempt that is in a block."""
    row = conn.execute(
        "SELECT c.source = 'deposit' OR p.state IN ('in_block', 'confirmed', 'settled', 'void') FROM coins c "
        "LEFT JOIN attempts a ON a.tx_id = c.tx_id "
        "LEFT JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id WHERE c.ref = ?",
        (ref,),
    ).fetchone()
    return bool(row and row[0])


def missing_coins(conn: sqlite3.Connection) -> list[CoinRow]:
    """Coins that the provider's list lacks though nothing of ours spent them, or is about to."""
    rows = conn.execute(f"{_COIN} WHERE c.state = 'missing' AND r.payment_id IS NULL ORDER BY c.ref")
    return [_coin(row) for row in rows]


def missing_deposits(conn: sqlite3.Connection) -> list[CoinRow]:
    """Those of them that others' transactions made, reserved or not."""
    rows = conn.execute(f"{_COIN} WHERE c.state = 'missing' AND c.source = 'deposit' ORDER BY c.ref")
    return [_coin(row) for row in rows]


def any_vanished(conn: sqlite3.Connection) -> bool:
    """Whether `is_vanished` can be of any coin."""
    row = conn.execute(
        "SELECT EXISTS (SELECT 1 FROM coins WHERE state = 'vanished') "
        "OR EXISTS (SELECT 1 FROM payments INDEXED BY payments_anchor_gone WHERE reason_code = 'anchor_gone')"
    ).fetchone()
    return bool(row[0])


_DESCENT = """
SELECT c.state, p.anchor, p.state = 'void' AND p.reason_code = 'anchor_gone' FROM coins c
LEFT JOIN attempts a ON a.tx_id = c.tx_id AND c.state = 'pending' LEFT JOIN payments p ON p.id = a.payment_id
WHERE c.ref = ?
"""


def is_vanished(conn: sqlite3.Connection, ref: str | None, known: dict[str, bool] | None = None) -> bool:
    """Whether a coin's deposit is on no chain any more, or that of which it descends.

    Nothing that spends it can land, as things are. So it is with what was to come of a payment that ended so.
    `known` is what was found of others in the same state of the ledger, and takes in what is found here.
    """
    known, way, found = {} if known is None else known, list[str](), False
    while ref is not None:
        if ref in known:
            found = known[ref]
            break
        way.append(ref)
        state, anchor, is_never = conn.execute(_DESCENT, (ref,)).fetchone() or ("unknown", None, None)
        if anchor is None or is_never:
            found = state == "vanished" or bool(is_never)
            break
        ref = anchor
    known.update(dict.fromkeys(way, found))
    return found


def is_never_made(conn: sqlite3.Connection, tx_id: str) -> bool:
    """Whether a transaction is an attempt of a payment that is void because nothing of it can land in time."""
    maker = payment_of_attempt(conn, tx_id)
    return maker is not None and maker.state is State.VOID and maker.reason_code == "anchor_gone"


def coming_coins(conn: sqlite3.Connection, slot: int) -> list[CoinRow]:
    """Change in no block yet that nothing else takes, of each payment's last attempt while it can still land."""
    rows = conn.execute(
        f"{_COIN} JOIN attempts a ON a.tx_id = c.tx_id "
        "JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id "
        "WHERE c.state = 'pending' AND r.payment_id IS NULL AND a.ttl_slot > ? ORDER BY c.ref",
        (slot,),
    )
    return [_coin(row) for row in rows]


_CHAINABLE = (
    f"{_COIN} JOIN attempts a ON a.tx_id = c.tx_id AND a.kind = 'pay' "
    "JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id AND p.state IN ('signed', 'in_flight') "
    "LEFT JOIN invoices v ON v.seq = a.invoice WHERE c.state = 'pending' AND r.payment_id IS NULL "
    "AND a.ttl_slot >= ? AND COALESCE(v.handed_over, 0) = 0"
)


def chainable_coins(conn: sqlite3.Connection, ttl_slot: int) -> list[CoinRow]:
    """Change in no block yet that another payment may spend: of what payagent itself sends, up to that slot.

    Only of the attempt that its payment goes by.
    """
    return [_coin(row) for row in conn.execute(f"{_CHAINABLE} ORDER BY c.ref", (ttl_slot,))]


def chainable_coin(conn: sqlite3.Connection, ref: str, ttl_slot: int) -> CoinRow | None:
    """A coin, if it is one of them."""
    row = conn.execute(f"{_CHAINABLE} AND c.ref = ?", (ttl_slot, ref)).fetchone()
    return None if row is None else _coin(row)


def pending_parents(conn: sqlite3.Connection, tx_id: str) -> list[str]:
    """The transactions in no block that an attempt spends coins of."""
    row = conn.execute("SELECT inputs FROM attempts WHERE tx_id = ?", (tx_id,)).fetchone()
    spent = [] if row is None else [coin(conn, ref) for ref in row[0].split(" ")]
    return sorted({one.tx_id for one in spent if one is not None and one.state == "pending"})


def chain_depth(conn: sqlite3.Connection, tx_id: str, known: dict[str, int] | None = None) -> int:
    """How many transactions in no block lead to an attempt; 0 when all that it spends is in one.

    `known` are those of other attempts, and takes what is found.
    """
    depths: dict[str, int] = {} if known is None else known

    def depth_of(one: str) -> int:
        if one not in depths:
            depths[one] = max((depth_of(parent) + 1 for parent in pending_parents(conn, one)), default=0)
        return depths[one]

    return depth_of(tx_id)


def payment_of_attempt(conn: sqlite3.Connection, tx_id: str) -> PaymentRow | None:
    """The payment that an attempt was signed for."""
    row = conn.execute("SELECT payment_id FROM attempts WHERE tx_id = ?", (tx_id,)).fetchone()
    return payment(conn, row[0]) if row else None


def rival_of(conn: sqlite3.Connection, ref: str) -> str | None:
    """The transaction in a block that keeps a coin from being there: what was to make it lost to that one."""
    maker = None if (row := coin(conn, ref)) is None else payment_of_attempt(conn, row.tx_id)
    if row is None or maker is None or maker.tx_id == row.tx_id:
        return None
    if maker.state not in (State.IN_BLOCK, State.CONFIRMED, State.SETTLED, State.VOID):
        return None
    return maker.shown_by or None


def intent(conn: sqlite3.Connection, intent_id: str) -> IntentRow:
    return _intent(conn.execute(f"{_INTENT} WHERE id = ?", (intent_id,)).fetchone())


def intent_of(conn: sqlite3.Connection, payment_id: str) -> IntentRow:
    """The intent of a payment."""
    of = "(SELECT intent_id FROM payments WHERE id = ?)"
    return _intent(conn.execute(f"{_INTENT} WHERE id = {of}", (payment_id,)).fetchone())


def _intent(row: tuple[Any, ...]) -> IntentRow:
    return IntentRow(row[0], row[1], row[2], bool(row[3]), row[4], row[5], row[6])


def request_of(conn: sqlite3.Connection, intent_id: str) -> str | None:
    """The call that an intent buys: method, path and the hash of its body, between spaces."""
    (request,) = conn.execute("SELECT request FROM intents WHERE id = ?", (intent_id,)).fetchone()
    return None if request is None else str(request)


def coins_of_tx(conn: sqlite3.Connection, tx_id: str) -> list[CoinRow]:
    return [_coin(row) for row in conn.execute(f"{_COIN} WHERE c.tx_id = ? ORDER BY c.ref", (tx_id,))]


_APP_OF_MOVE = (
    "(SELECT COALESCE(m.app_id, b.app_id) FROM prepaid_moves m LEFT JOIN payments b ON b.id = m.payment_id "
    "WHERE m.entry = j.id)"
)
"""Of an entry for what is used of a prepaid balance, which has no payment: whose call it was or purchase."""

_JOURNAL = (
    "journal j LEFT JOIN payments p ON p.id = j.payment_id LEFT JOIN invoices v ON v.seq = p.invoice "
    f"LEFT JOIN apps a ON a.id = COALESCE(p.app_id, {_APP_OF_MOVE}) LEFT JOIN intents i ON i.id = p.intent_id "
    "LEFT JOIN prepaid_pools o ON o.id = j.pool"
)
_NAMES = (
    *(
        "j.kind",
        "j.ref",
        "p.id",
        "p.tx_id",
        "p.reason_code",
        "p.reason",
        "v.origin",
        "o.origin",
        "v.invoice_id",
        "i.request",
    ),
    "(SELECT group_concat(t.account, char(10)) FROM postings t WHERE t.entry = j.id)",
)
_CONTAINS = (
    "instr(lower(" + " || char(10) || ".join(f"COALESCE({name}, '')" for name in _NAMES) + "), lower(?)) > 0"
)


_POSTS = "EXISTS (SELECT 1 FROM postings q WHERE q.entry = j.id AND q.{} = ?)"


def _chosen(only: Selection) -> dict[str, object]:
    """What of `_JOURNAL` is selected, as clauses with their values; `asset` is for the postings."""
    return {
        "j.at_ms >= ?": only.since_ms,
        "j.at_ms < ?": only.until_ms,
        "COALESCE(v.origin, o.origin) = ?": only.origin,
        "? IN (a.id, a.name)": only.app,
        "j.kind = ?": only.kind,
        "p.state = ?": only.state,
        _CONTAINS: only.text,
    }


def _where(clauses: Mapping[str, object]) -> tuple[str, list[object]]:
    used = {clause: value for clause, value in clauses.items() if value is not None}
    return (" WHERE " + " AND ".join(used) if used else ""), list(used.values())


SpendKey = Literal["merchant", "app", "day", "month"]
_SPEND_KEYS: Mapping[SpendKey, str] = {
    "merchant": "v.origin",
    "app": "a.name",
    "day": "strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch')",
    "month": "strftime('%Y-%m', j.at_ms / 1000, 'unixepoch')",
}
_SPEND_PARTS = ", ".join(
    f"COALESCE(SUM(q.units) FILTER (WHERE q.account {test}), 0) AS {part}"
    for part, test in (("paid", "NOT IN ('fees', 'external')"), ("fees", "= 'fees'"), ("sent", "= 'external'"))
)


def balances(conn: sqlite3.Connection, only: Selection = EVERYTHING) -> list[tuple[str, str, int]]:
    """(account, asset, units) of every account that is not empty, of the entries that are selected."""
    return [row for row in turnover(conn, only) if row[2]]


def turnover(conn: sqlite3.Connection, only: Selection) -> list[tuple[str, str, int]]:
    """As `balances`, with the accounts that are empty again."""
    if replace(only, asset=None) != EVERYTHING:
        return added_up(conn, only)
    where, values = _where({"asset = ?": only.asset})
    rows = conn.execute(
        f"SELECT account, asset, high, low FROM balances{where} ORDER BY account, asset",  # noqa: S608  names of ours
        values,
    )
    return [(account, asset, whole(high, low)) for account, asset, high, low in rows]


def added_up(conn: sqlite3.Connection, only: Selection = EVERYTHING) -> list[tuple[str, str, int]]:
    """As `turnover`, from the postings themselves, all of them where nothing is selected."""
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    # CROSS: entries before their postings, so that what selects an entry is asked once and not for each posting
    source = "postings q" if only == EVERYTHING else f"{_JOURNAL} CROSS JOIN postings q ON q.entry = j.id"
    rows = conn.execute(
        f"SELECT q.account, q.asset, {_SUMS} FROM {source}{where} "  # noqa: S608  names of ours
        "GROUP BY q.account, q.asset ORDER BY q.account, q.asset",
        values,
    )
    return [(account, asset, whole(high, low)) for account, asset, high, low in rows]


def entries_page(
    conn: sqlite3.Connection,
    *,
    payment_id: str | None,
    account: str | None,
    before_id: int | None,
    limit: int,
    only: Selection = EVERYTHING,
) -> list[EntryRow]:
    """Journal entries, newest first. Of those with the asset, every posting is shown."""
    where, values = _where(
        _chosen(only)
        | {
            "j.payment_id = ?": payment_id,
            _POSTS.format("account"): account,
            _POSTS.format("asset"): only.asset,
            "j.id < ?": before_id,
        }
    )
    heads = conn.execute(
        f"SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms FROM {_JOURNAL}{where} ORDER BY j.id DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    ).fetchall()
    return [_entry(conn, head) for head in heads]


def spend(conn: sqlite3.Connection, by: Sequence[SpendKey], only: Selection) -> list[SpendRow]:
    """What left the wallet, by group and asset, where it is not nothing. Each entry is in one group: they add up.

    It left where a transaction of ours is on the chain: by what a payment posted and the fee of what a cancel took
    back, less what was reversed of both.
    """
    keys = [f"{_SPEND_KEYS[key]} AS key{place}" for place, key in enumerate(by)]
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    columns = ", ".join([*keys, "q.asset AS asset", _SPEND_PARTS, "IIF(j.kind = 'reverse', -1, 1) AS times"])
    entries = (
        f"SELECT {columns} FROM {_JOURNAL} CROSS JOIN postings q ON q.entry = j.id AND {IS_SPEND}"  # noqa: S608
        f"{where} GROUP BY j.id, q.asset"
    )
    group = ", ".join([*(f"key{place}" for place in range(len(keys))), "asset"])
    parts = ", ".join(sums(part) for part in ("paid", "fees", "sent"))
    rows = conn.execute(
        f"SELECT {group}, {parts}, SUM(times) FROM ({entries}) GROUP BY {group} ORDER BY {group}",  # noqa: S608
        values,
    )
    found = (_spend_row(row[: len(keys)], *row[len(keys) :]) for row in rows)
    return [row for row in found if row.paid or row.fees or row.sent or row.payments]


def _spend_row(group: tuple[str | None, ...], asset: str, *numbers: int) -> SpendRow:
    *halves, payments = numbers
    paid, fees, sent = (whole(*halves[place : place + 2]) for place in (0, 2, 4))
    return SpendRow(group, asset, paid, fees, sent, payments)


def bounds_ms(conn: sqlite3.Connection, only: Selection) -> tuple[int | None, int | None]:
    """When the first and the last of the selected entries were made; None when there are none."""
    where, values = _where(_chosen(only) | {_POSTS.format("asset"): only.asset})
    row = conn.execute(f"SELECT MIN(j.at_ms), MAX(j.at_ms) FROM {_JOURNAL}{where}", values).fetchone()  # noqa: S608
    return row[0], row[1]


def booked(conn: sqlite3.Connection, only: Selection) -> Iterator[tuple[EntryRow, str | None, str | None]]:
    """The selected entries, oldest first and row by row, each with its merchant and app."""
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    rows = conn.execute(
        "SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, COALESCE(v.origin, o.origin), a.id, "  # noqa: S608
        "q.account, q.asset, q.units "
        f"FROM {_JOURNAL} JOIN postings q ON q.entry = j.id{where} ORDER BY j.id, q.seq",
        values,
    )
    for (number, kind, payment_id, ref, at_ms, origin, app_id), lines in groupby(rows, key=lambda row: row[:7]):
        postings = tuple(line[7:] for line in lines)
        yield EntryRow(number, kind, payment_id, ref, at_ms, postings), origin, app_id


def _entry(conn: sqlite3.Connection, head: tuple[int, str, str | None, str | None, int]) -> EntryRow:
    return EntryRow(head[0], head[1], head[2], head[3], head[4], postings(conn, head[0]))


def postings(conn: sqlite3.Connection, entry_id: int | None) -> tuple[tuple[str, str, int], ...]:
    """(account, asset, units) of an entry; nothing of none."""
    rows = conn.execute("SELECT account, asset, units FROM postings WHERE entry = ? ORDER BY seq", (entry_id,))
    return tuple(rows.fetchall())


def last_posting(conn: sqlite3.Connection, payment_id: str) -> EntryRow | None:
    """The entry that ended a payment's hold (it was spent, or given back) and was not reversed since."""
    row = conn.execute(
        "SELECT id, kind, payment_id, ref, at_ms FROM journal "
        "WHERE payment_id = ? AND kind IN ('post', 'release', 'reverse') ORDER BY id DESC LIMIT 1",
        (payment_id,),
    ).fetchone()
    return _entry(conn, row) if row and row[1] != "reverse" else None


def meta(conn: sqlite3.Connection, key: str) -> str | None:
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def restored_at_ms(conn: sqlite3.Connection) -> int | None:
    """When this ledger was last put back from a backup; None when it never was."""
    row = conn.execute(
        "SELECT MAX(json_extract(value, '$.restored_at_ms')) FROM meta WHERE key GLOB 'restored:*'"
    ).fetchone()
    return None if row[0] is None else int(row[0])


def payments_by_state(conn: sqlite3.Connection) -> dict[str, int]:
    """How many payments are in each state, where any are."""
    return dict(conn.execute("SELECT state, COUNT(*) FROM payments GROUP BY state").fetchall())


def payment_counts(conn: sqlite3.Connection) -> tuple[int, int]:
    """How many payments there are, and how many of them may still change."""
    ended = (State.REJECTED, State.DENIED, State.VOID, State.SETTLED)
    row = conn.execute("SELECT COUNT(*), COALESCE(SUM(state NOT IN (?, ?, ?, ?)), 0) FROM payments", ended)
    count, open_count = row.fetchone()
    return count, open_count


def events(conn: sqlite3.Connection, payment_id: str) -> list[tuple[int, str, str, str, int]]:
    """(seq, event, state, detail, at_ms) of a payment, in order."""
    rows = conn.execute(
        "SELECT seq, event, state, detail, at_ms FROM events WHERE payment_id = ? ORDER BY seq", (payment_id,)
    )
    return rows.fetchall()


def last_note(conn: sqlite3.Connection, payment_id: str, event: str) -> dict[str, Any] | None:
    """What a payment's last event of a name tells; None when there is none."""
    row = conn.execute(
        "SELECT detail FROM events WHERE payment_id = ? AND event = ? ORDER BY seq DESC LIMIT 1",
        (payment_id, event),
    ).fetchone()
    return None if row is None else json.loads(row[0])


def unserved(conn: sqlite3.Connection, until_ms: int, payment_id: str | None = None) -> list[str]:
    """Payments (or that one) that count from that time of the limits' clock at the latest, whose proof was shown,
    and whose merchant never answered it as one that serves. Those of the week before: what hung up then stays so.
    """
    # INDEXED BY: nearly all payments are settled, and few of them stay as shown
    rows = conn.execute(
        "SELECT p.id FROM payments p INDEXED BY payments_shown "
        "WHERE p.delivery = 'presented' AND p.created_at_ms > ?1 - 604800000 "
        "AND p.state IN ('confirmed', 'settled') AND COALESCE(p.id = ?2, 1) "
        "AND (SELECT e.detail ->> '$.counts_from_ms' FROM events e WHERE e.payment_id = p.id "
        "AND e.event = 'confirm' ORDER BY e.seq DESC LIMIT 1) <= ?1 "
        "AND NOT EXISTS (SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.event = 'merchant_answered' "
        "AND e.detail ->> '$.said' = 'served') ORDER BY p.seq",
        (until_ms, payment_id),
    )
    return [found for (found,) in rows]


def answers_to_retries(conn: sqlite3.Connection, payment_id: str) -> list[str]:
    """What the merchant said to each retry, in order (dialects.Said)."""
    rows = conn.execute(
        "SELECT json_extract(detail, '$.said') FROM events WHERE payment_id = ? AND event = 'merchant_answered' "
        "ORDER BY seq",
        (payment_id,),
    )
    return [said for (said,) in rows]


EventLink = tuple[int, str | None, str, str | None, str, int, str, str]
"""seq, payment_id, event, state, detail, at_ms, prev_hash, hash"""


def event_hash(
    prev_hash: str, seq: int, payment_id: str | None, event: str, state: str | None, detail: str, at_ms: int
) -> str:
    """SHA-256 in hex of an event and of the hash before it, as a JSON array in ASCII without spaces."""
    row = [prev_hash, seq, payment_id, event, state, detail, at_ms]
    return hashlib.sha256(json.dumps(row, separators=(",", ":")).encode("ascii")).hexdigest()


def first_broken_link(rows: Iterable[EventLink]) -> int | None:
    """The seq of the first event that does not follow from the one before it; None when all do.

    A link breaks where a row was changed, taken out, put in or moved. What was cut off the end leaves no trace.
    """
    last = (0, GENESIS)
    for row in rows:
        if not follows(last, row):
            return row[0]
        last = row[0], row[7]
    return None


def follows(last: tuple[int, str], row: EventLink) -> bool:
    """Whether an event is the next one after `last` (its seq and hash)."""
    seq, payment_id, event, state, detail, at_ms, prev_hash, own_hash = row
    made = event_hash(last[1], seq, payment_id, event, state, detail, at_ms)
    return (seq, prev_hash, own_hash) == (last[0] + 1, last[1], made)


def event_links(conn: sqlite3.Connection) -> Iterator[EventLink]:
    """Every event, in order and row by row."""
    return conn.execute(
        "SELECT seq, payment_id, event, state, detail, at_ms, prev_hash, hash FROM events ORDER BY seq"
    )


def broken_event(conn: sqlite3.Connection) -> int | None:
    """`first_broken_link` of the events of this database, read row by row."""
    return first_broken_link(event_links(conn))


def last_event(conn: sqlite3.Connection) -> tuple[int, str]:
    """(seq, hash) of the newest event; (0, GENESIS) before the first."""
    row = conn.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return row or (0, GENESIS)
