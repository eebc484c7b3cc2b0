"""The state of one provider, and the checks that it does not contradict itself.

Three contradictions are known: a provider denies its own newest block, gives two heights for one block, or lists a
UTxO of a transaction that it denies. Replicas and indexes can look like that for a moment, so most contradictions
count only when they last. A provider caught in a lie is excluded for a while: its answers do not count and it gets
no submissions.
Never: compares one provider with another (chain.quorum does).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from payagent.chain.circuit_breaker import Span
from payagent.chain.provider import BlockSeen, Found, Genesis, NotFound, Read, Unknown, denies
from payagent.chain.quorum_rules import MISSES_MIN, Silence, is_lasting, missed
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.aggregate import TxSeen

AHEAD_MAX_S = 120
"""How far a tip may be ahead of our clock, in seconds.

It is also how many blocks a tip may rise beyond the number of slots since the highest block.
"""

FALLEN_MS = 600_000
"""How long a provider stays below its highest block and denies it before that block no longer counts.

A tip that is too high for the slots passed is refused for as long: the earlier height may have been the lie.
"""

START_PATIENCE_MS = 10_000
"""How long a provider that has not answered since the start is waited for.

It has shown nothing yet that its absence could hide. Until its silence is lasting (`is_lasting`), nothing is
concluded as final (`QuorumView.is_final`), and anything new to the ledger takes three reads.
"""

CONVICTION_MS = 60_000
"""The time between two contradictions that convict a provider."""

EXCLUSION_MS = 600_000
"""How long a provider caught in a lie is excluded."""

ABSENT_MS = 600_000
"""How long a provider has to be missing, pass after pass, before the others may settle without it.

A lagging replica denies its provider's newest block, so an honest provider may be missing for minutes, repeatedly.
"""

FOR_GOOD = ("tx", "block", "utxos")
"""The kinds of read that lead to conclusions which no later pass can undo."""

_READ_EVERY_PASS = {"tip", "time"}
"""The kinds that each pass reads from every provider."""

TWO_HEIGHTS = "it shows two heights for one block"
"""One case convicts: a block's hash fixes its height and slot, so a lagging index cannot explain it."""


class Odd(NamedTuple):
    """Unexpected protocol parameters, and whether they forbid signing."""

    detail: str
    forbids: bool


@dataclass(frozen=True, slots=True)
class Exclusion:
    """The time during which a provider caught in a lie is excluded."""

    span: Span = field(default_factory=Span)
    is_relapse: bool = False
    """Whether it began soon after another exclusion: the provider was believed again, and lied again."""

    def holds(self, now_ms: int) -> bool:
        return self.span.holds(now_ms)

    def after(self, at_ms: int) -> "Exclusion":
        """Return the exclusion after one more lie.

        Lies close in time make one exclusion, in whatever order they are found.
        """
        from_ms, until_ms = self.span.from_ms, self.span.until_ms
        if from_ms - EXCLUSION_MS < at_ms < until_ms:
            span = Span(min(from_ms, at_ms), max(until_ms, at_ms + EXCLUSION_MS))
            return Exclusion(span, self.is_relapse)
        is_relapse = until_ms > 0 and 0 <= at_ms - until_ms <= EXCLUSION_MS
        return Exclusion(Span(at_ms, at_ms + EXCLUSION_MS), is_relapse)


