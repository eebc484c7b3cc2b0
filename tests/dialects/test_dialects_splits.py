"""Revenue share: each supported form of split gives the outputs it means; any other is refused."""

from typing import Any

import pytest
from kit.dialect_examples import ANNA, BERT, PAY_TO, PREPROD, detail, paid, read
from kit.hostile_402s import TOKEN, address

from payagent.core.invoice import SplitMode
from payagent.core.problems import Refused

SHARES = [{"address": ANNA, "amountUnits": "2000000"}, {"address": BERT, "amountUnits": "1000000"}]
WHOLE = [{"to": ANNA, "units": 2_000_000}, {"to": PAY_TO, "units": 7_000_000}, {"to": BERT, "units": 1_000_000}]

ADDITIONAL = [("pay_to", PAY_TO, 10_000_000), ("split", ANNA, 2_000_000), ("split", BERT, 1_000_000)]
INCLUSIVE = [("pay_to", PAY_TO, 7_000_000), ("split", ANNA, 2_000_000), ("split", BERT, 1_000_000)]
ALONE = [("pay_to", PAY_TO, 10_000_000)]


def _form(mode: str, outputs: list[dict[str, Any]] = SHARES) -> dict[str, Any]:
    return {"mode": mode, "outputs": outputs}


@pytest.mark.parametrize(
    ("extra", "configured", "expected"),
    [
        pytest.param({"outputs": SHARES}, "additional", ADDITIONAL, id="outputs-list-configured-additional"),
        pytest.param({"split": SHARES}, "inclusive", INCLUSIVE, id="split-list-configured-inclusive"),
        pytest.param({"split": _form("additional")}, None, ADDITIONAL, id="object-additional"),
        pytest.param({"split": _form("inclusive")}, None, INCLUSIVE, id="object-inclusive"),
        pytest.param({"outputs": _form("inclusive")}, None, INCLUSIVE, id="object-under-outputs"),
        pytest.param(
            {"split": {"splitMode": "inclusive", "outputs": SHARES}}, None, INCLUSIVE, id="object-splitMode"
        ),
        pytest.param({"split": _form("inclusive")}, "additional", INCLUSIVE, id="stated-beats-configured"),
        pytest.param({"outputs": WHOLE}, None, INCLUSIVE, id="whole-set-by-its-sum"),
        pytest.param({"outputs": WHOLE}, "additional", INCLUSIVE, id="whole-set-beats-configured"),
        pytest.param({"split": _form("outputs", WHOLE)}, None, INCLUSIVE, id="whole-set-stated"),
        pytest.param({"outputs": [{"to": PAY_TO, "units": 10_000_000}]}, None, ALONE, id="whole-set-of-one"),
        pytest.param(
            {"outputs": SHARES, "split": _form("additional")}, None, ADDITIONAL, id="one-states-for-both"
        ),
        pytest.param(
            {"outputs": SHARES, "split": _form("additional")},
            "inclusive",
            ADDITIONAL,
            id="one-states-for-both-beats-configured",
        ),
        pytest.param({"outputs": SHARES, "split": SHARES}, "inclusive", INCLUSIVE, id="both-lists-agree"),
        pytest.param(
            {"outputs": SHARES, "split": SHARES[::-1]}, "inclusive", INCLUSIVE, id="both-agree-in-any-order"
        ),
        pytest.param(
            {"outputs": WHOLE, "split": _form("inclusive")}, None, INCLUSIVE, id="whole-set-and-shares-agree"
        ),
        pytest.param({"outputs": [], "split": []}, None, ALONE, id="both-empty"),
        pytest.param({"split": _form("inclusive", [])}, None, ALONE, id="mode-without-shares"),
        pytest.param({"split": None, "outputs": None}, None, ALONE, id="both-null"),
        pytest.param(
            {"split": _form("inclusive", [{"to": ANNA, "units": 9_999_999}])},
            None,
            [("pay_to", PAY_TO, 1), ("split", ANNA, 9_999_999)],
            id="one-unit-is-left-to-payTo",
        ),
    ],
)
def test_each_form_of_split_gives_the_outputs_it_means(
    extra: dict[str, Any], configured: SplitMode | None, expected: list[tuple[str, str, int]]
) -> None:
    assert paid(read({"detail": detail(**extra)}, configured)) == expected


