"""Payments as they are now, in full or reduced to the facts that show whether a step is due; and their holds.

Never: writes.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from itertools import accumulate, chain, pairwise, starmap
from typing import Any

from payagent.core.aggregate import (
    AttemptPart,
    BlockPart,
    IntentPart,
    InvoicePart,
    OutputRow,
    PaymentRow,
    PrepaidPart,
    ProblemPart,
    Stage,
)
from payagent.core.payment.machine import (
    ENDED_WITHOUT_PAYING,
    NEVER_SIGNED,
    ON_CHAIN,
    POSTED,
    SIGNED_UNPOSTED,
    Delivery,
    State,
)
from payagent.store.db.sql import find_all, find_one, number, places, sql_list


@dataclass(frozen=True, slots=True)
class OpenPayment:
    """The part of an open payment that shows whether a step is due, small enough to keep in memory.

    Fields as in `PaymentRow` and its parts. `attempt`: the number of the current one; `is_cancel`: whether it is a
    cancel.
    """

    seq: int
    id: str
    state: State
    delivery: Delivery
    ttl_slot: int | None
    attempt: int | None
    is_cancel: bool
    block_height: int | None
    merchant_submits: bool
    created_at_ms: int


FEW_MAX = 1_000
"""Up to this many payments since a time are sorted; more are found by scanning back from the newest."""

SCAN_MAX = 10_000
"""How many payments a page looks at for a filter that has no index. The next page goes on from there."""

_EVENT = "SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.event ="
_COLUMNS: Mapping[type, str] = {
    PaymentRow: f"""
       p.seq, p.id, p.kind, p.app_id, COALESCE(v.outputs, p.outputs) AS outputs, p.state, p.delivery, p.nonce_utxo,
       p.void_tx_id, p.merchant_status, EXISTS ({_EVENT} 'merchant_refused') AS refused, p.created_at_ms,
       p.updated_at_ms, p.account""",
    IntentPart: """
       i.id, i.request_id, NOT EXISTS (SELECT 1 FROM attempts f JOIN payments q ON q.id = f.payment_id
                                       WHERE q.intent_id = p.intent_id AND q.seq < p.seq) AS is_first, i.origin""",
    InvoicePart: """
       p.invoice_seq AS seq, v.origin, v.dialect, v.invoice_id AS id, v.terms_hash, v.batch_target,
       v.expires_at_ms, COALESCE(v.proof, 'tx_hash') AS proof, COALESCE(v.merchant_submits, 0) AS merchant_submits,
       v.echo, v.commitment""",
    AttemptPart: f"""
       a.rowid AS number, p.tx_id, COALESCE(a.ttl_slot, p.ttl_slot) AS ttl_slot, a.fee_lovelace, a.cbor,
       EXISTS ({_EVENT} 'provider_accepted' AND e.detail ->> 'tx_id' = p.tx_id) AS accepted_by_provider,
       EXISTS (SELECT 1 FROM block_observations s WHERE s.tx_id = p.tx_id) AS seen_in_block""",  # noqa: S608  our own names
    BlockPart: "p.block_hash AS hash, p.block_height AS height, p.block_slot AS slot",
    ProblemPart: "p.code, p.reason, p.detail",
    PrepaidPart: "p.pool_id, o.partner, o.wallet, p.topup_id",
}
"""SQL of each part's columns, by the names and in the order of its fields (a test compares them)."""

_PAYMENT_BY = f"""
SELECT {", ".join(_COLUMNS.values())}
FROM payments p {{}}
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq
LEFT JOIN attempts a ON a.tx_id = p.tx_id
LEFT JOIN prepaid_pools o ON o.id = p.pool_id
"""  # noqa: S608  our own names
_PAYMENT, _PAYMENT_BY_TIME = _PAYMENT_BY.format(""), _PAYMENT_BY.format("INDEXED BY payments_by_time")
_PAYMENT_BY_APPROVAL = _PAYMENT.replace(
    "FROM payments p", "FROM approvals q CROSS JOIN payments p ON p.id = q.payment_id"
)
"""From the approvals on, which are few. Each is made in the commit that makes its payment, so their order is the
same."""

