"""The official x402 v2: which entry of `accepts` is paid, what is refused, and the exact proof."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from kit.commitments import commitment_to
from kit.dialect_examples import ANNA, NOW_MS, PAY_TO, PREPROD, paid, reading
from kit.hostile_402s import OTHER_POLICY, TOKEN, address
from kit.x402_examples import DOTTED, JSON, NO_JSON, URL, answer_402, entry, offer, offers, pack, required, unpack

from payagent.core.problems import Refused
from payagent.dialects import HttpRequest, ProofMaterial, make_response, parse_response, proof_headers

CBOR = bytes.fromhex("84a300") + b"\x01" * 300
SHOWN = ProofMaterial("ab" * 32, CBOR, "cd" * 32 + "#1", "int_" + "0123456789abcdef01234567")


def prove(terms: Any, shown: ProofMaterial = SHOWN, headers: dict[str, str] | None = None) -> Any:
    """The decoded PAYMENT-SIGNATURE for the first offer of a 402."""
    invoice = offers(answer_402(terms, headers=headers))[0]
    proof = proof_headers(
        invoice.dialect, invoice_id=invoice.invoice_id, shown=shown, echo=invoice.echo, partner="demo", wallet=ANNA
    )
    assert proof.keys() == {"PAYMENT-SIGNATURE"}
    return unpack(proof["PAYMENT-SIGNATURE"])


def test_the_official_402_is_read_as_an_invoice() -> None:
    invoice = offer(answer_402(required()))
    assert (invoice.dialect, invoice.network, invoice.origin) == ("x402-v2", "preprod", "https://api.example.com")
    assert paid(invoice) == [("pay_to", PAY_TO, 2_000_000)]
    assert invoice.expires_at_ms == NOW_MS + 600_000
    assert (invoice.proof, invoice.merchant_submits, invoice.has_own_id) == ("signed_cbor", True, False)


def test_a_token_name_with_a_dot_is_read_without_it() -> None:
    invoice = offer(answer_402(required(entry(asset=DOTTED))))
    assert (invoice.asset, invoice.total_units) == (TOKEN, 2_000_000)


def test_the_proof_repeats_the_accepted_entry_and_adds_the_transaction() -> None:
    terms = required()
    assert prove(terms) == {
        "x402Version": 2,
        "resource": terms["resource"],
        "accepted": terms["accepts"][0],
        "payload": {"transaction": base64.b64encode(CBOR).decode(), "nonce": "cd" * 32 + "#1"},
    }


def test_the_proof_of_a_payment_is_always_the_same_bytes() -> None:
    invoice = offer(answer_402(required()))
    made = {
        proof_headers("x402-v2", invoice_id=i, shown=SHOWN, echo=invoice.echo, partner=None, wallet=ANNA)[
            "PAYMENT-SIGNATURE"
        ]
        for i in (invoice.invoice_id, invoice.invoice_id + "-pay_1")
    }
    assert len(made) == 1


def test_the_proof_echoes_every_json_value_unchanged() -> None:
    odd = '{"list":[1.50,-2e3,12345678901234567890,true,null],"words":"\\u00e9\\ud83d\\ude00 </script>"}'
    text = (
        '{"x402Version":2,"accepts":[{"extra":{"name":"caf\\u00e9","version":null},"payTo":"'
        + PAY_TO
        + '","amount":"2000000","asset":"lovelace","network":"cardano:preprod","scheme":"exact",'
        + '"maxTimeoutSeconds":600}],"extensions":{"odd":{"info":'
        + odd
        + "}}}"
    )
    said = prove(text)
    assert said["extensions"]["odd"]["info"] == {
        "list": [1.5, -2000.0, 12345678901234567890, True, None],
        "words": "\u00e9\U0001f600 </script>",
    }
    assert said["accepted"]["extra"] == {"name": "caf\u00e9", "version": None}
    assert list(said["accepted"]) == [
        *("extra", "payTo", "amount", "asset", "network", "scheme", "maxTimeoutSeconds")
    ]
    assert "resource" not in said
    raw = base64.b64decode(_header(text)).decode()
    assert "1.50,-2e3,12345678901234567890" in raw, "numbers are echoed as they came"


def _header(text: str) -> str:
    invoice = offer(answer_402(text))
    return proof_headers("x402-v2", invoice_id="x", shown=SHOWN, echo=invoice.echo, partner=None, wallet=ANNA)[
        "PAYMENT-SIGNATURE"
    ]


@pytest.mark.parametrize("network", ["cardano:preprod", "cip34:0-1"])
def test_both_spellings_of_a_network_are_read_and_echoed(network: str) -> None:
    terms = required(entry(network=network))
    assert offer(answer_402(terms)).network == "preprod"
    assert prove(terms)["accepted"]["network"] == network


@pytest.mark.parametrize(
    "extra",
    [
        *({}, {"assetTransferMethod": "default", "areFeesSponsored": False}, {"name": "ADA"}),
        *({"paymentFlow": "authorization"}, {"paymentFlow": "upfront"}),
    ],
)
def test_each_extra_of_a_plain_transfer_is_accepted_and_echoed(extra: dict[str, Any]) -> None:
    terms = required(entry() | {"extra": extra})
    assert offer(answer_402(terms)).merchant_submits
    assert prove(terms)["accepted"]["extra"] == extra


PACK = {
    "apiId": "api_7",
    "packId": "p-100",
    "calls": 100,
    "ruleHash": "9f" * 32,
    "ruleUrl": "https://a.example/r/1234",
}
BOUND = {"resourceBinding": "0" * 64, "orderId": "5f0c4f0e-1111-4222-8333-444455556666", "sandbox": True}


UNLIKE_FEES = {"coffee": 1, "icedcoffees": 2, "toffee": 3, "feedback": "x", "feed": 1, "newsFeeds": 2, "feels": 3}
SAFE = {"offer": 1, "feet": 4, "feeling": 5, "feeble": True, "lifeEvent": 1, "safeentry": 5}
LISTED: dict[str, Any] = {"ratio": 1.5, "shops": [1], "job": {"a": [1], "b": {"c": []}, "d": 0.1, "at": ["2026"]}}
JOB = {"qa": {"jobId": "j-1234", "planVersion": 1, "inputHash": "9f" * 32, "by": {"name": None, "isDraft": False}}}


@pytest.mark.parametrize("metadata", [PACK, BOUND, JOB, LISTED, UNLIKE_FEES, SAFE, {"memo": None}, {"job": {}}])
def test_a_merchants_metadata_is_echoed_and_changes_no_output(metadata: dict[str, Any]) -> None:
    """The scheme allows metadata in `extra`; the terms are in the entry's own fields."""
    terms = required(entry(extra={"confirmationPolicy": {"l1Confirmations": 0}, **metadata}))
    assert offer(answer_402(terms)).outputs == offer(answer_402(required())).outputs
    assert prove(terms)["accepted"] == terms["accepts"][0]


