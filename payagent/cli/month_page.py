"""The report of a month as one HTML file: tables, and plots as inline SVG.

Start with `month_page`. It adds up rows of the daemon's answer, so that each table shows the same sums.

May import: core, cli.options, cli.prices, cli.terminal.
Never: writes foreign text unescaped; a script; a request to anything outside the file; a float.
"""

from calendar import monthrange
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from payagent.cli.options import show_asset, show_units
from payagent.cli.prices import Prices
from payagent.cli.terminal import harmless
from payagent.core.ledger import HELD, WALLET
from payagent.core.money import LOVELACE, counted

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:64rem;margin:1rem auto;padding:0 1rem}"
    ":root{color-scheme:light dark}table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}"
    "th,td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886}"
    "td{overflow-wrap:anywhere}.n{text-align:right;white-space:nowrap}tr.sum{font-weight:bold}"
    "svg{display:block;max-width:100%}rect{fill:#3b82c4}text{fill:currentColor;font:11px system-ui,sans-serif}"
)
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

_PARTS = ("paid", "fees", "sent", "total", "payments")
_BAR_WIDTH, _BAR_HEIGHT = 120, 12
_STEP, _PLOT_HEIGHT, _MARGIN = 30, 140, 20

Row = Sequence[str]


class Markup(str):
    """HTML that this module made. Any other text is escaped."""

    __slots__ = ()


def month_page(report: Mapping[str, Any], prices: Prices | None) -> str:
    """The page. Raises PriceError if `prices` lack a day on which ADA was spent."""
    spend = report["spend"]
    sections = [
        ("Balance", _balance(report)),
        ("Spend by merchant", _spend("merchant", spend, prices)),
        ("Spend by app", _spend("app", spend, prices)),
        ("Spend by day", _day_plots(spend, report["month"]) + _spend("day", spend, prices)),
        ("Sends", _spend("destination", [row for row in spend if row["destination"]], prices)),
        ("Refusals", _refusals(report["refusals"])),
        ("Top-ups", _topups(report["topups"])),
        ("Head of the seals", _head(report["head"])),
    ]
    title = f"payagent: {report['month']} on {report['network']}"
    about = f"From {report['since']} until {report['until']}, UTC. Amounts of two assets are never added."
    if prices is not None:
        about += f" {prices.currency}: at the price of the day, added up exactly, then rounded."
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><title>{_text(title)}</title>'
        f"</head><body>\n<h1>{_text(title)}</h1>\n<p>{_text(about)}</p>\n"
        + "".join(f"<h2>{heading}</h2>\n{section}" for heading, section in sections)
        + "</body></html>\n"
    )


def _text(text: str) -> str:
    return text if isinstance(text, Markup) else escape(harmless(text))


def _table(columns: Row, rows: Iterable[Row], right: Row, sums: Iterable[Row] = ()) -> str:
    """A table; `sums` are its last rows. Columns named in `right` are right-aligned."""
    kinds = [' class="n"' if column in right else "" for column in columns]

    def line(tag: str, row: Row, kind: str = "") -> str:
        cells = (f"<{tag}{of}>{_text(cell)}</{tag}>" for of, cell in zip(kinds, row, strict=True))
        return f"<tr{kind}>{''.join(cells)}</tr>\n"

    body = [*(line("td", row) for row in rows), *(line("td", row, ' class="sum"') for row in sums)]
    return f"<table>\n{line('th', columns)}{''.join(body)}</table>\n" if body else "<p>None.</p>\n"


def _balance(report: Mapping[str, Any]) -> str:
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
    ends = [
        (account, show_asset(asset), *(show_units(asset, end[account, asset]) for end in (opening, closing)))
        for account, asset in accounts
    ]
    return _table(("wallet and held", "asset", "amount"), rows, ("amount",)) + _table(
        ("account", "asset", "opening", "closing"), ends, ("opening", "closing")
    )


def _amount(name: str, asset: str, units: int) -> Row:
    return name, show_asset(asset), show_units(asset, units)


def _in_order(assets: Iterable[str]) -> list[str]:
    """Each asset once, ADA first."""
    return sorted(set(assets), key=lambda asset: (asset != LOVELACE, asset))


