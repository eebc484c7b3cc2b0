"""The report of a month: its sums, and what hostile names, prices and rollbacks make of it."""

import re
from decimal import Decimal
from html import unescape
from typing import Any

from payagent.audit.prices import read_prices
from payagent.dashboard.month import month_file
from payagent.dashboard.render import Renderer

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
        "unserved": [],
        "head": HEAD,
    }
    period = {"month": "2026-11", "since": "2026-11-01T00:00:00.000Z", "until": "2026-12-01T00:00:00.000Z"}
    return empty | period | {"network": "devnet", "spend": list(spend)} | more


def file_of(found: dict[str, Any], prices: str = "", **tokens: tuple[str, int]) -> str:
    merchants = [{"origin": "https://t.example", "name": "t"}]
    return month_file(Renderer(tokens=tokens), found, merchants, read_prices(prices) if prices else None)


def plain(html: str) -> str:
    """The text that a reader of a wide window sees, in one line."""
    wide = re.sub(r'<span class="sub only-narrow">.*?</span>', "", html, flags=re.S)
    return unescape(" ".join(re.sub(r"<[^>]*>", "", wide).split()))


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows of the table below each heading."""
    sections = re.findall(r"<h2[^>]*>(.*?)</h2>(.*?)(?=<h2|</main>)", page, re.S)
    return {
        heading: [
            [plain(cell) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.S)]
            for row in re.findall(r"<tr.*?</tr>", text, re.S)
        ]
        for heading, text in sections
    }


def test_each_table_of_spend_has_the_same_sum() -> None:
    rows = (
        spent("2026-11-02", 3_000_000, 170_000),
        spent("2026-11-02", 2_000_000, 170_000, app="other"),
        spent("2026-11-30", 1_500_000, 180_000, merchant="https://gone.example"),
        spent("2026-11-30", 0, 167_173, merchant=None, sent="4000000", total="4167173", destination="addr_test1x"),
        spent("2026-11-30", 7_000_000, 0, asset=TOKEN),
    )
    found = tables(file_of(report(*rows), USDM=(TOKEN, 6)))
    for heading in ("Spend by merchant", "Spend by app", "Spend by day"):
        head, *_, ada, token = found[heading]
        assert head[1:] == ["Payments", "Paid", "Sent", "Fees", "Total"]
        assert ada == ["Total", "4", "6.500000 ADA", "4.000000 ADA", "0.687173 ADA", "11.187173 ADA"]
        assert token[1:] == ["1", "7.000000 USDM", "0.000000 USDM", "0.000000 USDM", "7.000000 USDM"]
    assert [row[0] for row in found["Spend by merchant"][1:-2]] == ["t", "Transfers", "https://gone.example", "t"]
    assert [row[0] for row in found["Spend by day"][1:-2]] == ["2 Nov 2026", "30 Nov 2026", "30 Nov 2026"]
    assert [row[0] for row in found["Sends, by address"][1:]] == ["addr_test1x", "Total"]


def test_hostile_names_are_escaped_and_the_file_loads_nothing() -> None:
    refused = {"app": HOSTILE, "merchant": HOSTILE, "code": "limit_exceeded", "count": 1}
    topup = {"merchant": HOSTILE, "app": HOSTILE, "trigger": HOSTILE, "unit": "calls", "count": 1, "units": "1"}
    topup |= {"bought": "0"}
    account = {"account": f"prepaid:{HOSTILE}", "asset": HOSTILE, "units": "1"}
    page = file_of(
        report(
            spent("2026-11-02", 1, 1, merchant=HOSTILE, app=HOSTILE, destination=HOSTILE),
            spent("2026-11-02", 1, 1, asset=HOSTILE),
            refusals=[refused],
            topups=[topup | {"ended_early": 0}],
            opening=[account],
            network=HOSTILE,
            head=HOSTILE,
        ),
        "date,price,currency\n2026-11-02,1,<b>\n",
    )
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;⟨U+202E⟩⟨U+001B⟩[31m") >= 12
    assert not {"script", "b", "a", "img", "link", "iframe", "form"} & set(re.findall(r"<([a-z0-9]+)", page))
    assert "default-src 'none'" in page
    assert re.findall(r"(?:src|href|\bon[a-z]+|url)\s*[=(]", page) == []


def test_the_balance_runs_from_the_opening_over_each_change_to_the_closing() -> None:
    def at(*units: int) -> list[dict[str, str]]:
        accounts = ("wallet", "held", "prepaid:https://t.example")
        return [
            {"account": name, "asset": "lovelace", "units": str(n)}
            for name, n in zip(accounts, units, strict=True)
        ]

    changes = [
        {"kind": "post", "asset": "lovelace", "units": "-3000000"},
        {"kind": "deposit", "asset": "lovelace", "units": "10000000"},
    ]
    found = tables(
        file_of(report(opening=at(5_000_000, 1_000_000, 0), closing=at(13_000_000, 0, 2_000_000), changes=changes))
    )
    assert found["From the opening to the closing balance"] == [
        ["Change", "Amount"],
        ["Opening balance", "6.000000 ADA"],
        ["Received", "10.000000 ADA"],
        ["Paid and sent, with fees", "-3.000000 ADA"],
        ["Closing balance", "13.000000 ADA"],
    ]
    assert found["Accounts"] == [
        ["Account", "Opening", "Closing"],
        ["Wallet", "5.000000 ADA", "13.000000 ADA"],
        ["Reserved for payments", "1.000000 ADA", "0.000000 ADA"],
        ["Prepaid at t", "0.000000 ADA", "2.000000 ADA"],
    ]


def test_values_are_added_up_exactly_and_rounded_once() -> None:
    prices = "date,price,currency\n2026-11-02,0.333333333333,EUR\n2026-11-03,1.005,EUR\n"
    rows = [spent("2026-11-02", 100_000, 0)] * 7 + [spent("2026-11-03", 1_000_000, 0)]
    exact = Decimal("0.333333333333") * 7 / 10 + Decimal("1.005")
    found = tables(file_of(report(*rows, spent("2026-11-02", 9, 0, asset=TOKEN)), prices))["Spend by day"]
    assert [row[-1].partition("ADA")[2] for row in found[1:] if "ADA" in row[-1]] == [
        "0.23 EUR",
        "1.01 EUR",
        f"{exact:.2f} EUR",
    ]
    assert not any("EUR" in row[-1] for row in found if "ADA" not in row[-1])


def test_more_taken_back_by_a_rollback_than_spent_leaves_negative_sums_and_no_bar() -> None:
    page = file_of(report(spent("2026-11-02", -3_000_000, -170_000, payments=-1)))
    assert tables(page)["Spend by day"][1][1:] == ["-1", "-3.000000 ADA", "-0.170000 ADA", "-3.170000 ADA"]
    assert set(re.findall(r'<rect x="[^"]*" y="[^"]*" width="([^"]*)"[^>]* class="f1"/>', page)) == {"0.00%"}


def test_refusals_are_said_in_words() -> None:
    rows = [
        {"app": "bot", "merchant": "t", "code": "limit_exceeded", "count": 5},
        {"app": None, "merchant": None, "code": "merchant_not_allowed", "count": 1},
    ]
    page = file_of(report(refusals=rows))
    assert [row[1:] for row in tables(page)["Refusals"][1:]] == [
        ["bot", "t", "5"],
        ["No app", "a merchant that was not named", "1"],
    ]
    assert "6 purchases Most often: above a limit." in plain(page)


def test_a_payment_that_was_not_served_stands_in_the_summary() -> None:
    lost = [
        {"asset": "lovelace", "payments": 3, "units": "1500000"},
        {"asset": TOKEN, "payments": 2, "units": "2500000"},
    ]
    page = plain(file_of(report(unserved=lost), USDM=(TOKEN, 6)))
    assert "Paid, not served 3 payments 1.500000 ADA" in page
    assert "2.500000 USDM" in page
    assert "not served" not in plain(file_of(report()))


def test_a_top_up_shows_what_was_bought_beside_what_was_ordered() -> None:
    ordered = {"merchant": "t", "app": "bot", "trigger": "manual", "count": 1, "ended_early": 0}
    rows = [
        ordered | {"unit": "lovelace", "units": "500000000", "bought": "2600000"},
        ordered | {"unit": "calls", "units": "20", "bought": "1"},
    ]
    head, ada, calls = tables(file_of(report(topups=rows)))["Top-ups"]
    assert head[-2:] == ["Ordered", "Bought"]
    assert (ada[-2:], calls[-2:]) == (["500.000000 ADA", "2.600000 ADA"], ["20 calls", "1 call"])


def test_an_empty_month_says_so() -> None:
    page = plain(file_of(report()))
    for text in ("0.000000 ADA", "0 purchases", "Nothing was spent", "Nothing was refused", "No top-ups"):
        assert text in page
