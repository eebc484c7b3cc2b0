"""The port to the chain: the questions payagent asks a provider, and the values that come back.

May import: the standard library. Never: I/O, a clock, a library for a provider.

Reads are three-valued (rule 4). `Found` and `NotFound` are what the provider positively said, as seen
from its own, possibly stale or forked view; `Unknown` is everything else: time-outs, limits, broken or
contradictory answers. No method raises because of what a provider did.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """The provider answered, in full, with `value`."""

    value: T


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider positively said that it has no such thing. Never evidence of absence on its own."""


class Why(StrEnum):
    """What kept a provider, or several together, from telling; the breaker goes by it (chain.circuit_breaker)."""

    UNCLEAR = "unclear"  # it answered, and the answer tells nothing
    OUTAGE = "outage"  # no answer, none in time, or a server error
    RATE = "rate"  # too many calls
    QUOTA = "quota"  # the day's calls are used up, or we are banned for going on
    NOT_YET = "not_yet"  # of several providers, one has not come to the block that another shows
    DISPUTE = "dispute"  # of several providers, one denies what another shows


@dataclass(frozen=True, slots=True)
class Unknown:
    """Could not tell. `reason` is for people and logs; it holds no secret, and nothing decides by it."""

    reason: str
    why: Why = field(default=Why.UNCLEAR, compare=False)
    retry_after_s: int | None = field(default=None, compare=False)


Read: TypeAlias = Found[T] | NotFound | Unknown


@dataclass(frozen=True, slots=True)
class Tip:
    """The newest block of the provider's chain; `time_s` is Unix time."""

    height: int
    slot: int
    hash: str
    time_s: int


@dataclass(frozen=True, slots=True)
class BlockSeen:
    """A block that is on the provider's chain now."""

    hash: str
    height: int
    slot: int
    time_s: int


@dataclass(frozen=True, slots=True)
class TxSeen:
    """A transaction in a block of the provider's chain. Its depth is for the reader to count from a tip."""

    tx_id: str
    block_hash: str
    block_height: int
    slot: int


@dataclass(frozen=True, slots=True)
class ChainUtxo:
    """An unspent output as the provider lists it.

    `assets` holds tokens by policy and name in hex, without lovelace. `unreadable` marks an output with a
    token amount above 2^63-1 (the ledger allows up to 2^64-1, and anybody can send one here): that token is
    left out of `assets`, so such an output can be neither counted nor spent.
    """

    tx_id: str
    index: int
    address: str
    lovelace: int
    assets: Mapping[str, int]
    block_hash: str | None
    has_datum: bool
    has_script: bool
    unreadable: bool = False

    @property
    def ref(self) -> str:
        return f"{self.tx_id}#{self.index}"


@dataclass(frozen=True, slots=True)
class AddressTx:
    """A transaction that pays or spends at an address, and the block that it is in; `time_s` is Unix time."""

    tx_id: str
    block_height: int
    time_s: int


@dataclass(frozen=True, slots=True)
class Movement:
    """What a transaction took from one address and what it put there: units per asset, by the coin's ref.

    As of a coin in `ChainUtxo`, a token amount above 2^63-1 is left out.
    """

    spent: Mapping[str, Mapping[str, int]]
    made: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Genesis:
    """What tells one network from another, where addresses cannot (preprod and preview share a prefix)."""

    network_magic: int
    system_start_s: int
    slot_length_s: int


@dataclass(frozen=True, slots=True)
class ProtocolParameters:
    """The protocol parameters that a plain payment meets, in force in `epoch`."""

    min_fee_a: int
    min_fee_b: int
    coins_per_utxo_byte: int
    max_tx_size: int
    max_value_size: int
    epoch: int


class SubmitKind(StrEnum):
    """What an answer to a submission means (docs/exactly-once.md). Not one of them means "failed"."""

    ACCEPTED = "accepted"  # in that node's mempool, from which it may still be dropped
    LIAR = "liar"  # a success that names another transaction, or none
    SPENT_ALL = "spent_all"  # ours is there, a conflict won, a parent is gone, or the node is behind
    SPENT_SOME = "spent_some"  # some inputs are unknown to that node, not all
    EXPIRED = "expired"  # outside the validity interval at that node's slot
    NEVER = "never"  # these bytes can never be valid under the parameters of that node
    FULL = "full"  # its mempool is full
    RATE = "rate"  # too many calls of ours; not submitted
    QUOTA = "quota"  # the day's calls are used up, or we are banned for going on; not submitted
    AUTH = "auth"  # the project id is not accepted; not submitted
    CLIENT = "client"  # our request or its address is wrong, or a rule refused it that has no class
    OUTAGE = "outage"  # the provider is down; usually not submitted
    AMBIGUOUS = "ambiguous"  # the bytes may have arrived, and may be taken minutes later


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """A classified answer. `retry_after_s` is the provider's wish, when it gave one in seconds."""

    kind: SubmitKind
    detail: str
    retry_after_s: int | None = None


Turn: TypeAlias = Callable[[], Awaitable[bool]]
"""Waits until one more call may be made; False when none may for now."""


async def at_once() -> bool:
    """The turn of one that nobody paces."""
    return True


class ChainProvider(Protocol):
    """One provider's view of one chain. Safe for concurrent tasks of one event loop.

    Hashes and transaction ids are 64 lower-case hex digits; another form is a ValueError, a bug of the caller.
    """

    @property
    def name(self) -> str:
        """The configured name of the provider, for logs and for telling two sources apart."""

    async def tip(self) -> Read[Tip]: ...

    async def genesis(self) -> Read[Genesis]: ...

    async def parameters(self) -> Read[ProtocolParameters]: ...

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """Every unspent output of the address, or Unknown; never a part of them. Never used: Found(())."""

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Every transaction of the address in blocks from a time on, oldest first; never a part of them.

        What came into a block during the call may be missing. Never used: Found(()). One that broke off (Unknown)
        goes on where it did when it is asked for again.
        """

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """What a transaction in a block moved at the address."""

    async def tx(self, tx_id: str) -> Read[TxSeen]: ...

    async def block(self, block_hash: str) -> Read[BlockSeen]:
        """Whether the block is (still) on the provider's chain."""

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        """Send the signed bytes as they are. `tx_id` is our own; the one that is answered is only compared."""

    async def aclose(self) -> None: ...


class PacedProvider(ChainProvider, Protocol):
    """One whose reads of very many calls wait for their turns."""

    def pace(self, turn: Turn) -> None:
        """From now on, take a turn before each further call of a read that may take very many."""
