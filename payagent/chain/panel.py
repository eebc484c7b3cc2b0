"""Several providers as one view of the chain: who is heard, and what they say together.

One provider alone is taken at its word while its tip is recent. Of several, one is heard if it is of our network,
tells no odd parameters where another tells ours, has a recent tip and does not contradict itself (chain.member);
two of them have to agree (chain.agree). One that cannot be heard is waited for, two minutes, so that a liar gains
nothing from a short absence of an honest one. One that is caught in a lie is sent out for a while.

May import: chain.source, chain.agree, chain.guard, chain.member, chain.quota, core.problem. Never: concludes
anything about a payment; sends.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, TypeVar

from payagent.chain.agree import (
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
from payagent.chain.member import AHEAD_MAX_S, TWO_HEIGHTS, Member, Odd
from payagent.chain.quota import Span
from payagent.chain.source import (
    AddressTx,
    BlockSeen,
    Found,
    Genesis,
    Movement,
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
"""How often while they are not those that payagent is built for, or it does not tell them."""

TIP_PATIENCE_S = 5.0
"""How long one of several providers may take over its tip, while the others wait."""

HEARING_PATIENCE_S = 15.0
ANSWER_PATIENCE_S = 5.0
LIST_PATIENCE_S = 60.0
"""How long all that is asked of a provider before it is heard, an answer, or a list of many pages, may take when
another provider, of three or more two, told its own.

It may always take twice as long as that took: where all are slow, all are waited for.
"""

_LISTS = ("coins", "transactions")

FRESH_S = 120
"""A provider lags if none of its tips was younger than this for as long as a tip may be old."""

FORK_HEIGHTS = 10
"""How far apart the heights of one slot may be, where the chain forks.

