"""Orders that nobody gives: a prepaid balance that is low is raised again, as its merchant's settings say.

May import: store, agent.desk, .prepaid, .terms, .topup_orders, structlog. Never: buys; orders while another order
of the balance is open.
"""

import structlog

from payagent.agent import prepaid
from payagent.agent.desk import Desk
from payagent.agent.terms import AutoTopup, MerchantTerms
from payagent.agent.topup_orders import Wish, buyer_of, open_order
from payagent.store import prepaid as pools
from payagent.store import topups
from payagent.store.prepaid import Pool
from payagent.store.topups import TopupRow
from payagent.store.unit import Unit

DAY_MS = 86_400_000
PAUSE_FIRST_MS = 3_600_000
"""How long nothing is ordered after an order that failed; twice as long after each further one, a day at most."""

log = structlog.get_logger("payagent.topup")


async def order_where_low(desk: Desk, merchant: MerchantTerms, auto: AutoTopup) -> None:
    """Order what is missing to `auto.to`, when less than `auto.below` is left and nothing is under way."""
    now_ms = desk.ports.clock.now_ms()
    buyer = buyer_of(desk, merchant)
    pool = pools.find_pool(desk.conn, merchant.origin, buyer.partner, buyer.wallet)
    left = 0 if pool is None else prepaid.left(desk.conn, pool, auto.unit, now_ms)
    if left >= auto.below or (pool is not None and _must_wait(desk, pool, auto, now_ms)):
        return
    wish, topup_id = Wish(merchant.origin, auto.unit, auto.to - left), desk.ports.new_id("top")

    def job(unit: Unit) -> TopupRow:
        topups.ensure_auto_app(unit, now_ms)
        key = f"auto:{topup_id}"
        return open_order(unit, desk, merchant, wish, topup_id, topups.AUTO_APP, key, now_ms, "auto")

    row = await desk.write("topup", job)
    log.info("topup.ordered", topup=row.id, left=left, unit=auto.unit, units=row.units)


def _must_wait(desk: Desk, pool: Pool, auto: AutoTopup, now_ms: int) -> bool:
    """Whether something is under way, the day's orders are used up, or the last ones failed.

    Days and pauses are those of the limits' clock: no other clock ends them.
    """
    conn = desk.conn
    clock_ms = desk.limits_clock_ms(conn, now_ms)
    if topups.open_of(conn, pool.id) or pools.batch_under_way(conn, pool.id, now_ms):
        return True
    orders = topups.autos_of(conn, pool.id)
    if sum(row.clock_ms > clock_ms - DAY_MS for row in orders) >= auto.per_day_count:
        return True
    failed = next((place for place, row in enumerate(orders) if row.reason_code is None), len(orders))
    if failed == 0:
        return False
    pause_ms = min(PAUSE_FIRST_MS << min(failed - 1, 10), DAY_MS)
    return clock_ms < (orders[0].ended_clock_ms or clock_ms) + pause_ms
