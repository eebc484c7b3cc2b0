"""Builds a channel's transactions.

Start with `build_step`. It plans the transaction twice, because the size of the first plan gives the fee of the
second. It reads the written bytes again with the strict decoder, and refuses anything but the plan.

Source: the Conway CDDL, and its rules for fees and collateral. Pure.

Never: chooses UTxOs; signs; the network, a clock.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import ceil
from typing import Any

from payagent.core.address import Address, encode_address
from payagent.core.hard_caps import FEE_CAP_LOVELACE
from payagent.core.invoice import Output
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.wallet import cbor_write as cbor
from payagent.wallet.channel_tx import (
    COLLATERAL_CAP_LOVELACE,
    AddressedValue,
    ChannelOutput,
    ChannelStep,
    TxRef,
    channel_datum,
    decode_step,
    redeemers,
    script_address,
    script_data_hash,
)
from payagent.wallet.transaction import MAINNET_PARAMETERS
from payagent.wallet.tx_plan import Frame, PlannedOutput, TxParameters, TxPlan, min_lovelace
from payagent.wallet.utxo_index import Utxo

_UNITS = {
    step: (memory * 3 // 2, cpu * 3 // 2)
    for step, memory, cpu in (
        ("open", 0, 0),
        ("add", 174_612, 65_400_000),
        ("close", 189_662, 69_500_000),
        ("end", 114_753, 39_400_000),
        ("elapse", 121_901, 41_900_000),
    )
}
"""Memory and CPU units to pay for: half as many again as the validator took at protocol 10.

Each input sorted before the channel, and each output before its own, adds some.
"""

_PRICE_MEMORY, _PRICE_CPU = Fraction(577, 10_000), Fraction(721, 10_000_000)
"""Mainnet's, in lovelace per unit."""

_COLLATERAL_PERCENT = 150
_SIGNATURE_BYTES = 106
"""What its signature adds to an unsigned transaction."""

_SMALL_FEE = 65_536
"""The smallest fee of five bytes, as every real one has. No amount of a plan with it is written shorter."""


@dataclass(frozen=True, slots=True)
class ScriptParameters:
    """The protocol parameters of scripts. `cost_model`: PlutusV3's, as the raw list in its order."""

    cost_model: tuple[int, ...]


