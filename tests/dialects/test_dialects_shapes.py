"""Every 402 from the documents and the surveyed servers: the invoice it gives, or why it is refused."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from kit.dialect_examples import ANNA, PAY_TO, detail
from kit.hostile_402s import TOKEN
from kit.x402_examples import DOTTED, JSON, NO_JSON, entry, knowing, pack, page, required, v1_entry, v1_required

from payagent.core.problems import Refused
from payagent.dialects import ProofMaterial, parse_response, proof_headers, read_offers

HTML = {"content-type": "text/html"}
SHOWN = ProofMaterial("ab" * 32, b"\x84", "cd" * 32 + "#0", "int_" + "0" * 24)
SOLD = "https://api.example.com/x402/chat"
INVOICE, SIGNATURE, PAYMENT = "X-Invoice-Id", "PAYMENT-SIGNATURE", "X-PAYMENT"


@dataclass(frozen=True)
class Paid:
    """What a 402 is read as: units, asset, and the header that carries the proof."""

    dialect: str
    units: tuple[int, ...]
    asset: str
    carrier: str
    merchant_submits: bool = False


FLUX_HEADERS = JSON | {
    "X-Invoice-Id": "6aec41a2-1b",
    "X-Pay-To": PAY_TO,
    "X-Amount": "2000000",
    "X-Asset": "ADA",
    "X-Chain": "cardano-preprod",
    "X-Timeout": "299",
}
FLUX: dict[str, Any] = {
    "invoiceId": "6aec41a2-1b",
    "amount": "2000000",
    "currency": "ADA",
    "payTo": PAY_TO,
    "chain": "cardano-preprod",
}
SPLITS = {"splits": [{"to": ANNA, "amount": "1000000", "role": "platform"}], "splitMode": "inclusive"}
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
NONCE_UTXO = {"scheme": "exact", "network": "cardano-preprod", "maxAmountRequired": "2500000", "payTo": PAY_TO}
WRAPPED = {"amount": "10", "recipient": "0xabc", "chain": "base"}
MORGAN = {
    "x402Version": 2,
    "error": None,
    "resource": {"description": "Payment required", "mimeType": "application/json", "url": "/x402/chat"},
    "accepts": [entry() | {"extra": None}],
}
SOLD_V2 = required(resource={"url": SOLD, "description": "Chat", "mimeType": "text/plain"})
MASUMI = v1_required(v1_entry(resource="/x402/chat"))
ESCROW = {"assetTransferMethod": "masumi", "terms": {"version": "1"}, "referenceKey": "a10101"}
SCRIPT = {"assetTransferMethod": "script", "scriptHash": "aa" * 28, "datum": "d8799f182aff"}

Row = tuple[int, dict[str, str], object, Paid | str]
ROWS: dict[str, Row] = {
    # the T Backend
    "t-backend": (402, JSON, {"detail": detail()}, Paid("t-backend", (10_000_000,), "lovelace", INVOICE)),
    "t-backend-pending": (402, JSON, {"detail": {"status": "pending"}}, "not_an_invoice"),
    "t-backend-submitted": (402, JSON, {"detail": {"status": "submitted"}}, "not_an_invoice"),
    "t-backend-flow-error": (402, JSON, {"detail": {"error": "payment_flow_error"}}, "not_an_invoice"),
    "t-backend-401": (401, JSON, {"detail": "Payment required"}, "not_an_invoice"),
    "t-backend-wallet": (
        400,
        JSON,
        {"detail": "wallet_address_required_for_prepaid_batches"},
        "wallet_address_required",
    ),
    "t-backend-error": (402, JSON, {"error": "unauthorized", "detail": "no key"}, "not_an_invoice"),
    "t-backend-422": (422, JSON, {"detail": [{"loc": ["body"], "msg": "m", "type": "missing"}]}, "not_an_invoice"),
    "nginx-502": (502, HTML, "<html><h1>502 Bad Gateway</h1></html>", "not_an_invoice"),
    # its authors' SDK
    "flux": (402, FLUX_HEADERS, FLUX, Paid("flux", (2_000_000,), "lovelace", INVOICE)),
    "flux-split": (402, FLUX_HEADERS, FLUX | SPLITS, Paid("flux", (1_000_000, 1_000_000), "lovelace", INVOICE)),
    "sdk-x402": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SDK)},
        SDK_BODY,
        Paid("flux", (2_000_000,), "lovelace", INVOICE),
    ),
    "sdk-gateway": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SDK)},
        {"error": "Payment Required", "invoiceId": "6aec41a2-1b", "protocol": "x402"},
        "invoice_invalid/body",
    ),
    "anchor-api": (
        402,
        JSON,
        {"x402": {"version": "1", "paymentRequired": True, "accepts": [NONCE_UTXO]}, "invoiceId": "inv_abc123"},
        "invoice_invalid/body",
    ),
    "payment-wrapped": (
        402,
        JSON,
        {"status": 402, "detail": "Payment required", "payment": WRAPPED},
        "invoice_invalid/body",
    ),
    "materios": (402, JSON | {"X-402-Payment-Required": "sr25519"}, {"amount_due": 5}, "invoice_invalid/body"),
    # x402
    "x402-v2": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SOLD_V2)},
        {},
        Paid("x402-v2", (2_000_000,), "lovelace", SIGNATURE, merchant_submits=True),
    ),
    "x402-v2-token": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SOLD_V2 | {"accepts": [entry(asset=DOTTED)]})},
        {},
        Paid("x402-v2", (2_000_000,), TOKEN, SIGNATURE, merchant_submits=True),
    ),
    "x402-v2-in-body": (
        402,
        JSON,
        SOLD_V2 | {"accepts": [entry(extra={})]},
        Paid("x402-v2", (2_000_000,), "lovelace", SIGNATURE, merchant_submits=True),
    ),
    "x402-v2-client-broadcasts": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SOLD_V2 | {"accepts": [entry(extra={"submissionPolicy": "client"})]})},
        {},
        Paid("x402-v2", (2_000_000,), "lovelace", SIGNATURE),
    ),
    "x402-v2-escrow": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SOLD_V2 | {"accepts": [entry(extra=ESCROW)]})},
        {},
        "invoice_unsupported/transfer_method",
    ),
    "x402-v2-script": (
        402,
        JSON | {"PAYMENT-REQUIRED": pack(SOLD_V2 | {"accepts": [entry(extra=SCRIPT)]})},
        {},
        "invoice_unsupported/transfer_method",
    ),
    "x402-fac": (
        402,
        {"Payment-Required": pack(MORGAN)},
        "",
        Paid("x402-v2", (2_000_000,), "lovelace", SIGNATURE, merchant_submits=True),
    ),
    "masumi-json": (402, JSON, MASUMI, Paid("x402-v1", (2_000_000,), TOKEN, PAYMENT, merchant_submits=True)),
    "masumi-page": (402, HTML, page(MASUMI), Paid("x402-v1", (2_000_000,), TOKEN, PAYMENT, merchant_submits=True)),
    "masumi-escrow": (
        402,
        JSON,
        v1_required(v1_entry(network="cardano-masumi", extra={"sellerVkey": "s", "paymentType": "Web3CardanoV1"})),
        "invoice_unsupported/transfer_method",
    ),
    "masumi-asset-without-name": (
        402,
        JSON,
        v1_required(v1_entry(resource="/x402/chat", extra={})),
        "invoice_invalid/asset",
    ),
    "html-without-terms": (402, HTML, "<html><h1>402 Payment Required</h1></html>", "invoice_invalid/body"),
    "empty": (402, NO_JSON, "", "invoice_invalid/body"),
}


@pytest.mark.parametrize(("status", "headers", "body", "expected"), ROWS.values(), ids=ROWS)
def test_every_known_shape_of_402_is_read_or_refused_with_its_code(
    status: int, headers: dict[str, str], body: object, expected: Paid | str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    response = parse_response(status, headers, text.encode())
    if isinstance(expected, str):
        with pytest.raises(Refused) as refused:
            read_offers(response, knowing(SOLD))
        assert refused.value.name == expected
        return
    (invoice,) = read_offers(response, knowing(SOLD))
    units = tuple(output.units for output in invoice.outputs)
    proof = proof_headers(
        invoice.dialect,
        invoice_id=invoice.invoice_id,
        shown=SHOWN,
        echo=invoice.echo,
        partner=None,
        wallet=ANNA,
    )
    assert expected == Paid(invoice.dialect, units, invoice.asset, next(iter(proof)), invoice.merchant_submits)
    assert invoice.outputs[0].address.text == PAY_TO
