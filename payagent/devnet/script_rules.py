"""The Conway rules that a transaction with a script meets. The devnet runs one script only, that of channels.

`rules` lists them among all others. Each returns the reason for a refusal, or None. Pure.

Never: changes a state.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from payagent.devnet import cbor
from payagent.devnet.address import AddressInfo, read_address
from payagent.devnet.channel_script import SCRIPT_CBOR, SCRIPT_HASH, ScriptFailed, ScriptView, run_script
from payagent.devnet.decode import hash_256
from payagent.devnet.ledger_types import OutRef, Params, ScriptParts, Tx, TxOut

_SPEND = 0
_SLOT_MS = 1000


@dataclass(frozen=True, slots=True)
class TxCase:
    """One transaction to check. `spent` has its existing inputs, `owners` and `payees` the addresses.

    `beside` has the existing outputs that it names as collateral or as reference inputs.
    """

    tx: Tx
    spent: Mapping[OutRef, TxOut]
    owners: tuple[AddressInfo, ...]
    payees: tuple[AddressInfo, ...]
    slot: int
    params: Params
    beside: Mapping[OutRef, TxOut]

    @property
    def parts(self) -> ScriptParts:
        return self.tx.script_parts

    @property
    def ordered(self) -> list[OutRef]:
        """The inputs in the ledger's order, which redeemers count."""
        return sorted(self.tx.inputs)

    @property
    def locked(self) -> list[OutRef]:
        """The inputs that a script holds, in the order of the transaction."""
        pairs = zip(self.spent, self.owners, strict=True)
        return [ref for ref, owner in pairs if owner.script_hash is not None]

    @property
    def script_holders(self) -> Iterator[TxOut]:
        """The outputs whose reference scripts the transaction may use."""
        yield from self.spent.values()
        yield from (self.beside[ref] for ref in self.parts.reference_inputs if ref in self.beside)

    @property
    def units(self) -> tuple[int, int]:
        """The execution units that all redeemers ask for."""
        return sum(one.memory for one in self.parts.redeemers), sum(one.steps for one in self.parts.redeemers)

    @property
    def collateral(self) -> list[TxOut]:
        return [self.beside[ref] for ref in self.parts.collateral if ref in self.beside]

    @property
    def taken(self) -> dict[str, int]:
        """What a failed script takes: the collateral without what returns."""
        taken, returned = sum_value(self.collateral), self.parts.collateral_return
        for asset, units in sum_value([returned[0]] if returned else []).items():
            taken[asset] = taken.get(asset, 0) - units
        return taken


Rule = tuple[str, Callable[[TxCase], str | None]]
"""The ledger's name of a rule, and its check."""


def sum_value(outputs: Iterable[TxOut]) -> dict[str, int]:
    """The units of each asset that the outputs hold together. Lovelace is always among them."""
    total = {"lovelace": 0}
    for out in outputs:
        total["lovelace"] += out.lovelace
        for asset, units in out.assets.items():
            total[asset] = total.get(asset, 0) + units
    return total


def refs_text(refs: list[OutRef]) -> str:
    """References for a message."""
    return ", ".join(f"{tx_id}#{index}" for tx_id, index in refs)


# --- scripts and redeemers ---------------------------------------------------------------------------------------


def _is_referenced(case: TxCase) -> bool:
    return any(out.reference_script == SCRIPT_CBOR.hex() for out in case.script_holders)


def missing_scripts(case: TxCase) -> str | None:
    """A script that holds an input is neither attached nor referenced, or is not a channel's."""
    is_given = bool(case.parts.scripts) or _is_referenced(case)
    missing = [
        ref
        for ref in case.locked
        if not is_given or read_address(case.spent[ref].address).script_hash != SCRIPT_HASH
    ]
    return f"locked by a script: {refs_text(missing)}" if missing else None


def extraneous_scripts(case: TxCase) -> str | None:
    """A script is attached in vain."""
    if case.parts.scripts and (not case.locked or _is_referenced(case)):
        return f"not needed: {SCRIPT_HASH.hex()}"
    return None


def extra_redeemers(case: TxCase) -> str | None:
    """A redeemer is for nothing that a script holds."""
    needed = {(_SPEND, case.ordered.index(ref)) for ref in case.locked}
    extra = [(one.purpose, one.index) for one in case.parts.redeemers if (one.purpose, one.index) not in needed]
    return f"redeemers of {extra}" if extra else None


def missing_redeemers(case: TxCase) -> str | None:
    """An input that a script holds has no redeemer."""
    given = {one.index for one in case.parts.redeemers if one.purpose == _SPEND}
    missing = [ref for ref in case.locked if case.ordered.index(ref) not in given]
    return f"none for {refs_text(missing)}" if missing else None


