"""Prepaid balances: their owners (pools), moves, totals, and merchants' reports.

The moves are the record. Totals and costs are stored beside them, so nothing is summed up on a read.
Never: commits; counts by a merchant's report.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.core.changes import MovePrepaid
from payagent.core.invoice import is_batch
from payagent.core.payment.machine import WITHOUT_PROOF, State
from payagent.core.prepaid_balance import CALLS, Cost, PrepaidBalance, buy
from payagent.store.db.sql import exists, find_all, find_one, number, sql_list
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows.payments import load_outputs


@dataclass(frozen=True, slots=True)
class Pool:
    """The owner of a prepaid balance at a merchant: a partner ('' for none) and a wallet address.

    `account`: the account of the wallet that buys it.
    """

    id: int
    origin: str
    partner: str
    wallet: str
    account: int = 0


@dataclass(frozen=True, slots=True)
class Holding:
    """A pool's balance in one unit. `coming`: units that payments not yet confirmed will add."""

    pool: Pool
    unit: str
    balance: PrepaidBalance
    coming: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A merchant's report about a pool. `why_not_understood` is None if the report was understood."""

    source: str
    http_status: int
    body: str
    remaining: int | None
    total: int | None
    used: int | None
    unit: str | None
    expires_at_ms: int | None
    why_not_understood: str | None
    at_ms: int


PROOF_WAIT_MS = 600_000
"""How long to wait for a confirmed payment without a presented proof, after the payment's last change."""

_POOL = "SELECT id, origin, partner, wallet, account FROM prepaid_pools"


def find_pool(conn: Connection, origin: str, partner: str, wallet: str) -> Pool | None:
    return find_one(
        conn, Pool, f"{_POOL} WHERE origin = ? AND partner = ? AND wallet = ?", (origin, partner, wallet)
    )


def pool(conn: Connection, pool_id: int) -> Pool:
    return Pool(*conn.execute(f"{_POOL} WHERE id = ?", (pool_id,)).fetchone())


def all_pools(conn: Connection, account: int | None = None) -> list[Pool]:
    """Every pool, or those of an account."""
    return find_all(conn, Pool, f"{_POOL} WHERE COALESCE(account = ?, TRUE) ORDER BY id", (account,))


def ensure_pool(unit: Unit, origin: str, partner: str, wallet: str, now_ms: int, account: int = 0) -> Pool:
    """The pool, created on the first purchase for it."""
    if (existing := find_pool(unit.conn, origin, partner, wallet)) is not None:
        return existing
    (number,) = unit.conn.execute(
        "INSERT INTO prepaid_pools(origin, partner, wallet, created_at_ms, account) VALUES (?, ?, ?, ?, ?) "
        "RETURNING id",
        (origin, partner, wallet, now_ms, account),
    ).fetchone()
    return Pool(number, origin, partner, wallet, account)


def balance(conn: Connection, pool_id: int, unit_name: str) -> PrepaidBalance:
    row = conn.execute(
        "SELECT bought, used, unexplained FROM prepaid_totals WHERE pool_id = ? AND unit = ?", (pool_id, unit_name)
    ).fetchone()
    costs = conn.execute(
        "SELECT asset, bought, used FROM prepaid_costs WHERE pool_id = ? AND unit = ?", (pool_id, unit_name)
    )
    bought, used, unexplained = row or (0, 0, 0)
    return PrepaidBalance(bought, used, unexplained, {asset: Cost(*counts) for asset, *counts in costs})


def holdings(conn: Connection) -> list[Holding]:
    """The balance of every pool, in each unit that ever moved or is about to."""
    under_way = coming(conn)
    moved = {(number, name) for number, name in conn.execute("SELECT pool_id, unit FROM prepaid_totals")}
    pools = {one.id: one for one in all_pools(conn)}
    return [
        Holding(pools[number], name, balance(conn, number, name), under_way.get((number, name), 0))
        for number, name in sorted(moved | under_way.keys())
    ]


COMING = (State.RESERVED, State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.IN_BLOCK)
"""States of a payment whose purchase is under way."""


