"""The report of a month as one HTML file: tables, and plots as inline SVG (`month_page.html`).

Start with `month_page`. It adds up rows of the daemon's answer, so that each table shows the same sums.

Never: writes untrusted text unescaped; a script; a request to anything outside the file; a float.
"""

from calendar import monthrange
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from payagent.cli.options import show_asset, show_units
from payagent.cli.prices import Prices
from payagent.cli.terminal import harmless
from payagent.core.ledger import HELD, WALLET
from payagent.core.money import LOVELACE, counted

_CHANGES = {
    "deposit": "received",
    "deposit_reversed": "received, taken back by a rollback",
    "post": "paid and sent, fees included",
    "post_reversed": "paid and sent, taken back by a rollback",
    "release": "fees of cancelled payments",
    "external_spend": "spent by another wallet with the same words",
    "external_spend_reversed": "spent by another wallet, taken back by a rollback",
}
"""The kinds of entries that change what is ours, in words."""

Row = Sequence[str]
_PARTS = ("paid", "fees", "sent", "total", "payments")
_BAR_WIDTH, _PLOT_HEIGHT = 120, 140


def month_page(report: Mapping[str, Any], prices: Prices | None) -> str:
    """The page. Raises PriceError if `prices` lack a day on which ADA was spent."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: harmless(value) if type(value) is str else value,
        trim_blocks=True,
    )
    environment.filters |= {"units": show_units, "asset_name": show_asset}
    balance, accounts = _balance(report)
    spend = report["spend"]
    return environment.get_template("month_page.html").render(
        report=report,
        prices=prices,
        bar_width=_BAR_WIDTH,
        plot_height=_PLOT_HEIGHT,
        balance=balance,
        accounts=accounts,
        spent={key: _spend(key, spend, prices) for key in ("merchant", "app", "day")}
        | {"destination": _spend("destination", [row for row in spend if row["destination"]], prices)},
        plots=_plots(spend, report["month"]),
        refusals=[
            (row["app"] or "-", row["merchant"] or "-", row["code"], row["count"]) for row in report["refusals"]
        ],
        topups=[
            (row["merchant"], row["app"], row["trigger"], row["count"], _ordered(row), row["ended_early"])
            for row in report["topups"]
        ],
    )


def _ordered(topup: Mapping[str, Any]) -> str:
    unit, units = topup["unit"], topup["units"]
    return counted(units, "call") if unit == "calls" else show_units(unit, units)


def _balance(report: Mapping[str, Any]) -> tuple[list[Row], list[Row]]:
    """From the opening to the closing balance of wallet and held; then every account at both ends."""
    opening, closing = (
        Counter({(row["account"], row["asset"]): int(row["units"]) for row in report[end]})
        for end in ("opening", "closing")
    )
    changes = Counter({(row["kind"], row["asset"]): int(row["units"]) for row in report["changes"]})
    accounts = sorted({**opening, **closing}, key=lambda key: (key[0].startswith("prepaid:"), key))
    rows: list[Row] = []
    for asset in _in_order(asset for _, asset in (*accounts, *changes)):
        rows.append(_amount("opening balance", asset, opening[WALLET, asset] + opening[HELD, asset]))
        rows += [_amount(text, asset, n) for kind, text in _CHANGES.items() if (n := changes[kind, asset])]
        rows.append(_amount("closing balance", asset, closing[WALLET, asset] + closing[HELD, asset]))
    return rows, [
        (account, show_asset(asset), *(show_units(asset, end[account, asset]) for end in (opening, closing)))
        for account, asset in accounts
    ]


def _amount(name: str, asset: str, units: int) -> Row:
    return name, show_asset(asset), show_units(asset, units)


def _in_order(assets: Iterable[str]) -> list[str]:
    """Each asset once, ADA first."""
    return sorted(set(assets), key=lambda asset: (asset != LOVELACE, asset))


def _spend(
    key: str, rows: Iterable[Mapping[str, Any]], prices: Prices | None
) -> list[tuple[str, str, Mapping[str, int], int | None]]:
    """Name, asset, numbers and a bar's width of each group; then the sum of each asset, without a bar."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        asset = row["asset"]
        numbers = {part: int(row[part]) for part in _PARTS}
        if prices is not None and asset == LOVELACE:
            numbers["value"] = prices.value(numbers["total"], row["day"])
        groups.setdefault((asset, row[key] or "-"), Counter()).update(numbers)
        sums.setdefault(asset, Counter()).update(numbers)
    most = {asset: max(1, *(one["total"] for (of, _), one in groups.items() if of == asset)) for asset in sums}

    def place(group: tuple[tuple[str, str], Counter[str]]) -> tuple[object, ...]:
        (asset, name), numbers = group
        return asset != LOVELACE, asset, 0 if key == "day" else -numbers["total"], name

    return [
        *(
            (name, asset, numbers, _BAR_WIDTH * max(0, numbers["total"]) // most[asset])
            for (asset, name), numbers in sorted(groups.items(), key=place)
        ),
        *(("total", asset, sums[asset], None) for asset in _in_order(sums)),
    ]


def _plots(rows: Iterable[Mapping[str, Any]], month: str) -> list[tuple[str, int, list[tuple[str, int, int]]]]:
    """For each asset: the most of a day; then each day, what was spent and the height of its column.

    A day on which more came back than was spent has no column.
    """
    by_asset: dict[str, Counter[str]] = {}
    for row in rows:
        by_asset.setdefault(row["asset"], Counter())[row["day"]] += int(row["total"])
    year, number = (int(part) for part in month.split("-"))
    days = [f"{month}-{day:02d}" for day in range(1, monthrange(year, number)[1] + 1)]
    most = {asset: max(1, *units.values()) for asset, units in by_asset.items()}
    return [(asset, most[asset], _columns(by_asset[asset], days, most[asset])) for asset in _in_order(by_asset)]


def _columns(units: Mapping[str, int], days: Iterable[str], most: int) -> list[tuple[str, int, int]]:
    return [(day, units[day], _PLOT_HEIGHT * max(0, units[day]) // most) for day in days]
