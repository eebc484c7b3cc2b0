"""Adds a member to an object in a JSON text or removes one, and leaves every other byte as it is.

The text must be valid JSON, and `at` is where its object opens.
Never: I/O; formats what it does not add.
"""

import json
import re

Member = tuple[str, int, int]
"""A member's name, where its value begins, and where it ends."""

_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def members(text: str, at: int) -> list[Member]:
    """The object's members in order."""
    found = []
    at = _skip_blank(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        value = _skip_blank(text, text.index(":", at) + 1)
        _, end = _DECODER.raw_decode(text, value)
        found.append((name, value, end))
        at = _skip_blank(text, end)
        if text[at] == ",":
            at = _skip_blank(text, at + 1)
    return found


def with_member(text: str, at: int, name: str, value: str) -> str:
    """The text with one more member, behind the last one and indented like the first. `value` is JSON."""
    there = members(text, at)
    end = there[-1][2] if there else at + 1
    blank = text[at + 1 : _skip_blank(text, at + 1)] if there else ""
    return f"{text[:end]}{',' * bool(there)}{blank or ' '}{json.dumps(name)}: {value}{text[end:]}"


def without_member(text: str, at: int, name: str) -> str:
    """The text without the last member of this name and its comma: undoes `with_member`."""
    there = members(text, at)
    place = max(index for index, member in enumerate(there) if member[0] == name)
    start = there[place - 1][2] if place else at + 1
    end = there[place][2] if place or len(there) == 1 else text.index(",", there[0][2]) + 1
    return text[:start] + text[end:]


def _skip_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at
