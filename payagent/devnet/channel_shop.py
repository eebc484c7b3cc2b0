"""The devnet's shop under /channel/: sells calls by the vouchers of channels, honestly or in a mood.

Start at `ChannelShop.ask`. It counts per channel, looks at the chain for each voucher, and claims by
transactions of its own.

Source: the x402 draft `batch-settlement` for Cardano, version 0.7, and its reference server.

Pure: the node and the terms come in as arguments.

Never: imports the dialects or the wallet.
"""

from collections import Counter
from collections.abc import Callable, Mapping
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
from payagent.devnet.ledger import LedgerError, OutRef, TxOut
from payagent.devnet.merchant import Terms
from payagent.devnet.node import Node
from payagent.devnet.plutus_data import Constr, write_plutus_data
from payagent.devnet.settings import STRICT, BadSettings, made
from payagent.devnet.x402_terms import NETWORK

Json = dict[str, object]
SCHEME = "batch-settlement"
_CODE = "invalid_batch_settlement_cardano_"
_FEE_LOVELACE = 450_000
_FUNDS_LOVELACE = 100_000_000
_UNITS = (1_000_000, 400_000_000)
_WIDE = 2**63

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
    claim: Literal["sub", "settle"] | None = None


def read_channel(body: object, now: ChannelShopSettings) -> ChannelShopSettings:
    """The settings with some of them replaced. Raises `BadSettings`."""
    if not isinstance(body, dict):
        raise BadSettings("channel must be an object")
    return made(partial(replace, now), body)


@dataclass(frozen=True, slots=True)
class SoldChannel:
    """What the shop knows of a channel. `answer` is the one to the latest voucher."""

    count: int
    signed: int = 0
    signature: str = ""
    answer: "ChannelShopAnswer | None" = None
    before: "SoldChannel | None" = None


@dataclass(frozen=True, slots=True)
class ChannelShopAnswer:
    """How a call ended. `receipt` comes with a served call, `accepts` with a 402. Dropped: neither."""

    path: str = ""
    error: str = ""
    accepts: Json | None = None
    receipt: Json | None = None


class _Refused(Exception):  # noqa: N818  a verdict, not an error of ours
    """The voucher does not pay. `extra` corrects the payer."""

    def __init__(self, code: str, extra: Json | None = None) -> None:
        super().__init__(code)
        self.error, self.extra = _CODE + code, extra or {}


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


