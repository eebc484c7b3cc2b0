"""Reads what people type into forms. May import: core, dashboard.in_process. Never: floats; guesses."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from payagent.core.money import LOVELACE, LOVELACE_PER_ADA, check_supply, parse_count, parse_decimal
from payagent.core.problems import Refused
from payagent.dashboard.in_process import ApiRefusedError

LIFETIMES = {"90d": "in 90 days", "30d": "in 30 days", "12h": "in 12 hours", "never": "never"}
_AHEAD = {"90d": timedelta(days=90), "30d": timedelta(days=30), "12h": timedelta(hours=12)}


def units_of(form: Mapping[str, str], name: str, asset: str = LOVELACE) -> str | None:
    """The units of a field: ADA with up to six decimals, or a token's smallest units. None if it is empty.

    Raises `ApiRefusedError`: `amount_invalid`.
    """
    text = form.get(name, "").removesuffix("ADA").strip()
    if not text:
        return None
    try:
        decimals = len(str(LOVELACE_PER_ADA)) - 1
        units = parse_decimal(text, decimals) if asset == LOVELACE else parse_count(text)
        return str(check_supply(asset, units))
    except Refused:
        detail = f"{text[:40]!r} is not a number of {'ADA' if asset == LOVELACE else 'smallest units'}"
        raise ApiRefusedError.of(Refused("amount_invalid", detail)) from None


def ticked(form: Mapping[str, str], name: str) -> list[str]:
    """The boxes of a name that are ticked."""
    return [one for one in form.get(name, "").split(",") if one]


def expiry_of(form: Mapping[str, str]) -> str | None:
    """When a token that is made now ends, as RFC 3339. None: never."""
    ahead = _AHEAD.get(form.get("expires", ""))
    return None if ahead is None else (datetime.now(UTC) + ahead).isoformat(timespec="seconds")