_CONTAINS = """instr(lower(p.id || ' ' || COALESCE(v.invoice_id, '') || ' ' || COALESCE(p.tx_id, '') || ' ' ||
       COALESCE(substr(i.request, 1, instr(i.request || '?', '?') - 1), '')), ?) > 0"""
"""Without the request's query, which may hold a key."""


def _payment(*columns: Any) -> PaymentRow:
    values = list(columns)
    for place, read in _READ:
        values[place] = read(values[place])
    return PaymentRow(*values[_OWN], *[part(*values[span]) for part, span in _PARTS])


def dump_outputs(outputs: Iterable[OutputRow]) -> str:
    rows = [{"role": o.role, "address": o.address, "asset": o.asset, "units": str(o.units)} for o in outputs]
    return json.dumps(rows, separators=(",", ":"))


@lru_cache(maxsize=1000)  # each pass reads every payment that is not settled, and a merchant's outputs repeat
def load_outputs(text: str) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(o["role"], o["address"], o["asset"], int(o["units"])) for o in json.loads(text))


_FIELDS = [
    [one for one in fields(part) if one.type not in _COLUMNS and one.default is MISSING] for part in _COLUMNS
]
_ENDS = accumulate(map(len, _FIELDS), initial=0)
(_, _OWN), *_PARTS = zip(_COLUMNS, starmap(slice, pairwise(_ENDS)), strict=True)
"""The places of each part's columns in a row."""

_READERS: Mapping[Any, Callable[[Any], object]] = {
    bool: bool,
    State: State,
    Delivery: Delivery,
    tuple[OutputRow, ...]: load_outputs,
}
_READ = [(place, _READERS[one.type]) for place, one in enumerate(chain(*_FIELDS)) if one.type in _READERS]
"""The columns whose SQLite values need a conversion: their places in a row, and the functions that convert."""


def payment(conn: sqlite3.Connection, payment_id: str) -> PaymentRow | None:
    return find_one(conn, _payment, f"{_PAYMENT} WHERE p.id = ?", (payment_id,))


def tx_of(conn: sqlite3.Connection, payment_id: str) -> str:
    """The current attempt; empty if there is none."""
    return find_one(conn, str, "SELECT tx_id FROM payments WHERE id = ?", (payment_id,)) or ""


def payments_in(conn: sqlite3.Connection, states: Iterable[State], account: int | None = None) -> list[PaymentRow]:
    """Payments in any of these states, of this account of the wallet if one is given; oldest first."""
    names = [str(state) for state in states]
    of_account, values = ("", names) if account is None else (" AND p.account = ?", [*names, account])
    return find_all(
        conn, _payment, f"{_PAYMENT} WHERE p.state IN ({places(len(names))}){of_account} ORDER BY p.seq", values
    )


def payments_of_topup(conn: sqlite3.Connection, topup_id: str) -> list[PaymentRow]:
    """Payments of a top-up, oldest first."""
    return find_all(conn, _payment, f"{_PAYMENT} WHERE p.topup_id = ? ORDER BY p.seq", (topup_id,))


