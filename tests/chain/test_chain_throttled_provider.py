"""A provider's limits: the circuit breaker, and the provider that obeys it and the rate limit."""

import asyncio
from collections.abc import Callable

import pytest

from payagent.chain import circuit_breaker
from payagent.chain.circuit_breaker import CircuitBreaker
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    Found,
    NotFound,
    Read,
    SubmitAnswer,
    SubmitKind,
    Turn,
    Unknown,
    Why,
)
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.token_bucket import Rate

RATE = Rate(10, 500)
TIP = Found(BlockSeen(1, 1, "aa" * 32, 1))


class TestCircuitBreaker:
    def test_it_opens_after_failures_in_a_row_and_for_longer_each_time(self) -> None:
        breaker, now_ms, pauses = CircuitBreaker(), 0, []
        for _ in range(circuit_breaker.FAILURES_MAX - 1):
            breaker = breaker.failed("time-out", now_ms)
            assert not breaker.is_open(now_ms)
        for _ in range(6):
            breaker = breaker.failed("time-out", now_ms)
            pauses.append(breaker.open_until_ms - now_ms)
            assert breaker.is_open(breaker.open_until_ms - 1)
            now_ms = breaker.open_until_ms
            assert not breaker.is_open(now_ms)
        assert pauses == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]

    def test_an_answer_between_failures_resets_the_count(self) -> None:
        breaker = CircuitBreaker()
        for _ in range(circuit_breaker.FAILURES_MAX - 1):
            breaker = breaker.failed("time-out", 0)
        breaker = circuit_breaker.CLOSED.failed("time-out", 0)
        assert not breaker.is_open(0)

    @pytest.mark.parametrize(
        ("why", "asked_s", "pause_ms"),
        [
            (Why.RATE, None, circuit_breaker.RATE_PAUSE_MS),
            (Why.RATE, 17, 17_000),
            (Why.QUOTA, None, circuit_breaker.QUOTA_PAUSE_MS),
            (Why.QUOTA, 3600, 3_600_000),
            (Why.RATE, 10**12, circuit_breaker.ASKED_PAUSE_MAX_MS),
        ],
    )
    def test_a_provider_that_asks_for_a_pause_gets_it(self, why: Why, asked_s: int | None, pause_ms: int) -> None:
        breaker = CircuitBreaker().refused(why, asked_s, "http 429", 1000)
        assert not breaker.is_open(999)  # the clock was ahead when it opened
        assert breaker.open_until_ms == 1000 + pause_ms

    def test_a_longer_pause_is_not_shortened(self) -> None:
        breaker = CircuitBreaker().refused(Why.QUOTA, 600, "x", 0)
        assert breaker.refused(Why.RATE, 1, "x", 0).open_until_ms == 600_000


class Clock:
    def __init__(self) -> None:
        self.at_ms = 0

    def now_ms(self) -> int:
        return self.at_ms


class Provider:
    """Answers as scripted, and counts requests."""

    name = "p"

    def __init__(self, read: Read[BlockSeen] = TIP, kind: SubmitKind = SubmitKind.ACCEPTED) -> None:
        self.read, self.kind = read, kind
        self.retry_after_s: int | None = None
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.turn: Turn | None = None

    def pace(self, turn: Turn) -> None:
        self.turn = turn

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """A list that takes a thousand requests."""
        assert self.turn is not None
        for _ in range(1000):
            if not await self.turn():
                return Unknown("out of calls")
            self.calls += 1
            if self.gate is not None:
                await self.gate.wait()
        return Found(())

    async def tip(self) -> Read[BlockSeen]:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.read

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        self.calls += 1
        return SubmitAnswer(self.kind, "said", self.retry_after_s)


def guarded(provider: Provider, rate: Rate | None = None) -> tuple[ThrottledProvider, Clock]:
    clock = Clock()
    return ThrottledProvider(provider, clock, rate), clock  # type: ignore[arg-type]