def coming(conn: Connection) -> dict[tuple[int, str], int]:
    """Units that payments not yet confirmed will add, by pool and unit."""
    return {key: balance.left for key, balance in bought_soon(conn).items()}


def bought_soon(conn: Connection) -> dict[tuple[int, str], PrepaidBalance]:
    """Like `coming`, with the cost."""
    rows = conn.execute(
        "SELECT p.pool_id, v.batch_target, v.outputs FROM payments p INDEXED BY payments_pending "  # noqa: S608
        "JOIN invoices v ON v.seq = p.invoice_seq "
        f"WHERE p.pool_id IS NOT NULL AND p.state IN {sql_list(*COMING)}"
    )
    bought: dict[tuple[int, str], PrepaidBalance] = {}
    for pool_id, batch_target, outputs in rows:
        paid = load_outputs(outputs)
        units, counts_calls = sum(output.units for output in paid), is_batch(batch_target)
        name, count = (CALLS, batch_target) if counts_calls else (paid[0].asset, units)
        bought[pool_id, name] = buy(bought.get((pool_id, name), PrepaidBalance()), count, {paid[0].asset: units})
    return bought


def has_any(conn: Connection, pool_id: int) -> bool:
    """Whether a pool has a balance, or payments that will add to it."""
    left = "SELECT 1 FROM prepaid_totals WHERE pool_id = ? AND bought > used LIMIT 1"
    return exists(conn, left, (pool_id,)) or any(pool == pool_id for pool, _ in bought_soon(conn))


def record_move(unit: Unit, move: MovePrepaid, entry: int | None, now_ms: int) -> None:
    """Append a move, and update the stored totals."""
    before, after, whose = move.before, move.after, (move.pool_id, move.unit)
    unit.conn.execute(
        "INSERT INTO prepaid_moves(pool_id, unit, kind, bought, used, unexplained, payment_id, app_id, call, "
        "call_key, entry_id, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(*whose, move.kind, after.bought - before.bought, after.used - before.used),
            *(after.unexplained - before.unexplained, move.payment_id, move.app_id, move.call, move.call_key),
            *(entry, now_ms),
        ),
    )
    unit.conn.execute(
        "INSERT INTO prepaid_totals(pool_id, unit, bought, used, unexplained) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (pool_id, unit) DO UPDATE SET bought = excluded.bought, used = excluded.used, "
        "unexplained = excluded.unexplained",
        (*whose, after.bought, after.used, after.unexplained),
    )
    unit.conn.executemany(
        "INSERT INTO prepaid_costs(pool_id, unit, asset, bought, used) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (pool_id, unit, asset) DO UPDATE SET bought = excluded.bought, used = excluded.used",
        [(*whose, asset, cost.bought, cost.used) for asset, cost in after.costs.items()],
    )


def has_used(conn: Connection, payment_id: str) -> bool:
    """Whether the request that was served with a payment's own proof has been counted."""
    return exists(conn, "SELECT 1 FROM prepaid_moves WHERE payment_id = ? AND kind = 'use'", (payment_id,))


def knows_call(conn: Connection, app_id: str, call_key: str) -> bool:
    return exists(conn, "SELECT 1 FROM prepaid_moves WHERE app_id = ? AND call_key = ?", (app_id, call_key))


def batch_under_way(conn: Connection, pool_id: int, now_ms: int) -> str | None:
    """The payment for a pool that its merchant may still credit: until it accepts the proof, or it is too late.

    A payment on chain is waited for past its invoice's expiry, because the merchant may still credit it.
    """
    # INDEXED BY: nearly all payments for a pool were delivered
    return find_one(
        conn,
        str,
        "SELECT p.id FROM payments p INDEXED BY payments_buying JOIN invoices v ON v.seq = p.invoice_seq WHERE "  # noqa: S608
        f"p.pool_id = ?1 AND p.delivery IN ('not_presented', 'presented') AND p.state NOT IN "
        f"{sql_list(*WITHOUT_PROOF)} AND (v.expires_at_ms > ?2 OR p.state = 'in_block' OR (p.state = "
        "'confirmed' AND p.updated_at_ms > ?3)) AND NOT EXISTS (SELECT 1 FROM events e WHERE e.payment_id = "
        "p.id AND e.event = 'merchant_answered' AND e.detail ->> 'said' = 'served') LIMIT 1",
        (pool_id, now_ms, now_ms - PROOF_WAIT_MS),
    )