Two tips that are further apart than that and the slots between them are not of one chain, and a person is told:
depth is counted from the lower one.
"""

HEIGHTS = "how high the chain is"
"""The subject of the dispute about tips that cannot be of one chain."""


@dataclass(frozen=True, slots=True)
class View:
    """What the providers that are heard show together, up to the lowest of their tips."""

    panel: "Panel"
    tip: Tip
    is_current: bool
    """Whether a denial counts: the tips are recent, and no lower than the ones before."""
    is_final: bool
    """Whether what cannot be taken back may be concluded: nobody who may be honest is sent out or left out early.

    One that is convicted again soon after a sentence is not honest. One that is dead at the start is out early.
    """
    odd: str | None
    """Why nothing can be signed by the parameters that all of them tell; None when it can."""
    _heard: tuple[Member, ...]
    _awaited: tuple[str, ...]

    @property
    def name(self) -> str:
        """Who is heard."""
        return ", ".join(member.source.name for member in self._heard)

    @property
    def is_for_good(self) -> bool:
        """Whether what no later look can undo may be concluded: besides, only those that are given up are missing.

        One that is heard, and could tell nothing of transactions, say, for minutes, is missing too.
        """
        return self.is_final and not self.panel.missing()

    def may_add(self, *, is_first: bool) -> bool:
        """Whether a new coin may be booked by the word of one provider: nobody is missing that was heard not long
        ago.

        One that was never heard since the start is not waited for, and with the first coins one that never told
        its own: a provider that is dead, or drips, does not hold up a first funding.
        """
        missing = self.panel.missing()
        return not any(one.was_heard and (one.has_told_coins or not is_first) for one in missing)

    @property
    def stands_alone(self) -> bool:
        """Whether what is found or denied is the word of one provider only."""
        return self._is_alone("tx")

    def is_lonely(self, what: str) -> bool:
        """Whether it stands alone in such a thing though several are configured: none of the others can tell."""
        return self._is_alone(what) and self.panel.has_several

    def _is_alone(self, what: str) -> bool:
        return len(self._witnesses(what)) + len(self._awaited) < 2

    async def tx(self, tx_id: str) -> Read[TxSeen]:
        said = await self._ask("tx", lambda source: source.tx(tx_id))
        read = weigh_tx(said)
        if not _is_open(read):
            self.panel.settle_dispute(tx_id)
        elif await self.panel.follow_dispute(tx_id, said):
            return replace(read, why=Why.DISPUTE)  # one that has not come so far for so long denies it
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

    def _witnesses(self, what: str) -> list[Member]:
        """Those that can tell such a thing; all, when none can."""
        return [member for member in self._heard if not member.is_mute(what)] or list(self._heard)

    async def _ask(self, what: str, ask: Callable[[Guarded], Coroutine[Any, Any, Read[T]]]) -> list[Said[T]]:
        patience_s = LIST_PATIENCE_S if what in _LISTS else ANSWER_PATIENCE_S
        late = Unknown("no answer while others told their own")
        asked = [ask(member.source) for member in self._heard]
        reads = await _in_time(asked, patience_s, late, lambda read: not isinstance(read, Unknown))
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
    that tells odd ones is not heard beside one that does not. Where all tell odd ones, the chain has changed: all
    are heard, and nothing is signed if those parameters forbid it (`View.odd`).

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
        self._members = [Member(source) for source in sources]
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

    def outs(self) -> dict[str, str]:
        """What a person is told when there are several: who is out, what stops signing, a dispute that lasts."""
        if not self.has_several:
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
        """Who gets submissions: those that are heard come first; none that is foreign or serves a sentence."""
        now_ms = self.now_ms()
        fit = [m for m in self._members if not m.is_foreign and not m.sentence.holds(now_ms)]
        return [member.source for member in sorted(fit, key=lambda member: member.trouble is not None)]

    async def look(self) -> View | None:
        """Who is heard now, and the tip that they have in common; None when nobody is."""
        tips = await self._hear()
        tips = [None if self._is_odd_one_out(m) else tip for m, tip in zip(self._members, tips, strict=True)]
        heard = [member for member, tip in zip(self._members, tips, strict=True) if tip and not member.trouble]
        for member in self._members:
            member.note_look(member in heard, self.now_ms())
        late = [member for member, tip in zip(self._members, tips, strict=True) if tip and member.is_late]
        return self._view(heard, heard or late) if heard or late else None

    def _view(self, heard: Sequence[Member], speaking: Sequence[Member]) -> View:
        """What those that speak show together, and what may be concluded from it."""
        now_ms = self.now_ms()
        tips = [member.tip for member in speaking if member.tip]
        self._compare(tips)
        is_current = bool(heard) and all(m.tip and m.peak and m.tip.height >= m.peak.height for m in heard)
        is_final = is_current and not any(
            (member.sentence.holds(now_ms) and not member.sentence.is_relapse) or member.is_dead_at_start
            for member in self._members
        )
        return View(
            panel=self,
            tip=min(tips, key=lambda tip: tip.height),
            is_current=is_current,
            is_final=is_final,
            odd=next((member.odd.detail for member in speaking if member.odd and member.odd.forbids), None),
            _heard=tuple(speaking),
            _awaited=tuple(m.source.name for m in self._members if self._is_awaited(m, speaking)),
        )

    def missing(self) -> list[Member]:
        """Those that cannot tell what they may know, and are not given up."""
        now_ms = self.now_ms()
        return [member for member in self._members if member.is_missing(now_ms)]

    def _is_odd_one_out(self, member: Member) -> bool:
        """Whether its parameters are odd while those of another, not given up, are not; it is foreign then."""
        if member.odd is None:
            return False
        now_ms = self.now_ms()
        member.is_foreign = any(
            other.is_vetted and other.odd is None and not other.is_given_up(now_ms) for other in self._members
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

    def _is_awaited(self, member: Member, speaking: Sequence[Member]) -> bool:
        """Whether one that is not heard merely could not answer, or is late, and not for long yet.

        Without waiting for the late, a clock that is off by a little could leave one provider alone for a moment.
        """
        is_out = member in speaking or member.is_foreign or member.lied or member.is_dead_at_start
        return not is_out and not member.is_mute("time" if member.is_late else "tip")

    async def _hear(self) -> list[Tip | None]:
        """The tip of each that is heard or only late. Sets `trouble`."""
        now_ms = self.now_ms()
        asked = [member for member in self._members if not self._is_kept_out(member, now_ms)]
        slow: Read[Tip] = Unknown("no answer to all that is asked while others told theirs")
        examined = [self._examine(member, now_ms) for member in asked]
        late = slow, _unread("tip", slow)
        told = await _in_time(examined, HEARING_PATIENCE_S, late, lambda one: one[1] is None)
        tips = {member.source.name: self._heard_of(member, *one) for member, one in zip(asked, told, strict=True)}
        return [tips.get(member.source.name) for member in self._members]

    def _is_kept_out(self, member: Member, now_ms: int) -> bool:
        member.is_late = False
        if not self.has_several or not member.is_sent_out(now_ms):  # a lone one is put up with
            return False
        member.trouble = member.lied
        return True

    def _heard_of(self, member: Member, read: Read[Tip], trouble: str | None) -> Tip | None:
        """Its tip, if it is heard or only late."""
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

    async def _examine(self, member: Member, now_ms: int) -> tuple[Read[Tip], str | None]:
        """Its tip, and why it is not to be believed."""
        read = await self._read_tip(member)
        if not isinstance(read, Found):
            return read, _unread("tip", read)
        member.has_answered = True
        trouble = await self._distrust(member, now_ms)
        if trouble is None and self.has_several:
            trouble = await member.contradiction(read.value)
        if trouble is None:
            trouble = await member.climb(read.value, now_ms)
        return read, trouble

    async def _read_tip(self, member: Member) -> Read[Tip]:
        if not self.has_several:
            return await member.source.tip()
        try:
            async with asyncio.timeout(TIP_PATIENCE_S):
                return await member.source.tip()
        except TimeoutError:
            return Unknown(f"tip: no answer in {TIP_PATIENCE_S:.0f} s")

    async def _distrust(self, member: Member, now_ms: int) -> str | None:
        """Why the provider's network or parameters are not to be believed; asked at first and every hour.

        They are asked for again when it says that a transaction can never be valid, as after parameters changed.
        A server that has none to tell, as for minutes when an epoch begins, stands by those that it told before.
        """
        if member.checked.holds(now_ms) and member.source.refused_at_ms < member.checked.from_ms:
            return None
        genesis = member.genesis or await member.source.genesis()
        found = genesis if isinstance(genesis, Found) else None  # read already when it is asked again
        if member.is_vetted:  # else one that drips would get on by it, to be heard
            member.genesis = found
        parameters = await member.source.parameters()
        member.genesis = found
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

    def _lateness(self, member: Member, tip: Tip, now_ms: int) -> str | None:
        """Why its tip is not a recent one: it is old, always lags, or is in the future; None when it is recent."""
        slot = self._slot_at(now_ms)
        age_s = 0 if slot is None else slot - tip.slot
        if age_s <= FRESH_S or member.fresh_at_ms is None or now_ms < member.fresh_at_ms:
            member.fresh_at_ms = now_ms
        if age_s > self._tip_age_max_s or now_ms - member.fresh_at_ms > self._tip_age_max_s * 1000:
            return f"its newest block is {age_s} s old"
        if age_s < -AHEAD_MAX_S and self.has_several:
            return f"its newest block is {-age_s} s in the future"
        return None

    def settle_dispute(self, subject: str) -> None:
        self._disputes.pop(subject, None)
        for member in self._members:
            member.shown.pop(subject, None)
            member.suspicions.pop(subject, None)

    def note_dispute(self, subject: str) -> bool:
        """Note that providers say different things. Returns whether that lasts, so that a person is told."""
        now_ms = self.now_ms()
        self._disputes[subject] = dispute = missed(self._disputes.get(subject), now_ms)
        return self._lasts(dispute, now_ms)

    async def follow_dispute(self, tx_id: str, said: Sequence[Said[TxSeen]]) -> bool:
        """Providers say different things of a transaction. Returns whether that lasts; then we look who lies."""
        if not self.note_dispute(tx_id):
            return False
        now_ms = self.now_ms()
        for one in said:
            member = next((m for m in self._members if m.source.name == one.name), None)
            if member is None:
                continue
            why = await self._lie(member, tx_id, one.read)
            if why == TWO_HEIGHTS or member.is_convicted(tx_id, why, now_ms):
                member.send_out(now_ms, why or "")
        return True

    async def _lie(self, member: Member, tx_id: str, read: Read[TxSeen]) -> str | None:
        try:
            async with asyncio.timeout(LIST_PATIENCE_S):
                return await member.lie(tx_id, read, self._own)
        except TimeoutError:
            return None

    def _lasts(self, dispute: Silence, now_ms: int) -> bool:
        return is_lasting(dispute) and now_ms - dispute.last_ms <= PATIENCE_MS


async def at_once(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What each returned, in their order. For one or none, the usual case, no task is made."""
    if len(works) < 2:
        return [await work for work in works]
    return await asyncio.gather(*works)


