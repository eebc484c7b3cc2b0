"""The devnet's channels: the validator's rules on the chain, and the merchant's moods over real HTTP."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import cbor2
import httpx
import pytest
from kit.devnet import HandClock, Payer, key_hash, payer
from kit.http import NO_TLS
from nacl.exceptions import BadSignatureError

from payagent.core.address import encode_address
from payagent.devnet.channel_script import (
    SCRIPT,
    SCRIPT_ADDRESS,
    SCRIPT_CBOR,
    SCRIPT_HASH,
    ChannelDatum,
    channel_tag,
    iou_message,
    read_datum,
)
from payagent.devnet.ledger import Chain, LedgerError, OutRef, Params
from payagent.devnet.plutus_data import Constr, write_plutus_data
from payagent.devnet.server import DevnetThread

ALICE, SHOP, EVE = payer("alice"), payer("shop"), payer("eve")
IOU = payer("iou").key
FEE, PERIOD_MS, START_MS = 600_000, 900_000, 1_700_000_000_000
ADD, CLOSE = "d87a9f9fd8799fd87980ffffff", "d87a9f9fd8799fd87b80ffffff"
END, ELAPSE = "d87a9f9fd87a9fd87980ffffff", "d87a9f9fd87a9fd87a80ffffff"
MUTUAL, DEFER = "d87b80", "d87980"


def iou(datum: ChannelDatum, amount: int) -> list[object]:
    return [amount, IOU.sign(iou_message(datum.tag, amount)).signature]


def redeems(step: int, arguments: list[object]) -> str:
    return write_plutus_data(Constr(1, [[Constr(0, [Constr(step, arguments)])]])).hex()


@dataclass
class Bench:
    """A chain with one channel of Alice's at the shop, and transactions built by hand."""

    chain: Chain = field(default_factory=lambda: Chain(Params(system_start_ms=START_MS), 0, 1_000))
    refs: dict[str, OutRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, who in (("alice", ALICE), ("shop", SHOP), ("eve", EVE)):
            self.refs[name] = (self.chain.faucet(who.address.raw, 50_000_000), 0)
        self.refs["script"] = (self.chain.faucet(EVE.address.raw, 50_000_000, script=SCRIPT_CBOR), 0)
        self.chain.make_block()
        tag = channel_tag(self.refs["alice"])
        consumer, provider = key_hash(bytes(ALICE.key.verify_key)), key_hash(bytes(SHOP.key.verify_key))
        key = bytes(IOU.verify_key)
        self.datum = ChannelDatum(SCRIPT_HASH, tag, "lovelace", key, consumer, provider, PERIOD_MS, 0)

    def put(self, datum: ChannelDatum, lovelace: int = 10_000_000) -> OutRef:
        """A channel at any stage: nobody checks how it came there."""
        spent = self.refs.pop("eve")
        left = self.chain.utxos[spent].lovelace - lovelace - FEE
        outs = [self.out(datum, lovelace), {0: EVE.address.raw, 1: left}]
        tx_id = self.chain.submit(self.tx([spent], outs, [EVE]))
        self.chain.make_block()
        self.refs["eve"] = (tx_id, 1)
        return tx_id, 0

    def out(self, datum: ChannelDatum, lovelace: int) -> dict[int, object]:
        return {0: SCRIPT_ADDRESS, 1: lovelace, 2: [1, cbor2.CBORTag(24, datum.encode())]}

    def tx(
        self,
        inputs: list[OutRef],
        outputs: list[Any],
        keys: list[Payer],
        redeemers: dict[OutRef, str] | None = None,
        units: tuple[int, int] = (1_000_000, 400_000_000),
        body: dict[int, object] | None = None,
        attached: bool = False,
    ) -> bytes:
        raw = lambda ref: [bytes.fromhex(ref[0]), ref[1]]  # noqa: E731
        fields: dict[int, object] = {0: [raw(ref) for ref in inputs], 1: outputs, 2: FEE}
        witnesses = b""
        if redeemers:
            rows = b"".join(
                cbor2.dumps([0, sorted(inputs).index(ref)])
                + b"\x82"
                + bytes.fromhex(data)
                + cbor2.dumps(list(units))
                for ref, data in redeemers.items()
            )
            found = bytes([0xA0 + len(redeemers)]) + rows
            views = cbor2.dumps({2: list(self.chain.params.cost_model)})
            fields[11] = blake2b(found + views, digest_size=32).digest()
            fields[13] = [raw(ref) for ref in inputs if ref not in redeemers][:1]
            fields[14] = [key_hash(bytes(who.key.verify_key)) for who in keys]
            fields[18] = [raw(self.refs["script"])]
            witnesses = b"\x05" + found + (b"\x07" + cbor2.dumps([SCRIPT]) if attached else b"")
        fields.update(body or {})
        encoded = cbor2.dumps({key: value for key, value in fields.items() if value is not None})
        tx_id = blake2b(encoded, digest_size=32).digest()
        signed = cbor2.dumps([[bytes(who.key.verify_key), who.key.sign(tx_id).signature] for who in keys])
        return (
            b"\x84"
            + encoded
            + bytes([0xA1 + bool(witnesses) + attached])
            + b"\x00"
            + signed
            + witnesses
            + b"\xf5\xf6"
        )

    def step(
        self,
        old: ChannelDatum,
        new: ChannelDatum | None,
        gone: int,
        data: str,
        who: Payer = ALICE,
        *,
        keys: list[Payer] | None = None,
        held: OutRef | None = None,
        units: tuple[int, int] = (1_000_000, 400_000_000),
        **body: object,
    ) -> str | None:
        """Spend a channel with a redeemer. `gone` leaves it. Returns the refusal."""
        channel = held or self.put(old)
        purse = self.refs["alice" if who is ALICE else "shop"]
        lovelace = self.chain.utxos[channel].lovelace
        kept = 0 if new is None else lovelace - gone
        change = self.chain.utxos[purse].lovelace + lovelace - kept - FEE
        outs = [] if new is None else [self.out(new, kept)]
        outs.append({0: who.address.raw, 1: change})
        given = {int(name[1:]): value for name, value in body.items()}
        raw = self.tx([channel, purse], outs, keys or [who], {channel: data}, units, given)
        try:
            self.chain.submit(raw)
        except LedgerError as refused:
            return str(refused)
        return None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_consumer_adds(bench: Bench) -> None:
    opened = bench.datum.at(0, 5)
    assert bench.step(opened, opened, -1_000_000, ADD) is None


def test_consumer_closes_and_waits_out_the_period(bench: Bench) -> None:
    opened = bench.datum.at(0, 5)
    ends_ms = START_MS + 2_000_000 + PERIOD_MS
    assert bench.step(opened, bench.datum.at(1, 5, ends_ms), 0, CLOSE, _3=2_000) is None
    bench = Bench()
    assert "too early" in str(bench.step(opened, bench.datum.at(1, 5, ends_ms - 1), 0, CLOSE, _3=2_000))


def test_consumer_elapses_from_the_very_slot(bench: Bench) -> None:
    closed = bench.datum.at(1, 5, START_MS + 900_000)
    assert bench.step(closed, None, 0, ELAPSE, _8=900) is None
    bench = Bench()
    assert "too early" in str(bench.step(closed, None, 0, ELAPSE, _8=899))


def test_consumer_ends_what_is_settled(bench: Bench) -> None:
    assert bench.step(bench.datum.at(2), None, 0, END) is None


def test_both_take_a_channel_by_mutual_consent(bench: Bench) -> None:
    assert bench.step(bench.datum.at(0, 5), None, 0, MUTUAL, keys=[ALICE, SHOP]) is None


def test_provider_takes_what_the_iou_says_and_may_give_back(bench: Bench) -> None:
    datum = bench.datum
    assert bench.step(datum, datum.at(0, 5), 5, redeems(1, iou(datum, 5)), SHOP) is None
    bench = Bench()
    assert bench.step(datum.at(0, 5), datum.at(0, 3), -2, redeems(1, iou(datum, 5)), SHOP) is None


def test_provider_settles_a_closed_channel_even_late(bench: Bench) -> None:
    closed = bench.datum.at(1, 5, START_MS)
    assert bench.step(closed, bench.datum.at(2), 2, redeems(3, iou(bench.datum, 7)), SHOP) is None


WRONG: list[tuple[str, Any]] = [
    ("add: another subbed", lambda b, d: b.step(d.at(0, 5), d.at(0, 6), -1_000_000, ADD)),
    ("add: nothing", lambda b, d: b.step(d, d, 0, ADD)),
    ("add: of the shop", lambda b, d: b.step(d, d, -1_000_000, ADD, SHOP)),
    ("close: money leaves", lambda b, d: b.step(d, d.at(1, 0, START_MS * 2), 1, CLOSE, _3=2_000)),
    ("close: without TTL", lambda b, d: b.step(d, d.at(1, 0, START_MS * 2), 0, CLOSE)),
    ("close: another subbed", lambda b, d: b.step(d, d.at(1, 1, START_MS * 2), 0, CLOSE, _3=2_000)),
    ("elapse: of the shop", lambda b, d: b.step(d.at(1, 0, START_MS), None, 0, ELAPSE, SHOP, _8=900)),
    ("end: not settled", lambda b, d: b.step(d, None, 0, END)),
    ("mutual: one signer", lambda b, d: b.step(d, None, 0, MUTUAL)),
    ("sub: above the IOU", lambda b, d: b.step(d, d.at(0, 6), 6, redeems(1, iou(d, 5)), SHOP)),
    ("sub: takes more", lambda b, d: b.step(d, d.at(0, 5), 6, redeems(1, iou(d, 6)), SHOP)),
    (
        "sub: foreign tag",
        lambda b, d: b.step(d, d.at(0, 5), 5, redeems(1, iou(replace(d, tag=bytes(32)), 5)), SHOP),
    ),
    ("sub: of the payer", lambda b, d: b.step(d, d.at(0, 5), 5, redeems(1, iou(d, 5)))),
    ("settle: above", lambda b, d: b.step(d.at(1, 5, 1), d.at(2), 3, redeems(3, iou(d, 7)), SHOP)),
    ("settle: still open", lambda b, d: b.step(d, d.at(2), 3, redeems(3, iou(d, 7)), SHOP)),
    ("defer: alone", lambda b, d: b.step(d, None, 0, DEFER)),
    ("main: no step", lambda b, d: b.step(d, None, 0, "d87a9f80ff")),
    ("constants change", lambda b, d: b.step(d, replace(d, provider=bytes(28)), -1_000_000, ADD)),
    ("units too few", lambda b, d: b.step(d, d, -1_000_000, ADD, units=(174_611, 400_000_000))),
]


@pytest.mark.parametrize("wrong", [row[1] for row in WRONG], ids=[row[0] for row in WRONG])
def test_validator_refuses_a_wrong_step(bench: Bench, wrong: Any) -> None:
    assert "the script failed" in str(wrong(bench, bench.datum))


def test_a_datum_of_another_script_lets_anybody_take_the_channel(bench: Bench) -> None:
    assert bench.step(replace(bench.datum, own_hash=bytes(28)), None, 0, "d87a9f80ff") is None


LEDGER: list[tuple[str, dict[str, object]]] = [
    ("PPViewHashesDontMatch", {"_11": bytes(32)}),
    ("PPViewHashesDontMatch", {"_11": None}),
    ("NoCollateralInputs", {"_13": None}),
    ("MissingScriptWitnessesUTXOW", {"_18": None}),
    ("IncorrectTotalCollateralField", {"_17": 1}),
    ("InsufficientCollateral", {"_16": {0: ALICE.address.raw, 1: 49_200_000}}),
    ("FeeTooSmallUTxO", {"_2": 200_000}),
    ("MissingVKeyWitnessesUTXOW", {"_14": [bytes(28)]}),
]


def broken_rules(bench: Bench, **body: Any) -> list[str]:
    """All rules that an addition breaks with these fields."""
    seen: list[str] = []
    submit = bench.chain.submit

    def watch(raw: bytes) -> str:
        try:
            return submit(raw)
        except LedgerError as refused:
            seen.extend(name for name, _ in refused.failures)
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.chain, "submit", watch)
        bench.step(bench.datum, bench.datum, -1_000_000, ADD, **body)
    return seen


