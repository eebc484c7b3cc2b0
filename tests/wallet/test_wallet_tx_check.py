"""The check before submission rejects every transaction that differs from the request."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from kit.bent_transactions import (
    ADA,
    BENT,
    FRAME,
    PLAN,
    UTXOS,
    Body,
    add,
    body_of,
    drop_split,
    extra_output,
    fee,
    other_address,
    planned,
    shift,
    signed,
    steal_token,
    swap,
    token_to_payee,
    witness_bends,
)
from kit.wallet import (
    ASSETS,
    OWN,
    SIGNER,
    TTL_SLOT,
    own_address,
    pay,
    payee,
    random_outputs,
    random_wallet,
    signer_of,
)

from payagent.core.address import Address
from payagent.core.invoice import Output
from payagent.core.problems import Refused
from payagent.wallet.transaction import build, check, select
from payagent.wallet.tx_check import CheckFailed
from payagent.wallet.tx_decode import Undecodable, decode
from payagent.wallet.tx_plan import Frame, PlannedOutput, TxParameters, TxPlan
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

TOKEN_PLAN = planned(pay(400, 50, name=ASSETS[1]))


@pytest.mark.parametrize("name", BENT)
def test_a_changed_body_is_rejected_although_it_is_properly_signed(name: str) -> None:
    body = body_of(PLAN)
    check(signed(body), PLAN, SIGNER.public_key)
    BENT[name](body)
    with pytest.raises(CheckFailed):
        check(signed(body), PLAN, SIGNER.public_key)


@pytest.mark.parametrize("name", ["amount one more", "paid to another address", "another TTL", "split missing"])
def test_a_plan_that_differs_from_the_request_is_rejected_even_if_the_bytes_match_it(name: str) -> None:
    """The plan's outputs agree with the bytes but not with `asked`: a bug in building the outputs."""
    outputs = {
        "amount one more": pay(10 * ADA + 1, 2 * ADA),
        "split missing": pay(10 * ADA),
        "another TTL": pay(10 * ADA, 2 * ADA),
        "paid to another address": [Output("pay_to", payee(9), "lovelace", 10 * ADA), *pay(1, 2 * ADA)[1:]],
    }[name]
    frame = {**FRAME, "ttl_slot": TTL_SLOT + (name == "another TTL")}
    wrong = build(UTXOS, UTXOS[1], outputs, **frame)
    bent = wrong._replace(asked=PLAN.asked, frame=PLAN.frame)
    with pytest.raises(CheckFailed):
        check(sign(bent, SIGNER), bent, SIGNER.public_key)


@pytest.mark.parametrize("name", witness_bends())
def test_changed_witnesses_and_forms_are_rejected(name: str) -> None:
    with pytest.raises(CheckFailed):
        check(witness_bends()[name], PLAN, SIGNER.public_key)


@pytest.mark.parametrize("plan", [PLAN, TOKEN_PLAN], ids=["ada", "token"])
def test_a_transaction_with_a_flipped_bit_is_rejected(plan: TxPlan) -> None:
    raw = sign(plan, SIGNER)
    check(raw, plan, SIGNER.public_key)
    for bit in range(0, 8 * len(raw), 3):
        bent = bytearray(raw)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckFailed):
            check(bytes(bent), plan, SIGNER.public_key)


def test_a_plan_with_wrong_input_amounts_is_rejected() -> None:
    first, second = PLAN.inputs
    richer = replace(second, lovelace=second.lovelace + 1)
    poorer = replace(first, assets=first.assets[1:])
    for inputs in ((first, richer), (poorer, second)):
        with pytest.raises(CheckFailed, match="out of balance"):
            check(sign(PLAN, SIGNER), PLAN._replace(inputs=inputs), SIGNER.public_key)


# --- each comparison alone ---


def laid(outputs: list[Any]) -> tuple[PlannedOutput, ...]:
    """The outputs of a body, in the form of a plan."""
    planned = []
    for address, value in outputs:
        lovelace, policies = value if isinstance(value, list) else (value, {})
        assets = {(p + name).hex(): units for p, names in policies.items() for name, units in names.items()}
        planned.append(PlannedOutput("change", address, lovelace, tuple(assets.items())))
    return tuple(planned)


def agreed(bend: Callable[[Body], Any] = lambda _: None, plan: TxPlan = PLAN, **more: Any) -> tuple[bytes, TxPlan]:
    """Changed bytes with the right fee for their size, and a plan changed with them: outputs, fee and id.

    Only the request, the inputs and the frame can reveal the change.
    """
    body = body_of(plan)
    bend(body)
    raw = signed(body, **more)
    fee(body, 155_381 + 44 * len(raw) - body[2] + more.get("fee_off", 0))
    raw = signed(body, **more)
    tx_id = hashlib.blake2b(decode(raw).body, digest_size=32).hexdigest()
    return raw, plan._replace(outputs=laid(body[1]), fee_lovelace=body[2], tx_id=tx_id)


