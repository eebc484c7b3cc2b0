"""Money: integer units of an asset, and the only functions that turn untrusted text into numbers.

Never: floats, locale, rounding of anything but what limits count.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from payagent.core.problems import Refused

LOVELACE = "lovelace"
LOVELACE_PER_ADA = 1_000_000
THOUSANDS = "\u202f"
"""Separates thousands in text for people: a thin space at which no line breaks. U+2009 is read too."""

MAX_UNITS = 2**63 - 1
MAX_LOVELACE = 45_000_000_000_000_000  # the maximum supply (Shelley genesis maxLovelaceSupply)

Tokens = Mapping[str, tuple[str, int]]
"""The tokens that the config names: (asset, decimals) by name."""

NO_TOKENS: Tokens = MappingProxyType({})

_DIGITS = re.compile(r"(?:0|[1-9][0-9]{0,18})", re.ASCII)
_AMOUNT_TEXT = re.compile(
    r"(0|[1-9][0-9]{0,18})(?:\.([0-9]{1,19}))?(?: (?:units of (?=[0-9a-f]{56}))?([!-~…]+))?", re.ASCII
)
_SEPARATED = re.compile(r"[1-9][0-9]{0,2}(?:[\u2009\u202f][0-9]{3})+(?![0-9])", re.ASCII)
_AMOUNT_IN_TEXT = re.compile(
    r"(?<![\w.,'\u2009\u202f])(?:([0-9]{1,19}) units of ([0-9a-f]{56,120})"
    r"|(0|[1-9][0-9]{0,10})(?:\.([0-9]{0,5}[1-9]))? ADA)(?!\w)",
    re.ASCII,
)
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,14})(?:\.([0-9]+))?", re.ASCII)
_UNIT_ASSET = re.compile(r"([0-9a-f]{56})\.?((?:[0-9a-f]{2}){0,32})", re.ASCII)


def parse_count(value: object, name: str = "amount") -> int:
    """Parse an untrusted non-negative integer, 0 to 2^63-1: a JSON int, or ASCII digits without a leading zero.

    Refuses bools, floats, signs, spaces, separators and non-ASCII digits with `invoice_invalid/amount`, and
    larger numbers with `invoice_invalid/amount_range`. The detail calls the value by `name`.
    """
    if isinstance(value, str):
        if len(value) > 19 and value.isascii() and value.isdigit():
            raise Refused("invoice_invalid/amount_range", f"{name} has {len(value)} digits")
        if not _DIGITS.fullmatch(value):
            raise Refused("invoice_invalid/amount", f"{name} is {value[:40]!r}, not plain digits")
        number = int(value)
    elif type(value) is int:
        number = value
    else:
        raise Refused("invoice_invalid/amount", f"{name} is a {type(value).__name__}, not an integer")
    if number < 0:
        raise Refused("invoice_invalid/amount", f"{name} is negative")
    if number > MAX_UNITS:
        raise Refused("invoice_invalid/amount_range", f"{name} is above 2^63-1")
    return number


def parse_units(value: object, name: str = "amount") -> int:
    """Parse an untrusted amount of units, 1 to 2^63-1. Otherwise like `parse_count`."""
    number = parse_count(value, name)
    if number == 0:
        raise Refused("invoice_invalid/amount_range", f"{name} is zero")
    return number


def check_supply(asset: str, units: int, name: str = "amount") -> int:
    """Return units, or refuse more than can exist: 45 billion ADA, or 2^63-1 units of a token."""
    if units > (MAX_LOVELACE if asset == LOVELACE else MAX_UNITS):
        raise Refused("invoice_invalid/amount_range", f"{name} is more than the supply")
    return units


def parse_asset(value: object) -> str:
    """Parse an asset: "ADA", "ada", "lovelace", or a policy id (56 hex), an optional dot, and the name in hex.

    Returns "lovelace", or policy id and name concatenated. Tickers are refused. Upper-case hex is refused too,
    because limits are set by the exact name.
    """
    if not isinstance(value, str):
        raise Refused("invoice_invalid/asset", f"asset is a {type(value).__name__}")
    if value in ("ADA", "ada", LOVELACE):
        return LOVELACE
    match = _UNIT_ASSET.fullmatch(value)
    if match is None:
        raise Refused("invoice_invalid/asset", f"asset {value[:140]!r} is not ADA and not policy and name in hex")
    return match[1] + match[2]


def parse_amount(text: object, tokens: Tokens = NO_TOKENS) -> tuple[int, str | None]:
    """Parse an amount that a person or a program of theirs writes, into (units, asset). 0 is allowed.

    "5 ADA", "0.25 ADA", "5000000 lovelace", "1.5 USDM" for a token that the config names, or "120 POLICY.NAME" in
    smallest units. The asset is None for "120" and "120 units": the caller knows it. Thin spaces may separate
    thousands. Refused: `amount_invalid`.
    """
    match = _AMOUNT_TEXT.fullmatch(_without_separators(text)) if isinstance(text, str) else None
    if match is None:
        raise Refused("amount_invalid", f"{str(text)[:40]!r} is not a valid amount")
    number, fraction, unit = match[1], match[2] or "", match[3]
    asset, decimals = _read_unit(unit, tokens)
    if len(fraction) > decimals:
        raise Refused(
            "amount_invalid", f"{match[0][:60]!r} has too many decimals: at most {decimals} are possible"
        )
    units = int(number + fraction.ljust(decimals, "0"))
    if units > (MAX_LOVELACE if asset == LOVELACE else MAX_UNITS):
        raise Refused("amount_invalid", f"{match[0][:60]!r} is more than the supply")
    return units, asset


def _without_separators(text: str) -> str:
    number = _SEPARATED.match(text)
    return text if number is None else re.sub(r"\D", "", number[0]) + text[number.end() :]


def _read_unit(unit: str | None, tokens: Tokens) -> tuple[str | None, int]:
    """Return the asset that a unit names, and the decimals in which it counts."""
    if unit is None or unit == "units":
        return None, 0
    if unit == "ADA":
        return LOVELACE, 6
    if unit == LOVELACE:
        return LOVELACE, 0
    if unit in tokens:
        return tokens[unit]
    if match := _UNIT_ASSET.fullmatch(unit):
        return match[1] + match[2], 0
    if tokens is NO_TOKENS:  # as in the client's transport, which has no config
        raise Refused(
            "amount_invalid", f"{unit[:40]!r} is not ADA and not lovelace; write a token as policy and name in hex"
        )
    raise Refused(
        "amount_invalid",
        f"{unit[:40]!r} is neither ADA nor lovelace, and no name in [[limits.assets]]; "
        "a token without a name there is written as policy and name in hex",
    )


def parse_amount_of(asset: str, text: object, tokens: Tokens = NO_TOKENS) -> int:
    """Parse an amount of this asset into units. Digits alone are a token's smallest units, and never ADA."""
    units, named = parse_amount(text, tokens)
    if named is None and asset == LOVELACE:
        raise Refused("amount_invalid", f"{text!r} has no unit: write it as in '5 ADA'")
    if named not in (None, asset):
        raise Refused("amount_invalid", f"{text!r} is not an amount of {'ADA' if asset == LOVELACE else asset}")
    return units


