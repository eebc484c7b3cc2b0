"""Strict JSON: the only reader for untrusted JSON text.

Never: accepts duplicate keys, makes a float, or accepts a text that two readers could read differently.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from payagent.core.problems import Refused

MAX_BYTES = 65_536
MAX_DEPTH = 16

# A quote always starts a match, even of an unterminated string. This keeps the scan linear on any text.
_NO_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[^\[\]{}"]+', re.DOTALL)
_UNSAFE_CHAR = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
_INT_DIGITS_MAX = 4_300


@dataclass(frozen=True, slots=True)
class JsonNumber:
    """The text of a JSON number that is not a plain integer: a fraction, an exponent, thousands of digits.

    It is not a Python number, so it can never become money: `parse_units` refuses its type.
    """

    text: str


def loads(
    data: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, any_text: bool = False
) -> object:
    """Parse one JSON value (RFC 8259) and refuse what RFC 7493 (I-JSON) calls unpredictable.

    Integers become int, all other numbers `JsonNumber`. Refused with `body_too_big`: more than `max_bytes` of
    UTF-8. Refused with `invoice_invalid/json`:
    - text that is not UTF-8 or starts with a BOM;
    - nesting deeper than `max_depth`;
    - a key that occurs twice in one object, after resolving escapes;
    - NaN and Infinity;
    - control characters (except tab and line ends) or lone surrogates in a string. With `any_text`, escaped ones
      are accepted.
    """
    text = decode_text(data, max_bytes=max_bytes)
    if text.startswith("\ufeff"):
        raise _not_strict("it starts with a byte order mark")
    _check_depth(text, max_depth)
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=JsonNumber,
            parse_int=_int,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise _not_strict(str(error)[:120]) from None
    # Without escapes, each string is a part of the text, so checking the text checks every string.
    if not any_text and ("\\" in text or _UNSAFE_CHAR.search(text)):
        check_strings(value)
    return value


def dumps(value: object, *, sort_keys: bool = False) -> str:
    """Write a value that `loads` returned, compact and in ASCII. A `JsonNumber` keeps its original text."""
    if isinstance(value, JsonNumber):
        return value.text
    if isinstance(value, dict):
        items = sorted(value.items()) if sort_keys else value.items()
        pairs = (f"{json.dumps(key)}:{dumps(item, sort_keys=sort_keys)}" for key, item in items)
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dumps(item, sort_keys=sort_keys) for item in value) + "]"
    return json.dumps(value)


def decode_text(data: bytes | str, *, max_bytes: int = MAX_BYTES) -> str:
    """Decode untrusted bytes as strict UTF-8. Refused: `invoice_invalid/json`, `body_too_big`."""
    if len(data) > max_bytes:
        raise _too_big(max_bytes)
    try:
        if isinstance(data, bytes):
            return data.decode("utf-8")
        encoded = data.encode("utf-8")
    except UnicodeError:
        raise _not_strict("it is not UTF-8") from None
    if len(encoded) > max_bytes:
        raise _too_big(max_bytes)
    return data


def _too_big(max_bytes: int) -> Refused:
    return Refused("body_too_big", f"the body has more than {max_bytes} bytes")


def _not_strict(why: str) -> Refused:
    return Refused("invoice_invalid/json", f"the body is not strict JSON: {why}")


def _check_depth(text: str, max_depth: int) -> None:
    if text.count("[") + text.count("{") <= max_depth:
        return
    depth = 0
    for bracket in _NO_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > max_depth:
            raise _not_strict(f"it is nested deeper than {max_depth}")


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        duplicate = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _not_strict(f"the key {ascii(duplicate)[:60]} is given twice")
    return result


def _int(text: str) -> int | JsonNumber:
    return int(text) if len(text) <= _INT_DIGITS_MAX else JsonNumber(text)


def _constant(name: str) -> NoReturn:
    raise _not_strict(f"{name} is not a number")


def check_strings(value: object) -> None:
    """Refuse a value with control characters or lone surrogates in a string (`invoice_invalid/json`)."""
    if isinstance(value, str):
        if _UNSAFE_CHAR.search(value):
            raise _not_strict(f"a string holds a control character or a lone surrogate: {ascii(value)[:60]}")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_strings(key)
            check_strings(item)
    elif isinstance(value, list):
        for item in value:
            check_strings(item)


def value_at(value: object, *keys: str) -> object:
    """The value at a path of keys; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
