"""Several providers as one view of the chain: who is heard, and what they say together.

One provider alone is taken at its word, as far as its tip is recent. Of several, each is heard that is of our
network, that tells no odd parameters where another tells ours, whose tip is recent, and that does not contradict
itself; two of them have to agree (chain.agree). One that cannot be heard is waited for, two minutes, so that a
lying one gains nothing from a short absence of an honest one. One that is caught at a lie is sent out for a while.

May import: chain.source, chain.agree, chain.guard, chain.quota, core.problem. Never: concludes anything about a
payment; sends.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeGuard, TypeVar

from payagent.chain.agree import (
    MISSES_MIN,
    PATIENCE_MS,
    Listing,
    Said,
    Silence,
    is_lasting,
    missed,
    weigh_block,
    weigh_coins,
    weigh_movement,
    weigh_transactions,
    weigh_tx,
)
from payagent.chain.guard import Clock, Guarded
from payagent.chain.quota import Span
from payagent.chain.source import (
    AddressTx,
    BlockSeen,
    Found,
    Genesis,
    Movement,
    NotFound,
    Parameters,
    Read,
    Tip,
    TxSeen,
    Unknown,
    Why,
)
from payagent.core.problem import Refused

T = TypeVar("T")

CHECK_EVERY_MS = 3_600_000
"""How often a provider's network and parameters are asked for again."""

ODD_EVERY_MS = 60_000
"""How often while its parameters are not those that payagent is built for, or are not told."""

TIP_PATIENCE_S = 5.0
"""How long one of several providers may take over its tip, while the others wait."""

FRESH_S = 120
"""A tip that was never so young for as long as a tip may be old is of a provider that lags."""

AHEAD_MAX_S = 120
FORK_HEIGHTS = 10
"""How far apart the heights of one slot may be, where the chain forks.

Two tips that are further apart than that and the slots between them are not of one chain, and a person is told:
depth is counted from the lower one.
"""

FALLEN_MS = 600_000
"""How long a provider stays below its highest block, which it denies, before that counts no more.

As long is a tip refused that is higher than so many slots allow: it may be the height before that was a lie.
"""

START_PATIENCE_MS = 10_000
"""How long one is waited for that never answered since the start.

There is no word of it yet that its absence could take back. Until it was silent for as long as any other nothing
ends for good (`View.is_final`), and what is new to the books takes three reads.
"""

CONVICTION_MS = 60_000
"""How far apart it has to contradict itself twice."""

SENTENCE_MS = 600_000
"""How long one that was caught at a lie is not heard, and gets no bytes."""

ABSENT_MS = 600_000
"""How long one is not heard, look after look, before the others may settle without it.

A replica that lags denies its provider's newest block: an honest one may so be missed for minutes, and again.
"""

TWO_HEIGHTS = "it tells two heights of one block"
"""No index that lags does: a block's hash fixes its height and slot. So once is enough."""

HEIGHTS = "how high the chain is"


class Odd(NamedTuple):
    """What is odd about protocol parameters, and whether that forbids to sign."""

    detail: str
    forbids: bool


@dataclass(frozen=True, slots=True)
class Sentence:
    """When one that was caught at a lie is not heard."""

    span: Span = field(default_factory=Span)
    is_relapse: bool = False
    """Whether it came soon after another: it was heard in between, and lied again."""

    def holds(self, now_ms: int) -> bool:
        return self.span.holds(now_ms)

    def after(self, at_ms: int) -> "Sentence":
        """With one more lie. Those of one moment are found out in any order, and are one sentence."""
        from_ms, until_ms = self.span.from_ms, self.span.until_ms
        if from_ms - SENTENCE_MS < at_ms < until_ms:
            span = Span(min(from_ms, at_ms), max(until_ms, at_ms + SENTENCE_MS))
            return Sentence(span, self.is_relapse)
        is_relapse = until_ms > 0 and 0 <= at_ms - until_ms <= SENTENCE_MS
        return Sentence(Span(at_ms, at_ms + SENTENCE_MS), is_relapse)