def script_data_hash(redeemers: bytes, params: Params) -> bytes:
    """The hash of redeemers and Plutus V3's cost model."""
    numbers = b"".join(cbor.head(cbor.UINT, number) for number in params.cost_model)
    return hash_256(redeemers + b"\xa1\x02" + cbor.head(cbor.ARRAY, len(params.cost_model)) + numbers)


def wrong_data_hash(case: TxCase) -> str | None:
    """The body must have the hash of redeemers and cost models, or none without scripts."""
    parts, is_needed = case.parts, case.locked or case.parts.redeemers
    expected = script_data_hash(parts.redeemers_raw, case.params) if is_needed else None
    if parts.data_hash == expected:
        return None
    given, wanted = ("none" if found is None else found.hex() for found in (parts.data_hash, expected))
    return f"supplied {given}, expected {wanted}"


def spent_reference_inputs(case: TxCase) -> str | None:
    """An output is both spent and referred to."""
    both = [ref for ref in case.parts.reference_inputs if ref in case.tx.inputs]
    return f"spent too: {refs_text(both)}" if both else None


def units_fee(case: TxCase) -> int:
    """The part of the minimum fee for execution units."""
    memory, steps = case.units
    return ceil(memory * case.params.price_memory + steps * case.params.price_steps)


def too_many_units(case: TxCase) -> str | None:
    """More execution units than a transaction may use."""
    memory, steps = case.units
    if memory <= case.params.max_memory and steps <= case.params.max_steps:
        return None
    return f"supplied {memory} and {steps}, at most {case.params.max_memory} and {case.params.max_steps}"


# --- collateral --------------------------------------------------------------------------------------------------


def _collateral_of_scripts(case: TxCase) -> str | None:
    held = [out for out in case.collateral if read_address(out.address).key_hash is None]
    return f"{len(held)} collateral inputs are not of a key" if held else None


def _collateral_too_small(case: TxCase) -> str | None:
    least = ceil(Fraction(case.tx.fee_lovelace * case.params.collateral_percent, 100))
    lovelace = case.taken["lovelace"]
    return None if lovelace >= least else f"supplied {lovelace}, at least {least}"


def _collateral_tokens(case: TxCase) -> str | None:
    tokens = {asset for asset, units in case.taken.items() if units and asset != "lovelace"}
    return "the collateral has tokens" if tokens else None


def _wrong_total(case: TxCase) -> str | None:
    total, lovelace = case.parts.total_collateral, case.taken["lovelace"]
    return None if total in (None, lovelace) else f"supplied {total}, expected {lovelace}"


def _no_collateral(case: TxCase) -> str | None:
    return None if case.parts.collateral else "no collateral"


def too_many_collaterals(case: TxCase) -> str | None:
    """More collateral inputs than allowed."""
    count, most = len(case.parts.collateral), case.params.max_collateral_inputs
    return f"supplied {count}, at most {most}" if count > most else None


COLLATERAL_RULES: tuple[Rule, ...] = (
    ("ScriptsNotPaidUTxO", _collateral_of_scripts),
    ("InsufficientCollateral", _collateral_too_small),
    ("CollateralContainsNonADA", _collateral_tokens),
    ("IncorrectTotalCollateralField", _wrong_total),
    ("NoCollateralInputs", _no_collateral),
)
"""Rules for transactions that run scripts."""


# --- phase 2 -----------------------------------------------------------------------------------------------------


def failed_script(case: TxCase) -> str | None:
    """A script that runs refuses the transaction. None if phase 1 lets no script run."""
    if not case.tx.is_valid:
        return "isValid is false, but no script can have failed"
    inputs = [(ref, case.spent[ref]) for ref in case.ordered if ref in case.spent]
    if len(inputs) < len(case.tx.inputs) or missing_scripts(case) or extra_redeemers(case):
        return None
    start_ms, end_ms = (
        None if slot is None else case.params.system_start_ms + slot * _SLOT_MS
        for slot in (case.tx.start_slot, case.tx.ttl_slot)
    )
    view = ScriptView(inputs, case.tx.outputs, start_ms, end_ms, case.parts.signers)
    try:
        for redeemer in case.parts.redeemers:
            memory, steps = run_script(view, redeemer.index, redeemer.data)
            if redeemer.memory < memory or redeemer.steps < steps:
                return f"isValid is true, but the script failed: {memory} and {steps} units are needed"
    except ScriptFailed as failed:
        return f"isValid is true, but the script failed: {failed}"
    return None
