"""The second look kills every transaction that is not the one asked for, and passes those that are."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from wallet.worlds import (
    ASSETS,
    OWN,
    SIGNER,
    TTL_SLOT,
    pay,
    payee,
    random_outputs,
    random_wallet,
    signer_of,
)

from payagent.core.invoice import Output
from payagent.core.problem import Refused
from payagent.wallet.check import CheckFailed
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.decode import Undecodable, decode
from payagent.wallet.keys import SoftwareSigner
from payagent.wallet.plan import Frame, Parameters, Plan
from payagent.wallet.transaction import build, check, select, sign

ADA = 1_000_000
COINS = (
    Coin("11" * 32, 0, 30 * ADA, ((ASSETS[1], 500), (ASSETS[40], 2**40))),
    Coin("22" * 32, 1, 20 * ADA),
)
FRAME: dict[str, Any] = {"change": OWN, "ttl_slot": TTL_SLOT, "network_id": 0}


def planned(outputs: list[Output]) -> Plan:
    return build(COINS, COINS[1], outputs, **FRAME)


PLAN = planned(pay(10 * ADA, 2 * ADA))
TOKEN_PLAN = planned(pay(400, 50, name=ASSETS[1]))
Body = dict[int, Any]


def signed(body: Body, signer: SoftwareSigner = SIGNER, **more: Any) -> bytes:
    """Canonical bytes of any body, properly signed: what a bug before the signature would make."""
    inputs = sorted([bytes.fromhex(tx_id), index] for tx_id, index in body[0])
    encoded = cbor2.dumps({**body, 0: cbor2.CBORTag(258, inputs)}, canonical=True)
    tx_hash = hashlib.blake2b(encoded, digest_size=32).digest()
    witnesses = [[signer.public_key, signer.sign(tx_hash)], *more.get("witnesses", [])]
    witness_set = cbor2.dumps({0: cbor2.CBORTag(258, witnesses), **more.get("witness_set", {})})
    return bytes(b"\x84" + encoded + witness_set + more.get("tail", b"\xf5\xf6"))


def body_of(plan: Plan) -> Body:
    body = cbor2.loads(plan.body)
    return {**body, 0: [(coin.tx_id, coin.index) for coin in plan.inputs]}


def shift(body: Body, place: int, lovelace: int) -> None:
    """Move lovelace between an output and the change, so that the transaction still balances."""
    add(body[1][place], lovelace)
    add(body[1][-1], -lovelace)


def add(output: list[Any], lovelace: int) -> None:
    if isinstance(output[1], list):
        output[1][0] += lovelace
    else:
        output[1] += lovelace


def fee(body: Body, lovelace: int) -> None:
    body[2] += lovelace
    add(body[1][-1], -lovelace)


def extra_output(body: Body) -> None:
    body[1].insert(2, [payee(77).raw, ADA])
    add(body[1][-1], -ADA)


def drop_split(body: Body) -> None:
    add(body[1][-1], body[1].pop(1)[1])


def swap(body: Body) -> None:
    body[1][0], body[1][1] = body[1][1], body[1][0]


def other_address(place: int) -> Callable[[Body], None]:
    def bend(body: Body) -> None:
        body[1][place][0] = payee(77).raw

    return bend


def steal_token(body: Body) -> None:
    policy = bytes.fromhex(ASSETS[40][:56])
    del body[1][-1][1][1][policy]


def token_to_payee(body: Body) -> None:
    policy, name = bytes.fromhex(ASSETS[40][:56]), bytes.fromhex(ASSETS[40][56:])
    body[1][-1][1][1][policy][name] -= 1
    body[1][0][1] = [body[1][0][1], {policy: {name: 1}}]


BENT: dict[str, Callable[[Body], Any]] = {
    "amount one more": lambda body: shift(body, 0, 1),
    "amount one less": lambda body: shift(body, 0, -1),
    "split one more": lambda body: shift(body, 1, 1),
    "amount without balance": lambda body: add(body[1][0], 1),
    "change burnt": lambda body: add(body[1][-1], -1),
    "paid to another address": other_address(0),
    "split to another address": other_address(1),
    "change to another address": other_address(-1),
    "split missing": drop_split,
    "outputs swapped": swap,
    "an output too many": extra_output,
    "fee one more": lambda body: fee(body, 1),
    "fee one less": lambda body: fee(body, -1),
    "fee far too high": lambda body: fee(body, ADA),
    "another TTL": lambda body: body.update({3: TTL_SLOT + 1}),
    "no TTL": lambda body: body.pop(3),
    "another network": lambda body: body.update({15: 1}),
    "no network": lambda body: body.pop(15),
    "an input less": lambda body: body[0].pop(),
    "an input more": lambda body: body[0].append(("33" * 32, 0)),
    "another input": lambda body: body[0].__setitem__(0, ("11" * 32, 1)),
    "an input twice": lambda body: body[0].append(body[0][0]),
    "change without a token": steal_token,
    "a token for the payee": token_to_payee,
    "a certificate": lambda body: body.update({4: []}),
    "a withdrawal": lambda body: body.update({5: {OWN.raw[:29]: 5}}),
    "collateral": lambda body: body.update({13: [[bytes(32), 0]]}),
    "an auxiliary data hash": lambda body: body.update({7: bytes(32)}),
    "a start of validity": lambda body: body.update({8: 5}),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bent_body_is_killed_although_it_is_signed_properly(name: str) -> None:
    body = body_of(PLAN)
    check(signed(body), PLAN, SIGNER.public_key)
    BENT[name](body)
    with pytest.raises(CheckFailed):
        check(signed(body), PLAN, SIGNER.public_key)


@pytest.mark.parametrize("name", ["amount one more", "paid to another address", "another TTL", "split missing"])
def test_a_plan_that_was_bent_with_its_bytes_is_killed_by_what_was_asked(name: str) -> None:
    """The plan's own outputs agree with the bytes, its `asked` does not: a bug in the laying of outputs."""
    outputs = {
        "amount one more": pay(10 * ADA + 1, 2 * ADA),
        "split missing": pay(10 * ADA),
        "another TTL": pay(10 * ADA, 2 * ADA),
        "paid to another address": [Output("pay_to", payee(9), "lovelace", 10 * ADA), *pay(1, 2 * ADA)[1:]],
    }[name]
    frame = {**FRAME, "ttl_slot": TTL_SLOT + (name == "another TTL")}
    wrong = build(COINS, COINS[1], outputs, **frame)
    bent = replace(wrong, asked=PLAN.asked, frame=PLAN.frame)
    with pytest.raises(CheckFailed):
        check(sign(bent, SIGNER), bent, SIGNER.public_key)