def planned_otherwise(**changes: Any) -> tuple[bytes, TxPlan]:
    """The right bytes, and a plan with another first output."""
    first, *others = PLAN.outputs
    return sign(PLAN, SIGNER), PLAN._replace(outputs=(first._replace(**changes), *others))


def to(raw_address: bytes) -> tuple[bytes, TxPlan]:
    """Bytes and plan agree on paying this address."""
    plan = planned([Output("pay_to", Address("?", raw_address), "lovelace", 10 * ADA)])
    return sign(plan, SIGNER), plan


def of_network_one() -> tuple[bytes, TxPlan]:
    outputs = [Output("pay_to", payee(0, network_id=1), "lovelace", 10 * ADA)]
    plan = build(UTXOS, UTXOS[1], outputs, change=own_address(1), ttl_slot=TTL_SLOT, network_id=1)
    bent = plan._replace(frame=plan.frame._replace(network_id=0))
    return sign(bent, SIGNER), bent


def laid_by_other_rules(units: int) -> tuple[bytes, TxPlan]:
    """Bytes and plan agree on outputs that would be allowed if a byte cost one lovelace."""
    outputs = [Output("pay_to", payee(0), "lovelace", units)]
    plan = build(UTXOS, UTXOS[1], outputs, params=TxParameters(coins_per_utxo_byte=1), **FRAME)
    bent = plan._replace(frame=PLAN.frame)
    return sign(bent, SIGNER), bent


def framed(frame: Frame) -> tuple[bytes, TxPlan]:
    return sign(PLAN, SIGNER), PLAN._replace(frame=frame)


def richer() -> tuple[bytes, TxPlan]:
    first, second = PLAN.inputs
    return sign(PLAN, SIGNER), PLAN._replace(inputs=(first, replace(second, lovelace=second.lovelace + 1)))


def mint(body: Body) -> None:
    policy, name = bytes.fromhex(ASSETS[40][:56]), bytes.fromhex(ASSETS[40][56:])
    body[1][-1][1][1][policy][name] += 1


def mint_another(body: Body) -> None:
    policy, name = bytes.fromhex(ASSETS[2][:56]), bytes.fromhex(ASSETS[2][56:])
    body[1][-1][1][1].setdefault(policy, {})[name] = 1


def one_unit_less(body: Body) -> None:
    policy, name = bytes.fromhex(ASSETS[1][:56]), bytes.fromhex(ASSETS[1][56:])
    body[1][0][1][1][policy][name] -= 1
    body[1][-1][1][1][policy][name] += 1


def second_change(body: Body) -> None:
    body[1].append([OWN.raw, 5 * ADA])
    add(body[1][-2], -5 * ADA)
    body[1].append(body[1].pop(-2))


