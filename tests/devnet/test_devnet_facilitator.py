"""The devnet's x402 facilitator: honest payments settle, invalid ones are refused with the scheme's error."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from kit.devnet import HandClock
from ledger_check.txkit import Draft, Key, Out, OutRef, asset

from payagent.core.address import encode_address
from payagent.devnet.facilitator import Facilitator, Settlement
from payagent.devnet.faults import Switches
from payagent.devnet.node import Node

ADA = 1_000_000
PRICE = 10 * ADA
TOKEN = asset(1)
ALICE, BOB, MERCHANT = Key.extended(1), Key.extended(2), Key.extended(3)
PAY_TO = MERCHANT.address()
PAYLOAD = "invalid_exact_cardano_payload"
START_SLOT = 1_000


@dataclass
class World:
    """A node with three UTxOs of Alice's, one of them with tokens, and one of Bob's."""

    clock: HandClock = field(default_factory=HandClock)
    node: Node = field(init=False)
    coins: list[OutRef] = field(init=False)

    def __post_init__(self) -> None:
        self.node = Node(self.clock, Switches())
        self.clock.forward(START_SLOT)
        own, other = ALICE.address(), BOB.address()
        funded = [
            self.node.faucet(own, 100 * ADA, {}),
            self.node.faucet(own, 50 * ADA, {}),
            self.node.faucet(own, 5 * ADA, {TOKEN: 1_000}),
            self.node.faucet(other, 70 * ADA, {}),
        ]
        self.coins = [(tx_id, 0) for tx_id in funded]
        self.node.make_blocks(1)

    def outs(self) -> dict[OutRef, Out]:
        found = {ref: self.node.chain.utxos.get(ref) for ref in self.coins}
        return {ref: Out(out.address, out.lovelace, out.assets) for ref, out in found.items() if out is not None}

    def draft(self) -> Draft:
        """An honest payment: the price from Alice's first UTxO, with change."""
        outputs = (Out(PAY_TO, PRICE), Out(ALICE.address(), 0))
        draft = Draft((self.coins[0],), outputs, (ALICE,), ttl=START_SLOT + 600)
        return draft.balanced(self.outs())


def required(**changes: object) -> dict[str, object]:
    return {
        "scheme": "exact",
        "network": "cardano:devnet",
        "amount": str(PRICE),
        "asset": "lovelace",
        "payTo": encode_address(PAY_TO).text,
        "maxTimeoutSeconds": 600,
        "extra": {"confirmationPolicy": {"l1Confirmations": 1}},
    } | changes


def payment(tx: Draft | bytes, accepted: dict[str, object] | None = None, **payload: object) -> dict[str, object]:
    raw = tx.tx() if isinstance(tx, Draft) else tx
    nonce = f"{tx.inputs[0][0]}#{tx.inputs[0][1]}" if isinstance(tx, Draft) else f"{'0' * 64}#0"
    return {
        "x402Version": 2,
        "accepted": required() if accepted is None else accepted,
        "payload": {"transaction": base64.b64encode(raw).decode(), "nonce": nonce} | payload,
    }


def verify(
    requirements: dict[str, object], offered: dict[str, object], node: Node, network: str = "cardano:devnet"
) -> str | None:
    return Facilitator(node, network).verify(requirements, offered)


@pytest.fixture
def world() -> World:
    return World()


def test_an_honest_payment_is_accepted(world: World) -> None:
    assert verify(required(), payment(world.draft()), world.node) is None
    assert not world.node.chain.mempool


def test_a_token_payment_is_accepted(world: World) -> None:
    wire = f"{TOKEN[:56]}.{TOKEN[56:]}"
    terms = required(asset=wire, amount="300")
    outputs = (Out(PAY_TO, 2 * ADA, {TOKEN: 300}), Out(ALICE.address(), 0))
    draft = Draft((world.coins[2],), outputs, (ALICE,), ttl=START_SLOT + 600).balanced(world.outs())
    assert verify(terms, payment(draft, terms), world.node) is None
    more = required(asset=wire, amount="301")
    assert verify(more, payment(draft, more), world.node) == f"{PAYLOAD}_amount_insufficient"


