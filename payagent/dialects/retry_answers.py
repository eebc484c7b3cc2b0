"""Classifies a merchant's answer to a retry into seven verdicts.

Start with `read_answer`. A verdict is only advice; the chain decides what happened to the money. An unknown error
word is `UNCLEAR`.

May import: the standard library, core, the dialects.
Never: raises; treats an unknown word as final.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.payment.machine import is_served
from payagent.core.problems import Refused
from payagent.dialects import status_answers as status
from payagent.dialects import x402, x402_v1, x402_v2
from payagent.dialects.http_wire import PAYMENT_REQUIRED, PAYMENT_RESPONSE, HttpResponse

RETRY_AFTER_MAX_S = 3_600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REASON_MAX = 200


@dataclass(frozen=True, slots=True)
class RetryAnswer:
    """A verdict with the merchant's `reason` as bounded ASCII for people.

    `poll_query`: add this to the URL's query for the next request, and leave out the proof.
    """

    verdict: RetryVerdict
    reason: str
    retry_after_s: int | None = None
    poll_query: str | None = None


_PAYLOAD = "invalid_exact_cardano_payload"
_NONCE_GONE = f"{_PAYLOAD}_nonce_not_on_chain"
_FACILITATOR = "exact_cardano_facilitator"

_WORDS: dict[RetryVerdict, tuple[str, ...]] = {
    RetryVerdict.PENDING: ("settlement_pending", "settlement failed: confirmation_timeout"),
    # The reference facilitator also says this while another settlement of the same transaction is in progress.
    RetryVerdict.USED_UP: ("duplicate_settlement",),
    RetryVerdict.REFUSED: (
        "unsupported_scheme", "network_mismatch", "exact_cardano_settlement_definitively_rejected",
        "masumi_terms_unknown", "masumi_terms_mismatch", "no matching payment requirements",
        # from the resource server, before it verifies the payment
        "request_commitment_unsigned", "request_commitment_malformed", "request_commitment_mismatch",
        "request_commitment_missing",
        # Masumi's version 1, before it submits
        "invalid_payload", "invalid_x402_version", "invalid_scheme", "invalid_network",
        # x402-fac, before it submits
        "invalid payment-signature header", "invalid_base64", "invalid_cbor", "cbor_required",
        "recipient_mismatch", "amount_insufficient", "missing_witness", "unreasonable_fee",
    ),
    RetryVerdict.UNCLEAR: (
        # The input may be spent by this very transaction, or be too new for the facilitator to see.
        _NONCE_GONE, f"{_PAYLOAD}_input_not_available",
        # The facilitator does not see the transaction that we submitted yet.
        f"{_PAYLOAD}_evidence_mismatch",
        # Some facilitators take the latest block's slot as the time, so the TTL looks further away than it is.
        f"{_PAYLOAD}_not_yet_valid", f"{_PAYLOAD}_ttl_too_far", f"{_PAYLOAD}_verification_error",
        f"{_FACILITATOR}_chain_lookup_failed", f"{_FACILITATOR}_evidence_unavailable",
        f"{_FACILITATOR}_input_value_unavailable",
        "exact_cardano_settlement_failed", "exact_cardano_settlement_not_confirmed",
        "unexpected_settle_error", "unexpected_verify_error", "invalid_transaction_state",
    ),
    RetryVerdict.INVOICED: (
        "", "missing", "payment required", "payment-signature header is required",
        "x-payment header is required", "no x-payment header provided",
    ),
}  # fmt: skip
_BY_WORD = {word: verdict for verdict, words in _WORDS.items() for word in words}
_REFUSED_PREFIX = "invalid_exact_cardano_"

# `paid_already` and `transaction_used` come from the devnet merchant. No document defines a reason.
_USED_UP_REASONS = ("paid_already", "transaction_used", "consumed")
_TRANSIENT = (408, 425, 429)
_PROOF_STATUS = (402, 403, 404, 409)
"""Client errors that may be about the proof."""

_UNSETTLED = (202, 409)
"""Statuses with which some non-standard x402 servers say that a settlement is pending or failed."""

Fields = Mapping[str, object]


def classify(word: str) -> RetryVerdict:
    """Classify an error word of an x402 server or facilitator. An unknown word is `RetryVerdict.UNCLEAR`.

    The x402 SDKs append a colon and the facilitator's message. The word before the colon decides. One exception:
    an `INVOICED` word with a message is `UNCLEAR`, because the message may be about the proof.
    """
    plain = word.strip().lower()
    if plain in _BY_WORD:
        return _BY_WORD[plain]
    explained = plain.partition(":")[0]
    default = RetryVerdict.REFUSED if explained.startswith(_REFUSED_PREFIX) else RetryVerdict.UNCLEAR
    verdict = _BY_WORD.get(explained, default)
    return RetryVerdict.UNCLEAR if verdict is RetryVerdict.INVOICED else verdict


def may_pass(status: int) -> bool:
    """Whether a status is a transient failure (5xx, 408, 425, 429)."""
    return status >= 500 or status in _TRANSIENT


def is_refusal(dialect: str, answer: RetryAnswer, status: int) -> bool:
    """Whether the merchant refused the proof, so it is neither a transient failure nor pending.

    In x402 `UNCLEAR` is not a refusal: facilitators use such words if they cannot see the transaction yet.
    """
    if not 400 <= status < 500 or may_pass(status):
        return answer.verdict is RetryVerdict.REFUSED
    if answer.verdict is RetryVerdict.UNCLEAR:
        return dialect not in (x402_v2.NAME, x402_v1.NAME)
    if answer.verdict is RetryVerdict.OTHER:  # other statuses, such as 400 or 422, refuse the request itself
        return status in _PROOF_STATUS
    return answer.verdict in (RetryVerdict.REFUSED, RetryVerdict.INVOICED)


def read_answer(
    dialect: str,
    response: HttpResponse,
    *,
    invoice_id: str,
    shown_tx: str,
    now_ms: int,
    is_on_chain: bool = False,
    has_served: bool = False,
) -> RetryAnswer:
    """Classify the response to a retry that presented the transaction `shown_tx` for the invoice.

    `now_ms`: when the response arrived. `is_on_chain`: we have seen the transaction in a block.
    `has_served`: the proof has already bought a request, so "nonce not on chain" means that it is used up.
    """
    code, after_s = response.status, _read_retry_after(response, now_ms)
    is_x402 = dialect in (x402_v2.NAME, x402_v1.NAME)
    is_unsettled = is_x402 and code in _UNSETTLED and _has_failed(_read_settled(response))
    if is_served(code):
        if dialect == x402_v1.NAME and code == 202 and _fields(response.body).get("pending") is True:
            # The server names no transaction if it could not submit it: present it again unless it is on chain.
            is_sent = is_on_chain or _fields(response.body).get("transaction", shown_tx) not in ("", None)
            return RetryAnswer(RetryVerdict.PENDING, "pending", after_s, f"tx={shown_tx}" if is_sent else None)
        if not is_unsettled:
            return RetryAnswer(RetryVerdict.SERVED, f"status {code}")
    if may_pass(code):
        return RetryAnswer(RetryVerdict.UNCLEAR, f"status {code}", after_s)
    if code != 402 and not is_unsettled:
        return RetryAnswer(RetryVerdict.OTHER, f"status {code}")
    if is_x402:
        verdict, word = _read_x402(response, shown_tx)
        if has_served and word.strip().lower().partition(":")[0] == _NONCE_GONE:
            verdict = RetryVerdict.USED_UP
    else:
        verdict, word = _read_body(_fields(response.body), invoice_id)
    return RetryAnswer(verdict, _plain(word) or "no reason given", after_s)


def _read_body(body: Fields, invoice_id: str) -> tuple[RetryVerdict, str]:
    """Classify a 402 of the T Backend or Flux, which states its answer in the body or in its `detail`."""
    for fields in (body, _fields(body.get("detail"))):
        word, reason = _text(fields.get("error")), _text(fields.get("reason"))
        if reason in _USED_UP_REASONS:
            return RetryVerdict.USED_UP, reason
        if word and word.lower() != "payment required":
            return RetryVerdict.UNCLEAR, f"{word} {reason}"
        if status_text := _text(fields.get("status")):
            return _read_status(status_text), status_text
        if named_id := _text(fields.get("invoiceId")):
            return (
                (RetryVerdict.PENDING, "the same invoice")
                if named_id == invoice_id
                else (RetryVerdict.INVOICED, "another invoice")
            )
    return RetryVerdict.UNCLEAR, _text(body.get("detail"))


def _read_status(status_text: str) -> RetryVerdict:
    status_word = status.WORDS.get(status_text.strip().lower())
    if status_word == "consumed":
        return RetryVerdict.USED_UP
    return RetryVerdict.PENDING if status_word in ("pending", "submitted", "confirmed") else RetryVerdict.UNCLEAR


def _read_x402(response: HttpResponse, shown_tx: str) -> tuple[RetryVerdict, str]:
    """Classify an x402 answer by the settlement's result or, without one, by the 402's `error`."""
    settled = _read_settled(response)
    if settled is not None:
        named = _text(settled.get("transaction"))
        if named and named.lower() != shown_tx:
            return RetryVerdict.UNCLEAR, f"it names the transaction {named}"
        word = _text(settled.get("errorReason"))
        return (classify(word) if word else RetryVerdict.UNCLEAR), word
    required = _find_required(response)
    if required is not None:
        word = response.headers.get("x-payment-error") or _text(required.get("error"))
        word = word or _text(_fields(_fields(response.body).get("verification")).get("invalidReason"))
        return classify(word), word
    word = _text(_fields(response.body).get("errorReason")) or _text(_fields(response.body).get("error"))
    return (classify(word) if word else RetryVerdict.UNCLEAR), word


def _read_settled(response: HttpResponse) -> Fields | None:
    return _decode(response, PAYMENT_RESPONSE) or _decode(response, "x-payment-response")


def _has_failed(settled: Fields | None) -> bool:
    """Whether a settlement's result states explicitly that it did not succeed (yet)."""
    return settled is not None and settled.get("success") in (False, "false")


