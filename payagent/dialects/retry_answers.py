"""Classifies a merchant's answer to a retry into seven verdicts.

Start with `read_answer`. A verdict is only advice; the chain decides what happened to the money. An unknown error
word is `UNCLEAR`. Each dialect has its own words (`AnswerRules`).

Never: raises; treats an unknown word as final.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.payment.machine import is_served
from payagent.dialects.dialect import RetriedProof, RetryAnswer
from payagent.dialects.http_wire import HttpResponse, fields_of
from payagent.dialects.registry import dialect_of

RETRY_AFTER_MAX_S = 3_600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REASON_MAX = 200

_TRANSIENT = (408, 425, 429)
_PROOF_STATUS = (402, 403, 404, 409)
"""Client errors that may be about the proof."""


def may_pass(status: int) -> bool:
    """Whether a status is a transient failure (5xx, 408, 425, 429)."""
    return status >= 500 or status in _TRANSIENT


def is_refusal(dialect: str, answer: RetryAnswer, status: int) -> bool:
    """Whether the merchant refused the proof, so it is neither a transient failure nor pending."""
    if not 400 <= status < 500 or may_pass(status):
        return answer.verdict is RetryVerdict.REFUSED
    if answer.verdict is RetryVerdict.UNCLEAR:
        return dialect_of(dialect).answers.is_unclear_refused
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
    `has_served`: the proof has already bought a request.
    """
    code, after_s, rules = response.status, _read_retry_after(response, now_ms), dialect_of(dialect).answers
    proof = RetriedProof(invoice_id, shown_tx, is_on_chain, has_served)
    is_unsettled = rules.is_unsettled(response)
    if is_served(code):
        if rules.read_pending is not None and (pending := rules.read_pending(response, proof)) is not None:
            return replace(pending, retry_after_s=after_s)
        if not is_unsettled:
            return RetryAnswer(RetryVerdict.SERVED, f"status {code}")
    if may_pass(code):
        return RetryAnswer(RetryVerdict.UNCLEAR, f"status {code}", after_s)
    if code != 402 and not is_unsettled:
        return RetryAnswer(RetryVerdict.OTHER, f"status {code}")
    verdict, word = rules.read_402(response, proof)
    return RetryAnswer(verdict, plain(word) or "no reason given", after_s)


def _read_retry_after(response: HttpResponse, now_ms: int) -> int | None:
    """Return Retry-After in seconds, from a number or a date (RFC 9110, 10.2.3)."""
    stated: object = response.headers.get("retry-after", fields_of(response.body).get("retryAfterSeconds"))
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


def plain(text: str) -> str:
    """Return a merchant's text as printable ASCII of at most 200 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:_REASON_MAX]).strip()