@pytest.mark.parametrize(
    "terms",
    [
        *({"serviceFee": 5}, {"tip": "1"}, {"payee": "x"}, {"expiresAt": 1}, {"chainDecimals": 6}),
        *({"TXFee": 5}, {"NFTPrice": "1"}, {"job": {"ADATip": "1"}}, {"FEEs": 5}),
        *({"platformfee": 5}, {"txfees": "5"}, {"feerate": 5}, {"x-GASFEE": 1}, {"job": {"feebps": 5}}),
        *({"feelimit": 5}, {"feelevel": "5"}, {"feetotal": 5}, {"feetype": "x"}, {"job": {"feeto": "x"}}),
        *({"settlement": {"mode": "direct"}}, {"recipientId": "7"}, {"goesTo": "addr_test1vq"}, {"jobAmount": {}}),
        *({"job": {"tip": "1"}}, {"job": {"of": {"payee": "x"}}}, {"job": {"expiresAt": 1}}),
        *({"job": {"a": "addr_test1vq"}}, {"job": {"a": "ADDR_TEST1VQ"}}, {"job": ["1", "addr_test1vq"]}),
        *({"job": [{"tip": 1}]}, {"tip": 1.5, "submissionPolicy": "client"}),
    ],
    ids=str,
)
def test_metadata_that_may_be_payment_terms_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(entry(extra=terms))))
    assert refused.value.name == "terms_not_understood"


SPONSOR = {
    "input": "f5" * 32 + "#3",
    "address": ANNA,
    "lovelace": "1500000",
    "maxFee": "300000",
    "expiresAt": "1795527500000",
}


