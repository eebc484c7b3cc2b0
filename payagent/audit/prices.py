"""Prices of ADA by day, from a CSV file of the user, and values at these prices. Everything is an integer.

Never: guesses the price of a day; rounds before a value is shown.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass

from payagent.core.money import format_units, parse_decimal
from payagent.core.problems import Refused

COLUMNS = ["date", "price", "currency"]
_DECIMALS = 12
_CENT = 10 ** (_DECIMALS + 6 - 2)
"""A hundredth of the currency, in the unit of `Prices.value`: lovelace times the price."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class PriceError(ValueError):
    """The user's file is not as it must be, or lacks a day."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of 1 ADA on each day, in units of 10^-12 of the currency."""

    currency: str
    by_day: Mapping[str, int]

    def value(self, lovelace: int, day: str) -> int:
        """The exact value, which can be added up. Raises PriceError if the day has no price."""
        if day not in self.by_day:
            raise PriceError(f"it has no price for {day}")
        return lovelace * self.by_day[day]

    def show(self, value: int) -> str:
        """A value with two decimals, rounded half up."""
        return format_units((value + _CENT // 2) // _CENT, 2)


def read_prices(text: str) -> Prices:
    """Read `date,price,currency`, all in one currency. Raises PriceError."""
    try:
        header, *rows = list(csv.reader(text.splitlines())) or [[]]
    except csv.Error as error:
        raise PriceError(f"the file is not CSV: {error}") from None
    if header != COLUMNS:
        raise PriceError(f"its first line must be {','.join(COLUMNS)}")
    by_day: dict[str, int] = {}
    for row in rows:
        if len(row) != len(COLUMNS) or not _DAY.fullmatch(row[0]) or row[0] in by_day:
            raise PriceError(f"the line {','.join(row)[:60]!a} is not one day's date, price and currency")
        try:
            by_day[row[0]] = parse_decimal(row[1], _DECIMALS)
        except Refused as refused:
            raise PriceError(refused.detail) from None
    currencies = {row[2] for row in rows}
    if len(currencies) != 1:
        raise PriceError("all its prices must be in one currency")
    return Prices(currencies.pop(), by_day)
