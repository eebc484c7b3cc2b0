"""Property tests: any input is read as a consistent invoice or raises Refused."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from kit.dialect_examples import ANNA, BERT, NOW_MS, PAY_TO, PREPROD, reading
from kit.hostile_402s import TOKEN, bases
from kit.x402_channels import DRAFT_OFFER, DRAFT_PAYLOAD, MISMATCH, VOUCHER, channel_entry, channel_state
from kit.x402_examples import DOTTED, JSON, answer_402, entry, knowing, pack, page, required, v1_entry, v1_required

from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.dialects import (
    HttpResponse,
    ProofMaterial,
    Reading,
    make_response,
    parse_response,
    proof_headers,
    read_answer,
    read_offers,
)
from payagent.dialects.x402_batch import (
    ChannelOffer,
    Voucher,
    VoucherVerdict,
    read_channel_offers,
    read_charge,
    read_correction,
    read_voucher_answer,
    voucher_headers,
)

BASES = bases(PREPROD, PAY_TO, NOW_MS)
MODES = st.sampled_from([None, "additional", "inclusive", "outputs"])

TERMS = ("invoiceId", "chain", "asset", "amountUnits", "payTo", "timeout", "extra", "version", "decimals")
FLUX_TERMS = ("amount", "currency", "expiresAt", "splits", "splitMode")
SPLIT_KEYS = ("outputs", "split", "mode", "to", "address", "units", "lovelace", "role")
KEYS = st.sampled_from(("detail", "status", "error", *TERMS, *FLUX_TERMS, *SPLIT_KEYS))
NAMES = ("cardano-preprod", "ADA", "lovelace", TOKEN, PAY_TO, ANNA, BERT, "inclusive", "additional", "outputs")
WORDS = st.sampled_from((*NAMES, "0.1", "inv-1", "10000000", "2000000", "-1", "20%", "pending", "\ud800"))
SCALARS = st.none() | st.booleans() | st.integers(-1, 10**20) | st.floats() | st.text(max_size=5) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=10),
    max_leaves=25,
)


def _read_or_refuse(response: HttpResponse, known: Reading, text: str) -> None:
    outcome: tuple[Invoice, ...] | Refused
    try:
        outcome = read_offers(response, known)
    except Refused as refused:
        outcome = refused
    if isinstance(outcome, Refused):
        assert outcome.detail.isprintable()
        return
    assert outcome
    for invoice in outcome:
        _holds_together(invoice, text)


def _holds_together(invoice: Invoice, text: str) -> None:
    assert invoice.outputs[0].role == "pay_to"
    assert len({output.address.raw for output in invoice.outputs}) == len(invoice.outputs) <= 16
    assert all(type(output.units) is int and output.units > 0 for output in invoice.outputs)
    assert all(output.address.text in text for output in invoice.outputs)
    assert all(str(output.units) in text for output in invoice.outputs[1:])
    assert invoice.expires_at_ms is not None
    assert NOW_MS < invoice.expires_at_ms <= NOW_MS + 86_400_000


@given(body=VALUES, status=st.sampled_from([402, 402, 402, 200]), mode=MODES)
def test_any_json_body_is_read_or_refused(body: object, status: int, mode: Any) -> None:
    try:
        response = make_response(status, {"X-Chain": "base"} if status == 200 else {}, body)
    except Refused:
        return
    _read_or_refuse(response, reading(mode), json.dumps(body))


@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(str.encode), is_json=st.booleans())
def test_any_bytes_as_a_body_are_read_or_refused(raw: bytes, is_json: bool) -> None:
    try:
        response = parse_response(402, {"content-type": "application/json"} if is_json else {}, raw)
    except Refused:
        return
    _read_or_refuse(response, reading(), raw.decode())


@given(data=st.data(), key=st.sampled_from(sorted(BASES)), mode=MODES)
def test_a_valid_body_with_a_changed_field_is_read_or_refused(data: st.DataObject, key: str, mode: Any) -> None:
    body = json.loads(BASES[key].text)
    for _ in range(data.draw(st.integers(1, 3))):
        _change(data, body, KEYS)
    _read_or_refuse(make_response(402, BASES[key].headers, body), reading(mode), json.dumps(body))


@given(data=st.data(), key=st.sampled_from(sorted(BASES)))
def test_a_valid_body_with_damaged_bytes_is_read_or_refused(data: st.DataObject, key: str) -> None:
    raw = bytearray(BASES[key].text.encode())
    start = data.draw(st.integers(0, len(raw) - 1))
    raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        response = parse_response(402, BASES[key].headers, bytes(raw))
    except Refused:
        return
    _read_or_refuse(response, reading(), raw.decode())


IDENTIFIER = {"payment-identifier": {"info": {"required": True}}}
X402 = [
    required(entry(), entry(asset=DOTTED), extensions=IDENTIFIER),
    v1_required(v1_entry(resource="/premium-data")),
]
X402_KEYS = st.sampled_from(
    (*X402[0], *X402[1], *entry(), *v1_entry(), "assetNameHex", "submissionPolicy", "info")
)
SHOWN = ProofMaterial("ab" * 32, b"\x84", "cd" * 32 + "#0", "int_" + "0" * 24)


def _change(data: st.DataObject, value: Any, keys: st.SearchStrategy[str]) -> None:
    """Set, drop or add a value somewhere."""
    place = data.draw(st.sampled_from(_places(value)))
    index = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
    action = data.draw(st.sampled_from(["set", "drop", "add"]))
    if action == "set":
        place[index] = data.draw(VALUES)
    elif isinstance(place, dict) and action == "add":
        place[data.draw(keys)] = data.draw(VALUES)
    elif len(place) > 1:
        del place[index]


def _carriers(terms: Any) -> list[HttpResponse]:
    """A 402 with the terms in the header, in the body and in a page, where that is possible."""
    made = []
    for headers, body in (
        (JSON | {"PAYMENT-REQUIRED": pack(terms)}, "{}"),
        (JSON, json.dumps(terms)),
        ({}, page(terms)),
    ):
        try:
            made.append(parse_response(402, headers, body.encode()))
        except Refused:
            continue
    return made


@given(data=st.data(), terms=st.sampled_from(X402))
def test_x402_terms_with_a_changed_field_are_read_or_refused(data: st.DataObject, terms: Any) -> None:
    terms = json.loads(json.dumps(terms))
    for _ in range(data.draw(st.integers(0, 3))):
        _change(data, terms, X402_KEYS)
    for response in _carriers(terms):
        _read_or_refuse(response, knowing(), json.dumps(terms))
        _prove_or_refuse(response)


def _prove_or_refuse(response: HttpResponse) -> None:
    """Every invoice read has a proof, and its values are safe in a header."""
    try:
        offers = read_offers(response, knowing())
    except Refused:
        return
    for invoice in offers:
        proof = proof_headers(
            invoice.dialect,
            invoice_id=invoice.invoice_id,
            shown=SHOWN,
            echo=invoice.echo,
            partner=None,
            wallet=ANNA,
        )
        assert all(value.isascii() and value.isprintable() and len(value) < 16_000 for value in proof.values())


@given(raw=st.binary(max_size=60) | st.text(max_size=40).map(str.encode), packed=st.booleans())
def test_any_payment_required_header_is_read_or_refused(raw: bytes, packed: bool) -> None:
    header = base64.b64encode(raw).decode() if packed else raw.decode("latin-1")
    _read_or_refuse(parse_response(402, {"PAYMENT-REQUIRED": header}, b""), knowing(), header)


ANSWER_KEYS = st.sampled_from(
    ("detail", "error", "reason", "status", "invoiceId", "errorReason", "transaction", "accepts", "pending")
)
ANSWERS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANSWER_KEYS, inner, max_size=6),
    max_leaves=12,
)


@given(
    body=ANSWERS,
    settled=st.none() | ANSWERS,
    status=st.sampled_from([200, 202, 302, 402, 402, 402, 404, 429, 503]),
    dialect=st.sampled_from(["t-backend", "flux", "x402-v2", "x402-v1"]),
    after=st.none() | st.text(max_size=12),
)
def test_any_answer_to_a_retry_gets_a_verdict_and_a_printable_reason(
    body: object, settled: object, status: int, dialect: str, after: str | None
) -> None:
    headers = {"retry-after": after or "5"} | ({} if settled is None else {"payment-response": pack(settled)})
    response = HttpResponse(status, headers, body)
    answer = read_answer(dialect, response, invoice_id="inv-1", shown_tx="ab" * 32, now_ms=10**12)
    assert answer.reason.isascii()
    assert answer.reason.isprintable()
    assert 0 < len(answer.reason) <= 200
    assert (answer.verdict == "served") == (200 <= status < 300 and answer.verdict != "pending")


Value = TypeVar("Value")
HELD = {"signedMaxClaimable": "202000", "signature": "5a" * 64}
CHANNEL_402S = [
    required(DRAFT_OFFER, entry(), channel_entry(asset=DOTTED, amount="3"), extensions=IDENTIFIER),
    required(channel_entry(extra={"channelState": channel_state(), "voucherState": HELD}), error=MISMATCH),
]
CHANNEL_KEYS = st.sampled_from((*DRAFT_OFFER, *DRAFT_OFFER["extra"], *channel_state(), *HELD, "paymentFlow"))


@given(data=st.data(), terms=st.sampled_from(CHANNEL_402S))
def test_channel_terms_with_a_changed_field_are_read_or_refused(data: st.DataObject, terms: Any) -> None:
    terms = json.loads(json.dumps(terms))
    for _ in range(data.draw(st.integers(0, 3))):
        _change(data, terms, CHANNEL_KEYS)
    for response in _carriers(terms):
        for offer in _value_or_refusal(read_channel_offers, response, knowing()) or ():
            _is_consistent(offer, json.dumps(terms))
        _has_a_verdict(response)
        found = _value_or_refusal(read_correction, response, VOUCHER.channel_id)
        if found is not None:
            assert (found.state.channel_id, len(found.signature)) == (VOUCHER.channel_id, 64)
            assert found.state.count is not None
            assert all(0 <= units < 2**63 for units in (found.state.count, found.state.claimed, found.signed))


def _value_or_refusal(read: Callable[..., Value], *given: object) -> Value | None:
    """What is read, or None if it is refused with a printable reason."""
    outcome: Value | Refused
    try:
        outcome = read(*given)
    except Refused as refused:
        outcome = refused
    if isinstance(outcome, Refused):
        assert outcome.detail.isprintable()
        return None
    return outcome


def _is_consistent(offer: ChannelOffer, text: str) -> None:
    assert 0 < offer.price < 2**63
    assert str(offer.price) in text
    assert offer.pay_to.text in text
    assert len(offer.script_hash) == len(offer.provider) == 28
    assert 900 <= offer.withdraw_delay_s <= 2_592_000
    (header,) = voucher_headers(offer.echo, VOUCHER, SHOWN.intent_id).values()
    assert len(header) < 16_000
    made = json.loads(base64.b64decode(header, validate=True))
    config, extra = made["payload"]["channelConfig"], made["accepted"]["extra"]
    assert (config["receiver"], config["receiverAuthorizer"]) == (offer.pay_to.text, offer.provider.hex())
    assert (config["token"].replace(".", ""), config["withdrawDelay"]) == (offer.asset, offer.withdraw_delay_s)
    assert not extra.keys() & {"channelState", "voucherState"}


def _has_a_verdict(response: HttpResponse) -> None:
    verdict, reason = read_voucher_answer(response)
    assert verdict in VoucherVerdict
    assert reason.isascii()
    assert reason.isprintable()
    assert 0 < len(reason) <= 200


SETTLED: dict[str, Any] = {
    "success": True,
    "errorReason": "settlement_pending",
    "extra": {"chargedAmount": "1000", "commitmentId": "11" * 32 + ":203000", "channelState": channel_state()},
}
SETTLED_KEYS = st.sampled_from((*SETTLED, *SETTLED["extra"], *channel_state()))


@given(data=st.data(), settled=ANSWERS | st.just(SETTLED), status=st.sampled_from([200, 202, 402, 404, 409, 503]))
def test_any_answer_to_a_voucher_gets_a_verdict_and_its_charge_is_read_or_refused(
    data: st.DataObject, settled: object, status: int
) -> None:
    settled = json.loads(json.dumps(settled))
    for _ in range(data.draw(st.integers(0, 2)) if _places(settled) else 0):
        _change(data, settled, SETTLED_KEYS)
    response = HttpResponse(status, {"payment-response": pack(settled)}, {})
    _has_a_verdict(response)
    charge = _value_or_refusal(read_charge, response, VOUCHER)
    if charge is not None:
        assert 0 <= charge.units < 2**63
        assert charge.state is None or charge.state.channel_id == VOUCHER.channel_id


HASHES, KEYS_32 = st.binary(min_size=28, max_size=28), st.binary(min_size=32, max_size=32)
VOUCHERS = st.builds(
    Voucher,
    channel_id=KEYS_32,
    channel_ref=st.builds(lambda tx, index: f"{tx.hex()}#{index}", KEYS_32, st.integers(0, 65_535)),
    payer=HASHES,
    iou_key=KEYS_32,
    amount=st.integers(0, 2**63 - 1),
    signature=st.binary(min_size=64, max_size=64),
)


@given(voucher=VOUCHERS)
def test_every_voucher_has_the_form_that_the_reference_server_accepts(voucher: Voucher) -> None:
    (offer,) = read_channel_offers(answer_402(required(DRAFT_OFFER)), knowing())
    (header,) = voucher_headers(offer.echo, voucher, SHOWN.intent_id).values()
    made = json.loads(base64.b64decode(header, validate=True))["payload"]
    assert made["type"] == "voucher"
    assert list(made["channelConfig"]) == list(DRAFT_PAYLOAD["channelConfig"])
    assert re.fullmatch("[0-9a-f]{56}", made["channelConfig"]["payer"])
    assert re.fullmatch("[0-9a-f]{64}", made["channelConfig"]["payerAuthorizer"])
    assert re.fullmatch("[0-9a-f]{64}", made["voucher"]["channelId"])
    assert re.fullmatch("0|[1-9][0-9]*", made["voucher"]["maxClaimableAmount"])
    assert re.fullmatch("[0-9a-f]{128}", made["voucher"]["signature"])
    assert re.fullmatch("[0-9a-f]{64}#(0|[1-9][0-9]*)", made["voucher"]["channelRef"])


def _places(value: Any) -> list[Any]:
    """Every non-empty object and list, including the value itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value] if isinstance(value, dict | list) and value else []
    return here + [place for item in inner for place in _places(item)]
