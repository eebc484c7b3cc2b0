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
from payagent.core.aggregate import PaymentRow
from payagent.core.cost_headers import paid_headers
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
    as_object,
    read_payment_required,
    read_response,
)
from payagent.proxy.request import ProxyRequest
from payagent.proxy.shielded_tasks import ShieldedTasks, log_failure
from payagent.proxy.single_flight import Flight, SharedPayment, SingleFlight, Turn
from payagent.proxy.unpaid_call import UnpaidCalls

_LOST = ("merchant_unreachable", "merchant_timeout", "merchant_in_private_network")
_WAIT_S = 30.0
_REQUEST_AGAIN_S = 0.2
"""The pause before a request is sent again after a batch: if the clock was set back, its 402 seems old too."""

_SILENT_S = 15.0
"""After so long without an answer the proof counts as presented: no connection takes longer to make."""

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

    `payment_required` is its new 402, if there is one. `refused` is for the client if no other payment is opened.
    """

    refused: Refused
    payment_required: PaymentRequired | None


class ProxyPayer:
    """Serves proxy requests; the daemon has one."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._context = agent.context
        self._single_flight = SingleFlight()
        self._steps = ShieldedTasks()
        self._unpaid_calls = UnpaidCalls(agent, self._steps)

    async def run(self, exchange: Exchange) -> None:
        """Serve the request. Raises `Refused` only before any part of an answer was sent."""
        if (
            exchange.request.dry_run
            and (prepaid := self._unpaid_calls.prepaid_quote(exchange.request)) is not None
        ):
            exchange.client_body.close()
            await exchange.reply.json(PrepaidQuoteAnswer.of(prepaid, self._context.config))
            return
        payment_required = await self._unpaid_calls.send(exchange, exchange.client_body)
        if payment_required is None:
            return
        payment_request = self._unpaid_calls.payment_request(exchange, payment_required)
        if exchange.request.dry_run:
            quote = await self._agent.quote(payment_request)
            exchange.client_body.close()
            await exchange.reply.json(Quote.of(quote, self._context.config))
            return
        exchange.start_clock()
        with self._single_flight.join(
            (payment_request.app_id, payment_request.key(None), payment_request.fingerprint)
        ) as flight:
            await self._buy(exchange, flight, payment_required)

    async def _buy(self, exchange: Exchange, flight: Flight, payment_required: PaymentRequired | None) -> None:
        """Pay, or share the payment of an identical request, until the client has its answer."""
        past = flight.shared if flight.shared is not None and flight.shared.is_over else None
        used_up: UsedUp | None = None
        while True:
            turn = await flight.take_turn(exchange.left_s)
            try:
                shared = flight.shared
                if shared is None or shared is past:
                    payment_required = payment_required or await self._unpaid_calls.send(
                        exchange, exchange.client_body.buffer
                    )
                    if payment_required is None:
                        return
                    paid = await self._pay_unless_batch(exchange, shared, payment_required)
                    if paid is None:
                        payment_required = None
                        continue
                    if used_up is not None and past is not None and paid.id == past.id:
                        raise used_up.refused
                    flight.shared = shared = paid
                if shared.is_served:
                    turn.release()
                used_up = await self._retry(exchange, shared, turn)
                if used_up is None:
                    return
                past, payment_required = shared, used_up.payment_required
            finally:
                turn.release()

    async def _pay_unless_batch(
        self, exchange: Exchange, before: SharedPayment | None, payment_required: PaymentRequired
    ) -> SharedPayment | None:
        """Pay. Returns None if another request was buying a batch, which may serve this one: start again."""
        try:
            return await self._pay(exchange, before, payment_required)
        except Refused as refused:
            if refused.code != "batch_in_progress" or exchange.left_s <= 0:
                raise
        origin, buyer = exchange.request.merchant.origin, self._unpaid_calls.buyer(exchange.request)
        await self._agent.prepaid_calls.wait_for_batch(origin, buyer, exchange.left_s)
        await asyncio.sleep(_REQUEST_AGAIN_S)
        return None

    async def _pay(
        self, exchange: Exchange, before: SharedPayment | None, payment_required: PaymentRequired
    ) -> SharedPayment:
        """Open the intent, or find the open one. An intent is over once its answer is delivered."""
        if before is not None:
            await before.decided(exchange.left_s)
        payment_request = self._unpaid_calls.payment_request(exchange, payment_required)

        async def pay() -> tuple[PaymentRow, bool]:
            exchange.request.require_valid_token()
            return await self._agent.pay(payment_request)

        row, _ = await self._steps.run_to_end(pay())
        log.info("proxy.payment", payment=row.id)
        return before if before is not None and before.id == row.id else SharedPayment(row.id)

    async def _retry(self, exchange: Exchange, shared: SharedPayment, turn: Turn) -> UsedUp | None:
        """Send the proof, and again while the merchant may still accept it. None: the client has its answer."""
        row = await self._until_ready(exchange, self._context.payment(shared.id))
        proof = Proof(row, self._proof_headers(exchange.request, row), self._context.depth(row))
        while True:
            after_s, used_up = await self._retry_once(exchange, shared, turn, proof)
            if after_s is None:
                return used_up
            if after_s >= exchange.left_s or not await self._may_retry(exchange, proof, after_s):
                await self._give_up(exchange, proof)
                return None

    async def _may_retry(self, exchange: Exchange, proof: Proof, after_s: float) -> bool:
        """Wait until the proof may be sent again; False if the time does not suffice."""
        await asyncio.sleep(after_s)
        try:
            row = await self._until_ready(exchange, self._context.payment(proof.row.id))
        except Refused as refused:
            if refused.code == "not_served_yet":
                return False
            raise
        if row.attempt.tx_id != proof.row.attempt.tx_id:
            proof.headers, proof.poll = self._proof_headers(exchange.request, row), None
        proof.row, proof.depth = row, self._context.depth(row)
        return True

    async def _retry_once(
        self, exchange: Exchange, shared: SharedPayment, turn: Turn, proof: Proof
    ) -> tuple[float | None, UsedUp | None]:
        """Send the proof once. Returns (seconds until the next retry, used-up proof).

        The seconds are None if the client has its answer or the proof is used up.
        """
        silence = asyncio.get_running_loop().call_later(_SILENT_S, self._note_silence, shared)
        try:
            async with exchange.upstream.call(
                exchange.call(exchange.client_body.buffer, proof.headers, proof.poll)
            ) as answer:
                silence.cancel()
                response = await _read_answer(answer, proof)
                proof.row, advice = await self._steps.run_to_end(
                    self._agent.deliveries.take_answer(
                        shared.id, response, shown_depth=proof.depth, has_served=shared.is_served
                    )
                )
                if advice.answer.verdict is RetryVerdict.SERVED:
                    turn.release()
                    await self._deliver(exchange, shared, answer, proof.row)
                    return None, None
                is_used_up = proof.poll is None and _is_used_up(advice, shared)
                if advice.again_after_s is None and answer.status != 402 and not is_used_up:
                    await exchange.reply.stream(answer, exchange.client_body.close, _payment_headers(proof.row))
                    return None, None
                proof.last, proof.reason = await _buffered(answer), advice.answer.reason
                if is_used_up:
                    return None, _used_up(proof, advice.answer.verdict, self._context.ports.clock.now_ms())
                if advice.again_after_s is None:
                    raise _paid_not_served(proof)
                proof.poll = advice.answer.poll_query
                return advice.again_after_s, None
        except (Refused, AnswerBrokenError) as error:
            if exchange.reply.has_started or (isinstance(error, Refused) and error.code not in _LOST):
                raise
            log.info("proxy.retry_lost", payment=shared.id, reason=str(error))
            if not (isinstance(error, Refused) and error.context.get("sent") is False):
                await self._steps.run_to_end(self._agent.deliveries.record_unanswered(shared.id, str(error)))
            proof.lost_count += 1
            return again_after_s(proof.lost_count), None
        finally:
            silence.cancel()

    def _note_silence(self, shared: SharedPayment) -> None:
        step = self._steps.start(
            self._agent.deliveries.record_unanswered(shared.id, f"nothing came in {_SILENT_S:g} s")
        )
        step.add_done_callback(log_failure)

    async def _deliver(
        self, exchange: Exchange, shared: SharedPayment, answer: UpstreamAnswer, row: PaymentRow
    ) -> None:
        """Forward a paid answer. It counts as delivered once its last byte was sent."""

        def before_end() -> None:
            exchange.client_body.close()
            shared.is_over = True

        with shared.serving():
            await exchange.reply.stream(answer, before_end, _payment_headers(row))
            await self._steps.run_to_end(self._agent.deliveries.record_delivery(shared.id, answer.status))
            shared.delivered()

    async def _until_ready(self, exchange: Exchange, row: PaymentRow) -> PaymentRow:
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
            if exchange.left_s <= 0:
                raise _not_served(row)
            row = await self._context.wait(row.id, min(exchange.left_s, _WAIT_S))
        return row

    async def _give_up(self, exchange: Exchange, proof: Proof) -> None:
        """Answer when time is up: with the merchant's last answer, unless that asks for money again."""
        if proof.last is None:
            raise _not_served(proof.row)
        if proof.last.status == 402:
            raise _paid_not_served(proof)
        exchange.client_body.close()
        await exchange.reply.send_buffered(proof.last, _payment_headers(proof.row))

    def _proof_headers(self, request: ProxyRequest, row: PaymentRow) -> Headers:
        """Return the headers of the retry.

        They name the same buyer as the first request, because an invoice is bound to it. If an earlier request
        bought a batch for another balance, they name that balance's owner.
        """
        texts = retry_headers(row, request.merchant, self._context.config.own.text)
        proof = [(name.lower().encode(), value.encode()) for name, value in texts.items()]
        if row.prepaid.partner is not None and self._unpaid_calls.buyer(request) != Buyer(
            row.prepaid.partner, row.prepaid.wallet or ""
        ):
            return replaced([pair for pair in request.headers if pair[0] not in BUYER], proof)
        first_names = {key for key, _ in request.headers}
        proof = [pair for pair in proof if pair[0] not in BUYER or pair[0] in first_names]
        return replaced(request.headers, proof, unless=BUYER)


