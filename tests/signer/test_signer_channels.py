"""The signer's part of channels: their keys, what vouchers may promise, and which steps are signed."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from kit.channels import CONSUMER, OPEN, TERMS, TTL, TTL_MS, order_of
from kit.channels import OWN as BUILT_FOR
from kit.plutus_v3 import COST_MODEL_V3
from kit.signer_bodies import ADA, CAPS, DAY_CAPS, NOW_SLOT
from kit.wallet import OWN, SIGNER, payee, signer_of
from nacl.bindings import crypto_sign_open

from payagent.core.network import NETWORKS, SLOT_CLOCKS
from payagent.core.problems import Refused
from payagent.signer import channels
from payagent.signer.channels import Channels, Windows
from payagent.signer.policy import Clocks, Policy
from payagent.wallet.channel_build import build_step, language_views
from payagent.wallet.channel_tx import (
    ChannelOutput,
    ChannelStage,
    ChannelStep,
    ChannelTerms,
    TxRef,
    channel_tag,
    closed,
    decode_step,
    iou_message,
    script_data_hash,
)
from payagent.wallet.keys import SoftwareSigner, derive, seed_from_words

SCRIPT, PROVIDER, OTHER = "5c" * 28, payee(1).raw[1:29], payee(2).raw[1:29]
NONCE = (bytes.fromhex("ab" * 32), 3)
TAG = channel_tag(*NONCE)
PLACE = {"tag": TAG.hex(), "asset": "lovelace", "provider": PROVIDER.hex()}
RULES = {
    "network": "cardano:preprod",
    "scripts": [SCRIPT],
    "providers": {PROVIDER.hex(): (20 * ADA, 900_000), OTHER.hex(): (20 * ADA, 900_000)},
    "locked_per_day": 30 * ADA,
    "signed_per_day": 10 * ADA,
}


@dataclass
class Asked:
    """A signer's channels, on a clock that a test moves."""

    signer: SoftwareSigner = SIGNER
    now_s: float = 0
    day_caps: dict[str, int] = field(default_factory=lambda: dict(DAY_CAPS))
    rules: dict[str, object] = field(default_factory=lambda: dict(RULES))

    def __post_init__(self) -> None:
        self.policy = Policy(OWN.raw, CAPS, self.day_caps, Clocks(lambda: self.now_s, lambda: NOW_SLOT))
        self.channels = Channels(self.rules, self.signer, self.policy, Windows(self.rules))

    def __call__(self, kind: str, **fields: object) -> bytes:
        return self.channels.answer(json.dumps({kind: {**PLACE, **fields}}).encode())

    def voucher(self, amount: int, **fields: object) -> str:
        return self("voucher", amount=amount, **fields).hex()


@pytest.fixture
def ask() -> Asked:
    return Asked()


def test_the_key_of_a_channel_follows_from_the_words_by_the_drafts_derivation() -> None:
    words = " ".join(["abandon"] * 23 + ["art"])
    account = derive(seed_from_words(words), NETWORKS["preprod"])
    assert isinstance(account.signer, SoftwareSigner)
    provider = "cd8bede8affbab812d2b81a6739f69bdf53fa2a297efb10147243385"
    policy = Policy(account.address.raw, CAPS, DAY_CAPS, Clocks(lambda: 0, lambda: None))
    rules = {**RULES, "providers": {provider: (ADA, 0)}}
    request = {"key": {"tag": "11" * 32, "asset": "lovelace", "provider": provider}}
    key = Channels(rules, account.signer, policy, Windows(rules)).answer(json.dumps(request).encode())
    assert key.hex() == "6f7c46a5b7fbc5f852667b7d9a939f76d42ec9f40cd029e8ec86575180c32fea"


@pytest.mark.parametrize("amount", [23, 24, 255, 256, 2**23])
def test_a_voucher_verifies_under_the_channels_key_and_is_always_the_same(ask: Asked, amount: int) -> None:
    signature = ask.voucher(amount)
    message = iou_message(TAG, amount)
    assert crypto_sign_open(bytes.fromhex(signature) + message, ask("key")) == message
    assert ask.voucher(amount) == signature == Asked().voucher(amount)


@pytest.mark.parametrize("lie", [{"tag": "00" * 32}, {"provider": OTHER.hex()}])
def test_a_lie_about_the_channel_gives_a_key_that_fits_no_other_channel(ask: Asked, lie: dict[str, str]) -> None:
    assert ask("key", **lie) != ask("key")
    assert Asked(signer_of(1))("key") != ask("key")


@pytest.mark.parametrize("lie", [{"asset": "ab" * 28 + "01"}, {"provider": "00" * 28}])
@pytest.mark.parametrize("kind", ["key", "voucher", "step"])
def test_nothing_is_signed_for_a_token_or_a_provider_that_is_not_in_the_config(
    ask: Asked, kind: str, lie: dict[str, str]
) -> None:
    with pytest.raises(Refused, match="provider key"):
        ask(kind, amount=1, transaction="", **lie)


