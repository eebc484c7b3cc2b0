"""Answers to a paid retry: every documented error has its verdict, and no other error is final."""

import base64
import json
from typing import Any

import pytest
from kit.retry_answers import CATALOGUE, PAYLOAD
from kit.x402_examples import JSON, answer_402, entry, page, required, v1_required

from payagent.dialects import (
    HttpResponse,
    RetryAnswer,
    RetryVerdict,
    is_refusal,
    make_response,
    parse_response,
    read_answer,
)

TX = "ab" * 32

NOW_MS = 1_792_567_590_000
"""2026-10-21T07:26:30Z"""
WORDS = [(word, said) for said, words in CATALOGUE.items() for word in words]


def pack(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def settled(word: str, **change: Any) -> HttpResponse:
    """A 402 whose PAYMENT-RESPONSE has the settlement result."""
    told = {"success": False, "errorReason": word, "transaction": TX, "network": "cardano:preprod"} | change
    return make_response(402, JSON | {"PAYMENT-RESPONSE": pack(told)}, {})


def said(response: HttpResponse, dialect: str = "x402-v2") -> RetryVerdict:
    return ask(response, dialect).verdict


def ask(
    response: HttpResponse, dialect: str = "x402-v2", *, is_on_chain: bool = False, has_served: bool = False
) -> RetryAnswer:
    about = {"invoice_id": "inv-1", "shown_tx": TX, "is_on_chain": is_on_chain, "has_served": has_served}
    return read_answer(dialect, response, **about, now_ms=NOW_MS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "expected"), WORDS)
def test_every_error_word_in_the_catalogue_gets_its_verdict(word: str, expected: RetryVerdict) -> None:
    assert said(settled(word)) is expected
    assert said(settled(word.upper())) is expected
    assert said(settled(word, transaction="")) is expected
    if word:
        assert said(answer_402(required(error=word))) is expected


@pytest.mark.parametrize("more", ["", ": the input is not there"])
def test_a_spent_nonce_after_the_proof_was_served_means_it_is_used_up(more: str) -> None:
    word = f"{PAYLOAD}_nonce_not_on_chain{more}"
    assert ask(answer_402(required(error=word)), has_served=True).verdict is RetryVerdict.USED_UP
    assert ask(settled(word), has_served=True).verdict is RetryVerdict.USED_UP
    assert ask(settled(f"{PAYLOAD}_input_not_available"), has_served=True).verdict is RetryVerdict.UNCLEAR


@pytest.mark.parametrize(("word", "expected"), [row for row in WORDS if row[0]])
def test_an_error_word_followed_by_an_explanation_keeps_its_verdict(word: str, expected: RetryVerdict) -> None:
    """The x402 SDKs write an error as the word, a colon and the facilitator's message. The Go SDK's resource
    server does so in every 402 after a failed verification and in every failed settlement, and the TypeScript
    SDK's when the facilitator does not answer with status 200."""
    for message in ("the input is not there", "a: b", ""):
        assert said(settled(f"{word}: {message}")) is expected
        assert said(answer_402(required(error=f"{word}: {message}"))) is expected


@pytest.mark.parametrize("error", [": x", "missing: x", "Payment required: the proof was not taken", "x: missing"])
def test_an_explained_request_for_payment_is_an_unclear_verdict(error: str) -> None:
    assert said(answer_402(required(error=error))) is RetryVerdict.UNCLEAR


def test_an_error_about_another_transaction_is_not_a_verdict_on_our_proof() -> None:
    for word, _ in WORDS:
        assert said(settled(word, transaction="cd" * 32)) is RetryVerdict.UNCLEAR
    assert said(settled("settlement_pending", transaction=TX.upper())) is RetryVerdict.PENDING


def test_the_settlement_result_takes_precedence_over_the_402s_error() -> None:
    for header in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        told = {"errorReason": "settlement_pending", "transaction": TX}
        terms = required(error="invalid_exact_cardano_payload_unsigned")
        response = make_response(402, JSON | {header: pack(told), "PAYMENT-REQUIRED": pack(terms)}, {})
        assert said(response) is RetryVerdict.PENDING


@pytest.mark.parametrize("error", [None, "", "Payment required", "PAYMENT-SIGNATURE header is required"])
def test_a_402_without_an_error_about_our_proof_is_a_new_invoice(error: str | None) -> None:
    assert said(answer_402(required(error=error))) is RetryVerdict.INVOICED
    assert said(make_response(402, JSON, required(error=error))) is RetryVerdict.INVOICED


