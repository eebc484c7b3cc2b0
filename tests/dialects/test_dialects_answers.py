"""What a merchant says to a paid retry: every word of the documents has its class, and no other word is final."""

import base64
import json
from typing import Any

import pytest
from x402_examples import JSON, answer_402, entry, page, required, v1_required

from payagent.dialects import Answer, Response, Said, is_refusal, make_response, parse_response, read_answer

TX = "ab" * 32
PAYLOAD = "invalid_exact_cardano_payload"

CATALOGUE = {
    Said.REFUSED: [
        "unsupported_scheme",
        "network_mismatch",
        PAYLOAD,
        *(
            f"{PAYLOAD}_{word}"
            for word in (
                *("unsupported_version", "transaction_decode_failed", "network_id_mismatch", "recipient_mismatch"),
                *("asset_mismatch", "amount_insufficient", "nonce_invalid", "nonce_not_in_inputs", "ttl_expired"),
                *("unsigned", "invalid_signature", "phase1_invalid", "phase2_invalid"),
                *("value_not_conserved", "fee_below_minimum", "min_utxo_insufficient", "script_address_mismatch"),
                *("payer_not_witness", "script_datum_missing", "masumi_contract_mismatch", "masumi_datum_missing"),
                *("masumi_datum_invalid", "masumi_datum_mismatch", "masumi_deadline", "masumi_collateral"),
                *("masumi_min_utxo", "masumi_reference_script", "masumi_asset", "masumi_escrow_output_count"),
            )
        ),
        "invalid_exact_cardano_requirements",
        "invalid_exact_cardano_requirements_policy",
        "invalid_exact_cardano_requirements_masumi_schema",
        "exact_cardano_settlement_definitively_rejected",
        "masumi_terms_unknown",
        "masumi_terms_mismatch",
        *(f"request_commitment_{word}" for word in ("unsigned", "malformed", "mismatch", "missing")),
        "No matching payment requirements",
    ],
    Said.UNCLEAR: [
        f"{PAYLOAD}_nonce_not_on_chain",
        f"{PAYLOAD}_input_not_available",
        f"{PAYLOAD}_not_yet_valid",
        f"{PAYLOAD}_ttl_too_far",
        f"{PAYLOAD}_verification_error",
        f"{PAYLOAD}_evidence_mismatch",
        "exact_cardano_facilitator_chain_lookup_failed",
        "exact_cardano_facilitator_evidence_unavailable",
        "exact_cardano_facilitator_input_value_unavailable",
        "exact_cardano_settlement_failed",
        "exact_cardano_settlement_not_confirmed",
        "unexpected_settle_error",
        "Facilitator settle failed (502): Bad Gateway",
        "",
        "a word of next year",
        "request_commitment_of_next_year",
    ],
    Said.USED_UP: ["duplicate_settlement"],
    Said.PENDING: ["settlement_pending"],
}
NOW_MS = 1_792_567_590_000
"""2026-10-21T07:26:30Z"""
WORDS = [(word, said) for said, words in CATALOGUE.items() for word in words]


def pack(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def settled(word: str, **change: Any) -> Response:
    """A 402 whose PAYMENT-RESPONSE says how the settlement went."""
    told = {"success": False, "errorReason": word, "transaction": TX, "network": "cardano:preprod"} | change
    return make_response(402, JSON | {"PAYMENT-RESPONSE": pack(told)}, {})


def said(response: Response, dialect: str = "x402-v2") -> Said:
    return ask(response, dialect).said


def ask(
    response: Response, dialect: str = "x402-v2", *, is_on_chain: bool = False, has_served: bool = False
) -> Answer:
    about = {"invoice_id": "inv-1", "shown_tx": TX, "is_on_chain": is_on_chain, "has_served": has_served}
    return read_answer(dialect, response, **about, now_ms=NOW_MS)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "expected"), WORDS)
def test_every_word_of_the_catalogue(word: str, expected: Said) -> None:
    assert said(settled(word)) is expected
    assert said(settled(word.upper())) is expected
    assert said(settled(word, transaction="")) is expected
    if word:
        assert said(answer_402(required(error=word))) is expected


@pytest.mark.parametrize("more", ["", ": the input is not there"])
def test_once_the_proof_has_served_a_call_a_spent_nonce_means_that_it_is_used_up(more: str) -> None:
    word = f"{PAYLOAD}_nonce_not_on_chain{more}"
    assert ask(answer_402(required(error=word)), has_served=True).said is Said.USED_UP
    assert ask(settled(word), has_served=True).said is Said.USED_UP
    assert ask(settled(f"{PAYLOAD}_input_not_available"), has_served=True).said is Said.UNCLEAR


