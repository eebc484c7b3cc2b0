"""The results of an audit: a finding, its progress, and the newest seal.

May import: the standard library, core.problems. Never: I/O.
"""

import re
from dataclasses import dataclass

from payagent.core.problems import Refused

_HEAD = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """A fault, and the table and row where it shows."""

    table: str
    row: str
    what: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How many rows of a table have been checked (or payments, with all their rows)."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Head:
    """The newest seal, which covers everything before it."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def parse_head(text: str) -> Head:
    """Parse `seq:hash`, the form that `verify` prints. Refused: `bad_request`."""
    match = _HEAD.fullmatch(text)
    if match is None:
        raise Refused("bad_request", "a head is the number and the hash of a seal, as verify told it", key="head")
    return Head(int(match[1]), match[2])


def numbers(first: int, last: int) -> str:
    """A range of row numbers, as text."""
    return f"{first}" if first == last else f"{first} to {last}"
