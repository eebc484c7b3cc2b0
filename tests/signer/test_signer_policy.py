"""What the signer signs, by its own reading of the bytes: a table of refusals, and every bent bit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from wallet.worlds import ASSETS, OWN, SIGNER, own_address, pay, payee

from payagent.core.address import Address
from payagent.devnet.decode import decode_tx
from payagent.devnet.model import LedgerError
from payagent.signer.policy import Forbidden, Policy
from payagent.wallet import cbor
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.transaction import select, sweep

ADA = 1_000_000
TOKEN, FREE = sorted(ASSETS[1:3])
POLICY = Policy(OWN.raw, {"lovelace": 20 * ADA, TOKEN: 500})
COIN = Coin("ab" * 32, 0, 100 * ADA)


@dataclass(frozen=True)
class Body:
    """A body, laid by hand: by default one payment of 5 ADA with its change."""

    outputs: tuple[tuple[bytes, int, tuple[tuple[str, int], ...]], ...] = (
        (payee(0).raw, 5 * ADA, ()),
        (OWN.raw, 94 * ADA, ()),
    )
    fee: int = 200_000
    network_id: int = 0
    inputs: int = 1
    more: bytes = b""

    @property
    def raw(self) -> bytes:
        laid = [
            cbor.output(address, lovelace, cbor.multiasset(assets) if assets else b"")
            for address, lovelace, assets in self.outputs
        ]
        coins = [cbor.tx_input("ab" * 32, index) for index in range(self.inputs)]
        return b"".join((
            b"\xa5\x00", cbor.TAGGED_SET, cbor.head(4, len(coins)), *coins,
            b"\x01", cbor.head(4, len(laid)), *laid,
            b"\x02", cbor.uint(self.fee), b"\x03", cbor.uint(4000), b"\x0f", cbor.uint(self.network_id), self.more,
        ))  # fmt: skip


GOOD = Body()
PAID, CHANGE = GOOD.outputs
ELSEWHERE = payee(7).raw


def paying(*outputs: tuple[bytes, int, tuple[tuple[str, int], ...]]) -> Body:
    return replace(GOOD, outputs=outputs)


REFUSED: dict[str, tuple[Body, int, str]] = {
    "foreign change": (paying(PAID, (ELSEWHERE, 94 * ADA, ())), 1, "output 1 is change"),
    "change with another stake key": (
        paying(PAID, (OWN.raw[:29] + bytes(28), 94 * ADA, ())),
        1,
        "output 1 is change",
    ),
    "change without the stake key": (
        paying(PAID, (b"\x60" + OWN.raw[1:29], 94 * ADA, ())),
        1,
        "output 1 is change",
    ),
    "a payment where all is to come back": (GOOD, 0, "output 0 is change"),
    "a payment behind the change": (paying(CHANGE, PAID), 1, "output 1 is change"),
    "a fee above its cap": (replace(GOOD, fee=900_001), 1, "fee is 900001"),
    "more ADA than the cap": (paying((PAID[0], 20 * ADA, ()), CHANGE), 1, "20200000 with its fee"),
    "more ADA than the cap, in two outputs": (
        paying((PAID[0], 10 * ADA, ()), (ELSEWHERE, 10 * ADA, ()), CHANGE),
        2,
        "20200000 with its fee",
    ),
    "more of a token than the cap": (paying((PAID[0], 2 * ADA, ((TOKEN, 501),)), CHANGE), 1, "501 with its fee"),
    "a token's cap, in two outputs": (
        paying((PAID[0], 2 * ADA, ((TOKEN, 250),)), (ELSEWHERE, 2 * ADA, ((TOKEN, 251),)), CHANGE),
        2,
        "501 with its fee",
    ),
    "another network": (replace(GOOD, network_id=1), 1, "network id 1"),
    "an address of another network": (
        paying((payee(0, network_id=1).raw, 5 * ADA, ()), CHANGE),
        1,
        "another network",
    ),
    "a script": (paying((b"\x10" + PAID[0][1:], 5 * ADA, ()), CHANGE), 1, "no key address"),
    "an address that is cut off": (paying((PAID[0][:-1], 5 * ADA, ()), CHANGE), 1, "no key address"),
    "an address of no bytes": (paying((b"", 5 * ADA, ()), CHANGE), 1, "no key address"),
    "nothing spent": (replace(GOOD, inputs=0), 1, "spends nothing"),
    "something behind the body": (replace(GOOD, more=b"\x00"), 1, "no plain payment"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_the_policy_forbids_is_refused_with_why(name: str) -> None:
    body, paid, why = REFUSED[name]
    with pytest.raises(Forbidden) as caught:
        POLICY.require(body.raw, paid)
    assert why in str(caught.value)


def test_what_is_at_the_caps_is_allowed_and_what_has_none_is_not_bounded() -> None:
    POLICY.require(GOOD.raw, 1)
    POLICY.require(paying((PAID[0], 20 * ADA - GOOD.fee, ((TOKEN, 500), (FREE, 2**62))), CHANGE).raw, 1)
    POLICY.require(paying(CHANGE, CHANGE).raw, 0)
    POLICY.require(replace(GOOD, fee=900_000).raw, 1)


def own_bodies() -> Iterator[tuple[bytes, int]]:
    """What the wallet itself builds: a payment with shares, one that commits to something, a split, a sweep."""
    for outputs, more in ((pay(3 * ADA, ADA, ADA), {}), (pay(3 * ADA), {"commitment": bytes(32)})):
        plan = select(Coins([COIN]), outputs, change=OWN, ttl_slot=4000, network_id=0, **more)
        yield plan.body, plan.paid
    for to in (OWN, payee(3)):
        small = Coins([replace(COIN, lovelace=15 * ADA)])
        plan = sweep(small, to, own=OWN, ttl_slot=4000, network_id=0)
        yield plan.body, plan.paid


def test_all_that_the_wallet_builds_within_the_caps_is_allowed() -> None:
    paid = []
    for body, count in own_bodies():
        POLICY.require(body, count)
        paid.append(count)
    assert paid == [3, 1, 0, 1]


@pytest.mark.parametrize("change", [payee(9), own_address(1)], ids=["a stranger", "another network"])
def test_a_wallet_whose_own_address_is_a_wrong_one_is_not_signed_for(change: Address) -> None:
    """The wallet's check would pass: it compares with a plan of the same mistake."""
    plan = select(Coins([COIN]), pay(3 * ADA), change=change, ttl_slot=4000, network_id=0)
    with pytest.raises(Forbidden, match="output 1 is change"):
        POLICY.require(plan.body, plan.paid)


def test_whatever_bit_is_bent_nothing_is_allowed_that_another_reader_finds_too_much() -> None:
    allowed = 0
    for body, paid in own_bodies():
        for bit in range(8 * len(body)):
            bent = bytearray(body)
            bent[bit // 8] ^= 1 << bit % 8
            try:
                POLICY.require(bytes(bent), paid)
            except Forbidden:
                continue
            allowed += 1
            witness = (
                b"\xa1\x00" + cbor.TAGGED_SET + b"\x81\x82\x58\x20" + SIGNER.public_key + b"\x58\x40" + bytes(64)
            )
            try:
                tx = decode_tx(b"\x84" + bytes(bent) + witness + b"\xf5\xf6")
            except LedgerError:
                continue
            left = [output for output in tx.outputs if output.address != OWN.raw]
            assert sum(output.lovelace for output in left) + tx.fee_lovelace <= 20 * ADA
            assert tx.fee_lovelace <= 900_000
            assert all(output.address == OWN.raw for output in tx.outputs[paid:])
    assert allowed > 1000
