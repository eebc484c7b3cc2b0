"""Serve one proxy request: send it to the merchant, pay a 402, and retry with the proof.

Start with `ProxyPayer.run`. A merchant's 402 reaches the client as a problem, never as a 402 that asks for
payment. A client that only changed its base URL has no code for a 402. The problem's status and code tell it why:
the 402 was not understood, a limit refuses it, or money is missing. A client that has such code would pay a second
time after our payment (`paid_not_served`).
Never: decides whether to pay; pays again because a proof was not accepted; forwards a merchant's 402.
"""

import asyncio
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass

import structlog

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.prepaid import Buyer
from payagent.agent.fleet.fleet import Fleet
from payagent.api.models.payments import Quote
from payagent.api.models.prepaid import PrepaidQuoteAnswer
from payagent.core.aggregate import CHANNEL_CALL, PaymentRow
from payagent.core.cost_headers import paid_headers
from payagent.core.pay_and_retry import Answered, AwaitReady, End, Present, ProofResult, Wait, present_proof
from payagent.core.payment.machine import AWAITING_SIGNATURE, ENDED_WITHOUT_PAYING, WITHOUT_PROOF, State, is_served
from payagent.core.problems import Refused
from payagent.dialects import HttpResponse, RetryVerdict
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
from payagent.proxy.request_scope import Exchange
from payagent.proxy.shielded_tasks import ShieldedTasks, log_failure
from payagent.proxy.single_flight import Flight, SharedPayment, SingleFlight
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
    """A payment's proof and its merchant's last answer."""

    row: PaymentRow
    opened: AsyncExitStack
    more: Headers = ()  # headers that the next retry has too
    answer: UpstreamAnswer | None = None  # the last answer; one that is not whole only until a wait closes it
    said: Answered | None = None  # what it means


