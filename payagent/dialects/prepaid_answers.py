"""Parses a merchant's answers to GET /payments/balance and GET /payments/credits.

No document describes these answers. So the parser is lenient about where a number stands and how it is named, and
strict about everything else. It does not understand an ambiguous answer, and says why.

Never: raises; makes a float; computes a number that the merchant did not state.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from payagent.core.money import LOVELACE, check_supply, parse_ada, parse_asset, parse_count
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.core.strict_json import loads
from payagent.core.timestamps import posix_ms
from payagent.dialects.http_wire import show

# A partner's client reads `remaining` and `total`; other APIs use the other words. A name may combine several of
# these words, in snake or camel case: `remainingCredits`, `prepaid_balance`, `total_used`.
_ROLES = {
    **dict.fromkeys(("remaining", "left", "available"), "remaining"),
    **dict.fromkeys(("total", "bought", "purchased"), "total"),
    **dict.fromkeys(("used", "spent", "consumed"), "used"),
}
_CALL_WORDS = frozenset(("call", "calls", "request", "requests"))
# Alone, these words mean the remaining balance.
_SUBJECTS = _CALL_WORDS | {"balance", "credit", "credits"}
# Alone, these words mean nothing: an amount may be anything.
_FILLERS = frozenset(("amount", "prepaid", "units", "lovelace", "ada"))
_KNOWN = _ROLES.keys() | _SUBJECTS | _FILLERS
_WRAPPERS = frozenset(("detail", "data", "result"))
_DEPTH_MAX = 2
_CLAIMS_MAX = 16
_WHY_MAX = 300

_UNIT_NAMES = frozenset(("asset", "currency", "unit"))
# A credit may be a call or a part of one, so it is not a unit.
_NO_UNIT = frozenset(("credit", "credits"))
_EXPIRY_NAMES = frozenset(("expires at", "expires", "expiry", "expiration", "valid until"))
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[^A-Za-z_ -]+")

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]{5,15}(?:Z|[+-][0-9]{2}:?[0-9]{2})", re.ASCII)
# From 2001 on, seconds since 1970 and milliseconds cannot be confused with each other or with a remaining time.
_SECONDS = range(10**9, 10**11)
_MILLISECONDS = range(10**12, 10**14)


@dataclass(frozen=True, slots=True)
class PrepaidAnswer:
    """A merchant's statement of a balance. Its numbers are valid only if `understood`.

    `unit`: `calls` or an asset; None if the answer names none.
    `why`: what was not understood. In an answer that is understood, this can only be the expiry.
    """

    remaining: int | None
    total: int | None
    used: int | None
    unit: str | None
    expires_at_ms: int | None
    understood: bool
    why: str


@dataclass(frozen=True, slots=True)
class _Field:
    """One value, its own name in plain words, and the words of its whole path."""

    name: str
    words: Sequence[str]
    value: object


def read_prepaid(status: int, body: bytes | str) -> PrepaidAnswer:
    """Parse an answer as received. Never raises: see `PrepaidAnswer.understood`."""
    try:
        if not 200 <= status < 300:
            raise _unclear(f"the status is {status}")
        value = loads(body)
        if not isinstance(value, dict):
            raise _unclear(f"the answer is {show(value, 80)}, not an object")
        return _read(list(_walk(value, (), 0)))
    except Refused as refused:
        return PrepaidAnswer(None, None, None, None, None, understood=False, why=refused.detail[:_WHY_MAX])


def _read(fields: Sequence[_Field]) -> PrepaidAnswer:
    for field in fields:
        if (field.name in ("error", "errors") and field.value) or (
            field.name in ("success", "ok") and field.value is False
        ):
            raise _unclear(f"the answer says {field.name}: {show(field.value, 80)}")
    claims = [(role, field) for field in fields if field.value is not None and (role := _role(field.words))]
    if len(claims) > _CLAIMS_MAX:
        raise _unclear(f"the answer names {len(claims)} numbers")
    numbers: dict[str, int] = {}
    units: set[str | None] = set()
    for role, field in claims:
        unit, number = _read_amount(field, fields)
        units.add(unit)
        if numbers.setdefault(role, number) != number:
            raise _unclear(f"{role} has two values: {numbers[role]} and {number}")
    if len(units) > 1:
        raise _unclear("the numbers are in " + " and ".join(sorted(str(unit) for unit in units)))
    expires_at_ms, why = _read_expiry(fields)
    remaining, total, used = numbers.get("remaining"), numbers.get("total"), numbers.get("used")
    _check(remaining, total, used)
    return PrepaidAnswer(remaining, total, used, next(iter(units)), expires_at_ms, understood=True, why=why)


def _walk(fields: Mapping[str, object], above: tuple[str, ...], depth: int) -> Iterator[_Field]:
    """Yield every value, including those inside wrappers and inside objects with a known name."""
    for key, value in fields.items():
        own = tuple(word.lower() for word in _WORD.findall(key)) or ("",)
        below = () if key in _WRAPPERS else own
        if isinstance(value, dict) and depth < _DEPTH_MAX and _KNOWN.issuperset(below):
            yield from _walk(value, above + below, depth + 1)
        else:
            yield _Field(" ".join(own), above + own, value)


def _role(words: Sequence[str]) -> str | None:
    """Return what a number means (`remaining`, `total`, `used`), or None if its name is unknown."""
    if not _KNOWN.issuperset(words):
        return None
    roles = {_ROLES[word] for word in words if word in _ROLES}
    if len(roles) > 1:
        roles.discard("total")
    if len(roles) == 1:
        return roles.pop()
    return "remaining" if not roles and _SUBJECTS.intersection(words) else None


def _read_amount(field: _Field, fields: Sequence[_Field]) -> tuple[str | None, int]:
    """Return unit and number. The field's own name gives the unit, or else the fields beside it."""
    value = field.value
    if isinstance(value, str) and value.endswith((" ADA", " lovelace")):
        return LOVELACE, parse_ada(value)
    if _CALL_WORDS.intersection(field.words):
        return CALLS, parse_count(value, field.name)
    if "ada" in field.words:
        return LOVELACE, _read_whole_ada(value, field.name)
    if "lovelace" in field.words:
        return LOVELACE, check_supply(LOVELACE, parse_count(value, field.name), field.name)
    return _read_beside(field, fields)