@pytest.mark.parametrize(("word", "expected"), [row for row in WORDS if row[0]])
def test_a_facilitators_verdict_in_the_body_counts_when_the_header_has_no_error(
    word: str, expected: RetryVerdict
) -> None:
    """The Cardano x402 starter: PAYMENT-REQUIRED has no error; the body has the facilitator's whole answer."""
    verdict = json.dumps({"error": "payment_invalid", "verification": {"isValid": False, "invalidReason": word}})
    assert said(answer_402(required(error=""), body=verdict)) is expected
    assert said(answer_402({"x402Version": 2, "accepts": [entry()]}, body=verdict)) is expected
    assert said(answer_402(required(error="settlement_pending"), body=verdict)) is RetryVerdict.PENDING


@pytest.mark.parametrize(
    "verdict", [{"verification": {"isValid": True}}, {"verification": {"invalidReason": 7}}, {"verification": []}]
)
def test_a_402_without_an_error_or_a_verdict_is_a_new_invoice(verdict: object) -> None:
    assert said(answer_402(required(error=""), body=json.dumps(verdict))) is RetryVerdict.INVOICED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Settlement failed: confirmation_timeout", RetryVerdict.PENDING),
        ("Settlement failed: submission_rejected", RetryVerdict.UNCLEAR),
        ("Settlement failed: invalid_transaction", RetryVerdict.UNCLEAR),
        ("Payment verification failed", RetryVerdict.UNCLEAR),
        ("Invalid Payment-Signature header", RetryVerdict.REFUSED),
        ("recipient_mismatch", RetryVerdict.REFUSED),
        ("amount_insufficient", RetryVerdict.REFUSED),
    ],
)
def test_errors_of_a_facilitator_that_settles_before_serving_get_their_verdict(
    error: str, expected: RetryVerdict
) -> None:
    assert said(answer_402(required(entry() | {"extra": None}, error=error), body="")) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("missing", RetryVerdict.INVOICED),
        ("invalid_payload", RetryVerdict.REFUSED),
        ("invalid_network", RetryVerdict.REFUSED),
        ("HTTP 500", RetryVerdict.UNCLEAR),
        ("invalid_transaction_state", RetryVerdict.UNCLEAR),
    ],
)
def test_a_version_1_page_with_its_error_in_a_header_gets_its_verdict(error: str, expected: RetryVerdict) -> None:
    headers = {"content-type": "text/html", "X-PAYMENT-ERROR": error}
    response = parse_response(402, headers, page(v1_required()).encode())
    assert said(response, "x402-v1") is expected


def test_a_pending_version_1_payment_is_polled_by_our_transaction_id() -> None:
    body = {"pending": True, "transaction": TX, "retryAfterSeconds": 10}
    answer = ask(make_response(202, JSON, body), "x402-v1")
    assert answer == RetryAnswer(RetryVerdict.PENDING, "pending", 10, f"tx={TX}")
    liar = ask(make_response(202, JSON, body | {"transaction": "cd" * 32}), "x402-v1")
    assert liar.poll_query == f"tx={TX}", "only our own transaction id"
    for nothing in ("", None):  # its facilitator could not submit it, or it is already on the chain
        unsent = make_response(202, JSON, body | {"transaction": nothing})
        assert ask(unsent, "x402-v1") == RetryAnswer(RetryVerdict.PENDING, "pending", 10, None)
        assert ask(unsent, "x402-v1", is_on_chain=True).poll_query == f"tx={TX}"
    assert said(make_response(200, JSON, body), "x402-v1") is RetryVerdict.SERVED
    assert said(make_response(202, JSON, body), "x402-v2") is RetryVerdict.SERVED
    assert said(make_response(202, JSON, {"pending": "true"}), "x402-v1") is RetryVerdict.SERVED


@pytest.mark.parametrize("status", [202, 409])
@pytest.mark.parametrize(("word", "expected"), WORDS)
def test_a_failed_settlement_receipt_counts_with_status_202_or_409(
    status: int, word: str, expected: RetryVerdict
) -> None:
    """The Cardano x402 starter answers 202 while a settlement is pending, and 409 to one that failed."""
    told = {"success": False, "errorReason": word, "transaction": TX, "network": "cardano:preprod"}
    for name in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        for dialect in ("x402-v2", "x402-v1"):
            for success in (False, "false"):  # as Masumi's servers write it
                receipt = pack(told | {"success": success})
                assert said(make_response(status, JSON | {name: receipt}, {}), dialect) is expected
    foreign = make_response(status, JSON | {"PAYMENT-RESPONSE": pack(told)}, {})
    assert said(foreign, "flux") is (RetryVerdict.SERVED if status == 202 else RetryVerdict.OTHER)


