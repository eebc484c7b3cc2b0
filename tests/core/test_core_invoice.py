"""Invoices: the terms hash covers every term, and dishonest outputs are refused."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.address import Address, encode_address
from payagent.core.invoice import OUTPUTS_MAX, Invoice, Output, Role, check_outputs, is_batch, parse_invoice_id
from payagent.core.problems import Refused

TOKEN = "aa" * 28


def out(role: Role, fill: int, units: int = 2_000_000, asset: str = "lovelace") -> Output:
    return Output(role, encode_address(b"\x60" + bytes([fill]) * 28), asset, units)


INVOICE = Invoice(
    dialect="t-backend",
    origin="https://api.example.com",
    invoice_id="inv-1",
    network="preprod",
    outputs=(out("pay_to", 1, 10_000_000), out("split", 2)),
    expires_at_ms=1_795_527_500_000,
    decimals=6,
    batch_target=100,
)


@pytest.mark.parametrize(("target", "is_one"), [(None, False), (1, False), (2, True), (100, True)])
def test_a_target_of_more_than_one_call_is_a_batch(target: int | None, is_one: bool) -> None:
    assert is_batch(target) is is_one


def test_the_total_is_over_all_outputs() -> None:
    assert INVOICE.total_units == 12_000_000
    assert INVOICE.asset == "lovelace"


@pytest.mark.parametrize(
    "change",
    [
        {"dialect": "flux"},
        {"origin": "https://api.example.org"},
        {"invoice_id": "inv-2"},
        {"network": "preview"},
        {"outputs": (out("pay_to", 1, 10_000_001), out("split", 2))},
        {"outputs": (out("pay_to", 3, 10_000_000), out("split", 2))},
        {"outputs": (out("pay_to", 1, 10_000_000, TOKEN), out("split", 2, asset=TOKEN))},
        {"outputs": (out("pay_to", 1, 10_000_000),)},
        {"batch_target": 99},
        {"batch_target": None},
        {"outputs": (out("pay_to", 1, 10_000_000), out("split", 2), out("split", 3))},
    ],
)
def test_every_term_changes_the_terms_hash(change: dict[str, object]) -> None:
    assert replace(INVOICE, **change).terms_hash != INVOICE.terms_hash  # type: ignore[arg-type]


def test_a_batch_target_of_1_means_the_same_as_none() -> None:
    one, silent = (replace(INVOICE, batch_target=count) for count in (1, None))
    assert (one.calls, silent.calls, INVOICE.calls) == (1, 1, 100)
    assert one.terms_hash == silent.terms_hash


def test_the_terms_hash_is_the_sha256_of_its_documented_json() -> None:
    assert replace(INVOICE, expires_at_ms=None).terms_hash == INVOICE.terms_hash
    anna, bert = (encode_address(b"\x60" + bytes([fill]) * 28).text for fill in (1, 2))
    terms = (
        '["t-backend","https://api.example.com","inv-1","preprod",'
        f'[["pay_to","{anna}","lovelace","10000000"],["split","{bert}","lovelace","2000000"]],"100"]'
    )
    assert INVOICE.terms_hash == hashlib.sha256(terms.encode()).hexdigest()


@pytest.mark.parametrize("text", ["a", "inv-1", "6aec41a2-0d5c-4b1e-9e55-000000000000", "A.b_c:d-9", "x" * 128])
def test_valid_invoice_ids_are_accepted(text: str) -> None:
    assert parse_invoice_id(text) == text


@given(st.text(max_size=140) | st.none() | st.integers() | st.booleans() | st.binary())
def test_an_accepted_invoice_id_is_safe_in_a_header_and_a_path(value: object) -> None:
    try:
        text = parse_invoice_id(value)
    except Refused:
        return
    assert text == value
    assert 1 <= len(text) <= 128
    assert text.isascii()
    assert all(char.isalnum() or char in "._:-" for char in text)


@pytest.mark.parametrize(
    "text", ["", "a b", "a/b", "a\r\n", "a\n", "\u00e9", "\u0660", "a%20", "x" * 129, "a?b", "a#b"]
)
def test_a_malformed_invoice_id_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_invoice_id(text)
    assert caught.value.name == "invoice_invalid/id"


OWN = out("change", 9).address


@pytest.mark.parametrize(
    ("outputs", "code"),
    [
        ((), "invoice_invalid/too_many_outputs"),
        (tuple(out("split", fill) for fill in range(OUTPUTS_MAX + 1)), "invoice_invalid/too_many_outputs"),
        ((out("pay_to", 1), out("split", 1)), "split_ambiguous"),
        ((out("pay_to", 1), out("split", 2), out("split", 2, 5)), "split_ambiguous"),
        ((out("pay_to", 1), out("split", 2, asset=TOKEN)), "split_ambiguous"),
        ((out("pay_to", 9),), "address_invalid/own"),
        ((out("pay_to", 1), out("split", 9)), "address_invalid/own"),
    ],
)
def test_outputs_that_no_honest_invoice_has_are_refused(outputs: tuple[Output, ...], code: str) -> None:
    with pytest.raises(Refused) as caught:
        check_outputs(outputs, OWN)
    assert caught.value.name == code


BASE = encode_address(b"\x00" + bytes([9]) * 28 + bytes([8]) * 28)


@pytest.mark.parametrize("own", [OWN, BASE], ids=["enterprise", "base"])
@pytest.mark.parametrize(
    "paid",
    [
        BASE,
        encode_address(b"\x00" + bytes([9]) * 28 + bytes([7]) * 28),
        encode_address(b"\x60" + bytes([9]) * 28),
        encode_address(b"\x61" + bytes([9]) * 28),
    ],
    ids=["own", "another stake key", "enterprise", "another network"],
)
def test_an_output_to_our_own_payment_key_is_refused_in_any_form_of_address(own: Address, paid: Address) -> None:
    with pytest.raises(Refused) as caught:
        check_outputs((out("pay_to", 1), Output("split", paid, "lovelace", 5_000_000)), own)
    assert caught.value.name == "address_invalid/own"


def test_an_address_with_our_stake_key_but_another_payment_key_is_accepted() -> None:
    shared = Output("pay_to", encode_address(b"\x00" + bytes([5]) * 28 + bytes([8]) * 28), "lovelace", 5_000_000)
    assert check_outputs((shared,), BASE) == (shared,)


def test_honest_outputs_are_accepted() -> None:
    outputs = tuple(out("split" if fill else "pay_to", fill + 20) for fill in range(OUTPUTS_MAX))
    assert check_outputs(outputs, OWN) == outputs
    assert check_outputs((out("pay_to", 9),), None) == (out("pay_to", 9),)
