"""A channel's bytes, and its six transactions as ours are built and our decoder reads them."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.channels import (
    ADA,
    COINS_PER_BYTE,
    CONSUMER,
    NONCE,
    OPEN,
    PAYEE,
    PROVIDER,
    START,
    STEPS,
    TERMS,
    USED,
    build,
    order_of,
    signed,
    unspent,
)
from ledger_check.scalus import Scalus, needs_scalus
from nacl.signing import SigningKey

from payagent.core.problems import Refused
from payagent.wallet.channel_build import ScriptParameters, build_step, script_hash
from payagent.wallet.channel_tx import (
    ChannelOutput,
    ChannelStage,
    ChannelStep,
    ChannelTerms,
    capacity,
    channel_datum,
    channel_tag,
    decode_datum,
    decode_step,
    iou_message,
    reserve,
)

SCRIPT_HASH = bytes.fromhex("62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a")
SECOND_TAG = "7a834ccaf9b540e3c29f10748806a21cd3827a63f5654c0009da5df3b139d714"
KEY = SigningKey(b"\x07" * 32)
Built = dict[str, tuple[bytes, ChannelStep]]


@pytest.fixture(scope="module")
def built() -> Built:
    return {step: build(order_of(step)) for step in STEPS}


class TestVectorsOfTheDraft:
    def test_the_tag_is_the_hash_of_an_input(self) -> None:
        assert channel_tag(bytes(range(32)), 1).hex() == SECOND_TAG

    def test_an_iou_is_signed_over_the_tag_and_the_cumulative_amount(self) -> None:
        assert bytes(KEY.verify_key).hex() == "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c"
        message = iou_message(b"\x11" * 32, 203_000)
        assert message.hex() == "9f5820" + "11" * 32 + "1a000318f8ff"
        assert KEY.sign(message).signature.hex() == (
            "d09aac1f109a70db6328acec3e83d01f9d894d6bab248b03e8689ac381852658"
            "2426262cbd8c14ec2d763696910748159405ff38ee3d049c1a3954ddfa073a08"
        )

    @pytest.mark.parametrize(
        ("amount", "head"),
        [(23, "17"), (24, "1818"), (255, "18ff"), (256, "190100"), (2**32, "1b0000000100000000")],
    )
    def test_amounts_have_the_shortest_head(self, amount: int, head: str) -> None:
        assert iou_message(b"\x11" * 32, amount).hex() == "9f5820" + "11" * 32 + head + "ff"

    def test_the_datum(self) -> None:
        terms = ChannelTerms(
            script_hash=SCRIPT_HASH,
            tag=bytes.fromhex(SECOND_TAG),
            asset="lovelace",
            iou_key=bytes(KEY.verify_key),
            consumer=b"\xaa" * 28,
            provider=b"\xbb" * 28,
            close_period_ms=900_000,
        )
        datum = channel_datum(terms, ChannelStage("opened", 0, None))
        digest = hashlib.blake2b(datum, digest_size=32).hexdigest()
        assert digest == "867dbac08028f9cc1687f3aa824717f3b4d42ff5926d3e1f761f57225e96c32f"
        assert reserve(terms, COINS_PER_BYTE) == 1_732_620


stages = st.one_of(
    st.builds(lambda subbed: ChannelStage("opened", subbed, None), st.integers(0, 2**63)),
    st.builds(lambda *times: ChannelStage("closed", *times), st.integers(0, 2**63), st.integers(0, 2**63)),
    st.just(ChannelStage("settled", 0, None)),
)
assets = st.one_of(st.just("lovelace"), st.binary(min_size=28, max_size=60).map(bytes.hex))


@given(stages, assets, st.integers(0, 2**63))
def test_a_datum_is_read_back(stage: ChannelStage, asset: str, period_ms: int) -> None:
    terms = replace(TERMS, asset=asset, close_period_ms=period_ms)
    assert decode_datum(channel_datum(terms, stage)) == (terms, stage)


def test_what_an_iou_can_redeem_is_what_was_taken_and_what_is_there_but_for_the_reserve() -> None:
    kept = reserve(TERMS, COINS_PER_BYTE)
    assert capacity(OPEN, COINS_PER_BYTE) == 10 * ADA - kept
    assert capacity(USED, COINS_PER_BYTE) == 3 * ADA + 7 * ADA - kept
    assert capacity(replace(USED, lovelace=kept - 1), COINS_PER_BYTE) == 3 * ADA
    token = ChannelOutput(replace(TERMS, asset="ab" * 28), ChannelStage("opened", 2, None), ADA, 5)
    assert capacity(token, COINS_PER_BYTE) == 7


@pytest.mark.parametrize("step", STEPS)
class TestSteps:
    def test_what_was_ordered_is_built(self, built: Built, step: str) -> None:
        raw, read = built[step]
        order = order_of(step)
        assert read == decode_step(raw)
        assert (read.step, read.output, read.ttl_slot) == (step, order.output, order.ttl_slot)
        assert len(read.inputs) == (1 if step == "open" else 2)

    def test_the_collateral_is_the_nonce_utxo_and_a_failed_script_takes_little(
        self, built: Built, step: str
    ) -> None:
        _, read = built[step]
        nonce = ((bytes.fromhex(NONCE.tx_id), NONCE.index),)
        assert read.collateral == (() if step == "open" else nonce)
        assert read.most_collateral <= 900_000
        assert read.fee <= 350_000

    def test_no_validity_and_no_signer_appears_that_was_not_ordered(self, built: Built, step: str) -> None:
        _, read = built[step]
        assert (read.start_slot is None) == (step != "elapse")
        assert len(read.signers) == {"open": 0, "mutual": 2}.get(step, 1)

    def test_any_changed_byte_is_refused_or_shown(self, built: Built, step: str) -> None:
        raw, read = built[step]
        for place in range(len(raw)):
            for bit in (1, 128):
                other = raw[:place] + bytes((raw[place] ^ bit,)) + raw[place + 1 :]
                with suppress(Refused):
                    changed = decode_step(other)
                    names = [one.name for one in fields(read) if one.name != "tx_id"]
                    assert any(getattr(read, name) != getattr(changed, name) for name in names), (place, bit)

    def test_bytes_cut_off_or_added_are_refused(self, built: Built, step: str) -> None:
        raw, _ = built[step]
        for other in (*(raw[:end] for end in range(len(raw))), raw + b"\x00"):
            with pytest.raises(Refused, match="signer_refused"):
                decode_step(other)


@pytest.fixture(scope="module")
def scalus() -> Iterator[Scalus]:
    with Scalus() as running:
        yield running


@needs_scalus
@pytest.mark.parametrize("step", STEPS)
def test_an_independent_ledger_accepts_it(built: Built, scalus: Scalus, step: str) -> None:
    raw, read = built[step]
    scalus.open({ref: out.encode() for ref, out in unspent(order_of(step)).items()}, START + 1, 0)
    assert scalus.submit(signed(raw, read, [CONSUMER, PROVIDER] if step == "mutual" else [CONSUMER])) is None
    assert scalus.submit(raw) is not None, "and not without its signatures"


@given(st.binary(max_size=400))
def test_no_bytes_make_the_decoder_fail(raw: bytes) -> None:
    with pytest.raises(Refused, match="signer_refused"):
        decode_step(b"\x84" + raw)


class TestOrdersThatAreRefused:
    def test_another_script_than_the_channels(self) -> None:
        order = order_of("add")
        with pytest.raises(Refused, match="not the channel's"):
            build_step(replace(order, script=order.script + b"\x00"))

    def test_a_missing_cost_model(self) -> None:
        """The script data hash would be wrong."""
        with pytest.raises(Refused, match="cost model"):
            build_step(replace(order_of("add"), scripts=ScriptParameters(())))

    def test_too_little_money(self) -> None:
        with pytest.raises(Refused, match="not_enough_funds"):
            build_step(replace(order_of("open"), utxos=(replace(NONCE, lovelace=9 * ADA),)))


def test_the_script_is_attached(built: Built) -> None:
    _, read = built["close"]
    assert read.script is not None
    assert script_hash(read.script) == TERMS.script_hash


def test_what_a_mutual_end_pays_is_shown(built: Built) -> None:
    _, read = built["mutual"]
    assert read.others[0] == (PAYEE, 2 * ADA, {})
    assert read.signers == (TERMS.consumer, PROVIDER.key_hash)
