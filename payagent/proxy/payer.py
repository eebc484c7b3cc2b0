"""Serve one proxy request: send it to the merchant, pay a 402, and retry with the proof.

Start with `ProxyPayer.run`. A merchant's 402 reaches the client as a problem, never as a 402 that asks for
payment. A client that only changed its base URL has no code for a 402. The problem's status and code tell it why:
the 402 was not understood, a limit refuses it, or money is missing. A client that has such code would pay a second
time after our payment (`paid_not_served`).
May import: core, dialects, agent, store.rows, api.models, the rest of proxy.
Never: decides whether to pay; pays again because a proof was not accepted; forwards a merchant's 402.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import structlog

from payagent.agent.agent import Agent
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.prepaid import Buyer
from payagent.agent.base.requests import Advice
from payagent.api.models.payments import Quote
from payagent.api.models.prepaid import PrepaidQuoteAnswer
from payagent.core.cost_headers import cost_text
from payagent.core.payment import ENDED_WITHOUT_PAYING, UNSIGNED, WITHOUT_PROOF, State, is_served
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import HttpResponse, RetryVerdict
from payagent.proxy.client_reply import BufferedAnswer
from payagent.proxy.exchange import Exchange
from payagent.proxy.headers import BUYER, Headers, replaced, values
from payagent.proxy.http1 import AnswerBrokenError, UpstreamAnswer
from payagent.proxy.payment_required import (
    BODY_MAX_BYTES,
    READABLE,
    CodingError,
    PaymentRequired,
    as_told,
    read_demand,
    read_response,
)
from payagent.proxy.request import ProxyRequest
from payagent.proxy.shielded_tasks import ShieldedTasks, tell_log
from payagent.proxy.single_flight import Flight, SharedPayment, SingleFlight, Turn
from payagent.proxy.unpaid_call import UnpaidCalls
from payagent.store.rows.payments import PaymentRow

_LOST = ("merchant_unreachable", "merchant_timeout", "merchant_in_private_network")
_WAIT_S = 30.0
_ASK_AGAIN_S = 0.2
"""The pause before a batch is requested again: after a clock was set back the next 402 seems old as well."""

_SILENT_S = 15.0
"""After so long without an answer the proof counts as shown: no connection takes longer to make."""

log = structlog.get_logger("payagent.proxy")


@dataclass(slots=True)
class Proof:
    """The proof of a payment and the course of its retries.

    `depth`: the transaction's depth when the proof was sent. `poll`: a query to send next time instead of the
    retry. `last`: the merchant's last answer. `reason`: the merchant's reason in it.
    """

    row: PaymentRow
    headers: Headers
    depth: int
    poll: str | None = None
    lost_count: int = 0
    last: BufferedAnswer | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UsedUp:
    """The merchant says that the proof is used up by another request.

    `demand` is its new invoice, if there is one. `refused` is for the client if no other payment is opened.
    """

    refused: Refused
    demand: PaymentRequired | None


class ProxyPayer:
    """Serves proxy requests; the daemon has one."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._context = agent.context
        self._flights = SingleFlight()
        self._steps = ShieldedTasks()
        self._first = UnpaidCalls(agent, self._steps)

    async def run(self, trip: Exchange) -> None:
        """Serve the request. Raises `Refused` only before any part of an answer was sent."""
        if trip.errand.dry_run and (prepaid := self._first.prepaid_quote(trip.errand)) is not None:
            trip.intake.close()
            await trip.reply.json(PrepaidQuoteAnswer.of(prepaid, self._context.terms))
            return
        demand = await self._first.demand_of(trip, trip.intake)
        if demand is None:
            return
        ask = self._first.ask_of(trip.errand, trip.intake.spool.sha256, demand)
        if trip.errand.dry_run:
            quote = await self._agent.quote(ask)
            trip.intake.close()
            await trip.reply.json(Quote.of(quote, self._context.terms))
            return
        trip.start_clock()
        with self._flights.join((ask.app_id, ask.key(None), ask.fingerprint)) as flight:
            await self._buy(trip, flight, demand)

    async def _buy(self, trip: Exchange, flight: Flight, demand: PaymentRequired | None) -> None:
        """Pay, or share the payment of an identical request, until the client has its answer."""
        past = flight.purchase if flight.purchase is not None and flight.purchase.is_over else None
        used_up: UsedUp | None = None
        while True:
            turn = await flight.take_turn(trip.left_s)
            try:
                purchase = flight.purchase
                if purchase is None or purchase is past:
                    demand = demand or await self._first.demand_of(trip, trip.intake.spool)
                    if demand is None:
                        return
                    bought = await self._pay_unless_batch(trip, purchase, demand)
                    if bought is None:
                        demand = None
                        continue
                    if used_up is not None and past is not None and bought.id == past.id:
                        raise used_up.refused
                    flight.purchase = purchase = bought
                if purchase.is_served:
                    turn.release()
                used_up = await self._show(trip, purchase, turn)
                if used_up is None:
                    return
                past, demand = purchase, used_up.demand
            finally:
                turn.release()

    async def _pay_unless_batch(
        self, trip: Exchange, before: SharedPayment | None, demand: PaymentRequired
    ) -> SharedPayment | None:
        """Pay. Returns None if another request was buying a batch, which may serve this one: start again."""
        try:
            return await self._pay(trip, before, demand)
        except Refused as refused:
            if refused.code != "batch_in_progress" or trip.left_s <= 0:
                raise
        origin, buyer = trip.errand.merchant.origin, self._first.buyer(trip.errand)
        await self._agent.prepaid_calls.wait_for_batch(origin, buyer, trip.left_s)
        await asyncio.sleep(_ASK_AGAIN_S)
        return None

    async def _pay(self, trip: Exchange, before: SharedPayment | None, demand: PaymentRequired) -> SharedPayment:
        """Open the intent, or find the open one. An intent is over once its answer is delivered."""
        if before is not None:
            await before.decided(trip.left_s)
        ask = self._first.ask_of(trip.errand, trip.intake.spool.sha256, demand)

        async def pay() -> tuple[PaymentRow, bool]:
            trip.errand.require_let_in()
            return await self._agent.pay(ask)

        row, _ = await self._steps.to_its_end(pay())
        log.info("proxy.payment", payment=row.id)
        return before if before is not None and before.id == row.id else SharedPayment(row.id)

    async def _show(self, trip: Exchange, purchase: SharedPayment, turn: Turn) -> UsedUp | None:
        """Send the proof, and again while the merchant may still accept it. None: the client has its answer."""
        row = await self._until_ready(trip, self._context.payment(purchase.id))
        proof = Proof(row, self._proof_headers(trip.errand, row), self._context.depth(row))
        while True:
            after_s, used_up = await self._show_once(trip, purchase, turn, proof)
            if after_s is None:
                return used_up
            if after_s >= trip.left_s or not await self._may_show_again(trip, proof, after_s):
                await self._give_up(trip, proof)
                return None

    async def _may_show_again(self, trip: Exchange, proof: Proof, after_s: float) -> bool:
        """Wait until the proof may be sent again; False if the time does not suffice."""
        await asyncio.sleep(after_s)
        try:
            row = await self._until_ready(trip, self._context.payment(proof.row.id))
        except Refused as refused:
            if refused.code == "not_served_yet":
                return False
            raise
        if row.attempt.tx_id != proof.row.attempt.tx_id:
            proof.headers, proof.poll = self._proof_headers(trip.errand, row), None
        proof.row, proof.depth = row, self._context.depth(row)
        return True

    async def _show_once(
        self, trip: Exchange, purchase: SharedPayment, turn: Turn, proof: Proof
    ) -> tuple[float | None, UsedUp | None]:
        """Send the proof once. Returns (seconds until the next retry, used-up proof).

        The seconds are None if the client has its answer or the proof is used up.
        """
        silence = asyncio.get_running_loop().call_later(_SILENT_S, self._note_silence, purchase)
        try:
            async with trip.upstream.call(trip.call(trip.intake.spool, proof.headers, proof.poll)) as answer:
                silence.cancel()
                response = await _hear(answer, proof)
                proof.row, advice = await self._steps.to_its_end(
                    self._agent.deliveries.take_answer(
                        purchase.id, response, shown_depth=proof.depth, has_served=purchase.is_served
                    )
                )
                if advice.answer.said is RetryVerdict.SERVED:
                    turn.release()
                    await self._deliver(trip, purchase, answer, proof.row)
                    return None, None
                is_used_up = proof.poll is None and _is_used_up(advice, purchase)
                if advice.again_after_s is None and answer.status != 402 and not is_used_up:
                    await trip.reply.stream(answer, trip.intake.close, _marks(proof.row))
                    return None, None
                proof.last, proof.reason = await _keep(answer), advice.answer.reason
                if is_used_up:
                    return None, _used_up(proof, advice.answer.said, self._context.ports.clock.now_ms())
                if advice.again_after_s is None:
                    raise _paid_not_served(proof)
                proof.poll = advice.answer.poll_query
                return advice.again_after_s, None
        except (Refused, AnswerBrokenError) as lost:
            if trip.reply.has_started or (isinstance(lost, Refused) and lost.code not in _LOST):
                raise
            log.info("proxy.retry_lost", payment=purchase.id, reason=str(lost))
            if not (isinstance(lost, Refused) and lost.context.get("sent") is False):
                await self._steps.to_its_end(self._agent.deliveries.record_unanswered(purchase.id, str(lost)))
            proof.lost_count += 1
            return again_after_s(proof.lost_count), None
        finally:
            silence.cancel()

    def _note_silence(self, purchase: SharedPayment) -> None:
        step = self._steps.start(
            self._agent.deliveries.record_unanswered(purchase.id, f"nothing came in {_SILENT_S:g} s")
        )
        step.add_done_callback(tell_log)

    async def _deliver(
        self, trip: Exchange, purchase: SharedPayment, answer: UpstreamAnswer, row: PaymentRow
    ) -> None:
        """Forward a paid answer. It counts as delivered once its last byte was sent."""

        def last() -> None:
            trip.intake.close()
            purchase.is_over = True

        with purchase.serving():
            await trip.reply.stream(answer, last, _marks(row))
            await self._steps.to_its_end(self._agent.deliveries.record_delivery(purchase.id, answer.status))
            purchase.delivered()

    async def _until_ready(self, trip: Exchange, row: PaymentRow) -> PaymentRow:
        """Wait until the merchant can be expected to accept the proof."""
        while not self._context.is_ready(row):
            if row.state in ENDED_WITHOUT_PAYING:
                raise Refused(
                    row.problem.name or "payment_ended",
                    row.problem.detail or "it ended without paying",
                    payment=row.id,
                )
            if row.state is State.CANCELLING and row.problem.name is not None:
                raise Refused(row.problem.name, row.problem.detail or "it is being cancelled", payment=row.id)
            if row.state is State.AWAITING_APPROVAL:
                raise Refused("awaiting_approval", f"{row.id} waits for approval", payment=row.id)
            if row.state in UNSIGNED and self._context.is_paused:
                raise Refused("paused", f"{row.id} is {row.state}, and signing is paused", payment=row.id)
            if trip.left_s <= 0:
                raise _not_served(row)
            row = await self._context.wait(row.id, min(trip.left_s, _WAIT_S))
        return row

    async def _give_up(self, trip: Exchange, proof: Proof) -> None:
        """Answer when time is up: the merchant's last answer says most, unless it asks for money again."""
        if proof.last is None:
            raise _not_served(proof.row)
        if proof.last.status == 402:
            raise _paid_not_served(proof)
        trip.intake.close()
        await trip.reply.send_kept(proof.last, _marks(proof.row))

    def _proof_headers(self, errand: ProxyRequest, row: PaymentRow) -> Headers:
        """Return the headers of the retry.

        They name the same buyer as the first request, because an invoice is bound to it. If an earlier request
        bought a batch for another balance, they name that balance's owner.
        """
        said = retry_headers(row, errand.merchant, self._context.terms.own.text)
        proof = [(name.lower().encode(), value.encode()) for name, value in said.items()]
        if row.prepaid.partner is not None and self._first.buyer(errand) != Buyer(
            row.prepaid.partner, row.prepaid.wallet or ""
        ):
            return replaced([pair for pair in errand.headers if pair[0] not in BUYER], proof)
        first = {key for key, _ in errand.headers}
        proof = [pair for pair in proof if pair[0] not in BUYER or pair[0] in first]
        return replaced(errand.headers, proof, unless=BUYER)