class ChannelShop:
    """The records of /channel/. Price and asset come from the merchant's terms."""

    def __init__(self, node: Node, terms: Callable[[], Terms], name: str) -> None:
        self._node = node
        self._terms = terms
        self._offered: list[Json] = []
        self._key = SigningKey(hash_256(f"payagent devnet channels {name}".encode()))
        self.provider = blake2b(bytes(self._key.verify_key), digest_size=28).digest()
        self.settings = ChannelShopSettings()
        self.records: dict[str, SoldChannel] = {}
        self.counts: Counter[str] = Counter()
        self.claims: list[str] = []

    def set(self, chosen: ChannelShopSettings) -> None:
        """Take new settings. The first time, the faucet gives the shop money and the script."""
        if not self.settings.is_open and chosen.is_open:
            self._node.faucet(self._address, _FUNDS_LOVELACE, {})
            self._node.faucet(self._address, _FUNDS_LOVELACE, {}, script=SCRIPT_CBOR)
        self.settings = replace(chosen, claim=None)
        if chosen.claim is not None:
            self.claim(chosen.claim)

    @property
    def _address(self) -> bytes:
        return b"\x60" + self.provider

    def _funds(self, *, script: bool) -> list[tuple[OutRef, TxOut]]:
        found = self._node.chain.utxos_at(self._address)
        return [(ref, out) for ref, out in found if (out.reference_script is not None) is script]

    def offer(self) -> Json:
        """The one entry of `accepts`."""
        terms, mood = self._terms(), self.settings.mood
        extra: Json = {
            "scriptHash": (b"\x11" * 28 if mood == "swap_script" else SCRIPT_HASH).hex(),
            "receiverAuthorizer": (b"\x22" * 28 if mood == "swap_provider" else self.provider).hex(),
            "withdrawDelay": self.settings.withdraw_delay,
        }
        for (tx_id, index), _ in self._funds(script=True)[:1]:
            extra["referenceScript"] = f"{tx_id}#{index}"
        asset = terms.asset
        entry: Json = {
            "scheme": SCHEME,
            "network": NETWORK,
            "amount": str(terms.price_units * (2 if mood == "raise_price" else 1)),
            "asset": asset if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}",
            "payTo": terms.pay_to.text,
            "maxTimeoutSeconds": 600,
            "extra": extra,
        }
        if entry not in self._offered:
            self._offered.append(entry)
        return entry

    def ask(self, path: str, payment: Mapping[str, object] | None) -> ChannelShopAnswer:
        """Serve a call, or say what it costs."""
        if self.settings.mood == "vanish":
            return ChannelShopAnswer(path)
        if payment is None:
            return ChannelShopAnswer(path, "PAYMENT-SIGNATURE header is required", self.offer())
        try:
            answer = self._charge(path, payment)
        except _Refused as refused:
            self.counts[refused.error] += 1
            entry = self.offer()
            return ChannelShopAnswer(
                path, refused.error, entry | {"extra": _object(entry["extra"]) | refused.extra}
            )
        self.work()
        return ChannelShopAnswer(path) if self.settings.mood == "drop_answer" else answer

    # --- vouchers ---

    def _charge(self, path: str, payment: Mapping[str, object]) -> ChannelShopAnswer:
        accepted, payload = _object(payment.get("accepted")), _object(payment.get("payload"))
        voucher, config = _object(payload.get("voucher")), _object(payload.get("channelConfig"))
        if payment.get("x402Version") != 2 or accepted not in self._offered:
            raise _Refused("extra")
        if payload.get("type") != "voucher":
            raise _Refused("payload_type")
        channel_id, price, mood = str(voucher.get("channelId")), int(str(accepted["amount"])), self.settings.mood
        record = self.records.get(channel_id)
        if mood == "busy" or (mood == "refuse_unknown" and record is None):
            raise _Refused("channel_busy" if mood == "busy" else "channel_not_found")
        ref, out, datum = self.find(channel_id)
        self._check_config(config, accepted, datum)
        try:
            signed, signature = int(str(voucher["maxClaimableAmount"])), bytes.fromhex(str(voucher["signature"]))
        except (KeyError, ValueError):
            raise _Refused("payload") from None
        if mood == "old_record" and record is not None and record.before is not None:
            record = record.before
        record = record or SoldChannel(max(0, signed - price))
        state = partial(self._state, ref, out, datum)
        if mood in ("count_above", "foreign_iou"):
            raise _Refused("cumulative_amount_mismatch", self._lie(record, signed, price, datum, state))
        same = (record.signed, record.signature) == (signed, signature.hex())
        if same and record.answer is not None and mood != "forget_replays":
            self.counts["replayed"] += 1
            return record.answer
        if signed != record.count + price:
            held: Json = {"signedMaxClaimable": str(record.signed), "signature": record.signature}
            corrective: Json = (
                {"channelState": state(record.count), "voucherState": held} if record.signature else {}
            )
            raise _Refused("cumulative_amount_mismatch", corrective)
        if not is_iou(datum.iou_key, datum.tag, signed, signature):
            raise _Refused("voucher_signature")
        if signed > self.balance(out, datum) or signed <= datum.subbed:
            raise _Refused("cumulative_exceeds_balance" if signed > datum.subbed else "cumulative_below_claimed")
        charged = {"overcharge": 2 * price, "undercharge": price // 2}.get(mood or "", price)
        count = record.count + charged
        extra: Json = {"commitmentId": f"{channel_id}:{signed}", "channelState": state(count)}
        if mood != "no_charge":
            extra["chargedAmount"] = str(charged)
        receipt: Json = {"success": True, "payer": datum.consumer.hex(), "network": NETWORK, "transaction": ""}
        answer = ChannelShopAnswer(path, receipt=receipt | {"amount": "", "extra": extra})
        before = replace(record, before=None)
        self.records[channel_id] = SoldChannel(count, signed, signature.hex(), answer, before)
        self.counts["served"] += 1
        return answer

    def _check_config(self, config: Json, accepted: Json, datum: ChannelDatum) -> None:
        extra = _object(accepted["extra"])
        for name, wanted, code in (
            ("receiver", accepted["payTo"], "receiver_mismatch"),
            ("receiverAuthorizer", extra["receiverAuthorizer"], "receiver_authorizer_mismatch"),
            ("token", accepted["asset"], "token_mismatch"),
            ("withdrawDelay", extra["withdrawDelay"], "withdraw_delay_mismatch"),
            ("payer", datum.consumer.hex(), "channel_config"),
            ("payerAuthorizer", datum.iou_key.hex(), "channel_config"),
            ("receiverAuthorizer", datum.provider.hex(), "channel_config"),
        ):
            if config.get(name) != wanted:
                raise _Refused(code)
        if datum.close_period_ms != self.settings.withdraw_delay * 1000:
            raise _Refused("channel_config")
        if datum.stage != OPENED:
            raise _Refused("channel_closed")

    def _lie(
        self, record: SoldChannel, signed: int, price: int, datum: ChannelDatum, state: Callable[[int], Json]
    ) -> Json:
        """A correction that counts too much, by an IOU of the shop's own key."""
        amount = signed + price if self.settings.mood == "count_above" else signed
        forged = self._key.sign(iou_message(datum.tag, amount)).signature.hex()
        held: Json = {"signedMaxClaimable": str(amount), "signature": forged}
        return {"channelState": state(amount), "voucherState": held}

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
        """The channel's output as of the tip."""
        for ref, out in self._node.chain.utxos_at(SCRIPT_ADDRESS):
            try:
                datum = read_datum(out.inline_datum)
            except ScriptFailed:
                continue
            if (datum.tag.hex(), datum.own_hash) == (channel_id, SCRIPT_HASH):
                return ref, out, datum
        raise _Refused("channel_not_found")

    def balance(self, out: TxOut, datum: ChannelDatum) -> int:
        """The highest amount that a voucher may have."""
        if datum.currency != LOVELACE:
            return datum.subbed + datum.amount(out)
        widest = replace(out, lovelace=_WIDE)
        at_most = replace(datum, close_period_ms=_WIDE).at(CLOSED, _WIDE, _WIDE)
        size = 160 + len(_output(widest, at_most)) - 4
        return datum.subbed + out.lovelace - size * self._node.chain.params.coins_per_utxo_byte

    # --- claims ---

    def work(self) -> None:
        """Claim as the mood wants."""
        if self.settings.mood in ("claim_early", "claim_backwards"):
            self.claim("sub")
        if self.settings.mood in ("claim_late", "settle_late"):
            self.claim("settle")

    def claim(self, step: Literal["sub", "settle"]) -> None:
        """Claim from each channel in the step's stage: `sub` from open ones, `settle` from closed ones."""
        for channel_id, record in self.records.items():
            try:
                ref, out, datum = self.find(channel_id)
            except _Refused:
                continue
            now_ms = self._node.now_ms()
            is_late = self.settings.mood != "settle_late" or now_ms >= datum.elapse_at_ms
            if datum.stage == (OPENED if step == "sub" else CLOSED) and is_late:
                self._claim(step, ref, out, datum, record)

    def _claim(self, step: str, ref: OutRef, out: TxOut, datum: ChannelDatum, record: SoldChannel) -> None:
        total = min(record.count, record.signed)
        if self.settings.mood == "claim_backwards":
            total = max(0, datum.subbed - 1) if datum.subbed else total
        funds, scripts = self._funds(script=False), self._funds(script=True)
        if total == datum.subbed or not funds or not scripts:
            return
        taken = total - datum.subbed
        iou = [record.signed, bytes.fromhex(record.signature)]
        redeemer = write_plutus_data(Constr(1, [[Constr(0, [Constr(1 if step == "sub" else 3, iou)])]]))
        after = datum.at(OPENED, total) if step == "sub" else datum.at(SETTLED)
        if datum.currency == LOVELACE:
            kept = replace(out, lovelace=out.lovelace - taken)
            won: dict[str, int] = {}
        else:
            kept = replace(out, assets={datum.currency: datum.amount(out) - taken})
            won = {datum.currency: taken}
        money_ref, money = funds[0]
        lovelace = money.lovelace + out.lovelace - kept.lovelace - _FEE_LOVELACE
        change = TxOut(self._address, lovelace, won)
        outputs = [_output(kept, after), _output(change)]
        raw = self._sign(
            [ref, money_ref], [money_ref], scripts[0][0], outputs, sorted([ref, money_ref]).index(ref), redeemer
        )
        try:
            self.claims.append(self._node.submit(raw))
        except LedgerError:
            self.counts["claims_refused"] += 1

    def _sign(
        self,
        inputs: list[OutRef],
        collateral: list[OutRef],
        script: OutRef,
        outputs: list[bytes],
        place: int,
        redeemer: bytes,
    ) -> bytes:
        units = b"\x82" + b"".join(cbor.head(cbor.UINT, number) for number in _UNITS)
        redeemers = b"\xa1\x82\x00" + cbor.head(cbor.UINT, place) + b"\x82" + redeemer + units
        model = self._node.chain.params.cost_model
        views = b"\xa1\x02" + cbor.head(cbor.ARRAY, len(model))
        views += b"".join(cbor.head(cbor.UINT, number) for number in model)
        body = b"\xa8\x00" + _refs(inputs) + b"\x01" + cbor.head(cbor.ARRAY, len(outputs)) + b"".join(outputs)
        body += b"\x02" + cbor.head(cbor.UINT, _FEE_LOVELACE)
        body += b"\x03" + cbor.head(cbor.UINT, self._node.chain.slot + 600)
        body += b"\x0b" + cbor.byte_string(hash_256(redeemers + views)) + b"\x0d" + _refs(collateral)
        body += b"\x0e\x81" + cbor.byte_string(self.provider) + b"\x12" + _refs([script])
        key = cbor.byte_string(bytes(self._key.verify_key))
        witness = b"\x82" + key + cbor.byte_string(self._key.sign(hash_256(body)).signature)
        return b"\x84" + body + b"\xa2\x00\x81" + witness + b"\x05" + redeemers + b"\xf5\xf6"

    def as_json(self) -> Json:
        """The shop's records."""
        held = {
            name: {"count": str(one.count), "signed": str(one.signed), "signature": one.signature}
            for name, one in self.records.items()
        }
        return {
            "provider_key": self.provider.hex(),
            "script_hash": SCRIPT_HASH.hex(),
            "settings": asdict(self.settings),
            "channels": held,
            "counts": dict(sorted(self.counts.items())),
            "claims": list(self.claims),
        }


def _refs(refs: list[OutRef]) -> bytes:
    rows = [
        b"\x82" + cbor.byte_string(bytes.fromhex(tx_id)) + cbor.head(cbor.UINT, index) for tx_id, index in refs
    ]
    return cbor.head(cbor.ARRAY, len(rows)) + b"".join(rows)


def _output(out: TxOut, datum: ChannelDatum | None = None) -> bytes:
    """An output of at most one token, in the map form."""
    value = cbor.head(cbor.UINT, out.lovelace)
    held = [(asset, units) for asset, units in out.assets.items() if units]
    for asset, units in held:
        names = b"\xa1" + cbor.byte_string(bytes.fromhex(asset[56:])) + cbor.head(cbor.UINT, units)
        value = b"\x82" + value + b"\xa1" + cbor.byte_string(bytes.fromhex(asset[:56])) + names
    raw = b"\x00" + cbor.byte_string(out.address) + b"\x01" + value
    if datum is None:
        return b"\xa2" + raw
    return b"\xa3" + raw + b"\x02\x82\x01\xd8\x18" + cbor.byte_string(datum.encode())
