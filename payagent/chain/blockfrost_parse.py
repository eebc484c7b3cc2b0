"""Strict, pure parsing of Blockfrost's answers.

Never: I/O; quotes text that a provider sent; reads a 404 as "not found" unless it is in Blockfrost's own form.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

from payagent.chain.json_answers import (
    UNIT,
    expect,
    flag,
    list_of,
    once,
    parse_address_tx,
    quantity,
    text_hash,
    text_of,
)
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
    Genesis,
    Movement,
    ProtocolParameters,
)
from payagent.core.aggregate import TxSeen
from payagent.core.money import LOVELACE, MAX_UNITS, parse_count, parse_units

PAGE_ROWS = 100


def refs(rows: tuple[ChainUtxo, ...]) -> set[str]:
    return {row.ref for row in rows}


def is_own_404(body: Any) -> bool:
    """Whether this is Blockfrost's own 404, not one of a proxy or framework in between."""
    return (
        type(body) is dict
        and (body.get("status_code"), body.get("error")) == (404, "Not Found")
        and isinstance(body.get("message"), str)
    )


def parse_tip(body: Any) -> BlockSeen:
    return BlockSeen(
        height=parse_count(body["height"], "height"),
        slot=parse_count(body["slot"], "slot"),
        hash=text_hash(body["hash"]),
        time_s=parse_count(body["time"], "time"),
    )


def parse_block(body: Any, block_hash: str) -> BlockSeen:
    tip = parse_tip(body)
    expect(tip.hash == block_hash, "another block")
    return tip


def parse_tx(body: Any, tx_id: str) -> TxSeen:
    expect(body["hash"] == tx_id, "another transaction")
    return TxSeen(
        tx_id=tx_id,
        block_hash=text_hash(body["block"]),
        block_height=parse_count(body["block_height"], "block_height"),
        block_slot=parse_count(body["slot"], "slot"),
    )


def parse_genesis(body: Any) -> Genesis:
    return Genesis(
        network_magic=parse_count(body["network_magic"], "network_magic"),
        system_start_s=parse_count(body["system_start"], "system_start"),
        slot_length_s=parse_units(body["slot_length"], "slot_length"),
    )


def parse_parameters(body: Any) -> ProtocolParameters:
    return ProtocolParameters(
        min_fee_a=parse_units(body["min_fee_a"], "min_fee_a"),
        min_fee_b=parse_units(body["min_fee_b"], "min_fee_b"),
        coins_per_utxo_byte=parse_units(body["coins_per_utxo_size"], "coins_per_utxo_size"),
        max_tx_size=parse_units(body["max_tx_size"], "max_tx_size"),
        max_value_size=parse_units(body["max_val_size"], "max_val_size"),
        epoch=parse_count(body["epoch"], "epoch"),
    )


def parse_utxos(body: Any, address: str) -> tuple[ChainUtxo, ...]:
    rows = tuple(_parse_utxo(row, address) for row in list_of(body, PAGE_ROWS))
    once((row.ref for row in rows), "an output")
    return rows


def _parse_utxo(row: Any, address: str) -> ChainUtxo:
    expect(row["address"] == address, "an output of another address")
    amounts: dict[str, int] = {}
    for entry in row["amount"]:
        unit = entry["unit"]
        is_known = unit == LOVELACE or UNIT.fullmatch(unit) is not None
        expect(is_known and unit not in amounts, "an amount of no known unit")
        amounts[unit] = quantity(entry["quantity"], unit)
    block = row.get("block")
    is_in_no_block = block is None or block == ""  # Dolos sends "" for blocks older than its history
    return ChainUtxo(
        tx_id=text_hash(row["tx_hash"]),
        index=parse_count(row["output_index"], "output_index"),
        address=address,
        lovelace=amounts.pop(LOVELACE),
        assets={unit: units for unit, units in amounts.items() if units <= MAX_UNITS},
        block_hash=None if is_in_no_block else text_hash(block),
        has_datum=row.get("data_hash") is not None or row.get("inline_datum") is not None,
        has_script=row.get("reference_script_hash") is not None,
        unreadable=any(units > MAX_UNITS for units in amounts.values()),
        datum=row.get("inline_datum") and text_of(row["inline_datum"], "a datum is not text"),
    )