def _payment_headers(row: PaymentRow) -> Headers:
    """The X-Payagent headers of a paid answer."""
    paid = [(output.asset, output.units) for output in row.outputs]
    texts = paid_headers(row.id, paid, row.attempt.fee_lovelace or 0, str(row.state))
    return [(name.lower().encode(), value.encode("ascii")) for name, value in texts.items()]


def _is_used_up(advice: Advice, shared: SharedPayment) -> bool:
    """Whether the payment served another request and the merchant wants a new payment for this one.

    Until it has served a request here there is no reason to pay again, whatever the merchant says.
    """
    return shared.is_served and advice.answer.verdict in (RetryVerdict.USED_UP, RetryVerdict.INVOICED)


def _not_served(row: PaymentRow) -> Refused:
    return Refused(
        "not_served_yet", f"{row.id} is {row.state}; the merchant has not served the call", payment=row.id
    )


def _paid_not_served(proof: Proof) -> Refused:
    """The refusal for a client whose paid request got a 402.

    The merchant's answer is attached as a field, so no wallet can take it for a 402.
    """
    row, last = proof.row, proof.last
    merchant_answer = None if last is None else as_object(last.status, last.headers, last.body)
    name, detail = "paid_not_served", f"{row.id} is {row.state}; the merchant says to its proof: {proof.reason}"
    if row.state in WITHOUT_PROOF:
        ended = "payment_ended" if row.state in ENDED_WITHOUT_PAYING else "payment_void/merchant_refused"
        name, detail = row.problem.name or ended, row.problem.detail or "it ended without paying"
    return Refused(name, detail, payment=row.id, merchant_answer=merchant_answer)


async def _read_answer(answer: UpstreamAnswer, proof: Proof) -> HttpResponse:
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


async def _buffered(answer: UpstreamAnswer) -> BufferedAnswer | None:
    """Return the complete answer, or None if it is too long to keep."""
    body = await answer.peek(BODY_MAX_BYTES)
    return None if body is None else BufferedAnswer(answer.status, answer.headers, body)


def _used_up(proof: Proof, verdict: RetryVerdict, now_ms: int) -> UsedUp:
    last, payment_required = proof.last, None
    if last is not None and verdict is RetryVerdict.INVOICED:
        with suppress(CodingError, Refused):  # on failure the request is sent again
            payment_required = read_payment_required(last.status, last.headers, last.body, now_ms)
    return UsedUp(_paid_not_served(proof), payment_required)
