"""x402's scheme `batch-settlement` on Cardano: calls paid by vouchers of a channel.

Start with `read_channel_offers`. An offer is not an invoice, and a voucher is not a transaction. So this module is
not a `Dialect`, the registry does not list it, and only modules that pay by channel import it. `x402_v2` reads the
entries of scheme `exact` in the same 402.

Source: the draft scheme_batch_settlement_cardano of loveaihq/subbit-x402, version 0.7, and its reference server.

Never: verifies a signature; changes a count.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from payagent.core.address import Address
from payagent.core.money import parse_count
from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.payment.machine import is_served
from payagent.core.problems import Refused
from payagent.dialects import x402, x402_answers, x402_v2
from payagent.dialects.dialect import Terms
from payagent.dialects.http_wire import (
    PAYMENT_RESPONSE,
    HttpResponse,
    Reading,
    fields_of,
    parse_timeout_s,
    refuse_unknown_terms,
    require,
    require_object,
    show,
)
from payagent.dialects.retry_answers import may_pass, plain

SCHEME = "batch-settlement"
WITHDRAW_DELAY_S = range(900, 2_592_001)

_ENTRY_KEYS = frozenset(("scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra"))
_CORRECTIVE_KEYS = frozenset(("channelState", "voucherState"))
_EXTRA_KEYS = _CORRECTIVE_KEYS | {
    *("scriptHash", "receiverAuthorizer", "withdrawDelay", "referenceScript", "minDeposit"),
    *("confirmationPolicy", "paymentFlow", "areFeesSponsored", "feeSponsor"),
}
_UTXO = r"[0-9a-f]{64}#(?:0|[1-9][0-9]{0,4})"


@dataclass(frozen=True, slots=True)
class ChannelOffer:
    """One entry of `accepts`: the terms on which a merchant sells calls by channel.

    `asset` is as in an invoice, and amounts are in its smallest units. `price`: the most that one call costs.
    `provider`: the hash of the key that may claim, the wire's receiverAuthorizer. `echo`: JSON that goes back with
    each voucher, see `voucher_headers`.
    """

    asset: str
    price: int  # the most that one call costs
    pay_to: Address
    script_hash: bytes  # 28 bytes, of the channel's validator
    provider: bytes  # 28 bytes, the hash of the key that claims
    withdraw_delay_s: int
    echo: str  # what every payment repeats


@dataclass(frozen=True, slots=True)
class Voucher:
    """A signed promise: the channel's merchant may take up to `amount` in all.

    `amount`: cumulative, what was charged so far (the count) plus the price. `signature`: by `iou_key` over
    `wallet.channel_tx.iou_message`. `channel_id`: the channel's tag. `channel_ref`: its UTxO as last seen.
    `payer`: the hash of this wallet's payment key.
    """

    channel_id: bytes  # 32 bytes, the channel's tag
    channel_ref: str  # the channel's output, as last seen: "txid#index"
    payer: bytes  # 28 bytes, the hash of the key that opened the channel
    iou_key: bytes  # 32 bytes, verifies `signature`
    amount: int
    signature: bytes  # 64 bytes


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel as its merchant sees it. Amounts are cumulative, in smallest units."""

    channel_id: bytes
    channel_ref: str | None  # None: the merchant has not seen it
    balance: int  # how far vouchers may go
    claimed: int
    closed_at_s: int | None  # when the payer asked to withdraw, in POSIX seconds
    count: int | None  # of what was charged


@dataclass(frozen=True, slots=True)
class ChannelCharge:
    """What the call cost, 0 or more, and the channel's state if the answer has it."""

    units: int
    state: ChannelState | None


@dataclass(frozen=True, slots=True)
class ChannelCorrection:
    """The merchant's count (`state.count`), and the voucher that it says to hold.

    Adopt the count only if `signature` is our own for `signed`, and claimed <= count <= signed.
    """

    state: ChannelState
    signed: int
    signature: bytes


class VoucherVerdict(StrEnum):
    """What a merchant's answer means for the voucher and its channel."""

    SERVED = "served"
    RETRY = "retry"
    """Send the same voucher again later."""
    ADOPT = "adopt"
    """The merchant counts otherwise: see `read_correction`. Without one, the chain shows what was claimed."""
    CLOSE = "close"
    """The channel takes no vouchers any more."""
    REFUSE = "refuse"
    """The merchant does not take this voucher, now or later."""
    OTHER = "other"
    """The answer is not about the payment."""


