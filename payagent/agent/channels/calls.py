"""Pays calls by vouchers, or leaves them to `exact`. Start with `ChannelCalls.pay`.

A merchant knows a voucher by its amount alone. So a channel has one call without an answer at most. After silence
and after a start, payagent first asks the merchant for its count, with a voucher for what is counted already. An
answer to that is never delivered: it may be an earlier request's.

Never: opens a channel by itself (steps does); delivers an answer to another request.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from payagent.agent.base.call_views import CALL_DIALECT
from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.log import log
from payagent.agent.base.ports import Signatures
from payagent.agent.base.requests import CallPlan, MerchantRequest, PaymentIntent, PaymentQuote, PaymentRequest
from payagent.agent.channels.answers import CallAnswers, learn
from payagent.agent.channels.promises import CallPromises
from payagent.agent.channels.steps import why_untrusted
from payagent.agent.context import AgentContext
from payagent.agent.pay.lookup import find_payment
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import CallState, Channel, ChannelCall, ChannelPhase
from payagent.core.invoice import Invoice, Output
from payagent.core.problems import Refused
from payagent.dialects import parse_answer
from payagent.dialects.x402_batch import ChannelOffer, read_channel_offers, voucher_headers
from payagent.outbound.merchant_client import MerchantClient
from payagent.store.db.ceiling_file import CeilingFile
from payagent.store.db.unit import Unit
from payagent.store.rows import channels

TURN_S = 10.0
"""How long a call waits for the answer to the one before it."""

CHANNEL_COST_LOVELACE = 670_000
"""The fees of a channel's opening and its end. `exact` is left for a channel once its fees of a day are more."""

_DAY_MS = 86_400_000
_LEFT_TO_EXACT = frozenset(
    {"approval_required", "channel_busy", "channel_disputed", "merchant_timeout", "merchant_unreachable"}
)