@pytest.mark.parametrize("sponsored", [{"areFeesSponsored": True}, {"areFeesSponsored": False}, {}])
def test_an_offer_to_sponsor_the_fee_is_ignored_and_echoed(sponsored: dict[str, Any]) -> None:
    """loveaihq/cardano-x402-sponsor: a payer that ignores it pays as usual and echoes the entry."""
    extra = {"assetTransferMethod": "default", "feeSponsor": SPONSOR, **sponsored}
    terms = required(entry(asset=DOTTED, extra=extra))
    assert offer(answer_402(terms)).outputs == offer(answer_402(required(entry(asset=DOTTED)))).outputs
    assert prove(terms)["accepted"] == terms["accepts"][0]


@pytest.mark.parametrize("extra", [{"areFeesSponsored": True}, {"feeSponsor": "10%"}, {"feeSponsor": [SPONSOR]}])
def test_a_malformed_fee_sponsor_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(entry(extra=extra))))
    assert refused.value.name == "invoice_invalid/body"


def test_the_proof_names_the_payer_when_extra_is_null() -> None:
    terms = {
        "x402Version": 2,
        "error": None,
        "resource": {"description": "Payment required", "mimeType": "application/json", "url": ""},
        "accepts": [entry() | {"extra": None}],
    }
    invoice = offer(answer_402(terms, body="", headers=NO_JSON))
    assert invoice.merchant_submits
    said = prove(terms)
    assert said["payload"]["payer"] == ANNA
    assert said["accepted"]["extra"] is None
    assert "payer" not in prove(required())["payload"]


DESCRIBED = {"url": "/premium-data", "description": "", "mimeType": "application/json"}


def older(resource: object = DESCRIBED, **change: Any) -> dict[str, Any]:
    """The 402 of a plug-in older than the scheme: each entry describes the resource."""
    said = entry(extra=None, assetTransferMethod="default") | {"resource": resource} | change
    return {"x402Version": 2, "error": "PAYMENT-SIGNATURE header is required", "accepts": [said]}


def test_the_proof_for_an_older_server_also_has_scheme_and_network() -> None:
    """@odatano/x402 0.1 to 0.4 (its protocol.md): a 402 in the body, with a resource and a transfer method in each
    entry; its decoder refuses a proof without scheme and network beside the payload."""
    terms = older()
    (invoice,) = offers(make_response(402, JSON, terms), url=URL)
    assert (paid(invoice), invoice.merchant_submits) == ([("pay_to", PAY_TO, 2_000_000)], True)
    said = prove(terms)
    assert (said["scheme"], said["network"]) == ("exact", "cardano:preprod")
    assert said["accepted"] == terms["accepts"][0]
    assert said["payload"]["nonce"] == SHOWN.nonce
    assert not prove(required()).keys() & {"scheme", "network"}


@pytest.mark.parametrize("resource", [URL, URL + "?of=2026", {**DESCRIBED, "outputSchema": {"output": [1]}}, None])
def test_an_entry_whose_resource_is_our_request_is_accepted(resource: object) -> None:
    assert offer(answer_402(older(resource)), url=URL + "?of=2026")
    assert offer(answer_402(required(entry(resource=resource))), url=URL + "?of=2026")


@pytest.mark.parametrize(
    "resource", ["/other", "https://elsewhere.example.com/premium-data", {"url": "/other"}, {"url": 7}, 7, [URL]]
)
def test_an_entry_whose_resource_is_another_request_is_refused(resource: object) -> None:
    for terms in (older(resource), required(entry(resource=resource))):
        with pytest.raises(Refused) as refused:
            offers(answer_402(terms), url=URL)
        assert refused.value.name == "resource_mismatch"


@pytest.mark.parametrize("method", ["script", "masumi", "", "Default", 1, {}, ["default"]])
def test_an_entry_with_another_transfer_method_is_refused(method: object) -> None:
    for extra in ({}, {"assetTransferMethod": "default"}):
        with pytest.raises(Refused) as refused:
            offers(answer_402(older(assetTransferMethod=method, extra=extra)), url=URL)
        assert refused.value.name == "invoice_unsupported/transfer_method"
    with pytest.raises(Refused) as refused:
        offers(answer_402(older(extra={"assetTransferMethod": "script"})), url=URL)
    assert refused.value.name == "invoice_unsupported/transfer_method"


