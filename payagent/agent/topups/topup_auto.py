"""Opens automatic top-ups: raises a prepaid balance that is low, as its merchant's settings say.

The first top-up under new settings is announced in one run and opened in a later one. So it is in the log, the
alerts and the events before anything is paid for it.

May import: core, store, agent.base, agent.context, agent.topups, structlog. Never: buys; opens a top-up while
another of the same balance is open.
"""

import structlog

from payagent.agent.base import prepaid
from payagent.agent.base.alert_records import raise_again
from payagent.agent.base.config import AutoTopup, MerchantConfig
from payagent.agent.base.requests import digest
from payagent.agent.context import AgentContext
from payagent.agent.topups.orders import TopupGoal, announced_as, buyer_of, dump_request, open_order
from payagent.core.money import format_amount
from payagent.core.prepaid_balance import CALLS
from payagent.store.db.unit import Unit
from payagent.store.rows import alerts, topups
from payagent.store.rows import prepaid as pools
from payagent.store.rows.prepaid import Pool
from payagent.store.rows.topups import TopupRow

DAY_MS = 86_400_000
PAUSE_FIRST_MS = 3_600_000
"""Pause after an automatic top-up that failed. Each further failure doubles it, up to a day."""

log = structlog.get_logger("payagent.agent")


async def order_where_low(context: AgentContext, merchant: MerchantConfig, auto: AutoTopup) -> None:
    """Open a top-up to `auto.to` if less than `auto.below` is left and nothing is under way.

    If these settings have opened none yet, only announce it: the next run opens it.
    """
    now_ms = context.ports.clock.now_ms()
    buyer = buyer_of(context, merchant)
    pool = pools.find_pool(context.conn, merchant.origin, buyer.partner, buyer.wallet)
    left = 0 if pool is None else prepaid.left(context.conn, pool, auto.unit, now_ms)
    if left >= auto.below or (pool is not None and _must_wait(context, pool, auto, now_ms)):
        return
    settings = _settings(merchant, auto)
    announced = None if pool is None else alerts.last_of_kind(context.conn, "topup_announced", announced_as(pool))
    if announced is None or announced.facts["settings"] != settings:
        await _announce(context, merchant, auto, left, settings)
        return
    wish, topup_id = TopupGoal(merchant.origin, auto.unit, auto.to - left), context.ports.new_id("top")

    def job(unit: Unit) -> TopupRow:
        topups.ensure_auto_app(unit, now_ms)
        key = f"auto:{topup_id}"
        return open_order(unit, context, merchant, wish, topup_id, topups.AUTO_APP, key, now_ms, "auto")

    row = await context.write("topup", job)
    log.info("topup.ordered", topup=row.id, left=left, unit=auto.unit, units=row.units)


async def _announce(
    context: AgentContext, merchant: MerchantConfig, auto: AutoTopup, left: int, settings: str
) -> None:
    """Raise the alert that the next run opens a top-up, the first under these settings."""
    now_ms = context.ports.clock.now_ms()
    buyer = buyer_of(context, merchant)
    detail = (
        f"{_in_words(auto, left)} are left at {merchant.origin}, and merchants.{merchant.name}.topup.below is "
        f"{_in_words(auto, auto.below)}. payagent is about to order its first top-up by these settings. Nothing "
        "is paid for it yet. To prevent it, run `payagent pause`."
    )
    facts = {"detail": detail, "merchant": merchant.origin, "unit": auto.unit, "settings": settings}
    facts |= {"left": str(left), "below": str(auto.below), "to": str(auto.to)}

    def job(unit: Unit) -> None:
        pool = pools.ensure_pool(unit, merchant.origin, buyer.partner, buyer.wallet, now_ms)
        raise_again(unit, "topup_announced", announced_as(pool), facts, now_ms)

    await context.write("topup_announce", job)
    log.warning("topup.announced", **facts)


def _in_words(auto: AutoTopup, units: int) -> str:
    return f"{units} calls" if auto.unit == CALLS else format_amount(auto.unit, units)


def _settings(merchant: MerchantConfig, auto: AutoTopup) -> str:
    """A digest of all of merchants.NAME.topup, which changes with any part of it."""
    amounts = (auto.unit, auto.below, auto.to, auto.per_day_count, merchant.topup_per_day_lovelace)
    request = "" if merchant.topup_request is None else dump_request(merchant.topup_request)
    return digest([*map(str, amounts), request])


def _must_wait(context: AgentContext, pool: Pool, auto: AutoTopup, now_ms: int) -> bool:
    """Whether something is under way, the day's top-ups are used up, or the last ones failed.

    Days and pauses are counted by the limits' clock: no other clock ends them.
    """
    conn = context.conn
    clock_ms = context.limits_clock_ms(conn, now_ms)
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