@dataclass(slots=True)
class _Member:
    """What is known of one provider. `trouble` says why it is not heard; None when it is."""

    source: Guarded
    trouble: str | None = "not asked yet"
    has_answered: bool = False
    is_foreign: bool = False
    odd: Odd | None = None
    """What its parameters are, when they are not those that payagent is built for."""

    is_late: bool = False
    tip: Tip | None = None
    peak: Tip | None = None
    fallen: Silence | None = None
    leapt: Silence | None = None
    fresh_at_ms: int | None = None
    was_heard: bool = False
    absence: Silence | None = None
    """Since when it was not heard, for whatever reason."""

    checked: Span = field(default_factory=Span)
    is_vetted: bool = False
    """Whether its network is ours, and its parameters were read."""

    genesis: Found[Genesis] | None = None
    sentence: Sentence = field(default_factory=Sentence)
    lied: str = ""
    confirmed_tip: Tip | None = None
    silences: dict[str, Silence] = field(default_factory=dict)
    suspicions: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    """By transaction: how it contradicted itself, at which tip, and when."""

    shown: dict[str, TxSeen] = field(default_factory=dict)
    """What it showed of a transaction that others do not show so."""

    def note(self, what: str, read: Read[Any], now_ms: int) -> None:
        """Keep whether it could tell, for `is_mute`."""
        if isinstance(read, Unknown):
            self.silences[what] = missed(self.silences.get(what), now_ms)
        else:
            self.silences.pop(what, None)

    def is_mute(self, what: str) -> bool:
        return is_lasting(self.silences.get(what))

    @property
    def is_dead_at_start(self) -> bool:
        """Whether it told no tip since the start, as often as a silence needs, and not for as long yet."""
        silence = self.silences.get("tip")
        if self.has_answered or silence is None or is_lasting(silence):
            return False
        return silence.count >= MISSES_MIN and silence.last_ms - silence.since_ms >= START_PATIENCE_MS


@dataclass(frozen=True, slots=True)
class View:
    """What the providers that are heard show together, up to the lowest of their tips."""

    panel: "Panel"
    tip: Tip
    is_current: bool
    """Whether a denial counts: the tips are recent, and no lower than the ones before."""
    is_final: bool
    """Whether what cannot be taken back may be concluded: nobody is sent out who may have been the honest one.

    Who is convicted again soon after a sentence was not. Nor is anybody left out early, since it is dead.
    """
    is_for_good: bool
    """Whether what no later look undoes may be: besides, nobody is missing that was heard not long ago."""
    may_add: bool
    """Whether a new coin may be booked by one word that is left: nobody is missing that was heard not long ago.

    Who was never heard since the start is not waited for: a dead provider holds up no first funding.
    """
    odd: str | None
    """Why nothing can be signed by the parameters that all of them tell."""
    _heard: tuple[_Member, ...]
    _awaited: tuple[str, ...]

    @property
    def name(self) -> str:
        """Who is heard."""
        return ", ".join(member.source.name for member in self._heard)

    @property
    def stands_alone(self) -> bool:
        """Whether what is found or denied is the word of one provider only."""
        return len(self._witnesses("tx")) + len(self._awaited) < 2

    @property
    def is_lonely(self) -> bool:
        """Whether that one has others beside it, of which none can be heard."""
        return self.stands_alone and self.panel.has_several

    async def tx(self, tx_id: str) -> Read[TxSeen]:
        said = await self._ask("tx", lambda source: source.tx(tx_id))
        read = weigh_tx(said)
        if not _is_open(read):
            self.panel.settle_dispute(tx_id)
        elif await self.panel.follow_dispute(tx_id, said):
            return replace(read, why=Why.DISPUTE)  # who has not come so far for so long denies it
        return read

    async def block(self, block_hash: str) -> Read[BlockSeen]:
        return weigh_block(await self._ask("block", lambda source: source.block(block_hash)))

    async def coins(self, address: str) -> Read[Listing]:
        return weigh_coins(await self._ask("coins", lambda source: source.utxos(address)))

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        said = await self._ask("transactions", lambda source: source.transactions(address, since_s))
        return self._noted(f"the transactions of {address}", weigh_transactions(said))

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        said = await self._ask("movement", lambda source: source.movement(tx_id, address))
        return self._noted(f"what {tx_id} moved", weigh_movement(said))

    def _noted(self, subject: str, read: Read[T]) -> Read[T]:
        if _is_open(read):
            self.panel.note_dispute(subject)
        else:
            self.panel.settle_dispute(subject)
        return read

    def _witnesses(self, what: str) -> list[_Member]:
        """Those that can tell such a thing; all, when none can."""
        return [member for member in self._heard if not member.is_mute(what)] or list(self._heard)

    async def _ask(self, what: str, ask: Callable[[Guarded], Coroutine[Any, Any, Read[T]]]) -> list[Said[T]]:
        reads = await at_once([ask(member.source) for member in self._heard])
        now_ms = self.panel.now_ms()
        for member, read in zip(self._heard, reads, strict=True):
            member.note(what, read, now_ms)
        able = self._witnesses(what)
        said = [
            Said(member.source.name, member.tip.slot if member.tip else 0, read)
            for member, read in zip(self._heard, reads, strict=True)
            if member in able
        ]
        return [*said, *(Said(name, 0, Unknown("waited for")) for name in self._awaited)]


