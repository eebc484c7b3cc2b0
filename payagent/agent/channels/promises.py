"""Promises a call in one commit (V1), and signs its voucher only then.

The commit has the intent, the limits, the entry, the channel's highest promise and the call. A voucher is
deterministic, so after a crash the same one is signed again.

Never: sends; promises a second call of a channel while one has no answer.
"""

import asyncio
import json
from collections import defaultdict
from contextlib import suppress
from functools import partial

from payagent.agent.base.ports import Signatures
from payagent.agent.base.requests import PaymentIntent
from payagent.agent.channels.moves import move
from payagent.agent.context import AgentContext
from payagent.agent.pay.admission import open_intent
from payagent.agent.pay.lookup import find_payment
from payagent.core import policy
from payagent.core.channel import CallState, Channel, ChannelCall, ChannelPhase, Promise
from payagent.core.money import format_amount
from payagent.core.problems import Refused
from payagent.dialects.x402_batch import ChannelOffer, Voucher, voucher_headers
from payagent.store.db.ceiling_file import CeilingFile
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import apps, channels, limit_counters, pauses

CEILING_CALLS = 100
"""How many calls the ceiling is ahead of the highest promise when it is written."""


class CallPromises:
    """Promises calls, one at a time for each channel. `locks` are held around each change of a call."""

    def __init__(self, context: AgentContext, signer: Signatures) -> None:
        self._context, self._signer = context, signer
        self._ceilings: CeilingFile | None = None
        self._vouchers: dict[str, Voucher] = {}
        self._headers: dict[str, str] = {} if context.calls is None else context.calls.headers
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def start(self, ceilings: CeilingFile) -> None:
        """Take into account what an older ledger has forgotten, and sign again what has no answer yet."""
        self._ceilings, account = ceilings, self._context.config.account

        def job(unit: Unit, now_ms: int) -> list[ChannelCall]:
            pending = []
            for channel in channels.locked_channels(unit.conn, account):
                ceiling = min(ceilings.known.get(channel.id, 0), channel.capacity)
                if ceiling > channel.signed and channel.phase is ChannelPhase.OPEN:
                    channel = move(unit, channel, Promise(ceiling), now_ms)
                if channel.signed:
                    channels.doubt(unit, channel.id)
                pending.append(channels.unanswered_call(unit.conn, channel.id))
            return [call for call in pending if call is not None]

        for call in await self._context.write_at("channels_start", job):
            with suppress(Refused):  # its app gets the reason when it asks again
                await self.sign(call)

    def stop(self) -> None:
        """Write what was promised: at the next start nothing more is taken for promised."""
        if self._ceilings is not None:
            locked = channels.locked_channels(self._context.conn)
            own = {one.id: one.signed for one in locked if one.account == self._context.config.account}
            others = {one.id: self._ceilings.known.get(one.id, one.signed) for one in locked}
            self._ceilings.write(others | own)

    async def promise(self, intent: PaymentIntent, offer: ChannelOffer, channel: Channel) -> None:
        """Promise a call under the channel's lock, and sign its voucher.

        Refused as a payment is, and `approval_required` where a person would have to approve it.
        """
        amount = channel.count + offer.price
        if self._ceilings is not None and self._ceilings.known.get(channel.id, 0) < amount:
            ceiling = min(amount + CEILING_CALLS * offer.price, channel.capacity)
            self._ceilings.write({**self._ceilings.known, channel.id: ceiling})
        job = partial(self._promise, intent=intent, offer=offer, channel_id=channel.id)
        await self.sign(await self._context.write_at("promise", job, intent.ids.payment))

    def _promise(
        self, unit: Unit, now_ms: int, *, intent: PaymentIntent, offer: ChannelOffer, channel_id: str
    ) -> ChannelCall:
        conn, channel = unit.conn, channels.channel(unit.conn, channel_id)
        apps.require_let_in(conn, intent.app_id, now_ms)
        pauses.require_running(conn)
        found = find_payment(conn, intent.app_id, intent.key, intent.fingerprint)
        found.require_no_conflict()
        if found.payment is not None:
            raise Refused("channel_busy", f"{found.payment.id} is paying for it", payment=found.payment.id)
        amount = channel.count + offer.price
        spend = {offer.asset: max(0, amount - channel.signed)}
        self.require_allowed(conn, intent, offer, spend, now_ms)
        if found.intent is None:
            open_intent(unit, intent, origin=channel.origin, request=intent.request, now_ms=now_ms)
        clock_ms = self._context.admission.rules.clock_ms(conn, now_ms)
        limit_counters.count(unit, intent.app_id, channel.origin, spend, clock_ms)
        move(unit, channel, Promise(amount), now_ms)
        call = ChannelCall(
            seq=0,
            id=intent.ids.payment,
            channel=channel.id,
            app_id=intent.app_id,
            intent_id=intent.ids.intent if found.intent is None else found.intent.id,
            channel_ref=channel.ref or "",
            amount=amount,
            price=offer.price,
            promised=spend[offer.asset],
            echo=offer.echo,
            state=CallState.PROMISED,
            charged=None,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
        )
        channels.add_call(unit, call, clock_ms)
        return call

    def require_allowed(
        self, conn: Connection, intent: PaymentIntent, offer: ChannelOffer, spend: dict[str, int], now_ms: int
    ) -> None:
        """Check the caller's own limit against the price, and all others against what the voucher adds."""
        rules, most = self._context.admission.rules, intent.most_units(offer.asset)
        rules.require_merchant(intent.invoice.origin)
        if most is not None and offer.price > most:
            left, price = (format_amount(offer.asset, units) for units in (most, offer.price))
            raise Refused(
                "limit_exceeded",
                f"{policy.CALLS_OWN} is {left}, this call may cost {price}",
                fix=policy.CHANGE_OWN,
                limit="max_total",
                asset=offer.asset,
                left=str(most),
                asked=str(offer.price),
            )
        rules.require_within_limits(conn, intent, spend, offer.asset, now_ms, fee="more by its voucher")
        if reasons := rules.reasons(conn, intent, intent.invoice, {offer.asset: offer.price}):
            raise Refused("approval_required", f"{reasons[0].detail}; a call by channel waits for no approval")

    async def sign(self, call: ChannelCall) -> Voucher:
        """Sign the voucher of a call that is durable. The same call always gets the same bytes."""
        if call.id not in self._vouchers:
            channel = channels.channel(self._context.conn, call.channel)
            voucher = self._vouchers[call.id] = await self.voucher(channel, call.amount, call.channel_ref)
            headers = voucher_headers(call.echo, voucher, call.intent_id)
            self._headers[call.id] = json.dumps(headers)
        return self._vouchers[call.id]

    def unsign(self, call_id: str) -> None:
        """Forget a voucher that is not presented again."""
        self._vouchers.pop(call_id, None)
        self._headers.pop(call_id, None)

    async def voucher(self, channel: Channel, amount: int, ref: str) -> Voucher:
        """Sign a voucher for an amount that is promised already. Refused as `signer.channels` does."""
        signature = await self._signer.channel(
            "voucher",
            tag=channel.id,
            asset=channel.asset,
            provider=channel.provider,
            amount=amount,
            before=channel.voucher_amount,
            iou=channel.voucher or "",
        )
        return Voucher(
            channel_id=bytes.fromhex(channel.id),
            channel_ref=ref,
            payer=self._context.config.own.raw[1:29],
            iou_key=bytes.fromhex(channel.iou_key),
            amount=amount,
            signature=signature,
        )
