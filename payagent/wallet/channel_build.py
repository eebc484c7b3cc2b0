"""Builds a channel's transactions with pycardano, in a short-lived process of its own.

Start with `build_step`. pycardano's import takes 2 s and 74 MB, so only the child imports it. The child is not
trusted: `build_step` decodes what it answers and refuses anything but the order.

Never: imports pycardano in the daemon; chooses UTxOs; signs; the network, a clock.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
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
    REDEEMERS,
    AddressedValue,
    ChannelOutput,
    ChannelStep,
    TxRef,
    channel_datum,
    decode_step,
    script_address,
    script_data_hash,
)
from payagent.wallet.transaction import MAINNET_PARAMETERS
from payagent.wallet.tx_plan import Frame, PlannedOutput, TxParameters, TxPlan
from payagent.wallet.utxo_index import Utxo

_UNITS = {
    step: (memory * 3 // 2, cpu * 3 // 2)
    for step, memory, cpu in (
        ("open", 0, 0),
        ("add", 174_612, 65_400_000),
        ("close", 189_662, 69_500_000),
        ("end", 114_753, 39_400_000),
        ("elapse", 121_901, 41_900_000),
        ("mutual", 61_168, 21_600_000),
    )
}
"""Memory and CPU units to pay for: half as many again as the validator took at protocol 10.

