"""Reads what people type into forms. Never: floats; guesses."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from payagent.core.money import LOVELACE, parse_amount_of
from payagent.core.problems import Refused
from payagent.dashboard.in_process import ApiRefusedError

LIFETIMES = {"90d": "in 90 days", "30d": "in 30 days", "12h": "in 12 hours", "never": "never"}
_AHEAD = {"90d": timedelta(days=90), "30d": timedelta(days=30), "12h": timedelta(hours=12)}


def units_of(form: Mapping[str, str], name: str, asset: str = LOVELACE) -> str | None:
    """The units of a field: ADA unless it names lovelace, or a token's smallest units. None if it is empty.

    Raises `ApiRefusedError`: `amount_invalid`.
    """
    text = form.get(name, "")
    if not text:
        return None
    try:
        return str(parse_amount_of(asset, f"{text} ADA" if asset == LOVELACE and " " not in text else text))
    except Refused as refused:
        raise ApiRefusedError.of(refused) from None


def ticked(form: Mapping[str, str], name: str) -> list[str]:
    """The boxes of a name that are ticked."""
    return [one for one in form.get(name, "").split(",") if one]


def expiry_of(form: Mapping[str, str]) -> str | None:
    """When a token that is made now ends, as RFC 3339. None: never. Raises `ApiRefusedError`: `bad_request`."""
    name = form.get("expires", "")
    if name not in LIFETIMES:
        raise ApiRefusedError.of(
            Refused("bad_request", f"expires must be one of {', '.join(LIFETIMES)}", key="expires")
        )
    ahead = _AHEAD.get(name)
    return None if ahead is None else (datetime.now(UTC) + ahead).isoformat(timespec="seconds")
