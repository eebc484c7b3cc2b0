"""The signer's part of channels: derives their keys, signs vouchers, and judges the transactions of a channel.

A key of a channel signs nothing for any other one: asset and provider are in its derivation. Nothing that the
daemon says is believed, except how much a channel's provider has taken, which only Mutual uses, within the caps.

The signer cannot know what a channel held before a step, or whether the input is our channel: anyone can copy its
constants. So an opening or an addition counts the channel's whole value in `channels.locked_per_day`, and no step
leaves more in a channel than its provider's `locked_max`. A close or a mutual end moves no other money of ours.

Start with `Channels.answer`. Never: signs bytes of a caller's choice; signs for a token; reads its own clock.
"""

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nacl import bindings

from payagent.core.hard_caps import FEE_CAP_LOVELACE, TTL_AHEAD_MAX_S
from payagent.core.money import LOVELACE, format_amount
from payagent.core.network import SLOT_CLOCKS
from payagent.core.problems import Refused
from payagent.signer.policy import Policy
from payagent.signer.spend_window import SpendWindow
from payagent.wallet import cbor_write as cbor
from payagent.wallet.channel_tx import (
    COLLATERAL_CAP_LOVELACE,
    ChannelOutput,
    ChannelStep,
    channel_tag,
    decode_step,
    iou_message,
    is_iou,
    script_data_hash,
)
from payagent.wallet.keys import SoftwareSigner

_SALT = b"payagent channels"
_PURPOSE = b"payagent channel keys v1"
_HOUR_S = 3_600


@dataclass(frozen=True, slots=True)
class ChannelName:
    """Which channel: its tag in hex, its asset, and the hash in hex of the key that may claim."""

    tag: str
    asset: str
    provider: str