class Panel:
    """The configured providers.

    `vouch` raises `Refused` for a network that is not ours. `weigh` says what is odd about parameters: a provider
    that tells odd ones is not heard beside one that does not. Where all do it is the chain that changed: all are
    heard, and by those that forbid it nothing is to be signed (`View.odd`).

    `slot_at` tells the slot of a time, once a genesis was vouched for. `tip_age_max_s` is how old a tip may be.
    """

    def __init__(
        self,
        sources: Sequence[Guarded],
        clock: Clock,
        own: str,
        vouch: Callable[[Genesis], None],
        weigh: Callable[[Parameters], Odd | None],
        slot_at: Callable[[int], int | None],
        tip_age_max_s: int,
    ) -> None:
        self._members = [_Member(source) for source in sources]
        self._clock = clock
        self._own = own
        self._vouch = vouch
        self._weigh = weigh
        self._slot_at = slot_at
        self._tip_age_max_s = tip_age_max_s
        self._disputes: dict[str, Silence] = {}

    def now_ms(self) -> int:
        return self._clock.now_ms()

    @property
    def troubles(self) -> dict[str, str | None]:
        """Why a provider is not heard, by name; None when it is."""
        return {member.source.name: member.trouble for member in self._members}

    @property
    def has_foreign(self) -> bool:
        """Whether a provider shows another network, or parameters that another one does not."""
        return any(member.is_foreign for member in self._members)

    @property
    def has_several(self) -> bool:
        return len(self._members) > 1

    def subjects(self) -> list[str]:
        """All that `outs` may name."""
        return [*(f"provider:{member.source.name}" for member in self._members), "providers"]

    def outs(self) -> dict[str, str]:
        """What a person is to be told when there are several: who is out, what stops all, a dispute that lasts."""
        if len(self._members) == 1:
            return {}
        found = {
            f"provider:{member.source.name}": f"{member.source.name} is not heard: {member.trouble}"
            for member in self._members
            if member.trouble and (member.is_foreign or member.is_late or member.lied or member.is_mute("tip"))
        }
        found |= {
            f"provider:{member.source.name}": f"{member.source.name}: its newest block is lower than one before"
            for member in self._members
            if not member.trouble and is_lasting(member.fallen)
        }
        found |= {
            f"provider:{member.source.name}": f"{member.source.name}: {member.odd.detail}"
            for member in self._members
            if not member.trouble and member.odd and member.odd.forbids
        }
        now_ms = self.now_ms()
        lasting = [tx_id for tx_id, dispute in self._disputes.items() if self._lasts(dispute, now_ms)]
        if lasting:
            found["providers"] = f"the providers disagree about {lasting[0]}, and it cannot be told who lies"
        return found

    def senders(self) -> list[Guarded]:
        """Who is to get submissions: those that are heard first, none that is not to be believed."""
        now_ms = self.now_ms()
        fit = [m for m in self._members if not m.is_foreign and not m.sentence.holds(now_ms)]
        return [member.source for member in sorted(fit, key=lambda member: member.trouble is not None)]

    async def look(self) -> View | None:
        """Who is heard now, and the tip that they have in common; None when nobody is."""
        tips = await at_once([self._hear(member) for member in self._members])
        tips = [None if self._is_odd_one_out(m) else tip for m, tip in zip(self._members, tips, strict=True)]
        heard = [member for member, tip in zip(self._members, tips, strict=True) if tip and not member.trouble]
        for member in self._members:
            member.absence = None if member in heard else missed(member.absence, self.now_ms())
            member.was_heard |= member in heard
        late = [member for member, tip in zip(self._members, tips, strict=True) if tip and member.is_late]
        speaking = heard or late
        if not speaking:
            return None
        awaited = [member for member in self._members if self._is_awaited(member, speaking)]
        tip = min((member.tip for member in speaking if member.tip), key=lambda tip: tip.height)
        self._compare([member.tip for member in speaking if member.tip])
        is_current = bool(heard) and all(m.tip and m.peak and m.tip.height >= m.peak.height for m in heard)
        now_ms = self.now_ms()
        is_final = is_current and not any(
            (member.sentence.holds(now_ms) and not member.sentence.is_relapse) or member.is_dead_at_start
            for member in self._members
        )
        missing = [m for m in self._members if m not in heard and not _is_given_up(m, now_ms)]
        is_for_good = is_final and not missing
        may_add = not any(member.was_heard for member in missing)
        names = tuple(member.source.name for member in awaited)
        odd = next((member.odd.detail for member in speaking if member.odd and member.odd.forbids), None)
        return View(self, tip, is_current, is_final, is_for_good, may_add, odd, tuple(speaking), names)

    def _is_odd_one_out(self, member: _Member) -> bool:
        """Whether its parameters are odd, and those of one that is not long gone are not; it is foreign then."""
        if member.odd is None:
            return False
        now_ms = self.now_ms()
        member.is_foreign = any(
            other.is_vetted and other.odd is None and not _is_given_up(other, now_ms) for other in self._members
        )
        if member.is_foreign:
            member.trouble = member.odd.detail
        return member.is_foreign

    def _compare(self, tips: Sequence[Tip]) -> None:
        low, high = min(tips, key=lambda tip: tip.height), max(tips, key=lambda tip: tip.height)
        if high.height - low.height > abs(high.slot - low.slot) + FORK_HEIGHTS:
            self.note_dispute(HEIGHTS)
        else:
            self.settle_dispute(HEIGHTS)

    def _is_awaited(self, member: _Member, speaking: Sequence[_Member]) -> bool:
        """Whether one that is not heard just could not tell, or is late, and not for long yet.

        Else a clock that is off by as much as tells late from heard would leave the other one alone for a moment.
        """
        is_out = member in speaking or member.is_foreign or member.lied or member.is_dead_at_start
        return not is_out and not member.is_mute("time" if member.is_late else "tip")

    async def _hear(self, member: _Member) -> Tip | None:
        """Its tip, if it is to be heard or is only late; `trouble` is set accordingly."""
        now_ms = self.now_ms()
        member.is_late = False
        if self._is_sent_out(member, now_ms):
            member.trouble = member.lied
            return None
        read = await self._read_tip(member)
        trouble = None if isinstance(read, Found) else _unread("tip", read)
        if isinstance(read, Found):
            member.has_answered = True
            trouble = await self._distrust(member, now_ms)
            if trouble is None and len(self._members) > 1:
                trouble = await self._contradiction(member, read.value)
            if trouble is None:
                trouble = await self._climb(member, read.value, now_ms)
        now_ms = self.now_ms()
        member.note("tip", Unknown(trouble) if trouble else read, now_ms)
        if trouble is not None or not isinstance(read, Found):
            member.trouble = trouble
            return None
        member.tip = read.value
        member.trouble = self._lateness(member, read.value, now_ms)
        member.is_late = member.trouble is not None
        member.note("time", read if member.trouble is None else Unknown(member.trouble), now_ms)
        return read.value

    async def _read_tip(self, member: _Member) -> Read[Tip]:
        if len(self._members) == 1:
            return await member.source.tip()
        try:
            async with asyncio.timeout(TIP_PATIENCE_S):
                return await member.source.tip()
        except TimeoutError:
            return Unknown(f"tip: no answer in {TIP_PATIENCE_S:.0f} s")

    async def _distrust(self, member: _Member, now_ms: int) -> str | None:
        """Why the provider's network is not to be believed; asked at first and every hour.

        It is asked again when it said that a transaction can never be valid: so it is when parameters changed. A
        server that has none to tell, as for minutes at an epoch's start, is taken by those that it told before.
        """
        if member.checked.holds(now_ms) and member.source.refused_at_ms < member.checked.from_ms:
            return None
        genesis = member.genesis or await member.source.genesis()
        parameters = await member.source.parameters()
        member.genesis = genesis if isinstance(genesis, Found) else None  # read already when it is asked again
        if not isinstance(genesis, Found):
            return _unread("genesis", genesis)
        try:
            self._vouch(genesis.value)
        except Refused as refusal:
            member.genesis, member.odd = None, None
            member.is_foreign, member.is_vetted = True, False
            return refusal.detail
        if not isinstance(parameters, Found) and not member.is_vetted:
            return _unread("parameters", parameters)
        member.genesis = None
        if isinstance(parameters, Found):
            odd = self._weigh(parameters.value)
            if odd is not None and member.odd is None:  # the others may tell them too by now
                for other in self._members:
                    other.checked = Span()
            member.odd = odd
        member.is_foreign, member.is_vetted = False, True
        is_as_ever = isinstance(parameters, Found) and member.odd is None
        member.checked = Span(now_ms, now_ms + (CHECK_EVERY_MS if is_as_ever else ODD_EVERY_MS))
        return None

    async def _contradiction(self, member: _Member, tip: Tip) -> str | None:
        """Whether it denies its own tip, or goes back without a fork; replicas look so for a moment."""
        source, before = member.source, member.tip
        if tip != member.confirmed_tip:
            own = await source.block(tip.hash)
            if isinstance(own, NotFound):
                return "it does not know the block that it calls its newest"
            if isinstance(own, Found):
                if (own.value.height, own.value.slot) != (tip.height, tip.slot):
                    return "it tells another height of the block that it calls its newest"
                member.confirmed_tip = tip
        if before and tip.height < before.height and isinstance(await source.block(before.hash), Found):
            return "its newest block went back, and the one before is still there"
        return None

    async def _climb(self, member: _Member, tip: Tip, now_ms: int) -> str | None:
        """Keep its highest block up to date; why its tip cannot be: a slot holds one block at most.

        A replica that lags denies the highest block too, so one denial brings nothing down.
        """
        height, slot = (member.peak.height, member.peak.slot) if member.peak else (0, 0)
        if tip.height - height > max(tip.slot - slot, 0) + AHEAD_MAX_S:
            member.leapt = missed(member.leapt, now_ms)
            if not _lasts_ms(member.leapt, FALLEN_MS):
                return f"its newest block is {tip.height - height} higher than one {tip.slot - slot} slots before"
        elif member.peak is not None and tip.height < height:
            member.leapt = None
            if not isinstance(await member.source.block(member.peak.hash), NotFound):
                return None
            member.fallen = missed(member.fallen, now_ms)
            if not _lasts_ms(member.fallen, FALLEN_MS):
                return None
        member.peak, member.fallen, member.leapt = tip, None, None
        return None

    def _lateness(self, member: _Member, tip: Tip, now_ms: int) -> str | None:
        """Why its tip is not one of now: too old, of a provider that always lags, or in the future."""
        slot = self._slot_at(now_ms)
        age_s = 0 if slot is None else slot - tip.slot
        if age_s <= FRESH_S or member.fresh_at_ms is None or now_ms < member.fresh_at_ms:
            member.fresh_at_ms = now_ms
        if age_s > self._tip_age_max_s or now_ms - member.fresh_at_ms > self._tip_age_max_s * 1000:
            return f"its newest block is {age_s} s old"
        if age_s < -AHEAD_MAX_S and len(self._members) > 1:
            return f"its newest block is {-age_s} s in the future"
        return None

    def _is_sent_out(self, member: _Member, now_ms: int) -> bool:
        """Whether it was caught at a lie, not long ago. One alone is put up with: there is nobody else."""
        if len(self._members) == 1:
            return False
        lied_ms = member.source.lied_at_ms
        if lied_ms is not None and Span(lied_ms, lied_ms + SENTENCE_MS).holds(now_ms):
            self._send_out(member, lied_ms, "it answered a submission with another transaction's id")
        if not member.sentence.holds(now_ms):
            member.lied = ""
        return bool(member.lied)

    def _send_out(self, member: _Member, at_ms: int, why: str) -> None:
        member.lied = why
        member.trouble = why
        member.sentence = member.sentence.after(at_ms)

    def settle_dispute(self, subject: str) -> None:
        self._disputes.pop(subject, None)
        for member in self._members:
            member.shown.pop(subject, None)
            member.suspicions.pop(subject, None)

    def note_dispute(self, subject: str) -> bool:
        """Providers do not say the same; whether that lasts, so that a person is told."""
        now_ms = self.now_ms()
        self._disputes[subject] = dispute = missed(self._disputes.get(subject), now_ms)
        return self._lasts(dispute, now_ms)

    async def follow_dispute(self, tx_id: str, said: Sequence[Said[TxSeen]]) -> bool:
        """Providers do not say the same of a transaction; whether that lasts. Then: who lies?"""
        if not self.note_dispute(tx_id):
            return False
        now_ms = self.now_ms()
        for one in said:
            member = next((m for m in self._members if m.source.name == one.name), None)
            if member is None:
                continue
            why = await self._lie(member, tx_id, one.read)
            if why == TWO_HEIGHTS or self._is_convicted(member, tx_id, why, now_ms):
                self._send_out(member, now_ms, why or "")
        return True

    def _is_convicted(self, member: _Member, tx_id: str, why: str | None, now_ms: int) -> bool:
        """Whether it contradicts itself again, at another tip and a minute later: indexes lag one another."""
        seen = member.suspicions.get(tx_id)
        tip_hash = member.tip.hash if member.tip else ""
        if why is None:
            member.suspicions.pop(tx_id, None)
        elif seen is None or seen[0] != why or now_ms < seen[2]:
            member.suspicions[tx_id] = (why, tip_hash, now_ms)
        elif tip_hash != seen[1] and now_ms >= seen[2] + CONVICTION_MS:
            del member.suspicions[tx_id]
            return True
        return False

    def _lasts(self, dispute: Silence, now_ms: int) -> bool:
        return is_lasting(dispute) and now_ms - dispute.last_ms <= PATIENCE_MS

    async def _lie(self, member: _Member, tx_id: str, read: Read[TxSeen]) -> str | None:
        """How a provider contradicts, by what else it says, what it says of a transaction."""
        source = member.source
        if isinstance(read, Found):
            seen, before = read.value, member.shown.get(tx_id, read.value)
            member.shown[tx_id] = seen
            block = await source.block(seen.block_hash)
            if before.block_hash == seen.block_hash and before != seen:
                return TWO_HEIGHTS
            if isinstance(block, Found):
                is_it = (block.value.height, block.value.slot) == (seen.block_height, seen.slot)
                return None if is_it else TWO_HEIGHTS
            return f"it shows {tx_id} in a block that it does not know" if isinstance(block, NotFound) else None
        listed = await source.utxos(self._own) if isinstance(read, NotFound) else None
        if isinstance(listed, Found) and any(coin.tx_id == tx_id for coin in listed.value):
            return f"it lists a coin of {tx_id}, and denies that transaction"
        return None


async def at_once(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returned, in their order. Most often it is one or none, for which no task is made."""
    if len(works) < 2:
        return [await work for work in works]
    return await asyncio.gather(*works)


def _is_open(read: Read[Any]) -> TypeGuard[Unknown]:
    """Whether several said what does not go together, or not yet."""
    return isinstance(read, Unknown) and read.why in (Why.DISPUTE, Why.NOT_YET)


def _is_given_up(member: _Member, now_ms: int) -> bool:
    """Whether one that is not heard is out for so long, or was convicted so often, that nothing waits for it."""
    is_out_again = member.sentence.is_relapse and member.sentence.holds(now_ms)
    return is_out_again or (member.absence is not None and _lasts_ms(member.absence, ABSENT_MS))


def _lasts_ms(silence: Silence, wanted_ms: int) -> bool:
    return is_lasting(silence) and silence.last_ms - silence.since_ms >= wanted_ms


def _unread(what: str, read: object) -> str:
    """Why something could not be read, for people."""
    return f"could not be read ({read.reason if isinstance(read, Unknown) else f'{what}: not there'})"