DOWN = Unknown("http 500", Why.OUTAGE)


class TestThrottledProvider:
    async def test_a_provider_that_is_down_is_asked_less_often_until_it_answers(self) -> None:
        provider = Provider(DOWN)
        guard, clock = guarded(provider)
        for _ in range(100):
            assert isinstance(await guard.tip(), Unknown)
        assert provider.calls == circuit_breaker.FAILURES_MAX
        assert "http 500" in (guard.trouble(0) or "")
        assert not guard.may_submit(0)
        clock.at_ms = 5_000
        for _ in range(100):
            await guard.tip()
        assert provider.calls == circuit_breaker.FAILURES_MAX + 1
        provider.read, clock.at_ms = TIP, 15_000
        assert await guard.tip() == TIP
        assert guard.trouble(15_000) is None

    async def test_after_a_pause_only_one_trial_request_is_sent(self) -> None:
        provider = Provider(DOWN)
        guard, clock = guarded(provider)
        for _ in range(circuit_breaker.FAILURES_MAX):
            await guard.tip()
        provider.calls, provider.read, provider.gate = 0, TIP, asyncio.Event()
        clock.at_ms = 5_000
        first = asyncio.create_task(guard.tip())
        await asyncio.sleep(0)
        assert isinstance(await guard.tip(), Unknown)
        assert provider.calls == 1
        provider.gate.set()
        assert await first == TIP
        assert await guard.tip() == TIP

    async def test_a_long_trial_read_does_not_block_others_once_the_provider_answers(self) -> None:
        provider = Provider(DOWN)
        guard, clock = guarded(provider)
        for _ in range(circuit_breaker.FAILURES_MAX):
            await guard.tip()
        provider.read, provider.gate = TIP, asyncio.Event()
        clock.at_ms = 5_000
        listing = asyncio.create_task(guard.transactions("", 0))
        await asyncio.sleep(0)
        told = asyncio.create_task(guard.tip())
        await asyncio.sleep(0)
        provider.gate.set()
        assert await told == TIP
        assert await listing == Found(())

    async def test_a_cancelled_call_counts_as_a_failure(self) -> None:
        provider = Provider()
        provider.gate = asyncio.Event()
        guard, _ = guarded(provider)
        for _ in range(circuit_breaker.FAILURES_MAX):
            task = asyncio.create_task(guard.tip())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert guard.trouble(0) is not None

    @pytest.mark.parametrize("read", [NotFound(), Unknown("http 200, not understood")])
    async def test_an_answer_that_is_not_useful_is_not_a_failure(self, read: Read[BlockSeen]) -> None:
        provider = Provider(read)
        guard, _ = guarded(provider)
        for _ in range(20):
            await guard.tip()
        assert provider.calls == 20

    @pytest.mark.parametrize("why", [Why.RATE, Why.QUOTA])
    async def test_a_refused_read_opens_the_circuit_breaker_at_once(self, why: Why) -> None:
        provider = Provider(Unknown("http 429", why, 30))
        guard, clock = guarded(provider)
        await guard.tip()
        await guard.tip()
        assert provider.calls == 1
        clock.at_ms = 29_999
        assert not guard.may_submit(clock.at_ms)
        clock.at_ms = 30_000
        assert guard.may_submit(clock.at_ms)

    @pytest.mark.parametrize(
        ("kind", "reads_go_on", "pause_ms"),
        [
            (SubmitKind.RATE, False, circuit_breaker.RATE_PAUSE_MS),
            (SubmitKind.QUOTA, False, circuit_breaker.QUOTA_PAUSE_MS),
            (SubmitKind.FULL, True, circuit_breaker.FULL_PAUSE_MS),
            (SubmitKind.ACCEPTED, True, 0),
            (SubmitKind.SPENT_ALL, True, 0),
            (SubmitKind.OUTAGE, True, 0),
        ],
    )
    async def test_each_answer_to_a_submission_pauses_reads_and_submissions_accordingly(
        self, kind: SubmitKind, reads_go_on: bool, pause_ms: int
    ) -> None:
        guard, _ = guarded(Provider(kind=kind))
        await guard.submit(b"", "aa" * 32)
        assert (await guard.tip() == TIP) is reads_go_on
        assert guard.may_submit(pause_ms)
        assert pause_ms == 0 or not guard.may_submit(pause_ms - 1)

    @pytest.mark.parametrize(
        ("asked_s", "pause_ms"),
        [(None, circuit_breaker.FULL_PAUSE_MS), (17, 17_000), (10**9, circuit_breaker.FULL_PAUSE_MAX_MS)],
    )
    async def test_a_full_mempool_pauses_submissions_for_a_bounded_time(
        self, asked_s: int | None, pause_ms: int
    ) -> None:
        provider = Provider(kind=SubmitKind.FULL)
        provider.retry_after_s = asked_s
        guard, clock = guarded(provider)
        clock.at_ms = 1_000_000
        await guard.submit(b"", "aa" * 32)
        assert not guard.may_submit(1_000_000 + pause_ms - 1)
        assert guard.may_submit(1_000_000 + pause_ms)
        assert guard.may_submit(999_999)  # the clock was ahead and is now right

    async def test_a_provider_that_lies_about_a_submission_is_remembered(self) -> None:
        guard, clock = guarded(Provider(kind=SubmitKind.LIAR))
        assert guard.lied_at_ms is None
        clock.at_ms = 7
        await guard.submit(b"", "aa" * 32)
        assert guard.lied_at_ms == 7

    async def test_reads_run_out_of_calls_before_submissions_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        provider = Provider()
        guard, clock = guarded(provider, RATE)
        monkeypatch.setattr("payagent.chain.throttled_provider.asyncio.sleep", passing(clock, stands_still=True))
        for _ in range(RATE.burst):
            await guard.tip()
        assert provider.calls == RATE.burst - circuit_breaker.RESERVED_CALLS
        assert await guard.tip() == Unknown("out of calls")
        for _ in range(circuit_breaker.RESERVED_CALLS):
            assert (await guard.submit(b"", "aa" * 32)).kind is SubmitKind.ACCEPTED

    async def test_a_read_waits_until_the_rate_limit_allows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No more requests in ten seconds than the rate limit allows."""
        provider = Provider()
        guard, clock = guarded(provider, RATE)
        monkeypatch.setattr("payagent.chain.throttled_provider.asyncio.sleep", passing(clock))
        while clock.at_ms < 10_000:
            assert await guard.tip() == TIP
        assert provider.calls <= RATE.burst + 10 * RATE.calls_per_s

    async def test_the_calls_of_a_long_list_keep_to_the_rate_limit_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = Provider()
        guard, clock = guarded(provider, RATE)
        monkeypatch.setattr("payagent.chain.throttled_provider.asyncio.sleep", passing(clock))
        assert await guard.transactions("", 0) == Found(())
        assert guard.calls == provider.calls + 1
        assert (
            clock.at_ms
            >= (provider.calls - RATE.burst + circuit_breaker.RESERVED_CALLS) * 1000 // RATE.calls_per_s
        )

    async def test_a_long_list_stops_when_the_provider_asks_for_a_pause(self) -> None:
        provider = Provider()
        guard, clock = guarded(provider, RATE)
        turn = provider.turn
        assert turn is not None
        assert await turn()
        provider.read = Unknown("http 402", Why.QUOTA)
        await guard.tip()
        assert not await turn()
        clock.at_ms = circuit_breaker.QUOTA_PAUSE_MS
        assert await turn()


def passing(clock: Clock, *, stands_still: bool = False) -> Callable[[float], object]:
    """A sleep that advances the clock at once, or not at all."""

    async def sleep(seconds: float) -> None:
        clock.at_ms += 0 if stands_still else max(int(seconds * 1000), 1)

    return sleep