def parse_address_txs(body: Any) -> tuple[AddressTx, ...]:
    """Parse a page of transactions, newest first."""
    rows = tuple(map(parse_address_tx, list_of(body, PAGE_ROWS)))
    once((row.tx_id for row in rows), "a transaction")
    expect(all(newer.time_s >= older.time_s for newer, older in pairwise(rows)), "not the newest first")
    return rows


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the answer lists for a transaction at an address: ordinary outputs, and collateral.

    If a script failed, Blockfrost lists the moved outputs in both ways, Dolos only as collateral.
    """

    plain: Movement
    collateral: Movement
    has_collateral: bool


_Values = Mapping[str, Mapping[str, int]]
"""The values of UTxOs by reference."""


def parse_movements(body: Any, tx_id: str, address: str) -> _Listed:
    expect(body["hash"] == tx_id, "another transaction")
    # `reference` is the only field read here that Blockfrost's OpenAPI does not require.
    spent = [row for row in body["inputs"] if row.get("reference") is None or not flag(row, "reference")]
    made = [{**row, "tx_hash": tx_id} for row in body["outputs"]]
    plain, collateral = (
        Movement(spent=_values(spent, address, is_collateral), made=_values(made, address, is_collateral))
        for is_collateral in (False, True)
    )
    failed = Movement(spent=_in_full(collateral.spent, plain.spent), made=_in_full(collateral.made, plain.made))
    return _Listed(plain, failed, any(flag(row, "collateral") for row in spent))


def _in_full(utxos: _Values, full_values: _Values) -> _Values:
    """The UTxOs, with their full value where it is listed: Blockfrost leaves out the tokens of collateral."""
    return {ref: full_values.get(ref, value) for ref, value in utxos.items()}


def _values(rows: Iterable[Any], address: str, is_collateral: bool) -> _Values:
    """Return UTxO values at the address by reference, from the rows that are collateral or from the others."""
    found: dict[str, Mapping[str, int]] = {}
    for row in rows:
        if flag(row, "collateral") is is_collateral and row["address"] == address:
            utxo = _parse_utxo(row, address)
            if utxo.ref in found:
                raise ValueError("a UTxO is listed twice")
            found[utxo.ref] = {LOVELACE: utxo.lovelace, **utxo.assets}
    return found


class Spender(NamedTuple):
    """Which transaction spends an output at an address, or None. Some servers do not tell."""

    is_told: bool
    tx_id: str | None
    address: str


def parse_spender(body: Any, tx_id: str, index: int) -> Spender:
    expect(body["hash"] == tx_id, "another transaction")
    row = {row["output_index"]: row for row in body["outputs"] if not flag(row, "collateral")}[index]
    spender = row.get("consumed_by_tx")
    return Spender("consumed_by_tx" in row, None if spender is None else text_hash(spender), row["address"])


def parse_validity(body: Any) -> bool:
    return flag(body, "valid_contract")


def parse_script(body: Any, script_hash: str) -> bytes:
    script = bytes.fromhex(body["cbor"])
    is_it = blake2b(b"\x03" + script, digest_size=28).hexdigest() == script_hash
    expect(is_it, "another script, or not one of Plutus V3")
    return script


def parse_cost_model(body: Any) -> tuple[int, ...]:
    """Parse PlutusV3's cost model from its raw list: by names, it has another order."""
    costs = list_of(body["cost_models_raw"]["PlutusV3"])
    expect(all(type(cost) is int for cost in costs), "a cost is not a number")
    return tuple(costs)
