"""Finds our channels among the outputs at their script's address.

Never: asks a provider; believes an output with other constants, which anybody can make.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from payagent.chain.provider import ChainUtxo
from payagent.core.address import Address, encode_address
from payagent.core.channel import Channel, Position
from payagent.wallet.channel_tx import (
    ChannelOutput,
    ChannelTerms,
    TxRef,
    capacity,
    decode_datum,
    script_address,
)
from payagent.wallet.transaction import MAINNET_PARAMETERS

LOVELACE_PER_BYTE = MAINNET_PARAMETERS.coins_per_utxo_byte


class ChannelUtxo(NamedTuple):
    """A channel's output, by "txid#index" and as a reference of wallet.channel_tx, and what it holds."""

    ref: str
    tx_ref: TxRef
    output: ChannelOutput

    @property
    def position(self) -> Position:
        stage, most = self.output.stage, capacity(self.output, LOVELACE_PER_BYTE)
        return Position(self.ref, most, None if stage.name == "settled" else stage.subbed, stage.elapse_at_ms)


def address_of(script_hash: str) -> Address:
    """The address of a script's channels. The hash is in hex."""
    return encode_address(script_address(bytes.fromhex(script_hash)))


def terms_of(channel: Channel, consumer: bytes) -> ChannelTerms:
    """The constants of a channel's datum. `consumer`: the hash of our key."""
    return ChannelTerms(
        script_hash=bytes.fromhex(channel.script_hash),
        tag=bytes.fromhex(channel.id),
        asset=channel.asset,
        iou_key=bytes.fromhex(channel.iou_key),
        consumer=consumer,
        provider=bytes.fromhex(channel.provider),
        close_period_ms=channel.close_period_ms,
    )


def read_channels(utxos: Iterable[ChainUtxo]) -> list[ChannelUtxo]:
    """The outputs that are channels. Others are left out: anybody can pay the address, with any datum."""
    found = []
    for utxo in utxos:
        with suppress(ValueError):
            terms, stage = decode_datum(bytes.fromhex(utxo.datum or ""))
            output = ChannelOutput(terms, stage, utxo.lovelace, utxo.assets.get(terms.asset, 0))
            found.append(ChannelUtxo(utxo.ref, (bytes.fromhex(utxo.tx_id), utxo.index), output))
    return found


def alike(channel: Channel, consumer: bytes, utxos: Iterable[ChainUtxo]) -> list[ChannelUtxo]:
    """The outputs with the channel's constants: the one at its last known place alone, if it is there."""
    terms = terms_of(channel, consumer)
    found = [utxo for utxo in read_channels(utxos) if utxo.output.terms == terms]
    return [utxo for utxo in found if utxo.ref == channel.ref] or found
