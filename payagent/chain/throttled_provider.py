"""A chain provider behind a circuit breaker and a rate limit (chain.circuit_breaker).

A read over the limit waits, or returns `Unknown` at once.
It measures how long each operation of the provider takes (`latency`).
Never: sends a submission twice; changes a provider's answer.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from payagent.chain.circuit_breaker import CLOSED, RESERVED_CALLS, Span, full_pause
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainProvider,
    ChainUtxo,
    Found,
    Genesis,
    Movement,
    PlutusScript,
    ProtocolParameters,
    Read,
    SubmitAnswer,
    SubmitKind,
    T,
    Unknown,
    Why,
)
from payagent.core.aggregate import TxSeen
from payagent.core.prometheus import Histogram
from payagent.core.token_bucket import Rate, TokenBucket

WAIT_MAX_S = 10.0
"""The longest time that a read waits for its turn."""

ROWS_PER_CALL = 100
"""Rows that a list returns per call."""

LATENCY_BOUNDS_MS = (10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000)

_NO_ANSWER = (SubmitKind.RATE, SubmitKind.QUOTA, SubmitKind.AUTH, SubmitKind.OUTAGE, SubmitKind.AMBIGUOUS)
_TIMED_OUT = Unknown("no answer in time", Why.OUTAGE)
_PAUSES = {SubmitKind.RATE: Why.RATE, SubmitKind.QUOTA: Why.QUOTA}


class ProviderClock(Protocol):
    def now_ms(self) -> int: ...


class ThrottledProvider:
    """A `ChainReader` that submits, and keeps its provider's limits. `rate` is None if there are none."""

    def __init__(self, provider: ChainProvider, clock: ProviderClock, rate: Rate | None) -> None:
        self._provider = provider
        self._clock = clock
        self._bucket = TokenBucket(rate, clock.now_ms()) if rate else None
        self._breaker = CLOSED
        self._is_trial_running = False
        self._full = Span()
        self.calls = 0
        self.failures = 0
        """Calls without an answer."""
        self.latency: dict[str, Histogram] = {}
        """How long each operation took, answered or not; a list's includes its waits for further calls."""
        self.lied_at_ms: int | None = None
        """When it last answered a submission with another transaction's id."""
        self.refused_at_ms = 0
        """When it last said that a transaction can never be valid: the parameters may have changed."""
        provider.pace(self._next_call)

    @property
    def name(self) -> str:
        return self._provider.name

    def trouble(self, now_ms: int) -> str | None:
        """Why it may not be called now; None when it may."""
        return f"not called for a while: {self._breaker.why}" if self._breaker.is_open(now_ms) else None

    def may_submit(self, now_ms: int) -> bool:
        return not self._breaker.is_open(now_ms) and not self._full.holds(now_ms)

    async def tip(self) -> Read[BlockSeen]:
        return await self._read("tip", self._provider.tip)

    async def genesis(self) -> Read[Genesis]:
        return await self._read("genesis", self._provider.genesis)

    async def parameters(self) -> Read[ProtocolParameters]:
        return await self._read("parameters", self._provider.parameters)

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        return self._counted(await self._read("utxos", lambda: self._provider.utxos(address)))

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        return await self._read("transactions", lambda: self._provider.transactions(address, since_s))

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        return await self._read("movement", lambda: self._provider.movement(tx_id, address))

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        return await self._read("tx", lambda: self._provider.tx(tx_id, touches))

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        return await self._read("block", lambda: self._provider.block(block_hash, slot))

    async def spender(self, ref: str) -> Read[TxSeen]:
        return await self._read("spender", lambda: self._provider.spender(ref))

    async def script_utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        return self._counted(await self._read("script_utxos", lambda: self._provider.script_utxos(address)))

    async def script(self, script_hash: str) -> Read[PlutusScript]:
        return await self._read("script", lambda: self._provider.script(script_hash))

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        """Submit at once, whatever the bucket holds. Callers ask `may_submit` before."""
        self._take(1)
        self.calls += 1
        with self._measured("submit"):
            answer = await self._provider.submit(raw, tx_id)
        self.failures += answer.kind in _NO_ANSWER
        now_ms = self._clock.now_ms()
        if (pause := _PAUSES.get(answer.kind)) is not None:
            self._breaker = self._breaker.refused(pause, answer.retry_after_s, answer.detail, now_ms)
        elif answer.kind in (SubmitKind.OUTAGE, SubmitKind.AMBIGUOUS):
            self._breaker = self._breaker.failed(answer.detail, now_ms)
        elif answer.kind is SubmitKind.FULL:
            self._full = full_pause(answer.retry_after_s, now_ms)
        elif answer.kind is SubmitKind.LIAR:
            self.lied_at_ms = now_ms
        elif answer.kind is SubmitKind.NEVER:
            self.refused_at_ms = now_ms
        return answer

    async def aclose(self) -> None:
        await self._provider.aclose()

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        clock_s = asyncio.get_running_loop().time
        started_s = clock_s()
        try:
            yield
        finally:
            histogram = self.latency.setdefault(operation, Histogram(LATENCY_BOUNDS_MS))
            histogram.observe(int((clock_s() - started_s) * 1000))

    async def _read(self, operation: str, ask: Callable[[], Coroutine[Any, Any, Read[T]]]) -> Read[T]:
        """Read if the breaker and the rate limit allow it. On trial, only one read runs at a time."""
        now_ms = self._clock.now_ms()
        if (trouble := self.trouble(now_ms)) is not None:
            return Unknown(trouble)
        if self._breaker.is_on_trial and self._is_trial_running:
            return Unknown(f"on trial: {self._breaker.why}")
        if not await self._turn(now_ms):
            return Unknown("out of calls")
        self._take(1)
        self.calls += 1
        self._is_trial_running = True
        read: Read[T] = _TIMED_OUT
        try:
            with self._measured(operation):
                read = await ask()
            return read
        finally:
            self._is_trial_running = False
            self._learn(read)

    async def _next_call(self) -> bool:
        """The turn of each further call of one read. The calls before it were answered, so the breaker closes."""
        now_ms = self._clock.now_ms()
        if self.trouble(now_ms) is not None:
            return False
        self._breaker = CLOSED
        if not await self._turn(now_ms):
            return False
        self._take(1)
        self.calls += 1
        return True

    def _learn(self, read: Read[T]) -> None:
        now_ms = self._clock.now_ms()
        self.failures += isinstance(read, Unknown)
        if not isinstance(read, Unknown):
            self._breaker = self._breaker if self._breaker.is_open(now_ms) else CLOSED
        elif read.why is Why.OUTAGE:
            self._breaker = self._breaker.failed(read.reason, now_ms)
        elif read.why in (Why.RATE, Why.QUOTA):
            self._breaker = self._breaker.refused(read.why, read.retry_after_s, read.reason, now_ms)

    async def _turn(self, now_ms: int) -> bool:
        """Wait until a read may be made; False if that takes too long."""
        waited_ms = 0
        while self._bucket is not None and (wait_ms := self._bucket.wait_ms(RESERVED_CALLS + 1, now_ms)):
            waited_ms += wait_ms
            if waited_ms > WAIT_MAX_S * 1000:
                return False
            await asyncio.sleep(wait_ms / 1000)
            now_ms = self._clock.now_ms()
        return True

    def _take(self, count: int) -> None:
        if self._bucket is not None:
            self._bucket.take(count)

    def _counted(self, read: Read[tuple[T, ...]]) -> Read[tuple[T, ...]]:
        """Count the further calls that a long list took."""
        if isinstance(read, Found):
            self._take(len(read.value) // ROWS_PER_CALL)
        return read
