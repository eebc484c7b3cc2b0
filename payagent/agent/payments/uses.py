"""Checks requests that a prepaid balance may serve against their app's own limits, before they are sent.

Only the merchant's answer shows whether it served a request from a balance. So the cost counts from the commit
that lets the request through, and is removed if nothing was served. A request without an answer stays counted. The
wallet's own limits counted all of it when it was bought (docs/decisions/0015).

May import: core, store, agent.base, agent.commits. Never: waits; asks a merchant.
"""

from collections.abc import Iterable, Sequence

from payagent.agent.base import prepaid
from payagent.agent.base.prepaid import ServedRequest
from payagent.agent.commits.rules import in_force_for, when_it_frees
from payagent.core import policy
from payagent.core.money import LOVELACE
from payagent.core.policy import Limit
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import apps
from payagent.store.rows import limit_counters as spending
from payagent.store.rows import prepaid as pools
from payagent.store.rows import prepaid_uses as uses
from payagent.store.rows.prepaid import Pool


def is_bound(conn: Connection, call: ServedRequest) -> bool:
    """Whether the app has own limits or assets there, and a balance is left that the request could use.

    The balance counts as left by our own count or by the merchant's.
    """
    pool = pools.find_pool(conn, call.origin, call.buyer.partner, call.buyer.wallet)
    if pool is None:
        return False
    told = pools.last_observation(conn, pool.id)
    if not pools.has_any(conn, pool.id) and not (told is not None and told.remaining):
        return False
    own = _own_limits(conn, call, ())
    return bool(own) or apps.require(conn, call.app_id).assets is not None


def let_through(unit: Unit, call: ServedRequest, filed: Sequence[Limit], clock_ms: int, now_ms: int) -> int | None:
    """Count what the request would use. Returns the number of the use; None if it would cost nothing.

    Refused, with nothing counted: `unauthorized` if the app's token has ended; `asset_not_allowed`;
    `limit_exceeded` by the tightest of the app's own limits.
    """
    apps.require_let_in(unit.conn, call.app_id, now_ms)
    pool = pools.find_pool(unit.conn, call.origin, call.buyer.partner, call.buyer.wallet)
    if pool is None:
        return None
    drawn = prepaid.drawn(unit.conn, pool, call)
    cost = require_room(unit.conn, pool, call, drawn, filed, clock_ms)
    return uses.add(unit, pool.id, call.app_id, drawn, cost, clock_ms)


def require_room(
    conn: Connection,
    pool: Pool,
    call: ServedRequest,
    drawn: tuple[str, int],
    filed: Sequence[Limit],
    clock_ms: int,
) -> dict[str, int]:
    """The cost of using `drawn` from the pool, within the app's own limits. Refused as in `let_through`."""
    cost = prepaid.cost_of(conn, pool, drawn)
    asker = apps.require(conn, call.app_id)
    for asset in _paid_in(cost):
        asker.require_may_pay(call.origin, asset)
    counted = uses.counting(conn, pool.id, call.app_id, cost)
    asked = {
        policy.ask(limit, spending.counted(conn, limit, clock_ms), counted): limit
        for limit in _own_limits(conn, call, filed)
        if counted.get(limit.asset)
    }
    tight = policy.tightest(asked)
    if tight is not None:
        frees_at_ms = when_it_frees(conn, asked[tight], tight, clock_ms)
        raise policy.refusal(tight, frees_at_ms, asker.name, "call takes {} of what was prepaid")
    return cost


def _own_limits(conn: Connection, call: ServedRequest, filed: Sequence[Limit]) -> list[Limit]:
    found = in_force_for(conn, filed, call.app_id, call.origin)
    return [limit for limit in found if limit.scope.app == call.app_id]


def _paid_in(cost: Iterable[str]) -> list[str]:
    """The assets of a cost, without the ADA that came along with a token."""
    tokens = [asset for asset in cost if asset != LOVELACE]
    return tokens or list(cost)