@pytest.mark.parametrize(("rule", "body"), LEDGER)
def test_ledger_refuses_a_script_transaction_by_its_rule(bench: Bench, rule: str, body: dict[str, Any]) -> None:
    assert rule in broken_rules(bench, **body)


def test_collateral_is_ada_unless_its_tokens_return(bench: Bench) -> None:
    policy, name = bytes(28), b"USD"
    coin = bench.chain.faucet(ALICE.address.raw, 6_000_000, {(policy + name).hex(): 7})
    bench.chain.make_block()
    collateral = [[bytes.fromhex(coin), 0]]
    assert broken_rules(bench, _13=collateral) == ["CollateralContainsNonADA"]
    for units, rules in ((6, ["CollateralContainsNonADA"]), (8, ["CollateralContainsNonADA"]), (7, [])):
        returned = {0: ALICE.address.raw, 1: [2_000_000, {policy: {name: units}}]}
        assert broken_rules(bench, _13=collateral, _16=returned) == rules


def test_script_may_be_attached_but_not_beside_a_reference(bench: Bench) -> None:
    channel, purse = bench.put(bench.datum), bench.refs["alice"]
    outs = [bench.out(bench.datum, 11_000_000), {0: ALICE.address.raw, 1: 49_000_000 - FEE}]
    both = bench.tx([channel, purse], outs, [ALICE], {channel: ADD}, attached=True)
    with pytest.raises(LedgerError, match="ExtraneousScriptWitnessesUTXOW"):
        bench.chain.submit(both)
    alone = bench.tx([channel, purse], outs, [ALICE], {channel: ADD}, attached=True, body={18: None})
    assert bench.chain.submit(alone)