@dataclass(slots=True)
class ProviderState:
    """The state of one provider. `trouble` says why it is not believed; None when it is."""

    provider: ThrottledProvider
    trouble: str | None = "not asked yet"
    has_answered: bool = False
    is_other_network: bool = False
    odd: Odd | None = None
    """Its unexpected parameters; None if payagent supports them."""

    is_late: bool = False
    tip: BlockSeen | None = None
    peak: BlockSeen | None = None
    fallen: Silence | None = None
    leapt: Silence | None = None
    fresh_at_ms: int | None = None
    was_believed: bool = False
    has_listed_utxos: bool = False
    absence: Silence | None = None
    """Since when it has not been believed, for whatever reason."""

    gap: Silence | None = None
    """Since when it has been believed but could not answer some kind in `FOR_GOOD`."""

    checked: Span = field(default_factory=Span)
    is_vetted: bool = False
    """Whether its network is ours and its parameters were read."""

    genesis: Found[Genesis] | None = None
    exclusion: Exclusion = field(default_factory=Exclusion)
    lied: str = ""
    confirmed_tip: BlockSeen | None = None
    silences: dict[str, Silence] = field(default_factory=dict)
    suspicions: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """Per transaction: how it contradicted itself, at which tip, and when."""

    shown: dict[str, TxSeen] = field(default_factory=dict)
    """Per transaction: what it showed when other providers did not show the same."""

    def note(self, kind: str, read: Read[Any], now_ms: int) -> None:
        """Record whether it answered this kind of read, for `is_mute`."""
        if isinstance(read, Unknown):
            self.silences[kind] = missed(self.silences.get(kind), now_ms)
        else:
            self.silences.pop(kind, None)
            self.has_listed_utxos |= kind == "utxos"

    def is_mute(self, kind: str) -> bool:
        return is_lasting(self.silences.get(kind))

    def note_pass(self, is_believed: bool, now_ms: int) -> None:
        """Record whether it was believed in a pass, and whether it could answer its reads.

        A provider that is not believed is not read from, so its silences go on. They pause while it is excluded
        for a lie.
        """
        self.absence = None if is_believed else missed(self.absence, now_ms)
        for kind in () if is_believed or self.lied else self.silences.keys() - _READ_EVERY_PASS:
            self.silences[kind] = missed(self.silences[kind], now_ms)
        self.gap = missed(self.gap, now_ms) if any(map(self.is_mute, FOR_GOOD)) else None
        self.was_believed |= is_believed

    def is_missing(self, now_ms: int) -> bool:
        """Whether answers of this provider are missing and still have to be waited for."""
        if self.trouble is not None:
            return not self.is_given_up(now_ms)
        has_gap = any(map(self.is_mute, FOR_GOOD))
        return has_gap and not (self.gap is not None and _lasts_ms(self.gap, ABSENT_MS))

    @property
    def is_dead_at_start(self) -> bool:
        """Whether it has given no tip since the start: often enough to matter, but not yet a lasting silence."""
        silence = self.silences.get("tip")
        if self.has_answered or silence is None or is_lasting(silence):
            return False
        return silence.count >= MISSES_MIN and silence.last_ms - silence.since_ms >= START_PATIENCE_MS

    def is_given_up(self, now_ms: int) -> bool:
        """Whether nothing waits for it: it was missing for `ABSENT_MS`, or is excluded again after a relapse."""
        is_out_again = self.exclusion.is_relapse and self.exclusion.holds(now_ms)
        return is_out_again or (self.absence is not None and _lasts_ms(self.absence, ABSENT_MS))

    def is_excluded(self, now_ms: int) -> bool:
        """Whether it is excluded for a lie."""
        lied_ms = self.provider.lied_at_ms
        if lied_ms is not None and Span(lied_ms, lied_ms + EXCLUSION_MS).holds(now_ms):
            self.exclude(lied_ms, "it answered a submission with another transaction's id")
        if not self.exclusion.holds(now_ms):
            self.lied = ""
        return bool(self.lied)

    def exclude(self, at_ms: int, why: str) -> None:
        self.lied = why
        self.trouble = why
        self.exclusion = self.exclusion.after(at_ms)

    async def contradiction(self, tip: BlockSeen) -> str | None:
        """Say how it contradicts itself about its tip; None if it does not. Replicas do that for a moment."""
        provider, before = self.provider, self.tip
        if tip != self.confirmed_tip:
            own = await provider.block(tip.hash, tip.slot)
            if denies(own, tip.height):
                return "it does not know the block that it calls its newest"
            if isinstance(own, Found):
                if (own.value.height, own.value.slot) != (tip.height, tip.slot):
                    return "it shows another height for the block that it calls its newest"
                self.confirmed_tip = tip
        if (
            before
            and tip.height < before.height
            and isinstance(await provider.block(before.hash, before.slot), Found)
        ):
            return "its newest block went back, and the one before is still there"
        return None

    async def climb(self, tip: BlockSeen, now_ms: int) -> str | None:
        """Update its highest block. Returns why a tip is too high, since a slot holds at most one block.

        A lagging replica also denies the highest block, so one denial does not lower it.
        """
        height, slot = (self.peak.height, self.peak.slot) if self.peak else (0, 0)
        if tip.height - height > max(tip.slot - slot, 0) + AHEAD_MAX_S:
            self.leapt = missed(self.leapt, now_ms)
            if not _lasts_ms(self.leapt, FALLEN_MS):
                return f"its newest block is {tip.height - height} higher than one {tip.slot - slot} slots before"
        elif self.peak is not None and tip.height < height:
            self.leapt = None
            if not denies(await self.provider.block(self.peak.hash, self.peak.slot), height):
                return None
            self.fallen = missed(self.fallen, now_ms)
            if not _lasts_ms(self.fallen, FALLEN_MS):
                return None
        self.peak, self.fallen, self.leapt = tip, None, None
        return None

    async def lie(self, tx_id: str, read: Read[TxSeen], own: str) -> str | None:
        """Say which of its other answers contradict what it says of a transaction; None if none does."""
        provider = self.provider
        if isinstance(read, Found):
            seen, before = read.value, self.shown.get(tx_id, read.value)
            self.shown[tx_id] = seen
            block = await provider.block(seen.block_hash, seen.block_slot)
            if before.block_hash == seen.block_hash and before != seen:
                return TWO_HEIGHTS
            if isinstance(block, Found):
                is_same = (block.value.height, block.value.slot) == (seen.block_height, seen.block_slot)
                return None if is_same else TWO_HEIGHTS
            is_denied = denies(block, seen.block_height)
            return f"it shows {tx_id} in a block that it does not know" if is_denied else None
        listed = await provider.utxos(own) if isinstance(read, NotFound) else None
        if isinstance(listed, Found) and any(
            utxo.tx_id == tx_id and denies(read, utxo.block_height or 0) for utxo in listed.value
        ):
            return f"it lists a UTxO of {tx_id}, and denies that transaction"
        return None

    def is_convicted(self, tx_id: str, why: str | None, now_ms: int) -> bool:
        """Whether it contradicted itself again, at another tip and a minute later. Lagging indexes do so once."""
        seen = self.suspicions.get(tx_id)
        tip_hash = self.tip.hash if self.tip else ""
        if why is None:
            self.suspicions.pop(tx_id, None)
        elif seen is None or seen[0] != why or now_ms < seen[2]:
            self.suspicions[tx_id] = (why, tip_hash, now_ms)
        elif tip_hash != seen[1] and now_ms >= seen[2] + CONVICTION_MS:
            del self.suspicions[tx_id]
            return True
        return False


def _lasts_ms(silence: Silence, least_ms: int) -> bool:
    return is_lasting(silence) and silence.last_ms - silence.since_ms >= least_ms