@pytest.mark.parametrize(
    ("policy", "merchant_submits", "mode"),
    [("server", True, None), ("either", True, None), ("client", False, "client")],
)
def test_the_submission_policy_decides_who_submits(policy: str, merchant_submits: bool, mode: str | None) -> None:
    terms = required(entry(extra={"submissionPolicy": policy}))
    assert offer(answer_402(terms)).merchant_submits is merchant_submits
    assert offer(answer_402(terms)).proof == "signed_cbor"
    assert prove(terms)["payload"].get("submissionMode") == mode


@pytest.mark.parametrize("depth", [-1, 0, 1, 20])
def test_each_confirmation_depth_of_the_scheme_is_accepted(depth: int) -> None:
    assert offer(answer_402(required(entry(extra={"confirmationPolicy": {"l1Confirmations": depth}}))))


def test_requirements_in_the_body_are_read_like_the_header() -> None:
    response = make_response(402, JSON, required())
    assert offer(response) == offer(answer_402(required()))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("", NO_JSON),
        ("{}", JSON),
        ('{"error": "Payment required", "amount": "$0.01", "currency": "USD"}', JSON),
        ('{"detail": {"status": "pending"}}', JSON),
        ('{"error": "no", "payment": {"amount": "10", "recipient": "0xabc", "chain": "base"}}', JSON),
        ("not json", JSON),
        ("<html>" + "x" * 200_000, {"content-type": "text/html"}),
        ('{"x402Version": 1, "accepts": [{"scheme": "exact", "payTo": "addr1x"}]}', JSON),
    ],
)
def test_the_header_counts_and_an_unrelated_body_is_ignored(body: str, headers: dict[str, str]) -> None:
    assert offer(answer_402(required(), body, headers)) == offer(answer_402(required()))


def test_an_unreadable_header_is_refused_even_with_requirements_in_the_body() -> None:
    response = parse_response(402, JSON | {"PAYMENT-REQUIRED": "?"}, b'{"x402Version": 2, "accepts": []}')
    with pytest.raises(Refused) as refused:
        offers(response)
    assert refused.value.name == "invoice_invalid/json"


EVM = entry(network="eip155:8453", asset="0x036CbD53842c5426634e7929541eC2318f3dCF7e", payTo="0x2096")
OTHER_CHAIN = entry(network="cardano:mainnet", payTo="addr1x")
UPTO = entry(scheme="upto")
CHEAP, DEAR, IN_TOKEN = entry(amount="1000000"), entry(amount="9000000"), entry(asset=DOTTED, amount="3")
SCRIPT = entry(extra={"assetTransferMethod": "script", "datum": "d87980"})
UNKNOWN = entry(asset=OTHER_POLICY[:56] + "." + OTHER_POLICY[56:])
BROKEN = entry(amount="1e6")


@pytest.mark.parametrize(
    ("entries", "amounts"),
    [
        ((EVM, CHEAP), [1_000_000]),
        ((DEAR, CHEAP), [9_000_000, 1_000_000]),
        ((UPTO, OTHER_CHAIN, IN_TOKEN, SCRIPT, UNKNOWN, BROKEN, CHEAP), [3, 1_000_000]),
    ],
)
def test_the_payable_entries_are_offered_in_the_merchants_order(
    entries: tuple[dict[str, Any], ...], amounts: list[int]
) -> None:
    found = offers(answer_402(required(*entries)))
    assert [invoice.total_units for invoice in found] == amounts
    assert len({invoice.invoice_id for invoice in found}) == len(found)


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ((EVM,), "invoice_invalid/chain"),
        ((OTHER_CHAIN, EVM), "network_mismatch"),
        ((UPTO,), "invoice_unsupported/scheme"),
        ((EVM, UNKNOWN), "asset_not_allowed"),
        ((EVM, BROKEN, UNKNOWN), "invoice_invalid/amount"),
        ((OTHER_CHAIN, SCRIPT), "invoice_unsupported/transfer_method"),
        ((UPTO, OTHER_CHAIN), "invoice_unsupported/scheme"),
    ],
)
def test_when_nothing_can_be_paid_the_refusal_is_about_the_closest_entry(
    entries: tuple[dict[str, Any], ...], code: str
) -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(*entries)))
    assert refused.value.name == code