# --- invalid transactions ----------------------------------------------------------------------------------------


def to(world: World, *outputs: Out, **changes: Any) -> Draft:
    draft = world.draft().with_(outputs=(*outputs, Out(ALICE.address(), 0)), **changes)
    return draft.balanced(world.outs())


def unsigned(world: World) -> bytes:
    draft = world.draft()
    return draft.tx(draft.witness_set())


def forged(world: World) -> bytes:
    """Alice's signature of another transaction."""
    draft = world.draft()
    return draft.tx(draft.witness_set(draft.with_(fee=draft.fee + 1).witness(ALICE)))


def by_another(world: World) -> Draft:
    """Bob's valid signature for a UTxO of Alice's."""
    return world.draft().with_(keys=(BOB,))


def with_spent_input(world: World) -> Draft:
    """Two UTxOs, the second of which was spent in a block."""
    away = Draft((world.coins[1],), (Out(ALICE.address(), 0),), (ALICE,)).balanced(world.outs())
    both = world.draft().with_(inputs=(world.coins[0], world.coins[1])).balanced(world.outs())
    world.node.submit(away.tx())
    world.node.make_blocks(1)
    return both


def from_mempool(world: World) -> Draft:
    """The change of a transaction that is in no block yet."""
    parent = world.draft()
    world.node.submit(parent.tx())
    change = (parent.tx_id, 1)
    return world.draft().with_(inputs=(change,)).balanced({change: parent.outputs[1]})


def unbalanced(world: World) -> Draft:
    draft = world.draft()
    first, change = draft.outputs
    return draft.with_(outputs=(first, replace(change, lovelace=change.lovelace - 1)))