class ProxyPayer:
    """Serves proxy requests; the daemon has one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._context = fleet.context
        self._single_flight = SingleFlight()
        self._steps = ShieldedTasks()
        self._unpaid_calls = UnpaidCalls(fleet, self._steps)

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
            quote = await self._fleet.quote(payment_request)
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
        used_up: Proof | None = None
        while True:
            with await flight.take_turn(exchange.left_s) as turn:
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
                        raise _paid_not_served(used_up)
                    flight.shared = shared = paid
                if shared.is_served:
                    turn.close()
                used_up = await self._retry(exchange, shared, turn)
                if used_up is None:
                    return
                past, payment_required = shared, _new_402(used_up, self._context.ports.clock.now_ms())

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
        await self._fleet.prepaid_calls.wait_for_batch(origin, buyer, exchange.left_s)
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
            return await self._fleet.pay(payment_request)

        row, _ = await self._steps.run_to_end(pay())
        log.info("proxy.payment", payment=row.id)
        return before if before is not None and before.id == row.id else SharedPayment(row.id)

    async def _retry(self, exchange: Exchange, shared: SharedPayment, turn: ExitStack) -> Proof | None:
        """Drive `core.pay_and_retry`. Returns a used-up proof; None: the client has its answer."""
        steps = present_proof()
        result: ProofResult = None
        async with AsyncExitStack() as opened:
            proof = Proof(self._context.payment(shared.id), opened)
            while True:
                match steps.send(result):
                    case AwaitReady():
                        proof.row = row = await self._until_ready(exchange, self._context.payment(shared.id))
                        result = row.attempt.tx_id if self._context.is_ready(row) else None
                    case Present(poll_query):
                        result = await self._present(exchange, shared, turn, proof, poll_query)
                    case Wait(seconds):
                        await opened.aclose()
                        if proof.answer is not None and proof.answer.whole is None:
                            proof.answer = None
                        if not (result := seconds >= exchange.left_s):
                            await asyncio.sleep(seconds)
                    case End.USED_UP:
                        return proof
                    case end:
                        await self._ended(end, exchange, shared, proof)
                        return None

    async def _present(
        self, exchange: Exchange, shared: SharedPayment, turn: ExitStack, proof: Proof, poll_query: str | None
    ) -> Answered | None:
        """Send the proof once, and record the answer, which stays open."""
        silence = asyncio.get_running_loop().call_later(_SILENT_S, self._note_silence, shared)
        headers, depth = self._proof_headers(exchange.request, proof.row), self._context.depth(proof.row)
        headers = replaced(headers, proof.more)
        call = exchange.upstream.call(exchange.call(exchange.client_body.buffer, headers, poll_query))
        try:
            answer = await proof.opened.enter_async_context(call)
            silence.cancel()
            response = await _read_answer(answer, proof)
            proof.row, said = await self._steps.run_to_end(
                self._fleet.deliveries(shared.id).take_answer(
                    shared.id, response, shown_depth=depth, has_served=shared.is_served
                )
            )
            if said.verdict is RetryVerdict.SERVED:
                turn.close()
            else:
                await answer.peek(BODY_MAX_BYTES)
            proof.answer, proof.said = answer, said
            return said
        except (Refused, AnswerBrokenError) as error:
            if isinstance(error, Refused) and error.code not in _LOST:
                raise
            log.info("proxy.retry_lost", payment=shared.id, reason=str(error))
            is_sent = not (isinstance(error, Refused) and error.context.get("sent") is False)
            if is_sent or proof.row.kind == CHANNEL_CALL:  # whose voucher may pay another call
                await self._steps.run_to_end(
                    self._fleet.deliveries(shared.id).record_unanswered(shared.id, str(error))
                )
            return None
        finally:
            silence.cancel()

    async def _ended(self, end: End, exchange: Exchange, shared: SharedPayment, proof: Proof) -> None:
        """Give the client what the retries ended with."""
        if proof.answer is None:
            raise _not_served(proof.row)
        if end is End.UNSERVED:
            raise _paid_not_served(proof)
        if end is End.SERVED:
            await self._deliver(exchange, shared, proof.answer, proof.row)
        else:
            await exchange.reply.stream(proof.answer, exchange.client_body.close, _payment_headers(proof.row))

    def _note_silence(self, shared: SharedPayment) -> None:
        deliveries, why = self._fleet.deliveries(shared.id), f"nothing came in {_SILENT_S:g} s"
        self._steps.start(deliveries.record_unanswered(shared.id, why)).add_done_callback(log_failure)

    async def _deliver(
        self, exchange: Exchange, shared: SharedPayment, answer: UpstreamAnswer, row: PaymentRow
    ) -> None:
        """Forward a paid answer. It counts as delivered once its last byte was sent."""

        def before_end() -> None:
            exchange.client_body.close()
            shared.is_over = True

        with shared.serving():
            await exchange.reply.stream(answer, before_end, _payment_headers(row))
            await self._steps.run_to_end(
                self._fleet.deliveries(shared.id).record_delivery(shared.id, answer.status)
            )
            shared.delivered()

    async def _until_ready(self, exchange: Exchange, row: PaymentRow) -> PaymentRow:
        """Wait until the merchant can be expected to accept the proof, or time is up."""
        while not self._context.is_ready(row):
            if row.state in ENDED_WITHOUT_PAYING or (row.state is State.CANCELLING and row.problem.name):
                raise _without_proof(row)
            if row.state is State.AWAITING_APPROVAL:
                raise Refused("awaiting_approval", f"{row.id} waits for approval", payment=row.id)
            if row.state in AWAITING_SIGNATURE and self._context.is_paused:
                raise Refused("paused", f"{row.id} is {row.state}, and signing is paused", payment=row.id)
            if exchange.left_s <= 0:
                break
            row = await self._context.wait(row.id, min(exchange.left_s, _WAIT_S))
        return row

    def _proof_headers(self, request: ProxyRequest, row: PaymentRow) -> Headers:
        """Return the headers of the retry.

        They name the same buyer as the first request, because an invoice is bound to it. If an earlier request
        bought a batch for another balance, they name that balance's owner.
        """
        texts = retry_headers(row, request.merchant, self._context.wallet_address(row))
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


def _not_served(row: PaymentRow) -> Refused:
    return Refused(
        "channel_unserved" if row.kind == CHANNEL_CALL else "not_served_yet",
        f"{row.id} is {row.state}; the merchant has not served the call",
        payment=row.id,
    )


def _paid_not_served(proof: Proof) -> Refused:
    """The refusal for a client whose paid request got a 402.

    The merchant's answer is attached as a field, so no wallet can take it for a 402.
    """
    row, merchant_answer = proof.row, None
    if proof.answer is not None and proof.answer.whole is not None:
        merchant_answer = as_object(proof.answer.status, proof.answer.headers, proof.answer.whole)
    if row.state in WITHOUT_PROOF:
        return _without_proof(row, merchant_answer=merchant_answer)
    reason = "" if proof.said is None else proof.said.reason
    detail = f"{row.id} is {row.state}; the merchant says to its proof: {reason}"
    name = "channel_unserved" if row.kind == CHANNEL_CALL else "paid_not_served"
    return Refused(name, detail, payment=row.id, merchant_answer=merchant_answer)


def _without_proof(row: PaymentRow, **context: object) -> Refused:
    ended = "payment_ended" if row.state in ENDED_WITHOUT_PAYING else "payment_void/merchant_refused"
    detail = row.problem.detail or "it ended without paying"
    return Refused(row.problem.name or ended, detail, payment=row.id, **context)


async def _read_answer(answer: UpstreamAnswer, proof: Proof) -> HttpResponse:
    """Read a retry's answer before it is forwarded. The body of a served answer is not waited for."""
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in answer.headers}
    without_body = HttpResponse(answer.status, headers, "")
    is_later = answer.status == 202 and b"json" in b"".join(values(answer.headers, b"content-type"))
    if is_served(answer.status) and not is_later:
        return without_body
    if (raw := await answer.peek(BODY_MAX_BYTES)) is None:
        return without_body
    try:
        return read_response(answer.status, answer.headers, raw)
    except CodingError:
        proof.more = [(b"accept-encoding", READABLE)]
        return without_body


def _new_402(proof: Proof, now_ms: int) -> PaymentRequired | None:
    """The 402 for another payment in the answer to a used-up proof; None: the request has to be sent again."""
    last, said = proof.answer, proof.said
    if last and last.whole is not None and said and said.verdict is RetryVerdict.INVOICED:
        with suppress(CodingError, Refused):
            return read_payment_required(last.status, last.headers, last.whole, now_ms)
    return None
