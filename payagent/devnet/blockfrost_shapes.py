"""Renders the devnet's values as Blockfrost's JSON, with the names, types and errors of its OpenAPI document.

Pure: values in, JSON-ready values out. As in Blockfrost, amounts and validity bounds are strings of digits. Fields
for parts of Cardano that the devnet lacks (stake, scripts, governance) have Blockfrost's value for "none".

Never: does I/O.
"""

import json
from collections.abc import Iterable
from hashlib import blake2b

from payagent.core.address import encode_address
from payagent.devnet import cbor
from payagent.devnet.address import read_address
from payagent.devnet.ledger import Chain, DevnetBlock, LedgerError, OutRef, Params, Tx, TxOut
from payagent.devnet.node import Node, output_of
from payagent.devnet.script_rules import sum_value

Json = dict[str, object]

NETWORK_MAGIC = 42
EPOCH_LENGTH_SLOTS = 432_000
_BYRON_TYPE = 8
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

_UTXOW_RULES = frozenset(
    {
        "MissingScriptWitnessesUTXOW",
        "ExtraneousScriptWitnessesUTXOW",
        "ExtraRedeemers",
        "MissingRedeemers",
        "PPViewHashesDontMatch",
        "InvalidWitnessesUTXOW",
        "MissingVKeyWitnessesUTXOW",
        "MissingTxBodyMetadataHash",
        "MissingTxMetadata",
        "ConflictingMetadataHash",
        "InvalidMetadata",
    }
)
_LEDGER_RULES = frozenset({"ConwayMempoolFailure", "ConwayTxRefScriptsSizeTooBig"})
_DECODER = "DecoderErrorDeserialiseFailure"


def error(status: int, name: str, message: str) -> Json:
    """The body of every Blockfrost error."""
    return {"status_code": status, "error": name, "message": message}


# --- refusals ----------------------------------------------------------------------------------------------------


def refusal_message(refused: LedgerError) -> str:
    """The node's refusal as Blockfrost passes it on: JSON inside the string `message`."""
    if refused.rule == _DECODER:
        text = f'{_DECODER} "Shelley Tx" (DeserialiseFailure 0 {json.dumps(refused.detail)})'
        inner: Json = {"tag": "TxCmdTxReadError", "contents": [text]}
    else:
        failures = [_failure_text(rule, detail) for rule, detail in refused.failures]
        validation: Json = {"kind": "ShelleyTxValidationError", "era": "ShelleyBasedEraConway", "error": failures}
        in_mode: Json = {"tag": "TxValidationErrorInCardanoMode", "contents": validation}
        inner = {"tag": "TxCmdTxSubmitValidationError", "contents": in_mode}
    return json.dumps({"tag": "TxSubmitFail", "contents": inner}, separators=(",", ":"))


def _failure_text(rule: str, detail: str) -> str:
    text = f"{rule} {json.dumps(detail)}"
    if rule in _LEDGER_RULES:
        return text
    return f"ConwayUtxowFailure ({text})" if rule in _UTXOW_RULES else f"ConwayUtxowFailure (UtxoFailure ({text}))"


# --- values ------------------------------------------------------------------------------------------------------


def address_text(raw: bytes) -> str:
    """An output's address as text: bech32, or base58 for Byron."""
    return encode_address(raw).text if raw[0] >> 4 != _BYRON_TYPE else _base58(raw)


def _base58(raw: bytes) -> str:
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return text


def amount(outs: Iterable[TxOut]) -> list[Json]:
    """The sum of outputs per asset: lovelace first, then assets in order of their unit."""
    assets = sum_value(outs)
    rows = [("lovelace", assets.pop("lovelace")), *sorted(assets.items())]
    return [{"unit": unit, "quantity": str(units)} for unit, units in rows]


def output_row(out: TxOut) -> Json:
    """The address, amounts, datum and script of an output."""
    datum = out.inline_datum
    data_hash = blake2b(bytes.fromhex(datum), digest_size=32).hexdigest() if datum else out.datum_hash
    return {
        "address": address_text(out.address),
        "amount": amount([out]),
        "data_hash": data_hash,
        "inline_datum": datum,
        "reference_script_hash": _script_hash(out.reference_script) if out.reference_script else None,
    }


def _script_hash(script_hex: str) -> str:
    """Blake2b-224 of the language tag and the script, from the CBOR of `[language, script]`."""
    reader = cbor.Reader(bytes.fromhex(script_hex))
    reader.expect(cbor.ARRAY, "script")
    language = reader.uint("script language", 3)
    script = reader.buf[reader.pos :] if language == 0 else reader.bytes_("Plutus script")
    return blake2b(bytes([language]) + script, digest_size=28).hexdigest()


# --- the chain ---------------------------------------------------------------------------------------------------


