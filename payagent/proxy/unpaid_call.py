"""Send a request without a proof. Its answer goes to the client, unless it is a 402 to be paid.

The request may draw on a prepaid balance, so served requests are counted. It is repeated if the merchant asks for
the balance's owner, or answers in an unreadable coding.
Never: decides whether to pay; sends a proof.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.base.requests import MerchantRequest, PaymentRequest, PrepaidQuote
from payagent.agent.fleet.fleet import Fleet
from payagent.core.payment.machine import is_served
from payagent.core.problems import Refused
from payagent.dialects import wants_wallet_address
from payagent.proxy.headers import BUYER, PARTNER, WALLET, Headers, combined, replaced, values
from payagent.proxy.http1 import UpstreamAnswer
from payagent.proxy.payment_required import (
    BODY_MAX_BYTES,
    READABLE,
    CodingError,
    PaymentRequired,
    read_payment_required,
    read_response,
)
from payagent.proxy.request import ProxyRequest, single
from payagent.proxy.request_scope import Exchange
from payagent.proxy.shielded_tasks import ShieldedTasks, log_failure


class UnpaidCalls:
    """Sends requests without a proof; the daemon has one."""

    def __init__(self, fleet: Fleet, steps: ShieldedTasks) -> None:
        self._fleet = fleet
        self._context = fleet.context
        self._steps = steps

    async def send(self, exchange: Exchange, body: AsyncIterable[bytes]) -> PaymentRequired | None:
        """Send the request without a proof. Returns a 402, or None after any other answer was forwarded."""
        headers, is_costly = exchange.request.headers, False
        if self._fleet.prepaid_calls.is_price_wanted(self._served_request(exchange.request)):
            if await self._send_without_buyer(exchange, body):
                return None
            body, is_costly = exchange.client_body.buffer, True
        while True:
            async with self._sending(exchange, body, headers, is_costly) as (answer, use):
                if await self._wants_wallet(exchange, answer):
                    body, headers = exchange.client_body.buffer, exchange.request.headers
                    continue
                if answer.status != 402:
                    await self._forward(exchange, answer, use)
                    return None
                raw = await answer.peek(BODY_MAX_BYTES)
            await exchange.client_body.rest()
            exchange.request.require_valid_token()
            if not exchange.client_body.buffer.is_whole:
                raise Refused(
                    "request_too_big_to_replay",
                    "the merchant asks for a payment, and the body was not kept; see proxy.body_buffer_bytes_max",
                )
            if raw is None:
                raise Refused("body_too_big", f"the 402's body has more than {BODY_MAX_BYTES} bytes")
            try:
                return read_payment_required(
                    answer.status, answer.headers, raw, self._context.ports.clock.now_ms()
                )
            except CodingError as coding:
                if values(headers, b"accept-encoding") == [READABLE]:
                    raise Refused("invoice_invalid/body", f"the 402's body is in the coding {coding}") from None
            body, headers = exchange.client_body.buffer, replaced(headers, [(b"accept-encoding", READABLE)])

    def payment_request(self, exchange: Exchange, payment_required: PaymentRequired) -> PaymentRequest:
        request, body_sha256 = exchange.request, exchange.client_body.buffer.sha256
        return PaymentRequest(
            app_id=request.app_id,
            origin=request.merchant.origin,
            response=payment_required.response,
            received=payment_required.received,
            request=MerchantRequest(
                request.method, request.target.decode("ascii"), body_sha256, combined(request.headers)
            ),
            idempotency_key=request.key,
            max_total_units=request.max_cost_units,
            max_total_asset=request.max_cost_asset,
            buyer=self.buyer(request),
            heard_at_ms=payment_required.received_at_ms,
        )

    def prepaid_quote(self, request: ProxyRequest) -> PrepaidQuote | None:
        """For a dry run: quote what the request would use of a prepaid balance that would serve it."""
        return self._fleet.prepaid_calls.quote(self._served_request(request))

    def buyer(self, request: ProxyRequest) -> Buyer:
        """Return the owner of the prepaid balance, from the headers. Two different values are refused."""
        names = {name: text for name in BUYER if (text := single(request.headers, name)) is not None}
        return Buyer.named(names.get(PARTNER, ""), names.get(WALLET, self._context.config.own.text))

    async def _send_without_buyer(self, exchange: Exchange, body: AsyncIterable[bytes]) -> bool:
        """Send the request without naming a buyer, so no balance can serve it.

        Returns True if the answer was forwarded, which is any but a 4xx. Otherwise it stores the
        merchant's price, if there is one, and the request has to be sent again.
        """
        headers = [pair for pair in exchange.request.headers if pair[0] not in BUYER]
        async with exchange.upstream.call(exchange.call(body, headers)) as answer:
            if not 400 <= answer.status < 500:
                await exchange.reply.stream(answer, exchange.client_body.close)
                return True
            raw = await answer.peek(BODY_MAX_BYTES)
        await exchange.client_body.rest()
        if not exchange.client_body.buffer.is_whole:
            raise Refused(
                "request_too_big_to_replay", "the request's body was not kept; see proxy.body_buffer_bytes_max"
            )
        if answer.status == 402 and raw is not None:
            with suppress(CodingError):
                payment_required = read_payment_required(
                    answer.status, answer.headers, raw, self._context.ports.clock.now_ms()
                )
                await self._fleet.prepaid_calls.learn_price(
                    self._served_request(exchange.request), self.payment_request(exchange, payment_required)
                )
        return False

    @asynccontextmanager
    async def _sending(
        self, exchange: Exchange, body: AsyncIterable[bytes], headers: Headers, is_costly: bool
    ) -> AsyncIterator[tuple[UpstreamAnswer, int | None]]:
        """Send the request. Yields the answer, and the number of its use of a prepaid balance if there may be one.

        The use is given back if nothing was served or sent, even if the client disconnects. It stays if no answer
        came, because the merchant may have served the request.
        """
        exchange.request.require_valid_token()
        begun = asyncio.Event()
        use_task = self._steps.start(
            self._fleet.prepaid_calls.let_through(self._served_request(exchange.request), is_costly=is_costly)
        )
        try:
            use = await asyncio.shield(use_task)
            async with exchange.upstream.call(exchange.call(body, headers), begun.set) as answer:
                if not is_served(answer.status):
                    await self._steps.run_to_end(self._fleet.prepaid_calls.give_back(use))
                    use = None
                yield answer, use
        except Refused as refused:
            if refused.context.get("sent") is False:
                await self._steps.run_to_end(self._fleet.prepaid_calls.give_back(use))
            raise
        except asyncio.CancelledError:
            if not begun.is_set():
                self._steps.start(self._give_back(use_task)).add_done_callback(log_failure)
            raise

    async def _give_back(self, use_task: asyncio.Task[int | None]) -> None:
        """Give back the use of a request whose client disconnected before anything was sent."""
        with suppress(Refused):  # then there is no use to give back
            await asyncio.wait((use_task,))
            await self._fleet.prepaid_calls.give_back(use_task.result())

    async def _wants_wallet(self, exchange: Exchange, answer: UpstreamAnswer) -> bool:
        """Whether to repeat the request with the wallet's address: the merchant sells batches by address."""
        if not 400 <= answer.status < 500 or b"json" not in b"".join(values(answer.headers, b"content-type")):
            return False
        raw = await answer.peek(BODY_MAX_BYTES)
        try:
            response = None if raw is None else read_response(answer.status, answer.headers, raw)
        except CodingError:
            return False
        if response is None or not wants_wallet_address(response):
            return False
        await exchange.client_body.rest()
        if values(exchange.request.headers, WALLET) or not exchange.client_body.buffer.is_whole:
            raise Refused("wallet_address_required", "the merchant asks for the owner of the prepaid balance")
        wallet = self._context.config.own.text.encode("ascii")
        exchange.request = replace(exchange.request, headers=[*exchange.request.headers, (WALLET, wallet)])
        return True

    async def _forward(self, exchange: Exchange, answer: UpstreamAnswer, use: int | None) -> None:
        """Forward an unpaid answer. A served request counts even if the client disconnects."""
        try:
            await exchange.reply.stream(answer, exchange.client_body.close)
        finally:
            if is_served(answer.status):
                await self._steps.run_to_end(
                    self._fleet.prepaid_calls.record_call(self._keyed_request(exchange), use)
                )

    def _keyed_request(self, exchange: Exchange) -> ServedRequest:
        """Describe a served request. An Idempotency-Key identifies it only together with target and body."""
        request, body_sha256 = exchange.request, exchange.client_body.buffer.sha256
        if len(request.keys) != 1:
            return self._served_request(request)
        target, client_key = request.target.decode("latin-1"), request.keys[0].decode("latin-1")
        key = f"{request.merchant.origin} {request.method} {target} {body_sha256} {client_key}"
        return replace(self._served_request(request), key=key)

    def _served_request(self, request: ProxyRequest) -> ServedRequest:
        """Describe a request that may draw on a prepaid balance, before its body has arrived."""
        path = request.target.decode("latin-1").partition("?")[0]
        return ServedRequest(
            request.app_id, request.merchant.origin, self.buyer(request), request.method, path, None
        )