Each input sorted before the channel, and each output before its own, adds some.
"""

_TX_SIZE_MAX, _MEMORY_MAX, _CPU_MAX = 2_500, 1_300_000, 450_000_000
"""Bounds for pycardano. Its collateral is for the largest possible fee: by the ledger 3.89 ADA, by these 0.63."""

_SHORT_OF_FUNDS = re.compile("InsufficientUTxOBalanceException|InvalidTransactionException|UTxOSelectionException")
_CHILD_S = 60
_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from payagent.wallet.channel_build import main; main()"
)
_ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True, slots=True)
class ScriptParameters:
    """The protocol parameters of scripts. The defaults are mainnet's.

    `cost_model`: PlutusV3's, as the raw list in its order. Prices are lovelace per unit, or per byte referenced.
    """

    cost_model: tuple[int, ...]
    price_memory: Fraction = Fraction(577, 10_000)
    price_cpu: Fraction = Fraction(721, 10_000_000)
    price_reference_byte: int = 15
    collateral_percent: int = 150


_NO_SCRIPT = ScriptParameters(())


@dataclass(frozen=True, slots=True)
class StepOrder:
    """One transaction to build.

    `step`: one of the six in `channel_tx`. `own`: raw address of all `utxos`, of change and of the collateral's
    return. The first of `utxos` is the nonce UTxO, in ADA only, and the collateral; at most two others. An
    opening's tag is the `channel_tag` of its nonce UTxO.
    `channel`: the channel to spend, None for open. `output`: what it becomes, see `opened`, `added`, `closed`;
    None for end, elapse and mutual, whose money goes to `own`. `payouts`: other outputs, before change.
    `start_slot`: in elapse the first slot at or after the channel's `elapse_at_ms`, else None.
    Every step but open needs `script` and `scripts`. `script`: the bytes that Blockfrost's /scripts/{hash}/cbor
    returns. `reference`: the UTxO that holds it, such as the offer's `reference_script`, or None to attach it.
    """

    step: str
    own: bytes
    utxos: tuple[Utxo, ...]
    ttl_slot: int
    channel: tuple[TxRef, ChannelOutput] | None = None
    output: ChannelOutput | None = None
    payouts: tuple[AddressedValue, ...] = ()
    start_slot: int | None = None
    script: bytes = b""
    reference: TxRef | None = None
    scripts: ScriptParameters = _NO_SCRIPT
    parameters: TxParameters = MAINNET_PARAMETERS

    @property
    def signers(self) -> tuple[bytes, ...]:
        """The key hashes that the validator requires."""
        if self.channel is None:
            return ()
        terms = self.channel[1].terms
        return (terms.consumer, terms.provider) if self.step == "mutual" else (terms.consumer,)


def build_step(order: StepOrder) -> tuple[bytes, ChannelStep]:
    """Build an unsigned transaction in a child process, which takes about 3 s: call it in a thread.

    Returns [body, witnesses, true, null] in CBOR, and what it does. To sign it, sign the result's `tx_id` and put
    the key's witness into the witnesses, as field 0 before those that are there.
    Example, an opening: build_step(StepOrder("open", address.raw, (nonce_utxo,), ttl_slot,
    output=opened(terms, 5_000_000, 4_310)))

    Refused: `not_enough_funds`, `fee_too_high`; `internal_error` if the child fails or builds something else;
    `signer_refused` if that is none of the six shapes.
    """
    if order.channel is not None and script_hash(order.script) != order.channel[1].terms.script_hash:
        raise Refused("internal_error", "the given script is not the channel's")
    if order.channel is not None and not order.scripts.cost_model:
        raise Refused("internal_error", "without PlutusV3's cost model the script data hash would be wrong")
    raw = _run_child(_request(order))
    step = decode_step(raw)
    _check(order, step)
    return raw, step


def plan_of(order: StepOrder, step: ChannelStep, raw: bytes, units: int, own: Address) -> TxPlan:
    """Return a built step in the form of a transfer, which locks `units`, or spends a channel that holds them.

    Its inputs are ours alone. So what they hold beyond its change and its fee is what it locks.
    """
    outputs = [PlannedOutput("change", one[0], one[1], tuple(one[2].items())) for one in step.others]
    asked = Output("change", own, LOVELACE, units)
    if step.output is not None:
        place, is_locking = (
            encode_address(script_address(step.output.terms.script_hash)),
            step.step in ("open", "add"),
        )
        outputs.insert(0, PlannedOutput("pay_to", place.raw, units if is_locking else 0))
        asked = Output("pay_to", place, LOVELACE, units) if is_locking else asked
    return TxPlan(
        *(order.utxos[0], order.utxos, (asked,), tuple(outputs), step.fee),
        Frame(own, step.ttl_slot, 0, order.parameters, FEE_CAP_LOVELACE),
        *(raw, step.tx_id.hex(), len(raw)),
    )


def script_hash(script: bytes) -> bytes:
    """Return the hash of a Plutus V3 script, as in its addresses."""
    return hashlib.blake2b(b"\x03" + script, digest_size=28).digest()


def _run_child(request: Mapping[str, object]) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and our own program
            (sys.executable, "-I", "-c", _PROGRAM, _ROOT),
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=_CHILD_S,
            env={},
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise Refused("internal_error", f"no transaction was built within {_CHILD_S} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:300]
        raise Refused("not_enough_funds" if _SHORT_OF_FUNDS.search(done.stderr) else "internal_error", last)
    return bytes.fromhex(done.stdout)


def _check(order: StepOrder, step: ChannelStep) -> None:
    """Compare every field with the order. What pycardano computes must balance and meet the caps."""
    nonce, values = order.utxos[0], [{LOVELACE: utxo.lovelace, **dict(utxo.assets)} for utxo in order.utxos]
    own = [(bytes.fromhex(utxo.tx_id), utxo.index) for utxo in order.utxos]
    asked = replace(
        step,
        step=order.step,
        inputs=tuple(sorted(own)),
        output=order.output,
        others=(*order.payouts, *((order.own, *value[1:]) for value in step.others[len(order.payouts) :])),
        start_slot=order.start_slot,
        ttl_slot=order.ttl_slot,
        signers=order.signers,
        units=_UNITS[order.step],
    )
    if order.channel is not None:
        channel_input, channel = order.channel
        values.append(channel.value)
        inputs = sorted([*own, channel_input])
        asked = replace(
            asked,
            inputs=tuple(inputs),
            collateral=(own[0],),
            channel_input=channel_input,
            collateral_return=(order.own, nonce.lovelace - step.most_collateral, {}),
            reference_inputs=(order.reference,) if order.reference else (),
            script=None if order.reference else order.script,
            script_data_hash=script_data_hash(
                order.step,
                inputs.index(channel_input),
                _UNITS[order.step],
                language_views(order.scripts.cost_model),
            ),
        )
    wrong = [one.name for one in fields(step) if getattr(step, one.name) != getattr(asked, one.name)]
    left = ({LOVELACE: lovelace, **tokens} for _, lovelace, tokens in step.others)
    output = step.output.value if step.output else {}
    if wrong or add(values) != add(({LOVELACE: step.fee}, output, *left)):
        raise Refused("internal_error", f"another transaction was built than ordered: {wrong or 'its values'}")
    if step.fee > FEE_CAP_LOVELACE or step.most_collateral > COLLATERAL_CAP_LOVELACE:
        raise Refused(
            "fee_too_high", f"the fee is {step.fee} lovelace, a failed script would take {step.most_collateral}"
        )


def language_views(costs: tuple[int, ...]) -> bytes:
    """Return PlutusV3's cost model in the form that a script data hash covers."""
    model = b"".join(cbor.uint(cost) if cost >= 0 else cbor.head(1, -1 - cost) for cost in costs)
    return b"\xa1\x02" + cbor.head(4, len(costs)) + model