def test_several_channels_need_a_step_each_and_defer_to_the_first(bench: Bench) -> None:
    opened = bench.datum
    refs = sorted([bench.put(opened), bench.put(opened.at(0, 1))])
    datums = [
        opened if bench.chain.utxos[ref].inline_datum == opened.encode().hex() else opened.at(0, 1) for ref in refs
    ]
    purse = bench.refs["alice"]
    outs = [bench.out(datum, 11_000_000) for datum in datums]
    outs.append({0: ALICE.address.raw, 1: bench.chain.utxos[purse].lovelace - 2_000_000 - FEE})
    add = Constr(0, [Constr(0, [])])
    both = write_plutus_data(Constr(1, [[add, add]])).hex()
    for main, deferred, ok in ((ADD, DEFER, False), (both, both, True), (both, DEFER, True)):
        raw = bench.tx([*refs, purse], outs, [ALICE], {refs[0]: main, refs[1]: deferred})
        if ok and deferred == DEFER:
            bench.chain.submit(raw)
        elif not ok:
            with pytest.raises(LedgerError, match="spent without a step"):
                bench.chain.submit(raw)


def test_datum_and_tag_are_those_of_the_draft() -> None:
    key = bytes.fromhex("ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c")
    tag = channel_tag((bytes(range(32)).hex(), 1))
    assert tag.hex() == "7a834ccaf9b540e3c29f10748806a21cd3827a63f5654c0009da5df3b139d714"
    own = bytes.fromhex("62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a")
    datum = ChannelDatum(own, tag, "lovelace", key, b"\xaa" * 28, b"\xbb" * 28, 900_000, 0)
    found = blake2b(datum.encode(), digest_size=32).hexdigest()
    assert found == "867dbac08028f9cc1687f3aa824717f3b4d42ff5926d3e1f761f57225e96c32f"


