"""Compares signed bytes with the row that holds them and with the outputs to pay. Pure.

Never: takes from a row a fact that the bytes state.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from payagent.core.address import Address, encode_address, parse_address
from payagent.core.aggregate import OutputRow
from payagent.core.ledger import Units, add
from payagent.core.money import LOVELACE
from payagent.core.network import Network
from payagent.store.audit.payment_records import SignedRow
from payagent.wallet.tx_decode import DecodedTransaction, Undecodable, decode

Reading = DecodedTransaction

CHANNEL_STEP = "channel_step"
"""What `differences` calls a transfer that changes a channel."""

_SCRIPT_ADDRESS = b"\x70"  # CIP-19: a script on a test network, without a stake part


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of the ledger: the wallet's address, and its network.

    `accounts`: the address of each account, if the ledger has several.
    """

    address: Address
    network: Network
    accounts: Mapping[int, Address] = field(default_factory=dict)

    def of(self, account: int) -> "Owner":
        """The owner of what this account pays."""
        return replace(self, address=self.accounts.get(account, self.address))


def of_all_accounts(owner: Owner, addresses: Mapping[int, str]) -> Owner:
    """The owner with the addresses that the ledger has for its accounts."""
    accounts = {account: parse_address(text, owner.network) for account, text in addresses.items()}
    return replace(owner, accounts=accounts)


def read(cbor: bytes, is_channel_step: bool = False) -> Reading | str:
    """The decoded transaction, or the reason why the bytes are not one of ours."""
    try:
        return _step(cbor) if is_channel_step else decode(cbor)
    except (Undecodable, RecursionError, IndexError, KeyError, TypeError) as error:
        return str(error) or type(error).__name__


def _step(cbor: bytes) -> Reading:
    from payagent.wallet.channel_tx import decode_signed_step  # only where there are channels

    return decode_signed_step(cbor)


def taken(reading: Reading, spent: Mapping[str, Units], owner: Owner) -> dict[str, int]:
    """Units per asset that a transaction takes from the wallet, without its fee.

    `spent`: the value of each of the wallet's UTxOs. Anything else that it spends is a channel's.
    """
    own = (one for one in reading.outputs if one.address == owner.address.raw)
    return add(
        (
            *(spent.get(f"{tx_id}#{index}", {}) for tx_id, index in reading.inputs),
            *({asset: -units for asset, units in ((LOVELACE, one.lovelace), *one.assets.items())} for one in own),
            {LOVELACE: -reading.fee_lovelace},
        )
    )


def external_value(reading: Reading, owner: Owner) -> dict[str, int]:
    """Units per asset of the outputs that are not the wallet's own."""
    own = owner.address.raw
    return add({LOVELACE: one.lovelace, **one.assets} for one in reading.outputs if one.address != own)


def differences(
    reading: Reading,
    row: SignedRow,
    outputs: tuple[OutputRow, ...],
    kind: str,
    commitment: str | None,
    owner: Owner,
) -> Iterator[str]:
    """Every difference of the bytes from the row or from the outputs to pay."""
    tx_id = hashlib.blake2b(reading.body, digest_size=32).digest()
    if tx_id.hex() != row.tx_id:
        yield "its bytes have another transaction id"
    inputs = [f"{spent}#{index}" for spent, index in reading.inputs]
    known = set(row.inputs) if kind == CHANNEL_STEP else set(inputs)  # a rollback may have taken the others
    if sorted(known & set(inputs)) != sorted(row.inputs) or len(set(inputs)) != len(inputs):
        yield "its bytes spend other inputs"
    if row.nonce_utxo not in inputs:
        yield "its bytes do not spend the nonce UTxO"
    for name, found, expected in (
        ("fee", reading.fee_lovelace, row.fee_lovelace),
        ("TTL", reading.ttl_slot, row.ttl_slot),
        ("network id", reading.network_id, owner.network.network_id),
    ):
        if found not in (None, expected):  # the network is optional in a body
            yield f"its bytes have the {name} {found}, not {expected}"
    if (reading.commitment.hex() if reading.commitment else None) != commitment:
        yield "its bytes commit to something other than the invoice"
    if not _is_signed_by(reading, tx_id, owner):
        yield "it is not signed by the wallet's key"
    if not _pays(reading, row, outputs, kind, owner):
        yield "its bytes do not pay the outputs that they should"


def _is_signed_by(reading: Reading, tx_id: bytes, owner: Owner) -> bool:
    if len(reading.witnesses) != 1:
        return False
    key, signature = reading.witnesses[0]
    if hashlib.blake2b(key, digest_size=28).digest() != owner.address.payment_key_hash:
        return False
    try:
        crypto_sign_open(signature + tx_id, key)
    except BadSignatureError:
        return False
    return True


def _pays(reading: Reading, row: SignedRow, outputs: tuple[OutputRow, ...], kind: str, owner: Owner) -> bool:
    """Whether the bytes pay the outputs.

    A cancel pays only the wallet. A `channel_step` pays the wallet and the channel, which is first. A `sweep` pays
    the whole value of its outputs as listed. Others pay each output separately, in order.
    """
    own = owner.address.raw
    if row.kind == "cancel" or kind == CHANNEL_STEP:
        others = [place for place, output in enumerate(reading.outputs) if output.address != own]
        is_kept = others == [0] and reading.outputs[0].address.startswith(_SCRIPT_ADDRESS)
        return not others or (row.kind == "pay" and is_kept)
    if kind == "sweep":
        flat = [
            (_text(output.address), asset, units)
            for output in reading.outputs
            for asset, units in ((LOVELACE, output.lovelace), *output.assets.items())
        ]
        return flat == [(o.address, o.asset, o.units) for o in outputs]
    if len(reading.outputs) < len(outputs):
        return False
    for found, expected in zip(reading.outputs, outputs, strict=False):
        paid = found.assets if expected.asset != LOVELACE else {LOVELACE: found.lovelace}
        if paid != {expected.asset: expected.units} or (expected.asset == LOVELACE and found.assets):
            return False
        if _text(found.address) != expected.address:
            return False
    return all(output.address == own for output in reading.outputs[len(outputs) :])


@lru_cache(maxsize=1000)
def _text(raw: bytes) -> str:
    """The address as text; cached, because many payments share the same few."""
    return encode_address(raw).text if raw else ""
