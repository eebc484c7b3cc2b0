"""The quorum: how long a contradicting provider stays excluded, and how long the others wait for a slow one."""

import asyncio
from collections.abc import Coroutine
from itertools import permutations
from typing import Any, TypeVar

import pytest

from payagent.chain.provider import BlockSeen, Found, NotFound, Read, Unknown
from payagent.chain.provider_state import EXCLUSION_MS, Exclusion
from payagent.chain.quorum import ProviderQuorum
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.aggregate import TxSeen
from sim.virtual_loop import VirtualLoop

T = TypeVar("T")

LATER_MS = 10 * EXCLUSION_MS
TX, BLOCK = "ab" * 32, "cd" * 32
SEEN = Found(TxSeen(TX, BLOCK, 10, 100))


def test_contradictions_found_together_count_as_one_exclusion() -> None:
    once = Exclusion().after(LATER_MS)
    again_ms = LATER_MS + EXCLUSION_MS + 1000
    for found in permutations((again_ms, again_ms + 300, again_ms + 900)):
        exclusion = once
        for at_ms in found:
            exclusion = exclusion.after(at_ms)
        assert exclusion.is_relapse
        assert exclusion.holds(again_ms)
        assert exclusion.holds(again_ms + 900 + EXCLUSION_MS - 1)
        assert not exclusion.holds(again_ms + 900 + EXCLUSION_MS)


def test_a_contradiction_soon_after_an_exclusion_is_a_relapse_and_a_later_one_is_not() -> None:
    once = Exclusion().after(LATER_MS)
    assert not once.is_relapse
    over_ms = LATER_MS + EXCLUSION_MS
    assert once.after(over_ms).is_relapse
    assert once.after(over_ms + EXCLUSION_MS).is_relapse
    assert not once.after(over_ms + EXCLUSION_MS + 1).is_relapse
    assert once.after(over_ms).after(over_ms + EXCLUSION_MS).is_relapse


def test_a_clock_set_back_a_day_starts_a_new_exclusion() -> None:
    day_ms = 86_400_000
    exclusion = Exclusion().after(LATER_MS + day_ms).after(LATER_MS)
    assert exclusion == Exclusion().after(LATER_MS)


class Clock:
    def now_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)


class Slow:
    """A provider that answers its tip at once and a transaction after a delay.

    `first_s`: how long each request of the first pass takes.
    """

    first_s = 0.0

    def __init__(self, name: str, after_s: float, told: Read[TxSeen]) -> None:
        self.name = name
        self._after_s = after_s
        self._told = told

    def pace(self, _: object) -> None: ...

    async def tip(self) -> Read[BlockSeen]:
        return Found(BlockSeen(10, 100, BLOCK, 100))

    async def block(self, _: str, _slot: int) -> Read[BlockSeen]:
        return Found(BlockSeen(10, 100, BLOCK, 100))

    async def genesis(self) -> Read[Any]:
        await asyncio.sleep(self.first_s)
        return Found(None)

    parameters = genesis

    async def tx(self, _: str, _touches: str | None) -> Read[TxSeen]:
        await asyncio.sleep(self._after_s)
        return self._told


def panel_of(*providers: Slow) -> ProviderQuorum:
    clock = Clock()
    guarded = [ThrottledProvider(source, clock, None) for source in providers]  # type: ignore[arg-type]
    return ProviderQuorum(guarded, clock, "", lambda _: None, lambda _: None, lambda _: 100, 300)


def run(asking: Coroutine[Any, Any, T]) -> T:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(asking)
    finally:
        loop.close()


def asked(*providers: tuple[float, Read[TxSeen]]) -> tuple[Read[TxSeen], float]:
    """The quorum's answer about a transaction, and how long it took."""

    async def ask() -> tuple[Read[TxSeen], float]:
        view = await panel_of(*(Slow(str(number), *one) for number, one in enumerate(providers))).observe()
        assert view is not None
        return await view.tx(TX), asyncio.get_running_loop().time()

    return run(ask())


@pytest.mark.parametrize("lie", [NotFound(), Found(TxSeen(TX, "ee" * 32, 10, 100))])
def test_a_fast_lying_provider_does_not_outvote_two_slow_honest_ones(lie: Read[TxSeen]) -> None:
    assert asked((0, lie), (8, SEEN), (9, SEEN)) == (SEEN, 9)


def test_two_agreeing_providers_do_not_wait_for_a_very_slow_third() -> None:
    assert asked((1, SEEN), (100, NotFound()), (2, SEEN)) == (SEEN, 5)


def test_the_slower_of_two_providers_gets_twice_the_faster_ones_time_and_at_least_5_s() -> None:
    assert asked((0, SEEN), (4, SEEN)) == (SEEN, 4)
    assert asked((8, SEEN), (15, SEEN)) == (SEEN, 15)
    read, took_s = asked((0, SEEN), (6, SEEN))
    assert isinstance(read, Unknown)
    assert took_s == 5


def heard(*first_s: float) -> tuple[str, float]:
    """Which providers take part in the first pass, by how long each takes per request."""

    async def ask() -> tuple[str, float]:
        providers = [Slow(str(number), 0, SEEN) for number in range(len(first_s))]
        for source, seconds in zip(providers, first_s, strict=True):
            source.first_s = seconds
        view = await panel_of(*providers).observe()
        assert view is not None
        return view.name, asyncio.get_running_loop().time()

    return run(ask())


def test_the_first_pass_waits_for_all_providers_when_all_are_slow() -> None:
    assert heard(9, 11) == ("0, 1", 22)


def test_the_first_pass_goes_on_without_a_provider_that_is_much_slower() -> None:
    assert heard(0, 7) == ("0, 1", 14)
    assert heard(0, 8) == ("0", 15)


@pytest.mark.parametrize("is_out", [False, True])
def test_a_provider_that_failed_on_utxos_stays_silent_until_it_is_heard_again(is_out: bool) -> None:
    """Otherwise an unreliable provider would forever delay what the other one alone is believed in."""
    (state,) = panel_of(Slow("0", 0, SEEN))._states
    state.note("utxos", Unknown("no answer"), 0)
    for minute in range(1, 4):
        state.note_pass(not is_out, minute * 60_000)
    assert state.is_mute("utxos") is is_out


def test_an_excluded_provider_does_not_count_as_silent() -> None:
    """It may have been excluded wrongly and be the honest one."""
    (state,) = panel_of(Slow("0", 0, SEEN))._states
    state.note("tx", Unknown("no answer"), 0)
    state.exclude(0, "it contradicts itself")
    for minute in range(1, 11):
        state.note_pass(is_believed=False, now_ms=minute * 60_000)
    assert not state.is_mute("tx")
