"""The x402 402 of each server as its documents show it, and the packing of headers."""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

from kit.dialect_examples import PAY_TO, reading
from kit.hostile_402s import TOKEN
from payagent.core.invoice import Invoice
from payagent.dialects import HttpRequest, HttpResponse, Reading, parse_response, read_offers

URL = "https://api.example.com/premium-data"
DOTTED = TOKEN[:56] + "." + TOKEN[56:]
NO_JSON: dict[str, str] = {}
JSON = {"content-type": "application/json"}


def pack(value: object) -> str:
    """Base64 of JSON, as a server writes it, or of any text."""
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


def unpack(header: str) -> Any:
    return json.loads(base64.b64decode(header, validate=True))


def entry(**change: Any) -> dict[str, Any]:
    """An entry of the official version 2, for 2 ADA; a value of None removes the key."""
    known = {
        "scheme": "exact",
        "network": "cardano:preprod",
        "amount": "2000000",
        "asset": "lovelace",
        "payTo": PAY_TO,
        "maxTimeoutSeconds": 600,
        "extra": {"confirmationPolicy": {"l1Confirmations": 1}},
    }
    return {key: value for key, value in (known | change).items() if value is not None}


def required(*entries: dict[str, Any], **change: Any) -> dict[str, Any]:
    """The official PAYMENT-REQUIRED object."""
    return {
        "x402Version": 2,
        "error": "PAYMENT-SIGNATURE header is required",
        "resource": {"url": URL, "description": "Access to premium market data", "mimeType": "application/json"},
        "accepts": list(entries or (entry(),)),
    } | change


def answer_402(terms: object, body: str = "{}", headers: dict[str, str] | None = None) -> HttpResponse:
    """The 402 over the wire, its terms in the header."""
    packed = {"PAYMENT-REQUIRED": pack(terms)}
    return parse_response(402, (JSON if headers is None else headers) | packed, body.encode())


def v1_entry(**change: Any) -> dict[str, Any]:
    """An entry of Masumi's example server, for 2 tokens."""
    known = {
        "scheme": "exact",
        "network": "cardano-preprod",
        "maxAmountRequired": "2000000",
        "asset": TOKEN[:56],
        "payTo": PAY_TO,
        "resource": "/",
        "description": "Access to premium market data",
        "mimeType": "application/json",
        "outputSchema": None,
        "maxTimeoutSeconds": 600,
        "extra": {"assetNameHex": TOKEN[56:], "assetFingerprint": "asset12ffdj8kk2w485sr7a5ekmjj", "decimals": 0},
    }
    return known | change


def v1_required(*entries: dict[str, Any], **change: Any) -> dict[str, Any]:
    accepts = list(entries or (v1_entry(),))
    return {"x402Version": 1, "error": "X-PAYMENT header is required", "accepts": accepts} | change


def page(terms: object) -> str:
    """An HTML page as a template with `tojson` writes it."""
    text = json.dumps(terms)
    for char in "<>&'":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return (
        "<!doctype html><html><head><title>402</title></head><body><h1>Pay</h1>\n<script>\n"
        f'  window.__x402Requirements = {text};\n  window.__OTHER = "";\n'
        "  if (window.__x402Requirements == null) location.reload();\n</script></body></html>"
    )


def knowing(url: str | None = URL, **change: Any) -> Reading:
    """The reading of an x402 402: a request to URL, with limits for ADA and the token."""
    call = None if url is None else HttpRequest("GET", url, hashlib.sha256(b"").hexdigest(), {})
    return replace(reading(), **({"call": call, "assets": frozenset(("lovelace", TOKEN))} | change))


def offers(response: HttpResponse, **change: Any) -> tuple[Invoice, ...]:
    return read_offers(response, knowing(**change))


def offer(response: HttpResponse, **change: Any) -> Invoice:
    (invoice,) = offers(response, **change)
    return invoice
