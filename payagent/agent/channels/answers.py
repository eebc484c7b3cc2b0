"""Records what merchants answer to vouchers: the count rises by a charge, or by our own voucher that they show.

Start with `CallAnswers.take_answer`. An answer pays nothing: what a call may cost was promised before it left.

Never: presents a voucher; adopts a count that no voucher of ours covers.
"""

from contextlib import suppress
from typing import NamedTuple

from payagent.agent.channels.moves import move
from payagent.agent.channels.promises import CallPromises
from payagent.agent.context import AgentContext
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.aggregate import PaymentRow
from payagent.core.changes import EndIntent
from payagent.core.channel import (
    CALLS,
    EFFECTS,
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
from payagent.core.pay_and_retry import Answered, RetryVerdict
from payagent.core.payment.machine import is_served
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import HttpResponse
from payagent.dialects.x402_batch import (
    Voucher,
    VoucherVerdict,
    read_charge,
    read_correction,
    read_voucher_answer,
)
from payagent.store.db.unit import Unit
from payagent.store.executor import write
from payagent.store.rows import channels
from payagent.wallet.channel_tx import is_iou

_SAID = {
    VoucherVerdict.SERVED: RetryVerdict.SERVED,
    VoucherVerdict.RETRY: RetryVerdict.UNCLEAR,
    VoucherVerdict.ADOPT: RetryVerdict.INVOICED,
    VoucherVerdict.CLOSE: RetryVerdict.REFUSED,
    VoucherVerdict.REFUSE: RetryVerdict.REFUSED,
    VoucherVerdict.OTHER: RetryVerdict.OTHER,
}


class Shown(NamedTuple):
    """A merchant's count, and the voucher that it shows for it."""

    total: int
    amount: int
    signature: bytes


class CallAnswers(Deliveries):
    """The deliveries of calls. `answered`: calls whose last answer was final and counts for nothing."""

    def __init__(self, context: AgentContext, lifecycle: PaymentLifecycle, promises: CallPromises) -> None:
        super().__init__(context, lifecycle)
        self._promises = promises
        self.answered: set[str] = set()

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """The client has the answer: an intent with a derived key ends. `take_answer` has counted it before."""
        ended = EndIntent(self._context.payment(payment_id).intent.id)
        if is_served(http_status):
            await self._context.write_at(
                "delivery", lambda unit, now_ms: write(unit, (ended,), now_ms), payment_id
            )
        return self._context.payment(payment_id)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """No answer came, so the count is not known. The same voucher may be presented again."""
        call = channels.call(self._context.conn, payment_id)
        if call is not None and call.state is CallState.PROMISED:
            await self._context.write("delivery", lambda unit: channels.doubt(unit, call.channel), payment_id)

    async def take_answer(
        self,
        payment_id: str,
        response: HttpResponse,
        *,
        shown_depth: int | None = None,
        is_delivered: bool = False,
        has_served: bool = False,
    ) -> tuple[PaymentRow, Answered]:
        """As `Deliveries.take_answer`. After a correction the call has another voucher: present that at once."""
        context, promises = self._context, self._promises
        verdict, reason = read_voucher_answer(response)
        async with promises.locks[_known(channels.call(context.conn, payment_id)).channel]:
            call = _known(channels.call(context.conn, payment_id))
            voucher = await promises.sign(call)

            def job(unit: Unit, now_ms: int) -> CallState | None:
                if verdict is VoucherVerdict.SERVED:
                    serve(unit, call, voucher, response, now_ms)
                    if is_delivered:
                        write(unit, (EndIntent(call.intent_id),), now_ms)
                elif call.state is CallState.PROMISED and verdict is not VoucherVerdict.RETRY:
                    return self._take(unit, call, voucher, response, now_ms)
                return None

            after = await context.write_at("delivery", job, payment_id)
            if after is not None or verdict is VoucherVerdict.SERVED:
                promises.unsign(payment_id)
            if after is CallState.PROMISED:
                await promises.sign(_known(channels.call(context.conn, payment_id)))
                return context.payment(payment_id), Answered(RetryVerdict.PENDING, reason, response.status, 0.0)
        after_s = again_after_s(1) if verdict is VoucherVerdict.RETRY else None
        if after_s is None:
            self.answered.add(payment_id)
        return context.payment(payment_id), Answered(_SAID[verdict], reason, response.status, after_s)

    def _take(
        self, unit: Unit, call: ChannelCall, voucher: Voucher, response: HttpResponse, now_ms: int
    ) -> CallState | None:
        """Take an answer that serves nothing. Returns the call's state if the merchant's count decides it."""
        channel = channels.channel(unit.conn, call.channel)
        shown = learn(unit, channel, response, voucher, now_ms)
        before = call.amount - call.price
        if not isinstance(shown, int) or shown == before:
            channels.doubt(unit, channel.id)
            return None
        if shown > before:
            return channels.set_call(unit, call, CallState.PAID_NOT_SERVED, shown - before, now_ms).state
        channel = channels.channel(unit.conn, call.channel)
        amount = channel.count + call.price
        move(unit, channel, Promise(amount), now_ms)
        channels.promise_again(unit, call.id, amount, channel.ref or "", now_ms)
        return CallState.PROMISED


def serve(unit: Unit, call: ChannelCall, voucher: Voucher, response: HttpResponse, now_ms: int) -> None:
    """Count what a served call cost. Without a charge within its price the count is not known afterwards."""
    if call.state is CallState.SERVED:
        return
    channel, charged = channels.channel(unit.conn, call.channel), None
    is_fit = call.state is CallState.PROMISED and (channel.phase, ChannelEvent.SERVE) in EFFECTS
    with suppress(Refused):
        charge = read_charge(response, voucher)
        charged, count = charge.units, None if charge.state is None else charge.state.count
        is_fit = is_fit and charged <= call.price and count in (None, channel.count + charged)
    if is_fit and charged is not None:
        move(unit, channel, Served(charged, voucher.signature.hex(), voucher.amount), now_ms)
    else:
        channels.doubt(unit, channel.id)
    is_above = charged is not None and charged > call.price
    state = CALLS.get((call.state, CallEvent.COUNT if is_above else CallEvent.SERVE))
    if state is not None:
        channels.set_call(unit, call, state, call.price if is_above else charged, now_ms)


def learn(unit: Unit, channel: Channel, response: HttpResponse, voucher: Voucher, now_ms: int) -> int | None:
    """Adopt the merchant's count, if a voucher of ours covers it, and return it. None: it is not known.

    The channel is closed if its merchant takes no more vouchers, or counts more than was ever signed.
    """
    verdict, reason = read_voucher_answer(response)
    shown = _shown(verdict, response, voucher)
    if channel.phase is not ChannelPhase.OPEN:
        return None
    if verdict is VoucherVerdict.CLOSE:
        move(unit, channel, Close(f"its merchant takes no more vouchers: {reason}"), now_ms)
    if shown is None:
        return None
    is_ours = is_iou(bytes.fromhex(channel.iou_key), voucher.channel_id, shown.amount, shown.signature)
    if is_ours and channel.claimed <= shown.total <= shown.amount:
        move(unit, channel, Corrected(shown.total, shown.signature.hex(), shown.amount), now_ms)
        return shown.total
    if shown.total > channel.signed:
        why = f"its merchant counts {shown.total}, and payagent has signed {channel.signed}"
        move(unit, channel, Close(f"channel_disputed: {why}"), now_ms)
    return None


def _shown(verdict: VoucherVerdict, response: HttpResponse, voucher: Voucher) -> Shown | None:
    """What an answer shows of the channel. A charge is for the very voucher that was presented."""
    with suppress(Refused):
        if verdict is VoucherVerdict.ADOPT:
            correction = read_correction(response, voucher.channel_id)
            return Shown(correction.state.count or 0, correction.signed, correction.signature)
        state = read_charge(response, voucher).state if verdict is VoucherVerdict.SERVED else None
        if state is not None and state.count is not None:
            return Shown(state.count, voucher.amount, voucher.signature)
    return None


def _known(call: ChannelCall | None) -> ChannelCall:
    if call is None:
        raise Refused("not_found", "there is no such call")
    return call
