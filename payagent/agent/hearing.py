"""Hearing: which providers are heard and believed, what they show together, and who is told of those that are not.

May import: chain.panel, store, agent.alarm, .chainview, .desk. Never: concludes anything of a payment or a coin.
"""

from payagent.agent.alarm import clear_alert, raise_alert
from payagent.agent.chainview import TIP_AGE_MAX_S, odd_parameters
from payagent.agent.desk import Desk
from payagent.chain.panel import Panel, View
from payagent.store.unit import Unit


class Hearing:
    """`view` is what the last look saw the chain by; None when nobody was heard, and then `trouble` says why."""

    def __init__(self, desk: Desk) -> None:
        self.view: View | None = None
        self.trouble: str | None = None
        self._desk = desk
        clock, own = desk.ports.clock, desk.terms.own.text
        self._panel = Panel(
            desk.sources,
            clock,
            own,
            desk.chain.learn_genesis,
            odd_parameters,
            self._slot_at,
            TIP_AGE_MAX_S,
        )
        self._told_out: list[str] = []

    async def look(self) -> View | None:
        """What the providers show together that are to be believed; it serves the whole look."""
        desk, panel = self._desk, self._panel
        self.view = view = await panel.look()
        desk.senders = panel.senders()
        desk.providers = panel.troubles
        await self._tell_who_is_out()
        if view is None:
            self.trouble = "; ".join(f"{name}: {why}" for name, why in panel.troubles.items())
            if desk.chain.tip is None or panel.has_foreign:
                desk.chain.problem = self.trouble
            return None
        desk.chain.problem = view.odd
        return view

    async def _tell_who_is_out(self) -> None:
        """Tell once of a provider that is not heard and not waited for, and of a dispute that nothing settles."""
        out = self._panel.outs()
        subjects = sorted(out)
        if subjects == self._told_out:
            return
        now_ms = self._desk.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            for subject, detail in out.items():
                raise_alert(unit, "provider_out", subject, {"detail": detail}, now_ms)
            for subject in self._panel.subjects():
                if subject not in out:
                    clear_alert(unit, subject, {"detail": f"over: {subject}"}, now_ms)

        await self._desk.write("alert", job)
        self._told_out = subjects

    def _slot_at(self, now_ms: int) -> int | None:
        slots = self._desk.chain.slots
        return slots.slot_at(now_ms) if slots else None
