"""Hostile 402s of x402: like hostile_402s, each is one valid 402 with one change and the code that refuses it.

An id starts with X1 (the header), X2 (the 402 as a whole), X3 (one way to pay), X4 (its extra) or X5 (version 1).
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

from kit.hostile_402s import BYRON, JSON, OTHER_POLICY, Base, Hostile, address
from payagent.core.network import Network

HEADER = "PAYMENT-REQUIRED"
NOT, RANGE, TERMS, STRICT = (
    "invoice_invalid/amount",
    "invoice_invalid/amount_range",
    "terms_not_understood",
    "invoice_invalid/json",
)
SHAPE, METHOD, ASSET = "invoice_invalid/body", "invoice_unsupported/transfer_method", "invoice_invalid/asset"


def pack(terms: object) -> str:
    text = terms if isinstance(terms, str) else json.dumps(terms)
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _entry(network: Network, pay_to: str) -> dict[str, Any]:
    return {
        "scheme": "exact",
        "network": f"cardano:{network.name}",
        "amount": "10000000",
        "asset": "lovelace",
        "payTo": pay_to,
        "maxTimeoutSeconds": 600,
        "extra": {"confirmationPolicy": {"l1Confirmations": 1}},
    }


def _v2(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "x402Version": 2,
        "error": "PAYMENT-SIGNATURE header is required",
        "resource": {"url": "", "description": "Chat", "mimeType": "application/json"},
        "accepts": [entry],
        "extensions": {"payment-identifier": {"info": {"required": False}}},
    }


def _v1(network: Network, pay_to: str) -> dict[str, Any]:
    entry = {
        "scheme": "exact",
        "network": network.wire,
        "maxAmountRequired": "10000000",
        "asset": "lovelace",
        "payTo": pay_to,
        "maxTimeoutSeconds": 600,
        "extra": {},
    }
    return {"x402Version": 1, "error": "X-PAYMENT header is required", "accepts": [entry]}


def x402_bases(network: Network, pay_to: str) -> dict[str, Base]:
    """The valid 402s from which every row is made."""
    terms = _v2(_entry(network, pay_to))
    return {
        "x402": Base({}, JSON | {HEADER: pack(terms)}),
        "x402_body": Base(terms),
        "x402_v1": Base(_v1(network, pay_to)),
    }


def hostile_x402s(network: Network, pay_to: str, own: str) -> list[Hostile]:
    """Every row, for a daemon on `network` that is the wallet `own` and has no limit for OTHER_POLICY."""
    terms = _v2(_entry(network, pay_to))
    rows = [_row(*row) for row in _headers(terms)]
    for id, code, change in _wholes(terms):
        rows.append(_row(id, code, JSON | {HEADER: pack(terms | change)}))
    for id, code, entry in _entries(network, _entry(network, pay_to), own):
        rows.append(_row(id, code, JSON | {HEADER: pack(terms | {"accepts": [entry]})}))
    rows += _version_1(_v1(network, pay_to))
    return rows


def _row(id: str, code: str, headers: dict[str, str], body: str = "{}", base: str = "x402") -> Hostile:
    return Hostile(id, 402, headers, body, code, base)


def _headers(terms: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    good = pack(terms)
    text = json.dumps(terms)
    for name, value, code in [
        ("empty", "", STRICT),
        ("no-base64", "{" + good, STRICT),
        ("json-unpacked", text, STRICT),
        ("url-safe", base64.urlsafe_b64encode(b"\xff\xff\xfe" * 9).decode(), STRICT),
        ("cut", good[:-3], STRICT),
        ("two-joined", good + ", " + good, STRICT),
        ("trailing", good + "=AAAA", STRICT),
        ("spaces", good[:40] + " " + good[40:], STRICT),
        ("huge", base64.b64encode(b'"' + b"x" * 60_000 + b'"').decode(), "body_too_big"),
        ("list", pack([terms]), SHAPE),
        ("text", pack('"exact"'), SHAPE),
        ("null", pack("null"), SHAPE),
        ("bom", pack("\ufeff" + text), STRICT),
        ("latin-1", pack(text[:-1] + ', "error2": "\udce9"}'), STRICT),
        ("control", pack(text.replace("Chat", "Ch\\u0000t")), STRICT),
        ("half-character", pack(text.replace("Chat", "Ch\\ud800t")), STRICT),
        ("amount-twice", pack(text.replace('"amount":', '"amount": "1", "amount":')), STRICT),
        ("version-twice", pack(text.replace('"x402Version": 2', '"x402Version": 1, "x402Version": 2')), STRICT),
        ("deep", pack(text[:-1] + ', "note": ' + "[" * 40 + "]" * 40 + "}"), STRICT),
        ("nan", pack(text.replace("600", "NaN")), STRICT),
        ("two-values", pack(text + text), STRICT),
    ]:
        yield f"X1-{name}", code, JSON | {HEADER: value}
    two = {HEADER: good, HEADER.lower(): pack(terms | {"error": "other"})}
    yield "X1-two-headers", "invoice_invalid/contradiction", JSON | two


def _wholes(terms: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, version in {"text": "2", "float": 2.0, "three": 3, "one": 1, "true": True, "null": None}.items():
        yield f"X2-version-{name}", SHAPE, {"x402Version": version}
    (entry,) = terms["accepts"]
    for name, accepts in {
        "null": None,
        "object": entry,
        "empty": [],
        "text": "exact",
        "100": [entry] * 100,
        "1000": [{}] * 1000,
    }.items():
        yield f"X2-accepts-{name}", SHAPE, {"accepts": accepts}
    for name, inner in {"text": "exact", "list": [], "null": None, "number": 2}.items():
        yield f"X2-entry-{name}", SHAPE, {"accepts": [inner]}
    yield "X2-resource-text", SHAPE, {"resource": "https://api.example.com/chat"}
    yield "X2-resource-url-number", "resource_mismatch", {"resource": {"url": 7}}
    yield "X2-extensions-list", SHAPE, {"extensions": ["payment-identifier"]}
    yield (
        "X2-extension-required",
        "invoice_unsupported/extension",
        {"extensions": {"x": {"info": {"required": True}}}},
    )
    commitment = {"cardano-request-commitment": {"info": {"required": True, "profile": "http:1"}}}
    yield "X2-commitment-required", "invoice_unsupported/extension", {"extensions": commitment}
    yield "X2-echo-long", "invoice_invalid/too_big", {"extensions": {"x": {"info": "x" * 9_000}}}
    yield "X2-splits", TERMS, {"splits": []}
    yield "X2-fee", TERMS, {"platformFee": "1"}
    yield "X2-pay-to", TERMS, {"payTo": entry["payTo"]}
    yield "X2-network", TERMS, {"network": entry["network"]}


def _entries(network: Network, good: dict[str, Any], own: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    def one(id: str, code: str, **change: Any) -> tuple[str, str, dict[str, Any]]:
        return id, code, good | change

    for key in ("scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds"):
        yield f"X3-no-{key}", "invoice_invalid/missing_field", {name: good[name] for name in good if name != key}
    for scheme in ("upto", "Exact", "exact\r\n", ["exact"], 1):
        yield one(f"X3-scheme-{scheme!a}", "invoice_unsupported/scheme", scheme=scheme)
    other = "cardano:mainnet" if network.name != "mainnet" else "cip34:0-1"
    yield one("X3-network-other", "network_mismatch", network=other)
    for named in ("eip155:8453", "cardano", network.wire, good["network"].upper(), good["network"] + "\n", 1):
        yield one(f"X3-network-{named!a}", "invoice_invalid/chain", network=named)
    for amount in ("-1", "01", "1e7", "10.0", "1_0", " 1", "\u0661\u0662", "\uff11", "10000000\r\nX-A: b", ""):
        yield one(f"X3-amount-{amount!a}", NOT, amount=amount)
    for value in (10_000_000, 10_000_000.0, True, ["1"]):
        yield one(f"X3-amount-raw-{value!a}", NOT, amount=value)
    for value in ("0", "9" * 30, "45000000000000001", str(2**63)):
        yield one(f"X3-amount-{value[:20]}", RANGE, amount=value)
    for asset in ("ADA", "Lovelace", OTHER_POLICY, "aa" * 28, ("aa" * 28 + ".474F"), "AA" * 28 + ".474f", 5):
        yield one(f"X3-asset-{str(asset)[-8:]}", ASSET, asset=asset)
    yield one("X3-asset-odd-name", ASSET, asset="aa" * 28 + ".474")
    yield one("X3-asset-unknown", "asset_not_allowed", asset=OTHER_POLICY[:56] + "." + OTHER_POLICY[56:])
    yield one("X3-own", "address_invalid/own", payTo=own)
    yield one("X3-script", "address_invalid/script", payTo=address(network, 7, 0x52))
    yield one("X3-byron", "address_invalid/byron", payTo=BYRON[0])
    yield one("X3-evm", "address_invalid/mixed_case", payTo="0x209693Bc6afc0C5328bA36FaF03C514EF312287C")
    yield one("X3-upper-case", "address_invalid/mixed_case", payTo=good["payTo"].upper())
    yield one("X3-crlf", "address_invalid/not_text", payTo=good["payTo"] + "\r\nX-A: b")
    for seconds, code in (
        (0, "invoice_expired"),
        (-600, "invoice_expired"),
        (600_000, "invoice_invalid/missing_field"),
    ):
        yield one(f"X3-timeout-{seconds}", code, maxTimeoutSeconds=seconds)
    for timeout in ("600", 600.0, True):
        yield one(f"X3-timeout-{timeout!a}", NOT, maxTimeoutSeconds=timeout)
    for key in ("splits", "fee", "maxAmountRequired", "recipients", "payees"):
        yield one(f"X3-{key}", TERMS, **{key: "1"})
    for method in ("masumi", "script", ["default"]):
        yield one(f"X3-method-{method}", METHOD, assetTransferMethod=method)
    yield one("X3-resource-number", "resource_mismatch", resource={"url": 7})
    for id, code, extra in _extras():
        yield one(id, code, extra=extra)


def _extras() -> Iterator[tuple[str, str, Any]]:
    for name, extra in {"text": "default", "list": [], "number": 1}.items():
        yield f"X4-{name}", SHAPE, extra
    for method in ("masumi", "script", "hydra", "Default", 1, ["default"]):
        yield f"X4-method-{method}", METHOD, {"assetTransferMethod": method}
    for key, value in {"datum": "d87980", "scriptHash": "aa" * 28, "terms": {}, "parameters": {}}.items():
        yield f"X4-{key}", METHOD, {key: value}
    for key in ("script", "inputCommitment", "deployment", "referenceKey", "referenceSignature"):
        yield f"X4-{key}", METHOD, {key: "4e4d01"}
    yield "X4-blockchainIdentifier", METHOD, {"blockchainIdentifier": "b"}
    for name, policy in {
        "21": {"l1Confirmations": 21},
        "minus-2": {"l1Confirmations": -2},
        "text": {"l1Confirmations": "1"},
        "float": {"l1Confirmations": 1.0},
        "true": {"l1Confirmations": True},
        "empty": {},
        "more": {"l1Confirmations": 1, "l2": 1},
        "number": 1,
    }.items():
        yield f"X4-confirmations-{name}", SHAPE, {"confirmationPolicy": policy}
    yield "X4-submission-unknown", SHAPE, {"submissionPolicy": "hydra"}
    yield "X4-submission-list", SHAPE, {"submissionPolicy": ["server"]}
    yield "X4-fees-sponsored", SHAPE, {"areFeesSponsored": True}
    yield "X4-flow-escrow", SHAPE, {"paymentFlow": "escrow"}
    yield "X4-decimals", "decimals_mismatch", {"decimals": 18}
    for key in ("splits", "platformFee", "payTo", "tip"):
        yield f"X4-{key}", TERMS, {key: "1"}
        yield f"X4-within-{key}", TERMS, {"job": {"of": {key: "1"}}}
    yield "X4-within-list", TERMS, {"job": {"ids": ["1", {"tip": "1"}]}}
    yield "X4-sponsor-text", SHAPE, {"feeSponsor": "1"}
    yield "X4-within-address", TERMS, {"job": {"of": "addr_test1vq"}}


def _version_1(terms: dict[str, Any]) -> Iterator[Hostile]:
    (entry,) = terms["accepts"]

    def row(id: str, code: str, body: object, headers: dict[str, str] = JSON) -> Hostile:
        text = body if isinstance(body, str) else json.dumps(body)
        return _row(f"X5-{id}", code, headers, text, "x402_v1")

    html, mark = {"content-type": "text/html"}, "<script>window.__x402Requirements = "
    text = json.dumps(terms)
    yield row("as-html", SHAPE, terms, html)
    yield row("version-text", SHAPE, terms | {"x402Version": "1"})
    yield row("version-float", SHAPE, text.replace('"x402Version": 1', '"x402Version": 1.0'))
    yield row("accepts-object", SHAPE, terms | {"accepts": entry})
    yield row("fee", TERMS, terms | {"platformFee": "1"})
    yield row("ada-with-a-name", ASSET, terms | {"accepts": [entry | {"extra": {"assetNameHex": "00"}}]})
    unnamed = entry | {"asset": "aa" * 28, "extra": {"assetNameHex": ""}}
    yield row("policy-without-name", "asset_not_allowed", terms | {"accepts": [unnamed]})
    yield row("policy-alone", ASSET, terms | {"accepts": [entry | {"asset": "aa" * 28}]})
    yield row("escrow", METHOD, terms | {"accepts": [entry | {"network": "cardano-masumi"}]})
    yield row("amount-number", NOT, terms | {"accepts": [entry | {"maxAmountRequired": 10_000_000}]})
    yield row(
        "t-backend-beside",
        "invoice_invalid/mixed_dialects",
        terms | {"detail": {"invoiceId": "i", "amountUnits": "1"}},
    )
    yield row("page-twice", "invoice_invalid/contradiction", f"{mark}{text};{mark}{text};", html)
    yield row("page-code", STRICT, f"{mark}load();</script>", html)
    yield row("page-cut", STRICT, mark + text[:-2], html)
    yield row("page-key-twice", STRICT, mark + text.replace('"error":', '"error": "", "error":'), html)
    yield row("page-deep", STRICT, mark + "[" * 20_000, html)