# --- the merchant, over HTTP -------------------------------------------------------------------------------------

PRICE = 1_000


@dataclass
class Caller:
    """A payer with an open channel at the devnet's merchant."""

    devnet: DevnetThread
    http: httpx.Client
    clock: HandClock
    bench: Bench = field(default_factory=Bench)

    def __post_init__(self) -> None:
        self.settings(dialect="x402-channel", price=str(PRICE))
        self.post("/devnet/faucet", address=ALICE.address.text, lovelace="50000000")
        self.blocks()
        coin = self.coins(ALICE.address.text)[0]
        told = self.state()
        provider = bytes.fromhex(told["provider_key"])
        self.datum = replace(self.bench.datum, tag=channel_tag(coin), provider=provider)
        outs = [self.bench.out(self.datum, 10_000_000), {0: ALICE.address.raw, 1: 40_000_000 - FEE}]
        self.ref = (self.send(self.bench.tx([coin], outs, [ALICE])), 0)

    def coins(self, address: str) -> list[OutRef]:
        rows = self.http.get(f"{self.devnet.chain_url}/addresses/{address}/utxos").json()
        return [(row["tx_hash"], row["output_index"]) for row in rows]

    def post(self, path: str, **body: object) -> None:
        assert self.http.post(self.devnet.origin + path, json=body).status_code == 200

    def blocks(self) -> None:
        self.post("/devnet/blocks", count=1)

    def send(self, raw: bytes) -> str:
        headers = {"content-type": "application/cbor"}
        answer = self.http.post(self.devnet.chain_url + "/tx/submit", content=raw, headers=headers)
        assert answer.status_code == 200, answer.text
        self.blocks()
        return str(answer.json())

    def settings(self, **body: object) -> None:
        answer = self.http.post(self.devnet.merchant_url + "/merchant/settings", json=body)
        assert answer.status_code == 200, answer.text

    def mood(self, mood: str | None) -> None:
        self.settings(channel={"mood": mood})

    def state(self) -> Any:
        return self.http.get(self.devnet.merchant_url + "/merchant/state").json()["channel"]

    def offer(self) -> Any:
        answer = self.http.get(self.devnet.merchant_url + "/channel/report")
        assert answer.status_code == 402
        return decoded(answer.headers["PAYMENT-REQUIRED"])["accepts"][0]

    def pay(self, amount: int, path: str = "/channel/report", **changes: object) -> httpx.Response:
        accepted = self.offer()
        extra, datum = accepted["extra"], self.datum
        config = {
            "payer": datum.consumer.hex(),
            "payerAuthorizer": datum.iou_key.hex(),
            "receiver": accepted["payTo"],
            "receiverAuthorizer": extra["receiverAuthorizer"],
            "token": accepted["asset"],
            "withdrawDelay": extra["withdrawDelay"],
        }
        voucher = {
            "channelId": datum.tag.hex(),
            "maxClaimableAmount": str(amount),
            "signature": IOU.sign(iou_message(datum.tag, amount)).signature.hex(),
            "channelRef": f"{self.ref[0]}#0",
        } | changes
        payload = {"type": "voucher", "channelConfig": config, "voucher": voucher}
        proof = base64.b64encode(json.dumps({"x402Version": 2, "accepted": accepted, "payload": payload}).encode())
        return self.http.get(self.devnet.merchant_url + path, headers={"PAYMENT-SIGNATURE": proof.decode()})

    def charged(self, amount: int) -> Any:
        answer = self.pay(amount)
        assert answer.status_code == 200, error(answer)
        return decoded(answer.headers["PAYMENT-RESPONSE"])["extra"]

    def channel(self) -> Any:
        """The channel's stage and subbed, on the chain."""
        self.blocks()
        rows = self.http.get(f"{self.devnet.chain_url}/addresses/{SCRIPT_TEXT}/utxos").json()
        found = read_datum(rows[0]["inline_datum"])
        self.ref = (rows[0]["tx_hash"], rows[0]["output_index"])
        return found.stage, found.subbed