class TestLimits:
    def test_a_channel_promises_at_most_what_may_be_locked_there(self, ask: Asked) -> None:
        ask.rules["signed_per_day"] = 100 * ADA
        ask = Asked(rules=ask.rules)
        ask.voucher(20 * ADA)
        for amount in (20 * ADA + 1, 0, -1, 2**63):
            with pytest.raises(Refused, match="limit_exceeded"):
                ask.voucher(amount)

    def test_vouchers_promise_at_most_so_much_in_24_hours_over_all_channels(self, ask: Asked) -> None:
        ask.voucher(4 * ADA)
        ask.voucher(3 * ADA)  # less than before is nothing new
        ask.voucher(6 * ADA)
        ask("voucher", amount=4 * ADA, provider=OTHER.hex())
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            ask.voucher(6 * ADA + 1)
        ask.now_s = 23 * 3600
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            ask.voucher(6 * ADA + 1)
        ask.now_s = 26 * 3600
        ask.voucher(16 * ADA)

    def test_small_vouchers_of_an_hour_add_up(self, ask: Asked) -> None:
        for count in range(1, 11):
            ask.voucher(count * ADA)
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            ask.voucher(10 * ADA + 1)

    def test_vouchers_count_in_what_may_be_signed_in_all(self) -> None:
        ask = Asked(day_caps={"lovelace": 5 * ADA})
        ask.voucher(5 * ADA)
        with pytest.raises(Refused, match=r"limits\.signed_per_day"):
            ask.voucher(5 * ADA + 1)

    def test_after_a_restart_a_voucher_proves_what_was_promised_before(self, ask: Asked) -> None:
        iou = ask.voucher(9 * ADA)
        later = Asked()
        later.voucher(12 * ADA, before=9 * ADA, iou=iou)
        later.voucher(19 * ADA)
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            later.voucher(19 * ADA + 1)

    def test_vouchers_of_all_accounts_count_if_their_channels_have_one_tag(self, ask: Asked) -> None:
        windows = Windows(RULES)
        ask.channels = Channels(RULES, SIGNER, ask.policy, windows)
        other = Asked(signer_of(1))
        other.channels = Channels(RULES, signer_of(1), ask.policy.of_account(payee(7).raw), windows)
        ask.voucher(6 * ADA)
        with pytest.raises(Refused, match=r"signed_per_day"):
            other.voucher(6 * ADA)

    @pytest.mark.parametrize("lie", ["forged", "more", "none"])
    def test_after_a_restart_a_lie_about_the_voucher_before_counts_all_of_the_next(
        self, ask: Asked, lie: str
    ) -> None:
        iou = ask.voucher(9 * ADA)
        before, iou = {
            "forged": (9 * ADA, iou[:-2] + ("01" if iou.endswith("00") else "00")),
            "more": (9 * ADA + 1, iou),
            "none": (9 * ADA, ""),
        }[lie]
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            Asked().voucher(12 * ADA, before=before, iou=iou)


def opening(ask: Asked) -> ChannelStep:
    """An opening of the channel with 5 ADA, and change."""
    terms = ChannelTerms(
        script_hash=bytes.fromhex(SCRIPT),
        tag=TAG,
        asset="lovelace",
        iou_key=ask("key"),
        consumer=OWN.raw[1:29],
        provider=PROVIDER,
        close_period_ms=900_000,
    )
    return ChannelStep(
        step="open",
        tx_id=hashlib.blake2b(b"open", digest_size=32).digest(),
        inputs=(NONCE,),
        collateral=(),
        channel_input=None,
        output=ChannelOutput(terms, ChannelStage("opened", 0, None), 5 * ADA, 0),
        others=((OWN.raw, 90 * ADA, {}),),
        fee=174_000,
        most_collateral=0,
        start_slot=None,
        ttl_slot=NOW_SLOT + 1800,
        signers=(),
        collateral_return=None,
        script=None,
        units=(0, 0),
        script_data_hash=None,
    )


CHANNEL_REF, VIEWS = (bytes.fromhex("cd" * 32), 0), language_views(COST_MODEL_V3)


def spending(ask: Asked, step: str, nonce: TxRef = NONCE, **changes: Any) -> ChannelStep:
    """A step that spends the channel and a coin of 90 ADA, which is the collateral too."""
    made = replace(
        opening(ask),
        step=step,
        inputs=tuple(sorted((nonce, CHANNEL_REF))),
        collateral=(nonce,),
        channel_input=CHANNEL_REF,
        others=((OWN.raw, 90 * ADA - 174_000, {}),),
        most_collateral=630_000,
        collateral_return=(OWN.raw, 90 * ADA - 630_000, {}),
        units=(300_000, 100_000_000),
    )
    made = output(stage=ChannelStage("closed", 0, 1))(made) if step == "close" else replace(made, output=None)
    bound = script_data_hash(step, made.inputs.index(CHANNEL_REF), made.units, VIEWS)
    return replace(made, script_data_hash=bound, **changes)


