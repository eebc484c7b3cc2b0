"""Transactions with one thing changed, properly signed or not."""

import hashlib
from collections.abc import Callable
from typing import Any

import cbor2

from kit.wallet import ASSETS, OWN, SIGNER, TTL_SLOT, pay, payee, signer_of
from payagent.core.invoice import Output
from payagent.wallet.keys import SoftwareSigner
from payagent.wallet.transaction import build
from payagent.wallet.tx_plan import TxPlan
from payagent.wallet.utxo_index import Utxo
from sim.signing import sign

ADA = 1_000_000
UTXOS = (
    Utxo("11" * 32, 0, 30 * ADA, ((ASSETS[1], 500), (ASSETS[40], 2**40))),
    Utxo("22" * 32, 1, 20 * ADA),
)
FRAME: dict[str, Any] = {"change": OWN, "ttl_slot": TTL_SLOT, "network_id": 0}


def planned(outputs: list[Output]) -> TxPlan:
    return build(UTXOS, UTXOS[1], outputs, **FRAME)


PLAN = planned(pay(10 * ADA, 2 * ADA))
Body = dict[int, Any]


def signed(body: Body, signer: SoftwareSigner = SIGNER, **more: Any) -> bytes:
    """Canonical bytes of any body, properly signed, as a bug before signing would make them."""
    inputs = sorted([bytes.fromhex(tx_id), index] for tx_id, index in body[0])
    encoded = cbor2.dumps({**body, 0: cbor2.CBORTag(258, inputs)}, canonical=True)
    tx_hash = hashlib.blake2b(encoded, digest_size=32).digest()
    witnesses = [[signer.public_key, signer.sign_hash(tx_hash)], *more.get("witnesses", [])]
    witness_set = cbor2.dumps({0: cbor2.CBORTag(258, witnesses), **more.get("witness_set", {})})
    return bytes(b"\x84" + encoded + witness_set + more.get("tail", b"\xf5\xf6"))


def body_of(plan: TxPlan) -> Body:
    body = cbor2.loads(plan.body)
    return {**body, 0: [(utxo.tx_id, utxo.index) for utxo in plan.inputs]}


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


def witness_bends() -> dict[str, bytes]:
    body, good = body_of(PLAN), sign(PLAN, SIGNER)
    other = signer_of(7)
    tx_hash = bytes.fromhex(PLAN.tx_id)
    stray = [other.public_key, other.sign_hash(tx_hash)]
    untagged = good.replace(b"\xa1\x00\xd9\x01\x02\x81", b"\xa1\x00\x81")
    fee_form, wide_form = cbor2.dumps(PLAN.fee_lovelace), b"\x1b" + PLAN.fee_lovelace.to_bytes(8, "big")
    return {
        "signed by another key": signed(body, other),
        "the right key, another's signature": good.replace(SIGNER.sign_hash(tx_hash), stray[1]),
        "a second witness": signed(body, witnesses=[stray]),
        "the same witness twice": signed(body, witnesses=[[SIGNER.public_key, SIGNER.sign_hash(tx_hash)]]),
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
