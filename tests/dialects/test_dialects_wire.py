"""T Backend and Flux: the documented bodies and headers, in every allowed spelling."""

import json
from dataclasses import replace
from typing import Any

import pytest
from kit.dialect_examples import ANNA, NOW_MS, PAY_TO, PREPROD, detail, paid, read, read_one, reading
from kit.hostile_402s import OTHER_POLICY, TOKEN, address

from payagent.core.invoice import Proof
from payagent.core.problems import Refused
from payagent.dialects import (
    HttpResponse,
    ProofMaterial,
    Reading,
    as_recorded,
    make_response,
    parse_answer,
    parse_response,
    proof_headers,
)

FLUX: dict[str, Any] = {
    "invoiceId": "6aec41a2-0d5c",
    "amount": "2000000",
    "currency": "ADA",
    "payTo": PAY_TO,
    "chain": "cardano-preprod",
    "expiresAt": "2026-11-24T13:38:18.993Z",
}
FLUX_NOW_MS = 1_795_527_498_993 - 299_500
FLUX_HEADERS = {
    "X-Invoice-Id": "6aec41a2-0d5c",
    "X-Pay-To": PAY_TO,
    "X-Amount": "2000000",
    "X-Asset": "ADA",
    "X-Chain": "cardano:preprod",
    "X-Timeout": "299",
}


def test_the_documented_t_backend_body_is_read() -> None:
    network = "mainnet"
    pay_to = address(reading(network=network).network, 0, 0x50)
    text = json.dumps(
        {
            "detail": {
                **detail(),
                "chain": "cardano-mainnet",
                "payTo": pay_to,
            }
        }
    )
    response = parse_response(402, {"Content-Type": "application/json"}, text.encode())
    invoice = read_one(response, reading(network=network))
    assert (invoice.dialect, invoice.invoice_id, invoice.network) == ("t-backend", "inv-1", "mainnet")
    assert invoice.origin == "https://api.example.com"
    assert paid(invoice) == [("pay_to", pay_to, 10_000_000)]
    assert invoice.asset == "lovelace"
    assert invoice.expires_at_ms == NOW_MS + 300_000
    assert (invoice.decimals, invoice.batch_target) == (6, 100)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("amountUnits", 10_000_000),
        ("asset", "ada"),
        ("asset", "lovelace"),
        ("chain", "cardano:preprod"),
        ("chain", "cip34:0-1"),
        ("extra", {"batchTarget": "100"}),
        ("decimals", None),
        ("description", "one hundred calls"),
        ("docs_url", "https://example.com"),
        ("extra", {"batchTarget": 100, "outputs": [], "split": None, "note": "about the order"}),
    ],
)
def test_other_spellings_of_the_same_terms_have_the_same_terms_hash(key: str, value: object) -> None:
    plain = read({"detail": detail()})
    assert read({"detail": {**detail(), key: value}}).terms_hash == plain.terms_hash


NOTES: list[dict[str, Any]] = [
    {"metadata": {"model": "gpt-4-1106", "ratio": 1.5, "tags": ["a", {"b": [1, 2.5]}], "by": {"id": 12345678}}},
    {"customFields": {"orderId": "20260001", "sandbox": True, "limits": {"rpm": 60}, "none": None}},
    {"description": "Report 2026", "createdAt": "2026-11-24T13:38:18.993Z", "weight": 0.5, "at": ["eu", "us"]},
    {"metadata": {"state": "CA", "mode": "fast", "total_tokens": 12, "unit_tests": True, "deliverTo": "me"}},
    {"metadata": {"framework": "langchain", "langchain": True, "recharge": False}},
    {"greeting": "another 2500", "contact": "our address is in the footer"},
]


@pytest.mark.parametrize("notes", NOTES, ids=str)
def test_fields_that_name_no_money_or_terms_are_ignored_in_every_dialect(notes: dict[str, Any]) -> None:
    plain = read(plain_body())
    for body in ({"detail": {**detail(), **notes}}, {"detail": detail(**notes)}, {"detail": detail(), **notes}):
        assert read(body) == plain
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    assert read_one(make_response(402, FLUX_HEADERS, FLUX | notes), now) == read_one(
        make_response(402, FLUX_HEADERS, FLUX), now
    )


