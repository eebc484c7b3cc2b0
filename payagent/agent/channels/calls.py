"""Pays calls by vouchers, or leaves them to `exact`. Start with `ChannelCalls.pay` and `take_answer`.

A call is promised in one commit (V1), then signed, then presented; another commit has its answer (V2). A voucher
is deterministic, so after a crash the same one is signed again.

A merchant knows a voucher by its amount alone. So a channel has one call without an answer at most. After silence
and after a start, payagent first asks the merchant for its count, with a voucher for what is counted already. An
answer to that is never delivered: it may be an earlier request's.

Never: signs before the promise is durable; adopts a count that no voucher of ours covers.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from payagent.agent.base.call_views import CALL_DIALECT
from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.ports import Signatures
from payagent.agent.base.requests import CallPlan, PaymentIntent, PaymentQuote, PaymentRequest
from payagent.agent.channels.moves import move
from payagent.agent.channels.steps import why_untrusted
from payagent.agent.context import AgentContext
from payagent.agent.pay.admission import open_intent
from payagent.agent.pay.lookup import find_payment
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.aggregate import PaymentRow
from payagent.core.changes import EndIntent
from payagent.core.channel import (
    CALLS,
    EFFECTS,
    LIVE,
    CallEvent,
    CallState,
    Channel,
    ChannelCall,
    ChannelEvent,
    ChannelPhase,
    Close,
    Corrected,
    Promise,
    Served,
)
from payagent.core.invoice import Invoice, Output
from payagent.core.money import LOVELACE, format_amount
from payagent.core.origin import MCP
from payagent.core.pay_and_retry import Answered, RetryVerdict
from payagent.core.payment.machine import is_served
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import HttpResponse, parse_answer
from payagent.dialects.x402_batch import (
    ChannelOffer,
    Voucher,
    VoucherVerdict,
    read_channel_offers,
    read_charge,
    read_correction,
    read_voucher_answer,
    voucher_headers,
)
from payagent.outbound.merchant_client import MerchantClient
from payagent.store.db.ceiling_file import CeilingFile
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.rows import apps, channels, limit_counters, pauses
from payagent.wallet.channel_tx import is_iou

TURN_S = 10.0
"""How long a call waits for the answer to the one before it."""

CHANNEL_COST_LOVELACE = 850_000
"""The fees of a channel's opening and its end. `exact` is left for a channel once its fees of a day are more."""

CEILING_CALLS = 100
"""How many calls the ceiling is ahead of a promise when it is written."""

FRESH_MS = 1_000
"""How long a promise shows that this daemon has the account. One that stood still since then may have lost it."""

_DAY_MS = 86_400_000
_LEFT_TO_EXACT = (
    *("approval_required", "channel_busy", "channel_disputed", "channel_full", "channel_missing"),
    *("channel_opening", "merchant_timeout", "merchant_unreachable"),
)
_SAID = {
    VoucherVerdict.SERVED: RetryVerdict.SERVED,
    VoucherVerdict.RETRY: RetryVerdict.UNCLEAR,
    VoucherVerdict.ADOPT: RetryVerdict.INVOICED,
    VoucherVerdict.CLOSE: RetryVerdict.REFUSED,
    VoucherVerdict.REFUSE: RetryVerdict.REFUSED,
    VoucherVerdict.OTHER: RetryVerdict.OTHER,
}


