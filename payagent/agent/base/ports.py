"""What the agent needs from outside and a simulator can stand in for: time, randomness, writes, signatures.

May import: the standard library, the store's unit of work, wallet.keys (a signer's type). Never: anything else.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from payagent.store.db.unit import Unit
from payagent.wallet.keys import Signer

T = TypeVar("T")


class Writes(Protocol):
    """What makes jobs durable (store.db.writer)."""

    async def run(self, name: str, job: Callable[[Unit], T]) -> T:
        """What the job returned, once its commit is durable; `name` is the commit point."""

    def is_noted(self, attempt: int | None) -> bool:
        """Whether the attempt of this number may be shown: the signer's own record has it."""


class Signatures(Protocol):
    """What signs for the wallet, and lets the loop go on meanwhile."""

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that go in the witness."""

    async def signature(self, body: bytes, paid: int) -> bytes:
        """As `wallet.keys.Signer.sign`."""


class InProcess:
    """A signer that takes no time worth going on for."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    @property
    def public_key(self) -> bytes:
        return self._signer.public_key

    async def signature(self, body: bytes, paid: int) -> bytes:
        return self._signer.sign(body, paid)


class Clock(Protocol):
    def now_ms(self) -> int:
        """POSIX time in milliseconds."""


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class Randomness(Protocol):
    def token_hex(self, count: int) -> str:
        """`count` random bytes in hex."""


class SystemRandomness:
    def token_hex(self, count: int) -> str:
        return secrets.token_hex(count)


@dataclass(frozen=True, slots=True)
class Ports:
    clock: Clock
    randomness: Randomness

    def new_id(self, prefix: str) -> str:
        """A fresh id that nobody can guess: 96 random bits behind a prefix that says what it is."""
        return f"{prefix}_{self.randomness.token_hex(12)}"
