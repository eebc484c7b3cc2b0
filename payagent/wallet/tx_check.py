"""Checks signed bytes against the plan, with a decoder that is independent of the writer.

Everything that the bytes can state is taken from the bytes. Only the requested outputs, the values of the inputs
and the bounds are the plan's. Any difference raises `CheckFailed`.

Never: repairs bytes; tolerates a difference.
"""

import hashlib

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from payagent.core.address import LENGTH_OF_TYPE
from payagent.core.money import LOVELACE
from payagent.wallet.tx_decode import DecodedTransaction, Undecodable, decode
from payagent.wallet.tx_plan import FEE_SLACK_BYTES, TxPlan

_OUTPUT_OVERHEAD_BYTES = 160  # Babbage's min-ADA rule adds them to the size of an output


class CheckFailed(Exception):  # noqa: N818  a verdict
    """The signed bytes are not the planned transaction. They must not be stored or sent."""


def check(raw: bytes, plan: TxPlan, signer_public_key: bytes) -> None:
    """Compare signed bytes with the plan: inputs, nonce UTxO, outputs, balance, fee, TTL, network, witness, id.

    Independent of the plan, every output must pay a key address of the network and hold its min-ADA.
    """
    try:
        decoded = decode(raw)
    except Undecodable as error:
        raise CheckFailed(f"the signed bytes cannot be read: {error}") from error
    _check_frame(decoded, plan)
    _check_inputs(decoded, plan)
    _check_outputs(decoded, plan)
    _check_payable(decoded, plan)
    _check_balance(decoded, plan)
    _check_fee(decoded, plan, len(raw))
    _check_witness(decoded, plan, signer_public_key)


def _check_frame(decoded: DecodedTransaction, plan: TxPlan) -> None:
    frame = plan.frame
    if decoded.ttl_slot != frame.ttl_slot:
        raise CheckFailed(f"TTL {decoded.ttl_slot}, planned {frame.ttl_slot}")
    if decoded.network_id not in (None, frame.network_id):
        raise CheckFailed(f"network id {decoded.network_id}")
    if decoded.commitment != frame.commitment:
        raise CheckFailed("the metadata differ from the plan")


def _check_inputs(decoded: DecodedTransaction, plan: TxPlan) -> None:
    planned, spent = {(utxo.tx_id, utxo.index) for utxo in plan.inputs}, set(decoded.inputs)
    if len(decoded.inputs) != len(spent):
        raise CheckFailed("an input occurs twice")
    if spent != planned:
        raise CheckFailed("the inputs differ from the plan")
    if (plan.nonce_utxo.tx_id, plan.nonce_utxo.index) not in planned:
        raise CheckFailed("the nonce UTxO is not spent")


def _check_outputs(decoded: DecodedTransaction, plan: TxPlan) -> None:
    if len(decoded.outputs) != len(plan.outputs):
        raise CheckFailed(f"{len(decoded.outputs)} outputs")
    for place, (output, planned) in enumerate(zip(decoded.outputs, plan.outputs, strict=True)):
        same = output.address == planned.address and output.lovelace == planned.lovelace
        if not same or output.assets != dict(planned.assets):
            raise CheckFailed(f"output {place} differs from the plan")
    for place, (output, requested) in enumerate(zip(decoded.outputs, plan.asked, strict=False)):
        if output.address != requested.address.raw:
            raise CheckFailed(f"output {place} pays another address than requested")
        paid = {LOVELACE: output.lovelace} if requested.asset == LOVELACE else output.assets
        if paid != {requested.asset: requested.units}:
            raise CheckFailed(f"output {place} pays another amount than requested")
        if requested.asset == LOVELACE and output.assets:
            raise CheckFailed(f"output {place} pays assets that were not requested")
    for place, output in enumerate(decoded.outputs[len(plan.asked) :], len(plan.asked)):
        if output.address != plan.frame.rest.raw:
            raise CheckFailed(f"output {place} is neither requested nor change")


def _check_payable(decoded: DecodedTransaction, plan: TxPlan) -> None:
    coins_per_byte, requested = plan.frame.parameters.coins_per_utxo_byte, plan.asked
    for place, (address, lovelace, _, size) in enumerate(decoded.outputs):
        header = address[0] if address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        if length is None:
            raise CheckFailed(f"output {place} pays no key address")
        if len(address) != length:
            raise CheckFailed(f"output {place} pays an address of {len(address)} bytes")
        if header & 15 != plan.network_id:
            raise CheckFailed(f"output {place} pays an address of another network")
        minimum = (_OUTPUT_OVERHEAD_BYTES + size) * coins_per_byte
        if lovelace < minimum:
            raise CheckFailed(f"output {place} holds {lovelace} lovelace, its min-ADA is {minimum}")
        if lovelace != minimum and place < len(requested) and requested[place].asset != LOVELACE:
            raise CheckFailed(f"output {place} holds more lovelace than its min-ADA")


def _check_balance(decoded: DecodedTransaction, plan: TxPlan) -> None:
    lovelace = -decoded.fee_lovelace
    balance: dict[str, int] = {}
    for utxo in plan.inputs:
        lovelace += utxo.lovelace
        for asset, units in utxo.assets:
            balance[asset] = balance.get(asset, 0) + units
    for output in decoded.outputs:
        lovelace -= output.lovelace
        for asset, units in output.assets.items():
            balance[asset] = balance.get(asset, 0) - units
    if lovelace or any(balance.values()):
        asset, units = next(pair for pair in {LOVELACE: lovelace, **balance}.items() if pair[1])
        raise CheckFailed(f"{asset} is out of balance by {units}")


def _check_fee(decoded: DecodedTransaction, plan: TxPlan, size: int) -> None:
    parameters = plan.frame.parameters
    minimum = parameters.min_fee_b + parameters.min_fee_a * size
    fee_max = min(minimum + FEE_SLACK_BYTES * parameters.min_fee_a, plan.frame.fee_cap_lovelace)
    if not minimum <= decoded.fee_lovelace <= fee_max:
        raise CheckFailed(f"the fee is {decoded.fee_lovelace} lovelace, expected {minimum} to {fee_max}")
    if size > parameters.max_tx_size:
        raise CheckFailed(f"the transaction has {size} bytes")


def _check_witness(decoded: DecodedTransaction, plan: TxPlan, public_key: bytes) -> None:
    tx_id = hashlib.blake2b(decoded.body, digest_size=32).digest()
    if tx_id.hex() != plan.tx_id:
        raise CheckFailed("the transaction id differs from the plan")
    if len(decoded.witnesses) != 1:
        raise CheckFailed(f"{len(decoded.witnesses)} witnesses")
    key, signature = decoded.witnesses[0]
    if key != public_key:
        raise CheckFailed("the witness is by another key")
    try:
        crypto_sign_open(signature + tx_id, key)
    except BadSignatureError as error:
        raise CheckFailed("the signature does not verify") from error