def last_served_ms(conn: Connection, pool_id: int) -> int:
    """When the merchant accepted the proof of a pool's last payment that is not refused or void; 0 if never."""
    return number(
        conn,
        "SELECT MAX(e.at_ms) FROM events e WHERE e.payment_id = (SELECT id FROM payments "  # noqa: S608
        "INDEXED BY payments_paying WHERE pool_id = ? "  # otherwise every refused payment since would be read
        f"AND state NOT IN {sql_list(*WITHOUT_PROOF)} ORDER BY seq DESC LIMIT 1) "
        "AND (e.event = 'delivery_accept' OR (e.event = 'merchant_answered' "
        "AND e.detail ->> 'said' = 'served'))",
        (pool_id,),
    )


def note_price(unit: Unit, origin: str, method: str, path: str, asset: str, units: int) -> None:
    """Record the price in a 402 that a request was answered with."""
    unit.conn.execute(
        "INSERT INTO request_prices(origin, method, path, asset, units) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (origin, method, path) DO UPDATE SET asset = excluded.asset, units = excluded.units "
        "WHERE request_prices.asset <> excluded.asset OR request_prices.units <> excluded.units",
        (origin, method, path, asset, units),
    )


def price(conn: Connection, origin: str, method: str, path: str) -> tuple[str, int] | None:
    """(asset, units) of the last 402 for a request; None if it was never answered 402."""
    row = conn.execute(
        "SELECT asset, units FROM request_prices WHERE origin = ? AND method = ? AND path = ?",
        (origin, method, path),
    ).fetchone()
    return row or None


def add_observation(unit: Unit, pool_id: int, report: Observation) -> None:
    unit.conn.execute(
        "INSERT INTO merchant_reports(pool_id, source, http_status, body, remaining, total, used, unit, "
        "expires_at_ms, why_not_understood, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            pool_id,
            report.source,
            report.http_status,
            report.body,
            report.remaining,
            report.total,
            report.used,
            report.unit,
            report.expires_at_ms,
            report.why_not_understood,
            report.at_ms,
        ),
    )


def last_observation(conn: Connection, pool_id: int) -> Observation | None:
    return find_one(
        conn,
        Observation,
        "SELECT source, http_status, body, remaining, total, used, unit, expires_at_ms, why_not_understood, at_ms "
        "FROM merchant_reports WHERE pool_id = ? ORDER BY seq DESC LIMIT 1",
        (pool_id,),
    )


def last_move_ms(conn: Connection, pool_id: int) -> int:
    """When the pool last moved; 0 if never."""
    return number(conn, "SELECT at_ms FROM prepaid_moves WHERE pool_id = ? ORDER BY seq DESC LIMIT 1", (pool_id,))


def last_purchase_ms(conn: Connection, pool_id: int) -> int:
    """When a payment last changed the pool, or the request that it was made for was served; 0 if never."""
    return number(
        conn,
        "SELECT at_ms FROM prepaid_moves WHERE pool_id = ? AND payment_id IS NOT NULL ORDER BY seq DESC LIMIT 1",
        (pool_id,),
    )


def counted(conn: Connection) -> dict[tuple[int, str], tuple[int, int, int]]:
    """The stored totals: (bought, used, unexplained) by pool and unit."""
    rows = conn.execute("SELECT pool_id, unit, bought, used, unexplained FROM prepaid_totals")
    return {(pool_id, unit_name): (bought, used, owed) for pool_id, unit_name, bought, used, owed in rows}


def costs_left(conn: Connection) -> Mapping[tuple[str, str], int]:
    """Units paid for the unused part of all pools, by (merchant's origin, asset)."""
    rows = conn.execute(
        "SELECT o.origin, c.asset, SUM(c.bought - c.used) FROM prepaid_costs c "
        "JOIN prepaid_pools o ON o.id = c.pool_id GROUP BY o.origin, c.asset"
    )
    return {(origin, asset): units for origin, asset, units in rows}