def test_equal_terms_have_the_same_invoice_id_and_other_terms_another() -> None:
    same = {offer(answer_402(required())).invoice_id, offer(answer_402(required(error="again"))).invoice_id}
    assert len(same) == 1
    others = [
        required(entry(amount="2000001")),
        required(entry(payTo=ANNA)),
        required(entry(maxTimeoutSeconds=601)),
        required(resource={"url": URL + "?page=2"}),
    ]
    ids = same | {offer(answer_402(terms), url=URL + "?page=2").invoice_id for terms in others}
    turned = dict(reversed(entry().items()))
    assert {offer(answer_402(required(turned))).invoice_id} == same, "the order of the fields does not matter"
    assert len(ids) == 5
    assert all(len(id) == 37 and id.startswith("x402-") for id in ids)


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        (URL, URL),
        (URL, URL + "?page=2"),
        (URL + "?page=2", URL + "?page=2"),
        (URL + "#part", URL),
        ("HTTPS://API.example.com:443/premium-data", URL),
        ("http://api.example.com/premium-data", URL),
        ("/premium-data", URL),
        ("premium-data", URL),
        ("https://api.example.com", "https://api.example.com/"),
        ("", URL),
        ("https://elsewhere.example.com/x", None),
    ],
)
def test_a_resource_that_is_our_request_is_accepted(resource: str, url: str | None) -> None:
    assert offer(answer_402(required(resource={"url": resource})), url=url)


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        ("https://api.example.com/other", URL),
        ("https://api.example.com/premium-data/", URL),
        ("https://api.example.com/Premium-data", URL),
        ("https://api.example.org/premium-data", URL),
        ("https://api.example.com:8443/premium-data", URL),
        ("https://api.example.com@evil.example/premium-data", URL),
        ("https://api.example.com/premium-data", "http://api.example.com/premium-data"),
        ("//evil.example/premium-data", URL),
        (URL + "?page=2", URL),
        (URL + "?page=2", URL + "?page=3"),
        (URL + "?page=2", URL + "?page=2&more=1"),
        ("urn:isbn:123", URL),
        ("https://[::1/premium-data", URL),
        (7, URL),
        (["/premium-data"], URL),
    ],
)
def test_a_resource_that_is_another_request_is_refused(resource: object, url: str) -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(resource={"url": resource})), url=url)
    assert refused.value.name == "resource_mismatch"


REPORT = "https://api.example.com/reports/"


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        ("a b", "a%20b"),
        ("caf\u00e9", "caf%C3%A9"),
        ("caf%c3%a9", "caf%C3%A9"),
        ("anna@example.com", "anna%40example.com"),
        ("10:30", "10%3A30"),
        ("%7Eanna", "~anna"),
        ("a%3Fb%23c", "a%3fb%23c"),
        ("a?of=caf\u00e9", "a?of=caf%C3%A9"),
        ("a?of=a%20b", "a?of=a%20b"),
        ("a b", "a%20b?page=2"),
    ],
)
def test_a_resource_may_be_the_decoded_form_of_our_url(resource: str, url: str) -> None:
    """A server often sees its URL decoded: the official Python SDK's FastAPI middleware states the path as the
    framework holds it, and its Flask middleware an internationalized form. RFC 3986, 6.2.2: such spellings are
    equivalent, except for delimiters."""
    assert offer(answer_402(required(resource={"url": REPORT + resource})), url=REPORT + url)
    assert offer(answer_402(required(resource={"url": "/reports/" + resource})), url=REPORT + url)


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        ("a/b", "a%2Fb"),
        ("a b", "a%2520b"),
        ("a%2520b", "a%20b"),
        ("a b", "a+b"),
        ("a?b", "a%3Fb"),
        ("caf\u00e9", "cafe%CC%81"),
        ("caf\u00e9", "caf%E9"),
        ("a?x=1&y=2", "a?x=1%26y=2"),
        ("a?x=1", "a?x%3D1"),
        ("a?x=1+2", "a?x=1%2B2"),
        ("a?x=1;y=2", "a?x=1%3By=2"),
        ("a?x=%zz", "a?x=zz"),
    ],
)
def test_a_resource_that_decodes_to_another_url_is_refused(resource: str, url: str) -> None:
    for sold, called in ((REPORT + resource, REPORT + url), ("/reports/" + resource, REPORT + url)):
        with pytest.raises(Refused) as refused:
            offers(answer_402(required(resource={"url": sold})), url=called)
        assert refused.value.name == "resource_mismatch"