@pytest.mark.parametrize("address_field", ["address", "to", "payTo"])
@pytest.mark.parametrize("units_field", ["amountUnits", "amount", "units", "lovelace"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"role": "platform"},
        {"role": "p" * 64},
        {"asset": "lovelace"},
        {"asset": "ADA", "role": None},
        {"currency": "ADA"},
    ],
)
def test_every_spelling_of_a_split_entry_is_accepted(
    address_field: str, units_field: str, more: dict[str, Any]
) -> None:
    entry = {address_field: ANNA, units_field: "2000000", **more}
    expected = [("pay_to", PAY_TO, 10_000_000), ("split", ANNA, 2_000_000)]
    assert paid(read({"detail": detail(split=_form("additional", [entry]))})) == expected


def test_the_splits_of_a_token_invoice_are_in_that_token() -> None:
    body = {**detail(lovelace=False, split=_form("inclusive")), "asset": TOKEN, "decimals": 0}
    invoice = read({"detail": body})
    assert paid(invoice) == INCLUSIVE
    assert {output.asset for output in invoice.outputs} == {TOKEN}
    named = [{**entry, "asset": TOKEN[:56] + "." + TOKEN[56:]} for entry in SHARES]
    assert paid(read({"detail": {**body, "extra": {"split": _form("inclusive", named)}}})) == INCLUSIVE


def test_up_to_15_splits_are_accepted() -> None:
    shares = [{"to": address(PREPROD, 6, fill), "units": "1"} for fill in range(0x60, 0x6F)]
    assert len(read({"detail": detail(split=_form("additional", shares))}).outputs) == 16
    whole = [{"to": PAY_TO, "units": 10_000_000 - len(shares)}, *shares]
    assert len(read({"detail": detail(outputs=whole)}).outputs) == 16


@pytest.mark.parametrize(
    ("extra", "configured"),
    [
        pytest.param({"outputs": SHARES}, None, id="no-mode-anywhere"),
        pytest.param({"outputs": SHARES, "split": SHARES}, None, id="no-mode-in-both"),
        pytest.param({"outputs": SHARES}, "outputs", id="configured-whole-set-without-payTo"),
        pytest.param({"outputs": SHARES, "split": SHARES[:1]}, "additional", id="both-disagree"),
        pytest.param(
            {"outputs": _form("inclusive"), "split": _form("additional")}, "additional", id="modes-disagree"
        ),
        pytest.param(
            {"outputs": WHOLE, "split": _form("additional")}, None, id="whole-set-and-additional-disagree"
        ),
        pytest.param({"outputs": WHOLE[:2]}, "additional", id="payTo-listed-other-sum-additional"),
        pytest.param({"outputs": WHOLE[:2]}, "inclusive", id="payTo-listed-other-sum-inclusive"),
        pytest.param({"outputs": _form("inclusive", WHOLE)}, None, id="payTo-in-inclusive"),
        pytest.param({"outputs": _form("additional", WHOLE)}, None, id="payTo-in-additional"),
    ],
)
def test_ambiguous_splits_are_refused_with_what_was_read(
    extra: dict[str, Any], configured: SplitMode | None
) -> None:
    with pytest.raises(Refused) as refused:
        read({"detail": detail(**extra)}, configured)
    assert refused.value.name == "split_ambiguous"
    assert ANNA in refused.value.detail
    assert "2000000" in refused.value.detail


@pytest.mark.parametrize(
    "entry",
    [
        {"address": ANNA, "percent": 20},
        {"address": ANNA, "amount": "20%"},
        {"address": ANNA, "amount": "2000000", "note": "x"},
        {"address": ANNA, "to": ANNA, "amount": "2000000"},
        {"address": ANNA, "amount": "2000000", "units": "2000000"},
        {"address": ANNA, "amount": "2000000", "asset": TOKEN},
        {"address": ANNA, "amount": "2000000", "currency": TOKEN},
    ],
)
def test_a_refusal_shows_the_split_entry_that_was_not_understood(entry: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        read({"detail": detail(split=_form("additional", [entry]))})
    assert refused.value.name == "split_ambiguous"
    assert ANNA in refused.value.detail