@pytest.mark.parametrize(("word", "expected"), [row for row in WORDS if row[0]])
def test_a_word_with_its_explanation_means_what_the_word_alone_means(word: str, expected: Said) -> None:
    """The SDKs of x402 write an error's text as the word, a colon and the facilitator's message. The resource
    server of the Go SDK states that text in every 402 after a failed verification and in every failed settlement;
    that of the TypeScript SDK does when the facilitator answers with another status than 200."""
    for message in ("the input is not there", "a: b", ""):
        assert said(settled(f"{word}: {message}")) is expected
        assert said(answer_402(required(error=f"{word}: {message}"))) is expected


@pytest.mark.parametrize("error", [": x", "missing: x", "Payment required: the proof was not taken", "x: missing"])
def test_an_explained_word_that_only_asks_for_money_may_speak_of_the_proof(error: str) -> None:
    assert said(answer_402(required(error=error))) is Said.UNCLEAR


def test_a_word_about_another_transaction_says_nothing_of_ours() -> None:
    for word, _ in WORDS:
        assert said(settled(word, transaction="cd" * 32)) is Said.UNCLEAR
    assert said(settled("settlement_pending", transaction=TX.upper())) is Said.PENDING


def test_the_result_of_the_settlement_counts_before_the_402s_own_error() -> None:
    for header in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        told = {"errorReason": "settlement_pending", "transaction": TX}
        terms = required(error="invalid_exact_cardano_payload_unsigned")
        response = make_response(402, JSON | {header: pack(told), "PAYMENT-REQUIRED": pack(terms)}, {})
        assert said(response) is Said.PENDING


@pytest.mark.parametrize("error", [None, "", "Payment required", "PAYMENT-SIGNATURE header is required"])
def test_a_402_that_says_nothing_of_our_proof_asks_for_money(error: str | None) -> None:
    assert said(answer_402(required(error=error))) is Said.INVOICED
    assert said(make_response(402, JSON, required(error=error))) is Said.INVOICED


@pytest.mark.parametrize(("word", "expected"), [row for row in WORDS if row[0]])
def test_a_server_that_states_the_terms_in_the_header_and_its_facilitators_verdict_in_the_body(
    word: str, expected: Said
) -> None:
    """The Cardano x402 starter: its PAYMENT-REQUIRED has no error, and the body the facilitator's whole answer."""
    verdict = json.dumps({"error": "payment_invalid", "verification": {"isValid": False, "invalidReason": word}})
    assert said(answer_402(required(error=""), body=verdict)) is expected
    assert said(answer_402({"x402Version": 2, "accepts": [entry()]}, body=verdict)) is expected
    assert said(answer_402(required(error="settlement_pending"), body=verdict)) is Said.PENDING


@pytest.mark.parametrize(
    "verdict", [{"verification": {"isValid": True}}, {"verification": {"invalidReason": 7}}, {"verification": []}]
)
def test_a_body_without_a_verdict_beside_a_header_without_an_error_asks_for_money(verdict: object) -> None:
    assert said(answer_402(required(error=""), body=json.dumps(verdict))) is Said.INVOICED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Settlement failed: confirmation_timeout", Said.PENDING),
        ("Settlement failed: submission_rejected", Said.UNCLEAR),
        ("Settlement failed: invalid_transaction", Said.UNCLEAR),
        ("Payment verification failed", Said.UNCLEAR),
        ("Invalid Payment-Signature header", Said.REFUSED),
        ("recipient_mismatch", Said.REFUSED),
        ("amount_insufficient", Said.REFUSED),
    ],
)
def test_a_facilitator_that_settles_before_it_serves(error: str, expected: Said) -> None:
    assert said(answer_402(required(entry() | {"extra": None}, error=error), body="")) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("missing", Said.INVOICED),
        ("invalid_payload", Said.REFUSED),
        ("invalid_network", Said.REFUSED),
        ("HTTP 500", Said.UNCLEAR),
        ("invalid_transaction_state", Said.UNCLEAR),
    ],
)
def test_version_1_in_a_page_with_its_error_in_a_header(error: str, expected: Said) -> None:
    headers = {"content-type": "text/html", "X-PAYMENT-ERROR": error}
    response = parse_response(402, headers, page(v1_required()).encode())
    assert said(response, "x402-v1") is expected


