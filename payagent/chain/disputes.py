"""What providers disagree about, since when, and which of them lies.

Never: says what is true; writes to the ledger.
"""

import asyncio
from collections.abc import Sequence

from payagent.chain.provider import Read
from payagent.chain.provider_state import TWO_HEIGHTS, ProviderState
from payagent.chain.quorum_rules import PATIENCE_MS, ProviderAnswer, Silence, is_lasting, missed
from payagent.chain.throttled_provider import ProviderClock
from payagent.core.aggregate import TxSeen

SEARCH_PATIENCE_S = 60.0
"""How long a provider may take to answer further questions about a disputed transaction."""


class Disputes:
    """The open disputes by subject. `own` is the wallet's address, whose UTxOs reveal a liar."""

    def __init__(self, states: Sequence[ProviderState], clock: ProviderClock, own: str) -> None:
        self._states = states
        self._clock = clock
        self._own = own
        self._open: dict[str, Silence] = {}

    @property
    def lasting(self) -> list[str]:
        """The disputed subjects that an alert names."""
        now_ms = self._clock.now_ms()
        return [subject for subject, dispute in self._open.items() if _lasts(dispute, now_ms)]

    def settle(self, subject: str) -> None:
        self._open.pop(subject, None)
        for state in self._states:
            state.shown.pop(subject, None)
            state.suspicions.pop(subject, None)

    def note(self, subject: str) -> bool:
        """Note that providers disagree. Returns whether the disagreement lasts, which raises an alert."""
        now_ms = self._clock.now_ms()
        self._open[subject] = dispute = missed(self._open.get(subject), now_ms)
        return _lasts(dispute, now_ms)

    async def follow(self, tx_id: str, answers: Sequence[ProviderAnswer[TxSeen]]) -> bool:
        """Note that providers disagree about a transaction, and look for the liar once that lasts.

        Returns whether the disagreement lasts.
        """
        if not self.note(tx_id):
            return False
        now_ms = self._clock.now_ms()
        for answer in answers:
            state = next((state for state in self._states if state.provider.name == answer.name), None)
            if state is None:
                continue
            why = await self._lie(state, tx_id, answer.read)
            if why == TWO_HEIGHTS or state.is_convicted(tx_id, why, now_ms):
                state.exclude(now_ms, why or "")
        return True

    async def _lie(self, state: ProviderState, tx_id: str, read: Read[TxSeen]) -> str | None:
        try:
            async with asyncio.timeout(SEARCH_PATIENCE_S):
                return await state.lie(tx_id, read, self._own)
        except TimeoutError:
            return None


def _lasts(dispute: Silence, now_ms: int) -> bool:
    return is_lasting(dispute) and now_ms - dispute.last_ms <= PATIENCE_MS
