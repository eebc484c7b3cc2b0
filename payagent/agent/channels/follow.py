"""Follows channels on the chain in each pass: what their steps became, where they stand, and what is due to exit.

Start with `ChannelFollow.run`. It reads each fact again, so the next pass makes up for one that was cut off.

Never: concludes anything from an absence; signs.
"""

from dataclasses import replace

from payagent.agent.base.log import log
from payagent.agent.channels import positions
from payagent.agent.channels.moves import move
from payagent.agent.channels.steps import ChannelSteps
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.chain.provider import Found, Read
from payagent.chain.quorum_rules import Listing
from payagent.chain.quorum_view import QuorumView
from payagent.core import channel as machine
from payagent.core.channel import Channel, ChannelMove, ChannelPhase
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import channels as rows
from payagent.wallet import cbor_write as cbor

IDLE_MS = 7 * 86_400_000
"""How long a merchant may leave a call without an answer before its channel is closed."""


_HOPS_MAX = 100
"""How many transactions of a channel a pass follows from its last known output."""


class ChannelFollow:
    """Follows one account's channels. One `run` at a time. `ceilings`: of channels that an older ledger opens."""

    def __init__(
        self, context: AgentContext, lifecycle: PaymentLifecycle, steps: ChannelSteps, ceilings: dict[str, int]
    ) -> None:
        self._context, self._lifecycle, self._steps, self._ceilings = context, lifecycle, steps, ceilings

    async def run(self, view: QuorumView) -> None:
        """Follow each channel. What fails for one is logged, and keeps no other from its turn.

        `listed`: what the pass has read at each script's address.
        """
        listed: dict[str, Read[Listing]] = {}
        for channel in rows.followed_channels(self._context.conn, self._context.config.account):
            try:
                await self._follow(view, listed, channel)
            except Exception as error:
                is_bug = not isinstance(error, Refused)
                log.warning("channel.step_failed", channel=channel.id, error=repr(error), exc_info=is_bug)

    async def _follow(self, view: QuorumView, listed: dict[str, Read[Listing]], channel: Channel) -> None:
        steps = rows.steps_of(self._context.conn, channel.id)
        at = None if channel.phase is ChannelPhase.ENDED else await self._find(view, listed, channel, steps)
        openings = [step for step in steps if step.step == "open"]
        for step in steps:
            event = _event_of(step, at, is_last=step in openings[-1:], ceiling=self._ceilings.get(channel.id, 0))
            if event is not None and (channel.phase, event.event) in machine.EFFECTS:
                channel = await self._move(channel, event, step)
        if at is None or channel.phase not in (ChannelPhase.OPEN, ChannelPhase.CLOSING):
            return
        moved = machine.Moved(at.position)
        if any(getattr(channel, name) != value for name, value in moved.sets(channel).items()):
            channel = await self._move(channel, moved)
        await self._cancel_overtaken(steps, at)
        if channel.phase is ChannelPhase.OPEN and (why := self._why_gone(channel)) is not None:
            channel = await self._move(channel, machine.Close(why))
        is_free = not self._context.is_paused and not any(step.is_under_way for step in steps)
        if channel.phase is ChannelPhase.CLOSING and is_free and (due := self._exit_due(at)) is not None:
            await self._steps.spend(rows.CHANNELS_APP, channel, due, at)

    async def _find(
        self,
        view: QuorumView,
        listed: dict[str, Read[Listing]],
        channel: Channel,
        steps: list[rows.ChannelStepRow],
    ) -> positions.ChannelUtxo | None:
        """The channel's output; None if the chain does not show it, or the providers do not agree on it.

        Anybody can make others that are alike. Of several, ours descends from its last known output.
        """
        address = positions.address_of(channel.script_hash).text
        if address not in listed:
            listed[address] = await view.script_utxos(address)
        read = listed[address]
        if channel.ref is None:
            opening = self._context.payment(steps[-1].payment_id)
            channel = replace(channel, ref=f"{opening.attempt.tx_id}#0")
        if not isinstance(read, Found) or channel.ref in read.value.doubtful:
            return None
        found = positions.alike(channel, self._context.config.own.payment_key_hash, read.value.agreed)
        if found and found[0].ref != channel.ref:  # a single one may be a stranger's too
            # a rollback may have taken the last known output, so the walk may begin at the opening
            opened = (self._context.payment(one.payment_id) for one in steps if one.step == "open")
            begins = [channel.ref or "", *(f"{row.attempt.tx_id}#0" for row in opened)]
            found = await self._descended(view, begins, found)
        return found[0] if len(found) == 1 else None

    async def _descended(
        self, view: QuorumView, begins: list[str], found: list[positions.ChannelUtxo]
    ) -> list[positions.ChannelUtxo]:
        """Those of the outputs that descend from one of the beginnings. A channel's output is its step's first."""
        by_ref = {utxo.ref: utxo for utxo in found}
        for ref in begins:
            for _ in range(_HOPS_MAX):
                if ref in by_ref:
                    return [by_ref[ref]]
                if not isinstance(spender := await view.spender(ref), Found):
                    break
                ref = f"{spender.value.tx_id}#0"
        return []

    async def _move(self, channel: Channel, by: ChannelMove, step: rows.ChannelStepRow | None = None) -> Channel:
        """Write an event, and that it was this step's."""

        def job(unit: Unit, now_ms: int) -> Channel:
            if step is not None:
                rows.set_booked(unit, step.payment_id, step.is_posted)
            return move(unit, rows.channel(unit.conn, channel.id), by, now_ms)

        return await self._context.write_at("channel", job)

    async def _cancel_overtaken(self, steps: list[rows.ChannelStepRow], at: positions.ChannelUtxo) -> None:
        """Cancel the steps that spend an earlier output of the channel: the merchant has spent it first."""
        (tx_id, index), why = at.tx_ref, "the merchant's own transaction spent the channel's output first"
        for step in steps:
            row = self._context.payment(step.payment_id)
            is_newest = tx_id.hex() == row.attempt.tx_id or tx_id + cbor.uint(index) in (row.attempt.cbor or b"")
            if step.step != "open" and row.state in (State.SIGNED, State.IN_FLIGHT) and not is_newest:
                await self._lifecycle.cancel(row, Refused("payment_void/channel_moved", why))

    def _why_gone(self, channel: Channel) -> str | None:
        """Why payagent closes an open channel by itself; None if it does not."""
        conn, most = self._context.conn, self._context.config.rules(channel.origin).stop_after_unserved
        if most is not None and rows.unserved_in_a_row(conn, channel.id, most) >= most:
            return f"the merchant charged {most} calls in a row and did not serve them"
        call, now_ms = rows.unanswered_call(conn, channel.id), self._context.ports.clock.now_ms()
        is_idle = call is not None and now_ms - call.created_at_ms >= IDLE_MS
        return "the merchant has not answered a call for 7 days" if is_idle else None

    def _exit_due(self, at: positions.ChannelUtxo) -> str | None:
        """The step that gets back what is left; None while the withdraw delay lasts."""
        elapse_at_ms = at.output.stage.elapse_at_ms
        if elapse_at_ms is None:
            return "end" if at.position.claimed is None else "close"
        block_ms = self._context.chain.block_ms(self._context.ports.clock.now_ms()) or 0
        return "elapse" if block_ms >= elapse_at_ms else None


def _event_of(
    step: rows.ChannelStepRow, at: positions.ChannelUtxo | None, *, is_last: bool, ceiling: int
) -> ChannelMove | None:
    """The event that a step has caused and that its channel has not taken yet.

    An opening that is not the last one was never signed: the last one spends the same nonce UTxO.
    """
    if step.is_posted == step.is_booked:
        return machine.OpeningVoid() if step.step == "open" and step.is_over and is_last else None
    ended, units = (machine.EndLost(), machine.Ended(step.units)), step.units
    events: dict[str, tuple[ChannelMove, ChannelMove | None]] = {
        "open": (machine.OpeningLost(), None if at is None else machine.Opened(at.position, units, ceiling)),
        "add": (machine.Added(-units), machine.Added(units)),
        "end": ended,
        "elapse": ended,
    }
    return events[step.step][step.is_posted] if step.step in events else None
