"""Channels on the chain: the bytes of datums, redeemers and IOUs, and a strict decoder of their transactions.

Start with `decode_step`. A channel is one UTxO at the script's address. Its inline datum has constants
(`ChannelTerms`) and a stage (`ChannelStage`). Six transactions of ours, the steps, make, change or spend it.

Source: the x402 draft `batch-settlement` for Cardano, v0.7, with the Subbit validator. Test networks only.

Never: pycardano, I/O, a clock; trusts a script: the caller compares `script_hash` with the scripts it trusts.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from payagent.core.money import LOVELACE
from payagent.wallet import cbor_write as cbor

CHANNEL_STEPS = ("open", "add", "close", "end", "elapse", "mutual")
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
_WIDE = 2**63  # the widest integers that a Closed datum and a value are planned for


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """The constants of a channel's datum. `script_hash` is its ownHash, `asset` as `parse_asset` gives it.

    `consumer` and `provider` are key hashes. `iou_key` is the public key that signs IOUs.
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
    `signers`: required signers, in order. `units`: memory and CPU steps. `script`: attached bytes, if any.
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
    reference_inputs: tuple[TxRef, ...] = ()
    script: bytes | None = None
    units: tuple[int, int] = (0, 0)
    script_data_hash: bytes | None = None


def channel_tag(tx_id: bytes, index: int) -> bytes:
    """Return the tag, also the channel's id: the hash of an input of the opening."""
    return hashlib.blake2b(b"\x82" + cbor.byte_string(tx_id) + cbor.uint(index), digest_size=32).digest()


def iou_message(tag: bytes, amount: int) -> bytes:
    """Return the bytes that an IOU signs. `amount` is cumulative, in smallest units."""
    return _list(cbor.byte_string(tag), cbor.uint(amount))


def channel_datum(terms: ChannelTerms, stage: ChannelStage) -> bytes:
    """Return the inline datum: [ownHash, constants, stage] as Plutus data."""
    hashes = [cbor.byte_string(value) for value in (terms.iou_key, terms.consumer, terms.provider)]
    asset = bytes.fromhex("" if terms.asset == LOVELACE else terms.asset)
    currency = (
        _constructor(1, cbor.byte_string(asset[:28]), cbor.byte_string(asset[28:])) if asset else _constructor(0)
    )
    constants = _list(cbor.byte_string(terms.tag), currency, *hashes, cbor.uint(terms.close_period_ms))
    return _list(cbor.byte_string(terms.script_hash), constants, _stage(stage))


def _stage(stage: ChannelStage) -> bytes:
    fields = [] if stage.name == "settled" else [cbor.uint(stage.subbed)]
    if stage.elapse_at_ms is not None:
        fields.append(cbor.uint(stage.elapse_at_ms))
    return _constructor(STAGES.index(stage.name), *fields)


def _list(*items: bytes) -> bytes:
    return b"\x9f" + b"".join(items) + b"\xff"


def _constructor(number: int, *fields: bytes) -> bytes:
    return bytes((0xD8, 121 + number)) + (_list(*fields) if fields else b"\x80")


def script_address(script_hash: bytes) -> bytes:
    """Return the raw address of a script's channels. It has no stake part."""
    return _SCRIPT_ADDRESS + script_hash


def reserve(terms: ChannelTerms, coins_per_utxo_byte: int) -> int:
    """Return the lovelace that stays in the channel until it ends: min-ADA of its output when closed."""
    constants = ChannelTerms(
        terms.script_hash, terms.tag, terms.asset, terms.iou_key, terms.consumer, terms.provider, _WIDE
    )
    datum = channel_datum(constants, ChannelStage("closed", _WIDE, _WIDE))
    value = 5 if terms.asset == LOVELACE else 6 + len(cbor.single_asset(terms.asset, _WIDE))
    size = 1 + 1 + 31 + 1 + value + 1 + 4 + len(cbor.byte_string(datum))
    return (_OUTPUT_OVERHEAD_BYTES + size) * coins_per_utxo_byte


def capacity(output: ChannelOutput, coins_per_utxo_byte: int) -> int:
    """Return the largest amount that an IOU on this channel can redeem. Never below `subbed`."""
    held = output.tokens
    if output.terms.asset == LOVELACE:
        held = max(0, output.lovelace - reserve(output.terms, coins_per_utxo_byte))
    return output.stage.subbed + held
