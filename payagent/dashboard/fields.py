"""Reads what people type into forms. Never: floats; guesses."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from payagent.core.money import LOVELACE, NO_TOKENS, Tokens, parse_amount_of
from payagent.core.problems import Refused
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import asset_name

LIFETIMES = {"90d": "in 90 days", "30d": "in 30 days", "12h": "in 12 hours", "never": "never"}
_AHEAD = {"90d": timedelta(days=90), "30d": timedelta(days=30), "12h": timedelta(hours=12)}


def on_page(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal as a page says it: `field` is the form's field that it is about, or empty.

    Flags, names of settings and patterns are for programs: beside the field the page says what it takes.
    """
    key = str(problem.get("key") or "").rpartition(".")[2]
    detail = problem["detail"].removeprefix(f"{key}: ")
    field = "path" if problem["code"] == "topup_not_configured" else {"units": "amount"}.get(key, key)
    is_formal = detail.startswith("'") and "': " in detail
    return {
        **problem,
        "field": field,
        "detail": "" if is_formal or "topup.path" in detail else detail,
        "fix": "" if re.search(r"--|openapi|\[\[", problem["fix"]) else problem["fix"],
    }


def units_of(form: Mapping[str, str], name: str, asset: str = LOVELACE, tokens: Tokens = NO_TOKENS) -> str | None:
    """The units of a field. None if it is empty. Raises `ApiRefusedError`: `amount_invalid`."""
    text = form.get(name, "")
    if not text:
        return None
    try:
        return str(read_units(text, asset, tokens, name))
    except Refused as refused:
        raise ApiRefusedError.of(refused) from None


def read_units(text: str, asset: str, tokens: Tokens, field: str = "amount") -> int:
    """Parse an amount of an asset, in any form in which the pages show one. The unit may be left out.

    Refused: `amount_invalid`.
    """
    name = asset_name(asset, tokens)
    try:
        return parse_amount_of(asset, text if " " in text else f"{text} {name}", {name: (asset, 0), **tokens})
    except Refused as refused:
        raise Refused(refused.code, refused.detail if text else "the amount is empty", key=field) from None


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