SCRIPT_TEXT = encode_address(SCRIPT_ADDRESS).text


def decoded(text: str) -> Any:
    return json.loads(base64.b64decode(text, validate=True))


def error(answer: httpx.Response) -> str:
    word = str(decoded(answer.headers["PAYMENT-REQUIRED"])["error"])
    return word.removeprefix("invalid_batch_settlement_cardano_")


def correction(answer: httpx.Response) -> Any:
    assert error(answer) == "cumulative_amount_mismatch"
    return decoded(answer.headers["PAYMENT-REQUIRED"])["accepts"][0]["extra"]


@pytest.fixture
def caller() -> Iterator[Caller]:
    clock = HandClock()
    with DevnetThread(now_ms=clock) as devnet, httpx.Client(verify=NO_TLS) as http:
        yield Caller(devnet, http, clock)


def test_honest_merchant_counts_and_answers_the_latest_voucher_again(caller: Caller) -> None:
    assert caller.charged(PRICE)["chargedAmount"] == str(PRICE)
    again = caller.pay(PRICE, "/channel/other")
    assert (again.status_code, again.json()["path"]) == (200, "/channel/report")
    assert caller.charged(2 * PRICE)["channelState"]["chargedCumulativeAmount"] == str(2 * PRICE)
    told = correction(caller.pay(5 * PRICE))
    assert told["voucherState"]["signedMaxClaimable"] == str(2 * PRICE)
    assert told["channelState"]["balance"] == str(10_000_000 - 1_732_620)
    assert error(caller.pay(3 * PRICE, signature="00" * 64)) == "voucher_signature"
    assert error(caller.pay(3 * PRICE, channelId="00" * 32)) == "channel_not_found"


