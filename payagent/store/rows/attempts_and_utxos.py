"""Attempts, and the UTxOs that they spend and make: which are available, pending, missing, spent or rolled back.

Never: writes.
"""

import json
import sqlite3
import sys
from typing import Any

from payagent.core.aggregate import AttemptRow, PaymentRow, UtxoRow
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import BY_A_BLOCK, State
from payagent.store.db.sql import exists, find_all, find_one, number, sql_list
from payagent.store.rows.payments import payment


def attempts(conn: sqlite3.Connection, payment_id: str) -> list[AttemptRow]:
    """All attempts of a payment, oldest first."""
    rows = conn.execute(
        "SELECT tx_id, payment_id, kind, nonce_utxo, invoice_seq, inputs, cbor, fee_lovelace, ttl_slot, account "
        "FROM attempts WHERE payment_id = ? ORDER BY rowid",
        (payment_id,),
    )
    return [AttemptRow(r[0], r[1], r[2], r[3], r[4], tuple(r[5].split(" ")), r[6], r[7], r[8], r[9]) for r in rows]


def payment_of_attempt(conn: sqlite3.Connection, tx_id: str) -> PaymentRow | None:
    """The payment that an attempt was signed for."""
    row = conn.execute("SELECT payment_id FROM attempts WHERE tx_id = ?", (tx_id,)).fetchone()
    return payment(conn, row[0]) if row else None


def replacement_inputs(conn: sqlite3.Connection, payment_id: str) -> tuple[str, ...]:
    """The UTxOs that a `replacing` payment reserved for its next attempt."""
    (refs,) = conn.execute(
        "SELECT detail ->> 'inputs' FROM events WHERE payment_id = ? AND event = 'replace' "
        "ORDER BY seq DESC LIMIT 1",
        (payment_id,),
    ).fetchone()
    return tuple(refs.split(" "))


def submissions(conn: sqlite3.Connection, tx_id: str) -> tuple[int, int]:
    """(count, time): the most submissions to any one provider since the payment last lost its block, and the time
    of the last submission to any provider.

    Both are 0 if there was none. The last submission is the last one written, whatever the clock said then.
    """
    count = number(
        conn,
        "SELECT COALESCE(MAX(times), 0) FROM "
        "(SELECT COUNT(*) AS times FROM submissions WHERE tx_id = ?1 AND at_ms >= "
        "COALESCE((SELECT e.at_ms FROM attempts a JOIN events e ON e.payment_id = a.payment_id "
        "WHERE a.tx_id = ?1 AND e.event = 'block_lost' ORDER BY e.seq DESC LIMIT 1), 0) "
        "GROUP BY provider) providers",
        (tx_id,),
    )
    last = "SELECT at_ms FROM submissions WHERE tx_id = ? ORDER BY seq DESC LIMIT 1"
    return count, number(conn, last, (tx_id,))


def was_answered(
    conn: sqlite3.Connection, payment_id: str, tx_id: str | None, kind: str, provider: str | None = None
) -> bool:
    """Whether a provider (or this one) ever gave this answer to an attempt (chain.provider.SubmitKind)."""
    return exists(
        conn,
        "SELECT 1 FROM events WHERE payment_id = ?1 AND event IN ('provider_answered', 'provider_accepted') "
        "AND detail ->> 'kind' = ?2 AND detail ->> 'tx_id' = ?3 "
        "AND (CAST(?4 AS TEXT) IS NULL OR detail ->> 'provider' = ?4) LIMIT 1",
        (payment_id, kind, tx_id, provider),
    )


_UTXO = """
SELECT c.ref, c.tx_id, c.output_index, c.lovelace, c.assets, c.source, c.state, r.payment_id, c.account
FROM utxos c LEFT JOIN reservations r ON r.ref = c.ref
"""


def _utxo(ref: str, tx_id: str, index: int, lovelace: int, assets: str, *others: Any) -> UtxoRow:
    return UtxoRow(ref, tx_id, index, lovelace, {} if assets == "{}" else json.loads(assets), *others)


def utxos(conn: sqlite3.Connection) -> list[UtxoRow]:
    """Every unspent UTxO that we know, of all accounts; pending change only of each payment's last attempt.

    Pending change of earlier attempts stays in the table as long as a fork may bring it back, but is not listed.
    """
    of_another = (
        "SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id "
        "WHERE a.tx_id = c.tx_id AND p.tx_id IS DISTINCT FROM a.tx_id"
    )
    return find_all(
        conn,
        _utxo,
        f"{_UTXO} WHERE c.state IN ('pending', 'available', 'locked', 'missing') "
        f"AND NOT (c.state = 'pending' AND r.payment_id IS NULL AND EXISTS ({of_another})) ORDER BY c.ref",
    )


def utxo_states(conn: sqlite3.Connection, account: int = 0) -> dict[str, str]:
    """The state of every unspent UTxO of an account that we know, by its ref."""
    rows = conn.execute(
        "SELECT ref, state FROM utxos WHERE state IN ('pending', 'available', 'locked', 'missing') "
        "AND account = ? ORDER BY ref",
        (account,),
    )
    return {ref: sys.intern(state) for ref, state in rows}


