"""Send a request without a proof. Its answer goes to the client, unless it is a 402 to be paid.

The request may draw on a prepaid balance, so served requests are counted. It is repeated if the merchant asks for
the balance's owner, or answers in an unreadable coding.
May import: core, dialects, agent, the rest of proxy.
Never: decides whether to pay; sends a proof.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from payagent.agent.agent import Agent
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.base.requests import MerchantRequest, PaymentRequest, PrepaidQuote
from payagent.core.payment import is_served
from payagent.core.problems import Refused
from payagent.dialects import wants_wallet_address
from payagent.proxy.exchange import Exchange
from payagent.proxy.headers import BUYER, PARTNER, WALLET, Headers, combined, replaced, values
from payagent.proxy.http1 import UpstreamAnswer, UpstreamBody
from payagent.proxy.payment_required import (
    BODY_MAX_BYTES,
    READABLE,
    CodingError,
    PaymentRequired,
    read_demand,
    read_response,
)
from payagent.proxy.request import ProxyRequest, single
from payagent.proxy.shielded_tasks import ShieldedTasks, tell_log


class UnpaidCalls:
    """Sends requests without a proof; the daemon has one."""

    def __init__(self, agent: Agent, steps: ShieldedTasks) -> None:
        self._agent = agent
        self._context = agent.context
        self._steps = steps

    async def demand_of(self, trip: Exchange, body: UpstreamBody) -> PaymentRequired | None:
        """Send the request without a proof. Returns a 402, or None after any other answer was forwarded."""
        headers, is_costly = trip.errand.headers, False
        if self._agent.prepaid_calls.is_price_wanted(self._call_of(trip.errand)):
            if await self._answers_nobody(trip, body):
                return None
            body, is_costly = trip.intake.spool, True
        while True:
            async with self._drawing(trip, body, headers, is_costly) as (answer, use):
                if await self._wants_wallet(trip, answer):
                    body, headers = trip.intake.spool, trip.errand.headers
                    continue
                if answer.status != 402:
                    await self._hand_on(trip, answer, use)
                    return None
                raw = await answer.peek(BODY_MAX_BYTES)
            await trip.intake.rest()
            trip.errand.require_let_in()
            if not trip.intake.spool.is_whole:
                raise Refused(
                    "request_too_big_to_replay",
                    "the merchant asks for a payment, and the body was not kept; see proxy.body_buffer_bytes_max",
                )
            if raw is None:
                raise Refused("body_too_big", f"the 402's body has more than {BODY_MAX_BYTES} bytes")
            try:
                return read_demand(answer.status, answer.headers, raw, self._context.ports.clock.now_ms())
            except CodingError as coding:
                if values(headers, b"accept-encoding") == [READABLE]:
                    raise Refused("invoice_invalid/body", f"the 402's body is in the coding {coding}") from None
            body, headers = trip.intake.spool, replaced(headers, [(b"accept-encoding", READABLE)])

    def ask_of(self, errand: ProxyRequest, body_sha256: str, demand: PaymentRequired) -> PaymentRequest:
        return PaymentRequest(
            app_id=errand.app_id,
            origin=errand.merchant.origin,
            response=demand.response,
            received=demand.received,
            request=MerchantRequest(
                errand.method, errand.target.decode("ascii"), body_sha256, combined(errand.headers)
            ),
            idempotency_key=errand.key,
            max_total_units=errand.max_cost_units,
            max_total_asset=errand.max_cost_asset,
            buyer=self.buyer(errand),
            heard_at_ms=demand.heard_at_ms,
        )

    def prepaid_quote(self, errand: ProxyRequest) -> PrepaidQuote | None:
        """For a dry run: quote what the request would use of a prepaid balance that would serve it."""
        return self._agent.prepaid_calls.quote(self._call_of(errand))

    def buyer(self, errand: ProxyRequest) -> Buyer:
        """Return the owner of the prepaid balance, from the headers. Two different values are refused."""
        said = {name: text for name in BUYER if (text := single(errand.headers, name)) is not None}
        return Buyer.named(said.get(PARTNER, ""), said.get(WALLET, self._context.terms.own.text))

    async def _answers_nobody(self, trip: Exchange, body: UpstreamBody) -> bool:
        """Send the request without naming a buyer, so no balance can serve it.

        Returns True if the answer was forwarded, which is any but a 4xx. Otherwise the price is learned, if the
        merchant states one, and the request has to be sent again.
        """
        headers = [pair for pair in trip.errand.headers if pair[0] not in BUYER]
        async with trip.upstream.call(trip.call(body, headers)) as answer:
            if not 400 <= answer.status < 500:
                await trip.reply.stream(answer, trip.intake.close)
                return True
            raw = await answer.peek(BODY_MAX_BYTES)
        await trip.intake.rest()
        if not trip.intake.spool.is_whole:
            raise Refused(
                "request_too_big_to_replay", "the request's body was not kept; see proxy.body_buffer_bytes_max"
            )
        if answer.status == 402 and raw is not None:
            with suppress(CodingError):
                demand = read_demand(answer.status, answer.headers, raw, self._context.ports.clock.now_ms())
                ask = self.ask_of(trip.errand, trip.intake.spool.sha256, demand)
                await self._agent.prepaid_calls.learn_price(self._call_of(trip.errand), ask)
        return False

    @asynccontextmanager
    async def _drawing(
        self, trip: Exchange, body: UpstreamBody, headers: Headers, is_costly: bool
    ) -> AsyncIterator[tuple[UpstreamAnswer, int | None]]:
        """Send the request. Yields the answer, and the number of its use of a prepaid balance if there may be one.

        The use is given back if nothing was served or sent, even if the client disconnects. It stays if no answer
        came, because the merchant may have served the request.
        """
        trip.errand.require_let_in()
        begun = asyncio.Event()
        letting = self._steps.start(
            self._agent.prepaid_calls.let_through(self._call_of(trip.errand), is_costly=is_costly)
        )
        try:
            use = await asyncio.shield(letting)
            async with trip.upstream.call(trip.call(body, headers), begun.set) as answer:
                if not is_served(answer.status):
                    await self._steps.to_its_end(self._agent.prepaid_calls.give_back(use))
                    use = None
                yield answer, use
        except Refused as lost:
            if lost.context.get("sent") is False:
                await self._steps.to_its_end(self._agent.prepaid_calls.give_back(use))
            raise
        except asyncio.CancelledError:
            if not begun.is_set():
                self._steps.start(self._give_back_of(letting)).add_done_callback(tell_log)
            raise

    async def _give_back_of(self, letting: asyncio.Task[int | None]) -> None:
        """Give back the use of a request whose client disconnected before anything was sent."""
        with suppress(Refused):  # then there is no use to give back
            await asyncio.wait((letting,))
            await self._agent.prepaid_calls.give_back(letting.result())

    async def _wants_wallet(self, trip: Exchange, answer: UpstreamAnswer) -> bool:
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
        await trip.intake.rest()
        if values(trip.errand.headers, WALLET) or not trip.intake.spool.is_whole:
            raise Refused("wallet_address_required", "the merchant asks whose prepaid balance to use")
        wallet = self._context.terms.own.text.encode("ascii")
        trip.errand = replace(trip.errand, headers=[*trip.errand.headers, (WALLET, wallet)])
        return True

    async def _hand_on(self, trip: Exchange, answer: UpstreamAnswer, use: int | None) -> None:
        """Forward an answer that nobody paid for. A served request counts even if the client disconnects."""
        try:
            await trip.reply.stream(answer, trip.intake.close)
        finally:
            if is_served(answer.status):
                await self._steps.to_its_end(self._agent.prepaid_calls.record_call(self._served(trip), use))

    def _served(self, trip: Exchange) -> ServedRequest:
        """Describe a served request. An Idempotency-Key names the same one only with the same target and body."""
        errand = trip.errand
        if len(errand.keys) != 1:
            return self._call_of(errand)
        target, named = errand.target.decode("latin-1"), errand.keys[0].decode("latin-1")
        key = f"{errand.merchant.origin} {errand.method} {target} {trip.intake.spool.sha256} {named}"
        return replace(self._call_of(errand), key=key)

    def _call_of(self, errand: ProxyRequest) -> ServedRequest:
        """Describe a request that may draw on a prepaid balance, before its body has arrived."""
        path = errand.target.decode("latin-1").partition("?")[0]
        return ServedRequest(errand.app_id, errand.merchant.origin, self.buyer(errand), errand.method, path, None)
