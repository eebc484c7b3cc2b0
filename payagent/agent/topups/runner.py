"""Runs top-ups: each raises a prepaid balance by one payment after another.

A top-up is a row before anything is done for it. Each of its purchases is the intent `topup:ID:NUMBER`, so a
repeated step finds the payment that it made before. Each run of the scheduler's job takes one step for each open
top-up: request and pay the 402, or present the proof, or end. Start with `TopupRunner.run_once`.

Never: pays past a limit; begins a purchase before the last one was delivered; trusts a merchant on how much was
bought.
"""

import asyncio
import hashlib
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

from payagent.agent.agent import Agent
from payagent.agent.base import prepaid
from payagent.agent.base.config import MerchantConfig, TopupSource
from payagent.agent.base.log import log
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.prepaid import ServedRequest, TopupPart, part_of, require_may_buy
from payagent.agent.base.requests import MerchantRequest, PaymentQuote, PaymentRequest, PrepaidQuote
from payagent.agent.topups.orders import (
    TopupGoal,
    bought,
    buyer_of,
    end,
    gained_by,
    load_request,
    open_topup,
    open_where_low,
    request_of,
    stop,
)
from payagent.core.aggregate import PaymentRow
from payagent.core.pay_and_retry import End, Present, ProofSteps, Wait, present_proof
from payagent.core.payment.machine import NEVER_SIGNED, WITHOUT_PROOF, Delivery, Event, State
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.core.retry_schedule import backoff
from payagent.dialects import RetryVerdict, may_pass, parse_answer, parse_response, wants_wallet_address
from payagent.outbound.merchant_client import MerchantClient, MerchantReply
from payagent.store.db.unit import Unit
from payagent.store.rows import events, pauses, payments, topups
from payagent.store.rows import prepaid as pools
from payagent.store.rows.prepaid import Pool
from payagent.store.rows.topups import TopupRow

PATIENCE_MS = 86_400_000
"""How long a top-up may take, and how long a signed payment's proof is presented, however late it was signed."""

BACKOFF_FIRST_MS, BACKOFF_MAX_MS = 1_000, 300_000
PROOF_PATIENCE_S = 180
"""Seconds within which a paid answer must begin: the merchant waits for blocks."""

STEP_S = 5.0
"""Seconds that one run waits for its steps before other jobs have their turn."""

EXPIRED_MAX = 10
"""A top-up ends after this many invoices in a row that were nearly over on arrival: the merchant issues no others.
"""

LATER = frozenset(
    {
        "awaiting_approval",
        "batch_in_progress",
        "chain_not_ready",
        "clock_skew",
        "external_spend",
        "funds_pending",
        "cancel_too_recent",
        "internal_error",
        "invoice_expired",
        "lease_lost",
        "ledger_behind",
        "merchant_in_flight_limit",
        "merchant_timeout",
        "merchant_unreachable",
        "not_signed_yet",
        "paused",
        "restored_recently",
        "signer_away",
        "signer_lost",
        "signer_wrong",
        "store_failed",
    }
)
"""Refusals that pass by themselves. Any other ends the top-up.

`signer_lost` is one: the daemon stops with its signer, and the next start signs what was admitted.
"""

_ENDS_TOPUP = {
    State.VOID: ("payment_ended", "its payment ended without paying"),
    State.DENIED: ("approval_denied/person", "a person denied its payment"),
}
"""A last payment in one of these states ends the top-up, with the payment's own reason if it has one."""


@dataclass(frozen=True, slots=True)
class TopupPlan:
    """What a top-up would take now: `count` payments like the quoted one.

    The quote's `refusal` covers all of them. `under_way`: the top-up of the same balance that must end first.
    """

    goal: TopupGoal
    quote: PaymentQuote
    count: int
    under_way: str | None


@dataclass(frozen=True, slots=True)
class _Wait:
    """When a top-up's next step is due, and why not yet."""

    from_ms: int = 0
    due_ms: int = 0
    failures: int = 0
    trouble: str = ""

    def is_over(self, now_ms: int) -> bool:
        """Whether the wait has passed or has not begun: a clock that was set back must not prolong it."""
        return not self.from_ms <= now_ms < self.due_ms