class ChannelCalls(Deliveries):
    """The calls of one account's channels, and their deliveries. `offers`: the latest of each merchant.

    `ceilings` and `merchants`, which carries payagent's own questions, come with `start`.
    """

    def __init__(
        self,
        context: AgentContext,
        intake: Intake,
        lifecycle: PaymentLifecycle,
        signer: Signatures,
        offers: dict[str, ChannelOffer],
        open_channel: Callable[[str, str], Awaitable[object]],
    ) -> None:
        super().__init__(context, lifecycle)
        self._intake, self._signer, self._offers, self._open = intake, signer, offers, open_channel
        self._signed: dict[str, tuple[str, Voucher, str]] = {} if context.calls is None else context.calls.signed
        self._answered: dict[str, str] = {}
        """By channel, the last call that got an answer after which it is not presented again."""
        self._shown_s: dict[str, float] = {}
        """By channel, when its last voucher was given out, by `now_s`: the loop's clock, which never jumps."""
        self._since_s: dict[str, float] = {}
        """By channel, from when on its last call waits for an answer."""
        self.forgotten: dict[str, int] = {}
        """The ceilings of channels that were opening at the start: an older ledger forgot their vouchers."""
        self._counted: dict[str, int] = {}
        """By channel, what the limits have counted of its promises. The ceiling of a start is not among it."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._merchants: MerchantClient | None = None
        self._ceilings: CeilingFile | None = None

    async def start(self, merchants: MerchantClient, ceilings: CeilingFile) -> None:
        """Take into account what an older ledger has forgotten, and sign again what has no answer yet."""
        self._merchants, self._ceilings, account = merchants, ceilings, self._context.config.account
        self.now_s = asyncio.get_running_loop().time
        self._started_s = self.now_s()

        def job(unit: Unit, now_ms: int) -> None:
            for channel in channels.locked_channels(unit.conn, account):
                ceiling = ceilings.known.get(channel.id, 0)
                if ceiling > channel.signed and channel.phase is ChannelPhase.OPEN:
                    channel = move(unit, channel, Promise(ceiling, is_forgotten=True), now_ms)
                elif channel.phase is ChannelPhase.OPENING and channel.id in ceilings.known:
                    self.forgotten[channel.id] = ceiling
                if channel.signed:
                    channels.doubt(unit, channel.id)

        await self._context.write_at("channels_start", job)
        for channel in channels.locked_channels(self._context.conn, account):
            if (call := channels.unanswered_call(self._context.conn, channel.id)) is not None:
                with suppress(Refused):  # its app gets the reason when it asks again
                    await self._sign(call)

    def stop(self) -> None:
        """After the last call: the next start takes no more for promised than what was."""
        if self._ceilings is not None:
            own = channels.locked_channels(self._context.conn, self._context.config.account)
            self._ceilings.write({**self._ceilings.known, **{one.id: one.signed for one in own}})

    async def pay(
        self, payment_request: PaymentRequest, is_shown_here: bool = True
    ) -> tuple[PaymentRow, bool] | None:
        """Promise a call and return it as a payment, or find the one of its intent. None: `exact` pays it.

        `is_shown_here`: this daemon is to present the voucher, which no other one has.
        The bool is True for a new call. Refused as a payment is. If the merchant offers nothing but the channel,
        also `channel_busy`, `channel_disputed`, `channel_full`, `channel_missing`, `channel_opening`.
        """
        try:
            if is_shown_here and (row := await self._repeated(payment_request, is_in_turn=False)) is not None:
                return row, False
            chosen = self._choose(payment_request, is_shown_here)
            return None if chosen is None else await self._pay_in_turn(payment_request, *chosen)
        except Refused as refusal:
            if refusal.code not in _LEFT_TO_EXACT or not await self._is_left_to_exact(payment_request, refusal):
                raise
            return None

    def quote(self, payment_request: PaymentRequest) -> PaymentQuote | None:
        """What the call may cost; None if `exact` pays it.

        Refused: what `pay` refuses before its promise.
        """
        quote: PaymentQuote | None = None
        try:
            if (chosen := self._choose(payment_request)) is not None:
                _, offer, channel = chosen
                intent, spend = self._intent(payment_request, offer, channel), {offer.asset: offer.price}
                quote = PaymentQuote(intent.invoice, CallPlan(spend), None)
                self._require_allowed(self._context.conn, intent, offer, spend, self._context.ports.clock.now_ms())
        except Refused as refusal:
            if quote is None and not self._has_exact(payment_request):
                raise
            quote = None if quote is None else replace(quote, refusal=refusal)
        return quote

    # --- the choice

    async def _repeated(self, payment_request: PaymentRequest, *, is_in_turn: bool) -> PaymentRow | None:
        """The intent's call, with the same voucher as before. A void one has paid nothing and does not count.

        It is given out again in its turn, and then waited for: a count that is asked for meanwhile may come first.
        Refused: `channel_unserved` if no answer can come. That ends an intent without a key.
        """
        conn, key = self._context.conn, payment_request.key(None)
        found = find_payment(conn, payment_request.app_id, key, payment_request.fingerprint)
        found.require_no_conflict()
        intent = found.intent
        call = None if intent is None else channels.call_for(conn, intent.id)
        if (
            intent is None
            or call is None
            or self._context.payment(call.id).account != self._context.config.account
        ):
            return None  # another account's call: admission lets nothing else pay for it
        if not is_in_turn:
            async with self._locks[call.channel]:
                return await self._repeated(payment_request, is_in_turn=True)
        is_late = not channels.is_newest(conn, call)
        if is_late and call.state is CallState.SERVED and not intent.is_key_derived:
            detail, fix = f"{call.id} paid for it, and the merchant served it", "A new call needs another key."
            raise Refused("invoice_already_paid/same_intent", detail, fix=fix, payment=call.id)
        is_over = channels.channel(conn, call.channel).phase not in LIVE
        if is_over or (is_late and call.state is not CallState.PROMISED):
            ended = EndIntent(call.intent_id)
            await self._context.write_at("delivery", lambda unit, now_ms: write(unit, (ended,), now_ms), call.id)
            detail = f"{call.id} can no longer get its answer"
            raise Refused("channel_unserved", detail, payment=call.id)
        # refused as `lease_lost` if another daemon has the account
        await self._context.write("voucher", lambda _unit: None)
        await self._sign(call)
        self._shown_s[call.channel] = self._since_s[call.channel] = self.now_s()
        self._answered.pop(call.channel, None)
        return self._context.payment(call.id)

    def account_at(self, origin: str) -> int | None:
        """The account that has the live channel of a merchant."""
        channel = channels.live_channel(self._context.conn, origin)
        return None if channel is None else channel.account

    def _choose(
        self, payment_request: PaymentRequest, is_shown_here: bool = True
    ) -> tuple[MerchantConfig, ChannelOffer, Channel] | None:
        """The offer, and the channel that can pay it. None: not offered on trusted terms, or paid already.

        A request that payagent cannot send itself is left to `exact`: the count could not be asked for by it.
        Refused: `channel_busy`, `channel_missing`, `channel_opening`, `channel_full`.
        """
        conn, key = self._context.conn, payment_request.key(None)
        merchant = self._context.config.merchants.get(payment_request.origin)
        request = payment_request.request
        is_ours_to_ask = request is not None and request.method != MCP and payment_request.topup is None
        if merchant is None or merchant.channel is None or not is_ours_to_ask:
            return None
        reading = self._intake.reading(merchant, payment_request, self._context.ports.clock.now_ms())
        offers: tuple[ChannelOffer, ...] = ()
        with suppress(Refused):
            offers = read_channel_offers(payment_request.response, reading)
        trusted = [one for one in offers if why_untrusted(self._context.config, merchant, one) is None]
        for offer in (*trusted, *offers)[:1]:
            self._offers[merchant.origin] = offer
        if not trusted or find_payment(conn, payment_request.app_id, key).payment is not None:
            return None
        offer = trusted[0]
        channel, name = channels.live_channel(conn, merchant.origin), merchant.name
        if channel is None:
            raise Refused("channel_missing", f"no channel is open at {name}")
        if channel.phase is not ChannelPhase.OPEN:
            raise Refused("channel_opening", f"the channel at {name} is opening")
        terms = (channel.script_hash, channel.provider, channel.asset, channel.close_period_ms)
        offered = (offer.script_hash.hex(), offer.provider.hex(), offer.asset, offer.withdraw_delay_s * 1000)
        if channel.account != self._context.config.account or not is_shown_here:
            raise Refused(
                "channel_busy",
                f"account {channel.account} has the channel at {name}, and only the daemon that holds it signs",
                fix="Send the same request to that daemon. GET /readyz of each daemon has its accounts.",
                money="Nothing was signed for this request.",
            )
        if terms != offered:
            raise Refused("channel_busy", f"the channel at {name} is on other terms")
        if channel.room < offer.price:
            left, price = (format_amount(LOVELACE, units) for units in (channel.room, offer.price))
            raise Refused("channel_full", f"{left} are left at {name}, a call costs {price}")
        return merchant, offer, channel

    async def _is_left_to_exact(self, payment_request: PaymentRequest, refusal: Refused) -> bool:
        """Whether the 402 can be paid without a channel. One is opened first where the config says so."""
        context, origin = self._context, payment_request.origin
        merchant, now_ms = context.config.merchant(origin), context.ports.clock.now_ms()
        is_exact = self._has_exact(payment_request)
        # the next channel at a merchant whose channel is closing is a person's decision
        has_one = any(one.origin == origin for one in channels.locked_channels(context.conn))
        is_auto = merchant.channel is not None and merchant.channel.open == "auto" and not has_one
        if is_auto and refusal.code == "channel_missing":
            fees = channels.exact_fees_since(context.conn, origin, now_ms - _DAY_MS)
            async with self._locks[origin]:
                is_worth_it = not is_exact or fees > CHANNEL_COST_LOVELACE
                if is_worth_it and channels.live_channel(context.conn, origin) is None:
                    with suppress(*([Refused] if is_exact else [])):
                        await self._open(payment_request.app_id, origin)
            if not is_exact:
                raise Refused("channel_opening", f"a channel at {origin} is being opened")
        return is_exact

    def _has_exact(self, payment_request: PaymentRequest) -> bool:
        merchant = self._context.config.merchant(payment_request.origin)
        with suppress(Refused):
            return bool(self._intake.offers(merchant, payment_request, self._context.ports.clock.now_ms()))
        return False

    def _intent(self, payment_request: PaymentRequest, offer: ChannelOffer, channel: Channel) -> PaymentIntent:
        invoice = Invoice(
            *(CALL_DIALECT, channel.origin, channel.id, self._context.config.network.name),
            outputs=(Output("pay_to", offer.pay_to, offer.asset, offer.price),),
            expires_at_ms=None,
            merchant_submits=True,
            has_own_id=False,
        )
        return self._intake.intent(payment_request, (invoice,), self._context.ports.clock.now_ms())

    # --- V1

    async def _pay_in_turn(
        self, payment_request: PaymentRequest, merchant: MerchantConfig, offer: ChannelOffer, channel: Channel
    ) -> tuple[PaymentRow, bool]:
        """Promise the call once the one before it has an answer, or its merchant has told the count."""
        conn, loop = self._context.conn, asyncio.get_running_loop()
        deadline_s = loop.time() + TURN_S
        while True:
            async with self._locks[channel.id]:
                if (row := await self._repeated(payment_request, is_in_turn=True)) is not None:
                    return row, False
                pending = channels.unanswered_call(conn, channel.id)
                if pending is None or self._is_silent(merchant, pending):
                    if pending is not None or not channels.channel(conn, channel.id).is_count_known:
                        await self.probe(merchant, payment_request, offer, channel.id)
                    intent = self._intent(payment_request, offer, channel)
                    await self._promise(intent, offer, channels.channel(conn, channel.id))
                    return self._context.payment(intent.ids.payment), True
            left_s = deadline_s - loop.time()
            if left_s <= 0 or not await self._context.changes.wait(pending.id, left_s):
                raise Refused("channel_busy", f"{pending.id} has no answer yet")

    def _is_silent(self, merchant: MerchantConfig, call: ChannelCall) -> bool:
        """Whether no answer that counts is to come any more."""
        shown_s = self._shown_s.get(call.channel, self._started_s)
        is_over = self.now_s() - shown_s > merchant.timeout_s
        return is_over or self._answered.get(call.channel) == call.id

    async def probe(
        self, merchant: MerchantConfig, payment_request: PaymentRequest, offer: ChannelOffer, channel_id: str
    ) -> None:
        """Ask for the count, under the channel's lock, and decide the call without an answer by it.

        The voucher is for what is counted, or for 1 if that is nothing: no call costs that, so the merchant cannot
        serve it. Its answer is dropped.
        Refused: `channel_busy` if the merchant does not tell, `channel_disputed`, `merchant_unreachable`.
        """
        context, request = self._context, payment_request.request
        channel = channels.channel(context.conn, channel_id)
        untold = Refused("channel_busy", f"{merchant.name} does not tell the count of its channel")
        if request is None or self._merchants is None:
            raise untold
        await context.write("voucher", lambda _unit: None)
        voucher = await self._voucher(channel, channel.count or min(1, channel.signed))
        proof = voucher_headers(offer.echo, voucher, context.ports.new_id("int"))
        reply = await self._merchants.call(
            *(merchant.origin + request.path, request.method),
            body=b"",
            headers=merchant.own_headers(context.public_address) | proof,
            timeout_s=merchant.timeout_s,
        )
        response = parse_answer(reply.status, reply.headers, reply.body or b"")
        pending = channels.unanswered_call(context.conn, channel_id)
        job = partial(_learn, channel_id=channel_id, response=response, voucher=voucher, is_over=True)
        is_known = await context.write_at("probe", job, None if pending is None else pending.id)
        if channels.channel(context.conn, channel_id).phase is not ChannelPhase.OPEN:
            raise Refused("channel_disputed", f"payagent closes the channel at {merchant.name}")
        if not is_known:
            raise untold

    async def _promise(self, intent: PaymentIntent, offer: ChannelOffer, channel: Channel) -> None:
        """Promise a call under the channel's lock, after its ceiling is high enough, and sign its voucher."""
        amount, ceilings = channel.count + offer.price, self._ceilings
        # so it is after a charge below a call's price
        if amount == channel.voucher_amount and channels.is_paid(self._context.conn, channel.id, amount):
            raise Refused(
                "channel_busy",
                f"the voucher for {amount} has paid another call, and the merchant would send that answer again",
                fix="Call at another price, or close the channel and open another.",
            )
        counted = self._counted.get(channel.id) or channels.promised_by_calls(self._context.conn, channel.id)
        if ceilings is not None and ceilings.known.get(channel.id, 0) < amount:
            ceiling = min(amount + CEILING_CALLS * offer.price, channel.capacity)
            ceilings.write({**ceilings.known, channel.id: ceiling})

        def job(unit: Unit, now_ms: int) -> None:
            conn, fresh = unit.conn, channels.channel(unit.conn, channel.id)
            apps.require_let_in(conn, intent.app_id, now_ms)
            pauses.require_running(conn)
            found = find_payment(conn, intent.app_id, intent.key, intent.fingerprint)
            found.require_no_conflict()
            if found.payment is not None or fresh.count != channel.count:
                raise Refused("channel_busy", "another request was faster")
            spend = {offer.asset: max(0, amount - counted)}
            self._require_allowed(conn, intent, offer, spend, now_ms)
            if found.intent is None:
                open_intent(unit, intent, origin=fresh.origin, request=intent.request, now_ms=now_ms)
            clock_ms = self._context.admission.rules.clock_ms(conn, now_ms)
            limit_counters.count(unit, intent.app_id, fresh.origin, spend, clock_ms)
            move(unit, fresh, Promise(amount), now_ms)
            intent_id = intent.ids.intent if found.intent is None else found.intent.id
            call = ChannelCall(
                *(0, intent.ids.payment, fresh.id, intent.app_id, intent_id, fresh.ref or "", amount),
                *(offer.price, spend[offer.asset], offer.echo, CallState.PROMISED, None, now_ms, now_ms),
            )
            channels.add_call(unit, call, clock_ms)

        await self._context.write_at("promise", job, intent.ids.payment)
        self._counted[channel.id] = max(counted, amount)
        self._shown_s[channel.id] = self._since_s[channel.id] = self.now_s()
        call = channels.require_call(self._context.conn, intent.ids.payment)
        try:
            await self._sign(call)
        except Refused:  # without a voucher the merchant cannot charge it
            await self._context.write_at(
                "promise",
                lambda unit, now_ms: channels.set_call(unit, call, CallState.VOID, None, now_ms),
                call.id,
            )
            raise

    def _require_allowed(
        self, conn: Connection, intent: PaymentIntent, offer: ChannelOffer, spend: dict[str, int], now_ms: int
    ) -> None:
        """Check the caller's own limit against the price, and all others against what the voucher adds."""
        rules, asset, most = self._context.admission.rules, offer.asset, intent.max_total_units
        rules.require_merchant(intent.invoice.origin)
        own = intent if most is None else replace(intent, max_total_units=most - offer.price + spend[asset])
        rules.require_within_limits(conn, own, spend, asset, now_ms, fee="more by its voucher")
        if reasons := rules.reasons(conn, intent, intent.invoice, {asset: offer.price}):
            raise Refused("approval_required", f"{reasons[0].detail}; a call by channel waits for no approval")

    async def _sign(self, call: ChannelCall) -> Voucher:
        """Sign the voucher of a call that is durable. The same call always gets the same bytes.

        Refused: `lease_lost` if another daemon has the account. The commit of a promise has just shown that.
        """
        call_id, voucher, _ = self._signed.get(call.channel, ("", None, ""))
        if voucher is None or (call_id, voucher.amount) != (call.id, call.amount):
            if not 0 <= self._context.ports.clock.now_ms() - call.created_at_ms < FRESH_MS:
                await self._context.write("voucher", lambda _unit: None)
            voucher = await self._voucher(channels.channel(self._context.conn, call.channel), call.amount)
            voucher = replace(voucher, channel_ref=call.channel_ref)
            headers = voucher_headers(call.echo, voucher, call.intent_id)
            if channels.is_newest(self._context.conn, call):
                self._signed[call.channel] = call.id, voucher, json.dumps(headers)
        return voucher

    async def _voucher(self, channel: Channel, amount: int) -> Voucher:
        """Sign a voucher for an amount that is promised already. Refused as `signer.channels` does."""
        names = {"tag": channel.id, "asset": channel.asset, "provider": channel.provider}
        before = {"before": channel.voucher_amount, "iou": channel.voucher or ""}
        signature = await self._signer.channel("voucher", **names, **before, amount=amount)
        payer, key = self._context.config.own.payment_key_hash, bytes.fromhex(channel.iou_key)
        return Voucher(bytes.fromhex(channel.id), channel.ref or "", payer, key, amount, signature)

    # --- V2

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """The client has the answer: an intent with a derived key ends. `take_answer` has counted it before."""
        ended = EndIntent(self._context.payment(payment_id).intent.id)
        if is_served(http_status):
            await self._context.write_at(
                "delivery", lambda unit, now_ms: write(unit, (ended,), now_ms), payment_id
            )
        return self._context.payment(payment_id)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """No answer came, so the count is not known. The same voucher may be presented again, so others wait.

        Refused: `channel_unserved` once the merchant's `timeout_s` is over, so that others get a turn.
        """
        merchant = self._context.config.merchant(self._context.payment(payment_id).intent.origin)
        channel_id = channels.require_call(self._context.conn, payment_id).channel
        async with self._locks[channel_id]:
            await self._context.write("delivery", lambda unit: channels.doubt(unit, channel_id), payment_id)
            if channels.require_call(self._context.conn, payment_id).state is not CallState.PROMISED:
                return
            if self.now_s() - self._since_s.get(channel_id, self._started_s) > merchant.timeout_s:
                raise Refused("channel_unserved", f"{payment_id} got no answer: {why}", payment=payment_id)
            self._shown_s[channel_id] = self.now_s()

    async def take_answer(
        self,
        payment_id: str,
        response: HttpResponse,
        *,
        shown_depth: int | None = None,
        is_delivered: bool = False,
        has_served: bool = False,
    ) -> tuple[PaymentRow, Answered]:
        """As `Deliveries.take_answer`. After a correction the call has another voucher: present that at once.

        An app may invent the answer that it reports (`is_delivered`). So its word alone lowers no count and closes
        no channel: the next call asks the merchant.
        """
        context, (verdict, reason) = self._context, read_voucher_answer(response)
        async with self._locks[context.payment(payment_id).invoice.id or ""]:
            call = channels.require_call(context.conn, payment_id)
            if call.state is CallState.VOID:  # its amount may pay another request now, and this be its answer
                raise Refused("channel_busy", f"{payment_id} is void, and its voucher may pay another request")
            voucher = await self._sign(call)

            def job(unit: Unit, now_ms: int) -> None:
                if verdict is VoucherVerdict.SERVED:
                    _serve(unit, call, response, voucher, now_ms, is_reported=is_delivered)
                elif call.state is CallState.PROMISED and verdict is not VoucherVerdict.RETRY:
                    channels.doubt(unit, call.channel)
                    if not is_delivered:
                        _learn(unit, now_ms, channel_id=call.channel, response=response, voucher=voucher)
                if verdict is VoucherVerdict.SERVED and is_delivered:
                    write(unit, (EndIntent(call.intent_id),), now_ms)

            await context.write_at("delivery", job, payment_id)
            after = channels.require_call(context.conn, payment_id)
            if after.amount != call.amount:
                await self._sign(after)
                self._shown_s[call.channel] = self.now_s()
                return context.payment(payment_id), Answered(RetryVerdict.PENDING, reason, response.status, 0.0)
        after_s = again_after_s(1) if verdict is VoucherVerdict.RETRY else None
        if after_s is None:
            self._answered[call.channel] = call.id
        else:  # the caller presents it again, and no other request may have its amount meanwhile
            self._shown_s[call.channel] = self.now_s()
        return context.payment(payment_id), Answered(_SAID[verdict], reason, response.status, after_s)


