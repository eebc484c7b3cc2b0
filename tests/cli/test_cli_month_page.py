"""The HTML report of a month: its sums, and what hostile names, prices and rollbacks make of it."""

import re
from decimal import Decimal
from html import unescape
from typing import Any

import pytest

from payagent.cli.month_page import month_page
from payagent.cli.prices import PriceError, read_prices

HOSTILE = "<script>alert(1)</script>\"'&\u202e\x1b[31m"
TOKEN = "5c" * 28 + "636c69"
HEAD = "9:" + "ab" * 32


def spent(day: str, paid: int, fees: int, **more: Any) -> dict[str, Any]:
    row = {"merchant": "t", "app": "bot", "day": day, "destination": None, "asset": "lovelace", "payments": 1}
    row |= {"paid": str(paid), "fees": str(fees), "sent": "0", "total": str(paid + fees)}
    return row | more


def report(*spend: dict[str, Any], **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "opening": [],
        "closing": [],
        "changes": [],
        "refusals": [],
        "topups": [],
        "head": HEAD,
    }
    period = {"month": "2026-11", "since": "2026-11-01T00:00:00.000Z", "until": "2026-12-01T00:00:00.000Z"}
    return empty | period | {"network": "devnet", "spend": list(spend)} | more


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows of the table below each heading, without bars."""
    sections = re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|</body>)", page, re.S)
    return {
        heading: [
            [
                unescape(re.sub(r"<svg.*?</svg>", "", cell))
                for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
            ]
            for row in re.findall(r"<tr.*?</tr>", text)
        ]
        for heading, text in sections
    }


def test_each_table_of_spend_has_the_same_sum() -> None:
    rows = (
        spent("2026-11-02", 3_000_000, 170_000),
        spent("2026-11-02", 2_000_000, 170_000, app="other"),
        spent("2026-11-30", 1_500_000, 180_000, merchant="https://gone.example"),
        spent("2026-11-30", 0, 167_173, merchant=None, sent="4000000", total="4167173", destination="addr_test1x"),
        spent("2026-11-30", 7, 0, asset=TOKEN),
    )
    found = tables(month_page(report(*rows), None))
    for heading in ("Spend by merchant", "Spend by app", "Spend by day"):
        head, *_, ada, token = found[heading]
        assert head[2:] == ["paid", "fees", "sent", "total", "payments", ""]
        assert ada == ["total", "ADA", "6.5 ADA", "0.687173 ADA", "4 ADA", "11.187173 ADA", "4", ""]
        assert token[2:] == ["7 units", "0 units", "0 units", "7 units", "1", ""]
    assert [row[0] for row in found["Spend by day"]] == [
        "day",
        "2026-11-02",
        "2026-11-30",
        "2026-11-30",
        "total",
        "total",
    ]
    assert [row[:2] for row in found["Sends"][1:]] == [["addr_test1x", "ADA"], ["total", "ADA"]]


def test_hostile_names_are_escaped_and_the_page_loads_nothing() -> None:
    refused = {"app": HOSTILE, "merchant": HOSTILE, "code": HOSTILE, "count": 1}
    topup = {"merchant": HOSTILE, "app": HOSTILE, "trigger": HOSTILE, "unit": "calls", "count": 1, "units": "1"}
    account = {"account": HOSTILE, "asset": HOSTILE, "units": "1"}
    page = month_page(
        report(
            spent("2026-11-02", 1, 1, merchant=HOSTILE, app=HOSTILE, destination=HOSTILE),
            spent("2026-11-02", 1, 1, asset=HOSTILE),
            refusals=[refused],
            topups=[topup | {"ended_early": 0}],
            opening=[account],
            network=HOSTILE,
            head=HOSTILE,
        ),
        read_prices("date,price,currency\n2026-11-02,1,<b>\n"),
    )
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;\\u202e\\x1b[31m") >= 12
    assert set(re.findall(r"<([a-z0-9]+)", page)) == {
        *("html", "head", "meta", "style", "title", "body", "h1", "h2", "p", "code", "table", "tr", "th", "td"),
        *("svg", "rect", "text"),
    }
    assert "default-src 'none'" in page
    assert re.findall(r"(?:src|href|\bon[a-z]+|url)\s*[=(]", page.replace(HOSTILE, "")) == []


def test_the_balance_runs_from_the_opening_over_each_change_to_the_closing() -> None:
    def at(*units: int) -> list[dict[str, str]]:
        accounts = ("wallet", "held", "prepaid:https://t.example")
        return [
            {"account": name, "asset": "lovelace", "units": str(n)}
            for name, n in zip(accounts, units, strict=True)
        ]

    changes = [
        {"kind": "deposit", "asset": "lovelace", "units": "10000000"},
        {"kind": "post", "asset": "lovelace", "units": "-3000000"},
    ]
    page = month_page(
        report(opening=at(5_000_000, 1_000_000, 0), closing=at(13_000_000, 0, 2_000_000), changes=changes), None
    )
    assert tables(page)["Balance"] == [
        ["wallet and held", "asset", "amount"],
        ["opening balance", "ADA", "6 ADA"],
        ["received", "ADA", "10 ADA"],
        ["paid and sent, fees included", "ADA", "-3 ADA"],
        ["closing balance", "ADA", "13 ADA"],
        ["account", "asset", "opening", "closing"],
        ["held", "ADA", "1 ADA", "0 ADA"],
        ["wallet", "ADA", "5 ADA", "13 ADA"],
        ["prepaid:https://t.example", "ADA", "0 ADA", "2 ADA"],
    ]


def test_values_are_added_up_exactly_and_rounded_once() -> None:
    prices = read_prices("date,price,currency\n2026-11-02,0.333333333333,EUR\n2026-11-03,1.005,EUR\n")
    rows = [spent("2026-11-02", 100_000, 0)] * 7 + [spent("2026-11-03", 1_000_000, 0)]
    exact = Decimal("0.333333333333") * 7 / 10 + Decimal("1.005")
    found = tables(month_page(report(*rows, spent("2026-11-02", 9, 0, asset=TOKEN)), prices))["Spend by day"]
    values = {row[0]: row[6] for row in found if row[1] == "ADA"}
    assert values == {"2026-11-02": "0.23", "2026-11-03": "1.01", "total": f"{exact:.2f}"}
    assert {row[6] for row in found[1:] if row[1] != "ADA"} == {""}


def test_more_taken_back_by_a_rollback_than_spent_leaves_negative_sums_and_no_bar() -> None:
    row = spent("2026-11-02", -3_000_000, -170_000, payments=-1)
    page = month_page(report(row), read_prices("date,price,currency\n2026-11-02,0.5,EUR\n"))
    assert tables(page)["Spend by day"][1][5:8] == ["-3.17 ADA", "-1.58", "-1"]
    assert set(re.findall(r'(?:height|width)="(-?[0-9]+)"', page)) == {"0", "12", "24", "120"}


def test_an_empty_month_has_no_tables() -> None:
    page = month_page(report(), None)
    assert "<td" not in page
    assert page.count("None.") == 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "price,date,currency\n",
        "date,price,currency\n",
        "date,price,currency\n2026-11-02,0.5\n",
        "date,price,currency\n2.11.2026,0.5,EUR\n",
        "date,price,currency\n2026-11-02,0.5,EUR\n2026-11-02,0.6,EUR\n",
        "date,price,currency\n2026-11-02,0.5,EUR\n2026-11-03,0.5,USD\n",
        'date,price,currency\n2026-11-02,"0,5",EUR\n',
        "date,price,currency\n2026-11-02,1e3,EUR\n",
        "date,price,currency\n2026-11-02,-1,EUR\n",
        pytest.param("x" * 131_073, id="a field that csv refuses"),
    ],
)
def test_an_unclear_file_of_prices_is_refused(text: str) -> None:
    with pytest.raises(PriceError, match=r"^(its|the|all|') ?"):
        read_prices(text)
