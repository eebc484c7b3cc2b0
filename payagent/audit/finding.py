"""The results of an audit: a finding, its progress, and the newest seal.

A value that a check cannot read becomes a finding too.
Never: reports an unreadable file as wrong rows.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError, is_undecodable_text

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
        raise Refused(
            "bad_request", "a head is a seal's number and hash, as `ledger verify` prints it", key="head"
        )
    return Head(int(match[1]), match[2])


def numbers(first: int, last: int) -> str:
    """A range of row numbers, as text."""
    return f"{first}" if first == last else f"{first} to {last}"


def each_of(table: str, rows: Iterable[object], row: str, what: str) -> Iterator[AuditFinding]:
    """A finding for each of the rows, whose values are filled into `row` and `what`."""
    for one in rows:
        values = ["any" if value in (None, "") else value for value in (one if isinstance(one, tuple) else (one,))]
        yield AuditFinding(table, row.format(*values), what.format(*values))


def each_differing(table: str, rows: Iterable[tuple[object, object, object]], what: str) -> Iterator[AuditFinding]:
    """A finding for each row whose stored value is not the one that follows from the events.

    `rows` has a row's number and both values, which are filled into `what`.
    """
    for row, stored, by_events in rows:
        if stored != by_events:
            yield AuditFinding(table, str(row), what.format(stored, by_events))


T = TypeVar("T")

UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""Errors from reading a value that is not in the form that we write."""


def to_the_end(table: str, check: Iterable[T], row: str = "-") -> Iterator[T | AuditFinding]:
    """The results of a check. An unreadable value ends this check with a finding; other checks go on."""
    try:
        yield from check
    except (*UNREADABLE, DatabaseError) as error:
        yield unreadable(table, row, error)


def unreadable(table: str, row: str, error: Exception) -> AuditFinding:
    """A finding for the error that ended a check. Raises the error again if it is about the file or our SQL."""
    if isinstance(error, DatabaseError) and not is_undecodable_text(error):
        raise error
    return AuditFinding(table, row, f"it cannot be read to its end: {type(error).__name__}: {error}")