def _serve(
    unit: Unit, call: ChannelCall, response: HttpResponse, voucher: Voucher, now_ms: int, *, is_reported: bool
) -> None:
    """Count what a served call cost. Without a charge within its price the count is not known afterwards.

    `is_reported`: an app says so. If that is less than the price, only the merchant's own word tells the count:
    the next call would have this one's voucher, and get its answer.
    """
    channel, charged = channels.channel(unit.conn, call.channel), None
    if call.state is CallState.SERVED:
        return
    with suppress(Refused):
        charged = read_charge(response, voucher).units
    is_above = charged is not None and charged > call.price
    is_open = call.state is CallState.PROMISED and (channel.phase, ChannelEvent.SERVE) in EFFECTS
    is_open = is_open and (charged == call.price or not is_reported)
    # a claim that was seen first has raised the count already
    if is_open and charged is not None and not is_above and channel.count + charged <= call.amount:
        move(unit, channel, Served(charged, voucher.signature.hex(), voucher.amount), now_ms)
    else:
        channels.doubt(unit, channel.id)
    if state := CALLS.get((call.state, CallEvent.COUNT if is_above else CallEvent.SERVE)):
        channels.set_call(unit, call, state, call.price if is_above else charged, now_ms)


def _learn(
    unit: Unit,
    now_ms: int,
    *,
    channel_id: str,
    response: HttpResponse,
    voucher: Voucher,
    is_over: bool = False,
) -> bool:
    """Adopt the merchant's count, if a voucher of ours covers it. False: it is not known.

    A call without an answer is then decided: counted, or void if it `is_over`, or else promised anew. The channel
    is closed if its merchant takes no more vouchers, or counts more than was ever signed.
    """
    (verdict, reason), channel = read_voucher_answer(response), channels.channel(unit.conn, channel_id)
    if channel.phase is not ChannelPhase.OPEN:
        return False
    if verdict is VoucherVerdict.CLOSE:
        move(unit, channel, Close(f"its merchant takes no more vouchers: {reason}"), now_ms)
    shown = _shown(verdict, response, voucher)
    is_denied = verdict in (VoucherVerdict.ADOPT, VoucherVerdict.REFUSE)
    has_no_record = is_denied if not channel.count else verdict is VoucherVerdict.ADOPT
    if shown is None and is_over and has_no_record and channel.count == channel.claimed:
        # a merchant with a record of the channel would have shown it: this one knows what the chain shows
        shown = channel.count, voucher.amount, voucher.signature
    if shown is None:
        return False
    count, amount, signature = shown
    is_ours = is_iou(voucher.iou_key, voucher.channel_id, amount, signature)
    if not is_ours or not channel.claimed <= count <= amount:
        if count > channel.signed:
            why = f"its merchant counts {count}, and payagent has signed {channel.signed}"
            move(unit, channel, Close(f"channel_disputed: {why}"), now_ms)
        return False
    channel = move(unit, channel, Corrected(count, signature.hex(), amount), now_ms)
    if (call := channels.unanswered_call(unit.conn, channel_id)) is None:
        return True
    more = count - (call.amount - call.price)
    if more > 0:
        channels.set_call(unit, call, CALLS[call.state, CallEvent.COUNT], min(more, call.price), now_ms)
    elif is_over:
        channels.set_call(unit, call, CALLS[call.state, CallEvent.EXCLUDE], None, now_ms)
    elif more < 0 and not (count + call.price == amount and channels.is_paid(unit.conn, channel_id, amount)):
        move(unit, channel, Promise(count + call.price), now_ms)
        channels.promise_again(unit, call.id, count + call.price, channel.ref or "", now_ms)
    else:
        channels.doubt(unit, channel_id)
    return True


def _shown(verdict: VoucherVerdict, response: HttpResponse, voucher: Voucher) -> tuple[int, int, bytes] | None:
    """The count that an answer shows, with the amount and the signature of the voucher that covers it."""
    with suppress(Refused):
        if verdict is VoucherVerdict.ADOPT:
            correction = read_correction(response, voucher.channel_id)
            return correction.state.count or 0, correction.signed, correction.signature
        state = read_charge(response, voucher).state if verdict is VoucherVerdict.SERVED else None
        if state is not None and state.count is not None:
            return state.count, voucher.amount, voucher.signature
    return None
