"""The configured providers, and which of them are believed in a pass.

A single provider is believed while its tip is recent. Of several, a provider is believed if it is on our network,
has a recent tip and does not contradict itself (chain.provider_state). It must not give unexpected parameters
while another gives the expected ones. The others wait two minutes for one that does not answer. One that is caught
in a lie (chain.disputes) is excluded for a while. `chain.quorum_view` combines the answers of the believed ones.
Never: concludes anything about a payment; submits.
"""

import asyncio
from collections.abc import Callable, Sequence

from payagent.chain.circuit_breaker import Span
from payagent.chain.deadlines import in_time
from payagent.chain.disputes import Disputes
from payagent.chain.provider import BlockSeen, Found, Genesis, ProtocolParameters, Read, Unknown
from payagent.chain.provider_state import AHEAD_MAX_S, Odd, ProviderState
from payagent.chain.quorum_rules import is_lasting
from payagent.chain.quorum_view import QuorumView
from payagent.chain.throttled_provider import ProviderClock, ThrottledProvider
from payagent.core.problems import Refused

CHECK_EVERY_MS = 3_600_000
"""How often a provider's network and parameters are read again."""

ODD_EVERY_MS = 60_000
"""How often they are read again while they are unexpected or missing."""

TIP_PATIENCE_S = 5.0
"""How long one of several providers may take for its tip."""

OBSERVE_PATIENCE_S = 15.0
"""How long a provider's checks may take once another (of three or more: two) has finished."""

FRESH_S = 120
"""A provider lags if no tip was younger than this, in seconds, for `tip_age_max_s` seconds."""

FORK_HEIGHTS = 10
"""How far apart two heights at one slot may be because of a fork.

Two tips further apart than this plus the slots between them are not on one chain. That raises an alert, because
depth is counted from the lower one.
"""

HEIGHTS = "how high the chain is"
"""The subject of a dispute about tips that cannot be on one chain."""