async def _in_time(
    works: Sequence[Coroutine[Any, Any, T]], patience_s: float, late: T, is_told: Callable[[T], bool]
) -> list[T]:
    """What came of each, in their order; `late` for one that is later than others that have told something.

    Of three or more two have to have told: else one that lies fast would silence two that are slow.
    """
    if len(works) < 2:
        return await at_once(works)
    now_s, until_s = asyncio.get_running_loop().time, None
    lacking = min(2, len(works) - 1)
    begun_s = now_s()
    tasks = [asyncio.create_task(work) for work in works]
    try:
        missing = set(tasks)
        while missing:
            wait_s = None if until_s is None else max(until_s - now_s(), 0)
            done, missing = await asyncio.wait(missing, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            lacking -= sum(is_told(task.result()) for task in done)
            if until_s is None and lacking <= 0:
                until_s = begun_s + max(patience_s, 2 * (now_s() - begun_s))
        return [late if task in missing else task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_open(read: Read[Any]) -> TypeGuard[Unknown]:
    """Whether what several said does not go together, or not yet."""
    return isinstance(read, Unknown) and read.why in (Why.DISPUTE, Why.NOT_YET)


def _unread(what: str, read: object) -> str:
    """Why something could not be read, for people."""
    return f"could not be read ({read.reason if isinstance(read, Unknown) else f'{what}: not there'})"
