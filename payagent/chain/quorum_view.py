"""The chain as the believed providers show it together in one pass.

Two of them have to agree (chain.quorum_rules). A provider that is missing only for a short time counts as one that
could not answer. So a liar gains nothing from a short absence of an honest provider.
Never: decides which providers are believed (`chain.quorum` does); concludes anything about a payment.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from payagent.chain.deadlines import in_time
from payagent.chain.disputes import Disputes
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    Found,
    Movement,
    NotFound,
    Read,
    T,
    Unknown,
    Why,
    denies,
)
from payagent.chain.provider_state import ProviderState
from payagent.chain.quorum_rules import (
    Listing,
    ProviderAnswer,
    unplaced,
    weigh_block,
    weigh_movement,
    weigh_transactions,
    weigh_tx,
    weigh_utxos,
)
from payagent.chain.throttled_provider import ProviderClock, ThrottledProvider
from payagent.core.aggregate import TxSeen

ANSWER_PATIENCE_S = 5.0
"""How long a provider may take once another (of three or more: two) has answered."""

LIST_PATIENCE_S = 60.0
"""The same for a list of many pages."""

_LISTS = ("utxos", "transactions", "script_utxos")


@dataclass(frozen=True, slots=True)
class QuorumView:
    """What the believed providers show together, up to the lowest of their tips."""

    tip: BlockSeen
    is_current: bool
    """Whether "not found" counts: the tips are recent, and no lower than earlier ones."""
    is_final: bool
    """Whether irreversible conclusions are allowed: no possibly honest provider is excluded or left out early.

    A provider that relapsed soon after an exclusion is not honest. One that is dead at the start is left out
    early.
    """
    odd: str | None
    """Why the parameters that all providers give forbid signing; None when they do not."""
    _believed: tuple[ProviderState, ...]
    _awaited: tuple[str, ...]
    _states: tuple[ProviderState, ...]
    _disputes: Disputes
    _clock: ProviderClock

    @property
    def name(self) -> str:
        """The names of the believed providers."""
        return ", ".join(state.provider.name for state in self._believed)

    @property
    def is_for_good(self) -> bool:
        """Whether conclusions that no later pass can undo are allowed.

        Beyond `is_final`, only providers that were given up may be missing. A believed provider that for minutes
        could not answer about transactions, for example, is missing too.
        """
        return self.is_final and not self._missing()

    def may_add(self, *, is_first: bool) -> bool:
        """Whether a new UTxO may be booked on one provider's answer: no recently believed provider is missing.

        A provider that was never believed since the start is not waited for. For the first UTxOs, neither is one
        that never listed UTxOs: a dead or very slow provider does not delay the first funding.
        """
        missing = self._missing()
        return not any(state.was_believed and (state.has_listed_utxos or not is_first) for state in missing)

    def _missing(self) -> list[ProviderState]:
        """The providers whose answers are missing, and that are not given up."""
        now_ms = self._clock.now_ms()
        return [state for state in self._states if state.is_missing(now_ms)]

    @property
    def stands_alone(self) -> bool:
        """Whether an answer about a transaction comes from one provider only."""
        return self._is_alone("tx")

    def is_lonely(self, kind: str) -> bool:
        """Whether this kind of answer comes from one provider although several are configured."""
        return self._is_alone(kind) and len(self._states) > 1

    def _is_alone(self, kind: str) -> bool:
        return len(self._able(kind)) + len(self._awaited) < 2

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        answers = await self._ask("tx", lambda provider: provider.tx(tx_id, touches))
        read = weigh_tx(answers)
        if not _is_open(read):
            self._disputes.settle(tx_id)
        elif await self._disputes.follow(tx_id, answers):
            return replace(read, why=Why.DISPUTE)  # a provider that lags for so long counts as denying it
        return read

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        return weigh_block(await self._ask("block", lambda provider: provider.block(block_hash, slot)))

    async def spender(self, ref: str) -> Read[TxSeen]:
        return weigh_tx(await self._ask("spender", lambda provider: provider.spender(ref)))

    async def utxos(self, address: str) -> Read[Listing]:
        return weigh_utxos(await self._ask("utxos", lambda provider: provider.utxos(address)))

    async def script_utxos(self, address: str) -> Read[Listing]:
        """As `utxos`, for a script's address. Outputs agree only if their datums do."""
        answers = await self._ask("script_utxos", lambda provider: provider.script_utxos(address))
        return weigh_utxos(answers, lambda utxo: (unplaced(utxo), utxo.datum))

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        answers = await self._ask("transactions", lambda provider: provider.transactions(address, since_s))
        return self._settle_or_note(f"the transactions of {address}", weigh_transactions(answers))

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        answers = await self._ask("movement", lambda provider: provider.movement(tx_id, address))
        return self._settle_or_note(f"what {tx_id} moved", weigh_movement(answers))

    async def has_unknown_spend(self, address: str, since_s: int, is_known: Callable[[str], bool]) -> Read[bool]:
        """Whether an unknown transaction spends UTxOs of an address in blocks since a time.

        One provider's answer is enough. `Unknown` only if none of them could answer.
        """

        async def read(provider: ThrottledProvider) -> Read[bool]:
            listed = await provider.transactions(address, since_s)
            if not isinstance(listed, Found):
                return listed
            for tx_id in (tx.tx_id for tx in listed.value if not is_known(tx.tx_id)):
                moved = await provider.movement(tx_id, address)
                if isinstance(moved, Unknown):
                    return moved
                if isinstance(moved, Found) and moved.value.spent:
                    return Found(True)
            return Found(False)

        answers = await self._ask("transactions", read)
        values = [answer.read.value for answer in answers if isinstance(answer.read, Found)]
        if values:
            return Found(any(values))
        return next(
            (answer.read for answer in answers if isinstance(answer.read, Unknown)),
            Unknown("no provider was asked"),
        )

    def _settle_or_note(self, subject: str, read: Read[T]) -> Read[T]:
        if _is_open(read):
            self._disputes.note(subject)
        else:
            self._disputes.settle(subject)
        return read

    def _able(self, kind: str) -> list[ProviderState]:
        """The providers that can answer this kind of read; all of them if none can."""
        return [state for state in self._believed if not state.is_mute(kind)] or list(self._believed)

    async def _ask(
        self, kind: str, ask: Callable[[ThrottledProvider], Coroutine[Any, Any, Read[T]]]
    ) -> list[ProviderAnswer[T]]:
        patience_s = LIST_PATIENCE_S if kind in _LISTS else ANSWER_PATIENCE_S
        late = Unknown("no answer in time, while others answered")
        works = [ask(state.provider) for state in self._believed]
        reads = await in_time(works, patience_s, late, lambda read: not isinstance(read, Unknown))
        now_ms = self._clock.now_ms()
        for state, read in zip(self._believed, reads, strict=True):
            state.note(kind, read, now_ms)
        able = self._able(kind)
        answers = [
            ProviderAnswer(state.provider.name, state.tip.slot if state.tip else 0, self._up_to_date(read))
            for state, read in zip(self._believed, reads, strict=True)
            if state in able
        ]
        return [*answers, *(ProviderAnswer(name, 0, Unknown("waited for")) for name in self._awaited)]

    def _up_to_date(self, read: Read[T]) -> Read[T]:
        """A denial counts only if the machine that denied had come as far as this view."""
        if denies(read, self.tip.height):
            return read
        return Unknown("one of its machines lags", Why.NOT_YET) if isinstance(read, NotFound) else read


def _is_open(read: Read[Any]) -> TypeGuard[Unknown]:
    """Whether the answers do not agree, or not yet."""
    return isinstance(read, Unknown) and read.why in (Why.DISPUTE, Why.NOT_YET)