INSIDE = frozenset(("http://localhost:3000", "http://api:8080"))


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        ("http://localhost:3000/premium-data", None),
        ("http://api:8080/premium-data", None),
        (URL, None),
        ("http://localhost:3000/other", "resource_mismatch"),
        ("http://localhost:3001/premium-data", "resource_mismatch"),
        ("https://localhost:3000/premium-data", "resource_mismatch"),
        ("http://localhost:3000@evil.example/premium-data", "resource_mismatch"),
    ],
)
def test_a_server_behind_a_proxy_may_use_only_the_configured_resource_origins(
    resource: str, code: str | None
) -> None:
    response = answer_402(required(resource={"url": resource}))
    if code is None:
        assert offer(response, resource_origins=INSIDE)
        return
    with pytest.raises(Refused) as refused:
        offers(response, resource_origins=INSIDE)
    assert refused.value.name == code


IDENTIFIER = {"payment-identifier": {"info": {"required": True}, "schema": {"type": "object", "required": ["a"]}}}


def test_the_payment_identifier_is_the_intent_id() -> None:
    said = prove(required(extensions=IDENTIFIER | {"bazaar": {"info": {"input": {"method": "GET"}}}}))
    assert said["extensions"] == {
        "payment-identifier": {
            "info": {"required": True, "id": SHOWN.intent_id},
            "schema": {"type": "object", "required": ["a"]},
        },
        "bazaar": {"info": {"input": {"method": "GET"}}},
    }
    other = prove(required(extensions=IDENTIFIER), replace(SHOWN, intent_id="int_" + "f" * 24))
    assert other["extensions"]["payment-identifier"]["info"]["id"] == "int_" + "f" * 24


@pytest.mark.parametrize("extension", [None, [], "x", {"info": "x"}, {}])
def test_a_malformed_payment_identifier_declaration_is_only_echoed(extension: object) -> None:
    extensions = {"payment-identifier": extension}
    assert prove(required(extensions=extensions))["extensions"] == extensions


@pytest.mark.parametrize(
    "extension",
    [{"info": {"required": True}}, {"required": True}, {"info": {"required": "yes"}}, {"info": {"required": 1}}],
)
def test_an_unsupported_required_extension_is_refused(extension: dict[str, Any]) -> None:
    for name in ("sign-in-with-x", "cardano-request-commitment", "payment-identifiers"):
        with pytest.raises(Refused) as refused:
            offers(answer_402(required(extensions={name: extension})))
        assert refused.value.name == "invoice_unsupported/extension"
        assert name in refused.value.detail


@pytest.mark.parametrize("insists", [True, False])
def test_a_payment_commits_to_its_request_when_commitments_are_enabled(insists: bool) -> None:
    terms = required(extensions=commitment_to(URL, insists))
    invoice = offer(answer_402(terms), salt=b"s" * 32)
    assert invoice.commitment is not None
    assert len(bytes.fromhex(invoice.commitment)) == 32
    assert json.loads(invoice.echo or "")["extensions"]["cardano-request-commitment"]["info"]["salt"] == "73" * 32
    assert offer(answer_402(terms), salt=b"t" * 32).commitment != invoice.commitment
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(extensions=commitment_to(URL + "/other", insists))), salt=b"s" * 32)
    assert refused.value.name == "resource_mismatch"


def test_an_empty_commitment_is_refused_only_when_it_is_required() -> None:
    """The draft's client rule 4. The reference server omits the commitment when it cannot read the body."""
    for nothing in ({}, {"commitment": None}):
        declared = {}
        for insists in (True, False):
            extension = commitment_to(URL, insists)["cardano-request-commitment"]
            kept = {key: value for key, value in extension["info"].items() if key != "commitment"}
            declared[insists] = {"cardano-request-commitment": {"info": kept | nothing}}
        invoice = offer(answer_402(required(extensions=declared[False])), salt=b"s" * 32)
        assert invoice.commitment is None
        assert json.loads(invoice.echo or "")["extensions"] == declared[False], "the salt is not revealed"
        with pytest.raises(Refused) as refused:
            offers(answer_402(required(extensions=declared[True])), salt=b"s" * 32)
        assert refused.value.name == "invoice_unsupported/extension"


def test_a_required_commitment_is_refused_when_commitments_are_disabled() -> None:
    assert offer(answer_402(required(extensions=commitment_to(URL, False)))).commitment is None
    for unable in ({}, {"url": None, "salt": b"s" * 32}):
        with pytest.raises(Refused) as refused:
            offers(answer_402(required(extensions=commitment_to(URL, True))), **unable)
        assert refused.value.name == "invoice_unsupported/extension"