class ProviderQuorum:
    """The configured providers.

    `vouch` raises `Refused` for a network that is not ours. `weigh` says how parameters are unexpected. A provider
    with unexpected parameters is not believed while another has the expected ones. If all have unexpected ones,
    the chain has changed: all are believed, and nothing is signed if those parameters forbid it
    (`QuorumView.odd`).

    `slot_at` gives the slot of a time, once a genesis was accepted. `tip_age_max_s` is the greatest age of a tip.
    """

    def __init__(
        self,
        providers: Sequence[ThrottledProvider],
        clock: ProviderClock,
        own: str,
        vouch: Callable[[Genesis], None],
        weigh: Callable[[ProtocolParameters], Odd | None],
        slot_at: Callable[[int], int | None],
        tip_age_max_s: int,
    ) -> None:
        self._states = [ProviderState(provider) for provider in providers]
        self._clock = clock
        self._vouch = vouch
        self._weigh = weigh
        self._slot_at = slot_at
        self._tip_age_max_s = tip_age_max_s
        self._disputes = Disputes(self._states, clock, own)

    @property
    def troubles(self) -> dict[str, str | None]:
        """Why each provider is not believed, by name; None when it is."""
        return {state.provider.name: state.trouble for state in self._states}

    @property
    def has_other_network(self) -> bool:
        """Whether a provider shows another network, or parameters that differ from another provider's."""
        return any(state.is_other_network for state in self._states)

    @property
    def has_several(self) -> bool:
        return len(self._states) > 1

    def alert_details(self) -> dict[str, str]:
        """The details of alerts, by subject: excluded providers, blocked signing, a lasting dispute.

        Empty if only one provider is configured.
        """
        if not self.has_several:
            return {}
        details = {
            f"provider:{state.provider.name}": f"{state.provider.name} is not believed: {state.trouble}"
            for state in self._states
            if state.trouble and (state.is_other_network or state.is_late or state.lied or state.is_mute("tip"))
        }
        details |= {
            f"provider:{state.provider.name}": f"{state.provider.name}: its newest block is lower than one before"
            for state in self._states
            if not state.trouble and is_lasting(state.fallen)
        }
        details |= {
            f"provider:{state.provider.name}": f"{state.provider.name}: {state.odd.detail}"
            for state in self._states
            if not state.trouble and state.odd and state.odd.forbids
        }
        for subject in self._disputes.lasting[:1]:
            details["providers"] = f"the providers disagree about {subject}, and it is unclear which one lies"
        return details

    def submit_providers(self) -> list[ThrottledProvider]:
        """The providers that get submissions, believed ones first; none on another network or caught in a lie."""
        now_ms = self._clock.now_ms()
        fit = [state for state in self._states if not state.is_other_network and not state.exclusion.holds(now_ms)]
        return [state.provider for state in sorted(fit, key=lambda state: state.trouble is not None)]

    async def observe(self) -> QuorumView | None:
        """Find which providers are believed now, and return their view; None if there are none."""
        tips = await self._read_tips()
        tips = [
            None if self._is_odd_one_out(state) else tip for state, tip in zip(self._states, tips, strict=True)
        ]
        believed = [state for state, tip in zip(self._states, tips, strict=True) if tip and not state.trouble]
        for state in self._states:
            state.note_pass(state in believed, self._clock.now_ms())
        late = [state for state, tip in zip(self._states, tips, strict=True) if tip and state.is_late]
        return self._view(believed, believed or late) if believed or late else None

    def _view(self, believed: Sequence[ProviderState], speaking: Sequence[ProviderState]) -> QuorumView:
        """Build the view of the believed providers, or of the merely late ones if there are no others."""
        now_ms = self._clock.now_ms()
        tips = [state.tip for state in speaking if state.tip]
        self._compare(tips)
        is_current = bool(believed) and all(
            state.tip and state.peak and state.tip.height >= state.peak.height for state in believed
        )
        is_final = is_current and not any(
            (state.exclusion.holds(now_ms) and not state.exclusion.is_relapse) or state.is_dead_at_start
            for state in self._states
        )
        return QuorumView(
            tip=min(tips, key=lambda tip: tip.height),
            is_current=is_current,
            is_final=is_final,
            odd=next((state.odd.detail for state in speaking if state.odd and state.odd.forbids), None),
            _believed=tuple(speaking),
            _awaited=tuple(state.provider.name for state in self._states if self._is_awaited(state, speaking)),
            _states=tuple(self._states),
            _disputes=self._disputes,
            _clock=self._clock,
        )

    def _is_odd_one_out(self, state: ProviderState) -> bool:
        """Whether its parameters are unexpected while those of another, not given up, are not."""
        if state.odd is None:
            return False
        now_ms = self._clock.now_ms()
        state.is_other_network = any(
            other.is_vetted and other.odd is None and not other.is_given_up(now_ms) for other in self._states
        )
        if state.is_other_network:
            state.trouble = state.odd.detail
        return state.is_other_network

    def _compare(self, tips: Sequence[BlockSeen]) -> None:
        low, high = min(tips, key=lambda tip: tip.height), max(tips, key=lambda tip: tip.height)
        if high.height - low.height > abs(high.slot - low.slot) + FORK_HEIGHTS:
            self._disputes.note(HEIGHTS)
        else:
            self._disputes.settle(HEIGHTS)

    def _is_awaited(self, state: ProviderState, speaking: Sequence[ProviderState]) -> bool:
        """Whether a provider only failed to answer or is late, and not for long yet.

        Late ones are waited for, because a clock that is off by a little could otherwise leave one provider alone.
        """
        is_out = state in speaking or state.is_other_network or state.lied or state.is_dead_at_start
        return not is_out and not state.is_mute("time" if state.is_late else "tip")

    async def _read_tips(self) -> list[BlockSeen | None]:
        """Return the tip of each provider that is believed or only late. Sets `trouble`."""
        now_ms = self._clock.now_ms()
        states = [state for state in self._states if not self._is_excluded(state, now_ms)]
        slow: Read[BlockSeen] = Unknown("no complete answer in time, while others answered")
        examined = [self._examine(state, now_ms) for state in states]
        late = slow, _unread("tip", slow)
        results = await in_time(examined, OBSERVE_PATIENCE_S, late, lambda result: result[1] is None)
        tips = {
            state.provider.name: self._believed_tip(state, *result)
            for state, result in zip(states, results, strict=True)
        }
        return [tips.get(state.provider.name) for state in self._states]

    def _is_excluded(self, state: ProviderState, now_ms: int) -> bool:
        state.is_late = False
        if not self.has_several or not state.is_excluded(now_ms):  # a single provider is never excluded
            return False
        state.trouble = state.lied
        return True

    def _believed_tip(self, state: ProviderState, read: Read[BlockSeen], trouble: str | None) -> BlockSeen | None:
        """Return its tip if it is believed or only late."""
        now_ms = self._clock.now_ms()
        state.note("tip", Unknown(trouble) if trouble else read, now_ms)
        if trouble is not None or not isinstance(read, Found):
            state.trouble = trouble
            return None
        state.tip = read.value
        state.trouble = self._lateness(state, read.value, now_ms)
        state.is_late = state.trouble is not None
        state.note("time", read if state.trouble is None else Unknown(state.trouble), now_ms)
        return read.value

    async def _examine(self, state: ProviderState, now_ms: int) -> tuple[Read[BlockSeen], str | None]:
        """Return its tip, and why it is not to be believed."""
        read = await self._read_tip(state)
        if not isinstance(read, Found):
            return read, _unread("tip", read)
        state.has_answered = True
        trouble = await self._distrust(state, now_ms)
        if trouble is None and self.has_several:
            trouble = await state.contradiction(read.value)
        if trouble is None:
            trouble = await state.climb(read.value, now_ms)
        return read, trouble

    async def _read_tip(self, state: ProviderState) -> Read[BlockSeen]:
        if not self.has_several:
            return await state.provider.tip()
        try:
            async with asyncio.timeout(TIP_PATIENCE_S):
                return await state.provider.tip()
        except TimeoutError:
            return Unknown(f"tip: no answer in {TIP_PATIENCE_S:.0f} s")

    async def _distrust(self, state: ProviderState, now_ms: int) -> str | None:
        """Say why the provider's network or parameters are not to be believed; read at first and every hour.

        They are also read again after the provider said that a transaction can never be valid, because the
        parameters may have changed. A server without parameters, as for minutes when an epoch begins, keeps its
        earlier ones.
        """
        if state.checked.holds(now_ms) and state.provider.refused_at_ms < state.checked.from_ms:
            return None
        genesis = state.genesis or await state.provider.genesis()
        found = genesis if isinstance(genesis, Found) else None  # not read again at the next try
        if state.is_vetted:  # otherwise a very slow server would be accepted over several tries
            state.genesis = found
        parameters = await state.provider.parameters()
        state.genesis = found
        if not isinstance(genesis, Found):
            return _unread("genesis", genesis)
        try:
            self._vouch(genesis.value)
        except Refused as refusal:
            state.genesis, state.odd = None, None
            state.is_other_network, state.is_vetted = True, False
            return refusal.detail
        if not isinstance(parameters, Found) and not state.is_vetted:
            return _unread("parameters", parameters)
        state.genesis = None
        if isinstance(parameters, Found):
            odd = self._weigh(parameters.value)
            if odd is not None and state.odd is None:  # the others may have them too by now
                for other in self._states:
                    other.checked = Span()
            state.odd = odd
        state.is_other_network, state.is_vetted = False, True
        is_expected = isinstance(parameters, Found) and state.odd is None
        state.checked = Span(now_ms, now_ms + (CHECK_EVERY_MS if is_expected else ODD_EVERY_MS))
        return None

    def _lateness(self, state: ProviderState, tip: BlockSeen, now_ms: int) -> str | None:
        """Say why its tip is not recent: old, always lagging, or in the future; None when it is recent."""
        slot = self._slot_at(now_ms)
        age_s = 0 if slot is None else slot - tip.slot
        if age_s <= FRESH_S or state.fresh_at_ms is None or now_ms < state.fresh_at_ms:
            state.fresh_at_ms = now_ms
        if age_s > self._tip_age_max_s or now_ms - state.fresh_at_ms > self._tip_age_max_s * 1000:
            return f"its newest block is {age_s} s old"
        if age_s < -AHEAD_MAX_S and self.has_several:
            return f"its newest block is {-age_s} s in the future"
        return None


def _unread(kind: str, read: object) -> str:
    """Say for people why something could not be read."""
    return f"could not be read ({read.reason if isinstance(read, Unknown) else f'{kind}: not there'})"
