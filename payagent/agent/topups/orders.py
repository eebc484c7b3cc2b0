"""A top-up's goal, what its payments add up to, its steps inside a commit, and the automatic ones.

The first automatic top-up under new settings is announced in one run and opened in a later one. So it is in the
log, the alerts and the events before anything is paid for it.
Never: buys; opens an automatic top-up while another of the same balance is open.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from payagent.agent.base import prepaid
from payagent.agent.base.config import AutoTopup, MerchantConfig, TopupSource
from payagent.agent.base.log import log
from payagent.agent.base.prepaid import Buyer
from payagent.agent.base.requests import Approver, digest
from payagent.agent.commits import approvals
from payagent.agent.context import AgentContext
from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import Invoice, is_batch
from payagent.core.money import counted, format_amount
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, Delivery, State
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.core.retry_schedule import backoff
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts, apps, payments, topups, writes
from payagent.store.rows import prepaid as pools
from payagent.store.rows.prepaid import Pool
from payagent.store.rows.topups import TopupRow


@dataclass(frozen=True, slots=True)
class TopupGoal:
    """What a top-up is to buy: `units` of `unit` at a merchant, by this request or the configured one.

    `only_sells`: the request is no call that a balance would serve. The configured one is none.
    """

    origin: str
    unit: str
    units: int
    request: TopupSource | None = None
    only_sells: bool = False


def gained(unit: str, batch_target: int | None, paid: Sequence[tuple[str, int]]) -> int:
    """How much payments of these (asset, units) add to a top-up in `unit`, without any fee."""
    if unit == CALLS:
        return (batch_target or 0) if is_batch(batch_target) else 0
    return sum(units for asset, units in paid if asset == unit)


def gained_by(unit: str, invoice: Invoice) -> int:
    return gained(unit, invoice.batch_target, [(output.asset, output.units) for output in invoice.outputs])


def bought(topup: TopupRow, rows: Sequence[PaymentRow]) -> int:
    """What the top-up's payments add up to, those still under way included."""
    return sum(
        gained(topup.unit, row.invoice.batch_target, [(output.asset, output.units) for output in row.outputs])
        for row in rows
        if row.state not in ENDED_WITHOUT_PAYING
    )


def announced_as(pool: Pool) -> str:
    """The subject of the alert that announces a first automatic top-up."""
    return f"auto_topup:{pool.id}"


def buyer_of(context: AgentContext, merchant: MerchantConfig) -> Buyer:
    return Buyer(merchant.partner or "", context.public_address)


def open_topup(
    unit: Unit,
    context: AgentContext,
    merchant: MerchantConfig,
    goal: TopupGoal,
    topup_id: str,
    app_id: str,
    key: str,
    now_ms: int,
    trigger: str = "manual",
) -> TopupRow:
    """Inside a commit: return the top-up with this key, or add it.

    Refused: `topup_in_progress` for the same balance, `idempotency_key_reused`, `topup_not_configured`.
    """
    if (existing := topups.find_by_key(unit.conn, app_id, key)) is not None:
        _require_same(existing, pools.pool(unit.conn, existing.pool_id), goal, *request_of(merchant, goal))
        return existing
    buyer = buyer_of(context, merchant)
    pool = pools.ensure_pool(unit, merchant.origin, buyer.partner, buyer.wallet, now_ms, context.config.account)
    if (under_way := topups.open_of(unit.conn, pool.id)) is not None:
        raise Refused("topup_in_progress", f"{under_way.id} is still open", topup=under_way.id)
    request, is_call = request_of(merchant, goal)
    facts = {"merchant": merchant.origin, "unit": goal.unit, "units": str(goal.units), "by": app_id}
    writes.note(unit, None, "topup_opened", None, now_ms, {"topup": topup_id, **facts})
    return topups.add(
        unit,
        topup_id=topup_id,
        pool_id=pool.id,
        app_id=app_id,
        key=key,
        trigger=trigger,
        unit_name=goal.unit,
        units=goal.units,
        request=dump_request(request),
        is_call=is_call,
        now_ms=now_ms,
        clock_ms=context.admission.rules.clock_ms(unit.conn, now_ms),
    )