def parse_bound(text: str, tokens: Tokens = NO_TOKENS) -> tuple[int, str | None]:
    """Parse the most that a request may cost, like `parse_amount`. 0 is refused."""
    units, asset = parse_amount(text, tokens)
    if units == 0:
        raise Refused("amount_invalid", f"{text!r} is zero")
    return units, asset


def parse_ada(text: object) -> int:
    """Parse an amount of ADA ("5 ADA", "0.25 ADA", "250000 lovelace") into lovelace. 0 is allowed."""
    return parse_amount_of(LOVELACE, text)


def parse_decimal(text: str, decimals: int) -> int:
    """Parse an operator's decimal number into units of 10^-decimals: ("0.45", 6) -> 450000. Nothing is rounded.

    Refused: `amount_invalid`.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None or len(match[2] or "") > decimals:
        raise Refused("amount_invalid", f"{text[:40]!a} is not a number with at most {decimals} decimals")
    return int(match[1] + (match[2] or "").ljust(decimals, "0"))


def format_units(units: int, decimals: int) -> str:
    """Format units as a decimal number with all decimals: (12500000, 6) -> "12.500000"."""
    sign, digits = ("-" if units < 0 else ""), str(abs(units)).rjust(decimals + 1, "0")
    return sign + digits if decimals == 0 else f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"


def format_ada(lovelace: int) -> str:
    """Format lovelace in ADA: 12500000 -> "12.5 ADA"."""
    number = format_units(lovelace, 6).rstrip("0").rstrip(".")
    return f"{number} ADA"


def format_amount(asset: str, units: int) -> str:
    """Format an amount for the record, whatever the config says: lovelace in ADA, a token in its units."""
    return format_ada(units) if asset == LOVELACE else f"{units} units of {asset}"


def name_and_decimals(asset: str, tokens: Tokens) -> tuple[str, int]:
    """What people call an asset, and the decimals in which they count it. Without a name it is POLICY.NAME."""
    named = ((name, decimals) for name, (of, decimals) in tokens.items() if of == asset)
    return ("ADA", 6) if asset == LOVELACE else next(named, (f"{asset[:56]}.{asset[56:]}", 0))


def show_number(units: int, decimals: int) -> str:
    """Format units for people, with all decimals and separated thousands: (12500000000, 6) -> "12 500.000000"."""
    whole, point, fraction = format_units(abs(units), decimals).partition(".")
    return ("-" if units < 0 else "") + f"{int(whole):,}".replace(",", THOUSANDS) + point + fraction


def show_amount(asset: str, units: int, tokens: Tokens) -> str:
    """Format an amount for people, as `parse_amount` reads it: "12 500.5 ADA", "50 USDM", "120 POLICY.NAME"."""
    name, decimals = name_and_decimals(asset, tokens)
    number = show_number(units, decimals)
    return f"{number.rstrip('0').rstrip('.') if decimals else number} {name}"


def round_of_limit(
    units: int | str, asset: str, tokens: Tokens, *, is_spent: bool = False, beside: int | str = 0
) -> int:
    """Round what a limit leaves down, and what was spent up, to three digits: 38.209999 ADA to 38.2 or 38.3 ADA.

    Whole ADA and whole tokens stay. `beside`: the other of the two. Both get the decimals of the smaller, so that
    they still add up. Nothing else that is shown is rounded, and the exact amount stands beside.
    """
    smaller = min(int(units) or int(beside), int(beside) or int(units))
    step: int = 10 ** min(max(len(str(smaller)) - 3, 0), name_and_decimals(asset, tokens)[1])
    return -(-int(units) // step) * step if is_spent else int(units) // step * step


def counted(count: int | str, noun: str) -> str:
    """A number with its noun: "1 payment", "12 000 payments"."""
    return f"{show_number(int(count), 0)} {noun}{'' if int(count) == 1 else 's'}"


def for_people(text: str, tokens: Tokens = NO_TOKENS) -> str:
    """Rewrite the amounts in a text of the record (`format_amount`) as `show_amount` writes them."""

    def shown(found: re.Match[str]) -> str:
        if found[2] is not None:
            return show_amount(found[2], int(found[1]), tokens)
        return show_amount(LOVELACE, int(found[3] + (found[4] or "").ljust(6, "0")), tokens)

    return _AMOUNT_IN_TEXT.sub(shown, text)
