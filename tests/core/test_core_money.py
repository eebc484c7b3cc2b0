"""Money: text from outside becomes units in one strict way, and formatting loses nothing."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.money import (
    LOVELACE,
    MAX_LOVELACE,
    MAX_UNITS,
    check_supply,
    for_people,
    format_ada,
    format_amount,
    format_units,
    parse_ada,
    parse_amount,
    parse_amount_of,
    parse_asset,
    parse_bound,
    parse_count,
    parse_decimal,
    parse_units,
    round_of_limit,
    show_amount,
)
from payagent.core.problems import Refused

POLICY = "0123456789abcdef" * 3 + "01234567"


def code_of(function: object, *args: object) -> str:
    assert callable(function)
    with pytest.raises(Refused) as caught:
        function(*args)
    return caught.value.name


def test_the_maximum_amount_is_63_bits() -> None:
    assert MAX_UNITS == 9_223_372_036_854_775_807


@given(st.integers(1, MAX_UNITS))
def test_units_are_read_from_text_and_from_integers(units: int) -> None:
    assert parse_units(str(units)) == units
    assert parse_units(units) == units


@given(st.text(max_size=25) | st.from_regex(r"\A[-+]?[0-9_ .eE]{1,22}\Z"))
def test_only_canonical_decimal_text_is_a_number(text: str) -> None:
    canonical = re.fullmatch("0|[1-9][0-9]*", text, re.ASCII)
    if canonical and int(text) <= MAX_UNITS:
        assert parse_count(text) == int(text)
    else:
        assert code_of(parse_count, text) in ("invoice_invalid/amount", "invoice_invalid/amount_range")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("-1", "invoice_invalid/amount"),
        ("+1", "invoice_invalid/amount"),
        ("01", "invoice_invalid/amount"),
        ("1_000", "invoice_invalid/amount"),
        ("\uff11\uff12", "invoice_invalid/amount"),
        ("\u0661", "invoice_invalid/amount"),
        ("\u00b2", "invoice_invalid/amount"),
        (" 1", "invoice_invalid/amount"),
        ("1\n", "invoice_invalid/amount"),
        ("1.0", "invoice_invalid/amount"),
        ("1e3", "invoice_invalid/amount"),
        ("", "invoice_invalid/amount"),
        (True, "invoice_invalid/amount"),
        (1.0, "invoice_invalid/amount"),
        (float("nan"), "invoice_invalid/amount"),
        (None, "invoice_invalid/amount"),
        ([1], "invoice_invalid/amount"),
        (b"1", "invoice_invalid/amount"),
        (-1, "invoice_invalid/amount"),
        (0, "invoice_invalid/amount_range"),
        ("0", "invoice_invalid/amount_range"),
        (MAX_UNITS + 1, "invoice_invalid/amount_range"),
        (str(MAX_UNITS + 1), "invoice_invalid/amount_range"),
        ("1" + "0" * 19, "invoice_invalid/amount_range"),
        ("9" * 5000, "invoice_invalid/amount_range"),
        (10**4000, "invoice_invalid/amount_range"),
    ],
)
def test_a_malformed_amount_is_refused_with_its_code(value: object, code: str) -> None:
    assert code_of(parse_units, value) == code


def test_a_count_may_be_zero() -> None:
    assert parse_count("0") == parse_count(0) == 0


def test_an_amount_above_the_supply_is_refused() -> None:
    assert check_supply(LOVELACE, MAX_LOVELACE) == MAX_LOVELACE
    assert code_of(check_supply, LOVELACE, MAX_LOVELACE + 1) == "invoice_invalid/amount_range"
    assert check_supply(POLICY, MAX_LOVELACE + 1) == MAX_LOVELACE + 1
    assert code_of(check_supply, POLICY, MAX_UNITS + 1) == "invoice_invalid/amount_range"


@pytest.mark.parametrize("text", ["ADA", "ada", "lovelace"])
def test_ada_and_lovelace_name_the_same_asset(text: str) -> None:
    assert parse_asset(text) == LOVELACE


@pytest.mark.parametrize("name", ["", "00", "474f4c44", "ff" * 32])
def test_a_token_with_or_without_a_dot_has_one_canonical_name(name: str) -> None:
    assert parse_asset(POLICY + name) == parse_asset(f"{POLICY}.{name}") == POLICY + name


@pytest.mark.parametrize(
    "value",
    [
        "Ada",
        "USDM",
        "lovelace ",
        "lovel\u0430ce",
        "",
        POLICY[:-1],
        POLICY + "0",
        POLICY + "00" * 33,
        POLICY.upper(),
        POLICY + ".4G",
        POLICY + "..00",
        "." + POLICY,
        POLICY + "\n",
        None,
        5,
        True,
        ["ADA"],
    ],
)
def test_a_malformed_asset_is_refused(value: object) -> None:
    assert code_of(parse_asset, value) == "invoice_invalid/asset"


@pytest.mark.parametrize(
    ("text", "lovelace"),
    [
        ("5 ADA", 5_000_000),
        ("0.25 ADA", 250_000),
        ("0.000001 ADA", 1),
        ("250000 lovelace", 250_000),
        ("0 ADA", 0),
        ("45000000000 ADA", MAX_LOVELACE),
    ],
)
def test_an_amount_from_the_operator_is_read_with_its_unit(text: str, lovelace: int) -> None:
    assert parse_ada(text) == lovelace


@pytest.mark.parametrize(
    "text",
    ["5", "5ADA", "5 ada", "5  ADA", "-5 ADA", "0.0000001 ADA", "1e3 ADA", ".5 ADA", "5. ADA", "05 ADA", 5, None],
)
def test_a_malformed_amount_from_the_operator_is_refused(text: object) -> None:
    assert code_of(parse_ada, text) == "amount_invalid"


TOKENS = {"USDM": ("ab" * 28 + "01", 6), "POINT": ("cd" * 28, 0)}


@pytest.mark.parametrize(
    ("text", "units", "asset"),
    [
        ("5 ADA", 5_000_000, LOVELACE),
        ("5000000 lovelace", 5_000_000, LOVELACE),
        ("1.5 USDM", 1_500_000, "ab" * 28 + "01"),
        ("7 POINT", 7, "cd" * 28),
        (f"7 {POLICY}.00", 7, f"{POLICY}00"),
        ("120 units", 120, None),
        ("120", 120, None),
        ("0 USDM", 0, "ab" * 28 + "01"),
        (f"{MAX_UNITS} POINT", MAX_UNITS, "cd" * 28),
    ],
)
def test_every_form_of_an_amount_is_read(text: str, units: int, asset: str | None) -> None:
    assert parse_amount(text, TOKENS) == (units, asset)


@pytest.mark.parametrize(
    "text",
    [
        "5 ada",
        "5 ",
        "5  lovelace",
        "5 usdm",
        "5 DJED",
        "1.5 lovelace",
        "1.5 POINT",
        "1.5 units",
        "1.5",
        "0.0000001 USDM",
        f"1.5 {POLICY}.00",
        f"5 {POLICY.upper()}",
        "lovelace",
        "5 USDM USDM",
        f"{MAX_UNITS} USDM",
        f"{MAX_UNITS + 1}",
        5,
        None,
    ],
)
def test_a_malformed_amount_or_unknown_token_is_refused(text: object) -> None:
    assert code_of(lambda given: parse_amount(given, TOKENS), text) == "amount_invalid"


def test_an_amount_of_an_asset_is_never_of_another_one() -> None:
    usdm, point = (asset for asset, _ in TOKENS.values())
    assert parse_amount_of(usdm, "2 USDM", TOKENS) == 2_000_000
    assert parse_amount_of(usdm, "2", TOKENS) == parse_amount_of(usdm, f"2 {usdm}", TOKENS) == 2
    for asset, text in (
        (usdm, "2 POINT"),
        (usdm, "2 ADA"),
        (LOVELACE, "2 USDM"),
        (LOVELACE, "2"),
        (point, "2 USDM"),
    ):
        with pytest.raises(Refused) as refused:
            parse_amount_of(asset, text, TOKENS)
        assert refused.value.name == "amount_invalid"


def test_a_bound_of_zero_is_refused() -> None:
    assert parse_bound("1 USDM", TOKENS) == (1_000_000, "ab" * 28 + "01")
    assert code_of(parse_bound, "0 ADA") == "amount_invalid"


def test_an_amount_from_the_operator_above_the_supply_is_refused() -> None:
    assert code_of(parse_ada, "45000000001 ADA") == "amount_invalid"
    assert code_of(parse_ada, "45000000000000001 lovelace") == "amount_invalid"


@given(st.integers(0, MAX_LOVELACE))
def test_formatted_ada_reads_back_to_the_same_lovelace(lovelace: int) -> None:
    assert parse_ada(format_ada(lovelace)) == lovelace


@given(st.integers(-MAX_UNITS, MAX_UNITS), st.integers(0, 19))
def test_formatted_units_lose_nothing(units: int, decimals: int) -> None:
    text = format_units(units, decimals)
    whole, point, fraction = text.partition(".")
    assert len(fraction) == decimals
    assert bool(point) is (decimals > 0)
    assert int(whole + fraction) == units
    assert text.startswith("-") is (units < 0)


def test_amounts_are_shown_as_ada_or_as_units_of_a_token() -> None:
    assert format_amount(LOVELACE, 12_500_000) == "12.5 ADA"
    assert format_amount(POLICY, 12_500_000) == f"12500000 units of {POLICY}"


def test_amounts_for_people_are_in_the_decimals_of_the_config_and_read_back() -> None:
    usdm, point = (asset for asset, _ in TOKENS.values())
    for asset, units, text in (
        (LOVELACE, 1_234_567_500_000, "1\u202f234\u202f567.5 ADA"),
        (usdm, 50_000_000, "50 USDM"),
        (usdm, 1_000_000_000_001, "1\u202f000\u202f000.000001 USDM"),
        (point, 12_345, "12\u202f345 POINT"),
        (f"{POLICY}00", 1_200, f"1\u202f200 {POLICY}.00"),
        (LOVELACE, -167_173, "-0.167173 ADA"),
    ):
        assert show_amount(asset, units, TOKENS) == text
        if units > 0:
            assert parse_amount_of(asset, text, TOKENS) == units
            assert parse_amount_of(asset, text.replace("\u202f", "\u2009"), TOKENS) == units


@given(st.sampled_from([LOVELACE, *(asset for asset, _ in TOKENS.values()), POLICY]), st.integers(0, MAX_LOVELACE))
def test_every_amount_that_is_shown_is_read_back(asset: str, units: int) -> None:
    assert parse_amount_of(asset, show_amount(asset, units, TOKENS), TOKENS) == units
    assert parse_amount_of(asset, format_amount(asset, units), TOKENS) == units


@pytest.mark.parametrize(
    ("units", "left", "spent"),
    [
        (38_209_999, "38.2 ADA", "38.3 ADA"),
        (1_790_001, "1.79 ADA", "1.8 ADA"),
        (12_345_670_000, "12\u202f345 ADA", "12\u202f346 ADA"),
        (3, "0.000003 ADA", "0.000003 ADA"),
        (0, "0 ADA", "0 ADA"),
    ],
)
def test_of_a_limit_what_is_left_is_rounded_down_and_what_is_spent_up(units: int, left: str, spent: str) -> None:
    shown = [round_of_limit(str(units), LOVELACE, TOKENS, is_spent=is_spent) for is_spent in (False, True)]
    assert [show_amount(LOVELACE, one, TOKENS) for one in shown] == [left, spent]


@given(st.sampled_from([LOVELACE, *(asset for asset, _ in TOKENS.values()), POLICY]), st.integers(0, MAX_LOVELACE))
def test_a_rounded_amount_that_is_pasted_back_never_exceeds_what_is_left(asset: str, units: int) -> None:
    left, spent = (round_of_limit(units, asset, TOKENS, is_spent=is_spent) for is_spent in (False, True))
    assert parse_amount_of(asset, show_amount(asset, left, TOKENS), TOKENS) == left <= units <= spent
    assert (spent - left) * 100 <= units, "less than one percent"
    if asset == POLICY:
        assert left == spent, "a token without decimals is never rounded"


def test_of_a_limit_what_is_spent_and_what_is_left_add_up_as_they_are_shown() -> None:
    spent, left = 229_529_901, 70_470_099
    shown = (
        round_of_limit(spent, LOVELACE, TOKENS, is_spent=True, beside=left),
        round_of_limit(left, LOVELACE, TOKENS, beside=spent),
    )
    assert [show_amount(LOVELACE, one, TOKENS) for one in shown] == ["229.6 ADA", "70.4 ADA"]


@given(st.integers(0, 10**12), st.integers(0, 10**6))
def test_a_whole_limit_is_the_sum_of_its_rounded_parts(spent: int, most: int) -> None:
    left = max(most * 1_000_000 - spent, 0)
    used = round_of_limit(spent, LOVELACE, TOKENS, is_spent=True, beside=left)
    rest = round_of_limit(left, LOVELACE, TOKENS, beside=spent)
    assert rest <= left
    assert used >= spent
    assert used + rest == most * 1_000_000 or spent > most * 1_000_000


@pytest.mark.parametrize("text", ["1\u202f00 ADA", "1\u202f0000 ADA", "\u202f100 ADA", "5\u202fADA", "1 000 ADA"])
def test_a_thin_space_only_separates_thousands(text: str) -> None:
    assert code_of(parse_ada, text) == "amount_invalid"


def test_amounts_in_a_text_are_shown_as_people_read_them() -> None:
    usdm = TOKENS["USDM"][0]
    text = f"per_day leaves 20000.5 ADA, this payment takes 5000000 units of {usdm} with its fee, pay_01 as 7 ADA"
    assert for_people(text, TOKENS) == (
        "per_day leaves 20\u202f000.5 ADA, this payment takes 5 USDM with its fee, pay_01 as 7 ADA"
    )
    for typed in ("1,000 ADA", "10,050 ADA", "2,025.50 ADA", "12 000 ADA", "1.000 ADA", "1'000 ADA"):
        assert for_people(typed, TOKENS) == typed, "not as payagent writes an amount"
    endless = f"{'9' * 5000} units of {POLICY}"
    assert for_people(endless, TOKENS) == endless
    assert for_people("at most 200\u202f000 ADA") == "at most 200\u202f000 ADA"
    assert for_people(f"3 units of {POLICY} and 10000 units") == f"3 {POLICY}. and 10000 units"


@pytest.mark.parametrize(
    ("text", "units"), [("0", 0), ("0.5", 500_000), ("1.000001", 1_000_001), ("12", 12_000_000), ("0.45", 450_000)]
)
def test_a_decimal_number_becomes_an_integer_without_rounding(text: str, units: int) -> None:
    assert parse_decimal(text, 6) == units


@pytest.mark.parametrize("text", ["", "-1", "1.", ".5", "01", "1e3", "1,5", " 1", "0.1234567", "\u0661", "1" * 16])
def test_an_unclear_decimal_number_is_refused(text: str) -> None:
    assert code_of(parse_decimal, text, 6) == "amount_invalid"
