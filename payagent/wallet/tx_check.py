"""Checks signed bytes against the plan, with a decoder that is independent of the writer.

Everything that the bytes can state is taken from the bytes. Only the requested outputs, the values of the inputs
and the bounds are the plan's. Any difference raises `CheckFailed`.

May import: core, `tx_decode`, `tx_plan` (its types), PyNaCl.
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
        found = decode(raw)
    except Undecodable as error:
        raise CheckFailed(f"the signed bytes cannot be read: {error}") from error
    _check_frame(found, plan)
    _check_inputs(found, plan)
    _check_outputs(found, plan)
    _check_payable(found, plan)
    _check_balance(found, plan)
    _check_fee(found, plan, len(raw))
    _check_witness(found, plan, signer_public_key)


def _check_frame(found: DecodedTransaction, plan: TxPlan) -> None:
    frame = plan.frame
    if found.ttl_slot != frame.ttl_slot:
        raise CheckFailed(f"TTL {found.ttl_slot}, planned {frame.ttl_slot}")
    if found.network_id != frame.network_id:
        raise CheckFailed(f"network id {found.network_id}")
    if found.commitment != frame.commitment:
        raise CheckFailed("the metadata are others than planned")


def _check_inputs(found: DecodedTransaction, plan: TxPlan) -> None:
    planned, spent = {(utxo.tx_id, utxo.index) for utxo in plan.inputs}, set(found.inputs)
    if len(found.inputs) != len(spent):
        raise CheckFailed("an input stands twice")
    if spent != planned:
        raise CheckFailed("the inputs are others than planned")
    if (plan.nonce_utxo.tx_id, plan.nonce_utxo.index) not in planned:
        raise CheckFailed("the nonce UTxO is not spent")


def _check_outputs(found: DecodedTransaction, plan: TxPlan) -> None:
    if len(found.outputs) != len(plan.outputs):
        raise CheckFailed(f"{len(found.outputs)} outputs")
    for place, (output, planned) in enumerate(zip(found.outputs, plan.outputs, strict=True)):
        same = output.address == planned.address and output.lovelace == planned.lovelace
        if not same or output.assets != dict(planned.assets):
            raise CheckFailed(f"output {place} is another than planned")
    for place, (output, asked) in enumerate(zip(found.outputs, plan.asked, strict=False)):
        if output.address != asked.address.raw:
            raise CheckFailed(f"output {place} pays another address than asked")
        paid = {LOVELACE: output.lovelace} if asked.asset == LOVELACE else output.assets
        if paid != {asked.asset: asked.units}:
            raise CheckFailed(f"output {place} pays another amount than asked")
        if asked.asset == LOVELACE and output.assets:
            raise CheckFailed(f"output {place} pays assets unasked")
    for place, output in enumerate(found.outputs[len(plan.asked) :], len(plan.asked)):
        if output.address != plan.frame.rest.raw:
            raise CheckFailed(f"output {place} is neither asked nor change")


def _check_payable(found: DecodedTransaction, plan: TxPlan) -> None:
    coins_per_byte, asked = plan.frame.parameters.coins_per_utxo_byte, plan.asked
    for place, (address, lovelace, _, size) in enumerate(found.outputs):
        header = address[0] if address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        if length is None:
            raise CheckFailed(f"output {place} pays no key address")
        if len(address) != length:
            raise CheckFailed(f"output {place} pays an address of {len(address)} bytes")
        if header & 15 != found.network_id:
            raise CheckFailed(f"output {place} pays an address of another network")
        least = (_OUTPUT_OVERHEAD_BYTES + size) * coins_per_byte
        if lovelace < least:
            raise CheckFailed(f"output {place} holds {lovelace}, {least} is the least")
        if lovelace != least and place < len(asked) and asked[place].asset != LOVELACE:
            raise CheckFailed(f"more ADA rides along in output {place} than must")


def _check_balance(found: DecodedTransaction, plan: TxPlan) -> None:
    lovelace = -found.fee_lovelace
    balance: dict[str, int] = {}
    for utxo in plan.inputs:
        lovelace += utxo.lovelace
        for asset, units in utxo.assets:
            balance[asset] = balance.get(asset, 0) + units
    for output in found.outputs:
        lovelace -= output.lovelace
        for asset, units in output.assets.items():
            balance[asset] = balance.get(asset, 0) - units
    if lovelace or any(balance.values()):
        asset, units = next(pair for pair in {LOVELACE: lovelace, **balance}.items() if pair[1])
        raise CheckFailed(f"{asset} is out of balance by {units}")


def _check_fee(found: DecodedTransaction, plan: TxPlan, size: int) -> None:
    parameters = plan.frame.parameters
    least = parameters.min_fee_b + parameters.min_fee_a * size
    most = min(least + FEE_SLACK_BYTES * parameters.min_fee_a, plan.frame.fee_cap_lovelace)
    if not least <= found.fee_lovelace <= most:
        raise CheckFailed(f"a fee of {found.fee_lovelace}, {least} to {most} are right")
    if size > parameters.max_tx_size:
        raise CheckFailed(f"{size} bytes")


def _check_witness(found: DecodedTransaction, plan: TxPlan, public_key: bytes) -> None:
    tx_id = hashlib.blake2b(found.body, digest_size=32).digest()
    if tx_id.hex() != plan.tx_id:
        raise CheckFailed("the transaction id is another than planned")
    if len(found.witnesses) != 1:
        raise CheckFailed(f"{len(found.witnesses)} witnesses")
    key, signature = found.witnesses[0]
    if key != public_key:
        raise CheckFailed("the witness is by another key")
    try:
        crypto_sign_open(signature + tx_id, key)
    except BadSignatureError as error:
        raise CheckFailed("the signature does not verify") from error
