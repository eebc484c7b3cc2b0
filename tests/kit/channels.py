"""Orders for a channel's six transactions, on one wallet and one channel, with a script that is always true."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ledger_check.txkit import Key, Out, blake

from kit.plutus_v3 import COST_MODEL_V3
from payagent.wallet import channel_build
from payagent.wallet.channel_build import ScriptParameters, StepOrder, build_step, language_views, script_hash
from payagent.wallet.channel_tx import (
    ChannelOutput,
    ChannelStage,
    ChannelStep,
    ChannelTerms,
    added,
    channel_datum,
    channel_tag,
    closed,
    decode_step,
    opened,
    script_address,
    script_data_hash,
)
from payagent.wallet.utxo_index import Utxo

ADA = 1_000_000
COINS_PER_BYTE = 4_310
CONSUMER, PROVIDER = Key.extended(1), Key.extended(2)
OWN, PAYEE = CONSUMER.address(), PROVIDER.address(base=False)
SCRIPT = bytes.fromhex("450101002499")  # (program 1.1.0 (lam x (con unit ())))
TOKEN = "ab" * 28 + b"USDX".hex()
NONCE = Utxo("33" * 32, 1, 20 * ADA)
CHANNEL_REF = (b"\x44" * 32, 0)
START, TTL, TTL_MS = 400_000, 500_000, 1_700_000_000_000
TERMS = ChannelTerms(
    script_hash=script_hash(SCRIPT),
    tag=channel_tag(bytes.fromhex(NONCE.tx_id), NONCE.index),
    asset="lovelace",
    iou_key=b"\x77" * 32,
    consumer=CONSUMER.key_hash,
    provider=PROVIDER.key_hash,
    close_period_ms=900_000,
)
OPEN = opened(TERMS, 10 * ADA, COINS_PER_BYTE)
USED = replace(OPEN, stage=ChannelStage("opened", 3 * ADA, None), lovelace=7 * ADA)
STEPS = ("open", "add", "close", "end", "elapse", "mutual")


def order_of(step: str, **changes: Any) -> StepOrder:
    """An order. That of `mutual` is for `build`."""
    order = StepOrder(step, OWN, (NONCE,), TTL, scripts=ScriptParameters(COST_MODEL_V3))
    if step == "open":
        return replace(order, output=OPEN, **changes)
    before = {
        "end": replace(USED, stage=ChannelStage("settled", 0, None)),
        "elapse": closed(USED, TTL_MS),
    }.get(step, USED)
    output = {"add": added(USED, 5 * ADA), "close": closed(USED, TTL_MS)}.get(step)
    more: dict[str, Any] = {"script": SCRIPT}
    if step == "elapse":
        more["start_slot"] = START
    return replace(order, channel=(CHANNEL_REF, before), output=output, **more | changes)


def build(order: StepOrder, payout: int = 2 * ADA) -> tuple[bytes, ChannelStep]:
    """As `build_step`, and `mutual` too, which pays the provider `payout`. payagent itself builds none."""
    if order.step != "mutual":
        return build_step(order)
    _, ended = build_step(replace(order, step="end"))
    assert ended.channel_input
    more, collateral = 10_000, 15_000  # for the second signature
    (own, left, tokens), place = ended.others[0], ended.inputs.index(ended.channel_input)
    _, back, _ = ended.collateral_return or (OWN, 0, {})
    views = language_views(order.scripts.cost_model)
    mutual = replace(
        ended,
        step="mutual",
        signers=(*ended.signers, PROVIDER.key_hash),
        fee=ended.fee + more,
        most_collateral=ended.most_collateral + collateral,
        collateral_return=(own, back - collateral, {}),
        others=((PAYEE, payout, {}), (own, left - payout - more, tokens)),
        script_data_hash=script_data_hash("mutual", place, ended.units, views),
    )
    raw = channel_build._write(mutual)
    return raw, decode_step(raw)


def unspent(order: StepOrder) -> Mapping[tuple[str, int], Out]:
    """The outputs that an order's transaction needs on the chain."""
    utxos = {(utxo.tx_id, utxo.index): Out(OWN, utxo.lovelace, dict(utxo.assets)) for utxo in order.utxos}
    if order.channel:
        (tx_id, index), channel = order.channel
        utxos[tx_id.hex(), index] = on_chain(channel)
    return utxos


def on_chain(channel: ChannelOutput) -> Out:
    tokens = {channel.terms.asset: channel.tokens} if channel.tokens else {}
    datum = channel_datum(channel.terms, channel.stage).hex()
    return Out(script_address(channel.terms.script_hash), channel.lovelace, tokens, inline_datum=datum)


def signed(raw: bytes, step: ChannelStep, keys: Iterable[Key]) -> bytes:
    """The transaction with the signatures of these keys."""
    vkeys = [b"\x82\x58\x20" + key.public + b"\x58\x40" + key.sign(step.tx_id) for key in keys]
    witnesses = b"\x00\xd9\x01\x02" + bytes((0x80 + len(vkeys),)) + b"".join(vkeys)
    start = next(at for at in range(len(raw), 0, -1) if blake(raw[1:at]) == step.tx_id)
    return raw[:start] + bytes((raw[start] + 1,)) + witnesses + raw[start + 1 :]