OTHER = signer_of(7)
STRAY = [OTHER.public_key, OTHER.sign_hash(bytes(32))]
ALONE: dict[str, tuple[Callable[[], tuple[bytes, TxPlan]], str]] = {
    "TTL": (lambda: agreed(lambda body: body.update({3: TTL_SLOT + 1})), "TTL"),
    "network": (lambda: agreed(lambda body: body.update({15: 1})), "network id 1"),
    "network of the addresses": (of_network_one, "another network"),
    "an input twice": (lambda: agreed(lambda body: body[0].append(body[0][0])), "occurs twice"),
    "another input": (lambda: agreed(lambda body: body[0].__setitem__(0, ("11" * 32, 1))), "inputs differ"),
    "no anchor": (
        lambda: (sign(PLAN, SIGNER), PLAN._replace(nonce_utxo=Utxo("33" * 32, 0, 5 * ADA))),
        "the nonce UTxO is not spent",
    ),
    "an output more": (lambda: (agreed(second_change)[0], PLAN), "4 outputs"),
    "planned address": (lambda: planned_otherwise(address=payee(9).raw), "differs from the plan"),
    "planned lovelace": (lambda: planned_otherwise(lovelace=10 * ADA + 1), "differs from the plan"),
    "planned assets": (lambda: planned_otherwise(assets=((ASSETS[1], 1),)), "differs from the plan"),
    "asked address": (lambda: agreed(other_address(0)), "output 0 pays another address than requested"),
    "asked split": (lambda: agreed(other_address(1)), "output 1 pays another address than requested"),
    "outputs swapped": (lambda: agreed(swap), "another address than requested"),
    "asked lovelace": (lambda: agreed(lambda body: shift(body, 1, 1)), "output 1 pays another amount"),
    "asked units": (lambda: agreed(one_unit_less, TOKEN_PLAN), "output 0 pays another amount than requested"),
    "a token unasked": (lambda: agreed(token_to_payee), "assets that were not requested"),
    "riding ADA": (lambda: agreed(lambda body: shift(body, 0, 1), TOKEN_PLAN), "more lovelace than its min-ADA"),
    "split missing": (lambda: agreed(drop_split), "output 1 pays another"),
    "change elsewhere": (lambda: agreed(other_address(-1)), "neither requested nor change"),
    "an output nobody asked for": (lambda: agreed(extra_output), "neither requested nor change"),
    "no address": (lambda: to(b""), "no key address"),
    "script address": (lambda: to(b"\x10" + bytes(56)), "no key address"),
    "stake by script": (lambda: to(b"\x20" + bytes(56)), "no key address"),
    "pointer address": (lambda: to(b"\x40" + bytes(31)), "no key address"),
    "script, enterprise": (lambda: to(b"\x70" + bytes(28)), "no key address"),
    "Byron address": (lambda: to(b"\x82" + bytes(60)), "no key address"),
    "stake address": (lambda: to(b"\xe0" + bytes(28)), "no key address"),
    "address too short": (lambda: to(b"\x00" + bytes(55)), "an address of 56 bytes"),
    "enterprise too long": (lambda: to(b"\x60" + bytes(56)), "an address of 57 bytes"),
    "address elsewhere": (lambda: to(payee(0, network_id=1).raw), "another network"),
    "no such network": (lambda: to(b"\x02" + bytes(56)), "another network"),
    "below the minimum": (lambda: laid_by_other_rules(969_749), "its min-ADA is 969750"),
    "change below the minimum": (lambda: laid_by_other_rules(49 * ADA), "output 1 holds"),
    "value": (richer, "lovelace is out of balance by 1"),
    "a token from nothing": (lambda: agreed(mint), "out of balance by -1"),
    "another token from nothing": (lambda: agreed(mint_another), "out of balance by -1"),
    "a token lost": (lambda: agreed(steal_token), "out of balance"),
    "fee too low": (lambda: agreed(fee_off=-1), "the fee is"),
    "fee too high": (lambda: agreed(fee_off=177), "the fee is"),
    "fee above the cap": (lambda: framed(PLAN.frame._replace(fee_cap_lovelace=170_000)), "the fee is"),
    "size": (lambda: framed(PLAN.frame._replace(parameters=TxParameters(max_tx_size=300))), "bytes$"),
    "id": (lambda: (sign(PLAN, SIGNER), PLAN._replace(tx_id="00" * 32)), "the transaction id"),
    "a second witness": (lambda: agreed(witnesses=[STRAY]), "2 witnesses"),
    "another key": (lambda: agreed(signer=OTHER), "by another key"),
    "another signature": (lambda: (sign(PLAN, SIGNER)[:-66] + STRAY[1] + b"\xf5\xf6", PLAN), "does not verify"),
}


def test_an_unchanged_transaction_passes() -> None:
    named = agreed(lambda body: body.update({15: 0}))
    for raw, plan in (agreed(), agreed(plan=TOKEN_PLAN), to(payee(3, base=False).raw), named):
        check(raw, plan, SIGNER.public_key)


def test_a_transaction_exactly_at_its_bounds_passes() -> None:
    for raw, plan in (agreed(fee_off=176), agreed()):
        frame = plan.frame._replace(
            fee_cap_lovelace=plan.fee_lovelace, parameters=TxParameters(max_tx_size=len(raw))
        )
        check(raw, plan._replace(frame=frame), SIGNER.public_key)


@pytest.mark.parametrize("name", ALONE)
def test_each_comparison_alone_rejects_its_mistake(name: str) -> None:
    make, why = ALONE[name]
    raw, plan = make()
    with pytest.raises(CheckFailed, match=why):
        check(raw, plan, SIGNER.public_key)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a fee in a longer form", "longer than needed"),
        ("a byte behind", "trailing bytes"),
        ("a byte short", "trailing bytes"),
        ("not valid", "a payment is valid"),
        ("an indefinite array", "array of four"),
        ("a set without its tag", "not a set"),
        ("a native script", "other witnesses"),
    ],
)
def test_the_decoder_refuses_other_forms_of_a_transaction(name: str, why: str) -> None:
    with pytest.raises(Undecodable, match=why):
        decode(witness_bends()[name])


COMMITTED = build(UTXOS, UTXOS[1], pay(10 * ADA), commitment=b"c" * 32, **FRAME)


