"""Channels on the chain: the bytes of datums, redeemers and IOUs, and a strict decoder of their transactions.

Start with `decode_step`. A channel is one UTxO at the script's address. Its inline datum has constants
(`ChannelTerms`) and a stage (`ChannelStage`). Six transactions of ours, the steps, make, change or spend it:

- `open` locks money in a new channel; `add` adds money to an open one;
- `close` ends the vouchers. From then on the provider has the close period to claim ("settle");
- `end` takes back what that claim left; `elapse` takes back the money if no such claim came in time;
- `mutual` divides the money at any time. The provider signs it too.

Source: the x402 draft `batch-settlement` for Cardano, v0.7, with the Subbit validator. Test networks only.

Never: pycardano, I/O, a clock; trusts a script: the caller compares `script_hash` with the scripts it trusts.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.wallet import cbor_write as cbor
from payagent.wallet.tx_decode import (
    ARRAY,
    MAP,
    NUMBER,
    DecodedOutput,
    DecodedTransaction,
    Reader,
    Undecodable,
    read_bytes,
    read_fixed,
    read_head,
    read_inputs,
    read_items,
    read_output,
    read_set,
    read_value,
)

COLLATERAL_CAP_LOVELACE = 1_000_000
STAGES = ("opened", "closed", "settled")

REDEEMERS: Mapping[str, bytes] = MappingProxyType(
    {
        "add": bytes.fromhex("d87a9f9fd8799fd87980ffffff"),
        "close": bytes.fromhex("d87a9f9fd8799fd87b80ffffff"),
        "end": bytes.fromhex("d87a9f9fd87a9fd87980ffffff"),
        "elapse": bytes.fromhex("d87a9f9fd87a9fd87a80ffffff"),
        "mutual": bytes.fromhex("d87b80"),
    }
)
"""The redeemer of each step that runs the script. To open a channel runs none."""

_SCRIPT_ADDRESS = b"\x70"  # CIP-19 type 7 without a stake part, on a test network
_OUTPUT_OVERHEAD_BYTES = 160
_INPUTS_MAX = 3
_OPEN_FIELDS, _SCRIPT_FIELDS = {0, 1, 2, 3}, {0, 1, 2, 3, 11, 13, 14, 16, 17}
_UINT = rb"([\x00-\x17]|\x18.|\x19..|\x1a.{4}|\x1b.{8})"
_NAME = b"(" + b"|".join(re.escape(cbor.head(2, size)) + b".{%d}" % size for size in range(33)) + b")"
_DATUM = re.compile(
    rb"\x9f\x58\x1c(.{28})\x9f\x58\x20(.{32})"
    rb"(?:\xd8\x79\x80|\xd8\x7a\x9f\x58\x1c(.{28})" + _NAME + rb"\xff)"
    rb"\x58\x20(.{32})\x58\x1c(.{28})\x58\x1c(.{28})" + _UINT + rb"\xff"
    rb"(?:\xd8\x79\x9f" + _UINT + rb"\xff|\xd8\x7a\x9f" + _UINT + _UINT + rb"\xff|\xd8\x7b\x80)\xff",
    re.DOTALL,
)
_STEP_OF = {data: step for step, data in REDEEMERS.items()}
_REDEEMER = re.compile(
    rb"\xa2\x05\xa1\x82\x00" + _UINT + rb"\x82(" + b"|".join(map(re.escape, _STEP_OF)) + rb")\x82"
    + _UINT + _UINT + rb"\x07\xd9\x01\x02\x81",
    re.DOTALL,
)  # fmt: skip
_WIDE = 2**63  # the widest integers that a Closed datum and a value are planned for


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """The constants of a channel's datum. `script_hash` is its ownHash, `asset` as `parse_asset` gives it.

    `tag`: see `channel_tag`. `consumer` (this wallet) and `provider` (the merchant's claiming key) are key hashes.
    `iou_key` is the public key that signs IOUs. `close_period_ms`: the offer's withdraw delay in milliseconds.
    """

    script_hash: bytes
    tag: bytes
    asset: str
    iou_key: bytes
    consumer: bytes
    provider: bytes
    close_period_ms: int


@dataclass(frozen=True, slots=True)
class ChannelStage:
    """The part of a datum that changes. `name` is one of `STAGES`.

    `subbed`: units the provider has taken, 0 when settled. `elapse_at_ms`: POSIX time, only when closed.
    """

    name: str
    subbed: int
    elapse_at_ms: int | None


@dataclass(frozen=True, slots=True)
class ChannelOutput:
    """A channel's UTxO. `tokens`: units of `terms.asset`, 0 for lovelace."""

    terms: ChannelTerms
    stage: ChannelStage
    lovelace: int
    tokens: int

    @property
    def value(self) -> dict[str, int]:
        """Units by asset."""
        return {LOVELACE: self.lovelace} | ({self.terms.asset: self.tokens} if self.tokens else {})


TxRef = tuple[bytes, int]
"""A transaction id and the index of an output."""

AddressedValue = tuple[bytes, int, dict[str, int]]
"""An output that pays an address: its raw bytes, lovelace, and tokens by asset."""


@dataclass(frozen=True, slots=True)
class ChannelStep:
    """A decoded transaction of one of the six shapes. It has no key witnesses.

    `channel_input`: the input that the redeemer's index names; None for open.
    `output`: the channel as output 0; None for end, elapse and mutual.
    `others`: the remaining outputs in order.
    `most_collateral`: lovelace that a failed script takes; the rest goes to `collateral_return`.
    `signers`: required signers, in order. `units`: memory and CPU steps. `script`: its bytes; None for open.
    """

    step: str
    tx_id: bytes
    inputs: tuple[TxRef, ...]
    collateral: tuple[TxRef, ...]
    channel_input: TxRef | None
    output: ChannelOutput | None
    others: tuple[AddressedValue, ...]
    fee: int
    most_collateral: int
    start_slot: int | None
    ttl_slot: int
    signers: tuple[bytes, ...]
    collateral_return: AddressedValue | None = None
    script: bytes | None = None
    units: tuple[int, int] = (0, 0)
    script_data_hash: bytes | None = None


def channel_tag(tx_id: bytes, index: int) -> bytes:
    """Return the tag, also the channel's id: the hash of an input of the opening, which is its nonce UTxO."""
    return hashlib.blake2b(b"\x82" + cbor.byte_string(tx_id) + cbor.uint(index), digest_size=32).digest()


def iou_message(tag: bytes, amount: int) -> bytes:
    """Return the bytes that an IOU signs. `amount` is cumulative, in smallest units."""
    return _list(cbor.byte_string(tag), cbor.uint(amount))


def is_iou(iou_key: bytes, tag: bytes, amount: int, signature: bytes) -> bool:
    """Whether the channel's own key signed an IOU for this amount."""
    try:
        crypto_sign_open(signature + iou_message(tag, amount), iou_key)
    except (BadSignatureError, ValueError):
        return False
    return True


def channel_datum(terms: ChannelTerms, stage: ChannelStage) -> bytes:
    """Return the inline datum: [ownHash, constants, stage] as Plutus data."""
    hashes = [cbor.byte_string(value) for value in (terms.iou_key, terms.consumer, terms.provider)]
    asset = bytes.fromhex("" if terms.asset == LOVELACE else terms.asset)
    currency = (
        _constructor(1, cbor.byte_string(asset[:28]), cbor.byte_string(asset[28:])) if asset else _constructor(0)
    )
    constants = _list(cbor.byte_string(terms.tag), currency, *hashes, cbor.uint(terms.close_period_ms))
    fields = [] if stage.name == "settled" else [cbor.uint(stage.subbed)]
    if stage.elapse_at_ms is not None:
        fields.append(cbor.uint(stage.elapse_at_ms))
    now = _constructor(STAGES.index(stage.name), *fields)
    return _list(cbor.byte_string(terms.script_hash), constants, now)


def _list(*items: bytes) -> bytes:
    return b"\x9f" + b"".join(items) + b"\xff"


def _constructor(number: int, *fields: bytes) -> bytes:
    return bytes((0xD8, 121 + number)) + (_list(*fields) if fields else b"\x80")


def redeemers(step: str, index: int, units: tuple[int, int]) -> bytes:
    """Return the witness set's redeemers: that of `step`, for the input at `index`, with memory and CPU units."""
    memory, cpu = map(cbor.uint, units)
    return b"\xa1\x82\x00" + cbor.uint(index) + b"\x82" + REDEEMERS[step] + b"\x82" + memory + cpu


def script_data_hash(step: str, index: int, units: tuple[int, int], views: bytes) -> bytes:
    """Return the hash of the redeemer and of `views`, PlutusV3's cost model, as Conway's ledger computes it."""
    return hashlib.blake2b(redeemers(step, index, units) + views, digest_size=32).digest()


def script_address(script_hash: bytes) -> bytes:
    """Return the raw address of a script's channels. It has no stake part."""
    return _SCRIPT_ADDRESS + script_hash


def reserve(terms: ChannelTerms, coins_per_utxo_byte: int) -> int:
    """Return the lovelace that stays in the channel until it ends: min-ADA of its output when closed."""
    datum = channel_datum(replace(terms, close_period_ms=_WIDE), ChannelStage("closed", _WIDE, _WIDE))
    value = 5 if terms.asset == LOVELACE else 6 + len(cbor.single_asset(terms.asset, _WIDE))
    size = 1 + 1 + 31 + 1 + value + 1 + 4 + len(cbor.byte_string(datum))
    return (_OUTPUT_OVERHEAD_BYTES + size) * coins_per_utxo_byte


def capacity(output: ChannelOutput, coins_per_utxo_byte: int) -> int:
    """Return the largest amount that an IOU on this channel can redeem. Never below `subbed`."""
    held = output.tokens
    if output.terms.asset == LOVELACE:
        held = max(0, output.lovelace - reserve(output.terms, coins_per_utxo_byte))
    return output.stage.subbed + held


def opened(terms: ChannelTerms, units: int, coins_per_utxo_byte: int) -> ChannelOutput:
    """Return a new channel with `units` of its asset. With a token it holds exactly the reserve in lovelace.

    In lovelace, `units` include the reserve, so 5 ADA pay for calls of 3.27 ADA: see `capacity`. Less than the
    reserve pays for none, and is not refused here.
    """
    lovelace = 0 if terms.asset == LOVELACE else reserve(terms, coins_per_utxo_byte)
    return added(ChannelOutput(terms, ChannelStage("opened", 0, None), lovelace, 0), units)


def added(channel: ChannelOutput, units: int) -> ChannelOutput:
    """Return the channel with `units` more of its asset."""
    if channel.terms.asset == LOVELACE:
        return replace(channel, lovelace=channel.lovelace + units)
    return replace(channel, tokens=channel.tokens + units)


def closed(channel: ChannelOutput, ttl_ms: int) -> ChannelOutput:
    """Return the channel as closed by a transaction whose TTL is at `ttl_ms`, the POSIX time of its `ttl_slot`."""
    elapse_at_ms = ttl_ms + channel.terms.close_period_ms
    return replace(channel, stage=ChannelStage("closed", channel.stage.subbed, elapse_at_ms))


def decode_datum(datum: bytes) -> tuple[ChannelTerms, ChannelStage]:
    """Decode a channel's datum, in the encoding of `channel_datum` alone. Raises Undecodable."""
    match = _DATUM.fullmatch(datum)
    if match is None:
        raise Undecodable("the datum is not a channel's in canonical form")
    script_hash, tag, policy, name, iou_key, consumer, provider, *heads = match.groups()
    numbers = [None if head is None else _number(head, 0)[0] for head in heads]
    close_period_ms, opened_subbed, closed_subbed, elapse_at_ms = numbers
    asset = LOVELACE if policy is None else (policy + read_bytes(name, 0, "the asset's name")[0]).hex()
    terms = ChannelTerms(script_hash, tag, asset, iou_key, consumer, provider, close_period_ms or 0)
    stage = "closed" if closed_subbed is not None else "settled" if opened_subbed is None else "opened"
    return terms, ChannelStage(stage, opened_subbed or closed_subbed or 0, elapse_at_ms)


def decode_step(raw: bytes) -> ChannelStep:
    """Decode an unsigned transaction of one of the six shapes, in canonical form.

    It shows every field that the shape leaves open, so the caller can compare each. The caller decides whether it
    trusts the script (`output.terms.script_hash`, also that of the output's address), and who may be paid.
    Refused: `signer_refused` for anything else.
    """
    try:
        return _step(raw)
    except (Undecodable, IndexError) as error:
        why = error if isinstance(error, Undecodable) else "the bytes end early"
        raise Refused("signer_refused", f"it is not a channel's transaction: {why}") from None


def signed_step(raw: bytes, public_key: bytes, signature: bytes) -> bytes:
    """Return the transaction that `decode_step` reads, with the signature of its one key.

    Raises BadSignatureError if the key did not sign this body.
    """
    _, end = _body(raw, 1)
    crypto_sign_open(signature + hashlib.blake2b(raw[1:end], digest_size=32).digest(), public_key)
    witness = b"\x00" + cbor.TAGGED_SET + b"\x81\x82" + cbor.byte_string(public_key) + cbor.byte_string(signature)
    return raw[:end] + bytes((raw[end] + 1,)) + witness + raw[end + 1 :]


def _step(raw: bytes) -> ChannelStep:
    _require(raw[:1] == b"\x84", "a transaction is an array of four")
    body, body_end = _body(raw, 1)
    step, index, units, script, end = _witnesses(raw, body_end)
    _require(raw[end:] == b"\xf5\xf6", "it ends in true and null, without trailing bytes")
    needed = _OPEN_FIELDS if step == "open" else _SCRIPT_FIELDS
    _require(
        body.keys() == needed | ({8} if step == "elapse" else set()), "the body has other fields than its shape"
    )
    inputs, (output, others) = body[0], body[1]
    _require(len(inputs) <= _INPUTS_MAX, f"it has more than {_INPUTS_MAX} inputs")
    stage = {"open": "opened", "add": "opened", "close": "closed"}.get(step)
    _require((output and output.stage.name) == stage, f"output 0 is not what {step} leaves of a channel")
    channel_input: TxRef | None = None
    if step != "open":
        channel_input = inputs[index]
        signers = body[14]
        spare = [ref for ref in body[13] if ref in inputs and ref != channel_input]
        _require(spare == [*body[13]] and len(spare) == 1, "the collateral is not one input beside the channel")
        _require(len(signers) == (2 if step == "mutual" else 1), f"{step} needs other signers")
        _require(output is None or signers == (output.terms.consumer,), "the signer is not the channel's consumer")
    return ChannelStep(
        step=step,
        tx_id=hashlib.blake2b(raw[1:body_end], digest_size=32).digest(),
        inputs=inputs,
        collateral=body.get(13, ()),
        channel_input=channel_input,
        output=output,
        others=others,
        fee=body[2],
        most_collateral=body.get(17, 0),
        start_slot=body.get(8),
        ttl_slot=body[3],
        signers=body.get(14, ()),
        collateral_return=body.get(16),
        script=script,
        units=units,
        script_data_hash=body.get(11),
    )


def decode_signed_step(raw: bytes) -> DecodedTransaction:
    """Decode a step with the signature of its one key, as a payment's transaction. Raises Undecodable, IndexError.

    `inputs` are those beside the channel. The channel, if it goes on, is the first output.
    """
    _, end = _body(raw, 1)
    key, at = read_fixed(raw, end + 1, b"\x00" + cbor.TAGGED_SET + b"\x81\x82\x58\x20", 32, "it has no signature")
    signature, at = read_fixed(raw, at, b"\x58\x40", 64, "its signature is not of 64 bytes")
    step = _step(raw[:end] + bytes((raw[end] - 1,)) + raw[at:])
    outputs = [DecodedOutput(*one, 0) for one in step.others]
    if (channel := step.output) is not None:
        assets = {asset: units for asset, units in channel.value.items() if asset != LOVELACE}
        outputs.insert(0, DecodedOutput(script_address(channel.terms.script_hash), channel.lovelace, assets, 0))
    inputs = tuple((tx_id.hex(), index) for tx_id, index in step.inputs if (tx_id, index) != step.channel_input)
    return DecodedTransaction(
        raw[1:end], inputs, tuple(outputs), step.fee, step.ttl_slot, None, ((key, signature),), None
    )


def _body(buf: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Read the fields by their keys, which are in order."""
    count, at = read_head(buf, at, MAP, "the body")
    fields: dict[int, Any] = {}
    before = -1
    for _ in range(count):
        key, at = read_head(buf, at, NUMBER, "a key of the body")
        _require(key > before and key in _READERS, f"the body has the field {key}, or not in order")
        before = key
        fields[key], at = _READERS[key](buf, at)
    return fields, at


def _witnesses(buf: bytes, at: int) -> tuple[str, int, tuple[int, int], bytes | None, int]:
    """Read the redeemer, as step, the spent input's place and units, and the script."""
    if buf[at] == 0xA0:
        return "open", 0, (0, 0), None, at + 1
    match = _REDEEMER.match(buf, at)
    if match is None:
        raise Undecodable("the witnesses are not one redeemer of a step and one Plutus V3 script")
    index, memory, cpu = (_number(match[group], 0)[0] for group in (1, 3, 4))
    script, at = read_bytes(buf, match.end(), "the script")
    return _STEP_OF[match[2]], index, (memory, cpu), script, at


def _refs(buf: bytes, at: int) -> tuple[tuple[TxRef, ...], int]:
    inputs, at = read_inputs(buf, at)
    refs = tuple((bytes.fromhex(tx_id), index) for tx_id, index in inputs)
    _require(list(refs) == sorted(set(refs)) and len(refs) > 0, "a set of inputs is empty, or not in order")
    return refs, at


def _outputs(buf: bytes, at: int) -> tuple[tuple[ChannelOutput | None, tuple[AddressedValue, ...]], int]:
    """Read the outputs: the channel, which can only be the first, and the others."""
    count, at = read_head(buf, at, ARRAY, "the list of outputs")
    channel: ChannelOutput | None = None
    if count and buf[at] == 0xA3:
        channel, at = _channel_output(buf, at)
        count -= 1
    others, at = read_items(buf, at, count, _other)
    return (channel, others), at


def _channel_output(buf: bytes, at: int) -> tuple[ChannelOutput, int]:
    head = b"\xa3\x00\x58\x1d" + _SCRIPT_ADDRESS
    script_hash, at = read_fixed(buf, at, head, 28, "output 0 does not pay a script on a test network")
    _, at = read_fixed(buf, at, b"\x01", 0, "output 0 has no value")
    lovelace, assets, at = read_value(buf, at)
    _, at = read_fixed(buf, at, b"\x02\x82\x01\xd8\x18", 0, "output 0 has no inline datum")
    datum, at = read_bytes(buf, at, "the datum")
    terms, stage = decode_datum(datum)
    _require(terms.script_hash == script_hash, "the datum names another script than the address")
    tokens = assets.pop(terms.asset, 0)
    _require(not assets, "the channel holds another token than its own")
    return ChannelOutput(terms, stage, lovelace, tokens), at


def _other(buf: bytes, at: int) -> tuple[AddressedValue, int]:
    output, at = read_output(buf, at)
    return (output.address, output.lovelace, output.assets), at


def _signers(buf: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    count, at = read_set(buf, at, "the required signers")
    signers, at = read_items(buf, at, count, partial(_fixed, b"\x58\x1c", 28))
    _require(len(set(signers)) == len(signers), "a required signer occurs twice")
    return signers, at


def _number(buf: bytes, at: int) -> tuple[int, int]:
    return read_head(buf, at, NUMBER, "a number")


def _fixed(head: bytes, size: int, buf: bytes, at: int) -> tuple[bytes, int]:
    return read_fixed(buf, at, head, size, f"a hash is not of {size} bytes")


_READERS: Mapping[int, Reader] = MappingProxyType(
    {
        0: _refs, 1: _outputs, 2: _number, 3: _number, 8: _number, 11: partial(_fixed, b"\x58\x20", 32), 13: _refs,
        14: _signers, 16: _other, 17: _number,
    }
)  # fmt: skip
"""How the body's fields are read, by Conway's keys. There is no network id (15)."""


def _require(is_met: bool, why: str) -> None:
    if not is_met:
        raise Undecodable(why)