_PREFIX = "invalid_batch_settlement_cardano_"
_CODES = {
    # "Not found" and "exceeds balance": the merchant's chain is behind ours, as after an opening or a top-up.
    VoucherVerdict.RETRY: (
        *("channel_busy", "channel_not_found", "missing_channel", "cumulative_exceeds_balance"),
        "verification_state_unavailable",
    ),
    VoucherVerdict.ADOPT: ("cumulative_amount_mismatch", "cumulative_below_claimed"),
    VoucherVerdict.CLOSE: ("channel_closed", "channel_config", "channel_id_mismatch", "channel_state"),
    VoucherVerdict.REFUSE: (
        *("payload_type", "payload", "network_mismatch", "scheme", "extra", "receiver_mismatch"),
        *("receiver_authorizer_mismatch", "token_mismatch", "withdraw_delay_mismatch"),
        *("withdraw_delay_out_of_range", "voucher_signature", "charge_exceeds_signed_cumulative"),
        *("deposit_transaction", "deposit_below_min_deposit", "refund_transaction", "claim_transaction"),
        "transaction_failed",
    ),
}
_BY_CODE = {_PREFIX + code: verdict for verdict, codes in _CODES.items() for code in codes}


def read_channel_offers(response: HttpResponse, reading: Reading) -> tuple[ChannelOffer, ...]:
    """Parse the channel offers of a 402, in the merchant's order. Entries of other schemes are skipped.

    Returns at least one. Refuses anything that is not understood in full. Without an entry of this scheme, it
    raises `invoice_unsupported/scheme`.
    """
    unsalted = replace(reading, salt=None)  # a voucher cannot commit to the request that it pays
    required = x402.SHAPE.find_terms(response)
    shared = x402_v2.read_required(required, response, unsalted)
    if shared is None:
        raise Refused("invoice_invalid/body", f"the 402 is not of x402's version {x402_v2.VERSION}")
    accepts = x402.require_accepts(required.get("accepts"))
    own = [entry for entry in accepts if fields_of(entry).get("scheme") == SCHEME]
    return x402.choose(own or accepts, lambda entry: _read_entry(entry, shared, reading), reading, SCHEME)


def _read_entry(entry: Terms, shared: x402_v2.Required, reading: Reading) -> ChannelOffer:
    x402_v2.check_network(entry, reading)
    refuse_unknown_terms(entry, _ENTRY_KEYS, "the entry of accepts")
    asset = x402_v2.read_asset(require(entry, "asset"))
    (output,) = x402.read_output(entry, "amount", asset, reading)
    timeout_s = parse_timeout_s(require(entry, "maxTimeoutSeconds"), "maxTimeoutSeconds")
    extra = require_object(require(entry, "extra"), "extra is")
    if unknown := sorted(extra.keys() - _EXTRA_KEYS):
        raise Refused("terms_not_understood", f"extra has {show(unknown)}")
    if extra.get("paymentFlow") not in (None, "authorization"):
        raise Refused("invoice_invalid/body", f"paymentFlow is {show(extra['paymentFlow'])}, not authorization")
    x402_v2.read_confirmations(extra.get("confirmationPolicy"))
    if extra.get("referenceScript") is not None:
        _parse_utxo(extra, "referenceScript")
    if extra.get("minDeposit") is not None and _parse_units(extra, "minDeposit") < output.units:
        raise Refused("invoice_invalid/contradiction", "minDeposit is less than the amount")
    accepted = {**entry, "extra": {key: extra[key] for key in extra if key not in _CORRECTIVE_KEYS}}
    return ChannelOffer(
        asset=asset,
        price=output.units,
        pay_to=output.address,
        script_hash=_parse_hex(extra, "scriptHash", 28),
        provider=_parse_hex(extra, "receiverAuthorizer", 28),
        withdraw_delay_s=_parse_delay_s(require(extra, "withdrawDelay"), timeout_s),
        echo=x402_v2.write_echo(accepted, shared),
    )


def _parse_delay_s(value: object, timeout_s: int) -> int:
    if type(value) is not int or value not in WITHDRAW_DELAY_S or value < timeout_s:
        raise Refused(
            "invoice_invalid/body",
            f"withdrawDelay is {show(value)}, not whole seconds from 900 to 2592000 and maxTimeoutSeconds or more",
        )
    return value


def _parse_hex(fields: Terms, key: str, size: int) -> bytes:
    return bytes.fromhex(_parse_text(fields, key, f"[0-9a-f]{{{2 * size}}}", f"{size} bytes in lower-case hex"))


def _parse_utxo(fields: Terms, key: str) -> str:
    return _parse_text(fields, key, _UTXO, "txid#index")


def _parse_text(fields: Terms, key: str, pattern: str, form: str) -> str:
    value = require(fields, key)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Refused("invoice_invalid/body", f"{key} is {show(value, 140)}, not {form}")
    return value


def _parse_units(fields: Terms, key: str) -> int:
    """Parse an amount of 0 to 2^63-1. Amounts are strings; a JSON number is refused."""
    value = require(fields, key)
    if not isinstance(value, str):
        raise Refused("invoice_invalid/amount", f"{key} is {show(value, 80)}, not a string of digits")
    return parse_count(value, key)


