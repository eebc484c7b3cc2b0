"""Selects the providers that are believed in a pass, and raises alerts about the others.

Never: concludes anything about a payment or a UTxO.
"""

from collections.abc import Mapping

from payagent.agent.base.chain_view import TIP_AGE_MAX_S, odd_parameters
from payagent.agent.context import AgentContext
from payagent.chain.quorum import ProviderQuorum
from payagent.chain.quorum_rules import Silence, is_lasting, missed
from payagent.chain.quorum_view import QuorumView
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts

STEADY_MS = 600_000
"""How long a provider that failed again soon after it recovered must work before its alert is cleared.

The same holds for one that was excluded when the last process ended. Otherwise a provider that fails in every
other pass would raise and clear an alert each time.
"""


class ProviderSelection:
    """Runs the quorum for each pass.

    `view`: the last pass's view of the chain; None if no provider was believed, and then `trouble` says why.
    """

    def __init__(self, context: AgentContext) -> None:
        self.view: QuorumView | None = None
        self.trouble: str | None = None
        self._context = context
        clock, own = context.ports.clock, context.config.own.text
        self._quorum = ProviderQuorum(
            context.all_providers,
            clock,
            own,
            context.chain.learn_genesis,
            odd_parameters,
            self._slot_at,
            TIP_AGE_MAX_S,
        )
        # alerts from before the last stop: those of providers that recovered since must be cleared
        self._alerted = sorted(alerts.raised(context.conn, "provider_excluded"))
        self._in_trouble_ms = dict.fromkeys(self._alerted, clock.now_ms())
        self._recovered_ms: dict[str, int] = {}
        self._unsteady = set(self._alerted)
        self._gap: Silence | None = None
        """Since when no pass could be completed."""

    async def observe(self) -> QuorumView | None:
        """The view that the believed providers show together; it serves the whole pass."""
        context, quorum = self._context, self._quorum
        self.view = view = await quorum.observe()
        context.submit_providers = quorum.submit_providers()
        context.providers = quorum.troubles
        await self._update_alerts()
        if view is None:
            self.trouble = "; ".join(f"{name}: {why}" for name, why in quorum.troubles.items())
            if context.chain.tip is None or quorum.has_other_network:
                context.chain.problem = self.trouble
            return None
        context.chain.problem = view.odd
        return view

    async def _update_alerts(self) -> None:
        """Raise one alert for each provider that is not believed and not waited for, and for a lasting dispute.

        Also raise one while passes cannot be completed because a provider is waited for.
        Clear the alerts that are over.
        """
        now_ms, unread = self._context.ports.clock.now_ms(), self._context.chain.unread
        details = self._quorum.alert_details()
        self._gap = missed(self._gap, now_ms) if unread else None
        # a dispute also keeps passes from completing, and has its own alert
        if is_lasting(self._gap) and "providers" not in details:
            details["chain"] = f"the chain cannot be read in full: {'; '.join(unread.values())}"
        subjects = sorted({*details, *self._not_steady_yet(details, now_ms)})
        if subjects == self._alerted:
            return

        def job(unit: Unit) -> None:
            for subject, detail in details.items():
                raise_alert(unit, "provider_excluded", subject, {"detail": detail}, now_ms)
            for subject in self._alerted:
                if subject not in subjects:
                    clear_alert(unit, subject, {"detail": f"over: {subject}"}, now_ms)

        await self._context.write("alert", job)
        self._recovered_ms |= {subject: now_ms for subject in self._alerted if subject not in subjects}
        self._alerted = subjects

    def _not_steady_yet(self, details: Mapping[str, str], now_ms: int) -> list[str]:
        """Providers that work now but failed again and again."""
        for subject in details:
            if subject not in self._alerted and _is_soon(self._recovered_ms.get(subject), now_ms):
                self._unsteady.add(subject)
            self._in_trouble_ms[subject] = now_ms
        self._unsteady = {subject for subject in self._unsteady if _is_soon(self._in_trouble_ms[subject], now_ms)}
        return [subject for subject in self._alerted if subject not in details and subject in self._unsteady]

    def _slot_at(self, now_ms: int) -> int | None:
        slots = self._context.chain.slots
        return slots.slot_at(now_ms) if slots else None


def _is_soon(after_ms: int | None, now_ms: int) -> bool:
    return after_ms is not None and 0 <= now_ms - after_ms < STEADY_MS