BENT: dict[str, tuple[Callable[[World], Draft | bytes], str]] = {
    "not a transaction": (lambda _: b"\x84\x00", "transaction_decode_failed"),
    "cut short": (lambda world: world.draft().tx()[:-1], "transaction_decode_failed"),
    "something behind it": (lambda world: world.draft().tx() + b"\x00", "transaction_decode_failed"),
    "the same input twice": (
        lambda world: world.draft().with_(inputs=(world.coins[0],) * 2),
        "transaction_decode_failed",
    ),
    "mints": (lambda world: world.draft().with_(extra=((b"\x09", b"\xa0"),)), "phase1_invalid"),
    "for mainnet": (lambda world: to(world, Out(PAY_TO, PRICE), body_network_id=1), "network_id_mismatch"),
    "unsigned": (unsigned, "unsigned"),
    "signature of another transaction": (forged, "invalid_signature"),
    "marked as a failed script": (lambda world: world.draft().with_(is_valid=False), "phase2_invalid"),
    "over": (lambda world: to(world, Out(PAY_TO, PRICE), ttl=START_SLOT), "ttl_expired"),
    "over too late": (lambda world: to(world, Out(PAY_TO, PRICE), ttl=START_SLOT + 601), "ttl_too_far"),
    "without an end": (lambda world: to(world, Out(PAY_TO, PRICE), ttl=None), "ttl_too_far"),
    "starts later": (lambda world: to(world, Out(PAY_TO, PRICE), start=START_SLOT + 1), "not_yet_valid"),
    "an input that was spent": (with_spent_input, "input_not_available"),
    "an input in no block": (from_mempool, "nonce_not_on_chain"),
    "the nonce's owner did not sign": (by_another, "payer_not_witness"),
    "value from nothing": (unbalanced, "value_not_conserved"),
    "fee too small": (lambda world: world.draft().balanced(world.outs(), fee=150_000), "fee_below_minimum"),
    "output too small": (
        lambda world: to(world, Out(PAY_TO, PRICE), Out(BOB.address(), 500_000)),
        "min_utxo_insufficient",
    ),
    "metadata without its hash": (
        lambda world: to(world, Out(PAY_TO, PRICE), aux=b"\xa0", aux_hash=None),
        "phase1_invalid",
    ),
    "to somebody else": (lambda world: to(world, Out(BOB.address(), PRICE)), "recipient_mismatch"),
    "to the same key, another stake part": (
        lambda world: to(world, Out(MERCHANT.address(base=False), PRICE)),
        "recipient_mismatch",
    ),
    "one lovelace short": (lambda world: to(world, Out(PAY_TO, PRICE - 1)), "amount_insufficient"),
    "in two halves": (
        lambda world: to(world, Out(PAY_TO, PRICE // 2), Out(PAY_TO, PRICE // 2)),
        "amount_insufficient",
    ),
}


@pytest.mark.parametrize("name", BENT)
def test_an_invalid_transaction_is_refused_with_its_reason(world: World, name: str) -> None:
    bend, reason = BENT[name]
    bent = bend(world)
    nonce = f"{bent.inputs[0][0]}#{bent.inputs[0][1]}" if isinstance(bent, Draft) else f"{world.coins[0][0]}#0"
    before = list(world.node.chain.mempool)
    facilitator = Facilitator(world.node)
    offered = payment(bent, nonce=nonce)
    assert facilitator.verify(required(), offered) == f"{PAYLOAD}_{reason}"
    assert facilitator.settle(required(), offered, "call").reason == f"{PAYLOAD}_{reason}"
    assert list(world.node.chain.mempool) == before


def test_a_payment_in_another_asset_is_refused(world: World) -> None:
    other = asset(2)
    terms = required(asset=f"{other[:56]}.{other[56:]}", amount="1")
    assert verify(terms, payment(world.draft(), terms), world.node) == f"{PAYLOAD}_asset_mismatch"


# --- invalid payloads --------------------------------------------------------------------------------------------

Words = Callable[[World], tuple[dict[str, object], dict[str, object]]]


def said(key: str, value: object) -> Words:
    """An honest payment with one field changed, in its payload or at its top level."""

    def make(world: World) -> tuple[dict[str, object], dict[str, object]]:
        honest = payment(world.draft())
        if key in honest:
            return required(), honest | {key: value}
        return required(), payment(world.draft(), **{key: value})

    return make


def asked(**changes: object) -> Words:
    """Other requirements, accepted unchanged."""
    terms = required(**changes)
    return lambda world: (terms, payment(world.draft(), terms))


def accepted(**changes: object) -> Words:
    """The accepted entry differs from the requirements."""
    return lambda world: (required(), payment(world.draft(), required(**changes)))


WORDS: dict[str, tuple[Words, str]] = {
    "version 1": (said("x402Version", 1), f"{PAYLOAD}_unsupported_version"),
    "version true": (said("x402Version", True), f"{PAYLOAD}_unsupported_version"),
    "version in text": (said("x402Version", "2"), f"{PAYLOAD}_unsupported_version"),
    "another scheme": (accepted(scheme="upto"), "unsupported_scheme"),
    "another scheme is required": (asked(scheme="upto"), "unsupported_scheme"),
    "another network": (accepted(network="cardano:preprod"), "network_mismatch"),
    "another network on both sides": (asked(network="cardano:preprod"), "network_mismatch"),
    "an alias of another network": (asked(network="cip34:0-1"), "network_mismatch"),
    "a network in capitals": (asked(network="Cardano:devnet"), "network_mismatch"),
    "nothing accepted": (said("accepted", None), "unsupported_scheme"),
    "an amount of zero": (asked(amount="0"), "invalid_exact_cardano_requirements"),
    "an amount that is no text": (asked(amount=10_000_000), "invalid_exact_cardano_requirements"),
    "an asset in capitals": (asked(asset="AB" * 28 + "."), "invalid_exact_cardano_requirements"),
    "no time": (asked(maxTimeoutSeconds=0), "invalid_exact_cardano_requirements"),
    "a depth of 21": (
        asked(extra={"confirmationPolicy": {"l1Confirmations": 21}}),
        "invalid_exact_cardano_requirements_policy",
    ),
    "a policy that is no object": (
        asked(extra={"confirmationPolicy": 1}),
        "invalid_exact_cardano_requirements_policy",
    ),
    "a script method": (asked(extra={"assetTransferMethod": "script"}), "unsupported_scheme"),
    "the payer submits, unasked": (said("submissionMode", "client"), PAYLOAD),
    "the server shall submit, against the terms": (asked(extra={"submissionPolicy": "client"}), PAYLOAD),
    "no transaction": (said("transaction", None), PAYLOAD),
    "a transaction in hex": (said("transaction", "84a4!"), f"{PAYLOAD}_transaction_decode_failed"),
    "no nonce": (said("nonce", None), f"{PAYLOAD}_nonce_invalid"),
    "a nonce without its index": (said("nonce", "ab" * 32), f"{PAYLOAD}_nonce_invalid"),
    "a nonce that is not spent": (said("nonce", "ab" * 32 + "#0"), f"{PAYLOAD}_nonce_not_in_inputs"),
}


@pytest.mark.parametrize("name", WORDS)
def test_an_invalid_payload_is_refused_with_its_reason(world: World, name: str) -> None:
    make, reason = WORDS[name]
    assert verify(*make(world), world.node) == reason


@pytest.mark.parametrize("extra", [None, {}, {"assetTransferMethod": "default"}, {"areFeesSponsored": False}])
def test_an_extra_that_states_the_defaults_is_accepted(world: World, extra: object) -> None:
    terms = required(extra=extra)
    assert verify(terms, payment(world.draft(), terms), world.node) is None


def test_a_cip34_name_is_the_same_network_as_its_canonical_name(world: World) -> None:
    terms = required(network="cardano:preprod")
    offered = payment(world.draft(), required(network="cip34:0-1"))
    assert verify(terms, offered, world.node, "cardano:preprod") is None
    assert verify(terms, offered, world.node, "cardano:preview") == "network_mismatch"


def test_the_nonce_may_be_in_upper_case(world: World) -> None:
    draft = world.draft()
    assert verify(required(), payment(draft, nonce=f"{draft.inputs[0][0].upper()}#0"), world.node) is None


# --- settlement --------------------------------------------------------------------------------------------------


def outcome(settled: Settlement) -> tuple[str | None, int | None]:
    return settled.reason, settled.confirmations


def policy(confirmations: int) -> dict[str, object]:
    return required(extra={"confirmationPolicy": {"l1Confirmations": confirmations}})


def test_a_payment_is_submitted_once_and_pending_until_it_is_deep_enough(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(1)
    draft = world.draft()
    offered = payment(draft, terms)
    settle = lambda: facilitator.settle(terms, offered, "call")  # noqa: E731
    assert outcome(settle()) == ("settlement_pending", -1)
    assert list(world.node.chain.mempool) == [draft.tx_id]
    assert outcome(settle()) == ("settlement_pending", -1)
    world.node.make_blocks(1)
    pending = settle()
    assert pending.as_json() == {
        "success": False,
        "errorReason": "settlement_pending",
        "transaction": draft.tx_id,
        "network": "cardano:devnet",
        "payer": encode_address(ALICE.address()).text,
        "extra": {"status": "pending", "transactionId": draft.tx_id, "confirmations": 0},
    }
    world.node.make_blocks(1)
    assert settle().as_json() == {
        "success": True,
        "transaction": draft.tx_id,
        "network": "cardano:devnet",
        "payer": encode_address(ALICE.address()).text,
        "extra": {"status": "confirmed", "confirmations": 1},
    }


@pytest.mark.parametrize(("confirmations", "blocks"), [(-1, 0), (0, 1), (1, 2), (3, 4)])
def test_the_confirmation_policy_sets_how_many_blocks_to_wait(
    world: World, confirmations: int, blocks: int
) -> None:
    facilitator, terms = Facilitator(world.node), policy(confirmations)
    offered = payment(world.draft(), terms)
    for _ in range(blocks):
        assert facilitator.settle(terms, offered, "call").reason == "settlement_pending"
        world.node.make_blocks(1)
    assert outcome(facilitator.settle(terms, offered, "call")) == (None, confirmations)


def test_a_transaction_pays_for_one_request(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(-1)
    offered = payment(world.draft(), terms)
    first = facilitator.settle(terms, offered, "one")
    assert first.reason is None
    assert facilitator.settle(terms, offered, "two", replays=True).reason == "duplicate_settlement"
    facilitator.served(first.tx_id)
    assert facilitator.settle(terms, offered, "one").reason == "duplicate_settlement"
    assert facilitator.settle(terms, offered, "one", replays=True).reason is None


def test_other_bytes_of_the_same_transaction_are_the_same_payment(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(-1)
    draft = world.draft()
    facilitator.served(facilitator.settle(terms, payment(draft, terms), "call").tx_id)
    again = draft.tx(draft.witness_set(draft.witness(ALICE), draft.witness(BOB)))
    nonce = f"{draft.inputs[0][0]}#0"
    settled = facilitator.settle(terms, payment(again, terms, nonce=nonce), "call")
    assert outcome(settled) == ("duplicate_settlement", None)


def test_a_transaction_the_node_refuses_is_rejected_and_never_submitted_again(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(0)
    rival = to(world, Out(BOB.address(), 20 * ADA), ttl=START_SLOT + 5)
    world.node.submit(rival.tx())
    offered = payment(world.draft(), terms)
    assert facilitator.verify(terms, offered) is None
    assert facilitator.settle(terms, offered, "call").reason == "exact_cardano_settlement_definitively_rejected"
    world.clock.forward(5)
    world.node.tick()
    assert facilitator.settle(terms, offered, "call").reason == "exact_cardano_settlement_definitively_rejected"
    assert not world.node.chain.mempool


def test_a_rolled_back_payment_is_pending_and_fails_after_its_ttl(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(0)
    offered = payment(world.draft(), terms)
    facilitator.settle(terms, offered, "call")
    world.node.make_blocks(1)
    assert facilitator.settle(terms, offered, "call").reason is None
    world.node.chain.rollback(1)
    assert outcome(facilitator.settle(terms, offered, "call"))[0] == "settlement_pending"
    assert len(world.node.chain.mempool) == 1, "it was submitted again"
    world.node.chain.mempool.clear()
    world.clock.forward(600)
    world.node.tick()
    assert facilitator.settle(terms, offered, "call").reason == "exact_cardano_settlement_failed"


def test_a_payment_stays_pending_when_its_nonce_was_rolled_back_too(world: World) -> None:
    facilitator, terms = Facilitator(world.node), policy(0)
    offered = payment(world.draft(), terms)
    facilitator.settle(terms, offered, "call")
    world.node.make_blocks(1)
    world.node.chain.rollback(2)
    assert outcome(facilitator.settle(terms, offered, "call")) == ("settlement_pending", None)


def test_the_facilitator_does_not_submit_when_the_payer_submits(world: World) -> None:
    extra = {"submissionPolicy": "client", "confirmationPolicy": {"l1Confirmations": 0}}
    facilitator, terms = Facilitator(world.node), required(extra=extra)
    draft = world.draft()
    offered = payment(draft, terms, submissionMode="client")
    assert outcome(facilitator.settle(terms, offered, "call")) == ("settlement_pending", None)
    assert not world.node.chain.mempool
    world.node.submit(draft.tx())
    world.node.make_blocks(1)
    assert outcome(facilitator.settle(terms, offered, "call")) == (None, 0)
