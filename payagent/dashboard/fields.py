"""Reads what people type into forms. Never: floats; guesses."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from payagent.core.money import LOVELACE, NO_TOKENS, Tokens, parse_amount_of
from payagent.core.problems import Refused
from payagent.dashboard.text import asset_name

LIFETIMES = {"90d": "in 90 days", "30d": "in 30 days", "12h": "in 12 hours", "never": "never"}
_AHEAD = {"90d": timedelta(days=90), "30d": timedelta(days=30), "12h": timedelta(hours=12)}


_CONTROLS = {
    " in the list command": "",
    " with `payagent limits set`": "",
    " with `payagent wallet send`": "",
    ": payagent app rotate-token NAME": "",
    ": payagent merchants pin NAME ADDRESS": "",
    ": payagent merchants add NAME --origin ORIGIN": " on its page",
    ": payagent merchants resume NAME": "",
    "Only `payagent resume`": "Only “Resume signing”",
    "Run `payagent app rotate-token NAME`": "Give the app a new token",
    "payagent app rotate-token NAME lets": "a new token lets",
    "`payagent payments show ID`": "the payment",
    "`payagent prepaid list` for a top-up": "its merchant's page for a top-up",
    "`payagent wallet split` makes": "Splitting makes",
    "`payagent wallet unfreeze` shows all of them. Then repeat the command": "the wallet's page shows all of them",
    "run `payagent merchants remove NAME`": "remove it",
    "run `payagent payments approve ID`": "approve the payment",
    "run `payagent wallet unfreeze`": "unfreeze the wallet",
}
"""What the pages say in place of a command: they have its control."""
_COMMANDS = re.compile(
    r"(?:^|(?<=\. ))[^.]*payagent "
    r"(?:app|channels|limits|log|merchants|payments|prepaid|resume|wallet)\b[^.]*(?:\. ?|$)"
)


def fix_on_page(fix: str) -> str:
    """What to do about a problem, for a page: without flags, tables, and commands for what pages can do."""
    for command, words in _CONTROLS.items():
        fix = fix.replace(command, words)
    return "" if re.search(r"--|openapi|\[\[", fix) else _COMMANDS.sub("", fix).strip()


def on_page(problem: Mapping[str, Any], form: Mapping[str, str]) -> dict[str, Any]:
    """A refusal as a page says it: `field` is the form's field that it is about, or empty.

    Flags, names of settings and patterns are for programs: beside the field the page says what it takes, and it
    shows `raw` only if it has no such field. `sentence` is `detail` with a capital, unless that was typed.
    """
    key = str(problem.get("key") or "").rpartition(".")[2]
    raw = problem["detail"].partition(", and no name in [[")[0]
    detail = raw.removeprefix(f"{key}: ")
    field = "path" if problem["code"] == "topup_not_configured" else {"units": "amount"}.get(key, key)
    is_formal = detail.startswith("'") and "': " in detail
    detail = "" if is_formal or "topup.path" in detail else detail
    is_typed = detail.partition(" ")[0] in form.values()
    sentence = detail if is_typed else detail[:1].upper() + detail[1:]
    return {**problem, "field": field, "detail": detail, "sentence": sentence, "raw": raw}


def units_of(form: Mapping[str, str], name: str, asset: str = LOVELACE, tokens: Tokens = NO_TOKENS) -> str | None:
    """The units of a field. None if it is empty. Refused: `amount_invalid`."""
    text = form.get(name, "")
    return str(read_units(text, asset, tokens, name)) if text else None


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
    """When a token that is made now ends, as RFC 3339. None: never. Refused: `bad_request`."""
    name = form.get("expires", "")
    if name not in LIFETIMES:
        raise Refused("bad_request", f"expires must be one of {', '.join(LIFETIMES)}", key="expires")
    ahead = _AHEAD.get(name)
    return None if ahead is None else (datetime.now(UTC) + ahead).isoformat(timespec="seconds")
