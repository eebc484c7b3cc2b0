"""The Conway rules that a payment meets, as a table in the order in which the ledger applies them.

Start at `check_tx`. It reports which rules a transaction breaks against given outputs, slot and parameters. Pure.

Sources: cardano-ledger, rules UTXOW and UTXO of Babbage and Conway, MEMPOOL of Conway. Where an independent ledger
and the real one differ, the real one is followed.

Never: changes a state.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b

from payagent.devnet.address import is_signed, read_address
from payagent.devnet.cbor import ARRAY, Reader, head_size
from payagent.devnet.decode import hash_256
from payagent.devnet.ledger_types import UNSUPPORTED, LedgerError, OutRef, Params, Tx, TxOut
from payagent.devnet.script_rules import (
    COLLATERAL_RULES,
    Rule,
    TxCase,
    extra_redeemers,
    extraneous_scripts,
    failed_script,
    missing_redeemers,
    missing_scripts,
    refs_text,
    spent_reference_inputs,
    sum_value,
    too_many_collaterals,
    too_many_units,
    units_fee,
    wrong_data_hash,
)

_OUTPUT_OVERHEAD_BYTES = 160
_BYRON_ATTRIBUTES_MOST_BYTES = 64


def check_tx(tx: Tx, utxos: Mapping[OutRef, TxOut], slot: int, params: Params) -> None:
    """Check one transaction against the existing outputs, at a slot.

    Raises `LedgerError` with the first broken rule, and all broken rules in `failures`.
    """
    spent = {ref: utxos[ref] for ref in tx.inputs if ref in utxos}
    owners = tuple(read_address(out.address) for out in spent.values())
    payees = tuple(read_address(out.address) for out in tx.outputs)
    rules = [rule for rule in _RULES if tx.script_parts.redeemers or rule not in COLLATERAL_RULES]
    _apply(rules, TxCase(tx, spent, owners, payees, slot, params, _beside(tx, utxos)))


def _beside(tx: Tx, utxos: Mapping[OutRef, TxOut]) -> Mapping[OutRef, TxOut]:
    parts = tx.script_parts
    return {ref: utxos[ref] for ref in (*parts.collateral, *parts.reference_inputs) if ref in utxos}


def recheck_tx(tx: Tx, utxos: Mapping[OutRef, TxOut], slot: int, params: Params) -> None:
    """Check what may change for a transaction that was valid: its inputs and its validity interval.

    Raises `LedgerError` as `check_tx` does.
    """
    spent = {ref: utxos[ref] for ref in tx.inputs if ref in utxos}
    _apply(_CHANGING_RULES, TxCase(tx, spent, (), (), slot, params, _beside(tx, utxos)))


def check_mempool(tx: Tx, utxos: Mapping[OutRef, TxOut]) -> None:
    """Check the mempool's own rule, which comes before all others: at least one input is unspent (Conway MEMPOOL).

    Raises `LedgerError` with rule `ConwayMempoolFailure` for a repeated transaction, spent inputs, or no inputs.
    """
    if not any(ref in utxos for ref in tx.inputs):
        raise LedgerError(
            "ConwayMempoolFailure", "All inputs are spent. Transaction has probably already been included"
        )


def check_outputs(tx: Tx, params: Params) -> None:
    """Check only the rules on outputs, for a transaction without inputs (genesis, faucet).

    Raises `LedgerError` as `check_tx` does.
    """
    payees = tuple(read_address(out.address) for out in tx.outputs)
    _apply(_OUTPUT_RULES, TxCase(tx, {}, (), payees, 0, params, {}))


def _apply(rules: Sequence[Rule], case: TxCase) -> None:
    failures = [(rule, detail) for rule, judge in rules if (detail := judge(case)) is not None]
    if failures:
        (rule, detail), *others = failures
        raise LedgerError(rule, detail, *others)


# --- checks: each returns the reason for a refusal, or None -------------------------------------------------


def _byron_owner(case: TxCase) -> str | None:
    return "spends a Byron output" if any(owner.is_byron for owner in case.owners) else None


def _bad_signatures(case: TxCase) -> str | None:
    bad = unverified_keys(case.tx)
    return f"signatures that do not verify, of keys {bad}" if bad else None


def unverified_keys(tx: Tx) -> list[str]:
    """The keys, in hex, whose signatures over this transaction are invalid."""
    body_hash = bytes.fromhex(tx.tx_id)
    return [key.hex() for key, signature in tx.witnesses if not is_signed(key, signature, body_hash)]


def _missing_signatures(case: TxCase) -> str | None:
    collateral = [read_address(out.address) for out in case.collateral]
    needed = {owner.key_hash for owner in (*case.owners, *collateral) if owner.key_hash is not None}
    needed.update(case.parts.signers)
    signing = {blake2b(key, digest_size=28).digest() for key, _ in case.tx.witnesses}
    missing = sorted(key_hash.hex() for key_hash in needed - signing)
    return f"no signature of key hashes {missing}" if missing else None


def _aux_hash_missing(case: TxCase) -> str | None:
    if case.tx.aux is not None and case.tx.aux_hash is None:
        return f"auxiliary data {hash_256(case.tx.aux).hex()} without its hash in the body"
    return None


def _aux_missing(case: TxCase) -> str | None:
    if case.tx.aux is None and case.tx.aux_hash is not None:
        return f"auxiliary data hash {case.tx.aux_hash.hex()} without the data"
    return None


def _aux_hash_conflict(case: TxCase) -> str | None:
    if case.tx.aux is None or case.tx.aux_hash is None or hash_256(case.tx.aux) == case.tx.aux_hash:
        return None
    return f"auxiliary data {hash_256(case.tx.aux).hex()}, the body says {case.tx.aux_hash.hex()}"


def _metadata_too_long(case: TxCase) -> str | None:
    return None if case.tx.metadata_fits else "a metadata string has more than 64 bytes"


def _outside_interval(case: TxCase) -> str | None:
    """Valid from the start slot, and before the TTL slot."""
    tx, slot = case.tx, case.slot
    if (tx.start_slot is None or tx.start_slot <= slot) and (tx.ttl_slot is None or slot < tx.ttl_slot):
        return None
    return f"slot {slot} is not within [{tx.start_slot}, {tx.ttl_slot})"


def _no_inputs(case: TxCase) -> str | None:
    return None if case.tx.inputs else "no inputs"


def _fee_too_small(case: TxCase) -> str | None:
    """The minimum has parts for the size, for reference scripts at hand, and for the units of scripts."""
    params = case.params
    least = params.min_fee_a * case.tx.size_bytes + params.min_fee_b
    least += _ref_script_fee(_ref_scripts_bytes(case.script_holders), params) + units_fee(case)
    if case.tx.fee_lovelace >= least:
        return None
    return f"supplied {case.tx.fee_lovelace}, expected at least {least}"


def _bad_inputs(case: TxCase) -> str | None:
    missing = [ref for ref in case.tx.inputs if ref not in case.spent]
    missing += [ref for ref in (*case.parts.collateral, *case.parts.reference_inputs) if ref not in case.beside]
    return f"not among the unspent outputs: {refs_text(missing)}" if missing else None


def _value_not_conserved(case: TxCase) -> str | None:
    consumed = sum_value(case.spent.values())
    produced = sum_value(case.tx.outputs)
    produced["lovelace"] += case.tx.fee_lovelace
    uneven = [
        f"{asset}: consumed {consumed.get(asset, 0)}, produced {produced.get(asset, 0)}"
        for asset in sorted({*consumed, *produced})
        if consumed.get(asset, 0) != produced.get(asset, 0)
    ]
    return "; ".join(uneven) or None


def _output_too_small(case: TxCase) -> str | None:
    small = []
    sized = [*zip(case.tx.outputs, case.tx.output_sizes_bytes, strict=True)]
    if case.parts.collateral_return is not None:
        sized.append(case.parts.collateral_return)
    for index, (out, size) in enumerate(sized):
        least = (_OUTPUT_OVERHEAD_BYTES + size) * case.params.coins_per_utxo_byte
        if out.lovelace < least:
            small.append(f"output {index} has {out.lovelace}, at least {least}")
    return "; ".join(small) or None


def _output_too_big(case: TxCase) -> str | None:
    most = case.params.max_value_size_bytes
    big = [
        f"the value of output {index} has {size} bytes, at most {most}"
        for index, size in enumerate(map(value_size_bytes, case.tx.outputs))
        if size > most
    ]
    return "; ".join(big) or None


def value_size_bytes(out: TxOut) -> int:
    """The length of an output's value in the ledger's own encoding, whatever encoding was sent.

    Maps of more than 23 entries have an open length there (cardano-ledger-binary `encodeMap`).
    """
    if not out.assets:
        return head_size(out.lovelace)
    names_of: dict[str, int] = {}
    size = 1 + head_size(out.lovelace)
    for asset, units in out.assets.items():
        policy, name_bytes = asset[:56], len(asset) // 2 - 28
        names_of[policy] = names_of.get(policy, 0) + 1
        size += head_size(name_bytes) + name_bytes + head_size(units)
    size += _map_frame_bytes(len(names_of))
    return size + sum(30 + _map_frame_bytes(names) for names in names_of.values())


def _map_frame_bytes(entries: int) -> int:
    return 1 if entries <= 23 else 2


def _byron_attributes_too_big(case: TxCase) -> str | None:
    big = [info for info in case.payees if info.byron_attributes_bytes > _BYRON_ATTRIBUTES_MOST_BYTES]
    return f"{len(big)} Byron addresses with attributes above 64 bytes" if big else None


def _wrong_network(case: TxCase) -> str | None:
    wrong = [index for index, info in enumerate(case.payees) if info.network_id != case.params.network_id]
    return f"outputs {wrong} are not on network {case.params.network_id}" if wrong else None


def _wrong_network_in_body(case: TxCase) -> str | None:
    if case.tx.network_id in (None, case.params.network_id):
        return None
    return f"supplied {case.tx.network_id}, expected {case.params.network_id}"


def _tx_too_big(case: TxCase) -> str | None:
    if case.tx.size_bytes <= case.params.max_tx_size_bytes:
        return None
    return f"supplied {case.tx.size_bytes}, at most {case.params.max_tx_size_bytes}"


def _ref_scripts_too_big(case: TxCase) -> str | None:
    size = _ref_scripts_bytes(case.script_holders)
    most = case.params.max_ref_scripts_bytes
    return f"supplied {size}, at most {most}" if size > most else None


_OUTPUT_RULES: tuple[Rule, ...] = (
    ("BabbageOutputTooSmallUTxO", _output_too_small),
    ("OutputTooBigUTxO", _output_too_big),
    ("OutputBootAddrAttrsTooBig", _byron_attributes_too_big),
    ("WrongNetwork", _wrong_network),
)

_CHANGING_RULES: tuple[Rule, ...] = (
    ("OutsideValidityIntervalUTxO", _outside_interval),
    ("BadInputsUTxO", _bad_inputs),
)

_RULES: tuple[Rule, ...] = (
    (UNSUPPORTED, _byron_owner),
    ("ConwayTxRefScriptsSizeTooBig", _ref_scripts_too_big),
    ("MissingScriptWitnessesUTXOW", missing_scripts),
    ("ExtraneousScriptWitnessesUTXOW", extraneous_scripts),
    ("ExtraRedeemers", extra_redeemers),
    ("MissingRedeemers", missing_redeemers),
    ("InvalidWitnessesUTXOW", _bad_signatures),
    ("MissingVKeyWitnessesUTXOW", _missing_signatures),
    ("MissingTxBodyMetadataHash", _aux_hash_missing),
    ("MissingTxMetadata", _aux_missing),
    ("ConflictingMetadataHash", _aux_hash_conflict),
    ("InvalidMetadata", _metadata_too_long),
    ("PPViewHashesDontMatch", wrong_data_hash),
    ("OutsideValidityIntervalUTxO", _outside_interval),
    ("InputSetEmptyUTxO", _no_inputs),
    ("FeeTooSmallUTxO", _fee_too_small),
    *COLLATERAL_RULES,
    ("BabbageNonDisjointRefInputs", spent_reference_inputs),
    ("BadInputsUTxO", _bad_inputs),
    ("ValueNotConservedUTxO", _value_not_conserved),
    *_OUTPUT_RULES,
    ("WrongNetworkInTxBody", _wrong_network_in_body),
    ("MaxTxSizeUTxO", _tx_too_big),
    ("ExUnitsTooBigUTxO", too_many_units),
    ("TooManyCollateralInputs", too_many_collaterals),
    ("ValidationTagMismatch", failed_script),
)


# --- reference scripts --------------------------------------------------------------------------------------


def _ref_scripts_bytes(holders: Iterable[TxOut]) -> int:
    return sum(_script_bytes(out.reference_script) for out in holders if out.reference_script)


def _script_bytes(script_hex: str) -> int:
    """The counted size of a `[language, script]`: a Plutus script's bytes, or a whole native script."""
    raw = bytes.fromhex(script_hex)
    reader = Reader(raw)
    reader.expect(ARRAY, "script")
    if reader.uint("script language") == 0:
        return len(raw) - reader.pos
    return len(reader.bytes_("Plutus script"))


def _ref_script_fee(size_bytes: int, params: Params) -> int:
    """15 lovelace per byte, a fifth more with every full tier of 25,600 bytes (Conway `tierRefScriptFee`)."""
    fee, price = Fraction(0), Fraction(params.ref_script_lovelace_per_byte)
    while size_bytes > 0:
        part = min(size_bytes, params.ref_script_tier_bytes)
        fee += price * part
        price *= params.ref_script_tier_factor
        size_bytes -= part
    return int(fee)