def _marks(row: PaymentRow) -> Headers:
    """The X-Payagent headers of a paid answer."""
    cost = cost_text([(output.asset, output.units) for output in row.outputs], row.attempt.fee_lovelace or 0)
    marks = {"payment": row.id, "cost": cost, "state": str(row.state)}
    return [(f"x-payagent-{name}".encode(), value.encode("ascii")) for name, value in marks.items()]


def _is_used_up(advice: Advice, purchase: SharedPayment) -> bool:
    """Whether the payment served another request and the merchant wants a new payment for this one.

    Until it has served a request here there is no reason to pay again, whatever the merchant says.
    """
    return purchase.is_served and advice.answer.said in (RetryVerdict.USED_UP, RetryVerdict.INVOICED)


def _not_served(row: PaymentRow) -> Refused:
    return Refused(
        "not_served_yet", f"{row.id} is {row.state}; the merchant has not served the call", payment=row.id
    )


def _paid_not_served(proof: Proof) -> Refused:
    """The refusal for a client whose paid request got a 402.

    The merchant's answer is attached as a field, so no wallet can take it for a 402.
    """
    row, last = proof.row, proof.last
    told = None if last is None else as_told(last.status, last.headers, last.body)
    name, detail = "paid_not_served", f"{row.id} is {row.state}; the merchant says to its proof: {proof.reason}"
    if row.state in WITHOUT_PROOF:
        ended = "payment_ended" if row.state in ENDED_WITHOUT_PAYING else "payment_void/merchant_refused"
        name, detail = row.problem.name or ended, row.problem.detail or "it ended without paying"
    return Refused(name, detail, payment=row.id, merchant_answer=told)