def test_version_1_that_waits_for_the_chain_wants_to_be_asked_by_the_transactions_id() -> None:
    body = {"pending": True, "transaction": TX, "retryAfterSeconds": 10}
    answer = ask(make_response(202, JSON, body), "x402-v1")
    assert answer == Answer(Said.PENDING, "pending", 10, f"tx={TX}")
    liar = ask(make_response(202, JSON, body | {"transaction": "cd" * 32}), "x402-v1")
    assert liar.poll_query == f"tx={TX}", "only ever our own"
    for nothing in ("", None):  # its facilitator could not submit it, or it is there already
        unsent = make_response(202, JSON, body | {"transaction": nothing})
        assert ask(unsent, "x402-v1") == Answer(Said.PENDING, "pending", 10, None)
        assert ask(unsent, "x402-v1", is_on_chain=True).poll_query == f"tx={TX}"
    assert said(make_response(200, JSON, body), "x402-v1") is Said.SERVED
    assert said(make_response(202, JSON, body), "x402-v2") is Said.SERVED
    assert said(make_response(202, JSON, {"pending": "true"}), "x402-v1") is Said.SERVED


@pytest.mark.parametrize("status", [202, 409])
@pytest.mark.parametrize(("word", "expected"), WORDS)
def test_a_server_of_its_own_make_that_tells_with_another_status_how_the_settlement_stands(
    status: int, word: str, expected: Said
) -> None:
    """The Cardano x402 starter answers 202 while a settlement is pending, and 409 to one that failed."""
    told = {"success": False, "errorReason": word, "transaction": TX, "network": "cardano:preprod"}
    for name in ("PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"):
        for dialect in ("x402-v2", "x402-v1"):
            for success in (False, "false"):  # as Masumi's servers write it
                receipt = pack(told | {"success": success})
                assert said(make_response(status, JSON | {name: receipt}, {}), dialect) is expected
    foreign = make_response(status, JSON | {"PAYMENT-RESPONSE": pack(told)}, {})
    assert said(foreign, "flux") is (Said.SERVED if status == 202 else Said.OTHER)


@pytest.mark.parametrize("told", [{"success": True}, {"success": "true"}, {}, {"success": None}])
def test_a_202_whose_receipt_names_no_failure_is_the_thing_itself(told: dict[str, object]) -> None:
    """A job that was taken on is answered with 202, and its payment is settled."""
    receipt = JSON | {"PAYMENT-RESPONSE": pack(told | {"transaction": TX})}
    assert said(make_response(202, receipt, {"status": "pending"})) is Said.SERVED
    assert said(make_response(202, JSON | {"PAYMENT-RESPONSE": "not base64!"}, {})) is Said.SERVED


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"detail": {"status": "pending"}}, Said.PENDING),
        ({"detail": {"status": "Submitted"}}, Said.PENDING),
        ({"status": "verified"}, Said.PENDING),
        ({"detail": {"status": "consumed"}}, Said.USED_UP),
        ({"detail": {"status": "expired"}}, Said.UNCLEAR),
        ({"detail": {"status": "paid-ish"}}, Said.UNCLEAR),
        ({"detail": {"error": "payment_flow_error"}}, Said.UNCLEAR),
        ({"detail": {"error": "payment_flow_error", "reason": "wrong_outputs"}}, Said.UNCLEAR),
        ({"detail": {"error": "payment_flow_error", "reason": "paid_already"}}, Said.USED_UP),
        ({"detail": {"error": "payment_flow_error", "reason": "transaction_used"}}, Said.USED_UP),
        ({"error": "payment required", "reason": "consumed"}, Said.USED_UP),
        ({"error": "payment required", "invoiceId": "inv-1"}, Said.PENDING),
        ({"detail": {"error": "payment_flow_error", "invoiceId": "inv-1"}}, Said.UNCLEAR),
        ({"detail": {"invoiceId": "inv-1", "amountUnits": "1"}}, Said.PENDING),
        ({"detail": {"invoiceId": "inv-2", "amountUnits": "1"}}, Said.INVOICED),
        ({"invoiceId": "inv-1", "amount": "1"}, Said.PENDING),
        ({"invoiceId": "inv-2", "amount": "1"}, Said.INVOICED),
        ({"error": "Payment Required", "invoiceId": "inv-1", "paymentRequired": True}, Said.PENDING),
        ({"error": "Payment Required", "invoiceId": "inv-2", "paymentRequired": True}, Said.INVOICED),
        ({"detail": "Payment required"}, Said.UNCLEAR),
        ({"error": "x", "detail": "y"}, Said.UNCLEAR),
        ({"detail": [{"loc": ["body"], "msg": "m", "type": "t"}]}, Said.UNCLEAR),
        ({}, Said.UNCLEAR),
        ([], Said.UNCLEAR),
        (None, Said.UNCLEAR),
        ("<html>402</html>", Said.UNCLEAR),
    ],
)
def test_the_t_backend_and_flux(body: object, expected: Said) -> None:
    for dialect in ("t-backend", "flux"):
        assert said(Response(402, {}, body), dialect) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Said.SERVED),
        (201, Said.SERVED),
        (204, Said.SERVED),
        (301, Said.OTHER),
        (304, Said.SERVED),
        (307, Said.OTHER),
        (400, Said.OTHER),
        (401, Said.OTHER),
        (403, Said.OTHER),
        (404, Said.OTHER),
        (409, Said.OTHER),
        (422, Said.OTHER),
        (408, Said.UNCLEAR),
        (425, Said.UNCLEAR),
        (429, Said.UNCLEAR),
        (500, Said.UNCLEAR),
        (502, Said.UNCLEAR),
        (504, Said.UNCLEAR),
        (524, Said.UNCLEAR),
    ],
)
def test_statuses(status: int, expected: Said) -> None:
    for dialect in ("t-backend", "flux", "x402-v2", "x402-v1"):
        assert said(Response(status, {}, ""), dialect) is expected
        refusal = JSON | {"payment-response": pack({"errorReason": PAYLOAD, "transaction": TX})}
        assert said(Response(status, refusal, {}), dialect) is expected
        if status != 409:  # which some servers answer with to a settlement that failed
            failed = pack({"success": False, "errorReason": PAYLOAD, "transaction": TX})
            assert said(Response(status, JSON | {"payment-response": failed}, {}), dialect) is expected