Change = Callable[[ChannelStep], ChannelStep]


def terms(**fields: object) -> Change:
    """A change of the channel's constants."""

    def change(step: ChannelStep) -> ChannelStep:
        assert step.output is not None
        return replace(step, output=replace(step.output, terms=replace(step.output.terms, **fields)))

    return change


def output(**fields: object) -> Change:
    def change(step: ChannelStep) -> ChannelStep:
        assert step.output is not None
        return replace(step, output=replace(step.output, **fields))

    return change


def with_(**fields: object) -> Change:
    return lambda step: replace(step, **fields)


class TestSteps:
    @pytest.fixture(autouse=True)
    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The decoder is tested in tests/wallet. Here a test says what it reads."""
        self.step: ChannelStep | None = None
        monkeypatch.setattr(channels, "decode_step", lambda _: self.step)

    def sign(self, ask: Asked, step: ChannelStep, **fields: object) -> bytes:
        self.step = step
        return ask("step", transaction="", **{"views": VIEWS.hex(), **fields})

    def test_an_opening_is_signed(self, ask: Asked) -> None:
        step = opening(ask)
        signature = self.sign(ask, step)
        assert crypto_sign_open(signature + step.tx_id, SIGNER.public_key) == step.tx_id

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (terms(script_hash=bytes(28)), "script"),
            (terms(consumer=PROVIDER), "another wallet"),
            (terms(iou_key=bytes(32)), "other constants"),
            (terms(tag=bytes(32)), "other constants"),
            (terms(close_period_ms=900_001), "only 900001 ms later"),
            (terms(provider=OTHER), "other constants"),
            (with_(inputs=((bytes(32), 0),)), "of no input"),
            (output(stage=ChannelStage("opened", 1, None)), "claimed"),
            (output(lovelace=20 * ADA + 1), "cap is 20000000"),
            (with_(others=((payee(9).raw, ADA, {}),)), "others than this wallet"),
            (with_(others=((b"\x60" + PROVIDER, ADA, {}),)), "others than this wallet"),
            (with_(fee=900_001), "fee"),
            (with_(most_collateral=1_000_001), "collateral"),
            (with_(collateral_return=(payee(9).raw, ADA, {})), "collateral returns"),
            (with_(ttl_slot=NOW_SLOT + 200_000), "too long"),
        ],
    )
    def test_a_step_that_is_wrong_in_one_field_is_refused(self, ask: Asked, change: Change, why: str) -> None:
        with pytest.raises(Refused, match="signer_refused") as caught:
            self.sign(ask, change(opening(ask)))
        assert why in caught.value.detail

    def test_openings_lock_at_most_so_much_in_24_hours(self, ask: Asked) -> None:
        large = output(lovelace=20 * ADA)
        self.sign(ask, large(opening(ask)))
        self.sign(ask, with_(fee=180_000)(large(opening(ask))))  # another attempt, of which one can land
        added = replace(opening(ask), step="add", inputs=((bytes(32), 0), (bytes(32), 1)))
        with pytest.raises(Refused, match=r"channels\.locked_per_day"):
            self.sign(ask, output(lovelace=11 * ADA)(added))
        self.sign(ask, output(lovelace=10 * ADA)(added))
        ask.now_s = 86_400
        self.sign(ask, large(added))

    def test_no_limit_of_a_day_refuses_a_close(self, ask: Asked) -> None:
        self.sign(ask, output(lovelace=20 * ADA)(opening(ask)))
        self.sign(ask, output(lovelace=20 * ADA)(spending(ask, "close")))

    @pytest.mark.parametrize("nonce", [b"\x01" * 32, b"\xee" * 32])
    def test_a_close_may_not_keep_the_money_longer_than_the_delay(self, ask: Asked, nonce: bytes) -> None:
        close = spending(ask, "close", (nonce, 0))  # sorted before the channel, or behind it
        ends_ms = SLOT_CLOCKS["preprod"].time_ms(close.ttl_slot) + 900_000
        self.sign(ask, output(stage=ChannelStage("closed", 0, ends_ms))(close))
        with pytest.raises(Refused, match="returns its money only at"):
            self.sign(ask, output(stage=ChannelStage("closed", 0, ends_ms + 1))(close))

    @pytest.mark.parametrize("step", ["close", "mutual"])
    def test_a_step_out_of_a_channel_takes_no_money_of_the_wallet_along(self, ask: Asked, step: str) -> None:
        """Its channel may be a stranger's coin, so the daemon could fill a channel beside all limits."""
        ask.voucher(9 * ADA)
        payout = ((b"\x60" + PROVIDER, 5 * ADA, {}),) if step == "mutual" else ()
        fair = spending(ask, step)
        fair = replace(fair, others=(*payout, *fair.others))
        self.sign(ask, fair)
        for wrong in (
            replace(fair, others=(*payout, (OWN.raw, 90 * ADA - 174_001, {}))),
            replace(fair, inputs=(*fair.inputs, (b"\xff" * 32, 0))),  # another coin of any value
            replace(fair, script_data_hash=bytes(32)),  # then other redeemers run, and none checks the collateral
        ):
            with pytest.raises(Refused, match="signer_refused"):
                self.sign(ask, wrong)

    def test_collateral_that_a_failed_script_takes_counts_for_each_coin(self) -> None:
        ask = Asked(day_caps={"lovelace": 1_500_000})
        for coin in range(3):
            end = spending(ask, "end", (bytes([coin] * 32), 0), most_collateral=700_000)
            if coin < 2:
                self.sign(ask, end)
        with pytest.raises(Refused, match=r"limits\.signed_per_day"):
            self.sign(ask, end)

    def test_a_mutual_end_pays_the_provider_what_was_promised_and_not_taken(self, ask: Asked) -> None:
        iou = ask.voucher(9 * ADA)
        ended = spending(ask, "mutual")
        to_provider = (b"\x60" + PROVIDER, 7 * ADA, {})
        ended = replace(ended, others=(to_provider, *ended.others))
        proof = {"before": 9 * ADA, "iou": iou, "subbed": 2 * ADA}
        self.sign(Asked(), ended, **proof)
        for lie in ({"subbed": 2 * ADA + 1}, {"iou": ""}):
            with pytest.raises(Refused, match="others than this wallet"):
                self.sign(Asked(), ended, **(proof | lie))
        with pytest.raises(Refused, match="others than this wallet"):
            self.sign(Asked(), replace(ended, others=((payee(9).raw, ADA, {}), ended.others[1])), **proof)

    def test_what_mutual_ends_pay_counts_as_signed(self) -> None:
        ask = Asked(day_caps={"lovelace": 15 * ADA})
        ask.voucher(9 * ADA)
        others = ((b"\x60" + PROVIDER, 9 * ADA, {}), (OWN.raw, 90 * ADA, {}))
        with pytest.raises(Refused, match=r"limits\.signed_per_day"):
            self.sign(ask, spending(ask, "mutual", others=others))