@pytest.mark.parametrize("mood", [None, "count_above", "foreign_iou"])
def test_a_voucher_of_an_amount_that_no_iou_has_is_refused(caller: Caller, mood: str | None) -> None:
    caller.mood(mood)
    for amount in ("-1", str(2**64), str(2**64 - 1)):
        assert error(caller.pay(PRICE, maxClaimableAmount=amount)) == "payload"


def test_script_is_served_and_referenced(caller: Caller) -> None:
    extra = caller.offer()["extra"]
    assert extra["scriptHash"] == SCRIPT_HASH.hex()
    found = caller.http.get(f"{caller.devnet.chain_url}/scripts/{SCRIPT_HASH.hex()}/cbor").json()["cbor"]
    assert found == SCRIPT.hex()
    assert blake2b(b"\x03" + bytes.fromhex(found), digest_size=28).digest() == SCRIPT_HASH
    holder = extra["referenceScript"].partition("#")[0]
    rows = caller.http.get(f"{caller.devnet.chain_url}/txs/{holder}/utxos").json()["outputs"]
    assert rows[0]["reference_script_hash"] == SCRIPT_HASH.hex()


def test_channel_paths_are_unknown_before_the_merchant_sells_by_channel() -> None:
    with DevnetThread(now_ms=HandClock()) as devnet, httpx.Client(verify=NO_TLS) as http:
        assert http.get(devnet.merchant_url + "/channel/report").status_code == 404


@pytest.mark.parametrize(("mood", "told"), [("overcharge", "2000"), ("undercharge", "500"), ("no_charge", None)])
def test_moods_that_charge_wrongly(caller: Caller, mood: str, told: str | None) -> None:
    caller.mood(mood)
    assert caller.charged(PRICE).get("chargedAmount") == told


@pytest.mark.parametrize(("mood", "count"), [("drop_answer", PRICE), ("vanish", None)])
def test_moods_that_drop_the_connection(caller: Caller, mood: str, count: int | None) -> None:
    offer = caller.offer()
    caller.mood(mood)
    caller.offer = lambda: offer  # type: ignore[method-assign]
    with pytest.raises(httpx.RemoteProtocolError):
        caller.pay(PRICE)
    held = caller.state()["channels"].get(caller.datum.tag.hex())
    assert (held and int(held["count"])) == count