@pytest.mark.parametrize(
    ("value", "after_s"),
    [("7", 7), ("999999999", 3_600), ("0", None), ("-1", None), ("1.5", None), ("\u0667", None), ("9" * 40, None)],
)
def test_when_to_come_again(value: str, after_s: int | None) -> None:
    assert ask(Response(503, {"retry-after": value}, "")).retry_after_s == after_s
    assert ask(Response(402, {}, {"retryAfterSeconds": True})).retry_after_s is None


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
def test_when_to_come_again_may_be_said_as_a_date(date: str, after_s: int | None) -> None:
    """RFC 9110 10.2.3, in each of its three forms; the time is one and a half minutes before."""
    assert ask(Response(503, {"retry-after": date}, "")).retry_after_s == after_s


def test_a_merchants_words_are_shown_as_bounded_plain_ascii() -> None:
    answer = ask(settled("\u202epay \u00e9\n" + "x" * 500))
    assert answer.said is Said.UNCLEAR
    assert answer.reason.startswith("?pay ??xxx")
    assert len(answer.reason) == 200


def test_a_page_whose_requirements_cannot_be_read_says_nothing() -> None:
    headers = {"content-type": "text/html", "X-PAYMENT-ERROR": "invalid_payload"}
    assert said(parse_response(402, headers, page(v1_required()).encode()), "x402-v1") is Said.REFUSED
    assert said(parse_response(402, headers, page(v1_required()).encode() * 2), "x402-v1") is Said.UNCLEAR


def test_a_settlement_that_cannot_be_read_says_nothing_and_the_body_counts() -> None:
    headers = {"content-type": "application/json", "PAYMENT-RESPONSE": "not base64!"}
    body = json.dumps({"errorReason": "duplicate_settlement"}).encode()
    assert said(parse_response(402, headers, body)) is Said.USED_UP
    for body, expected in (
        (b'{"error": "settlement_pending"}', Said.PENDING),
        (b'{"error": "Payment failed", "errorReason": "settlement_pending"}', Said.PENDING),
        (b'{"error": "Payment failed"}', Said.UNCLEAR),
    ):
        assert said(parse_response(402, headers, body)) is expected


@pytest.mark.parametrize(
    ("dialect", "said", "status", "refuses"),
    [
        ("t-backend", Said.OTHER, 404, True),
        ("t-backend", Said.UNCLEAR, 402, True),
        ("t-backend", Said.INVOICED, 402, True),
        ("t-backend", Said.PENDING, 402, False),
        ("t-backend", Said.USED_UP, 402, False),
        ("t-backend", Said.UNCLEAR, 429, False),
        ("t-backend", Said.UNCLEAR, 503, False),
        ("t-backend", Said.OTHER, 307, False),
        ("t-backend", Said.SERVED, 200, False),
        ("x402-v2", Said.REFUSED, 202, True),
        ("x402-v2", Said.REFUSED, 402, True),
        ("x402-v2", Said.UNCLEAR, 402, False),
        ("x402-v1", Said.UNCLEAR, 402, False),
    ],
)
def test_what_refuses_a_proof(dialect: str, said: Said, status: int, refuses: bool) -> None:
    assert is_refusal(dialect, Answer(said, ""), status) is refuses