async def _hear(answer: UpstreamAnswer, proof: Proof) -> HttpResponse:
    """Read a retry's answer before it is forwarded. The body of a served answer is not waited for."""
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in answer.headers}
    without_body = HttpResponse(answer.status, headers, "")
    is_later = answer.status == 202 and b"json" in b"".join(values(answer.headers, b"content-type"))
    if is_served(answer.status) and not is_later:
        return without_body
    raw = await answer.peek(BODY_MAX_BYTES)
    if raw is None:
        return without_body
    try:
        return read_response(answer.status, answer.headers, raw)
    except CodingError:
        proof.headers = replaced(proof.headers, [(b"accept-encoding", READABLE)])
        return without_body


async def _keep(answer: UpstreamAnswer) -> BufferedAnswer | None:
    """Return the complete answer, or None if it is too long to keep."""
    body = await answer.peek(BODY_MAX_BYTES)
    return None if body is None else BufferedAnswer(answer.status, answer.headers, body)


def _used_up(proof: Proof, said: RetryVerdict, now_ms: int) -> UsedUp:
    kept, demand = proof.last, None
    if kept is not None and said is RetryVerdict.INVOICED:
        with suppress(CodingError, Refused):  # on failure the request is sent again
            demand = read_demand(kept.status, kept.headers, kept.body, now_ms)
    return UsedUp(_paid_not_served(proof), demand)