class Windows:
    """What all accounts together signed in 24 hours: locked in channels, and promised by vouchers."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self.locked = SpendWindow({LOVELACE: rules["locked_per_day"]}, "channels.locked_per_day")
        self.promised = SpendWindow({LOVELACE: rules["signed_per_day"]}, "channels.signed_per_day")


class Channels:
    """The channels of one account. `rules` are `Settings.channel_rules`."""

    def __init__(self, rules: Mapping[str, Any], signer: SoftwareSigner, policy: Policy, windows: Windows) -> None:
        self._rules, self._signer, self._policy, self._windows = rules, signer, policy, windows
        self._root = _hkdf(_root_signature(signer, policy.own), b"root v1")
        self._promised: dict[ChannelName, int] = {}
        """The highest voucher signed since the start."""
        self._of_hour: dict[ChannelName, tuple[int, int]] = {}

    def answer(self, request: bytes) -> bytes:
        """Return a channel's public key, the signature of a voucher, or that of a step's body.

        The request is JSON, {"key" | "voucher" | "step": {…}}. Each kind names a channel: `tag`, `asset`,
        `provider`. A voucher has its `amount`. A step has its unsigned `transaction` in hex, and `subbed`, which
        the provider has taken (0 if absent). A close or a mutual end needs `views`, in hex: what its script data
        hash covers beside the redeemer. Vouchers and steps have `before` and `iou`, the amount of the last voucher
        and its signature in hex, if there is one. Refused: `signer_refused`, `limit_exceeded`.
        """
        ((kind, fields),) = json.loads(request).items()
        channel = ChannelName(*(str(fields[name]) for name in ("tag", "asset", "provider")))
        _require(
            channel.asset == LOVELACE and channel.provider in self._rules["providers"],
            f"no merchant of the config has the provider key {channel.provider[:56]}, for ADA",
        )
        place = f"iou v1 {self._rules['network']} {channel.tag} {channel.asset} {channel.provider}"
        key, secret = bindings.crypto_sign_seed_keypair(_hkdf(self._root, place.encode()))
        if kind == "key":
            return key
        promised = self._known(channel, key, fields)
        if kind == "voucher":
            message = iou_message(bytes.fromhex(channel.tag), self._promise(channel, promised, fields["amount"]))
            return bindings.crypto_sign(message, secret)[: bindings.crypto_sign_BYTES]
        step = decode_step(bytes.fromhex(fields["transaction"]))
        if step.step in ("close", "mutual"):
            self._require_apart(step, bytes.fromhex(fields.get("views", "")))
        self._admit(step, channel, key, promised - max(fields.get("subbed", 0), 0))
        return self._signer.sign_hash(step.tx_id)

    def _known(self, channel: ChannelName, key: bytes, fields: Mapping[str, Any]) -> int:
        """The amount that was promised before: what this process signed, or a voucher that its key has signed."""
        if channel in self._promised:
            return self._promised[channel]
        before, iou = fields.get("before", 0), bytes.fromhex(fields.get("iou", ""))
        return int(before) if is_iou(key, bytes.fromhex(channel.tag), before, iou) else 0

    def _promise(self, channel: ChannelName, promised: int, amount: int) -> int:
        """Count what a voucher promises beyond the one before. Return its amount."""
        most, _ = self._rules["providers"][channel.provider]
        if not 0 < amount <= most:
            raise Refused(
                "limit_exceeded",
                f"vouchers of one channel may promise {format_amount(LOVELACE, most)} (its merchant's "
                f"channel.locked_max), this one promises {format_amount(LOVELACE, amount)}",
                limit="locked_max",
                asset=LOVELACE,
                left=str(max(most - promised, 0)),
                asked=str(amount),
            )
        now_s = self._policy.clocks.now_s()
        hour = int(now_s // _HOUR_S)
        in_hour = self._of_hour.get(channel, (hour, 0))
        more = max(amount - promised, 0) + (in_hour[1] if in_hour[0] == hour else 0)
        # Other accounts may have a channel of the same tag: a lying daemon can copy one's constants.
        inputs, leaving = frozenset({(f"{self._policy.own.hex()} {channel}", hour)}), {LOVELACE: more}
        self._windows.promised.require(inputs, leaving, now_s)
        self._policy.count(inputs, leaving, is_own=False)
        self._windows.promised.note(inputs, leaving, now_s)
        self._of_hour[channel] = (hour, more)
        self._promised[channel] = max(amount, promised)
        return amount

    def _admit(self, step: ChannelStep, channel: ChannelName, key: bytes, owed: int) -> None:
        """Check a step of this channel and count it. `owed`: what a Mutual may pay its provider, in lovelace."""
        _require(step.fee <= FEE_CAP_LOVELACE, f"its fee is {step.fee} lovelace, the cap is {FEE_CAP_LOVELACE}")
        _require(
            step.most_collateral <= COLLATERAL_CAP_LOVELACE, f"its collateral is {step.most_collateral} lovelace"
        )
        slot = self._policy.clocks.slot()
        _require(slot is None or step.ttl_slot - slot <= TTL_AHEAD_MAX_S, "it is valid for too long")
        if step.output is not None:
            self._require_own(step, step.output, channel, key)
        returned = step.collateral_return
        _require(returned is None or returned[0] == self._policy.own, "its collateral returns to another wallet")
        others = [output for output in step.others if output[0] != self._policy.own]
        paid = sum(lovelace for _, lovelace, _ in others)
        is_payout = step.step == "mutual" and all(
            len(address) in (29, 57) and address[1:29].hex() == channel.provider and not tokens
            for address, _, tokens in others
        )
        _require(not others or (is_payout and paid <= owed), "it pays others than this wallet")
        # A script that fails takes the collateral and spends nothing else. Each outcome spends the collateral.
        inputs = frozenset((tx_id.hex(), index) for tx_id, index in step.collateral or step.inputs)
        leaving = {LOVELACE: max(step.fee + paid, step.most_collateral)}
        now_s = self._policy.clocks.now_s()
        locked = {LOVELACE: step.output.lovelace if step.output and step.step in ("open", "add") else 0}
        self._windows.locked.require(inputs, locked, now_s)
        self._policy.count(inputs, leaving, is_own=not paid)
        self._windows.locked.note(inputs, locked, now_s)

    def _require_apart(self, step: ChannelStep, views: bytes) -> None:
        """Refuse a step that moves money of the wallet other than the channel's, which nothing counts.

        Its only other input is the collateral, whose value the ledger checks, but only for a script that runs. So
        the redeemer must be the one that was read: the body's hash of it and of `views` shows that.
        """
        bound = script_data_hash(step.step, int(step.inputs[0] in step.collateral), step.units, views)
        _require(len(step.inputs) == 2 and bound == step.script_data_hash, "its script data hash is another's")
        _, back, _ = step.collateral_return or (b"", 0, {})
        kept = sum(lovelace for address, lovelace, _ in step.others if address == self._policy.own)
        _require(kept + step.fee >= back + step.most_collateral, "it moves other money than its channel's")

    def _require_own(self, step: ChannelStep, output: ChannelOutput, channel: ChannelName, key: bytes) -> None:
        """Refuse a channel that is not ours, that a script holds which is not trusted, or that holds too much."""
        terms, (most, delay_max_ms) = output.terms, self._rules["providers"][channel.provider]
        _require(terms.script_hash.hex() in self._rules["scripts"], "channels.scripts does not have its script")
        _require(terms.consumer == self._policy.own[1:29], "its channel returns its money to another wallet")
        is_same = ChannelName(terms.tag.hex(), terms.asset, terms.provider.hex()) == channel
        _require(is_same and terms.iou_key == key, "its channel has other constants than the request")
        _require(
            terms.close_period_ms <= delay_max_ms, f"it returns its money only {terms.close_period_ms} ms later"
        )
        slots = SLOT_CLOCKS.get(self._rules["network"].removeprefix("cardano:"))  # None on a devnet
        elapse_at_ms = output.stage.elapse_at_ms or 0
        _require(
            slots is None or elapse_at_ms <= slots.time_ms(step.ttl_slot) + terms.close_period_ms,
            f"it returns its money only at {elapse_at_ms} ms",
        )
        is_new = any(channel_tag(*one).hex() == channel.tag for one in step.inputs)
        _require(is_new or step.step != "open", "its tag is of no input")
        _require(step.step != "open" or output.stage.subbed == 0, "its new channel is claimed from already")
        _require(output.lovelace <= most, f"its channel holds {output.lovelace} lovelace, the cap is {most}")


def _root_signature(signer: SoftwareSigner, own: bytes) -> bytes:
    """Sign the purpose of the keys by CIP-8, with the payment key. One wallet always has the same signature."""
    protected = b"\xa2\x01\x27" + _text("address") + cbor.byte_string(own)
    parts = (_text("Signature1"), *map(cbor.byte_string, (protected, b"", _PURPOSE)))
    return signer.sign_hash(cbor.head(4, len(parts)) + b"".join(parts))


def _text(value: str) -> bytes:
    return cbor.head(3, len(value)) + value.encode()


def _hkdf(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 (RFC 5869)."""
    return hmac.digest(hmac.digest(_SALT, secret, "sha256"), info + b"\x01", "sha256")


def _require(is_met: bool, why: str) -> None:
    if not is_met:
        raise Refused("signer_refused", why)
