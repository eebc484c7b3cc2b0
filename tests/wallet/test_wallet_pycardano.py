"""pycardano as the oracle: the same plan gives the same bytes, id and fee."""

import random
from typing import Any

import pycardano
import pytest
from kit.wallet import ASSETS, OWN, SIGNER, TTL_SLOT, payee, random_outputs, random_wallet, wallet_size

from payagent.core.problems import Refused
from payagent.wallet.transaction import TxParameters, TxPlan, min_lovelace, select
from payagent.wallet.utxo_index import UtxoIndex
from sim.signing import sign

FRAME: dict[str, Any] = {"change": OWN, "ttl_slot": TTL_SLOT, "network_id": 0}


def plans(seed: int, count: int) -> list[TxPlan]:
    rnd = random.Random(seed)
    made: list[TxPlan] = []
    while len(made) < count:
        wallet = random_wallet(rnd, wallet_size(rnd))
        try:
            commitment = rnd.randbytes(32) if len(made) % 2 else None
            made.append(select(UtxoIndex(wallet), random_outputs(rnd, wallet), commitment=commitment, **FRAME))
        except Refused:
            continue
    return made


def oracle_output(address: bytes, lovelace: int, assets: dict[str, int], **more: bool) -> Any:
    policies: dict[bytes, dict[bytes, int]] = {}
    for name, units in assets.items():
        policies.setdefault(bytes.fromhex(name[:56]), {})[bytes.fromhex(name[56:])] = units
    value = pycardano.Value(lovelace, pycardano.MultiAsset.from_primitive(policies)) if policies else lovelace
    return pycardano.TransactionOutput(pycardano.Address.from_primitive(address), value, **more)


def oracle_body(plan: TxPlan) -> Any:
    """The body in the form of pycardano's own builder, which names no network."""
    inputs = [
        pycardano.TransactionInput(pycardano.TransactionId(bytes.fromhex(utxo.tx_id)), utxo.index)
        for utxo in plan.inputs
    ]
    return pycardano.TransactionBody(
        inputs=pycardano.OrderedSet(inputs, use_tag=True),
        outputs=[oracle_output(o.address, o.lovelace, dict(o.assets)) for o in plan.outputs],
        fee=plan.fee_lovelace,
        ttl=plan.ttl_slot,
        auxiliary_data_hash=None if plan.frame.commitment is None else oracle_auxiliary(plan).hash(),
    )


def oracle_auxiliary(plan: TxPlan) -> Any:
    if plan.frame.commitment is None:
        return None
    return pycardano.AuxiliaryData(pycardano.Metadata({402: {"h": plan.frame.commitment, "p": "http:1"}}))


class FeeContext(pycardano.ChainContext):  # type: ignore[misc]
    """Mainnet's parameters, as far as fee and minimum need them."""

    class protocol_param:  # noqa: N801  pycardano's name
        min_fee_coefficient, min_fee_constant = 44, 155_381
        price_step = price_mem = 0
        coins_per_utxo_byte = 4_310
        min_fee_reference_scripts = maximum_reference_scripts_size = None


def test_transaction_bytes_id_and_fee_equal_pycardanos() -> None:
    for plan in plans(1, 60):
        body = oracle_body(plan)
        assert body.to_cbor() == plan.body
        assert str(body.id) == plan.tx_id
        raw = sign(plan, SIGNER)
        read = pycardano.Transaction.from_cbor(raw)
        assert str(read.id) == plan.tx_id
        assert len(raw) == plan.size
        extra = plan.fee_lovelace - pycardano.fee(FeeContext(), len(raw))
        assert extra == 0 or (0 < extra <= 176 and plan.outputs[-1].lovelace == 2**32 - 1)


def test_signed_transaction_bytes_equal_pycardanos() -> None:
    for plan in plans(2, 10):
        key = pycardano.VerificationKey.from_primitive(SIGNER.public_key)
        witness = pycardano.VerificationKeyWitness(key, SIGNER.sign_hash(bytes.fromhex(plan.tx_id)))
        witnesses = pycardano.TransactionWitnessSet(vkey_witnesses=pycardano.NonEmptyOrderedSet([witness]))
        whole = pycardano.Transaction(oracle_body(plan), witnesses, auxiliary_data=oracle_auxiliary(plan))
        assert whole.to_cbor() == sign(plan, SIGNER)


@pytest.mark.parametrize("base", [True, False])
def test_min_ada_is_pycardanos_minus_two_bytes_that_are_not_sent(base: bool) -> None:
    rnd, address = random.Random(3), payee(1, base=base)
    for count in (0, 1, 2, 30, 60):
        units = {name: rnd.choice([1, 255, 2**32, 2**63 - 1]) for name in rnd.sample(ASSETS, count)}
        ours = min_lovelace(address.raw, units, TxParameters())
        output = oracle_output(address.raw, 2_000_000, units)
        assert ours == pycardano.min_lovelace_post_alonzo(output, FeeContext()) - 2 * 4_310
        assert ours == (160 + len(output.to_cbor())) * 4_310
