"""Checks, counts and records requests that a prepaid balance may serve, so they need no payment of their own.

Start with `PrepaidCalls.let_through`, which runs before the request, and `record_call`, which runs after it. Only
the merchant's answer shows whether it served a request from a balance. So the cost counts against the app's own
limits from the commit that lets the request through, and is removed if nothing was served. A request without an
answer stays counted. The wallet's own limits counted all of it when it was bought (docs/decisions/0015).
Never: buys (agent.topups.runner does).
"""

import asyncio
from collections.abc import Iterable, Sequence

from payagent.agent.base import prepaid
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.base.requests import MerchantRequest, PaymentRequest, PrepaidQuote
from payagent.agent.commits.rules import in_force_for, when_it_frees
from payagent.agent.context import AgentContext
from payagent.agent.payments.intake import Intake
from payagent.core import policy
from payagent.core.money import LOVELACE
from payagent.core.policy import Limit
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import apps, limit_counters, prepaid_uses
from payagent.store.rows import prepaid as pools
from payagent.store.rows.prepaid import Pool

BATCH_CHECK_S = 5.0
"""Longest time in seconds between checks whether a batch is still being bought: its invoice may end unnoticed."""


class PrepaidCalls:
    """Quotes, counts and records requests that a prepaid balance may serve."""

    def __init__(self, context: AgentContext, intake: Intake) -> None:
        self._context = context
        self._intake = intake

    def call_of(self, app_id: str, origin: str, request: MerchantRequest) -> ServedRequest:
        """The request as a `ServedRequest`, if the app may call this merchant. Refused: `merchant_not_allowed`."""
        apps.require(self._context.conn, app_id).require_may_call(origin)
        buyer = self._intake.buyer(origin, request)
        return ServedRequest(app_id, origin, buyer, request.method, request.path.partition("?")[0], None)

    def quote(self, call: ServedRequest) -> PrepaidQuote | None:
        """What the request would use of a prepaid balance that would serve it; None if no known balance would.

        A dry run checks this first, because the request itself would be served and use up the balance.
        """
        conn, now_ms = self._context.conn, self._context.ports.clock.now_ms()
        pool = pools.find_pool(conn, call.origin, call.buyer.partner, call.buyer.wallet)
        if pool is None or (serving := prepaid.serving(conn, pool, call, now_ms)) is None:
            return None
        clock_ms, drawn = self._context.admission.rules.clock_ms(conn, now_ms), prepaid.drawn(conn, pool, call)
        try:
            require_room(conn, pool, call, drawn, self._context.config.limits, clock_ms)
        except Refused as refused:
            return PrepaidQuote(call.origin, *serving, refused)
        return PrepaidQuote(call.origin, *serving, None)

    async def let_through(self, call: ServedRequest, *, is_costly: bool = False) -> int | None:
        """Count what a request would use of a prepaid balance against its app's own limits, before it is sent.

        Returns the number of the use, for `record_call` or `give_back`; None if nothing counts beforehand.
        `is_costly`: the merchant showed that the request costs something, but not how much.
        """
        if not is_bound(self._context.conn, call) or not (
            is_costly or prepaid.is_counted(self._context.conn, call)
        ):
            return None

        def job(unit: Unit, now_ms: int) -> int | None:
            return count_use(
                unit,
                call,
                self._context.config.limits,
                self._context.admission.rules.clock_ms(unit.conn, now_ms),
                now_ms,
            )

        try:
            return await self._context.write_at("let_through", job)
        except Refused as refused:
            request = f"{call.method} {call.path}"
            await self._intake.note_refused_call(call.app_id, call.origin, request, refused)
            raise

    def is_price_wanted(self, call: ServedRequest) -> bool:
        """Whether a balance may serve the request, its app has own limits, and its price is unknown."""
        return is_bound(self._context.conn, call) and not prepaid.is_counted(self._context.conn, call)

    async def learn_price(self, call: ServedRequest, payment_request: PaymentRequest) -> None:
        """Record the price from a request's 402, if the 402 is understood."""
        now_ms = self._context.ports.clock.now_ms()
        try:
            offer = self._intake.offers(
                self._context.config.merchant(payment_request.origin), payment_request, now_ms
            )[0]
        except Refused:
            return
        price = (call.origin, call.method, call.path, offer.asset, offer.total_units)
        await self._context.write("price", lambda unit: pools.note_price(unit, *price))

    async def give_back(self, use: int | None) -> None:
        """Remove the use of a request that was let through and used nothing."""
        if use is not None:
            await self._context.write("give_back", lambda unit: prepaid_uses.take_back(unit, use))

    async def record_call(self, call: ServedRequest, use: int | None = None) -> None:
        """Record what a request that was served without a payment uses of a prepaid balance, if anything."""
        if prepaid.is_counted(self._context.conn, call):
            now_ms = self._context.ports.clock.now_ms()

            def job(unit: Unit) -> None:
                prepaid.used(unit, call, self._context.admission.rules.clock_ms(unit.conn, now_ms), now_ms, use)

            await self._context.write("use", job)

    async def wait_for_batch(self, origin: str, buyer: Buyer, timeout_s: float) -> None:
        """Wait until no payment for the buyer's prepaid balance is open, or the time is up."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            pool = pools.find_pool(self._context.conn, origin, buyer.partner, buyer.wallet)
            now_ms = self._context.ports.clock.now_ms()
            other = None if pool is None else pools.batch_under_way(self._context.conn, pool.id, now_ms)
            if other is None:
                return
            await self._context.changes.wait(other, min(left_s, BATCH_CHECK_S))


def is_bound(conn: Connection, call: ServedRequest) -> bool:
    """Whether the app has own limits or assets there, and a balance is left that the request could use.

    The balance counts as left by our own count or by the merchant's.
    """
    pool = pools.find_pool(conn, call.origin, call.buyer.partner, call.buyer.wallet)
    if pool is None:
        return False
    report = pools.last_observation(conn, pool.id)
    if not pools.has_any(conn, pool.id) and not (report is not None and report.remaining):
        return False
    own = _own_limits(conn, call, ())
    return bool(own) or apps.require(conn, call.app_id).assets is not None


def count_use(
    unit: Unit, call: ServedRequest, from_file: Sequence[Limit], clock_ms: int, now_ms: int
) -> int | None:
    """Count what the request would use. Returns the number of the use; None if it would cost nothing.

    Refused, with nothing counted: `unauthorized` if the app's token has ended; `asset_not_allowed`;
    `limit_exceeded` by the tightest of the app's own limits.
    """
    apps.require_let_in(unit.conn, call.app_id, now_ms)
    pool = pools.find_pool(unit.conn, call.origin, call.buyer.partner, call.buyer.wallet)
    if pool is None:
        return None
    drawn = prepaid.drawn(unit.conn, pool, call)
    cost = require_room(unit.conn, pool, call, drawn, from_file, clock_ms)
    return prepaid_uses.add(unit, pool.id, call.app_id, drawn, cost, clock_ms)


def require_room(
    conn: Connection,
    pool: Pool,
    call: ServedRequest,
    drawn: tuple[str, int],
    from_file: Sequence[Limit],
    clock_ms: int,
) -> dict[str, int]:
    """The cost of using `drawn` from the pool, within the app's own limits. Refused as in `let_through`."""
    cost = prepaid.cost_of(conn, pool, drawn)
    app_row = apps.require(conn, call.app_id)
    for asset in _paid_in(cost):
        app_row.require_may_pay(call.origin, asset)
    counted = prepaid_uses.counting(conn, pool.id, call.app_id, cost)
    own = [limit for limit in _own_limits(conn, call, from_file) if counted.get(limit.asset)]
    spent = limit_counters.counted_for_each(conn, own, clock_ms)
    checks = {policy.ask(limit, units, counted): limit for limit, units in spent.items()}
    tightest = policy.tightest(checks)
    if tightest is not None:
        frees_at_ms = when_it_frees(conn, checks[tightest], tightest, clock_ms)
        raise policy.refusal(tightest, frees_at_ms, app_row.name, "call takes {} of what was prepaid")
    return cost


def _own_limits(conn: Connection, call: ServedRequest, from_file: Sequence[Limit]) -> list[Limit]:
    limits = in_force_for(conn, from_file, call.app_id, call.origin)
    return [limit for limit in limits if limit.scope.app == call.app_id]


def _paid_in(cost: Iterable[str]) -> list[str]:
    """The assets of a cost, without the ADA that came along with a token."""
    tokens = [asset for asset in cost if asset != LOVELACE]
    return tokens or list(cost)