def _read_beside(field: _Field, fields: Sequence[_Field]) -> tuple[str | None, int]:
    units = {_read_unit(other.value) for other in fields if other.name in _UNIT_NAMES and other.value is not None}
    units.discard(None)
    if len(units) > 1:
        raise _unclear("two units are named: " + " and ".join(sorted(map(str, units))))
    unit = units.pop() if units else None
    decimals = [other.value for other in fields if other.name == "decimals" and other.value is not None]
    if unit is None or unit == CALLS:
        if decimals not in ([], [0]):
            raise _unclear(f"decimals is {show(decimals[0], 40)}, and no asset is named")
        return unit, parse_count(field.value, field.name)
    if any(type(count) is not int or (unit == LOVELACE and count != 6) for count in decimals):
        raise _unclear(f"decimals is {show(decimals[0], 40)}")
    if unit == LOVELACE and isinstance(field.value, str) and "." in field.value:
        return unit, _read_whole_ada(field.value, field.name)
    named = any(other.name in _UNIT_NAMES and other.value == LOVELACE for other in fields)
    if not (named or decimals or "units" in field.words):
        raise _unclear(f"{field.name} is {show(field.value, 40)}, whole or in the smallest unit of {unit}")
    return unit, check_supply(unit, parse_count(field.value, field.name), field.name)


def _read_unit(value: object) -> str | None:
    """Parse a unit: `calls`, an asset, or None for a word that means neither."""
    if isinstance(value, str) and value.lower() in _CALL_WORDS:
        return CALLS
    if isinstance(value, str) and value.lower() in _NO_UNIT:
        return None
    return parse_asset(value)


def _read_whole_ada(value: object, name: str) -> int:
    text = value if isinstance(value, str) else str(parse_count(value, name))
    return parse_ada(f"{text} ADA")


def _read_expiry(fields: Sequence[_Field]) -> tuple[int | None, str]:
    """Return the expiry of the balance, and why it was not understood."""
    stated = [field.value for field in fields if field.name in _EXPIRY_NAMES and field.value is not None]
    ends_ms = {_parse_time_ms(value) for value in stated}
    if len(ends_ms) > 1:
        return None, "it states two expiry times"
    end_ms = ends_ms.pop() if ends_ms else None
    if stated and end_ms is None:
        return None, f"its expiry is {show(stated[0], 60)}, not a time with a time zone"
    return end_ms, ""


def _parse_time_ms(value: object) -> int | None:
    """Parse ISO 8601 with a time zone, or seconds or milliseconds since 1970."""
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            return posix_ms(datetime.fromisoformat(value))
        except (ValueError, OverflowError):
            return None
    try:
        count = parse_count(value)
    except Refused:
        return None
    if count in _SECONDS:
        return count * 1000
    return count if count in _MILLISECONDS else None


def _check(remaining: int | None, total: int | None, used: int | None) -> None:
    if remaining is None:
        raise _unclear("it does not state the remaining balance")
    if total is not None and remaining + (used or 0) > total:
        parts = f"{remaining} left" if used is None else f"{remaining} left and {used} used"
        raise _unclear(f"{parts} are more than {total} in total")


def _unclear(why: str) -> Refused:
    return Refused("invoice_invalid/body", why)
