"""Strict, pure parsing of Koios's answers. Each answer is a list of rows.

Never: I/O; quotes text that a provider sent.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from payagent.chain.json_answers import UNIT, expect, flag, list_of, parse_address_tx, quantity, text_hash, text_of
from payagent.chain.provider import AddressTx, BlockSeen, ChainUtxo, Genesis, Movement, ProtocolParameters
from payagent.core.aggregate import TxSeen
from payagent.core.money import LOVELACE, MAX_UNITS, parse_count, parse_units


class KoiosBlock(NamedTuple):
    """A block, and the number of blocks after it."""

    seen: BlockSeen
    confirmations: int


def parse_tip(body: Any) -> tuple[BlockSeen, int]:
    """Return the newest block, and its epoch."""
    (row,) = list_of(body)
    return (_block(row, row["block_no"]), parse_count(row["epoch_no"], "epoch_no"))


def parse_blocks(body: Any) -> Mapping[str, KoiosBlock]:
    found = [
        KoiosBlock(_block(row, row["block_height"]), parse_count(row["num_confirmations"], "num_confirmations"))
        for row in list_of(body)
    ]
    return {block.seen.hash: block for block in found}


def _block(row: Any, height: Any) -> BlockSeen:
    return BlockSeen(
        height=parse_count(height, "height"),
        slot=parse_count(row["abs_slot"], "abs_slot"),
        hash=text_hash(row["hash"]),
        time_s=parse_count(row["block_time"], "block_time"),
    )


def parse_deep_block(body: Any) -> tuple[str, int] | None:
    """Return the hash and the height of the one block that the list has, or None."""
    for row in list_of(body):
        return text_hash(row["hash"]), parse_count(row["block_height"], "block_height")
    return None


def parse_tx_of_block(body: Any, block_hash: str) -> str:
    (row,) = list_of(body)
    expect(row["block_hash"] == block_hash, "another block")
    return text_hash(row["tx_hash"])


def parse_confirmations(body: Any) -> Mapping[str, int | None]:
    """Return the number of blocks since the block of each transaction; None for one in no block."""
    return {
        text_hash(row["tx_hash"]): None
        if row["num_confirmations"] is None
        else parse_count(row["num_confirmations"], "num_confirmations")
        for row in list_of(body)
    }


def parse_genesis(body: Any) -> Genesis:
    (row,) = list_of(body)
    return Genesis(
        network_magic=parse_count(row["networkmagic"], "networkmagic"),
        system_start_s=parse_count(row["systemstart"], "systemstart"),
        slot_length_s=parse_units(row["slotlength"], "slotlength"),
    )


def parse_parameters(body: Any, epoch: int) -> ProtocolParameters:
    (row,) = list_of(body)
    expect(parse_count(row["epoch_no"], "epoch_no") == epoch, "another epoch")
    return ProtocolParameters(
        min_fee_a=parse_units(row["min_fee_a"], "min_fee_a"),
        min_fee_b=parse_units(row["min_fee_b"], "min_fee_b"),
        coins_per_utxo_byte=parse_units(row["coins_per_utxo_size"], "coins_per_utxo_size"),
        max_tx_size=parse_units(row["max_tx_size"], "max_tx_size"),
        max_value_size=parse_units(row["max_val_size"], "max_val_size"),
        epoch=epoch,
    )


def parse_tx(body: Any, tx_id: str) -> TxSeen | None:
    row = _of_tx(body, tx_id)
    if row is None:
        return None
    return TxSeen(
        tx_id=tx_id,
        block_hash=text_hash(row["block_hash"]),
        block_height=parse_count(row["block_height"], "block_height"),
        block_slot=parse_count(row["absolute_slot"], "absolute_slot"),
    )


def parse_movement(body: Any, tx_id: str, address: str) -> Movement | None:
    row = _of_tx(body, tx_id)
    if row is None:
        return None
    expect(all(flag(contract, "valid_contract") for contract in row["plutus_contracts"]), "its script failed")
    expect(all(output["tx_hash"] == tx_id for output in row["outputs"]), "an output of another transaction")
    return Movement(spent=_values(row["inputs"], address), made=_values(row["outputs"], address))


def _values(rows: Iterable[Any], address: str) -> dict[str, Mapping[str, int]]:
    found: dict[str, Mapping[str, int]] = {}
    for row in rows:
        if row["payment_addr"]["bech32"] == address:
            ref = f"{text_hash(row['tx_hash'])}#{parse_count(row['tx_index'], 'tx_index')}"
            if ref in found:
                raise ValueError("a UTxO is listed twice")
            found[ref] = {unit: units for unit, units in _units(row).items() if units <= MAX_UNITS}
    return found


def parse_output(body: Any, tx_id: str, index: int) -> tuple[str, int, bool]:
    """Return where an output is, the height of the block that made it, and whether it is spent."""
    (row,) = list_of(body)
    expect((row["tx_hash"], parse_count(row["tx_index"], "tx_index")) == (tx_id, index), "another output")
    address = text_of(row["address"], "not an address")
    return (address, parse_count(row["block_height"], "block_height"), flag(row, "is_spent"))


def parse_utxos(body: Any, address: str) -> tuple[ChainUtxo, ...]:
    return tuple(_utxo(row, address) for row in list_of(body))


def _utxo(row: Any, address: str) -> ChainUtxo:
    is_unspent_here = row["address"] == address and not flag(row, "is_spent")
    expect(is_unspent_here, "an output of another address, or a spent one")
    units = _units(row)
    return ChainUtxo(
        tx_id=text_hash(row["tx_hash"]),
        index=parse_count(row["tx_index"], "tx_index"),
        address=address,
        lovelace=units.pop(LOVELACE),
        assets={unit: count for unit, count in units.items() if count <= MAX_UNITS},
        block_hash=None,
        has_datum=row["datum_hash"] is not None or row["inline_datum"] is not None,
        has_script=row["reference_script"] is not None,
        unreadable=any(count > MAX_UNITS for count in units.values()),
        block_height=parse_count(row["block_height"], "block_height"),
    )


def _units(row: Any) -> dict[str, int]:
    """The units of an output. An asset without a name is its policy alone."""
    units = {LOVELACE: quantity(row["value"], LOVELACE)}
    for asset in row["asset_list"]:
        unit = asset["policy_id"] + asset["asset_name"]
        expect(unit not in units and UNIT.fullmatch(unit) is not None, "an amount of no known unit")
        units[unit] = quantity(asset["quantity"], unit)
    return units


def parse_address_txs(body: Any) -> tuple[AddressTx, ...]:
    return tuple(map(parse_address_tx, list_of(body)))


def _of_tx(body: Any, tx_id: str) -> Any:
    """Return the row of the transaction that was asked for; None if there is none."""
    rows = list_of(body)
    expect([row["tx_hash"] for row in rows] in ([], [tx_id]), "another transaction")
    return rows[0] if rows else None