def genesis(system_start_s: int) -> Json:
    """GET /genesis."""
    return {
        "active_slots_coefficient": 1,
        "update_quorum": 5,
        "max_lovelace_supply": "45000000000000000",
        "network_magic": NETWORK_MAGIC,
        "epoch_length": EPOCH_LENGTH_SLOTS,
        "system_start": system_start_s,
        "slots_per_kes_period": 129_600,
        "slot_length": 1,
        "max_kes_evolutions": 62,
        "security_param": 2160,
    }


def block(node: Node, shown: DevnetBlock) -> Json:
    """GET /blocks/{hash or number}."""
    tip = node.chain.tip
    following = node.chain.block(shown.height + 1)
    out_lovelace = sum(out.lovelace for tx in shown.txs for out in tx.outputs)
    return {
        "time": node.time_s(shown.slot),
        "height": shown.height,
        "hash": shown.hash,
        "slot": shown.slot,
        "epoch": shown.slot // EPOCH_LENGTH_SLOTS,
        "epoch_slot": shown.slot % EPOCH_LENGTH_SLOTS,
        "slot_leader": "devnet",
        "size": sum(tx.size_bytes for tx in shown.txs),
        "tx_count": len(shown.txs),
        "output": str(out_lovelace) if shown.txs else None,
        "fees": str(sum(tx.fee_lovelace for tx in shown.txs)) if shown.txs else None,
        "block_vrf": None,
        "op_cert": None,
        "op_cert_counter": None,
        "previous_block": shown.prev_hash if shown.height else None,
        "next_block": following.hash if following else None,
        "confirmations": tip.height - shown.height,
    }