def _find_required(response: HttpResponse) -> Fields | None:
    """Find the requirements that the 402 repeats: in the header, the body, or an HTML page."""
    if (required := _decode(response, PAYMENT_REQUIRED)) is not None:
        return required
    body = response.body
    if not isinstance(body, str):
        return _fields(body) if "accepts" in _fields(body) else None
    try:
        return x402_v1.find_page(body)
    except Refused:
        return None


def _decode(response: HttpResponse, name: str) -> Fields | None:
    try:
        return x402.decode_header(response.headers[name], name) if name in response.headers else None
    except Refused:
        return None


def _read_retry_after(response: HttpResponse, now_ms: int) -> int | None:
    """Return Retry-After in seconds, from a number or a date (RFC 9110, 10.2.3)."""
    stated: object = response.headers.get("retry-after", _fields(response.body).get("retryAfterSeconds"))
    if isinstance(stated, str):
        is_count = stated.isascii() and stated.isdigit() and len(stated) < 10
        stated = int(stated) if is_count else _seconds_to(stated, now_ms)
    return min(stated, RETRY_AFTER_MAX_S) if type(stated) is int and stated > 0 else None


def _seconds_to(date: str, now_ms: int) -> int | None:
    """Return the seconds until an HTTP-date, or None if the text is not one."""
    try:
        at = parsedate_to_datetime(date)
        after = (at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH - timedelta(milliseconds=now_ms)
    except (ValueError, OverflowError):
        return None
    return -(-after // timedelta(seconds=1))


def _fields(value: object) -> Fields:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text[:_REASON_MAX]).strip()
