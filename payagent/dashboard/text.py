"""How the dashboard writes amounts, times and untrusted text. Never: I/O."""

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from payagent.core.history import is_unserved
from payagent.core.money import (
    LOVELACE,
    NO_TOKENS,
    Tokens,
    for_people,
    name_and_decimals,
    show_amount,
    show_number,
)

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

CHIPS = {
    "awaiting_approval": "warn",
    "received": "go",
    "reserved": "go",
    "signed": "go",
    "in_flight": "go",
    "in_block": "go",
    "replacing": "warn",
    "cancelling": "warn",
    "confirmed": "ok",
    "settled": "ok",
    "void": "off",
    "rejected": "off",
    "denied": "off",
}
"""The look of each state's chip."""


def visible(value: object) -> object:
    """Show control and direction characters as their code points. Markup and other values stay."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(_visible(char) for char in value)


def _visible(char: str) -> str:
    is_hidden = not char.isprintable() and char != "\n" and unicodedata.category(char) != "Zs"
    return (
        f"\N{MATHEMATICAL LEFT ANGLE BRACKET}U+{ord(char):04X}\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
        if is_hidden
        else char
    )


def number(units: int | str, asset: str = LOVELACE, tokens: Tokens = NO_TOKENS) -> str:
    """An amount with all decimals and without its unit."""
    return show_number(int(units), name_and_decimals(asset, tokens)[1])


def asset_name(asset: str, tokens: Tokens) -> str:
    """ADA, the token's name in the config, or the start of its policy and its name in hex."""
    name, _ = name_and_decimals(asset, tokens)
    return f"{asset[:8]}….{asset[56:72]}" if name.startswith(f"{asset[:56]}.") else name


def figures(units: int | str, asset: str, tokens: Tokens) -> str:
    """An amount with all decimals and with its unit, in plain text."""
    return f"{number(units, asset, tokens)} {asset_name(asset, tokens)}"


def amount(units: int | str | None, asset: str = LOVELACE, tokens: Tokens = NO_TOKENS) -> Markup:
    """An amount in tabular figures. From the third decimal on they are quieter."""
    if units is None:
        return Markup("")
    number, _, unit = figures(units, asset, tokens).partition(" ")
    quiet = max(name_and_decimals(asset, tokens)[1] - 2, 0)
    loud = number[: len(number) - quiet]
    faint = Markup('<span class="t">{}</span>').format(number[len(loud) :]) if quiet else ""
    return Markup('<span class="amt">{}{}<span class="u"> {}</span></span>').format(loud, faint, unit)


def amount_text(units: int | str, asset: str = LOVELACE, tokens: Tokens = NO_TOKENS) -> str:
    """The same in plain text and without trailing zeros, for a sentence or the terminal."""
    number, _, _ = show_amount(asset, int(units), tokens).partition(" ")
    return f"{number} {asset_name(asset, tokens)}"


def when(text: str | None, form: str = "minute") -> Markup:
    """A time of the API in UTC. `form`: minute (28 Nov 14:31), second (28 Nov 14:31:09), clock, time (14:31:09),
    day."""
    if text is None:
        return Markup("")
    at = datetime.fromisoformat(text).astimezone(UTC)
    day = f"{at.day} {MONTHS[at.month - 1]}"
    shown = {
        "minute": f"{day} {at:%H:%M}",
        "second": f"{day} {at:%H:%M:%S}",
        "clock": f"{at:%H:%M}",
        "time": f"{at:%H:%M:%S}",
        "day": f"{day} {at.year}",
    }[form]
    return Markup('<time datetime="{}">{}</time>').format(text, shown)


def short(text: str, head: int = 14, tail: int = 6) -> Markup:
    """An address or hash with its middle left out; the whole is its title."""
    if len(text) <= head + tail + 1:
        return Markup("<code>{}</code>").format(visible(text))
    return Markup('<code title="{}">{}…{}</code>').format(
        visible(text), visible(text[:head]), visible(text[-tail:])
    )


def clipped(text: str, most: int = 300, tokens: Tokens = NO_TOKENS) -> Markup:
    """Untrusted text; what is long stands behind a link."""
    shown = str(visible(for_people(text, tokens)))
    if len(shown) <= most:
        return escape(shown)
    return Markup('<details class="long"><summary>{}…</summary>{}</details>').format(shown[:most], shown[most:])


def chip(payment: Mapping[str, Any]) -> Markup:
    """A payment's state; of one that was paid and not served, that."""
    look, words = CHIPS.get(payment["state"], "off"), payment["state"].replace("_", " ")
    if is_unserved(payment):
        look, words = "bad", "paid, not served"
    return Markup('<span class="chip {}">{}</span>').format(look, words)


def paid(payment: dict[str, Any]) -> list[tuple[int, str]]:
    """What a payment's outputs pay to others, by asset: (units, asset)."""
    sums: dict[str, int] = {}
    for output in payment["outputs"]:
        if output["role"] != "change":
            sums[output["asset"]] = sums.get(output["asset"], 0) + int(output["units"])
    return [(units, asset) for asset, units in sums.items()]


def leaves(payment: dict[str, Any]) -> list[tuple[int, str]]:
    """What leaves the wallet, with the fee and the ADA that goes along with a token, by asset: (units, asset).

    Of a payment that holds nothing, what it was to pay.
    """
    return [(int(units), asset) for asset, units in payment["spend"].items()] or paid(payment)
