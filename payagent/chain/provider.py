"""The port to the chain: the questions payagent asks a provider, and the values it answers with.

Reads are three-valued (exactly-once.md R6). `Found` and `NotFound` are positive statements of the provider. Its
view may be stale or on a fork. Everything else is `Unknown`: timeouts, limits, broken or contradictory answers. No
method raises because of something a provider did.
Never: I/O, a clock, a provider's library.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from payagent.core.aggregate import TxSeen
from payagent.core.token_bucket import Rate
from payagent.settings.schema import ProviderSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """The provider gave a complete answer, `value`."""

    value: T


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider positively said that it does not have it. One such answer is not evidence of absence.

    `as_of_height`: the newest block of the machine that answered, for a kind of many machines. None for a provider
    whose tip says that.
    """

    as_of_height: int | None = None


class Why(StrEnum):
    """Why a read is `Unknown`, for one provider or for a quorum. The circuit breaker decides by it."""

    UNCLEAR = "unclear"  # it answered, but the answer says nothing usable
    OUTAGE = "outage"  # no answer, a timeout, or a server error
    RATE = "rate"  # too many calls in a short time
    QUOTA = "quota"  # the daily quota is used up, or we are banned for exceeding it
    NOT_YET = "not_yet"  # one provider has not reached the block that another shows
    DISPUTE = "dispute"  # one provider denies what another shows


@dataclass(frozen=True, slots=True)
class Unknown:
    """The provider could not tell. `reason` is for people and logs: it holds no secret, and no code uses it."""

    reason: str
    why: Why = field(default=Why.UNCLEAR, compare=False)
    retry_after_s: int | None = field(default=None, compare=False)


Read: TypeAlias = Found[T] | NotFound | Unknown


def denies(read: Read[T], height: int) -> bool:
    """Whether this denies what is in a block of this height: the machine that answered had come as far."""
    return isinstance(read, NotFound) and (read.as_of_height is None or read.as_of_height >= height)


@dataclass(frozen=True, slots=True)
class BlockSeen:
    """A block on the provider's chain at the time of the read, such as its newest; `time_s` is Unix time."""

    height: int
    slot: int
    hash: str
    time_s: int


@dataclass(frozen=True, slots=True)
class ChainUtxo:
    """An unspent output as the provider lists it.

    `assets` holds tokens by policy and name in hex, without lovelace. The ledger allows token amounts up to
    2^64-1, and anyone can send one to us. An amount above 2^63-1 is left out of `assets` and sets `unreadable`:
    such an output can be neither counted nor spent. `block_hash` and `block_height` are None where the provider's
    list has them not. `datum`: the inline datum in hex, of a kind that shows scripts.
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
    block_height: int | None = None
    datum: str | None = field(default=None, compare=False)

    @property
    def ref(self) -> str:
        return f"{self.tx_id}#{self.index}"


@dataclass(frozen=True, slots=True)
class AddressTx:
    """A transaction that pays to or spends from an address, and its block. `time_s` is Unix time."""

    tx_id: str
    block_height: int
    time_s: int


@dataclass(frozen=True, slots=True)
class Movement:
    """The outputs of one address that a transaction spent and made: units per asset, by UTxO reference.

    As in `ChainUtxo`, a token amount above 2^63-1 is left out.
    """

    spent: Mapping[str, Mapping[str, int]]
    made: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Genesis:
    """Identifies a network. Addresses cannot: preprod and preview share a prefix."""

    network_magic: int
    system_start_s: int
    slot_length_s: int


@dataclass(frozen=True, slots=True)
class ProtocolParameters:
    """The protocol parameters that a plain payment depends on, in force in `epoch`."""

    min_fee_a: int
    min_fee_b: int
    coins_per_utxo_byte: int
    max_tx_size: int
    max_value_size: int
    epoch: int


class PlutusScript(NamedTuple):
    """A Plutus V3 script, and that language's cost model: the raw list, in its order."""

    script: bytes
    cost_model: tuple[int, ...]


