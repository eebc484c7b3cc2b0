"""A month of the ledger as people read it: the values of `month.html`, which the page and the HTML file share.

Never: I/O; adds amounts of two assets; a float for an amount.
"""

from calendar import month_name, monthrange
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from payagent.audit.prices import Prices
from payagent.core.ledger import HELD, WALLET
from payagent.core.money import LOVELACE, Tokens
from payagent.core.problems import PROBLEMS
from payagent.dashboard.charts import SpendChart, spend_chart
from payagent.dashboard.render import STYLESHEET, Renderer

NOBODY = {"merchant": "Transfers", "app": "No app"}
"""What spend without a merchant or an app is called."""

_CHANGES = {
    "deposit": "Received",
    "deposit_reversed": "Received, taken back by a rollback",
    "post": "Paid and sent, with fees",
    "post_reversed": "Paid and sent, taken back by a rollback",
    "release": "Fees of cancelled payments",
    "external_spend": "Spent by another wallet with the same words",
    "external_spend_reversed": "Spent by another wallet, taken back by a rollback",
}
"""The kinds of entries that change what is ours, in words and in the order of the balance."""

_ACCOUNTS = {WALLET: "Wallet", HELD: "Reserved for payments"}
_PARTS = ("paid", "sent", "fees", "total", "payments")

Row = Mapping[str, Any]


def month_file(renderer: Renderer, report: Row, merchants: Iterable[Row], prices: Prices | None = None) -> str:
    """The report as one HTML file without a script, which loads nothing.

    Raises PriceError if `prices` lack a day on which ADA was spent.
    """
    values = month_values(report, merchants, renderer.facts["tokens"], prices)
    return renderer.html("month_file.html", style=STYLESHEET, is_file=True, **values)


def month_values(
    report: Row, merchants: Iterable[Row], tokens: Tokens, prices: Prices | None = None
) -> dict[str, Any]:
    """What `month.html` shows of an answer of `/v1/ledger/report`. `merchants`: those of `/v1/merchants`."""
    spend = report["spend"]
    year, number = map(int, report["month"].split("-"))
    dates = [f"{report['month']}-{day:02d}" for day in range(1, monthrange(year, number)[1] + 1)]
    balances = _balances(report)
    return {
        "report": report,
        "month": f"{month_name[number]} {year}",
        "currency": prices and prices.currency,
        "spent": {way: spent_by(way, spend, prices) for way in ("merchant", "app", "day")},
        "sends": spent_by("destination", [row for row in spend if row["destination"]], prices),
        "charts": spend_charts("merchant", spend, dates, tokens),
        "balances": balances,
        "ada": next((one for one in balances if one["asset"] == LOVELACE), {"opening": 0, "closing": 0}),
        "accounts": _accounts(report, {one["origin"]: one["name"] for one in merchants}),
        "refusals": [{**row, "title": PROBLEMS[row["code"]].title} for row in report["refusals"]],
        "refused": sum(row["count"] for row in report["refusals"]),
    }


def assets_of(rows: Iterable[Row]) -> list[str]:
    """Each asset once, ADA first."""
    return sorted({row["asset"] for row in rows}, key=lambda asset: (asset != LOVELACE, asset))


def spent_by(way: str, spend: Iterable[Row], prices: Prices | None = None) -> dict[str, list[dict[str, Any]]]:
    """`rows`: each group with its name, numbers, and share in percent of the largest; days by date, all others by
    total. `sums`: the same numbers of each asset. The value is at the price of the day."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    sums: dict[str, Counter[str]] = {}
    for row in spend:
        asset, numbers = row["asset"], {part: int(row[part]) for part in _PARTS}
        if prices is not None and asset == LOVELACE:
            numbers["value"] = prices.value(numbers["total"], row["day"])
        groups.setdefault((asset, row[way] or NOBODY[way]), Counter()).update(numbers)
        sums.setdefault(asset, Counter()).update(numbers)
    most = {asset: max(1, *(one["total"] for (of, _), one in groups.items() if of == asset)) for asset in sums}

    def shown(asset: str, numbers: Counter[str]) -> dict[str, Any]:
        value = prices.show(numbers["value"]) if prices is not None and asset == LOVELACE else ""
        return {"asset": asset, **{part: numbers[part] for part in _PARTS}, "value": value}

    rows = [
        shown(asset, numbers) | {"name": name, "percent": max(0, numbers["total"]) * 100 / most[asset]}
        for (asset, name), numbers in groups.items()
    ]
    rows.sort(
        key=lambda row: (row["asset"] != LOVELACE, row["asset"], way != "day" and -row["total"], row["name"])
    )
    return {"rows": rows, "sums": [shown(asset, sums[asset]) for asset in assets_of(rows)]}


def spend_charts(
    way: Literal["merchant", "app"], spend: Sequence[Row], dates: Sequence[str], tokens: Tokens
) -> list[SpendChart]:
    """A chart of each asset. The rows have a day and a `way`."""
    charts = []
    for asset in assets_of(spend):
        units: Counter[tuple[str, str | None]] = Counter()
        for row in spend:
            if row["asset"] == asset:
                units[row["day"], row[way]] += int(row["total"])
        charts.append(spend_chart(units, dates, asset, tokens))
    return charts


def _balances(report: Row) -> list[dict[str, Any]]:
    """Of each asset, wallet and held together: the opening balance, what changed it, and the closing balance."""

    def at(end: str, asset: str) -> int:
        rows = [row for row in report[end] if row["account"] in _ACCOUNTS and row["asset"] == asset]
        return sum(int(row["units"]) for row in rows)

    changes = {(row["kind"], row["asset"]): int(row["units"]) for row in report["changes"]}
    return [
        {
            "asset": asset,
            "opening": at("opening", asset),
            "changes": [
                (text, changes[kind, asset]) for kind, text in _CHANGES.items() if (kind, asset) in changes
            ],
            "closing": at("closing", asset),
        }
        for asset in assets_of([*report["opening"], *report["closing"], *report["changes"]])
    ]


def _accounts(report: Row, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Each account at both ends, those of merchants last and by their names."""
    opening, closing = (
        {(row["account"], row["asset"]): int(row["units"]) for row in report[end]}
        for end in ("opening", "closing")
    )
    keys = sorted({**opening, **closing}, key=lambda key: (key[0] not in _ACCOUNTS, key[0] != WALLET, key[0]))
    return [
        {
            "name": _ACCOUNTS.get(account) or _named(account, names),
            "asset": asset,
            "opening": opening.get((account, asset), 0),
            "closing": closing.get((account, asset), 0),
        }
        for account, asset in keys
    ]


def _named(account: str, names: Mapping[str, str]) -> str:
    kind, _, origin = account.partition(":")
    return f"{'Prepaid' if kind == 'prepaid' else 'In a channel'} at {names.get(origin, origin)}"