class TopupRunner:
    """The top-ups of one wallet. In memory: when to try again, the retries that wait, the steps that run."""

    def __init__(self, agent: Agent, merchants: MerchantClient) -> None:
        self._agent = agent
        self._context = agent.context
        self._merchants = merchants
        self._waits: dict[str, _Wait] = {}
        self._proofs: dict[str, ProofSteps] = {}
        self._steps: dict[str, asyncio.Task[None]] = {}

    # --- public calls

    async def order(self, app_id: str, key: str | None, goal: TopupGoal) -> tuple[TopupRow, bool]:
        """Open a top-up, or find the one of this key; True if it is new. `run_once` carries it out.

        Refused: `asset_not_allowed`, and as `open_topup` does.
        """
        context = self._context
        merchant = context.config.merchant(goal.origin)
        if goal.unit != CALLS and goal.unit not in context.assets_allowed():
            raise Refused("asset_not_allowed", f"no limit is set for {goal.unit}", asset=goal.unit)
        topup_id, now_ms = context.ports.new_id("top"), context.ports.clock.now_ms()
        name = f"order:{topup_id}" if key is None else f"key:{key}"
        job = partial(
            open_topup,
            context=context,
            merchant=merchant,
            goal=goal,
            topup_id=topup_id,
            app_id=app_id,
            key=name,
            now_ms=now_ms,
        )
        row = await context.write("topup", job)
        return row, row.id == topup_id

    async def plan(self, app_id: str, goal: TopupGoal) -> TopupPlan | PrepaidQuote:
        """Make the request, read its 402, and return what the top-up would take. Nothing is paid.

        An ordinary call that a prepaid balance would serve is not made: a top-up with it would buy nothing.
        """
        context = self._context
        merchant = context.config.merchant(goal.origin)
        request, is_call = request_of(merchant, goal)
        if is_call and (
            served := self._agent.prepaid_calls.quote(self._served_request(app_id, merchant, request))
        ):
            return served
        reply = await self._call(merchant, request, {}, merchant.timeout_s)
        _require_offer(reply)
        if 200 <= reply.status < 300:
            if is_call:
                await self._agent.prepaid_calls.record_call(self._served_request(app_id, merchant, request))
            raise _sells_none()
        part = TopupPart(
            context.ports.new_id("top"), 1, goal.unit, is_call, merchant.topup_per_day_lovelace, goal.units
        )
        payment_request = self._payment_request(app_id, merchant, request, reply, part)
        quote = await self._agent.quote(payment_request)
        count = -(-goal.units // gained_by(goal.unit, quote.invoice))
        if count > 1 and quote.refusal is None:
            quote = await self._agent.quote(payment_request, count)
        buyer = buyer_of(context, merchant)
        pool = pools.find_pool(context.conn, merchant.origin, buyer.partner, buyer.wallet)
        under_way = None if pool is None else topups.open_of(context.conn, pool.id)
        return TopupPlan(goal, quote, count, None if under_way is None else under_way.id)

    async def cancel(self, topup_id: str, by_app: str) -> TopupRow:
        """Buy nothing more for a top-up. It ends at once, or when its last payment is delivered.

        Refused: `not_found`; `wrong_state` if it has ended.
        """
        context = self._context
        why = Refused("topup_stopped/cancelled", "an operator cancelled it")

        def job(unit: Unit) -> None:
            if (row := topups.find(unit.conn, topup_id)) is None or row.ended_at_ms is not None:
                raise Refused("wrong_state", "the top-up has already ended")
            stop(unit, context, row, why, by_app)

        topup = self.find(topup_id)
        await context.write("topup_stop", job)
        self._go_on(topup)
        return self.find(topup_id)

    def find(self, topup_id: str) -> TopupRow:
        if (row := topups.find(self._context.conn, topup_id)) is None:
            raise Refused("not_found", f"there is no top-up {topup_id[:80]!r}")
        return row

    async def wait(self, topup_id: str, timeout_s: float) -> TopupRow:
        """The top-up once something has happened to it or the time is up; at once if it has ended."""
        if self.find(topup_id).ended_at_ms is None:
            await self._context.changes.wait(topup_id, timeout_s)
        return self.find(topup_id)

    async def run_once(self) -> None:
        """Take one step for each open top-up that is due, and open automatic ones where a balance is low.

        A slow merchant delays only its own top-ups: their step runs on beside the next runs.
        """
        for merchant in self._context.config.merchants.values():
            if merchant.auto_topup is not None:
                await open_where_low(self._context, merchant, merchant.auto_topup)
        now_ms = self._context.ports.clock.now_ms()
        for row in topups.all_open(self._context.conn, self._context.config.account):
            if self._wait_of(row).is_over(now_ms) and row.id not in self._steps:
                self._steps[row.id] = asyncio.create_task(self._take_step(row), name=f"top up {row.id}")
        if self._steps:
            await asyncio.wait(self._steps.values(), timeout=STEP_S)
        self._steps = {name: step for name, step in self._steps.items() if not step.done()}

    # --- one step

    async def _take_step(self, topup: TopupRow) -> None:
        """Take a step. If it raises, the top-up stays open and its next step is due later."""
        try:
            await self._step_or_end(topup)
        except Refused as refused:
            self._put_off(topup, refused)
        except Exception as error:
            log.warning("topup.step_failed", topup=topup.id, error=repr(error), exc_info=True)
            self._put_off(topup, Refused("internal_error", repr(error)))

    async def _step_or_end(self, topup: TopupRow) -> None:
        try:
            await self._step(topup)
        except Refused as refused:
            if refused.code in LATER or self._is_to_be_signed(topup):
                self._context.metrics.refusals[refused.code] += 1
                raise
            await self._break_off(topup, refused)

    def _is_to_be_signed(self, topup: TopupRow) -> bool:
        """Whether its last payment is admitted, and will be signed or rejected whatever this refusal is.

        Until then the top-up's total is not known.
        """
        last = next(reversed(payments.payments_of_topup(self._context.conn, topup.id)), None)
        return last is not None and last.state is State.RESERVED and not last.invoice.merchant_submits

    async def _step(self, topup: TopupRow) -> None:
        """Reload, decide, do one thing."""
        context = self._context
        rows = payments.payments_of_topup(context.conn, topup.id)
        last = context.as_noted(rows[-1]) if rows else None
        now_ms = context.ports.clock.now_ms()
        is_over = self._is_over(topup, now_ms)
        if last is not None and last.state in _ENDS_TOPUP:
            name, detail = _ENDS_TOPUP[last.state]
            await self._break_off(topup, Refused(last.problem.name or name, last.problem.detail or detail))
            return
        if last is not None and last.state not in NEVER_SIGNED and last.delivery is not Delivery.ACCEPTED:
            # if the merchant submits, `_buy` pays again, which signs it
            if not (last.state is State.RESERVED and last.invoice.merchant_submits):
                await self._present_last_proof(topup, last, is_over and self._is_proof_given_up(last, now_ms))
                return
            if topup.stop_code is not None:  # no request will come, so it is never signed and will be rejected
                return
        elif bought(topup, rows) >= topup.units:
            await self._end(topup, None)
            return
        if topup.stop_problem is not None:
            raise Refused(topup.stop_problem, topup.stop_detail or "")
        if is_over:
            self._give_up(topup, "it was not done in a day")
        expired = takewhile(lambda row: row.problem.code == "invoice_expired", reversed(rows))
        if sum(1 for _ in expired) >= EXPIRED_MAX:
            raise Refused(
                "topup_stopped/request_refused", f"none of its last {EXPIRED_MAX} invoices could be paid in time"
            )
        await self._buy(topup, sum(row.delivery is Delivery.ACCEPTED for row in rows) + 1, now_ms)

    def _is_proof_given_up(self, row: PaymentRow, now_ms: int) -> bool:
        """Whether the payment was signed so long ago that its proof is given up, or was never signed."""
        history = events.events(self._context.conn, row.id)
        signed_ms = max((one.at_ms for one in history if one.event == Event.SIGN), default=None)
        return signed_ms is None or now_ms - signed_ms > PATIENCE_MS

    async def _present_last_proof(self, topup: TopupRow, last: PaymentRow, is_over: bool) -> None:
        """Present the proof of the last payment, as long as the top-up lives."""
        try:
            await self._present_proof(topup, last)
        except Refused as refused:  # a paid proof is not given up: the cause may pass or be fixed
            self._context.metrics.refusals[refused.code] += 1
            self._put_off(topup, refused)
        if is_over and self._context.payment(last.id).delivery is not Delivery.ACCEPTED:
            self._give_up(topup, "its last payment was not delivered")

    def _is_over(self, topup: TopupRow, now_ms: int) -> bool:
        """Whether a day has passed by our clock, if the chain or the limits' clock confirms it.

        If our clock is behind the start, only the limits' clock decides.
        """
        passed_ms = now_ms - topup.created_at_ms
        counted_ms = self._context.admission.rules.clock_ms(self._context.conn, now_ms) - topup.clock_ms
        if passed_ms < 0:
            return counted_ms > PATIENCE_MS
        is_borne_out = counted_ms > PATIENCE_MS or self._context.chain.is_ready(now_ms)
        return passed_ms > PATIENCE_MS and is_borne_out

    async def _buy(self, topup: TopupRow, number: int, now_ms: int) -> None:
        """Make the request and pay its 402."""
        context = self._context
        pool = pools.pool(context.conn, topup.pool_id)
        merchant = self._merchant_for(pool)
        pauses.require_running(context.conn)
        # checked first: a clock that is ahead would end the app's token, and so the top-up
        context.chain.require_ready(now_ms)
        require_may_buy(context.conn, topup, now_ms)
        under_way = pools.batch_under_way(context.conn, pool.id, now_ms)
        if under_way is not None and context.payment(under_way).prepaid.topup_id != topup.id:
            raise Refused("batch_in_progress", "a call buys a batch for the same balance")
        request = load_request(topup.request)
        reply = await self._call(merchant, request, {}, merchant.timeout_s)
        _require_offer(reply)
        if 200 <= reply.status < 300:
            await self._end(topup, _sells_none(), self._served_request(topup.app_id, merchant, request))
            return
        part = part_of(topup, number, merchant.topup_per_day_lovelace)
        row, _ = await self._agent.pay(self._payment_request(topup.app_id, merchant, request, reply, part))
        log.info("topup.payment", topup=topup.id, payment=row.id)
        self._go_on(topup)

    async def _present_proof(self, topup: TopupRow, row: PaymentRow) -> None:
        """Drive `core.pay_and_retry` by one answer, once the proof is ready. After a restart it begins anew."""
        context = self._context
        merchant = self._merchant_for(pools.pool(context.conn, row.prepaid.pool_id or topup.pool_id))
        if not context.is_ready(row):
            return
        steps = self._proofs.pop(topup.id, None) or present_proof()
        next(steps)
        step = steps.send(row.attempt.tx_id)
        poll_query = step.poll_query if isinstance(step, Present) else None
        depth, request = context.depth(row), load_request(topup.request)
        proof = retry_headers(row, merchant, context.wallet_address(row))
        if poll_query is not None:
            request, proof = request.with_query(poll_query), {}
        try:
            reply = await self._call(merchant, request, proof, max(merchant.timeout_s, PROOF_PATIENCE_S))
        except Refused:  # `_put_off` waits longer than this step: a top-up has a day
            steps.send(None)
            self._proofs[topup.id] = steps
            raise
        response = parse_answer(reply.status, reply.headers, reply.body or b"")
        row, said = await self._agent.deliveries.take_answer(
            row.id, response, shown_depth=depth, is_delivered=True
        )
        step = steps.send(said)
        if isinstance(step, Wait):
            now_ms = context.ports.clock.now_ms()
            self._waits[topup.id] = _Wait(now_ms, now_ms + int(step.seconds * 1000), 0, said.reason)
            self._proofs[topup.id] = steps
        elif step is End.SERVED:
            self._go_on(topup)
        elif said.verdict is RetryVerdict.USED_UP:
            await self._agent.deliveries.record_used_up(row.id)
            self._go_on(topup)
        elif row.state not in WITHOUT_PROOF:  # it is paid: present the proof again, as long as the top-up lives
            why = f"the merchant says of {row.id}: {said.reason}"
            self._put_off(topup, Refused("not_served_yet", why, payment=row.id))

    async def _break_off(self, topup: TopupRow, why: Refused) -> None:
        """End the top-up before its goal is reached, whatever the reason.

        A code in `LATER` passes by itself only where it refuses something new, not where it ended a payment.
        """
        self._context.metrics.refusals[why.code] += 1
        await self._end(topup, why)

    async def _end(self, topup: TopupRow, why: Refused | None, served: ServedRequest | None = None) -> None:
        """End the top-up, and count what its last request used of the balance."""
        context = self._context

        def job(unit: Unit, now_ms: int) -> None:
            if served is not None and topup.is_call:
                prepaid.used(unit, served, context.admission.rules.clock_ms(unit.conn, now_ms), now_ms)
            end(unit, context, topup, why, now_ms)

        await context.write_at("topup_end", job)
        if why is None:
            log.info("topup.done", topup=topup.id)
        else:
            log.warning(
                "topup.stopped",
                topup=topup.id,
                trigger=topup.trigger,
                code=why.code,
                reason=why.reason,
                why=why.detail,
            )
        self._go_on(topup)

    def _go_on(self, topup: TopupRow) -> None:
        """Mark progress: the next step is due."""
        self._waits.pop(topup.id, None)
        self._proofs.pop(topup.id, None)
        self._context.changes.notify(topup.id)

    def _give_up(self, topup: TopupRow, why: str) -> None:
        raise Refused("topup_stopped/timed_out", self._wait_of(topup).trouble or why)

    def _put_off(self, topup: TopupRow, why: Refused) -> None:
        failures = self._wait_of(topup).failures + 1
        delay_ms = backoff(BACKOFF_FIRST_MS, BACKOFF_MAX_MS, failures)
        now_ms, trouble = self._context.ports.clock.now_ms(), str(why)
        self._waits[topup.id] = _Wait(now_ms, now_ms + delay_ms, failures, trouble)
        log.info("topup.put_off", topup=topup.id, code=why.code, why=why.detail, again_after_ms=delay_ms)

    def _wait_of(self, topup: TopupRow) -> _Wait:
        return self._waits.get(topup.id, _Wait())

    # --- what the steps share

    def _merchant_for(self, pool: Pool) -> MerchantConfig:
        """The merchant as configured now, but for the partner that the top-up was opened for."""
        return replace(self._context.config.merchant(pool.origin), partner=pool.partner or None)

    async def _call(
        self, merchant: MerchantConfig, request: TopupSource, proof: dict[str, str], timeout_s: int
    ) -> MerchantReply:
        """Send the request with the headers that name the balance's owner."""
        return await self._merchants.call(
            merchant.origin + request.path,
            request.method,
            body=request.body.encode(),
            headers=self._headers(merchant, request) | proof,
            timeout_s=timeout_s,
        )

    def _headers(self, merchant: MerchantConfig, request: TopupSource) -> dict[str, str]:
        own = self._context.public_address
        content_type = {"Content-Type": "application/json"} if request.body else {}
        return {"X-Wallet-Address": own} | merchant.buyer_headers(own) | content_type

    def _payment_request(
        self, app_id: str, merchant: MerchantConfig, request: TopupSource, reply: MerchantReply, part: TopupPart
    ) -> PaymentRequest:
        if reply.body is None:
            raise Refused("body_too_big", "the 402's body is too long to read")
        headers = {name.lower(): value for name, value in self._headers(merchant, request).items()}
        body_sha256 = hashlib.sha256(request.body.encode()).hexdigest()
        return PaymentRequest(
            app_id=app_id,
            origin=merchant.origin,
            response=parse_response(reply.status, reply.headers, reply.body),
            received=reply.record(),
            request=MerchantRequest(request.method, request.path, body_sha256, headers),
            buyer=buyer_of(self._context, merchant),
            topup=part,
        )

    def _served_request(self, app_id: str, merchant: MerchantConfig, request: TopupSource) -> ServedRequest:
        path = request.path.partition("?")[0]
        return ServedRequest(
            app_id, merchant.origin, buyer_of(self._context, merchant), request.method, path, None
        )


def _require_offer(reply: MerchantReply) -> None:
    """Refuse an answer that neither serves the request nor is a 402."""
    if reply.status == 402 or 200 <= reply.status < 300:
        return
    answer = parse_answer(reply.status, reply.headers, reply.body or b"")
    if wants_wallet_address(answer):
        raise Refused("wallet_address_required", "the merchant got the wallet's address and asks for it again")
    if may_pass(reply.status):
        raise Refused("merchant_unreachable", f"it answered {reply.status}")
    raise Refused("topup_stopped/request_refused", f"it answered {reply.status}: {str(answer.body)[:200]!a}")


def _sells_none() -> Refused:
    return Refused("topup_stopped/nothing_sold", "it served the request without asking for money")