def payments_page(
    conn: sqlite3.Connection,
    *,
    app_id: str | None,
    state: str | None,
    origin: str | None,
    since_ms: int | None,
    before_seq: int | None,
    limit: int,
    until_ms: int | None = None,
    asked_or_of: str | None = None,
    payment_id: str | None = None,
    text: str | None = None,
    delivery: str | None = None,
    from_seq: int | None = None,
    is_decided: bool = False,
) -> list[PaymentRow]:
    """Payments, newest first. A filter that is None does not filter.

    `asked_or_of`: payments of this app, or that needed an approval. `text`: a part of the id, the invoice's id,
    the transaction or the request. `is_decided`: only those that needed an approval and are decided.
    `text` and `delivery` have no index, so give `from_seq` with them.
    If few payments are newer than `since_ms`, the time index finds them; otherwise the query scans back from the
    newest. Row numbers alone do not suffice, because the clock may have been set back. The merchant's index is
    used last: a large merchant has more payments than an app or a state.
    """
    is_few = since_ms is not None and _are_few(conn, since_ms, before_seq)
    filters = {
        "p.app_id = ?": app_id,
        "(p.app_id = ? OR EXISTS (SELECT 1 FROM approvals a WHERE a.payment_id = p.id))": asked_or_of,
        "p.state = ?": state,
        ("p.origin = ?" if app_id is None and state is None else "p.origin || '' = ?"): origin,
        "p.created_at_ms >= ?": since_ms,
        "p.created_at_ms < ?": until_ms,
        "p.seq < ?": before_seq,
        "p.seq >= ?": from_seq,
        "p.id = ?": payment_id,
        "p.delivery = ?": delivery,
        _CONTAINS: None if text is None else text.lower(),
        "p.state <> ?": State.AWAITING_APPROVAL if is_decided else None,
    }
    used = {clause: value for clause, value in filters.items() if value is not None}
    where = " WHERE " + " AND ".join(used) if used else ""
    select = _PAYMENT_BY_APPROVAL if is_decided else _PAYMENT_BY_TIME if is_few else _PAYMENT
    order = "q.rowid" if is_decided else "p.seq"
    return find_all(conn, _payment, f"{select}{where} ORDER BY {order} DESC LIMIT ?", (*used.values(), limit))


def lost(conn: sqlite3.Connection, since_ms: int, until_ms: int) -> list[tuple[str, int]]:
    """(asset, units) of each payment of a period that was paid and not served: what was booked to its merchant.

    Of a call by channel: what the merchant charged.
    """
    rows = conn.execute(
        "SELECT q.asset, SUM(q.units) "  # noqa: S608
        "FROM (SELECT DISTINCT SUBSTR(subject, LENGTH('unserved:') + 1) AS id FROM alerts "
        "WHERE kind = 'paid_not_served') a JOIN payments p ON p.id = a.id "
        "JOIN entries j ON j.payment_id = p.id JOIN postings q ON q.entry_id = j.id "
        "WHERE p.created_at_ms >= ? AND p.created_at_ms < ? AND p.delivery = 'paid_not_served' "
        f"AND p.state NOT IN {sql_list(*ENDED_WITHOUT_PAYING)} "
        "AND (q.account LIKE 'merchant:%' OR q.account LIKE 'prepaid:%') "
        "GROUP BY p.id, q.asset HAVING SUM(q.units) <> 0 "
        "UNION ALL SELECT c.asset, n.charged FROM channel_calls n JOIN channels c ON c.id = n.channel_id "
        "WHERE n.created_at_ms >= ? AND n.created_at_ms < ? AND n.state = 'paid_not_served' AND n.charged > 0",
        (since_ms, until_ms) * 2,
    )
    return [(str(asset), int(units)) for asset, units in rows]


def scan_floor(conn: sqlite3.Connection, before_seq: int | None) -> int:
    """The oldest payment that a page looks at for a filter without an index."""
    return max((before_seq or number(conn, "SELECT MAX(seq) FROM payments") + 1) - SCAN_MAX, 1)


def named(conn: sqlite3.Connection, text: str) -> str | None:
    """The payment with this id, or with an attempt with this transaction id."""
    return find_one(
        conn,
        str,
        "SELECT id FROM payments WHERE id = ?1 UNION SELECT payment_id FROM attempts WHERE tx_id = ?1",
        (text,),
    )