_NO_SCRIPT = ScriptParameters(())


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One transaction to build.

    `step`: one of those in `channel_tx`, without `mutual`. `own`: raw address of all `utxos`, of change and of the
    collateral's return. The first of `utxos` is the nonce UTxO, in ADA only, and the collateral; at most two
    others. An opening's tag is the `channel_tag` of its nonce UTxO.
    `channel`: the channel to spend, None for open. `output`: what it becomes, see `opened`, `added`, `closed`;
    None for end and elapse, whose money goes to `own`.
    `start_slot`: in elapse the first slot at or after the channel's `elapse_at_ms`, else None.
    Every step but open needs `script` and `scripts`. `script`: the bytes that Blockfrost's /scripts/{hash}/cbor
    returns.
    """

    step: str
    own: bytes
    utxos: tuple[Utxo, ...]
    ttl_slot: int
    channel: tuple[TxRef, ChannelOutput] | None = None
    output: ChannelOutput | None = None
    start_slot: int | None = None
    script: bytes = b""
    scripts: ScriptParameters = _NO_SCRIPT
    parameters: TxParameters = MAINNET_PARAMETERS


def build_step(order: StepOrder) -> tuple[bytes, ChannelStep]:
    """Build an unsigned transaction: [body, witnesses, true, null] in CBOR, and what it does.

    To sign it, sign the result's `tx_id` and put the key's witness into the witnesses, as field 0 before those
    that are there.
    Example, an opening: build_step(StepOrder("open", address.raw, (nonce_utxo,), ttl_slot,
    output=opened(terms, 5_000_000, 4_310)))

    Refused: `not_enough_funds`, `fee_too_high`; `internal_error` if the script is not the channel's, or the bytes
    are not what was planned.
    """
    if order.channel is not None and script_hash(order.script) != order.channel[1].terms.script_hash:
        raise Refused("internal_error", "the given script is not the channel's")
    if order.channel is not None and not order.scripts.cost_model:
        raise Refused("internal_error", "without PlutusV3's cost model the script data hash would be wrong")
    planned = _plan(order)
    if planned.fee > FEE_CAP_LOVELACE or planned.most_collateral > COLLATERAL_CAP_LOVELACE:
        raise Refused(
            "fee_too_high",
            f"the fee is {planned.fee} lovelace, a failed script would take {planned.most_collateral}",
        )
    raw = _write(planned)
    step = decode_step(raw)
    planned = replace(planned, tx_id=step.tx_id)
    if wrong := [one.name for one in fields(step) if getattr(step, one.name) != getattr(planned, one.name)]:
        raise Refused("internal_error", f"another transaction was written than planned: {wrong}")
    return raw, step


def plan_of(order: StepOrder, step: ChannelStep, raw: bytes, units: int, own: Address) -> TxPlan:
    """Return a built step in the form of a transfer, which locks `units`, or spends a channel that holds them.

    Its inputs are ours alone. So what they hold beyond its change and its fee is what it locks.
    """
    outputs = [PlannedOutput("change", one[0], one[1], tuple(one[2].items())) for one in step.others]
    is_locking, place = step.step in ("open", "add"), own
    if step.output is not None:
        place = encode_address(script_address(step.output.terms.script_hash))
        outputs.insert(0, PlannedOutput("pay_to", place.raw, units if is_locking else 0))
    asked = Output("pay_to" if is_locking else "change", place, LOVELACE, units)
    return TxPlan(
        *(order.utxos[0], order.utxos, (asked,), tuple(outputs), step.fee),
        Frame(own, step.ttl_slot, 0, order.parameters, FEE_CAP_LOVELACE),
        *(raw, step.tx_id.hex(), len(raw)),
    )


def script_hash(script: bytes) -> bytes:
    """Return the hash of a Plutus V3 script, as in its addresses."""
    return hashlib.blake2b(b"\x03" + script, digest_size=28).digest()


def language_views(costs: tuple[int, ...]) -> bytes:
    """Return PlutusV3's cost model in the form that a script data hash covers."""
    model = b"".join(cbor.uint(cost) if cost >= 0 else cbor.head(1, -1 - cost) for cost in costs)
    return b"\xa1\x02" + cbor.head(4, len(costs)) + model


def _plan(order: StepOrder) -> ChannelStep:
    """Return what the order's transaction does. All that is left returns to `own`, in one output."""
    return _at_fee(order, _least_fee(order, _at_fee(order, _SMALL_FEE)))


def _at_fee(order: StepOrder, fee: int) -> ChannelStep:
    own = [(bytes.fromhex(utxo.tx_id), utxo.index) for utxo in order.utxos]
    values = [{LOVELACE: utxo.lovelace, **dict(utxo.assets)} for utxo in order.utxos]
    step = ChannelStep(
        step=order.step,
        tx_id=b"",
        inputs=tuple(sorted(own)),
        collateral=(),
        channel_input=None,
        output=order.output,
        others=(),
        fee=fee,
        most_collateral=0,
        start_slot=order.start_slot,
        ttl_slot=order.ttl_slot,
        signers=(),
    )
    if order.channel is not None:
        channel_input, channel = order.channel
        values.append(channel.value)
        inputs, units = sorted([*own, channel_input]), _UNITS[order.step]
        at_risk = ceil(Fraction(fee * _COLLATERAL_PERCENT, 100))
        step = replace(
            step,
            inputs=tuple(inputs),
            collateral=(own[0],),
            channel_input=channel_input,
            most_collateral=at_risk,
            collateral_return=_returned(order, {LOVELACE: order.utxos[0].lovelace - at_risk}),
            signers=(channel.terms.consumer,),
            script=order.script,
            units=units,
            script_data_hash=script_data_hash(
                order.step, inputs.index(channel_input), units, language_views(order.scripts.cost_model)
            ),
        )
    spent = add([{LOVELACE: fee}, order.output.value if order.output else {}])
    left = add([*values, {asset: -units for asset, units in spent.items()}])
    return replace(step, others=(_returned(order, left),))


