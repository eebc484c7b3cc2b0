"""What an audit tells: a finding, how far it is, and where the chain of seals ends.

May import: the standard library, core.problems. Never: I/O.
"""

import re
from dataclasses import dataclass

from payagent.core.problems import Refused

_HEAD = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """What is wrong, and in which row of which table it shows."""

    table: str
    row: str
    what: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How many rows of a table (or payments with all that belongs to them) have been looked at."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Head:
    """The newest seal, which everything up to it follows from."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def parse_head(text: str) -> Head:
    """As it was told; else `bad_request`."""
    match = _HEAD.fullmatch(text)
    if match is None:
        raise Refused("bad_request", "a head is the number and the hash of a seal, as verify told it", key="head")
    return Head(int(match[1]), match[2])


def numbers(first: int, last: int) -> str:
    """Rows by their numbers."""
    return f"{first}" if first == last else f"{first} to {last}"