def witness_bends() -> dict[str, bytes]:
    body, good = body_of(PLAN), sign(PLAN, SIGNER)
    other = signer_of(7)
    tx_hash = bytes.fromhex(PLAN.tx_id)
    stray = [other.public_key, other.sign(tx_hash)]
    untagged = good.replace(b"\xa1\x00\xd9\x01\x02\x81", b"\xa1\x00\x81")
    fee_form, wide_form = cbor2.dumps(PLAN.fee_lovelace), b"\x1b" + PLAN.fee_lovelace.to_bytes(8, "big")
    return {
        "signed by another key": signed(body, other),
        "the right key, another's signature": good.replace(SIGNER.sign(tx_hash), stray[1]),
        "a second witness": signed(body, witnesses=[stray]),
        "the same witness twice": signed(body, witnesses=[[SIGNER.public_key, SIGNER.sign(tx_hash)]]),
        "a native script": signed(body, witness_set={1: [[0, bytes(28)]]}),
        "not valid": signed(body, tail=b"\xf4\xf6"),
        "auxiliary data": signed(body, tail=b"\xf5\xa1\x01\x02"),
        "a byte behind": good + b"\x00",
        "a byte short": good[:-1],
        "no bytes": b"",
        "a set without its tag": untagged,
        "a fee in a longer form": good.replace(b"\x02" + fee_form, b"\x02" + wide_form),
        "an indefinite array": b"\x9f" + good[1:] + b"\xff",
        "nested beyond reason": b"\x84" + b"\x81" * 16_000,
    }