def free_utxos(conn: sqlite3.Connection, account: int = 0) -> list[UtxoRow]:
    """An account's UTxOs that coin selection may use: available and not reserved."""
    return find_all(
        conn,
        _utxo,
        f"{_UTXO} WHERE c.state = 'available' AND c.account = ? AND r.payment_id IS NULL ORDER BY c.ref",
        (account,),
    )


_FREE = "FROM utxos c LEFT JOIN reservations r ON r.ref = c.ref WHERE c.state = ? AND r.payment_id IS NULL"


def free_units(conn: sqlite3.Connection, asset: str, state: str = "available") -> dict[int, int]:
    """By account: the units of an asset in UTxOs of this state that no payment has reserved."""
    return _free_lovelace(conn, state) if asset == LOVELACE else _free_tokens(conn, asset, state)


def _free_lovelace(conn: sqlite3.Connection, state: str) -> dict[int, int]:
    return dict(conn.execute(f"SELECT c.account, SUM(c.lovelace) {_FREE} GROUP BY c.account", (state,)).fetchall())


def _free_tokens(conn: sqlite3.Connection, asset: str, state: str) -> dict[int, int]:
    found: dict[int, int] = {}
    rows = conn.execute(f"SELECT c.account, c.assets {_FREE} AND instr(c.assets, ?) > 0", (state, asset))
    for account, assets in rows:
        found[account] = found.get(account, 0) + json.loads(assets).get(asset, 0)
    return found


def utxos_reserved_for(conn: sqlite3.Connection, payment_id: str) -> list[UtxoRow]:
    return find_all(conn, _utxo, f"{_UTXO} WHERE r.payment_id = ? ORDER BY c.ref", (payment_id,))


def utxo(conn: sqlite3.Connection, ref: str) -> UtxoRow | None:
    return find_one(conn, _utxo, f"{_UTXO} WHERE c.ref = ?", (ref,))


def is_made(conn: sqlite3.Connection, ref: str) -> bool:
    """Whether a UTxO's transaction is on the chain: a deposit, or an attempt in a block."""
    return bool(
        number(
            conn,
            f"SELECT c.source = 'deposit' OR p.state IN {sql_list(*BY_A_BLOCK)} FROM utxos c "  # noqa: S608  our own names
            "LEFT JOIN attempts a ON a.tx_id = c.tx_id "
            "LEFT JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id WHERE c.ref = ?",
            (ref,),
        )
    )


def missing_utxos(conn: sqlite3.Connection, account: int = 0) -> list[UtxoRow]:
    """An account's UTxOs that the provider's list lacks, although we have neither spent nor reserved them."""
    return find_all(
        conn,
        _utxo,
        f"{_UTXO} WHERE c.state = 'missing' AND c.account = ? AND r.payment_id IS NULL ORDER BY c.ref",
        (account,),
    )


def missing_deposits(conn: sqlite3.Connection, account: int = 0) -> list[UtxoRow]:
    """An account's missing UTxOs that external transactions made, reserved or not."""
    return find_all(
        conn,
        _utxo,
        f"{_UTXO} WHERE c.state = 'missing' AND c.account = ? AND c.source = 'deposit' ORDER BY c.ref",
        (account,),
    )


def any_rolled_back(conn: sqlite3.Connection) -> bool:
    """Whether `is_rolled_back` can be true for any UTxO."""
    return bool(
        number(
            conn,
            "SELECT EXISTS (SELECT 1 FROM utxos WHERE state = 'rolled_back') "
            "OR EXISTS (SELECT 1 FROM payments INDEXED BY payments_rolled_back "
            "WHERE code = 'deposit_rolled_back')",
        )
    )


_DESCENT = """
SELECT c.state, p.nonce_utxo, p.state = 'void' AND p.code = 'deposit_rolled_back' FROM utxos c
LEFT JOIN attempts a ON a.tx_id = c.tx_id AND c.state = 'pending' LEFT JOIN payments p ON p.id = a.payment_id
WHERE c.ref = ?
"""


def is_rolled_back(conn: sqlite3.Connection, ref: str | None, cache: dict[str, bool] | None = None) -> bool:
    """Whether the deposit that a UTxO is, or descends from, was rolled back.

    Nothing that spends the UTxO can land now. The same holds for change of a payment that is void for this reason.
    `cache` holds the results for other UTxOs in the same state of the ledger; new results are added.
    """
    cache, path, result = {} if cache is None else cache, list[str](), False
    while ref is not None:
        if ref in cache:
            result = cache[ref]
            break
        path.append(ref)
        state, nonce_utxo, is_never = conn.execute(_DESCENT, (ref,)).fetchone() or ("unknown", None, None)
        if nonce_utxo is None or is_never:
            result = state == "rolled_back" or bool(is_never)
            break
        ref = nonce_utxo
    cache.update(dict.fromkeys(path, result))
    return result