@pytest.mark.parametrize(
    "terms",
    [
        *({"metadata": {"platformFee": 5}}, {"customFields": {"a": [{"payTo": "x"}]}}, {"metadata": [{"tip": 1}]}),
        *({"metadata": {"note": [PAY_TO]}}, {"metadata": {PAY_TO: 5}}, {"customFields": {"expiresAt": 1}}),
        *({"vat": 1}, {"receivers": []}, {"payouts": 1}, {"serviceCharge": 1}, {"deposit": 1.5}),
    ],
    ids=str,
)
def test_unknown_fields_that_name_money_or_terms_are_refused_anywhere(terms: dict[str, Any]) -> None:
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    for body in ({"detail": {**detail(), **terms}}, {"detail": detail(**terms)}, FLUX | terms):
        with pytest.raises(Refused) as refused:
            read_one(make_response(402, {}, body), now)
        assert refused.value.name == "terms_not_understood"


def test_the_terms_hash_does_not_depend_on_when_the_invoice_was_received() -> None:
    response = make_response(402, {}, {"detail": detail()})
    early = read_one(response, reading())
    late = read_one(make_response(402, {}, {"detail": {**detail(), "timeout": 200}}), reading())
    assert early.expires_at_ms != late.expires_at_ms
    assert early.terms_hash == late.terms_hash


@pytest.mark.parametrize("absent", ["version", "decimals"])
def test_version_and_decimals_may_be_left_out(absent: str) -> None:
    plain = detail()
    assert (
        read({"detail": {key: plain[key] for key in plain if key != absent}}).outputs == read(plain_body()).outputs
    )


def plain_body() -> dict[str, Any]:
    return {"detail": detail()}


@pytest.mark.parametrize("proof", ["tx_hash", "signed_cbor"])
def test_t_backend_and_flux_use_the_operators_setting_for_who_submits(proof: Proof) -> None:
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS, proof=proof)
    for response in (make_response(402, {}, plain_body()), make_response(402, {}, FLUX)):
        invoice = read_one(response, now)
        assert (invoice.proof, invoice.merchant_submits) == (proof, proof == "signed_cbor")


def test_a_partner_name_may_look_like_an_address() -> None:
    """It is our own name, repeated; it is not one of the terms."""
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    assert read({"detail": detail(partner="addr-2024")}).outputs == read(plain_body()).outputs
    assert read_one(make_response(402, {}, FLUX | {"partner": "addr-2024"}), now).total_units == 2_000_000


@pytest.mark.parametrize(
    ("value", "ends_ms"),
    [
        ("2026-11-24T13:38:18Z", 1_795_527_498_000),
        ("2026-11-24T13:38:18.9Z", 1_795_527_498_900),
        ("2026-11-24T13:38:18.993999Z", 1_795_527_498_993),
    ],
)
def test_the_expiry_of_a_flux_invoice_is_read_in_each_spelling(value: str, ends_ms: int) -> None:
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    assert read_one(make_response(402, {}, FLUX | {"expiresAt": value}), now).expires_at_ms == ends_ms


DAY_S = 86_400


@pytest.mark.parametrize("left_s", [1, DAY_S, DAY_S + 1])
def test_an_invoice_valid_for_more_than_a_day_is_refused(left_s: int) -> None:
    """A merchant that means milliseconds but says seconds would be paid after the expiry."""
    undated = {key: value for key, value in FLUX.items() if key != "expiresAt"}
    begun = Reading("https://api.example.com", PREPROD, None, 1_795_527_498_993 - left_s * 1000)
    for response in (
        make_response(402, {}, {"detail": {**detail(), "timeout": left_s}}),
        make_response(402, {"X-Timeout": str(left_s)}, undated),
        make_response(402, {}, FLUX),
    ):
        if left_s <= DAY_S:
            assert read_one(response, begun).expires_at_ms == 1_795_527_498_993
            continue
        with pytest.raises(Refused) as refused:
            read_one(response, begun)
        assert refused.value.name == "invoice_invalid/missing_field"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("invoiceId", "inv-2"),
        ("amountUnits", "10000001"),
        ("payTo", ANNA),
        ("extra", {"batchTarget": 99}),
        ("extra", None),
        ("extra", {"batchTarget": 100, "split": {"mode": "additional", "outputs": [{"to": ANNA, "units": 1}]}}),
    ],
)
def test_other_terms_have_another_terms_hash(key: str, value: object) -> None:
    assert read({"detail": {**detail(), key: value}}).terms_hash != read({"detail": detail()}).terms_hash


def test_a_token_is_read_with_or_without_a_dot() -> None:
    dotted = TOKEN[:56] + "." + TOKEN[56:]
    for asset in (TOKEN, dotted):
        invoice = read({"detail": {**detail(lovelace=False), "asset": asset, "decimals": 0}})
        assert invoice.asset == TOKEN
        assert invoice.decimals == 0


