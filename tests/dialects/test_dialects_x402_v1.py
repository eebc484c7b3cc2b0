"""Masumi's x402 v1 in JSON and in a page, and the Orynq SDK's x402, each with its proof."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from kit.dialect_examples import ANNA, NOW_MS, PAY_TO, paid
from kit.hostile_402s import TOKEN, address
from kit.x402_examples import (
    DOTTED,
    JSON,
    NO_JSON,
    URL,
    answer_402,
    knowing,
    offer,
    offers,
    pack,
    page,
    required,
    unpack,
    v1_entry,
    v1_required,
)

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.dialects import (
    HttpResponse,
    ProofMaterial,
    make_response,
    parse_response,
    proof_headers,
    read_offers,
)

SHOWN = ProofMaterial("ab" * 32, b"\x84\xa3\x00", "cd" * 32 + "#1", "int_" + "0" * 24)
HOME = "https://api.example.com/"
HTML = {"content-type": "text/html; charset=utf-8"}


def in_json(terms: object) -> HttpResponse:
    return make_response(402, JSON, terms)


def in_page(terms: object) -> HttpResponse:
    return parse_response(402, HTML, page(terms).encode())


@pytest.mark.parametrize("answer", [in_json, in_page])
def test_the_402_of_masumis_example_server_is_read_from_json_and_a_page(answer: Any) -> None:
    invoice = offer(answer(v1_required()), url=HOME)
    assert (invoice.dialect, invoice.network, invoice.asset) == ("x402-v1", "preprod", TOKEN)
    assert paid(invoice) == [("pay_to", PAY_TO, 2_000_000)]
    assert (invoice.expires_at_ms, invoice.decimals) == (NOW_MS + 600_000, 0)
    assert (invoice.proof, invoice.merchant_submits, invoice.has_own_id) == ("signed_cbor", True, False)
    assert invoice == offer(in_json(v1_required()), url=HOME)


def test_the_proof_is_base64_json_in_the_x_payment_header() -> None:
    invoice = offer(in_json(v1_required()), url=HOME)
    known: Any = {"invoice_id": invoice.invoice_id, "partner": "demo", "wallet": ANNA}
    proof = proof_headers("x402-v1", shown=SHOWN, echo=invoice.echo, **known)
    assert proof.keys() == {"X-PAYMENT"}
    assert unpack(proof["X-PAYMENT"]) == {
        "x402Version": 1,
        "scheme": "exact",
        "network": "cardano-preprod",
        "payload": {"transaction": base64.b64encode(b"\x84\xa3\x00").decode()},
    }
    for shown, echo in ((replace(SHOWN, cbor=None), invoice.echo), (SHOWN, None), (SHOWN, "[]")):
        with pytest.raises(Refused):
            proof_headers("x402-v1", shown=shown, echo=echo, **known)


def test_the_network_cardano_means_mainnet_and_is_echoed_unchanged() -> None:
    mainnet = NETWORKS["mainnet"]
    for name in ("cardano", "cardano-mainnet"):
        entry = v1_entry(network=name, payTo=address(mainnet, 0, 0x50))
        (invoice,) = read_offers(in_json(v1_required(entry)), replace(knowing(HOME), network=mainnet))
        assert invoice.network == "mainnet"
        assert f'"network":"{name}"' in (invoice.echo or "")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"network": "cardano"}, "network_mismatch"),
        ({"network": "cardano-masumi"}, "invoice_unsupported/transfer_method"),
        ({"network": "base"}, "invoice_invalid/chain"),
        ({"extra": {}}, "invoice_invalid/asset"),
        ({"extra": None}, "invoice_invalid/asset"),
        ({"extra": {"assetNameHex": "0"}}, "invoice_invalid/asset"),
        ({"extra": {"assetNameHex": "AA"}}, "invoice_invalid/asset"),
        ({"extra": {"assetNameHex": TOKEN[56:], "decimals": 6}}, "decimals_mismatch"),
        ({"extra": {"assetNameHex": TOKEN[56:], "feeLovelace": "1"}}, "terms_not_understood"),
        ({"extra": {"assetNameHex": "00"}}, "asset_not_allowed"),
        ({"asset": DOTTED}, "invoice_invalid/asset"),
        ({"asset": TOKEN}, "invoice_invalid/asset"),
        ({"asset": "ADA", "extra": {}}, "invoice_invalid/asset"),
        ({"asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e"}, "invoice_invalid/asset"),
        ({"maxAmountRequired": 2_000_000}, "invoice_invalid/amount"),
        ({"maxAmountRequired": "0"}, "invoice_invalid/amount_range"),
        ({"payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C"}, "address_invalid/mixed_case"),
        ({"maxTimeoutSeconds": 0}, "invoice_expired"),
        ({"resource": "/elsewhere"}, "resource_mismatch"),
        ({"outputs": []}, "terms_not_understood"),
        ({"scheme": "stream"}, "invoice_unsupported/scheme"),
    ],
)
def test_an_invalid_version_1_entry_is_refused_with_its_code(change: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        offers(in_json(v1_required(v1_entry(**change))), url=HOME)
    assert refused.value.name == code


@pytest.mark.parametrize("extra", [{}, None, {"assetNameHex": "", "decimals": 6}])
def test_ada_is_accepted_without_an_asset_name(extra: object) -> None:
    """Masumi's facilitator joins asset and name into one text; for ADA the name is empty or absent."""
    invoice = offer(in_json(v1_required(v1_entry(asset="lovelace", extra=extra))), url=HOME)
    assert invoice.asset == "lovelace"