def _returned(order: StepOrder, value: Mapping[str, int]) -> AddressedValue:
    """Return the output that pays a value to `own`. Refused: `not_enough_funds`, also below its min-ADA."""
    tokens = {asset: units for asset, units in value.items() if units and asset != LOVELACE}
    if min(value.values()) < 0 or value[LOVELACE] < min_lovelace(order.own, tokens, order.parameters):
        raise Refused("not_enough_funds", f"{value[LOVELACE]} lovelace would return, which is below min-ADA")
    return order.own, value[LOVELACE], tokens


def _least_fee(order: StepOrder, step: ChannelStep) -> int:
    """Return the least fee, in lovelace, of a step with this size once it is signed."""
    memory, cpu = step.units
    size = len(_write(step)) + _SIGNATURE_BYTES
    of_script = ceil(memory * _PRICE_MEMORY + cpu * _PRICE_CPU)
    return order.parameters.min_fee_b + order.parameters.min_fee_a * size + of_script


def _write(step: ChannelStep) -> bytes:
    """Return the unsigned transaction of a step, in the form that `decode_step` reads."""
    outputs = [_output(*output) for output in step.others]
    if step.output is not None:
        outputs.insert(0, _channel_output(step.output))
    fields = {
        0: _refs(step.inputs),
        1: cbor.head(4, len(outputs)) + b"".join(outputs),
        2: cbor.uint(step.fee),
        3: cbor.uint(step.ttl_slot),
        8: step.start_slot is not None and cbor.uint(step.start_slot),
        11: step.script_data_hash and cbor.byte_string(step.script_data_hash),
        13: _refs(step.collateral),
        14: _set([cbor.byte_string(signer) for signer in step.signers]),
        16: step.collateral_return and _output(*step.collateral_return),
        17: step.most_collateral and cbor.uint(step.most_collateral),
    }
    witnesses = {
        5: step.channel_input and redeemers(step.step, step.inputs.index(step.channel_input), step.units),
        7: step.script and _set([cbor.byte_string(step.script)]),
    }
    return b"\x84" + _map(fields) + _map(witnesses) + b"\xf5\xf6"


def _map(fields: Mapping[int, Any]) -> bytes:
    """Write the fields that a step has."""
    present = [cbor.uint(key) + field for key, field in fields.items() if field]
    return cbor.head(5, len(present)) + b"".join(present)


def _refs(refs: Iterable[TxRef]) -> bytes:
    return _set([cbor.tx_input(tx_id.hex(), index) for tx_id, index in refs])


def _set(items: Sequence[bytes]) -> bytes:
    return cbor.TAGGED_SET + cbor.head(4, len(items)) + b"".join(items) if items else b""


def _channel_output(channel: ChannelOutput) -> bytes:
    address, datum = script_address(channel.terms.script_hash), channel_datum(channel.terms, channel.stage)
    value = _value(channel.lovelace, {channel.terms.asset: channel.tokens})
    head = b"\xa3\x00" + cbor.byte_string(address)
    return head + b"\x01" + value + b"\x02\x82\x01\xd8\x18" + cbor.byte_string(datum)


def _output(address: bytes, lovelace: int, tokens: Mapping[str, int]) -> bytes:
    return b"\x82" + cbor.byte_string(address) + _value(lovelace, tokens)


def _value(lovelace: int, tokens: Mapping[str, int]) -> bytes:
    held = [(asset, tokens[asset]) for asset in sorted(tokens, key=cbor.canonical_key) if tokens[asset]]
    return b"\x82" + cbor.uint(lovelace) + cbor.multiasset(held) if held else cbor.uint(lovelace)