class ChannelCalls(CallAnswers):
    """The calls of one account's channels. `offers`: the latest trusted offer of each merchant."""

    def __init__(
        self,
        context: AgentContext,
        intake: Intake,
        lifecycle: PaymentLifecycle,
        signer: Signatures,
        offers: dict[str, ChannelOffer],
        open_channel: Callable[[str, str], Awaitable[object]],
    ) -> None:
        super().__init__(context, lifecycle, CallPromises(context, signer))
        self._intake, self._offers, self._open = intake, offers, open_channel
        self._merchants: MerchantClient | None = None
        self._opening: dict[str, asyncio.Task[object]] = {}

    async def start(self, merchants: MerchantClient, ceilings: CeilingFile) -> None:
        """Recover calls without an answer. `merchants` carries the requests that ask for a count."""
        self._merchants = merchants
        await self._promises.start(ceilings)

    def stop(self) -> None:
        """After the last call: note what was promised."""
        self._promises.stop()

    async def pay(self, payment_request: PaymentRequest) -> tuple[PaymentRow, bool] | None:
        """Promise a call and return it as a payment, or find the one of its intent. None: `exact` pays it.

        The bool is True for a new call.

        Refused as a payment is; `channel_busy`, `channel_full`, `channel_missing`, `channel_opening`,
        `channel_disputed` if the merchant offers nothing but the channel.
        """
        merchant = self._merchant(payment_request)
        if merchant is None:
            return None
        try:
            if (row := await self._repeated(payment_request)) is not None:
                return row, False
            if (chosen := self._choose(merchant, payment_request)) is None:
                return None
            return await self._pay_in_turn(merchant, payment_request, *chosen)
        except Refused as refusal:
            is_exact = self._is_exact(merchant, payment_request)
            if refusal.code == "channel_missing":
                await self._open_if_worth_it(merchant, payment_request, is_exact=is_exact)
            if is_exact and refusal.code in {
                *_LEFT_TO_EXACT,
                "channel_missing",
                "channel_opening",
                "channel_full",
            }:
                return None
            raise

    def quote(self, payment_request: PaymentRequest) -> PaymentQuote | None:
        """What the call may cost; None if `exact` pays it."""
        merchant = self._merchant(payment_request)
        if merchant is None:
            return None
        try:
            chosen = self._choose(merchant, payment_request)
        except Refused:
            return None
        if chosen is None:
            return None
        offer, channel = chosen
        intent, spend = self._intent(payment_request, offer, channel), {offer.asset: offer.price}
        quote = PaymentQuote(intent.invoice, CallPlan(spend), None)
        now_ms = self._context.ports.clock.now_ms()
        try:
            self._promises.require_allowed(self._context.conn, intent, offer, spend, now_ms)
        except Refused as refusal:
            return replace(quote, refusal=refusal)
        return quote

    def _merchant(self, payment_request: PaymentRequest) -> MerchantConfig | None:
        """The merchant, if channels may pay the request at all: a voucher needs an intent to be found by."""
        merchant = self._context.config.merchants.get(payment_request.origin)
        is_named = payment_request.topup is None and payment_request.key(None) is not None
        return merchant if merchant is not None and merchant.channel is not None and is_named else None

    async def _repeated(self, payment_request: PaymentRequest) -> PaymentRow | None:
        """The intent's call, with the same voucher as before. A void one has paid nothing and does not count."""
        conn, key = self._context.conn, payment_request.key(None)
        found = find_payment(conn, payment_request.app_id, key, payment_request.fingerprint)
        found.require_no_conflict()
        call = None if found.intent is None else channels.call_for(conn, found.intent.id)
        if call is None:
            return None
        if call.state is not CallState.PROMISED and not channels.is_newest(conn, call):
            is_served = call.state is CallState.SERVED
            raise Refused(
                "invoice_already_paid/same_intent" if is_served else "paid_not_served",
                f"{call.id} paid for it, and later calls followed",
                payment=call.id,
            )
        await self._promises.sign(call)
        return self._context.payment(call.id)

    def _choose(
        self, merchant: MerchantConfig, payment_request: PaymentRequest
    ) -> tuple[ChannelOffer, Channel] | None:
        """The offer, and the channel that can pay it. None: not offered on trusted terms, or paid already.

        Refused: `channel_missing`, `channel_opening`, `channel_full`.
        """
        conn, key = self._context.conn, payment_request.key(None)
        if find_payment(conn, payment_request.app_id, key).payment is not None:
            return None
        if (offer := self._offer(merchant, payment_request)) is None:
            return None
        channel = channels.live_channel(conn, merchant.origin)
        if channel is None:
            if any(one.origin == merchant.origin for one in channels.locked_channels(conn)):
                raise Refused("channel_opening", f"the channel at {merchant.name} is closing")
            raise Refused("channel_missing", f"no channel is open at {merchant.name}")
        is_on_terms = (channel.script_hash, channel.provider, channel.asset, channel.close_period_ms) == (
            offer.script_hash.hex(),
            offer.provider.hex(),
            offer.asset,
            offer.withdraw_delay_s * 1000,
        )
        if channel.phase is not ChannelPhase.OPEN or not is_on_terms:
            raise Refused(
                "channel_opening", f"the channel at {merchant.name} is {channel.phase}, or on other terms"
            )
        if channel.account != self._context.config.account:
            raise Refused("channel_busy", f"another daemon has the channel at {merchant.name}")
        if channel.room < offer.price:
            raise Refused(
                "channel_full", f"{channel.room} of {channel.id} are left, the call may cost {offer.price}"
            )
        return offer, channel

    def _offer(self, merchant: MerchantConfig, payment_request: PaymentRequest) -> ChannelOffer | None:
        """The first offer of the 402 whose script, provider key, delay and asset the config trusts."""
        reading = self._intake.reading(merchant, payment_request, self._context.ports.clock.now_ms())
        try:
            offers = read_channel_offers(payment_request.response, reading)
        except Refused:
            return None
        trusted = [one for one in offers if why_untrusted(self._context.config, merchant, one) is None]
        self._offers[merchant.origin] = (*trusted, *offers)[0]
        return next(iter(trusted), None)

    def _is_exact(self, merchant: MerchantConfig, payment_request: PaymentRequest) -> bool:
        """Whether the 402 can be paid without a channel too."""
        try:
            self._intake.offers(merchant, payment_request, self._context.ports.clock.now_ms())
        except Refused:
            return False
        return True

    async def _open_if_worth_it(
        self, merchant: MerchantConfig, payment_request: PaymentRequest, *, is_exact: bool
    ) -> None:
        """Open a channel where the config says so. Without `exact` the call waits for it: `channel_opening`."""
        if merchant.channel is None or merchant.channel.open != "auto":
            return
        since_ms = self._context.ports.clock.now_ms() - _DAY_MS
        if is_exact:
            fees = channels.exact_fees_since(self._context.conn, merchant.origin, since_ms)
            if fees <= CHANNEL_COST_LOVELACE:
                return
        if merchant.origin not in self._opening:
            task = asyncio.ensure_future(self._open(payment_request.app_id, merchant.origin))
            self._opening[merchant.origin] = task
            task.add_done_callback(lambda task: self._opened(merchant.origin, task))
        if not is_exact:
            await asyncio.shield(self._opening[merchant.origin])
            raise Refused("channel_opening", f"a channel at {merchant.name} is being opened")

    def _opened(self, origin: str, task: asyncio.Future[object]) -> None:
        del self._opening[origin]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("channel.not_opened", merchant=origin, why=str(error))

    def _intent(self, payment_request: PaymentRequest, offer: ChannelOffer, channel: Channel) -> PaymentIntent:
        invoice = Invoice(
            dialect=CALL_DIALECT,
            origin=channel.origin,
            invoice_id=channel.id,
            network=self._context.config.network.name,
            outputs=(Output("pay_to", offer.pay_to, offer.asset, offer.price),),
            expires_at_ms=None,
            merchant_submits=True,
            has_own_id=False,
        )
        return self._intake.intent(payment_request, (invoice,), self._context.ports.clock.now_ms())

    async def _pay_in_turn(
        self, merchant: MerchantConfig, payment_request: PaymentRequest, offer: ChannelOffer, channel: Channel
    ) -> tuple[PaymentRow, bool]:
        """Promise the call once the one before it has an answer, or its merchant has told the count."""
        conn, loop = self._context.conn, asyncio.get_running_loop()
        deadline_s = loop.time() + TURN_S
        while True:
            async with self._promises.locks[channel.id]:
                if (row := await self._repeated(payment_request)) is not None:
                    return row, False
                pending = channels.unanswered_call(conn, channel.id)
                if pending is None or self._is_silent(merchant, pending):
                    if pending is not None or not channels.channel(conn, channel.id).is_count_known:
                        await self.probe(merchant, payment_request.request, offer, channel.id)
                    intent = self._intent(payment_request, offer, channel)
                    await self._promises.promise(intent, offer, channels.channel(conn, channel.id))
                    return self._context.payment(intent.ids.payment), True
            left_s = deadline_s - loop.time()
            if left_s <= 0 or not await self._context.changes.wait(pending.id, left_s):
                raise Refused("channel_busy", f"{pending.id} has no answer yet", payment=None)

    def _is_silent(self, merchant: MerchantConfig, call: ChannelCall) -> bool:
        """Whether no answer that counts is to come any more. A clock that was set back ends no patience early."""
        waited_ms = self._context.ports.clock.now_ms() - call.updated_at_ms
        return call.id in self.answered or not 0 <= waited_ms <= merchant.timeout_s * 1000

    async def probe(
        self, merchant: MerchantConfig, request: MerchantRequest | None, offer: ChannelOffer, channel_id: str
    ) -> None:
        """Ask for the count, under the channel's lock, and decide the call without an answer by it.

        The voucher is for what is counted, or for one call if that is nothing. Its answer is dropped.
        Refused: `channel_busy` if the merchant does not tell, `channel_disputed`, `merchant_unreachable`.
        """
        context, channel = self._context, channels.channel(self._context.conn, channel_id)
        untold = Refused("channel_busy", f"{merchant.name} does not tell the count of its channel")
        if request is None or self._merchants is None:
            raise untold
        amount = channel.count or min(offer.price, channel.signed)
        voucher = await self._promises.voucher(channel, amount, channel.ref or "")
        headers = voucher_headers(offer.echo, voucher, context.ports.new_id("int"))
        reply = await self._merchants.call(
            merchant.origin + request.path,
            request.method,
            body=b"",
            headers=merchant.own_headers(context.public_address) | headers,
            timeout_s=merchant.timeout_s,
        )
        response = parse_answer(reply.status, reply.headers, reply.body or b"")

        def job(unit: Unit, now_ms: int) -> int | None:
            count = learn(unit, channels.channel(unit.conn, channel_id), response, voucher, now_ms)
            call = channels.unanswered_call(unit.conn, channel_id)
            if call is not None and count is not None:
                more = count - (call.amount - call.price)
                state, charged = (CallState.PAID_NOT_SERVED, more) if more > 0 else (CallState.VOID, None)
                channels.set_call(unit, call, state, charged, now_ms)
            return count

        pending = channels.unanswered_call(context.conn, channel_id)
        count = await context.write_at("probe", job, None if pending is None else pending.id)
        if pending is not None and count is not None:
            self._promises.unsign(pending.id)
            self.answered.discard(pending.id)
        if channels.channel(context.conn, channel_id).phase is not ChannelPhase.OPEN:
            raise Refused("channel_disputed", f"the channel at {merchant.name} is being closed")
        if count is None:
            raise untold