@pytest.mark.parametrize("told", [{"success": True}, {"success": "true"}, {}, {"success": None}])
def test_a_202_without_a_failure_in_its_receipt_counts_as_served(told: dict[str, object]) -> None:
    """An accepted job is answered with 202, and its payment is settled."""
    receipt = JSON | {"PAYMENT-RESPONSE": pack(told | {"transaction": TX})}
    assert said(make_response(202, receipt, {"status": "pending"})) is RetryVerdict.SERVED
    assert said(make_response(202, JSON | {"PAYMENT-RESPONSE": "not base64!"}, {})) is RetryVerdict.SERVED


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"detail": {"status": "pending"}}, RetryVerdict.PENDING),
        ({"detail": {"status": "Submitted"}}, RetryVerdict.PENDING),
        ({"status": "verified"}, RetryVerdict.PENDING),
        ({"detail": {"status": "consumed"}}, RetryVerdict.USED_UP),
        ({"detail": {"status": "expired"}}, RetryVerdict.UNCLEAR),
        ({"detail": {"status": "paid-ish"}}, RetryVerdict.UNCLEAR),
        ({"detail": {"error": "payment_flow_error"}}, RetryVerdict.UNCLEAR),
        ({"detail": {"error": "payment_flow_error", "reason": "wrong_outputs"}}, RetryVerdict.UNCLEAR),
        ({"detail": {"error": "payment_flow_error", "reason": "paid_already"}}, RetryVerdict.USED_UP),
        ({"detail": {"error": "payment_flow_error", "reason": "transaction_used"}}, RetryVerdict.USED_UP),
        ({"error": "payment required", "reason": "consumed"}, RetryVerdict.USED_UP),
        ({"error": "payment required", "invoiceId": "inv-1"}, RetryVerdict.PENDING),
        ({"detail": {"error": "payment_flow_error", "invoiceId": "inv-1"}}, RetryVerdict.UNCLEAR),
        ({"detail": {"invoiceId": "inv-1", "amountUnits": "1"}}, RetryVerdict.PENDING),
        ({"detail": {"invoiceId": "inv-2", "amountUnits": "1"}}, RetryVerdict.INVOICED),
        ({"invoiceId": "inv-1", "amount": "1"}, RetryVerdict.PENDING),
        ({"invoiceId": "inv-2", "amount": "1"}, RetryVerdict.INVOICED),
        ({"error": "Payment Required", "invoiceId": "inv-1", "paymentRequired": True}, RetryVerdict.PENDING),
        ({"error": "Payment Required", "invoiceId": "inv-2", "paymentRequired": True}, RetryVerdict.INVOICED),
        ({"detail": "Payment required"}, RetryVerdict.UNCLEAR),
        ({"error": "x", "detail": "y"}, RetryVerdict.UNCLEAR),
        ({"detail": [{"loc": ["body"], "msg": "m", "type": "t"}]}, RetryVerdict.UNCLEAR),
        ({}, RetryVerdict.UNCLEAR),
        ([], RetryVerdict.UNCLEAR),
        (None, RetryVerdict.UNCLEAR),
        ("<html>402</html>", RetryVerdict.UNCLEAR),
    ],
)
def test_t_backend_and_flux_402s_after_a_retry_get_their_verdict(body: object, expected: RetryVerdict) -> None:
    for dialect in ("t-backend", "flux"):
        assert said(HttpResponse(402, {}, body), dialect) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, RetryVerdict.SERVED),
        (201, RetryVerdict.SERVED),
        (204, RetryVerdict.SERVED),
        (301, RetryVerdict.OTHER),
        (304, RetryVerdict.SERVED),
        (307, RetryVerdict.OTHER),
        (400, RetryVerdict.OTHER),
        (401, RetryVerdict.OTHER),
        (403, RetryVerdict.OTHER),
        (404, RetryVerdict.OTHER),
        (409, RetryVerdict.OTHER),
        (422, RetryVerdict.OTHER),
        (408, RetryVerdict.UNCLEAR),
        (425, RetryVerdict.UNCLEAR),
        (429, RetryVerdict.UNCLEAR),
        (500, RetryVerdict.UNCLEAR),
        (502, RetryVerdict.UNCLEAR),
        (504, RetryVerdict.UNCLEAR),
        (524, RetryVerdict.UNCLEAR),
    ],
)
def test_each_http_status_of_a_retry_gets_its_verdict(status: int, expected: RetryVerdict) -> None:
    for dialect in ("t-backend", "flux", "x402-v2", "x402-v1"):
        assert said(HttpResponse(status, {}, ""), dialect) is expected
        refusal = JSON | {"payment-response": pack({"errorReason": PAYLOAD, "transaction": TX})}
        assert said(HttpResponse(status, refusal, {}), dialect) is expected
        if status != 409:  # some servers answer 409 to a failed settlement
            failed = pack({"success": False, "errorReason": PAYLOAD, "transaction": TX})
            assert said(HttpResponse(status, JSON | {"payment-response": failed}, {}), dialect) is expected