def test_an_unknown_asset_is_read_and_left_to_the_policy_to_refuse() -> None:
    invoice = read({"detail": {**detail(lovelace=False), "asset": OTHER_POLICY, "decimals": 2}})
    assert (invoice.asset, invoice.decimals) == (OTHER_POLICY, 2)


def test_a_flux_invoice_expires_at_the_earlier_of_body_and_header() -> None:
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    invoice = read_one(make_response(402, FLUX_HEADERS, FLUX), now)
    assert (invoice.dialect, invoice.invoice_id) == ("flux", "6aec41a2-0d5c")
    assert paid(invoice) == [("pay_to", PAY_TO, 2_000_000)]
    assert invoice.expires_at_ms == FLUX_NOW_MS + 299_000, "the header's expiry is earlier"
    without = read_one(make_response(402, {}, FLUX), now)
    assert without.expires_at_ms == 1_795_527_498_993
    assert without.terms_hash == invoice.terms_hash
    late = FLUX_HEADERS | {"X-Timeout": "600"}
    assert read_one(make_response(402, late, FLUX), now).expires_at_ms == 1_795_527_498_993, "not the later one"
    only_header = {key: value for key, value in FLUX.items() if key != "expiresAt"}
    assert read_one(make_response(402, FLUX_HEADERS, only_header), now).expires_at_ms == FLUX_NOW_MS + 299_000


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("inclusive", [("pay_to", PAY_TO, 1_000_000), ("split", ANNA, 1_000_000)]),
        ("additional", [("pay_to", PAY_TO, 2_000_000), ("split", ANNA, 1_000_000)]),
    ],
)
def test_flux_splits_are_read_in_both_modes(mode: str, expected: list[tuple[str, str, int]]) -> None:
    splits = [{"to": ANNA, "amount": "1000000", "role": "platform", "currency": "ADA"}]
    now = Reading("https://api.example.com", PREPROD, None, FLUX_NOW_MS)
    response = make_response(402, FLUX_HEADERS, {**FLUX, "splits": splits, "splitMode": mode})
    assert paid(read_one(response, now)) == expected


def test_an_expired_flux_invoice_is_refused() -> None:
    for now_ms, headers in ((1_795_527_498_993, {}), (FLUX_NOW_MS, {**FLUX_HEADERS, "X-Timeout": "0"})):
        with pytest.raises(Refused) as refused:
            read_one(
                make_response(402, headers, FLUX),
                Reading("https://api.example.com", PREPROD, None, now_ms),
            )
        assert refused.value.name == "invoice_expired"


def test_a_body_forwarded_as_text_is_read_like_json() -> None:
    body = {"detail": detail()}
    assert read(json.dumps(body)) == read(body)


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "application/json ;v=1", "application/problem+json", "APPLICATION/JSON"],
)
def test_every_json_content_type_is_read_as_json(content_type: str) -> None:
    assert read({"detail": detail()}, headers={"Content-Type": content_type}).invoice_id == "inv-1"


@pytest.mark.parametrize(
    "name",
    [
        *FLUX_HEADERS,
        *("PAYMENT-REQUIRED", "PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE", "X-PAYMENT-ERROR", "X-Payment-Required"),
        "X-402-Payment-Required",
    ],
)
def test_a_payment_header_with_two_values_is_refused_in_any_letter_case(name: str) -> None:
    for values in (("a", "b"), (FLUX_HEADERS.get(name, "a"), "b")):
        with pytest.raises(Refused) as refused:
            make_response(402, [(name, values[0]), (name.lower(), values[1])], FLUX)
        assert refused.value.name == "invoice_invalid/contradiction"
    assert make_response(402, [(name, "a"), (name.lower(), "a")], {}).headers[name.lower()] == "a"


@pytest.mark.parametrize("name", ["Set-Cookie", "X-Robots-Tag", "X-Cache", "X-Powered-By"])
def test_a_header_unrelated_to_payment_may_occur_twice(name: str) -> None:
    """A server and its proxy often add one each."""
    doubled = [("Content-Type", "application/json"), (name, "noindex"), (name.lower(), "noarchive")]
    body = {"detail": detail()}
    assert read_one(parse_response(402, doubled, json.dumps(body).encode()), reading()) == read(body)