class SubmitKind(StrEnum):
    """What an answer to a submission means (exactly-once.md). No kind means "failed"."""

    ACCEPTED = "accepted"  # in that node's mempool, which may still drop it
    LIAR = "liar"  # a success that names another transaction or none
    SPENT_ALL = "spent_all"  # ours is on the chain, a conflicting one won, a parent is gone, or the node is behind
    SPENT_SOME = "spent_some"  # that node does not know some of the inputs
    EXPIRED = "expired"  # outside the validity interval at that node's slot
    NEVER = "never"  # never valid under that node's protocol parameters
    FULL = "full"  # its mempool is full
    RATE = "rate"  # too many calls in a short time from us; not submitted
    QUOTA = "quota"  # the daily quota is used up, or we are banned for exceeding it; not submitted
    AUTH = "auth"  # project id not accepted; not submitted
    CLIENT = "client"  # our request or its URL is wrong, or a rule without a class refused it
    OUTAGE = "outage"  # the provider is down; usually not submitted
    AMBIGUOUS = "ambiguous"  # the bytes may have arrived, and may be accepted minutes later


@dataclass(frozen=True, slots=True)
class SubmitAnswer:
    """A classified answer. `retry_after_s` is set when the provider sent Retry-After in seconds."""

    kind: SubmitKind
    detail: str
    retry_after_s: int | None = None


Turn: TypeAlias = Callable[[], Awaitable[bool]]
"""Waits until one more call may be made. Returns False when no call may be made for now."""


async def at_once() -> bool:
    """The `Turn` of a provider without pacing."""
    return True


class ChainReader(Protocol):
    """One provider's view of one chain. Safe for concurrent tasks of one event loop.

    Hashes and transaction ids are 64 lower-case hex digits. Any other form raises ValueError: the caller has a
    bug.
    """

    @property
    def name(self) -> str:
        """The provider's name in the config, for logs and to tell two providers apart."""

    async def tip(self) -> Read[BlockSeen]: ...

    async def genesis(self) -> Read[Genesis]: ...

    async def parameters(self) -> Read[ProtocolParameters]: ...

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """Return every unspent output of the address, or Unknown; never a part of them.

        An address that was never used gives Found(()).
        """

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Return every transaction of the address since a time, oldest first; never a part of them.

        A transaction that enters a block during the call may be missing. An address that was never used gives
        Found(()). After Unknown, the next call resumes where this one stopped.
        """

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """Return what a transaction in a block moved at the address."""

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        """Return the block of a transaction. `touches`: the reference of our output that it spends or makes.

        A provider that keeps only our address can deny a transaction by that output alone.
        """

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        """Say whether the block is still on the provider's chain. `slot` is its slot."""

    async def spender(self, ref: str) -> Read[TxSeen]:
        """Return the transaction in a block that spends an output of ours; NotFound if none does."""

    async def script_utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """As `utxos`, for the address of a script, with the datums. Unknown for a kind that shows no scripts."""

    async def script(self, script_hash: str) -> Read[PlutusScript]:
        """Return a script by its hash in hex, which is checked. Unknown for a kind that shows no scripts."""


class ChainProvider(ChainReader, Protocol):
    """One provider. `chain.open` makes it by its kind, and `ThrottledProvider` keeps its limits."""

    @property
    def rate(self) -> Rate | None:
        """How often it may be called; None: without a limit."""

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        """Send the signed bytes unchanged.

        `tx_id` is our own hash of the body. The id in the answer is only compared with it.
        """

    async def findings(self, address: str) -> tuple[str, ...]:
        """Say what must be set up differently on the server, for `payagent doctor`."""

    async def clock_off_s(self, now_ms: Callable[[], int]) -> Read[int]:
        """Return how many seconds our clock is ahead of the provider's; negative if behind.

        The error is at most half the duration of the call.
        """

    async def aclose(self) -> None: ...

    def pace(self, turn: Turn) -> None:
        """Take a turn before each further call of a read that may take many calls."""


class ProviderKind(NamedTuple):
    """What a kind of provider tells the rest of payagent. `chain.open` lists them."""

    make: Callable[[str, ProviderSettings, str, str | None], ChainProvider]
    """Makes one, of its name, its settings, the network, and its secret if it has one."""

    urls: Mapping[str, str]
    """The base URL that `payagent init` suggests, by network."""

    parse_url: Callable[[str], str]
    """Returns a base URL as it is used. Raises ValueError, with what to write."""

    needs_secret: Callable[[str], bool]
    """Whether the server at a base URL answers only with a secret."""

    index_urls: Mapping[str, str] = MappingProxyType({})
    """The usual `index_url` by network, of a kind with two servers."""