def _spend(key: str, rows: Iterable[Mapping[str, Any]], prices: Prices | None) -> str:
    """The spend by one key and asset, with a bar for each group, and the sum of each asset."""
    groups: dict[tuple[str, str], Counter[str]] = {}
    sums: dict[str, Counter[str]] = {}
    for row in rows:
        asset = row["asset"]
        numbers = {part: int(row[part]) for part in _PARTS}
        if prices is not None and asset == LOVELACE:
            numbers["value"] = prices.value(numbers["total"], row["day"])
        groups.setdefault((asset, row[key] or "-"), Counter()).update(numbers)
        sums.setdefault(asset, Counter()).update(numbers)
    most = {asset: max(one["total"] for (of, _), one in groups.items() if of == asset) for asset in sums}

    def line(name: str, asset: str, numbers: Mapping[str, int], bar: str) -> Row:
        amounts = [show_units(asset, numbers[part]) for part in ("paid", "fees", "sent", "total")]
        if prices is not None:
            amounts.append(prices.show(numbers["value"]) if asset == LOVELACE else "")
        return (name, show_asset(asset), *amounts, str(numbers["payments"]), bar)

    def place(group: tuple[tuple[str, str], Counter[str]]) -> tuple[object, ...]:
        (asset, name), numbers = group
        return asset != LOVELACE, asset, 0 if key == "day" else -numbers["total"], name

    right = ("paid", "fees", "sent", "total", *(() if prices is None else (prices.currency,)), "payments")
    return _table(
        (key, "asset", *right, ""),
        [
            line(name, asset, numbers, _bar(numbers["total"], most[asset]))
            for (asset, name), numbers in sorted(groups.items(), key=place)
        ],
        right,
        [line("total", asset, sums[asset], "") for asset in _in_order(sums)],
    )


def _bar(units: int, most: int) -> Markup:
    width = _BAR_WIDTH * units // most if units > 0 else 0
    return Markup(
        f'<svg width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}"><rect width="{width}" height="{_BAR_HEIGHT}"/></svg>'
    )


def _day_plots(rows: Iterable[Mapping[str, Any]], month: str) -> str:
    """One plot of columns for each asset. A day on which more came back than was spent has no column."""
    by_asset: dict[str, Counter[str]] = {}
    for row in rows:
        by_asset.setdefault(row["asset"], Counter())[row["day"]] += int(row["total"])
    year, number = (int(part) for part in month.split("-"))
    days = [f"{month}-{day:02d}" for day in range(1, monthrange(year, number)[1] + 1)]
    return "".join(_day_plot(asset, by_asset[asset], days) for asset in _in_order(by_asset))


def _day_plot(asset: str, units: Mapping[str, int], days: Sequence[str]) -> str:
    most = max(1, *units.values())
    parts = [f'<text y="12">{_text(show_asset(asset))}, at most {_text(show_units(asset, most))} a day</text>']
    for place, day in enumerate(days):
        height = _PLOT_HEIGHT * max(units[day], 0) // most
        left, top = place * _STEP, _MARGIN + _PLOT_HEIGHT - height
        parts.append(
            f'<rect x="{left}" y="{top}" width="{_STEP - 6}" height="{height}">'
            f"<title>{day}: {_text(show_units(asset, units[day]))}</title></rect>"
            f'<text x="{left + 6}" y="{_MARGIN + _PLOT_HEIGHT + 14}">{day[-2:]}</text>'
        )
    size = f"{_STEP * len(days)} {2 * _MARGIN + _PLOT_HEIGHT}"
    return f'<svg viewBox="0 0 {size}" role="img">{"".join(parts)}</svg>\n'


def _refusals(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [(row["app"] or "-", row["merchant"] or "-", row["code"], str(row["count"])) for row in rows]
    return _table(("app", "merchant", "code", "refusals"), lines, ("refusals",))


def _topups(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [
        (
            row["merchant"],
            row["app"],
            row["trigger"],
            str(row["count"]),
            counted(row["units"], "call") if row["unit"] == "calls" else show_units(row["unit"], row["units"]),
            str(row["ended_early"]),
        )
        for row in rows
    ]
    columns = ("merchant", "app", "trigger", "top-ups", "ordered", "ended early")
    return _table(columns, lines, ("top-ups", "ordered", "ended early"))


def _head(head: str) -> str:
    return (
        f"<p><code>{_text(head)}</code></p>\n<p>This seal covers every row that the report was made from. "
        f"<code>payagent ledger verify --head {_text(head)}</code> checks that they are unchanged.</p>\n"
    )