def test_moods_that_lie_about_the_record(caller: Caller) -> None:
    caller.charged(PRICE)
    caller.charged(2 * PRICE)
    caller.mood("forget_replays")
    assert correction(caller.pay(2 * PRICE))["channelState"]["chargedCumulativeAmount"] == str(2 * PRICE)
    caller.mood("old_record")
    assert correction(caller.pay(3 * PRICE))["voucherState"]["signedMaxClaimable"] == str(PRICE)
    for mood, signed in (("count_above", 4 * PRICE), ("foreign_iou", 3 * PRICE)):
        caller.mood(mood)
        held = correction(caller.pay(3 * PRICE))["voucherState"]
        assert held["signedMaxClaimable"] == str(signed)
        with pytest.raises(BadSignatureError):
            IOU.verify_key.verify(iou_message(caller.datum.tag, signed), bytes.fromhex(held["signature"]))


def test_moods_that_refuse(caller: Caller) -> None:
    caller.mood("refuse_unknown")
    assert error(caller.pay(PRICE)) == "channel_not_found"
    caller.mood("busy")
    assert error(caller.pay(PRICE)) == "channel_busy"


def test_moods_that_change_the_offer(caller: Caller) -> None:
    honest = caller.offer()
    caller.mood("raise_price")
    assert caller.offer()["amount"] == str(2 * PRICE)
    caller.mood("swap_provider")
    assert caller.offer()["extra"]["receiverAuthorizer"] != honest["extra"]["receiverAuthorizer"]
    caller.mood("swap_script")
    assert caller.offer()["extra"]["scriptHash"] != honest["extra"]["scriptHash"]


def test_merchant_claims_on_request_early_and_backwards(caller: Caller) -> None:
    caller.charged(PRICE)
    assert caller.channel() == (0, 0)
    caller.settings(channel={"claim": "sub"})
    assert caller.channel() == (0, PRICE)
    caller.mood("claim_early")
    caller.charged(2 * PRICE)
    assert caller.channel() == (0, 2 * PRICE)
    caller.mood("claim_backwards")
    caller.charged(3 * PRICE)
    assert caller.channel() == (0, 2 * PRICE - 1)


def close(caller: Caller) -> None:
    """The payer closes its channel, with a TTL in five minutes."""
    caller.channel()
    now = caller.http.get(caller.devnet.origin + "/devnet/state").json()
    ttl = now["slot"] + 300
    ends_ms = now["system_start"] * 1000 + ttl * 1000 + PERIOD_MS
    coin = caller.coins(ALICE.address.text)[0]
    outs = [caller.bench.out(caller.datum.at(1, 0, ends_ms), 10_000_000)]
    outs.append({0: ALICE.address.raw, 1: 40_000_000 - 2 * FEE})
    script = caller.offer()["extra"]["referenceScript"].partition("#")[0]
    caller.bench.refs["script"] = (script, 0)
    caller.send(caller.bench.tx([caller.ref, coin], outs, [ALICE], {caller.ref: CLOSE}, body={3: ttl}))


@pytest.mark.parametrize(("mood", "waits_s"), [("claim_late", 0), ("settle_late", 1_200)])
def test_merchant_settles_a_closed_channel_late(caller: Caller, mood: str, waits_s: int) -> None:
    caller.charged(PRICE)
    caller.mood(mood)
    close(caller)
    assert error(caller.pay(2 * PRICE)) == "channel_closed"
    if waits_s:
        caller.state()
        assert caller.channel() == (1, 0)
        caller.clock.forward(waits_s)
    caller.state()
    assert caller.channel() == (2, 0)
    spent = caller.http.get(f"{caller.devnet.chain_url}/txs/{caller.ref[0]}/utxos").json()
    assert [row["reference"] for row in spent["inputs"]].count(True) == 1
    assert spent["outputs"][0]["amount"] == [{"unit": "lovelace", "quantity": str(10_000_000 - PRICE)}]
