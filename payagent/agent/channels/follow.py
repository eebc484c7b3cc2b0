"""Follows channels on the chain in each pass: what their steps became, where they stand, and what is due to exit.

Start with `ChannelFollow.run`. It reads each fact again, so the next pass makes up for one that was cut off.

Never: concludes anything from an absence; signs.
"""

from dataclasses import replace

from payagent.agent.base.log import log
from payagent.agent.channels import positions
from payagent.agent.channels.moves import move
from payagent.agent.channels.steps import ChannelSteps, is_under_way
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.chain.provider import Found
from payagent.chain.quorum_view import QuorumView
from payagent.core import channel as machine
from payagent.core.channel import Channel, ChannelMove, ChannelPhase
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import channels as rows
from payagent.store.rows.channels import ChannelStepRow
from payagent.store.rows.upkeep import UPKEEP_APP
from payagent.wallet import cbor_write as cbor

IDLE_MS = 7 * 86_400_000
"""How long a merchant may leave a call without an answer before its channel is closed."""


class ChannelFollow:
    """Follows one account's channels. One `run` at a time."""

    def __init__(self, context: AgentContext, lifecycle: PaymentLifecycle, steps: ChannelSteps) -> None:
        self._context, self._lifecycle, self._steps = context, lifecycle, steps

    async def run(self, view: QuorumView) -> None:
        """Follow each channel. What fails for one is logged, and keeps no other from its turn."""
        for channel in rows.followed_channels(self._context.conn, self._context.config.account):
            try:
                await self._follow(view, channel)
            except Exception as error:
                is_bug = not isinstance(error, Refused)
                log.warning("channel.step_failed", channel=channel.id, error=repr(error), exc_info=is_bug)

    async def _follow(self, view: QuorumView, channel: Channel) -> None:
        steps = rows.steps_of(self._context.conn, channel.id)
        at = await self._find(view, channel, steps)
        for step in steps:
            event = _event_of(channel, step, at)
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
        step_due = self._exit_due(at)
        if channel.phase is ChannelPhase.CLOSING and step_due is not None and not any(map(is_under_way, steps)):
            await self._steps.spend(UPKEEP_APP, channel, step_due, at)

    async def _find(
        self, view: QuorumView, channel: Channel, steps: list[ChannelStepRow]
    ) -> positions.ChannelUtxo | None:
        """The channel's output; None if the chain does not show it, or the providers do not agree on it.

        Anybody can make others that are alike. Of several, ours descends from its last known output.
        """
        read = await view.script_utxos(positions.address_of(channel.script_hash).text)
        if channel.ref is None:
            opening = self._context.payment(steps[0].payment_id)
            channel = replace(channel, ref=f"{opening.attempt.tx_id}#0")
        if not isinstance(read, Found) or channel.ref in read.value.doubtful:
            return None
        found = positions.alike(channel, self._context.config.own.payment_key_hash, read.value.agreed)
        if len(found) > 1:
            spender = await view.spender(channel.ref or "")
            tx_id = spender.value.tx_id if isinstance(spender, Found) else ""
            found = [utxo for utxo in found if utxo.ref.startswith(f"{tx_id}#")]
        return found[0] if len(found) == 1 else None

    async def _move(self, channel: Channel, by: ChannelMove, step: ChannelStepRow | None = None) -> Channel:
        """Write an event, and that it was this step's."""

        def job(unit: Unit, now_ms: int) -> Channel:
            if step is not None:
                rows.set_booked(unit, step.payment_id, step.is_posted)
            return move(unit, rows.channel(unit.conn, channel.id), by, now_ms)

        return await self._context.write_at("channel", job)

    async def _cancel_overtaken(self, steps: list[ChannelStepRow], at: positions.ChannelUtxo) -> None:
        """Cancel the steps that spend an earlier output of the channel: the merchant has spent it first."""
        (tx_id, index), why = at.tx_ref, "the merchant's own transaction spent the channel's output first"
        for step in steps:
            if step.step != "open" and step.state in (State.SIGNED, State.IN_FLIGHT):
                attempt = self._context.payment(step.payment_id).attempt
                is_ours = tx_id + cbor.uint(index) in (attempt.cbor or b"") or tx_id.hex() == attempt.tx_id
                if not is_ours:
                    row = self._context.payment(step.payment_id)
                    await self._lifecycle.cancel(row, Refused("payment_void/channel_moved", why))

    def _why_gone(self, channel: Channel) -> str | None:
        """Why payagent closes an open channel by itself; None if it does not."""
        conn, most = self._context.conn, self._context.config.rules(channel.origin).stop_after_unserved
        if most is not None and rows.unserved_in_a_row(conn, channel.id, most) >= most:
            return f"the merchant charged {most} calls in a row and did not serve them"
        call = rows.unanswered_call(conn, channel.id)
        is_idle = call is not None and self._context.ports.clock.now_ms() - call.created_at_ms >= IDLE_MS
        return "the merchant has not answered a call for 7 days" if is_idle else None

    def _exit_due(self, at: positions.ChannelUtxo) -> str | None:
        """The step that gets back what is left; None while the withdraw delay or a pause lasts."""
        block_ms = self._context.chain.block_ms(self._context.ports.clock.now_ms())
        if block_ms is None or self._context.is_paused:
            return None
        if at.elapse_at_ms is not None:
            return "elapse" if block_ms >= at.elapse_at_ms else None
        return "close" if at.position.claimed is not None else "end"


def _event_of(channel: Channel, step: ChannelStepRow, at: positions.ChannelUtxo | None) -> ChannelMove | None:
    """The event that a step has caused and that its channel has not taken yet."""
    if step.is_posted == step.is_booked:
        return machine.OpeningVoid() if step.step == "open" and step.is_over else None
    opened = None if at is None else machine.Opened(at.position, step.units)
    ended = machine.EndLost(), machine.Ended(step.units)
    events: dict[str, tuple[ChannelMove, ChannelMove | None]] = {
        "open": (machine.OpeningLost(), opened),
        "add": (machine.Added(-step.units), machine.Added(step.units)),
        "end": ended,
        "elapse": ended,
    }
    return events[step.step][step.is_posted] if step.step in events else None