def _request(order: StepOrder) -> dict[str, object]:
    """Describe the transaction for the child, which knows nothing of channels."""
    output = [] if order.output is None else [_output(order.output)]
    return {
        "own": order.own.hex(),
        "utxos": [(utxo.tx_id, utxo.index, utxo.lovelace, dict(utxo.assets)) for utxo in order.utxos],
        "channel": order.channel and (order.channel[0][0].hex(), order.channel[0][1], *_output(order.channel[1])),
        "outputs": [*output, *((address.hex(), *value, None) for address, *value in order.payouts)],
        "ttl": order.ttl_slot,
        "start": order.start_slot,
        "signers": [signer.hex() for signer in order.signers],
        "redeemer": REDEEMERS.get(order.step, b"").hex(),
        "units": _UNITS[order.step],
        "script": order.script.hex(),
        "reference": order.reference and (order.reference[0].hex(), order.reference[1]),
        "cost_model": order.scripts.cost_model,
        "prices": [str(order.scripts.price_memory), str(order.scripts.price_cpu)],
        "price_reference_byte": order.scripts.price_reference_byte,
        "collateral_percent": order.scripts.collateral_percent,
        "fee": [order.parameters.min_fee_a, order.parameters.min_fee_b],
        "coins_per_utxo_byte": order.parameters.coins_per_utxo_byte,
        "max_value_size": order.parameters.max_value_size,
    }


def _output(channel: ChannelOutput) -> tuple[str, int, dict[str, int], str]:
    address, datum = script_address(channel.terms.script_hash), channel_datum(channel.terms, channel.stage)
    tokens = {asset: units for asset, units in channel.value.items() if asset != LOVELACE}
    return address.hex(), channel.lovelace, tokens, datum.hex()


def main() -> None:
    """Read a request of `_request` from stdin and print the unsigned transaction in hex. This is the child."""
    print(_build(json.load(sys.stdin)))


def _build(request: Mapping[str, Any]) -> str:
    import pycardano as cardano

    script = cardano.PlutusV3Script(bytes.fromhex(request["script"]))
    builder = cardano.TransactionBuilder(_context(request))
    builder.ttl = request["ttl"]
    utxos = [_utxo(cardano, tx_id, index, request["own"], *value) for tx_id, index, *value in request["utxos"]]
    for utxo in utxos:
        builder.add_input(utxo)
    if request["channel"]:
        holder = script
        if request["reference"]:
            holder = _utxo(cardano, *request["reference"], request["own"], 0, {})
            holder.output.script = script
        data = cardano.RawCBOR(bytes.fromhex(request["redeemer"]))
        redeemer = cardano.Redeemer(data, cardano.ExecutionUnits(*request["units"]))
        builder.add_script_input(_utxo(cardano, *request["channel"]), holder, redeemer=redeemer)
        builder.collaterals.append(utxos[0])
        builder.required_signers = [cardano.VerificationKeyHash(bytes.fromhex(one)) for one in request["signers"]]
        builder.validity_start = request["start"] or 0  # None would become the last slot - 1,000
    for output in request["outputs"]:
        builder.add_output(_tx_output(cardano, *output))
    body = builder.build(cardano.Address.from_primitive(bytes.fromhex(request["own"])))
    body.validity_start = request["start"]
    return str(cardano.Transaction(body, builder.build_witness_set()).to_cbor_hex())


def _utxo(cardano: Any, tx_id: str, index: int, *output: Any) -> Any:
    ref = cardano.TransactionInput.from_primitive([bytes.fromhex(tx_id), index])
    return cardano.UTxO(ref, _tx_output(cardano, *output))


def _tx_output(
    cardano: Any, address: str, lovelace: int, assets: Mapping[str, int], datum: str | None = None
) -> Any:
    tokens: dict[bytes, dict[bytes, int]] = {}
    for asset, units in assets.items():
        tokens.setdefault(bytes.fromhex(asset[:56]), {})[bytes.fromhex(asset[56:])] = units
    value = cardano.Value(lovelace, cardano.MultiAsset.from_primitive(tokens))
    data = None if datum is None else cardano.RawCBOR(bytes.fromhex(datum))
    return cardano.TransactionOutput(cardano.Address.from_primitive(bytes.fromhex(address)), value, datum=data)


def _context(request: Mapping[str, Any]) -> SimpleNamespace:
    """Return a fake ChainContext with all that the builder reads. Without a cost model it would hash none."""
    attached = 0 if request["reference"] else len(request["script"]) // 2
    parameters = {
        "min_fee_coefficient": request["fee"][0],
        "min_fee_constant": request["fee"][1],
        "max_tx_size": _TX_SIZE_MAX + attached,
        "key_deposit": 0,
        "pool_deposit": 0,
        "max_val_size": request["max_value_size"],
        "price_mem": Fraction(request["prices"][0]),
        "price_step": Fraction(request["prices"][1]),
        "max_tx_ex_mem": _MEMORY_MAX,
        "max_tx_ex_steps": _CPU_MAX,
        "collateral_percent": request["collateral_percent"],
        "coins_per_utxo_byte": request["coins_per_utxo_byte"],
        "cost_models": {"PlutusV3": dict(enumerate(request["cost_model"]))},
        "maximum_reference_scripts_size": {"bytes": 200_000},
        "min_fee_reference_scripts": {"base": request["price_reference_byte"], "range": 25_600, "multiplier": 1.2},
    }
    return SimpleNamespace(protocol_param=SimpleNamespace(**parameters))
