"""What is written is compared with the order, and an independent ledger accepts the variants."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pycardano
import pytest
from kit.channels import (
    ADA,
    CHANNEL_REF,
    COINS_PER_BYTE,
    CONSUMER,
    NONCE,
    PROVIDER,
    START,
    STEPS,
    TERMS,
    TOKEN,
    TTL,
    TTL_MS,
    build,
    order_of,
    signed,
    unspent,
)
from kit.plutus_v3 import COST_MODEL_V3
from ledger_check.scalus import Scalus, needs_scalus

from payagent.core.problems import Refused
from payagent.wallet import channel_build
from payagent.wallet.channel_build import ScriptParameters, StepOrder, build_step
from payagent.wallet.channel_tx import ChannelStage, added, channel_tag, closed, decode_step, opened
from payagent.wallet.utxo_index import Utxo


def built(order: StepOrder) -> bytes:
    """The bytes of an order, before they are checked."""
    return build(order)[0] if order.step == "mutual" else channel_build._write(channel_build._plan(order))


def test_the_daemon_imports_no_pycardano_with_the_builder() -> None:
    code = "import sys, payagent.wallet.channel_build; print('pycardano' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("step", STEPS)
def test_no_transaction_names_its_network(step: str) -> None:
    raw = built(order_of(step))
    transaction = pycardano.Transaction.from_cbor(raw)
    assert transaction.transaction_body.network_id is None
    transaction.transaction_body.network_id = pycardano.Network.TESTNET
    with pytest.raises(Refused, match="field 15"):
        decode_step(transaction.to_cbor())


def test_a_model_in_another_order_gives_another_script_data_hash() -> None:
    other = ScriptParameters((COST_MODEL_V3[1], COST_MODEL_V3[0], *COST_MODEL_V3[2:]))
    right, wrong = (decode_step(built(order_of("add", **more))) for more in ({}, {"scripts": other}))
    assert right.script_data_hash != wrong.script_data_hash


CLOSED = closed(order_of("add").channel[1], TTL_MS)  # type: ignore[index]
OTHER_ADDRESS = bytes((0,)) + b"\xee" * 56
DIFFERENT: list[tuple[str, str, dict[str, Any]]] = [
    ("open", "output", {"output": opened(replace(TERMS, iou_key=b"\x78" * 32), 10 * ADA, COINS_PER_BYTE)}),
    ("open", "output", {"output": opened(replace(TERMS, provider=b"\x78" * 28), 10 * ADA, COINS_PER_BYTE)}),
    ("open", "output", {"output": opened(replace(TERMS, script_hash=b"\x78" * 28), 10 * ADA, COINS_PER_BYTE)}),
    ("open", "output", {"output": opened(replace(TERMS, close_period_ms=1), 10 * ADA, COINS_PER_BYTE)}),
    ("open", "output", {"output": opened(TERMS, 10 * ADA + 1, COINS_PER_BYTE)}),
    ("open", "others", {"own": OTHER_ADDRESS}),
    ("open", "inputs", {"utxos": (NONCE, replace(NONCE, index=9))}),
    ("open", "ttl_slot", {"ttl_slot": TTL + 1}),
    ("add", "channel_input", {"channel": ((b"\x45" * 32, 0), order_of("add").channel[1])}),  # type: ignore[index]
    ("add", "script_data_hash", {"scripts": ScriptParameters(COST_MODEL_V3[:-1])}),
    ("add", "script", {"script": b"\x00"}),
    ("add", "step", {"step": "close", "output": CLOSED}),
    ("close", "output", {"output": replace(CLOSED, stage=replace(CLOSED.stage, subbed=2))}),
    ("close", "output", {"output": closed(order_of("add").channel[1], TTL_MS - 1)}),  # type: ignore[index]
    ("end", "step", {"step": "mutual"}),
    ("elapse", "start_slot", {"start_slot": START - 1}),
]


@pytest.mark.parametrize(("step", "name", "changes"), DIFFERENT)
def test_bytes_of_another_order_are_refused(
    monkeypatch: pytest.MonkeyPatch, step: str, name: str, changes: dict[str, Any]
) -> None:
    order = order_of(step)
    other = built(replace(order, **changes))
    monkeypatch.setattr(channel_build, "_write", lambda _: other)
    with pytest.raises(Refused, match=f"internal_error: .*{name}"):
        build_step(order)


def test_bytes_that_leave_more_to_the_fee_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    transaction = pycardano.Transaction.from_cbor(built(order_of("open")))
    transaction.transaction_body.fee += 1
    monkeypatch.setattr(channel_build, "_write", lambda _: transaction.to_cbor())
    with pytest.raises(Refused, match=r"internal_error: .*fee"):
        build_step(order_of("open"))


def test_a_fee_above_its_cap_is_refused() -> None:
    dear = replace(order_of("open").parameters, min_fee_b=1_000_000)
    with pytest.raises(Refused, match="fee_too_high"):
        build_step(order_of("open", parameters=dear))


def with_three_inputs(step: str, tx_id: str, asset: str) -> StepOrder:
    """A step of a channel in `asset`, with a fee and a token UTxO beside the nonce UTxO."""
    nonce, tokens = Utxo(tx_id, 0, 20 * ADA), Utxo(tx_id, 2, 2 * ADA, ((TOKEN, 1_000), (TOKEN + "00", 7)))
    utxos = (nonce, tokens) if step != "open" else (nonce, tokens, Utxo(tx_id, 1, 5 * ADA))
    terms = replace(TERMS, asset=asset, tag=channel_tag(bytes.fromhex(tx_id), 0))
    units = 10 * ADA if asset == "lovelace" else 300
    new = opened(terms, units, COINS_PER_BYTE)
    order = order_of(step, utxos=utxos)
    if order.channel is None:
        return replace(order, output=new)
    stage = order.channel[1].stage
    if stage.name == "opened":
        stage = ChannelStage("opened", 2, None)
    before = replace(new, stage=stage)
    output = {"add": added(before, 5), "close": closed(before, TTL_MS)}.get(step)
    return replace(order, channel=(CHANNEL_REF, before), output=output)


@needs_scalus
@pytest.mark.parametrize("asset", ["lovelace", TOKEN, TOKEN[:56]])
@pytest.mark.parametrize("tx_id", ["33" * 32, "99" * 32])
def test_an_independent_ledger_accepts_three_inputs_on_either_side_of_the_channel(tx_id: str, asset: str) -> None:
    with Scalus() as ledger:
        for step in STEPS:
            order = with_three_inputs(step, tx_id, asset)
            if asset == TOKEN[:56]:
                order = replace(order, utxos=(*order.utxos[:-1], with_assets(order.utxos[-1], asset)))
            raw = built(order)
            read = decode_step(raw)
            assert len(read.inputs) == 3
            assert read.channel_input == (None if step == "open" else CHANNEL_REF)
            keys = [CONSUMER, PROVIDER] if step == "mutual" else [CONSUMER]
            ledger.open({ref: out.encode() for ref, out in unspent(order).items()}, START + 1, 0)
            assert ledger.submit(signed(raw, read, keys)) is None, (step, raw.hex())


def with_assets(utxo: Utxo, asset: str) -> Utxo:
    return replace(utxo, assets=((asset, 1_000),))


def test_a_transaction_of_more_than_three_inputs_is_refused() -> None:
    utxos = tuple(Utxo(NONCE.tx_id, index, 20 * ADA) for index in range(1, 5))
    with pytest.raises(Refused, match="more than 3 inputs"):
        decode_step(built(order_of("open", utxos=utxos)))


@pytest.mark.parametrize("step", STEPS[1:-1])
def test_collateral_of_a_small_nonce_utxo_is_refused(step: str) -> None:
    """Without a return, a failed script would take all of it."""
    small = replace(NONCE, lovelace=1_200_000)
    order = order_of(step, utxos=(small, Utxo("66" * 32, 0, 20 * ADA)))
    with pytest.raises(Refused, match="not_enough_funds"):
        build_step(order)
