"""The headers that limit the cost of a request, and the header that reports what it cost."""

import re
from pathlib import Path

import pytest

from payagent.core.cost_headers import (
    COST_HEADER,
    DRY_RUN_HEADER,
    MAX_COST_HEADER,
    PAYMENT_HEADER,
    STATE_HEADER,
    cost_text,
    paid_headers,
    read_cost,
    read_cost_headers,
)
from payagent.core.money import show_amount
from payagent.core.problems import Refused

TOKEN = "ab" * 28 + "cd"
MAX_COST, DRY_RUN = b"x-payagent-max-cost", b"x-payagent-dry-run"


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ([], (None, None, False)),
        ([(b"accept", b"*/*"), (DRY_RUN, b"false")], (None, None, False)),
        ([(MAX_COST, b"120"), (DRY_RUN, b"true")], (120, None, True)),
        ([(MAX_COST, b"5 ADA")], (5_000_000, "lovelace", False)),
        ([(MAX_COST, b"5000000 lovelace"), (MAX_COST, b"5000000 lovelace")], (5_000_000, "lovelace", False)),
    ],
)
def test_the_cost_headers_of_a_request_are_read(
    headers: list[tuple[bytes, bytes]], limits: tuple[int | None, str | None, bool]
) -> None:
    assert read_cost_headers(headers) == limits


def test_a_maximum_may_name_a_token_of_the_config() -> None:
    headers = [(MAX_COST, b"1.5 USDM")]
    assert read_cost_headers(headers, {"USDM": (TOKEN, 6)}) == (1_500_000, TOKEN, False)
    with pytest.raises(Refused, match="'USDM' is not ADA"):
        read_cost_headers(headers)


def test_a_maximum_is_read_as_amounts_are_shown() -> None:
    shown = show_amount("lovelace", 12_500_500_000, {})
    assert read_cost_headers([(MAX_COST, shown.encode())]) == (12_500_500_000, "lovelace", False)
    with pytest.raises(Refused, match="is not a valid amount"):
        read_cost_headers([(MAX_COST, b"12\xa0500 ADA")])


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([(b"x-payagent-max-costs", b"1")], "'x-payagent-max-costs' is not known"),
        ([(MAX_COST, b"1"), (MAX_COST, b"2")], "x-payagent-max-cost is given twice"),
        ([(MAX_COST, b"1.5")], "X-Payagent-Max-Cost"),
        ([(MAX_COST, b"0 ADA")], "is zero"),
        ([(MAX_COST, b"5 USDM")], "'USDM' is not ADA and not lovelace; write a token as policy and name in hex"),
        ([(DRY_RUN, b"yes")], "X-Payagent-Dry-Run is true or false"),
    ],
)
def test_an_unknown_or_malformed_cost_header_is_refused(headers: list[tuple[bytes, bytes]], why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        read_cost_headers(headers)
    assert refused.value.code == "bad_request"


def test_the_reported_cost_in_ada_includes_the_fee() -> None:
    assert cost_text([("lovelace", 10_000_000), ("lovelace", 2_000_000)], 171_000) == "12171000 lovelace"


def test_the_reported_cost_in_a_token_excludes_the_fee_and_min_ada() -> None:
    assert cost_text([(TOKEN, 5), ("lovelace", 1_200_000), (TOKEN, 7)], 171_000) == f"12 {TOKEN}"


def test_what_a_paid_answer_says_is_read_back() -> None:
    headers = paid_headers("pay_1", [("lovelace", 3_000_000), ("lovelace", 1_000_000)], 170_000, "in_block")
    assert headers == {
        "X-Payagent-Payment": "pay_1",
        "X-Payagent-Cost": "4170000 lovelace",
        "X-Payagent-State": "in_block",
    }
    assert read_cost(headers[COST_HEADER]) == ("lovelace", 4_170_000)


def test_no_other_module_spells_the_names_of_the_cost_headers() -> None:
    names = (COST_HEADER, DRY_RUN_HEADER, MAX_COST_HEADER, PAYMENT_HEADER, STATE_HEADER)
    named = re.compile(rf"""["']({"|".join(names)})["']""", re.IGNORECASE)
    package = Path(__file__).parents[2] / "payagent"
    naming = [path.name for path in package.rglob("*.py") if named.search(path.read_text())]
    assert naming == ["cost_headers.py"]
