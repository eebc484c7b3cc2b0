"""The devnet's shop under /channel/: sells calls by the vouchers of channels, honestly or in a mood.

Start at `ChannelShop.ask`. It counts per channel, looks at the chain for each voucher, and claims by
transactions of its own.

Source: the x402 draft `batch-settlement` for Cardano, version 0.7, and its reference server.

Pure: the node and the terms come in as arguments.

Never: imports the dialects or the wallet.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Annotated, Literal

from nacl.signing import SigningKey
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from payagent.core.money import LOVELACE
from payagent.devnet import cbor
from payagent.devnet.channel_script import (
    CLOSED,
    OPENED,
    SCRIPT_ADDRESS,
    SCRIPT_CBOR,
    SCRIPT_HASH,
    SETTLED,
    ChannelDatum,
    ScriptFailed,
    iou_message,
    is_iou,
    read_datum,
)
from payagent.devnet.decode import hash_256
from payagent.devnet.facilitator import Unpayable, object_of
from payagent.devnet.ledger import LedgerError, OutRef, TxOut
from payagent.devnet.merchant import Terms
from payagent.devnet.node import Node
from payagent.devnet.plutus_data import Constr, write_plutus_data
from payagent.devnet.script_rules import script_data_hash
from payagent.devnet.settings import STRICT, BadSettings, made
from payagent.devnet.x402_terms import NETWORK, X402, requirements

Json = dict[str, object]
SCHEME = "batch-settlement"
_CODE = "invalid_batch_settlement_cardano_"
_FEE_LOVELACE = 450_000
_FUNDS_LOVELACE = 100_000_000
_UNITS = (1_000_000, 400_000_000)
_RESERVE_BYTES = 402
"""What min-ADA counts for a closed channel in ADA: its output at the widest, and 160."""

_SCRIPT_HOLDER = b"\x60" + SCRIPT_HASH
"""An address that holds the script to refer to. No one has its key."""

_SWAPPED: dict[str, Json] = {
    "swap_provider": {"receiverAuthorizer": "22" * 28},
    "swap_script": {"scriptHash": "11" * 28},
}

Claim = Literal["sub", "settle"]
_CLAIMS: dict[str, Claim] = {
    "claim_early": "sub",
    "claim_backwards": "sub",
    "claim_late": "settle",
    "settle_late": "settle",
}

Mood = Literal[
    "overcharge",
    "undercharge",
    "no_charge",
    "drop_answer",
    "forget_replays",
    "old_record",
    "count_above",
    "foreign_iou",
    "claim_early",
    "claim_late",
    "claim_backwards",
    "refuse_unknown",
    "busy",
    "vanish",
    "settle_late",
    "raise_price",
    "swap_provider",
    "swap_script",
]


@settings(frozen=True, slots=True, config=STRICT)
class ChannelShopSettings:
    """The settings of /channel/, set by POST /merchant/settings {"channel": {...}}.

    `is_open`: whether /channel/ sells, which the dialect `x402-channel` switches on. `withdraw_delay`: seconds.
    `claim` names transactions to send at once, see `ChannelShop.claim`; it is not kept.

    Moods: `overcharge` charges twice the price, `undercharge` half of it; `no_charge` does not state the charge.
    `drop_answer` charges and then drops the connection; `vanish` drops it before. `old_record` forgets the
    latest charge, and `forget_replays` the answer to the latest voucher. `count_above` and `foreign_iou` answer
    each voucher with a false correction. `busy` refuses each voucher, `refuse_unknown` one of a channel that never
    paid. `raise_price` offers twice the price, `swap_provider` another claiming key, `swap_script` another script.
    `claim_early` claims after each call, `claim_late` once the channel is closed, `settle_late` once it could
    elapse. `claim_backwards` gives a unit back after each call, if there was a claim before.
    """

    is_open: bool = False
    mood: Mood | None = None
    withdraw_delay: Annotated[int, Field(ge=900, le=2_592_000)] = 900
    claim: Claim | None = None


def read_channel(body: object, now: ChannelShopSettings) -> ChannelShopSettings:
    """The settings with some of them replaced. Raises `BadSettings`."""
    if not isinstance(body, dict):
        raise BadSettings("channel must be an object")
    return made(partial(replace, now), body)


Sold = tuple[str, Json]
"""A served call: the path that was asked for, and the receipt."""


@dataclass(frozen=True, slots=True)
class SoldChannel:
    """What the shop knows of a channel. `answer` is the one to the latest voucher."""

    count: int
    signed: int = 0
    signature: str = ""
    answer: Sold | None = None
    before: "SoldChannel | None" = None


class Unsold(Unpayable):
    """A call is not paid for. `extra` corrects the payer."""

    def __init__(self, reason: str, extra: Json | None = None) -> None:
        super().__init__(reason)
        self.extra = extra or {}


def _require(holds: bool, code: str) -> None:
    if not holds:
        raise Unsold(_CODE + code)


def _mismatch(state: Json, signed: int, signature: str) -> Unsold:
    """A correction, unless there is no voucher to show."""
    held: Json = {"signedMaxClaimable": str(signed), "signature": signature}
    corrective: Json = {"channelState": state, "voucherState": held}
    return Unsold(_CODE + "cumulative_amount_mismatch", corrective if signature else None)


class ChannelShop:
    """The records of /channel/. Price and asset come from the merchant's terms. Only ADA is served."""

    def __init__(self, node: Node, terms: Callable[[], Terms], name: str) -> None:
        self._node = node
        self._terms = terms
        self._offered: list[Json] = []
        self._key = SigningKey(hash_256(f"payagent devnet channels {name}".encode()))
        self.provider = blake2b(bytes(self._key.verify_key), digest_size=28).digest()
        self._address = b"\x60" + self.provider
        self._script: OutRef = ("", 0)
        self.settings = ChannelShopSettings()
        self.records: dict[str, SoldChannel] = {}
        self.counts: Counter[str] = Counter()
        self.claims: list[str] = []

    def set(self, chosen: ChannelShopSettings) -> None:
        """Take new settings. The first time, the faucet gives the shop money and the script."""
        if not self.settings.is_open and chosen.is_open:
            self._node.faucet(self._address, _FUNDS_LOVELACE, {})
            self._script = self._node.faucet(_SCRIPT_HOLDER, _FUNDS_LOVELACE, {}, script=SCRIPT_CBOR), 0
        self.settings = replace(chosen, claim=None)
        if chosen.claim is not None:
            self.claim(chosen.claim)

    def offer(self) -> Json:
        """The one entry of `accepts`."""
        terms, mood = self._terms(), self.settings.mood or ""
        if mood == "raise_price":
            terms = replace(terms, price_units=2 * terms.price_units)
        extra: Json = {
            "scriptHash": SCRIPT_HASH.hex(),
            "receiverAuthorizer": self.provider.hex(),
            "withdrawDelay": self.settings.withdraw_delay,
            "referenceScript": f"{self._script[0]}#{self._script[1]}",
        }
        entry = requirements(terms, X402()) | {"scheme": SCHEME, "extra": extra | _SWAPPED.get(mood, {})}
        if entry not in self._offered:
            self._offered.append(entry)
        return entry

    def ask(self, path: str, payment: Mapping[str, object] | None) -> Sold | None:
        """Serve a call. None: the connection drops. Raises `Unsold`."""
        if self.settings.mood == "vanish":
            return None
        if payment is None:
            raise Unsold("PAYMENT-SIGNATURE header is required")
        try:
            sold = self._charge(path, payment)
        except Unsold as refused:
            self.counts[refused.reason] += 1
            raise
        self.work()
        return None if self.settings.mood == "drop_answer" else sold

    # --- vouchers ---

    def _charge(self, path: str, payment: Mapping[str, object]) -> Sold:
        accepted, payload = object_of(payment.get("accepted")), object_of(payment.get("payload"))
        voucher, config = object_of(payload.get("voucher")), object_of(payload.get("channelConfig"))
        _require(payment.get("x402Version") == 2 and accepted in self._offered, "extra")
        _require(payload.get("type") == "voucher", "payload_type")
        channel_id, price, mood = str(voucher.get("channelId")), int(str(accepted["amount"])), self.settings.mood
        record = self.records.get(channel_id)
        _require(mood != "busy", "channel_busy")
        _require(mood != "refuse_unknown" or record is not None, "channel_not_found")
        ref, out, datum = self.find(channel_id)
        self._check_config(config, accepted, datum)
        try:
            signed, signature = int(str(voucher["maxClaimableAmount"])), bytes.fromhex(str(voucher["signature"]))
        except (KeyError, ValueError):
            raise Unsold(_CODE + "payload") from None
        _require(0 <= signed < 2**63, "payload")
        if mood == "old_record" and record is not None and record.before is not None:
            record = record.before
        record = record or SoldChannel(max(0, signed - price))
        state = partial(self._state, ref, out, datum)
        if mood in ("count_above", "foreign_iou"):
            false = signed + price if mood == "count_above" else signed
            forged = self._key.sign(iou_message(datum.tag, false)).signature.hex()
            raise _mismatch(state(false), false, forged)
        same = (record.signed, record.signature) == (signed, signature.hex())
        if same and record.answer is not None and mood != "forget_replays":
            self.counts["replayed"] += 1
            return record.answer
        if signed != record.count + price:
            raise _mismatch(state(record.count), record.signed, record.signature)
        _require(is_iou(datum.iou_key, datum.tag, signed, signature), "voucher_signature")
        _require(signed > datum.subbed, "cumulative_below_claimed")
        _require(signed <= self.balance(out, datum), "cumulative_exceeds_balance")
        charged = {"overcharge": 2 * price, "undercharge": price // 2}.get(mood or "", price)
        count = record.count + charged
        extra: Json = {"commitmentId": f"{channel_id}:{signed}", "channelState": state(count)}
        if mood != "no_charge":
            extra["chargedAmount"] = str(charged)
        receipt: Json = {"success": True, "payer": datum.consumer.hex(), "network": NETWORK, "transaction": ""}
        sold = path, receipt | {"amount": "", "extra": extra}
        before = replace(record, before=None)
        self.records[channel_id] = SoldChannel(count, signed, signature.hex(), sold, before)
        self.counts["served"] += 1
        return sold

    def _check_config(self, config: Json, accepted: Json, datum: ChannelDatum) -> None:
        extra = object_of(accepted["extra"])
        for name, wanted, code in (
            ("receiver", accepted["payTo"], "receiver_mismatch"),
            ("receiverAuthorizer", extra["receiverAuthorizer"], "receiver_authorizer_mismatch"),
            ("token", accepted["asset"], "token_mismatch"),
            ("withdrawDelay", extra["withdrawDelay"], "withdraw_delay_mismatch"),
            ("payer", datum.consumer.hex(), "channel_config"),
            ("payerAuthorizer", datum.iou_key.hex(), "channel_config"),
            ("receiverAuthorizer", datum.provider.hex(), "channel_config"),
        ):
            _require(config.get(name) == wanted, code)
        _require(datum.close_period_ms == self.settings.withdraw_delay * 1000, "channel_config")
        _require(datum.stage == OPENED, "channel_closed")

    def _state(self, ref: OutRef, out: TxOut, datum: ChannelDatum, count: int) -> Json:
        return {
            "channelId": datum.tag.hex(),
            "channelRef": f"{ref[0]}#{ref[1]}",
            "balance": str(self.balance(out, datum)),
            "totalClaimed": str(datum.subbed),
            "withdrawRequestedAt": 0,
            "chargedCumulativeAmount": str(count),
        }

    def find(self, channel_id: str) -> tuple[OutRef, TxOut, ChannelDatum]:
        """The channel's output as of the tip. Only channels in ADA are found."""
        for ref, out in self._node.chain.utxos_at(SCRIPT_ADDRESS):
            with suppress(ScriptFailed):
                datum = read_datum(out.inline_datum)
                if (datum.tag.hex(), datum.own_hash, datum.currency) == (channel_id, SCRIPT_HASH, LOVELACE):
                    return ref, out, datum
        raise Unsold(_CODE + "channel_not_found")

    def balance(self, out: TxOut, datum: ChannelDatum) -> int:
        """The highest amount that a voucher may have."""
        return datum.subbed + out.lovelace - _RESERVE_BYTES * self._node.chain.params.coins_per_utxo_byte

    # --- claims ---

    def work(self) -> None:
        """Claim as the mood wants."""
        if (step := _CLAIMS.get(self.settings.mood or "")) is not None:
            self.claim(step)

    def claim(self, step: Claim) -> None:
        """Claim from each channel in the step's stage: `sub` from open ones, `settle` from closed ones."""
        for channel_id, record in self.records.items():
            with suppress(Unsold):
                self._claim(step, record, *self.find(channel_id))

    def _claim(self, step: Claim, record: SoldChannel, ref: OutRef, out: TxOut, datum: ChannelDatum) -> None:
        mood, is_sub = self.settings.mood, step == "sub"
        is_early = mood == "settle_late" and self._node.now_ms() < datum.elapse_at_ms
        total = min(record.count, record.signed)
        if mood == "claim_backwards" and datum.subbed:
            total = datum.subbed - 1
        funds = self._node.chain.utxos_at(self._address)
        is_due = datum.stage == (OPENED if is_sub else CLOSED) and total != datum.subbed and not is_early
        if not is_due or not funds:
            return
        (money_ref, money), taken = funds[0], total - datum.subbed
        after = datum.at(OPENED, total) if is_sub else datum.at(SETTLED)
        iou = [record.signed, bytes.fromhex(record.signature)]
        redeemer = Constr(1, [[Constr(0, [Constr(1 if is_sub else 3, iou)])]])
        kept = cbor.head(cbor.UINT, out.lovelace - taken)
        datum_option = b"\x82\x01\xd8\x18" + cbor.byte_string(after.encode())
        channel = b"\xa3\x00" + cbor.byte_string(SCRIPT_ADDRESS) + b"\x01" + kept + b"\x02" + datum_option
        change = write_plutus_data([self._address, money.lovelace + taken - _FEE_LOVELACE])
        raw = self._signed(ref, money_ref, b"\x82" + channel + change, redeemer)
        try:
            self.claims.append(self._node.submit(raw))
        except LedgerError:
            self.counts["claims_refused"] += 1

    def _signed(self, channel: OutRef, money: OutRef, outputs: bytes, redeemer: Constr) -> bytes:
        """A transaction that spends the channel and `money`, which is also the collateral."""
        inputs, chain = sorted([channel, money]), self._node.chain
        place = cbor.head(cbor.UINT, inputs.index(channel))
        redeemers = b"\xa1\x82\x00" + place + b"\x82" + write_plutus_data(redeemer) + write_plutus_data([*_UNITS])
        fields = {
            0: _refs(inputs),
            1: outputs,
            2: cbor.head(cbor.UINT, _FEE_LOVELACE),
            3: cbor.head(cbor.UINT, chain.slot + 600),
            11: cbor.byte_string(script_data_hash(redeemers, chain.params)),
            13: _refs([money]),
            14: write_plutus_data([self.provider]),
            18: _refs([self._script]),
        }
        body = cbor.head(cbor.MAP, len(fields))
        body += b"".join(cbor.head(cbor.UINT, key) + value for key, value in fields.items())
        witness: list[object] = [bytes(self._key.verify_key), self._key.sign(hash_256(body)).signature]
        return b"\x84" + body + b"\xa2\x00" + write_plutus_data([witness]) + b"\x05" + redeemers + b"\xf5\xf6"

    def as_json(self) -> Json:
        """The shop's records."""
        return {
            "provider_key": self.provider.hex(),
            "script_hash": SCRIPT_HASH.hex(),
            "settings": asdict(self.settings),
            "channels": {
                name: {"count": str(one.count), "signed": str(one.signed), "signature": one.signature}
                for name, one in self.records.items()
            },
            "counts": dict(sorted(self.counts.items())),
            "claims": list(self.claims),
        }


def _refs(refs: list[OutRef]) -> bytes:
    return write_plutus_data([[bytes.fromhex(tx_id), index] for tx_id, index in refs])