def stop(unit: Unit, context: AgentContext, topup: TopupRow, why: Refused, by_app: str) -> None:
    """Inside a commit: stop a top-up, which then buys nothing more.

    It ends now, unless its last payment is under way or not yet accepted by the merchant.
    """
    if topup.stop_code is not None:
        return
    now_ms = context.ports.clock.now_ms()
    topups.stop(unit, topup.id, why.record)
    detail = {"topup": topup.id, **why.record, "by": by_app}
    writes.note(unit, None, "topup_stopped", None, now_ms, detail)
    _end_approval(unit, topup, Approver("token", by_app), why, now_ms)
    last = next(reversed(payments.payments_of_topup(unit.conn, topup.id)), None)
    if last is None or last.state in ENDED_WITHOUT_PAYING or last.delivery is Delivery.ACCEPTED:
        end(unit, context, topup, why, now_ms)


def end(unit: Unit, context: AgentContext, topup: TopupRow, why: Refused | None, now_ms: int) -> None:
    """Inside a commit: end a top-up, once."""
    clock_ms = context.admission.rules.clock_ms(unit.conn, now_ms)
    record = dict.fromkeys(("code", "reason", "detail")) if why is None else why.record
    if topups.end(unit, topup.id, record, now_ms, clock_ms):
        if why is not None:
            _end_approval(unit, topup, Approver("clock"), why, now_ms)
        detail = {"topup": topup.id, "clock_ms": clock_ms, **record}
        writes.note(unit, None, "topup_ended", None, now_ms, detail)
        _update_alerts(unit, topup, why, now_ms)


def _end_approval(unit: Unit, topup: TopupRow, by: Approver, why: Refused, now_ms: int) -> None:
    """End the top-up's approval too: an approved payment would pay for something that nobody collects."""
    for row in payments.payments_of_topup(unit.conn, topup.id):
        if row.state is State.AWAITING_APPROVAL:
            approvals.end(unit, row.id, by, why, now_ms)


def _update_alerts(unit: Unit, topup: TopupRow, why: Refused | None, now_ms: int) -> None:
    """Raise an alert if an automatic top-up failed, and clear it at the next success.

    No caller waits for an automatic top-up. The alert that announced it is cleared when it ends.
    """
    pool = pools.pool(unit.conn, topup.pool_id)
    subject, facts = f"topup:{pool.id}", {"topup": topup.id, "merchant": pool.origin}
    if topup.trigger == "auto":
        detail = f"the automatic top-up that was announced at {pool.origin} has ended"
        clear_alert(unit, announced_as(pool), facts | {"detail": detail}, now_ms)
    if why is None:
        clear_alert(unit, subject, facts | {"detail": f"a top-up at {pool.origin} is done"}, now_ms)
    elif topup.trigger == "auto" and why.name != "topup_stopped/cancelled":
        reasons = {name: str(value) for name, value in why.record.items() if value}
        raise_alert(unit, "topup_failed", subject, facts | reasons, now_ms)


def request_of(merchant: MerchantConfig, goal: TopupGoal) -> tuple[TopupSource, bool]:
    """The request that sells it, and whether it is an ordinary call rather than the configured one."""
    if goal.request is not None:
        return goal.request, not goal.only_sells and goal.request != merchant.topup_request
    if merchant.topup_request is None:
        raise Refused(
            "topup_not_configured", f"merchants.{merchant.name} has no topup.path, and no request was given"
        )
    return merchant.topup_request, False


def _require_same(existing: TopupRow, pool: Pool, goal: TopupGoal, request: TopupSource, is_call: bool) -> None:
    """Refuse a reused key. A top-up keeps the `pool` that it was opened for, even if the partner changes."""
    before = (pool.origin, existing.unit, existing.units, existing.request, existing.is_call)
    if before != (goal.origin, goal.unit, goal.units, dump_request(request), is_call):
        raise Refused(
            "idempotency_key_reused", f"the key was used for the top-up {existing.id}", topup=existing.id
        )


