"""Blockfrost's answers, as rows that a test changes."""

from typing import Any

ADDRESS = "addr_test1vz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzersp2s33m"
TX = "ab" * 32
BLOCK = "cd" * 32
LATEST = {"time": 1_700_000_000, "height": 15_243_593, "hash": BLOCK, "slot": 412_162_133, "epoch": 425}
TRANSACTION = {
    "hash": TX,
    "block": BLOCK,
    "block_height": 100,
    "block_time": 1_700_000_000,
    "slot": 2_000,
    "index": 1,
}
GENESIS = {
    "active_slots_coefficient": 0.05,
    "network_magic": 1,
    "epoch_length": 432_000,
    "system_start": 1_654_041_600,
    "slot_length": 1,
    "security_param": 2160,
}
PARAMETERS = {
    "epoch": 225,
    "min_fee_a": 44,
    "min_fee_b": 155_381,
    "max_tx_size": 16_384,
    "coins_per_utxo_size": "4310",
    "max_val_size": "5000",
    "a0": 0.3,
}


def utxo_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    row = {
        "address": ADDRESS,
        "tx_hash": f"{number:064x}",
        "tx_index": 0,
        "output_index": 0,
        "amount": [{"unit": "lovelace", "quantity": str(2_000_000 + number)}],
        "block": BLOCK,
        "data_hash": None,
        "inline_datum": None,
        "reference_script_hash": None,
    }
    return {**row, **changes}


def tx_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {"tx_hash": f"{number:064x}", "tx_index": 0, "block_height": number, "block_time": 1_000 + number}
    return {**row, **changes}


def spent_row(number: int, *, collateral: bool = False, reference: bool = False, **changes: Any) -> dict[str, Any]:
    return {**utxo_row(number, **changes), "collateral": collateral, "reference": reference}


def made_row(index: int, *, collateral: bool = False, **changes: Any) -> dict[str, Any]:
    row = utxo_row(index, output_index=index, consumed_by_tx=None, **changes)
    del row["tx_hash"]
    return {**row, "collateral": collateral}
