"""Pure rules that combine several providers' answers to one question into one three-valued read.

With two or more providers, two have to agree. A single provider is believed. An answer that a provider could not
give, or cannot give yet, is missing, and another provider's answer never replaces it (exactly-once.md R6).
Never: I/O, a clock.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
    Found,
    Movement,
    NotFound,
    Read,
    T,
    Unknown,
    Why,
)
from payagent.core.aggregate import TxSeen

PATIENCE_MS = 120_000
MISSES_MIN = 3
"""How long, and how many times, a provider may give no answer before the others stop waiting for it.

Providers may disagree for as long before the liar is searched for: an index may lag, or a chain may fork.
"""


GAP_MAX_MS = 300_000
"""The longest gap between two questions within one silence.

A pass with a provider that answers at the last moment takes over a minute, and so may the pause after it.
"""


@dataclass(frozen=True, slots=True)
class ProviderAnswer(Generic[T]):
    """One provider's answer, and the slot of its newest block.

    The slot tells how far each provider has come: believed tips are recent, whatever height they claim.
    """

    name: str
    slot: int
    read: Read[T]


@dataclass(frozen=True, slots=True)
class Silence:
    """Since when, until when and how often there was no answer, or no agreement."""

    since_ms: int
    last_ms: int
    count: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Our UTxOs: those that all providers list alike, and references of those that they do not."""

    agreed: tuple[ChainUtxo, ...]
    doubtful: frozenset[str]


def missed(silence: Silence | None, now_ms: int) -> Silence:
    """Record one more missing answer. An answer ends a silence, and so does a gap over `GAP_MAX_MS`."""
    if silence is None or not 0 <= now_ms - silence.last_ms <= GAP_MAX_MS:
        return Silence(now_ms, now_ms, 1)
    return Silence(silence.since_ms, now_ms, silence.count + 1)


def is_lasting(silence: Silence | None) -> bool:
    return (
        silence is not None and silence.count >= MISSES_MIN and silence.last_ms - silence.since_ms >= PATIENCE_MS
    )


def weigh_tx(answers: Sequence[ProviderAnswer[TxSeen]]) -> Read[TxSeen]:
    """Combine answers to: is this transaction in a block, and in which? Or: which one spends this output?"""
    return _weigh(answers, lambda seen: seen, lambda seen: seen.block_slot)


def weigh_block(answers: Sequence[ProviderAnswer[BlockSeen]]) -> Read[BlockSeen]:
    """Combine answers to: is this block on the chain?"""
    return _weigh(answers, lambda seen: (seen.height, seen.slot), lambda seen: seen.slot)


def _weigh(
    answers: Sequence[ProviderAnswer[T]], key_of: Callable[[T], Hashable], slot: Callable[[T], int]
) -> Read[T]:
    needed = min(2, len(answers))
    groups: dict[Hashable, list[T]] = {}
    for answer in answers:
        if isinstance(answer.read, Found):
            groups.setdefault(key_of(answer.read.value), []).append(answer.read.value)
    agreed = [group for group in groups.values() if len(group) >= needed]
    denials = [answer for answer in answers if isinstance(answer.read, NotFound)]
    if len(agreed) == 1:
        return Found(agreed[0][0])
    if not groups:
        return NotFound() if denials and len(denials) >= needed else Unknown(_reasons(answers))
    if len(groups) > 1:
        return Unknown("the providers disagree", Why.DISPUTE)
    seen = next(iter(groups.values()))[0]
    deniers = [answer.name for answer in denials if answer.slot >= slot(seen)]
    if deniers:
        return Unknown(f"the providers disagree: {', '.join(deniers)} denies what another shows", Why.DISPUTE)
    if denials:
        return Unknown(f"{denials[0].name} has not reached that block", Why.NOT_YET)
    return Unknown(_reasons(answers))


def weigh_transactions(answers: Sequence[ProviderAnswer[tuple[AddressTx, ...]]]) -> Read[tuple[AddressTx, ...]]:
    """Combine lists of an address's transactions. Lists agree only if they are the same set."""
    return _weigh_alike(answers, frozenset)


def weigh_movement(answers: Sequence[ProviderAnswer[Movement]]) -> Read[Movement]:
    """Combine answers to: what did this transaction move at an address?"""
    return _weigh_alike(answers, lambda moved: (_units(moved.spent), _units(moved.made)))


def _units(utxos: Mapping[str, Mapping[str, int]]) -> Hashable:
    return frozenset((ref, frozenset(value.items())) for ref, value in utxos.items())


def _weigh_alike(answers: Sequence[ProviderAnswer[T]], key_of: Callable[[T], Hashable]) -> Read[T]:
    """Return what two providers say alike, unless two others agree on something else."""
    needed = min(2, len(answers))
    groups: dict[Hashable, list[Read[T]]] = {}
    for answer in answers:
        if not isinstance(answer.read, Unknown):
            key = key_of(answer.read.value) if isinstance(answer.read, Found) else None
            groups.setdefault(key, []).append(answer.read)
    agreed = [group for group in groups.values() if len(group) >= needed]
    if len(agreed) == 1:
        return agreed[0][0]
    if len(groups) > 1:
        return Unknown("the providers disagree", Why.DISPUTE)
    return Unknown(_reasons(answers))


def unplaced(utxo: ChainUtxo) -> ChainUtxo:
    """The UTxO without its block, on which providers may differ."""
    return replace(utxo, block_hash=None, block_height=None)


def weigh_utxos(
    answers: Sequence[ProviderAnswer[tuple[ChainUtxo, ...]]], key_of: Callable[[ChainUtxo], Hashable] = unplaced
) -> Read[Listing]:
    """Combine UTxO lists. If one list could not be read, the result is Unknown, whatever the others say.

    It is `NOT_YET` when at least one list could be read. `key_of`: the part of a UTxO that has to be alike.
    """
    if len(answers) == 1 and isinstance(only := answers[0].read, Found):
        return Found(Listing(only.value, frozenset()))
    found = [answer.read.value for answer in answers if isinstance(answer.read, Found)]
    lists = [{utxo.ref: key_of(utxo) for utxo in utxos} for utxos in found]
    if not lists or len(lists) < len(answers):
        return Unknown(_reasons(answers), Why.NOT_YET if lists else Why.UNCLEAR)
    is_agreed = {ref: all(listed.get(ref) == key for listed in lists) for ref, key in lists[0].items()}
    listed_refs = {ref for listed in lists for ref in listed}
    return Found(
        Listing(
            tuple(utxo for utxo in found[0] if is_agreed[utxo.ref]),
            frozenset(ref for ref in listed_refs if not is_agreed.get(ref, False)),
        )
    )


def _reasons(answers: Sequence[ProviderAnswer[T]]) -> str:
    reasons = [f"{answer.name}: {answer.read.reason}" for answer in answers if isinstance(answer.read, Unknown)]
    return "; ".join(reasons) or "no provider could be asked"