def epoch(node: Node) -> Json:
    """GET /epochs/latest."""
    chain = node.chain
    number = chain.slot // EPOCH_LENGTH_SLOTS
    blocks = [shown for shown in chain.blocks if shown.slot // EPOCH_LENGTH_SLOTS == number] or [chain.tip]
    txs = [tx for shown in blocks for tx in shown.txs]
    return {
        "epoch": number,
        "start_time": node.time_s(number * EPOCH_LENGTH_SLOTS),
        "end_time": node.time_s((number + 1) * EPOCH_LENGTH_SLOTS),
        "first_block_time": node.time_s(blocks[0].slot),
        "last_block_time": node.time_s(blocks[-1].slot),
        "block_count": len(blocks),
        "tx_count": len(txs),
        "output": str(sum(out.lovelace for tx in txs for out in tx.outputs)),
        "fees": str(sum(tx.fee_lovelace for tx in txs)),
        "active_stake": None,
    }


def parameters(params: Params, epoch_number: int) -> Json:
    """GET /epochs/latest/parameters: the ledger's own parameters, and mainnet's values for the rest."""
    return {
        "epoch": epoch_number,
        "min_fee_a": params.min_fee_a,
        "min_fee_b": params.min_fee_b,
        "max_block_size": params.max_block_size_bytes,
        "max_tx_size": params.max_tx_size_bytes,
        "protocol_major_ver": params.protocol_major,
        "protocol_minor_ver": params.protocol_minor,
        "min_utxo": str(params.coins_per_utxo_byte),
        "max_val_size": str(params.max_value_size_bytes),
        "coins_per_utxo_size": str(params.coins_per_utxo_byte),
        "coins_per_utxo_word": str(params.coins_per_utxo_byte),
        "min_fee_ref_script_cost_per_byte": params.ref_script_lovelace_per_byte,
        "cost_models": {"PlutusV1": {}, "PlutusV2": {}, "PlutusV3": _by_name(params.cost_model)},
        "cost_models_raw": {"PlutusV1": [], "PlutusV2": [], "PlutusV3": list(params.cost_model)},
        **_MAINNET_REST,
    }


def _by_name(cost_model: Iterable[int]) -> dict[str, int]:
    """A cost model in the order of its names, which is not the order that scripts need."""
    return dict(sorted((f"parameter-{place}", number) for place, number in enumerate(cost_model)))


_MAINNET_REST: Json = {
    "max_block_header_size": 1100,
    "key_deposit": "2000000",
    "pool_deposit": "500000000",
    "e_max": 18,
    "n_opt": 500,
    "a0": 0.3,
    "rho": 0.003,
    "tau": 0.2,
    "decentralisation_param": 0,
    "extra_entropy": None,
    "min_pool_cost": "170000000",
    "nonce": "00" * 32,
    "price_mem": 0.0577,
    "price_step": 0.0000721,
    "max_tx_ex_mem": "16500000",
    "max_tx_ex_steps": "10000000000",
    "max_block_ex_mem": "72000000",
    "max_block_ex_steps": "20000000000",
    "collateral_percent": 150,
    "max_collateral_inputs": 3,
    "pvt_motion_no_confidence": 0.51,
    "pvt_committee_normal": 0.51,
    "pvt_committee_no_confidence": 0.51,
    "pvt_hard_fork_initiation": 0.51,
    "dvt_motion_no_confidence": 0.67,
    "dvt_committee_normal": 0.67,
    "dvt_committee_no_confidence": 0.6,
    "dvt_update_to_constitution": 0.75,
    "dvt_hard_fork_initiation": 0.6,
    "dvt_p_p_network_group": 0.67,
    "dvt_p_p_economic_group": 0.67,
    "dvt_p_p_technical_group": 0.67,
    "dvt_p_p_gov_group": 0.75,
    "dvt_treasury_withdrawal": 0.67,
    "committee_min_size": "7",
    "committee_max_term_length": "146",
    "gov_action_lifetime": "6",
    "gov_action_deposit": "100000000000",
    "drep_deposit": "500000000",
    "drep_activity": "20",
    "pvtpp_security_group": 0.51,
    "pvt_p_p_security_group": 0.51,
}


# --- transactions and addresses ----------------------------------------------------------------------------------


def _tx_facts(tx: Tx) -> Json:
    return {
        "hash": tx.tx_id,
        "output_amount": amount(tx.outputs),
        "fees": str(tx.fee_lovelace),
        "deposit": "0",
        "size": tx.size_bytes,
        "invalid_before": None if tx.start_slot is None else str(tx.start_slot),
        "invalid_hereafter": None if tx.ttl_slot is None else str(tx.ttl_slot),
        "utxo_count": len(tx.inputs) + len(tx.outputs),
        "withdrawal_count": 0,
        "mir_cert_count": 0,
        "delegation_count": 0,
        "stake_cert_count": 0,
        "pool_update_count": 0,
        "pool_retire_count": 0,
        "asset_mint_or_burn_count": 0,
        "redeemer_count": len(tx.script_parts.redeemers),
        "valid_contract": tx.is_valid,
    }


def transaction(node: Node, tx: Tx, shown: DevnetBlock) -> Json:
    """GET /txs/{hash}."""
    return _tx_facts(tx) | {
        "block": shown.hash,
        "block_height": shown.height,
        "block_time": node.time_s(shown.slot),
        "slot": shown.slot,
        "index": shown.txs.index(tx),
    }


def transaction_utxos(chain: Chain, tx: Tx) -> Json:
    """GET /txs/{hash}/utxos."""
    inputs = []
    for ref, use in _all_inputs(tx):
        out = output_of(chain, ref)
        spent = output_row(out) if out is not None else {}
        inputs.append(spent | {"tx_hash": ref[0], "output_index": ref[1]} | use)
    outputs = [
        output_row(out)
        | {
            "output_index": index,
            "collateral": False,
            "consumed_by_tx": chain.spender.get((tx.tx_id, index)),
        }
        for index, out in enumerate(tx.outputs)
    ]
    if tx.script_parts.collateral_return is not None:
        returned: Json = {"output_index": len(outputs), "collateral": True, "consumed_by_tx": None}
        outputs.append(output_row(tx.script_parts.collateral_return[0]) | returned)
    return {"hash": tx.tx_id, "inputs": inputs, "outputs": outputs}


def _all_inputs(tx: Tx) -> list[tuple[OutRef, Json]]:
    """Inputs, then collateral and reference inputs, which a valid transaction does not spend."""
    parts = tx.script_parts
    uses = ((tx.inputs, False, False), (parts.collateral, True, False), (parts.reference_inputs, False, True))
    return [
        (ref, {"collateral": collateral, "reference": reference})
        for refs, collateral, reference in uses
        for ref in refs
    ]


def mempool_transaction(chain: Chain, tx: Tx) -> Json:
    """GET /mempool/{hash}."""
    inputs = []
    for tx_id, index in tx.inputs:
        out = output_of(chain, (tx_id, index))
        row: Json = {"tx_hash": tx_id, "output_index": index, "collateral": False, "reference": False}
        inputs.append(row if out is None else {"address": address_text(out.address), **row})
    outputs = [
        output_row(out) | {"output_index": index, "collateral": False} for index, out in enumerate(tx.outputs)
    ]
    return {"tx": _tx_facts(tx), "inputs": inputs, "outputs": outputs, "redeemers": []}


def utxo(chain: Chain, ref: OutRef, out: TxOut) -> Json:
    """One row of GET /addresses/{address}/utxos."""
    found = chain.tx(ref[0])
    block = found[1] if found else None
    row: Json = {"tx_hash": ref[0], "tx_index": ref[1], "output_index": ref[1]}
    return output_row(out) | row | {"block": block.hash if block else None}


def address(raw: bytes, outs: Iterable[TxOut]) -> Json:
    """GET /addresses/{address}."""
    return {
        "address": address_text(raw),
        "amount": amount(outs),
        "stake_address": None,
        "type": "shelley",
        "script": read_address(raw).script_hash is not None,
    }


def address_transaction(node: Node, tx: Tx, shown: DevnetBlock) -> Json:
    """One row of GET /addresses/{address}/transactions."""
    return {
        "tx_hash": tx.tx_id,
        "tx_index": shown.txs.index(tx),
        "block_height": shown.height,
        "block_time": node.time_s(shown.slot),
    }