def is_never_made(conn: sqlite3.Connection, tx_id: str) -> bool:
    """Whether a transaction is an attempt of a payment that is void because its deposit was rolled back."""
    maker = payment_of_attempt(conn, tx_id)
    return maker is not None and maker.state is State.VOID and maker.problem.code == "deposit_rolled_back"


def coming_utxos(conn: sqlite3.Connection, slot: int, account: int = 0) -> list[UtxoRow]:
    """An account's unreserved change in no block yet, of each payment's last attempt while that can still land."""
    return find_all(
        conn,
        _utxo,
        f"{_UTXO} JOIN attempts a ON a.tx_id = c.tx_id "
        "JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id "
        "WHERE c.state = 'pending' AND c.account = ? AND r.payment_id IS NULL AND a.ttl_slot > ? ORDER BY c.ref",
        (account, slot),
    )


_EVENT = "SELECT 1 FROM events e WHERE e.payment_id = p.id AND e.detail ->> 'tx_id' = a.tx_id AND e.event ="

_REFUSED = (
    f"EXISTS ({_EVENT} 'provider_answered' AND e.detail ->> 'kind' IN ('never', 'client', 'spent_all', "
    f"'spent_some', 'expired')) AND NOT EXISTS ({_EVENT} 'provider_accepted')"
)
"""SQL on an attempt: a provider refused it, and none accepted it. Spending its change would be refused too."""

_CHAINABLE = (
    f"{_UTXO} JOIN attempts a ON a.tx_id = c.tx_id AND a.kind = 'pay' "
    "JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id AND p.state IN ('signed', 'in_flight') "
    "LEFT JOIN invoices v ON v.seq = a.invoice_seq WHERE c.state = 'pending' AND r.payment_id IS NULL "
    f"AND a.ttl_slot >= ? AND COALESCE(v.merchant_submits, 0) = 0 AND NOT ({_REFUSED})"
)


def chainable_utxos(conn: sqlite3.Connection, ttl_slot: int, account: int = 0) -> list[UtxoRow]:
    """An account's change in no block yet that a payment may spend whose transaction is valid up to this slot.

    Only change of a payment's current attempt, which payagent submits itself. Not if a provider refused the
    attempt and none accepted it.
    """
    return find_all(conn, _utxo, f"{_CHAINABLE} AND c.account = ? ORDER BY c.ref", (ttl_slot, account))


def chainable_utxo(conn: sqlite3.Connection, ref: str, ttl_slot: int) -> UtxoRow | None:
    """This UTxO, if `chainable_utxos` has it."""
    return find_one(conn, _utxo, f"{_CHAINABLE} AND c.ref = ?", (ttl_slot, ref))


def free_descendants(conn: sqlite3.Connection, tx_id: str, account: int = 0) -> list[UtxoRow]:
    """An account's UTxOs available for coin selection that a transaction or its descendants made; most lovelace
    first.
    """
    return find_all(
        conn,
        _utxo,
        "WITH RECURSIVE line(tx) AS (SELECT tx_id FROM utxos WHERE tx_id = ? "  # noqa: S608  our own names
        "UNION SELECT c.spent_by FROM utxos c JOIN line ON c.tx_id = line.tx WHERE c.spent_by IS NOT NULL) "
        f"{_UTXO} WHERE c.tx_id IN (SELECT tx FROM line) AND c.state = 'available' "
        "AND c.account = ? AND r.payment_id IS NULL ORDER BY c.lovelace DESC, c.ref",
        (tx_id, account),
    )


def pending_parents(conn: sqlite3.Connection, tx_id: str) -> list[str]:
    """The transactions in no block whose UTxOs an attempt spends."""
    row = conn.execute("SELECT inputs FROM attempts WHERE tx_id = ?", (tx_id,)).fetchone()
    spent = [] if row is None else [utxo(conn, ref) for ref in row[0].split(" ")]
    return sorted({parent.tx_id for parent in spent if parent is not None and parent.state == "pending"})


def unconfirmed_ancestors(conn: sqlite3.Connection, tx_id: str, cache: dict[str, int] | None = None) -> int:
    """How many transactions in no block an attempt depends on, one after another; 0 if all its inputs are in
    blocks.

    `cache` holds the results for other attempts; new results are added.
    """
    depths: dict[str, int] = {} if cache is None else cache

    def depth_of(one: str) -> int:
        if one not in depths:
            depths[one] = max((depth_of(parent) + 1 for parent in pending_parents(conn, one)), default=0)
        return depths[one]

    return depth_of(tx_id)


def rival_of(conn: sqlite3.Connection, ref: str) -> PaymentRow | None:
    """The payment whose block (`shown_by`) rules out a UTxO: a transaction other than its maker won."""
    maker = None if (row := utxo(conn, ref)) is None else payment_of_attempt(conn, row.tx_id)
    if row is None or maker is None or maker.attempt.tx_id == row.tx_id:
        return None
    return maker if maker.state in BY_A_BLOCK and maker.shown_by else None