def test_the_requirements_in_a_page_may_be_written_without_spaces() -> None:
    tight = page(v1_required()).replace("Requirements = ", "Requirements=")
    assert offer(parse_response(402, HTML, tight.encode()), url=HOME).asset == TOKEN


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (page(v1_required()) + page(v1_required()), "invoice_invalid/contradiction"),
        (page(v1_required()).replace('"exact"', "alert(1)"), "invoice_invalid/json"),
        (page(v1_required()).replace('"scheme"', '"scheme": "exact", "scheme"'), "invoice_invalid/json"),
        ("<script>window.__x402Requirements = " + "[" * 100_00 + "</script>", "invoice_invalid/json"),
        ("<script>window.__x402Requirements = [1]</script>", "invoice_invalid/body"),
        ("<script>window.__x402Requirements = {}</script>", "invoice_invalid/body"),
        ("<script>window.__x402Requirements == {}</script>", "invoice_invalid/body"),
        ("<script>window.__x402Requirements = getTerms();</script>", "invoice_invalid/json"),
        (page(v1_required()) + " " * 65_536, "body_too_big"),
        (page(required()), "invoice_invalid/body"),
        ("<html><h1>402 Payment Required</h1></html>", "invoice_invalid/body"),
    ],
)
def test_a_page_without_strict_json_requirements_is_refused(text: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        offers(parse_response(402, HTML, text.encode()), url=HOME)
    assert refused.value.name == code


SDK = {
    "version": "1",
    "scheme": "exact",
    "network": "cardano:preprod",
    "maxAmountRequired": "2000000",
    "resource": "/x402/chat",
    "payTo": PAY_TO,
    "maxTimeoutSeconds": 300,
    "asset": "ADA",
}
SDK_BODY = {"error": "Payment Required", "invoiceId": "6aec41a2-1b", "paymentRequired": True}
OWN = address(NETWORKS["preprod"], 0, 0x77)


def sdk(terms: object = SDK, body: object = SDK_BODY) -> HttpResponse:
    return make_response(402, JSON | {"PAYMENT-REQUIRED": pack(terms)}, body)


def test_an_orynq_sdk_402_is_read_and_paid_with_flux_proof_headers() -> None:
    invoice = offer(sdk())
    assert (invoice.dialect, invoice.invoice_id, invoice.has_own_id) == ("flux", "6aec41a2-1b", True)
    assert paid(invoice) == [("pay_to", PAY_TO, 2_000_000)]
    assert invoice.expires_at_ms == NOW_MS + 300_000
    proof = proof_headers(
        invoice.dialect, invoice_id=invoice.invoice_id, shown=SHOWN, echo=None, partner=None, wallet=ANNA
    )
    assert proof["X-Invoice-Id"] == "6aec41a2-1b"


@pytest.mark.parametrize(
    ("terms", "body", "code"),
    [
        (SDK | {"version": "2"}, SDK_BODY, "invoice_invalid/body"),
        (SDK | {"version": 1}, SDK_BODY, "invoice_invalid/body"),
        (SDK | {"scheme": "stream"}, SDK_BODY, "invoice_invalid/body"),
        (SDK | {"network": "eip155:8453"}, SDK_BODY, "invoice_invalid/chain"),
        (SDK | {"network": "cardano:mainnet"}, SDK_BODY, "network_mismatch"),
        (SDK | {"splits": []}, SDK_BODY, "terms_not_understood"),
        (SDK | {"extra": {"splits": []}}, SDK_BODY, "terms_not_understood"),
        (SDK | {"maxTimeoutSeconds": 0}, SDK_BODY, "invoice_expired"),
        (SDK | {"decimals": 2}, SDK_BODY, "decimals_mismatch"),
        ({key: SDK[key] for key in SDK if key != "asset"}, SDK_BODY, "invoice_invalid/missing_field"),
        ({key: SDK[key] for key in SDK if key != "maxTimeoutSeconds"}, SDK_BODY, "invoice_invalid/missing_field"),
        (SDK, {"error": "Payment Required", "paymentRequired": True}, "invoice_invalid/missing_field"),
        (SDK, {**SDK_BODY, "invoiceId": "a b"}, "invoice_invalid/id"),
        (SDK, {**SDK_BODY, "fee": "1"}, "terms_not_understood"),
        (SDK, {"error": "Payment Required", "invoiceId": "i", "protocol": "x402"}, "invoice_invalid/body"),
        (SDK | {"maxAmountRequired": "45000000000000001"}, SDK_BODY, "invoice_invalid/amount_range"),
        (SDK | {"payTo": OWN}, SDK_BODY, "address_invalid/own"),
        (SDK, {**SDK_BODY, "paymentRequired": "true"}, "invoice_invalid/body"),
        (SDK, "", "invoice_invalid/body"),
    ],
)
def test_an_invalid_orynq_sdk_402_is_refused_with_its_code(terms: object, body: object, code: str) -> None:
    with pytest.raises(Refused) as refused:
        offers(sdk(terms, body), own=parse_address(OWN, NETWORKS["preprod"]))
    assert refused.value.name == code


@pytest.mark.parametrize(
    "body",
    [
        {"error": "Payment Required", "invoiceId": "i", "paymentRequired": True},
        {"error": "Payment Required", "invoiceId": "i", "protocol": "x402"},
        {"x402": {"version": "1", "paymentRequired": True, "accepts": [v1_entry()]}, "invoiceId": "inv_abc123"},
        {"detail": v1_required()},
        {"x402Version": "1", "accepts": [v1_entry()]},
        {"x402Version": 1.0, "accepts": [v1_entry()]},
        {"x402Version": True, "accepts": [v1_entry()]},
        {"x402Version": 3, "accepts": [v1_entry()]},
        {"accepts": [v1_entry()]},
    ],
)
def test_other_shapes_of_x402_bodies_are_refused(body: object) -> None:
    with pytest.raises(Refused) as refused:
        offers(in_json(body), url=URL)
    assert refused.value.name == "invoice_invalid/body"


@pytest.mark.parametrize("headers", [NO_JSON, JSON])
def test_requirements_in_a_header_of_another_name_are_not_read(headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as refused:
        offers(make_response(402, headers | {"X-Payment-Required": pack(required())}, {}))
    assert refused.value.name == "invoice_invalid/body"


def test_version_2_is_preferred_when_version_1_is_offered_too() -> None:
    assert offer(answer_402(required(), body=page(v1_required()), headers=HTML)).dialect == "x402-v2"