def dump_request(request: TopupSource) -> str:
    return json.dumps({"method": request.method, "path": request.path, "body": request.body})


def load_request(text: str) -> TopupSource:
    return TopupSource(**json.loads(text))


DAY_MS = 86_400_000
PAUSE_FIRST_MS = 3_600_000
"""Pause after an automatic top-up that failed. Each further failure doubles it, up to a day."""


async def open_where_low(context: AgentContext, merchant: MerchantConfig, auto: AutoTopup) -> None:
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
    goal, topup_id = TopupGoal(merchant.origin, auto.unit, auto.to - left), context.ports.new_id("top")

    def job(unit: Unit) -> TopupRow:
        apps.ensure_own(unit, topups.AUTO_APP, "auto top-up", now_ms)
        key = f"auto:{topup_id}"
        return open_topup(unit, context, merchant, goal, topup_id, topups.AUTO_APP, key, now_ms, "auto")

    row = await context.write("topup", job)
    log.info("topup.ordered", topup=row.id, left=left, unit=auto.unit, units=row.units)


async def _announce(
    context: AgentContext, merchant: MerchantConfig, auto: AutoTopup, left: int, settings: str
) -> None:
    """Raise the alert that announces the first top-up under these settings. The next run opens it."""
    buyer = buyer_of(context, merchant)
    detail = (
        f"{_in_words(auto, left)} are left at {merchant.origin}, and merchants.{merchant.name}.topup.auto_below "
        f"is {_in_words(auto, auto.below)}. payagent is about to order its first top-up by these settings. "
        "Nothing is paid for it yet. To prevent it, run `payagent pause`."
    )
    facts = {"detail": detail, "merchant": merchant.origin, "unit": auto.unit, "settings": settings}
    facts |= {"left": str(left), "below": str(auto.below), "to": str(auto.to)}

    def job(unit: Unit, now_ms: int) -> None:
        pool = pools.ensure_pool(
            unit, merchant.origin, buyer.partner, buyer.wallet, now_ms, context.config.account
        )
        raise_alert(unit, "topup_announced", announced_as(pool), facts, now_ms, again=True)

    await context.write_at("topup_announce", job)
    log.warning("topup.announced", **facts)


def _in_words(auto: AutoTopup, units: int) -> str:
    return counted(units, "call") if auto.unit == CALLS else format_amount(auto.unit, units)


def _settings(merchant: MerchantConfig, auto: AutoTopup) -> str:
    """A digest of all of merchants.NAME.topup, which changes with any part of it."""
    amounts = (auto.unit, auto.below, auto.to, auto.per_day_max, merchant.topup_per_day_lovelace)
    request = "" if merchant.topup_request is None else dump_request(merchant.topup_request)
    return digest([*map(str, amounts), request])


def _must_wait(context: AgentContext, pool: Pool, auto: AutoTopup, now_ms: int) -> bool:
    """Whether something is under way, the day's top-ups are used up, or the last ones failed.

    Days and pauses are counted by the limits' clock: no other clock ends them.
    """
    conn = context.conn
    clock_ms = context.admission.rules.clock_ms(conn, now_ms)
    if topups.open_of(conn, pool.id) or pools.batch_under_way(conn, pool.id, now_ms):
        return True
    earlier = topups.autos_of(conn, pool.id)
    if sum(row.clock_ms > clock_ms - DAY_MS for row in earlier) >= auto.per_day_max:
        return True
    failed = next((index for index, row in enumerate(earlier) if row.code is None), len(earlier))
    if failed == 0:
        return False
    pause_ms = backoff(PAUSE_FIRST_MS, DAY_MS, failed)
    return clock_ms < (earlier[0].ended_clock_ms or clock_ms) + pause_ms