def test_a_commitment_and_its_hash_are_checked() -> None:
    raw = sign(COMMITTED, SIGNER)
    assert decode(raw).commitment == b"c" * 32
    check(raw, COMMITTED, SIGNER.public_key)
    for other in (b"d" * 32, None):
        with pytest.raises(CheckFailed, match="metadata differ"):
            check(raw, COMMITTED._replace(frame=COMMITTED.frame._replace(commitment=other)), SIGNER.public_key)
    with pytest.raises(Undecodable, match="not that of the auxiliary data"):
        decode(raw.replace(b"c" * 32, b"d" * 32))
    body, auxiliary = bare_body(raw), cbor2.loads(raw)[3]
    assert auxiliary == {402: {"h": b"c" * 32, "p": "http:1"}}
    for tail, why in ((b"\xf5\xf6", "other fields"), (b"\xf5\xa1\x19\x01\x92\x00", "null or a commitment")):
        with pytest.raises(Undecodable, match=why):
            decode(signed(body, tail=tail))
    with pytest.raises(Undecodable, match="other fields"):
        decode(signed(bare_body(sign(PLAN, SIGNER)), tail=b"\xf5" + raw[-50:]))


def bare_body(raw: bytes) -> Body:
    """The body in the form `signed` takes."""
    body = cbor2.loads(raw)[0]
    return {**body, 0: [(bytes(tx_id).hex(), index) for tx_id, index in body[0]]}


def test_the_decoder_agrees_with_cbor2_on_random_transactions() -> None:
    rnd = random.Random(11)
    read = 0
    while read < 150:
        wallet = random_wallet(rnd, rnd.randrange(1, 60))
        try:
            plan = select(UtxoIndex(wallet), random_outputs(rnd, wallet), **FRAME)
        except Refused:
            continue
        raw = sign(plan, SIGNER)
        found, body = decode(raw), cbor2.loads(raw)[0]
        assert sorted(found.inputs) == sorted((bytes(ref[0]).hex(), ref[1]) for ref in body[0])
        for output, (address, value) in zip(found.outputs, body[1], strict=True):
            lovelace, policies = value if isinstance(value, list) else (value, {})
            assert (output.address, output.lovelace) == (address, lovelace)
            assert output.assets == {
                (policy + name).hex(): units for policy, names in policies.items() for name, units in names.items()
            }
        assert (found.fee_lovelace, found.ttl_slot, found.network_id) == (body[2], body[3], None)
        assert found.body == plan.body
        read += 1


def test_the_decoder_refuses_maps_out_of_canonical_order() -> None:
    raw = sign(TOKEN_PLAN, SIGNER)
    body = cbor2.loads(TOKEN_PLAN.body)
    policies = body[1][-1][1][1]
    assert len(policies) == 2
    turned = dict(reversed(policies.items()))
    bent = raw.replace(cbor2.dumps(policies), cbor2.dumps(turned))
    assert bent != raw
    with pytest.raises(Undecodable, match="out of order"):
        decode(bent)


def map_of(*pairs: tuple[bytes, bytes]) -> bytes:
    """A map with the pairs as given, in any order and with duplicates."""
    return bytes([0xA0 + len(pairs)]) + b"".join(cbor2.dumps(key) + value for key, value in pairs)


P, Q, NAME = bytes(28), b"\x01" * 28, b"\x05"
OF_ONE = map_of((b"A", NAME))


@pytest.mark.parametrize(
    ("assets", "why"),
    [
        (map_of((P, OF_ONE), (P, OF_ONE)), "a policy is out of order or duplicate"),
        (map_of((P, map_of((b"A", NAME), (b"A", NAME)))), "name is out of order or duplicate"),
        (map_of((P, map_of((b"B", NAME), (b"A", NAME)))), "name is out of order or duplicate"),
        (map_of((P, map_of((b"AA", NAME), (b"B", NAME)))), "name is out of order or duplicate"),
        (map_of((P, map_of((b"A" * 33, NAME)))), "longer than 32 bytes"),
        (map_of((P, map_of((b"A", b"\x00")))), "an asset with zero units"),
        (map_of((P, map_of())), "a policy without assets"),
        (map_of(), "list of assets is empty"),
        (map_of((P, map_of((b"A", b"\x1c" + bytes(16))))), "without a definite length"),
    ],
)
def test_the_decoder_refuses_assets_in_non_canonical_form(assets: bytes, why: str) -> None:
    good = map_of((P, map_of((b"B", NAME), (b"A" * 32, NAME))), (Q, OF_ONE))
    body = body_of(TOKEN_PLAN)
    there = cbor2.dumps(body[1][-1][1][1], canonical=True)
    raw = signed(body)
    assert raw.count(there) == 1
    decode(raw.replace(there, good))
    with pytest.raises(Undecodable, match=why):
        decode(raw.replace(there, assets))
