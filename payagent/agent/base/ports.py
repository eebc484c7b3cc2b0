"""Ports that the simulator replaces: time, randomness, writes and signatures.

Never: anything else.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from payagent.store.db.unit import Unit

T = TypeVar("T")


class Writes(Protocol):
    """Makes jobs durable (store.db.writer)."""

    async def run(self, name: str, job: Callable[[Unit], T], account: int | None = None) -> T:
        """Run the job and return its result once its commit is durable. `name`: the job's, as in the log.

        `account`: the account that the job spends for, or whose payment's state it moves; None for what all
        accounts share. In a fleet it is refused (`lease_lost`) unless this daemon holds the account.
        """

    def is_noted(self, attempt: int | None, account: int = 0) -> bool:
        """Whether the signer's record of the account has the attempt of this number, so its proof may go."""


class Signatures(Protocol):
    """Signs for the wallet without blocking the event loop."""

    @property
    def public_key(self) -> bytes:
        """The 32-byte public key of the witness."""

    async def signature(self, body: bytes, paid: int) -> bytes:
        """As `wallet.keys.Signer.sign`."""

    async def channel(self, kind: str, **fields: object) -> bytes:
        """As `signer.channels.Channels.answer`. Only where channels are on."""


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
        """A fresh id: the prefix and 96 random bits, e.g. `pay_` and 24 hex digits."""
        return f"{prefix}_{self.randomness.token_hex(12)}"