def voucher_headers(echo: str, voucher: Voucher, intent_id: str) -> dict[str, str]:
    """Return the headers of a call that a voucher pays. `echo` is the offer's.

    The same arguments always give the same bytes, which is how a server knows a retry.
    """
    echoed, accepted = x402_v2.read_echo(echo)
    extra = fields_of(accepted.get("extra"))
    payload = {
        "type": "voucher",
        "channelConfig": {
            "payer": voucher.payer.hex(),
            "payerAuthorizer": voucher.iou_key.hex(),
            "receiver": require(accepted, "payTo"),
            "receiverAuthorizer": require(extra, "receiverAuthorizer"),
            "token": require(accepted, "asset"),
            "withdrawDelay": require(extra, "withdrawDelay"),
        },
        "voucher": {
            "channelId": voucher.channel_id.hex(),
            "maxClaimableAmount": str(voucher.amount),
            "signature": voucher.signature.hex(),
            "channelRef": voucher.channel_ref,
        },
    }
    return x402_v2.write_proof(echoed, payload, intent_id)


def read_voucher_answer(response: HttpResponse) -> tuple[VoucherVerdict, str]:
    """Classify the answer to a voucher, with the merchant's reason as bounded ASCII for people. Never raises.

    An unknown word means RETRY, except one of this scheme.
    """
    code, is_unsettled = response.status, x402_answers.is_unsettled(response)
    if is_served(code) and not is_unsettled:
        return VoucherVerdict.SERVED, f"status {code}"
    if may_pass(code):
        return VoucherVerdict.RETRY, f"status {code}"
    if code != 402 and not is_unsettled:
        return VoucherVerdict.OTHER, f"status {code}"
    verdict, word = x402_answers.read_word(response, "")
    known = word.strip().lower().partition(":")[0]
    is_refused = verdict in (RetryVerdict.REFUSED, RetryVerdict.INVOICED) or known.startswith(_PREFIX)
    default = VoucherVerdict.REFUSE if is_refused else VoucherVerdict.RETRY
    return _BY_CODE.get(known, default), plain(word) or "no reason given"


def read_charge(response: HttpResponse, voucher: Voucher) -> ChannelCharge:
    """Parse what the served call cost. Refused unless the answer states the charge, and for this very voucher.

    The charge may be above the price, and the state's count may not fit: see what the caller knows.
    """
    if PAYMENT_RESPONSE not in response.headers:
        raise Refused("invoice_invalid/missing_field", "the answer has no PAYMENT-RESPONSE")
    settled = x402.decode_header(response.headers[PAYMENT_RESPONSE], PAYMENT_RESPONSE)
    extra = require_object(settled.get("extra"), "extra is")
    commitment = f"{voucher.channel_id.hex()}:{voucher.amount}"
    if settled.get("success") is not True or extra.get("commitmentId") not in (None, commitment):
        raise Refused("invoice_invalid/body", f"PAYMENT-RESPONSE is {show(settled)}, which is not this voucher's")
    state = extra.get("channelState")
    return ChannelCharge(
        _parse_units(extra, "chargedAmount"), None if state is None else _read_state(state, voucher.channel_id)
    )


def read_correction(response: HttpResponse, channel_id: bytes) -> ChannelCorrection:
    """Parse a corrective 402: the count and the voucher that the merchant has of this channel."""
    accepts = x402.require_accepts(x402.SHAPE.find_terms(response).get("accepts"))
    extras = [fields_of(entry.get("extra")) for entry in map(fields_of, accepts) if entry.get("scheme") == SCHEME]
    corrective = [extra for extra in extras if extra.keys() & _CORRECTIVE_KEYS]
    if len(corrective) != 1:
        raise Refused("invoice_invalid/body", f"{len(corrective)} entries have a channelState, expected 1")
    (extra,) = corrective
    state = _read_state(extra.get("channelState"), channel_id)
    held = require_object(extra.get("voucherState"), "voucherState is")
    if state.count is None:
        raise Refused("invoice_invalid/missing_field", "channelState has no chargedCumulativeAmount")
    return ChannelCorrection(state, _parse_units(held, "signedMaxClaimable"), _parse_hex(held, "signature", 64))


def _read_state(value: object, channel_id: bytes) -> ChannelState:
    state = require_object(value, "channelState is")
    if _parse_hex(state, "channelId", 32) != channel_id:
        raise Refused("invoice_invalid/contradiction", f"channelId is another's: {show(state['channelId'])}")
    closed_at_s = require(state, "withdrawRequestedAt")
    if type(closed_at_s) is not int:
        raise Refused("invoice_invalid/amount", f"withdrawRequestedAt is {show(closed_at_s)}, not whole seconds")
    return ChannelState(
        channel_id=channel_id,
        # Empty in the answer of a server that has no record of the channel.
        channel_ref=None if require(state, "channelRef") == "" else _parse_utxo(state, "channelRef"),
        balance=_parse_units(state, "balance"),
        claimed=_parse_units(state, "totalClaimed"),
        closed_at_s=parse_count(closed_at_s, "withdrawRequestedAt") or None,
        count=_parse_units(state, "chargedCumulativeAmount") if "chargedCumulativeAmount" in state else None,
    )