@pytest.mark.parametrize("name", witness_bends())
def test_bent_witnesses_and_forms_are_killed(name: str) -> None:
    with pytest.raises(CheckFailed):
        check(witness_bends()[name], PLAN, SIGNER.public_key)


@pytest.mark.parametrize("plan", [PLAN, TOKEN_PLAN], ids=["ada", "token"])
def test_no_flipped_bit_survives(plan: Plan) -> None:
    raw = sign(plan, SIGNER)
    check(raw, plan, SIGNER.public_key)
    for bit in range(0, 8 * len(raw), 3):
        bent = bytearray(raw)
        bent[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckFailed):
            check(bytes(bent), plan, SIGNER.public_key)


def test_the_bounds_of_the_frame_are_looked_at_again() -> None:
    raw = sign(PLAN, SIGNER)
    for parameters, cap in ((Parameters(), 170_000), (Parameters(max_tx_size=300), 900_000)):
        frame = Frame(OWN, TTL_SLOT, 0, parameters, cap)
        bent = replace(PLAN, frame=frame)
        with pytest.raises(CheckFailed):
            check(raw, bent, SIGNER.public_key)


def test_a_plan_that_takes_its_coins_for_others_is_killed() -> None:
    first, second = PLAN.inputs
    richer = replace(second, lovelace=second.lovelace + 1)
    poorer = replace(first, assets=first.assets[1:])
    for inputs in ((first, richer), (poorer, second)):
        with pytest.raises(CheckFailed, match="out of balance"):
            check(sign(PLAN, SIGNER), replace(PLAN, inputs=inputs), SIGNER.public_key)


def test_another_id_and_another_anchor_are_killed() -> None:
    for bent in (replace(PLAN, tx_id="00" * 32), replace(PLAN, anchor=Coin("33" * 32, 0, 5 * ADA))):
        with pytest.raises(CheckFailed, match=r"the transaction id|the anchor"):
            check(sign(PLAN, SIGNER), bent, SIGNER.public_key)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a fee in a longer form", "longer than it need be"),
        ("a byte behind", "nothing stands behind"),
        ("a byte short", "nothing stands behind"),
        ("not valid", "true and null"),
        ("an indefinite array", "array of four"),
        ("a set without its tag", "not a set"),
        ("a native script", "other witnesses"),
    ],
)
def test_the_reader_itself_refuses_other_forms(name: str, why: str) -> None:
    with pytest.raises(Undecodable, match=why):
        decode(witness_bends()[name])


def test_the_reader_agrees_with_cbor2_on_random_transactions() -> None:
    rnd = random.Random(11)
    read = 0
    while read < 150:
        wallet = random_wallet(rnd, rnd.randrange(1, 60))
        try:
            plan = select(Coins(wallet), random_outputs(rnd, wallet), **FRAME)
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
        assert (found.fee_lovelace, found.ttl_slot, found.network_id) == (body[2], body[3], body[15])
        assert found.body == plan.body
        read += 1


def test_the_reader_refuses_what_is_not_in_canonical_order() -> None:
    raw = sign(TOKEN_PLAN, SIGNER)
    body = cbor2.loads(TOKEN_PLAN.body)
    policies = body[1][-1][1][1]
    assert len(policies) == 2
    turned = dict(reversed(policies.items()))
    bent = raw.replace(cbor2.dumps(policies), cbor2.dumps(turned))
    assert bent != raw
    with pytest.raises(Undecodable, match="out of order"):
        decode(bent)
