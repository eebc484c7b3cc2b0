"""Runs a check over rows whose columns may hold any value; a value that the check cannot read becomes a finding.

May import: audit.finding, store.db. Never: reports an unreadable file as wrong rows.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from payagent.audit.finding import AuditFinding
from payagent.store.db.opening import DatabaseError, is_no_text

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
    if isinstance(error, DatabaseError) and not is_no_text(error):
        raise error
    return AuditFinding(table, row, f"it cannot be read to its end: {type(error).__name__}: {error}")
