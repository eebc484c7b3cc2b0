"""Whatever comes in, the reading ends in an invoice that holds together or in a Refused; nothing else."""

import json
from typing import Any

from dialect_examples import ANNA, BERT, NOW_MS, PAY_TO, PREPROD, reading
from hostile_402s import TOKEN, bases
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.invoice import Invoice
from payagent.core.problem import Refused
from payagent.dialects import Response, make_response, parse_response, read_invoice

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


def _read_or_refuse(response: Response, mode: Any, text: str) -> None:
    outcome: Invoice | Refused
    try:
        outcome = read_invoice(response, reading(mode))
    except Refused as refused:
        outcome = refused
    if isinstance(outcome, Refused):
        assert outcome.detail.isprintable()
    else:
        _holds_together(outcome, text)


def _holds_together(invoice: Invoice, text: str) -> None:
    assert invoice.outputs[0].role == "pay_to"
    assert len({output.address.raw for output in invoice.outputs}) == len(invoice.outputs) <= 16
    assert all(type(output.units) is int and output.units > 0 for output in invoice.outputs)
    assert all(output.address.text in text for output in invoice.outputs)
    assert all(str(output.units) in text for output in invoice.outputs[1:])
    assert invoice.expires_at_ms is not None
    assert NOW_MS < invoice.expires_at_ms <= NOW_MS + 86_400_000


@given(body=VALUES, status=st.sampled_from([402, 402, 402, 200]), mode=MODES)
def test_any_value(body: object, status: int, mode: Any) -> None:
    try:
        response = make_response(status, {"X-Chain": "base"} if status == 200 else {}, body)
    except Refused:
        return
    _read_or_refuse(response, mode, json.dumps(body))


@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(str.encode), is_json=st.booleans())
def test_any_bytes(raw: bytes, is_json: bool) -> None:
    try:
        response = parse_response(402, {"content-type": "application/json"} if is_json else {}, raw)
    except Refused:
        return
    _read_or_refuse(response, None, raw.decode())


@given(data=st.data(), key=st.sampled_from(sorted(BASES)), mode=MODES)
def test_a_valid_body_with_a_field_changed_or_moved(data: st.DataObject, key: str, mode: Any) -> None:
    body = json.loads(BASES[key].text)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(_places(body)))
        index = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        action = data.draw(st.sampled_from(["set", "drop", "add"]))
        if action == "set":
            place[index] = data.draw(VALUES)
        elif isinstance(place, dict) and action == "add":
            place[data.draw(KEYS)] = data.draw(VALUES)
        elif len(place) > 1:
            del place[index]
    _read_or_refuse(make_response(402, BASES[key].headers, body), mode, json.dumps(body))


@given(data=st.data(), key=st.sampled_from(sorted(BASES)))
def test_a_valid_body_with_its_bytes_damaged(data: st.DataObject, key: str) -> None:
    raw = bytearray(BASES[key].text.encode())
    start = data.draw(st.integers(0, len(raw) - 1))
    raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        response = parse_response(402, BASES[key].headers, bytes(raw))
    except Refused:
        return
    _read_or_refuse(response, None, raw.decode())


def _places(value: Any) -> list[Any]:
    """Every object and list that is not empty, the value itself among them."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value] if isinstance(value, dict | list) and value else []
    return here + [place for item in inner for place in _places(item)]