def _are_few(conn: sqlite3.Connection, since_ms: int, before_seq: int | None) -> bool:
    """Whether at most `FEW_MAX` payments are newer than a time, few enough to sort them."""
    some = (
        "SELECT COUNT(*) FROM (SELECT 1 FROM payments INDEXED BY payments_by_time "
        "WHERE created_at_ms >= ?1 AND (CAST(?2 AS BIGINT) IS NULL OR seq < ?2) LIMIT ?3) few"
    )
    return number(conn, some, (since_ms, before_seq, FEW_MAX + 1)) <= FEW_MAX


def live_payment_of(conn: sqlite3.Connection, intent_id: str) -> PaymentRow | None:
    """The intent's payment that is not rejected, denied or void.

    A rollback can leave two, of which only one can land. One in a block comes first, a cancelling one last.
    """
    return find_one(
        conn,
        _payment,
        f"{_PAYMENT} WHERE p.intent_id = ? AND p.state NOT IN {sql_list(*ENDED_WITHOUT_PAYING)} "
        f"ORDER BY p.state IN {sql_list(*ON_CHAIN)} DESC, p.state = 'cancelling', p.seq DESC "
        "LIMIT 1",
        (intent_id,),
    )


def account_of_intent(conn: sqlite3.Connection, intent_id: str) -> int | None:
    """The account of the intent's last payment that was not rejected or denied; None without one."""
    return find_one(
        conn,
        int,
        f"SELECT account FROM payments WHERE intent_id = ? AND state NOT IN {sql_list(*NEVER_SIGNED)} "  # noqa: S608
        "ORDER BY seq DESC LIMIT 1",
        (intent_id,),
    )


def payment_of_invoice(conn: sqlite3.Connection, invoice_seq: int) -> str | None:
    """The id of the only payment that was admitted for this invoice or has an attempt for it; None if there is
    none.
    """
    return find_one(
        conn,
        str,
        f"SELECT id FROM payments WHERE invoice_seq = ?1 AND state NOT IN {sql_list(*NEVER_SIGNED)} "  # noqa: S608
        "UNION SELECT payment_id FROM attempts WHERE invoice_seq = ?1",
        (invoice_seq,),
    )


def hold(conn: sqlite3.Connection, payment_id: str, stage: Stage = "payment") -> dict[str, int]:
    return dict(
        conn.execute(
            "SELECT asset, units FROM holds WHERE payment_id = ? AND stage = ?", (payment_id, stage)
        ).fetchall()
    )


_ENDED = (*ENDED_WITHOUT_PAYING, State.SETTLED)
_OPEN = """
SELECT p.seq, p.id, p.state, p.delivery, COALESCE(a.ttl_slot, p.ttl_slot), a.rowid,
       COALESCE(a.kind = 'cancel', FALSE), p.block_height, COALESCE(v.merchant_submits, 0), p.created_at_ms
FROM payments p
LEFT JOIN invoices v ON v.seq = p.invoice_seq
LEFT JOIN attempts a ON a.tx_id = p.tx_id
"""
_IS_OPEN = f"""
p.account = ?1
AND (p.state IN {sql_list(State.RESERVED, *SIGNED_UNPOSTED, State.CONFIRMED)}
     OR (p.state = 'void' AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id)))
"""  # noqa: S608


def open_payments(conn: sqlite3.Connection, account: int = 0) -> list[OpenPayment]:
    """An account's admitted payments whose state may still change, `watched_voids` included; oldest first."""
    return find_all(conn, _open, f"{_OPEN} WHERE {_IS_OPEN} ORDER BY p.seq", (account,))


def open_payment(conn: sqlite3.Connection, payment_id: str, account: int = 0) -> OpenPayment | None:
    """This payment, if `open_payments` has it."""
    return find_one(conn, _open, f"{_OPEN} WHERE p.id = ?2 AND {_IS_OPEN}", (account, payment_id))