@pytest.mark.parametrize(
    ("value", "after_s"),
    [("7", 7), ("999999999", 3_600), ("0", None), ("-1", None), ("1.5", None), ("\u0667", None), ("9" * 40, None)],
)
def test_retry_after_is_read_as_whole_seconds_up_to_an_hour(value: str, after_s: int | None) -> None:
    assert ask(HttpResponse(503, {"retry-after": value}, "")).retry_after_s == after_s
    assert ask(HttpResponse(402, {}, {"retryAfterSeconds": True})).retry_after_s is None


@pytest.mark.parametrize(
    ("date", "after_s"),
    [
        ("Wed, 21 Oct 2026 07:28:00 GMT", 90),
        ("Wednesday, 21-Oct-26 07:28:00 GMT", 90),
        ("Wed Oct 21 07:28:00 2026", 90),
        ("Wed, 21 Oct 2026 09:28:00 +0200", 90),
        ("Wed, 21 Oct 2026 23:28:00 GMT", 3_600),
        ("Wed, 21 Oct 2026 07:26:30 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", None),
        ("Wed, 21 Oct 2026", None),
        ("Wed, 99999999999999999999 Oct 2026 07:28:00 GMT", None),
        ("Wed, 21 Oct 2026 07:28:00 +9999", None),
        ("tomorrow", None),
        (" ", None),
    ],
)
def test_retry_after_is_read_as_a_date_up_to_an_hour_ahead(date: str, after_s: int | None) -> None:
    """RFC 9110, section 10.2.3: each of the three date forms; the time is 90 seconds before."""
    assert ask(HttpResponse(503, {"retry-after": date}, "")).retry_after_s == after_s


def test_a_merchants_error_is_shown_as_at_most_200_ascii_characters() -> None:
    answer = ask(settled("\u202epay \u00e9\n" + "x" * 500))
    assert answer.verdict is RetryVerdict.UNCLEAR
    assert answer.reason.startswith("?pay ??xxx")
    assert len(answer.reason) == 200


def test_a_page_with_unreadable_requirements_is_an_unclear_verdict() -> None:
    headers = {"content-type": "text/html", "X-PAYMENT-ERROR": "invalid_payload"}
    assert said(parse_response(402, headers, page(v1_required()).encode()), "x402-v1") is RetryVerdict.REFUSED
    assert said(parse_response(402, headers, page(v1_required()).encode() * 2), "x402-v1") is RetryVerdict.UNCLEAR


def test_the_body_counts_when_the_settlement_header_is_unreadable() -> None:
    headers = {"content-type": "application/json", "PAYMENT-RESPONSE": "not base64!"}
    body = json.dumps({"errorReason": "duplicate_settlement"}).encode()
    assert said(parse_response(402, headers, body)) is RetryVerdict.USED_UP
    for body, expected in (
        (b'{"error": "settlement_pending"}', RetryVerdict.PENDING),
        (b'{"error": "Payment failed", "errorReason": "settlement_pending"}', RetryVerdict.PENDING),
        (b'{"error": "Payment failed"}', RetryVerdict.UNCLEAR),
    ):
        assert said(parse_response(402, headers, body)) is expected


@pytest.mark.parametrize(
    ("dialect", "said", "status", "refuses"),
    [
        ("t-backend", RetryVerdict.OTHER, 404, True),
        ("t-backend", RetryVerdict.UNCLEAR, 402, True),
        ("t-backend", RetryVerdict.INVOICED, 402, True),
        ("t-backend", RetryVerdict.PENDING, 402, False),
        ("t-backend", RetryVerdict.USED_UP, 402, False),
        ("t-backend", RetryVerdict.UNCLEAR, 429, False),
        ("t-backend", RetryVerdict.UNCLEAR, 503, False),
        ("t-backend", RetryVerdict.OTHER, 307, False),
        ("t-backend", RetryVerdict.SERVED, 200, False),
        ("x402-v2", RetryVerdict.REFUSED, 202, True),
        ("x402-v2", RetryVerdict.REFUSED, 402, True),
        ("x402-v2", RetryVerdict.UNCLEAR, 402, False),
        ("x402-v1", RetryVerdict.UNCLEAR, 402, False),
    ],
)
def test_only_a_final_answer_refuses_a_proof(dialect: str, said: RetryVerdict, status: int, refuses: bool) -> None:
    assert is_refusal(dialect, RetryAnswer(said, ""), status) is refuses