def test_a_402_that_pays_our_own_address_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required()), own=offer(answer_402(required())).outputs[0].address)
    assert refused.value.name == "address_invalid/own"


def test_a_402_too_long_to_echo_is_refused() -> None:
    note = {"bazaar": {"info": {"text": "x" * 9_000}}}
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(extensions=note)))
    assert refused.value.name == "invoice_invalid/too_big"


def test_only_ada_is_allowed_by_default() -> None:
    assert reading().assets == {"lovelace"}
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(entry(asset=DOTTED))), assets=frozenset(("lovelace",)))
    assert refused.value.name == "asset_not_allowed"


@pytest.mark.parametrize("echo", [None, "", "{}", "[]", '{"accepted": 5}', "no json"])
def test_no_proof_is_made_without_the_entry_to_echo(echo: str | None) -> None:
    with pytest.raises(Refused):
        proof_headers("x402-v2", invoice_id="x", shown=SHOWN, echo=echo, partner=None, wallet=ANNA)


def test_a_transaction_id_alone_is_not_a_proof() -> None:
    echo = offer(answer_402(required())).echo
    shown = replace(SHOWN, cbor=None)
    with pytest.raises(Refused) as refused:
        proof_headers("x402-v2", invoice_id="x", shown=shown, echo=echo, partner=None, wallet=ANNA)
    assert refused.value.name == "bad_request"


def test_two_different_payment_required_headers_are_refused() -> None:
    twice = [("PAYMENT-REQUIRED", pack(required())), ("payment-required", pack(required(DEAR)))]
    with pytest.raises(Refused) as refused:
        parse_response(402, twice, b"")
    assert refused.value.name == "invoice_invalid/contradiction"


def test_another_invoice_beside_the_header_is_refused_as_mixed_dialects() -> None:
    bodies = (
        {"detail": {"invoiceId": "inv-1", "chain": "cardano-preprod", "amountUnits": "1", "timeout": 300}},
        {"detail": {"payTo": PAY_TO}},
        {"invoiceId": "i", "amount": "1", "currency": "ADA", "payTo": PAY_TO},
    )
    telling = ({"amount": "1", "currency": "ADA"}, {"X-Pay-To": PAY_TO})
    for body, more in (*((body, NO_JSON) for body in bodies), telling):
        response = make_response(402, JSON | more | {"PAYMENT-REQUIRED": pack(required())}, body)
        with pytest.raises(Refused) as refused:
            offers(response)
        assert refused.value.name == "invoice_invalid/mixed_dialects"


def test_a_script_address_is_refused_with_its_code() -> None:
    with pytest.raises(Refused) as refused:
        offers(answer_402(required(entry(payTo=address(PREPROD, 7, 0x55)))))
    assert refused.value.name == "address_invalid/script"


MCP_CALL = "https://api.example.com:8443"


@pytest.mark.parametrize(
    ("resource", "path", "is_the_call"),
    [
        ("mcp://tool/report", "tools/report", True),
        ("mcp://api.example.com/tools/report", "tools/report", True),
        ("mcp://api.example.com:8443/tools/report", "tools/report", True),
        ("mcp://prompt/a b", "prompts/a%20b", True),
        ("https://api.example.com:8443/mcp", "tools/report", True),
        ("file:///notes/1", "resources/file:///notes/1", True),
        ("mcp://resource/file:///notes/1", "resources/file:///notes/1", True),
        ("mcp://tool/other", "tools/report", False),
        ("mcp://prompt/report", "tools/report", False),
        ("mcp://elsewhere.example/tools/report", "tools/report", False),
        ("https://elsewhere.example/mcp", "tools/report", False),
        ("file:///notes/2", "resources/file:///notes/1", False),
        ("https://[::1/mcp", "tools/report", False),
    ],
)
def test_the_resource_of_an_mcp_call_is_the_call(resource: str, path: str, is_the_call: bool) -> None:
    call = HttpRequest("MCP", f"{MCP_CALL}/mcp#{path}", "", {})
    sold = answer_402(required(resource={"url": resource}))
    if is_the_call:
        assert offer(sold, call=call, origin=MCP_CALL)
        return
    with pytest.raises(Refused) as refused:
        offers(sold, call=call, origin=MCP_CALL)
    assert refused.value.name == "resource_mismatch"