def test_a_refusal_shows_a_header_name_in_printable_characters_only() -> None:
    with pytest.raises(Refused) as refused:
        make_response(402, [("X-Pay-\0\r\nTo", "a"), ("x-pay-\0\r\nto", "b")], FLUX)
    assert refused.value.name == "invoice_invalid/contradiction"
    assert refused.value.detail.isprintable()


def test_a_refusal_names_the_402_format_it_recognized() -> None:
    with pytest.raises(Refused, match="form of x402"):
        read({"x402Version": 4, "accepts": []})
    with pytest.raises(Refused, match="form of materios"):
        read({}, headers={"X-402-Payment-Required": "1"})
    with pytest.raises(Refused, match="form of payment-wrapped"):
        read({"status": 402, "payment": {"amount": "1"}})
    with pytest.raises(Refused, match="t-backend and flux"):
        read(detail())


SHOWN = ProofMaterial("ab" * 32, None, "cd" * 32 + "#0", "int_" + "0" * 24)


def test_the_proof_headers_of_t_backend_and_flux_are_complete() -> None:
    known = {"invoice_id": "inv-1", "echo": None, "wallet": ANNA}
    headers = proof_headers("t-backend", shown=SHOWN, partner="demo", **known)
    assert headers == {
        "X-Invoice-Id": "inv-1",
        "X-Payment": "ab" * 32,
        "X-Partner": "demo",
        "X-Wallet-Address": ANNA,
    }
    assert "X-Partner" not in proof_headers("flux", shown=SHOWN, partner=None, **known)
    signed = replace(SHOWN, cbor=b"\x84\xa0")
    assert proof_headers("flux", shown=signed, partner=None, **known)["X-Payment"] == "84a0"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"invoice_id": "a\r\nX-Api-Key: b"}, "invoice_invalid/id"),
        ({"partner": "demo\r\nX: y"}, "bad_request"),
        ({"partner": "d\u00e9mo"}, "bad_request"),
        ({"shown": replace(SHOWN, tx_id="")}, "bad_request"),
        ({"dialect": "x402-v3"}, "invoice_invalid/body"),
    ],
)
def test_a_value_that_could_inject_a_header_is_refused(change: dict[str, Any], code: str) -> None:
    given = {
        "dialect": "t-backend",
        "invoice_id": "i",
        "shown": SHOWN,
        "echo": None,
        "partner": "demo",
        "wallet": ANNA,
    }
    with pytest.raises(Refused) as refused:
        proof_headers(**(given | change))
    assert refused.value.name == code


def test_a_malformed_answer_to_a_retry_is_read_and_never_refused() -> None:
    twice = [("X-Invoice-Id", "a"), ("x-invoice-id", "b")]
    assert parse_answer(402, twice, b'{"a": 1}') == HttpResponse(402, {"x-invoice-id": "a"}, {"a": 1})
    assert parse_answer(402, [], b'{"a": 1, "a": 2}') == HttpResponse(402, {}, "")
    assert parse_answer(200, [], b"served") == HttpResponse(200, {}, "served")


@pytest.mark.parametrize("headers", [[(1, "a")], [("a", None)]])
def test_a_header_that_is_not_text_is_refused(headers: list[Any]) -> None:
    with pytest.raises(Refused) as refused:
        make_response(402, headers, "")
    assert refused.value.name == "bad_request"


def test_a_batch_of_more_than_a_billion_calls_is_refused() -> None:
    assert read({"detail": detail(batchTarget=10**9)}).batch_target == 10**9
    with pytest.raises(Refused) as refused:
        read({"detail": detail(batchTarget=10**9 + 1)})
    assert refused.value.name == "invoice_invalid/body"


@pytest.mark.parametrize("note", [None, "for a friend"])
def test_a_harmless_extra_field_is_ignored(note: object) -> None:
    assert read({"detail": {**detail(), "greeting": note}}) == read({"detail": detail()})


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ('{"a": "\u00e4"}'.encode(), {"body": '{"a": "\u00e4"}'}),
        (b"\xff{}", {"body_base64": "/3t9"}),
        (b"\0" * 65_536, {"body": "\0" * 65_536}),
        (b"\0" * 65_537, {"body_base64": "AAAA" * 21_845 + "AAA="}),
    ],
)
def test_an_answer_is_recorded_byte_for_byte(raw: bytes, kept: dict[str, str]) -> None:
    headers = [("Set-Cookie", "a"), ("Set-Cookie", "b")]
    told = json.loads(as_recorded(402, headers, raw))
    assert told == {"status": 402, "headers": [list(pair) for pair in headers], **kept}
