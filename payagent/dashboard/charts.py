"""The chart of the spend by day, drawn on the server: bars as SVG, words as HTML, and a table behind it.

Never: floats for an amount (only for a bar's height).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from payagent.core.money import LOVELACE, NO_TOKENS, Tokens, name_and_decimals, show_amount
from payagent.dashboard.text import MONTHS

SERIES_MAX = 5
"""Merchants with a colour of their own; the last one stands for all others."""

TRANSFERS, OTHERS = "Transfers", "All others"
"""What the legend calls these; no merchant's name has a capital letter."""

_STEPS = (1, 2, 4, 5, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Bar:
    """A day's part of one merchant: from the top of the plot, in hundredths of its height."""

    top: float
    height: float
    series: int


@dataclass(frozen=True, slots=True)
class Day:
    """A day: its date, what each series spent, and its bars."""

    date: str
    label: str
    parts: tuple[int, ...]
    total: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class SpendChart:
    """The chart of one asset, in its units. `series`: name and sum of each merchant, largest first, then of all
    others. `scale`: labels from top to bottom. `ticks`: labels from left to right."""

    asset: str
    days: tuple[Day, ...]
    series: tuple[tuple[str, int], ...]
    total: int
    scale: tuple[str, ...]
    ticks: tuple[str, ...]


def spend_chart(
    spent: Mapping[tuple[str, str | None], int],
    dates: Sequence[str],
    asset: str = LOVELACE,
    tokens: Tokens = NO_TOKENS,
) -> SpendChart:
    """`spent`: units by (date, merchant), None for transfers. `dates`: each day to show, oldest first, as in
    2026-11-28."""
    sums: dict[str | None, int] = {}
    for (_, name), units in spent.items():
        sums[name] = sums.get(name, 0) + units
    names = sorted(sums, key=lambda name: -sums[name])
    shown = [(name or TRANSFERS, [name]) for name in names]
    if len(shown) > SERIES_MAX:
        shown[SERIES_MAX - 1 :] = [(OTHERS, names[SERIES_MAX - 1 :])]
    by_day = [
        (date, tuple(sum(spent.get((date, one), 0) for one in of_series) for _, of_series in shown))
        for date in dates
    ]
    hundredth = 10 ** max(0, name_and_decimals(asset, tokens)[1] - 2)
    most = _scale_most(max((sum(parts) for _, parts in by_day), default=0), hundredth)
    days = tuple(Day(date, _label(date), parts, sum(parts), _bars(parts, most)) for date, parts in by_day)
    series = tuple((name, sum(day.parts[at] for day in days)) for at, (name, _) in enumerate(shown))
    scale = tuple(show_amount(asset, most * quarter // 4, tokens).split(" ")[0] for quarter in (4, 3, 2, 1, 0))
    ticks = tuple(days[at].label for at in sorted({(len(days) - 1) * quarter // 4 for quarter in range(5)}))
    return SpendChart(asset, days, series, sum(day.total for day in days), scale, ticks)


def _label(date: str) -> str:
    return f"{int(date[8:])} {MONTHS[int(date[5:7]) - 1]}"


def _bars(parts: Sequence[int], most: int) -> tuple[Bar, ...]:
    bars, filled = [], 0
    for series, units in enumerate(parts, 1):
        if units > 0:
            filled += units
            bars.append(Bar(round(100 - filled * 100 / most, 2), round(units * 100 / most, 2), series))
    return tuple(bars)


def _scale_most(units: int, step: int) -> int:
    """The top of the scale: a round multiple of `step` that is not below `units`, and a multiple of 4."""
    while True:
        for factor in _STEPS:
            if factor * step * 4 >= units:
                return factor * step * 4
        step *= 10