def _open(seq: int, payment_id: str, state: str, delivery: str, *others: Any) -> OpenPayment:
    ttl_slot, attempt, is_cancel, height, merchant_submits, created_at_ms = others
    return OpenPayment(
        *(seq, payment_id, State(state), Delivery(delivery), ttl_slot, attempt),
        *(bool(is_cancel), height, bool(merchant_submits), created_at_ms),
    )


def watched_voids(conn: sqlite3.Connection) -> list[PaymentRow]:
    """Cancelled payments whose cancel may still be rolled back. They keep their reservations until then."""
    return find_all(
        conn,
        _payment,
        f"{_PAYMENT} WHERE p.state = 'void' "  # noqa: S608  our own names
        "AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id) ORDER BY p.seq",
    )


def watched_voids_of(conn: sqlite3.Connection, intent_id: str) -> list[str]:
    """Transactions that made payments of the intent void (mostly cancels), and may still be rolled back."""
    return find_all(
        conn,
        str,
        "SELECT COALESCE(void_tx_id, tx_id) FROM payments p WHERE intent_id = ? AND state = 'void' "
        "AND EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id) GROUP BY 1 ORDER BY MIN(seq)",
        (intent_id,),
    )


def payments_by_state(conn: sqlite3.Connection) -> dict[str, int]:
    """Number of payments in each state that has any."""
    return dict(conn.execute("SELECT state, COUNT(*) FROM payments GROUP BY state").fetchall())


def open_in_other_accounts(conn: sqlite3.Connection) -> list[str]:
    """The payments of accounts above 0 that may still change, also those that wait for approval; oldest first."""
    return find_all(
        conn,
        str,
        f"SELECT id FROM payments p WHERE account <> 0 AND (state NOT IN {sql_list(*_ENDED)} "  # noqa: S608
        "OR EXISTS (SELECT 1 FROM reservations r WHERE r.payment_id = p.id)) ORDER BY seq",
    )


def payment_counts(conn: sqlite3.Connection) -> tuple[int, int]:
    """(all payments, those whose state may still change)."""
    count, open_count = conn.execute(
        f"SELECT COUNT(*), COUNT(*) FILTER (WHERE state NOT IN {sql_list(*_ENDED)}) FROM payments"  # noqa: S608
    ).fetchone()
    return count, open_count


def unserved(
    conn: sqlite3.Connection, until_ms: int, payment_id: str | None = None, account: int | None = None
) -> list[str]:
    """Confirmed payments (this one, or an account's) whose proof was presented, and that were never served.

    Only payments that count from `until_ms` of the limits' clock at the latest, created in the week before it.
    Older ones stay as they are.
    """
    # INDEXED BY: nearly all payments are settled, and few of them stay presented
    return find_all(
        conn,
        str,
        "SELECT p.id FROM payments p INDEXED BY payments_presented "  # noqa: S608
        "WHERE p.delivery = 'presented' AND p.created_at_ms > ?1 - 604800000 "
        f"AND p.state IN {sql_list(*POSTED)} AND COALESCE(p.id = ?2, TRUE) AND COALESCE(p.account = ?3, TRUE) "
        "AND (SELECT CAST(e.detail ->> 'counts_from_ms' AS BIGINT) FROM events e WHERE e.payment_id = p.id "
        "AND e.event = 'confirm' ORDER BY e.seq DESC LIMIT 1) <= ?1 "
        "AND NOT EXISTS (SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.event = 'merchant_answered' "
        "AND e.detail ->> 'said' = 'served') ORDER BY p.seq",
        (until_ms, payment_id, account),
    )


def signed_holds(conn: sqlite3.Connection) -> dict[str, int]:
    """Units held for payments that are signed and not posted yet, by asset."""
    return dict(
        conn.execute(
            "SELECT h.asset, SUM(h.units) FROM payments p "  # noqa: S608
            "JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment' "
            f"WHERE p.state IN {sql_list(*SIGNED_UNPOSTED)} "
            "AND h.released_at_ms IS NULL GROUP BY h.asset"
        ).fetchall()
    )