@pytest.mark.parametrize("step", ["open", "close"])
def test_with_any_changed_byte_a_step_is_refused_or_all_its_money_stays_ours(step: str) -> None:
    """What is signed leaves the same channel or none, pays nobody else, and costs no more than the caps."""
    signer = SoftwareSigner(CONSUMER.scalar + CONSUMER.prefix)
    rules = {
        **RULES,
        "network": "cardano:devnet",
        "scripts": [TERMS.script_hash.hex()],
        "providers": {TERMS.provider.hex(): (20 * ADA, 900_000)},
    }
    place = {"tag": TERMS.tag.hex(), "asset": "lovelace", "provider": TERMS.provider.hex()}

    def ask(kind: str, **more: object) -> bytes:
        policy = Policy(BUILT_FOR, CAPS, DAY_CAPS, Clocks(lambda: 0, lambda: TTL - 1800))
        request = json.dumps({kind: {**place, **more}}).encode()
        return Channels(rules, signer, policy, Windows(rules)).answer(request)

    ours = replace(OPEN, terms=replace(TERMS, iou_key=ask("key")))
    order = order_of(step)
    order = replace(order, output=ours if step == "open" else closed(ours, TTL_MS))
    if order.channel is not None:
        order = replace(order, channel=(order.channel[0], ours))
    raw, read = build_step(order)
    views = language_views(COST_MODEL_V3).hex()
    assert (
        crypto_sign_open(ask("step", transaction=raw.hex(), views=views) + read.tx_id, CONSUMER.public)
        == read.tx_id
    )
    for at in range(len(raw)):
        other = raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]
        with suppress(Refused):
            ask("step", transaction=other.hex(), views=views)
            signed = decode_step(other)
            assert signed.output is None or replace(signed.output.terms, close_period_ms=900_000) == ours.terms, at
            assert signed.output is None or signed.output.terms.close_period_ms <= 900_000, at
            assert {address for address, *_ in signed.others} == {BUILT_FOR}, at
            assert signed.collateral_return is None or signed.collateral_return[0] == BUILT_FOR, at
            assert (signed.fee <= 900_000, signed.most_collateral <= ADA) == (True, True), at
