"""The answers of x402 servers and facilitators to a proof, in both versions.

An unknown error word is `UNCLEAR`: facilitators use such words if they cannot see the transaction yet.

Never: raises; treats an unknown word as final.
"""

from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.problems import Refused
from payagent.dialects import x402
from payagent.dialects.dialect import AnswerRules, RetriedProof, Terms
from payagent.dialects.http_wire import PAYMENT_REQUIRED, PAYMENT_RESPONSE, HttpResponse, fields_of, text_of

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

_UNSETTLED = (202, 409)
"""Statuses with which some non-standard x402 servers say that a settlement is pending or failed."""


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


def _read_402(response: HttpResponse, proof: RetriedProof) -> tuple[RetryVerdict, str]:
    """Classify an answer. "Nonce not on chain" means used up if the proof has already bought a request."""
    verdict, word = read_word(response, proof.tx_id)
    if proof.has_served and word.strip().lower().partition(":")[0] == _NONCE_GONE:
        verdict = RetryVerdict.USED_UP
    return verdict, word


def read_word(response: HttpResponse, shown_tx: str) -> tuple[RetryVerdict, str]:
    """Classify an answer by the settlement's result or, without one, by the 402's `error`."""
    settled = _read_settled(response)
    if settled is not None:
        named = text_of(settled.get("transaction"))
        if named and named.lower() != shown_tx:
            return RetryVerdict.UNCLEAR, f"it names the transaction {named}"
        word = text_of(settled.get("errorReason"))
        return (classify(word) if word else RetryVerdict.UNCLEAR), word
    required = _find_required(response)
    if required is not None:
        word = response.headers.get("x-payment-error") or text_of(required.get("error"))
        word = word or text_of(fields_of(fields_of(response.body).get("verification")).get("invalidReason"))
        return classify(word), word
    word = text_of(fields_of(response.body).get("errorReason")) or text_of(fields_of(response.body).get("error"))
    return (classify(word) if word else RetryVerdict.UNCLEAR), word


def _read_settled(response: HttpResponse) -> Terms | None:
    return _decode(response, PAYMENT_RESPONSE) or _decode(response, "x-payment-response")


def is_unsettled(response: HttpResponse) -> bool:
    """Whether a settlement's result states explicitly that it did not succeed (yet)."""
    settled = _read_settled(response) if response.status in _UNSETTLED else None
    return settled is not None and settled.get("success") in (False, "false")


def _find_required(response: HttpResponse) -> Terms | None:
    """Find the requirements that the 402 repeats: in the header, the body, or an HTML page."""
    if (required := _decode(response, PAYMENT_REQUIRED)) is not None:
        return required
    body = response.body
    if not isinstance(body, str):
        return fields_of(body) if "accepts" in fields_of(body) else None
    try:
        return x402.find_page(body)
    except Refused:
        return None


def _decode(response: HttpResponse, name: str) -> Terms | None:
    try:
        return x402.decode_header(response.headers[name], name) if name in response.headers else None
    except Refused:
        return None


ANSWERS = AnswerRules(_read_402, is_unclear_refused=False, is_unsettled=is_unsettled)
