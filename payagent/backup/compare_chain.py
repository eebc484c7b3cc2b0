"""Compares a restored ledger with the current chain: UTxOs spent since the backup, and UTxOs that are new.

Never: writes; takes a missing answer for an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from payagent.chain.open import opened, require_found
from payagent.chain.provider import ChainUtxo
from payagent.core.aggregate import UtxoRow
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.doctor.chain import usable_tip
from payagent.settings.schema import ProviderSettings, Settings
from payagent.store.db.unit import Connection
from payagent.store.rows import attempts_and_utxos


@dataclass(frozen=True, slots=True)
class UtxoTotals:
    """A number of UTxOs, and the units they hold per asset."""

    count: int
    units: dict[str, int]


@dataclass(frozen=True, slots=True)
class Differences:
    """`gone`: UTxOs the ledger could spend and the chain lacks. `unknown`: UTxOs only the chain has."""

    gone: UtxoTotals
    unknown: UtxoTotals


async def ask(settings: Settings, address: str, now_ms: Callable[[], int]) -> tuple[ChainUtxo, ...] | str:
    """Ask the providers in order for the UTxOs of an address. Returns the first good list, or why there is none.

    Raises `clock_skew` when no provider gave a list and one has another time than ours. With a wrong clock, no one
    could tell when it is safe to sign again.
    """
    reasons: list[str] = []
    skewed: Refused | None = None
    for provider in settings.chain.providers:
        try:
            return await _utxos_by(provider, settings.network, address, now_ms)
        except Refused as refused:
            if refused.code == "clock_skew":
                skewed = refused
            reasons.append(f"{provider.base_url}: {refused.detail}")
    if skewed is not None:
        raise skewed
    return "; ".join(reasons)


def compare(conn: Connection, listed: Iterable[ChainUtxo]) -> Differences:
    """Compare the ledger's UTxOs with a provider's list.

    UTxOs reserved for a payment are left to the daemon, which resolves the payment.
    """
    utxos = {utxo.ref: utxo for utxo in listed}
    ready = [
        row
        for row in attempts_and_utxos.utxos(conn)
        if row.state in ("available", "locked") and row.reserved_for is None
    ]
    gone = [row for row in ready if row.ref not in utxos]
    unknown = [utxo for ref, utxo in utxos.items() if attempts_and_utxos.utxo(conn, ref) is None]
    return Differences(_sum(gone), _sum(unknown))


def _sum(utxos: Sequence[UtxoRow] | Sequence[ChainUtxo]) -> UtxoTotals:
    return UtxoTotals(len(utxos), add({LOVELACE: utxo.lovelace, **utxo.assets} for utxo in utxos))


async def _utxos_by(
    settings: ProviderSettings, network: str, address: str, now_ms: Callable[[], int]
) -> tuple[ChainUtxo, ...]:
    async with opened("provider", settings, network) as provider:
        await usable_tip(provider, network, now_ms)
        return require_found("UTxOs", await provider.utxos(address))
