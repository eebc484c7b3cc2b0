"""The second look: signed bytes, read by another reader than their writer, against what was asked.

Nothing is taken from the plan that the bytes can say themselves; what was asked, the coins' values and the
bounds are the plan's. May import: core, `decode`, `plan` (its types), PyNaCl. Never: repairs, or a verdict
"probably"; any difference raises `CheckFailed`.
"""

import hashlib

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from payagent.core.address import LENGTH_OF_TYPE
from payagent.core.money import LOVELACE
from payagent.wallet.decode import DecodedTransaction, Undecodable, decode
from payagent.wallet.plan import FEE_SLACK_BYTES, Plan

_OUTPUT_OVERHEAD_BYTES = 160  # Babbage's rule for the minimum counts them on top of an output's own


class CheckFailed(Exception):  # noqa: N818  a verdict
    """The signed bytes are not the transaction that was planned. Nothing may be stored or sent."""


def check(raw: bytes, plan: Plan, signer_public_key: bytes) -> None:
    """Compare signed bytes with the plan: inputs, anchor, outputs, balance, fee, TTL, network, witness, id.

    That every output goes to a key address of the network and holds the ledger's minimum is asked of the bytes
    alone, whatever the plan says.
    """
    try:
        found = decode(raw)
    except (Undecodable, RecursionError) as error:
        raise CheckFailed(f"the signed bytes cannot be read: {error}") from error
    _check_frame(found, plan)
    _check_inputs(found, plan)
    _check_outputs(found, plan)
    _check_payable(found, plan)
    _check_balance(found, plan)
    _check_fee(found, plan, len(raw))
    _check_witness(found, plan, signer_public_key)


def _require(held: bool, what: str) -> None:
    if not held:
        raise CheckFailed(what)


def _check_frame(found: DecodedTransaction, plan: Plan) -> None:
    _require(found.ttl_slot == plan.frame.ttl_slot, f"TTL {found.ttl_slot}, planned {plan.frame.ttl_slot}")
    _require(found.network_id == plan.frame.network_id, f"network id {found.network_id}")
    _require(found.commitment == plan.frame.commitment, "the metadata are others than planned")


def _check_inputs(found: DecodedTransaction, plan: Plan) -> None:
    planned = {(coin.tx_id, coin.index) for coin in plan.inputs}
    _require(len(found.inputs) == len(set(found.inputs)), "an input stands twice")
    _require(set(found.inputs) == planned, "the inputs are others than planned")
    _require((plan.anchor.tx_id, plan.anchor.index) in planned, "the anchor is not spent")


def _check_outputs(found: DecodedTransaction, plan: Plan) -> None:
    _require(len(found.outputs) == len(plan.outputs), f"{len(found.outputs)} outputs")
    for place, (output, planned) in enumerate(zip(found.outputs, plan.outputs, strict=True)):
        same = output.address == planned.address and output.lovelace == planned.lovelace
        _require(same and output.assets == dict(planned.assets), f"output {place} is another than planned")
    for place, (output, asked) in enumerate(zip(found.outputs, plan.asked, strict=False)):
        _require(output.address == asked.address.raw, f"output {place} pays another address than asked")
        paid = {LOVELACE: output.lovelace} if asked.asset == LOVELACE else output.assets
        _require(paid == {asked.asset: asked.units}, f"output {place} pays another amount than asked")
        _require(asked.asset != LOVELACE or not output.assets, f"output {place} pays assets unasked")
    for place, output in enumerate(found.outputs[len(plan.asked) :], len(plan.asked)):
        _require(output.address == plan.frame.rest.raw, f"output {place} is neither asked nor change")


def _check_payable(found: DecodedTransaction, plan: Plan) -> None:
    for place, output in enumerate(found.outputs):
        header = output.address[0] if output.address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        _require(length is not None, f"output {place} pays no key address")
        _require(len(output.address) == length, f"output {place} pays an address of {len(output.address)} bytes")
        _require(header & 15 == found.network_id, f"output {place} pays an address of another network")
        least = (_OUTPUT_OVERHEAD_BYTES + output.size) * plan.frame.parameters.coins_per_utxo_byte
        _require(output.lovelace >= least, f"output {place} holds {output.lovelace}, {least} is the least")
        rides = place < len(plan.asked) and plan.asked[place].asset != LOVELACE
        _require(not rides or output.lovelace == least, f"more ADA rides along in output {place} than must")


def _check_balance(found: DecodedTransaction, plan: Plan) -> None:
    balance: dict[str, int] = {LOVELACE: -found.fee_lovelace}
    for coin in plan.inputs:
        for asset, units in ((LOVELACE, coin.lovelace), *coin.assets):
            balance[asset] = balance.get(asset, 0) + units
    for output in found.outputs:
        for asset, units in ((LOVELACE, output.lovelace), *output.assets.items()):
            balance[asset] = balance.get(asset, 0) - units
    for asset, units in balance.items():
        _require(units == 0, f"{asset} is out of balance by {units}")


def _check_fee(found: DecodedTransaction, plan: Plan, size: int) -> None:
    parameters = plan.frame.parameters
    least = parameters.min_fee_b + parameters.min_fee_a * size
    most = min(least + FEE_SLACK_BYTES * parameters.min_fee_a, plan.frame.fee_cap_lovelace)
    _require(least <= found.fee_lovelace <= most, f"a fee of {found.fee_lovelace}, {least} to {most} are right")
    _require(size <= parameters.max_tx_size, f"{size} bytes")


def _check_witness(found: DecodedTransaction, plan: Plan, public_key: bytes) -> None:
    tx_id = hashlib.blake2b(found.body, digest_size=32).digest()
    _require(tx_id.hex() == plan.tx_id, "the transaction id is another than planned")
    _require(len(found.witnesses) == 1, f"{len(found.witnesses)} witnesses")
    key, signature = found.witnesses[0]
    _require(key == public_key, "the witness is by another key")
    try:
        crypto_sign_open(signature + tx_id, key)
    except BadSignatureError as error:
        raise CheckFailed("the signature does not verify") from error
