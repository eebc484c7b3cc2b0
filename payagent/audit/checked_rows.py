"""A check of rows that may hold anything, whatever their columns say: where it cannot go on, that is a finding.

May import: audit.finding, store.db. Never: takes a file that cannot be read for rows that are wrong.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from payagent.audit.finding import AuditFinding
from payagent.store.db.opening import DatabaseError, is_no_text

T = TypeVar("T")

UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What reading a value raises that is not of the form that we write."""


def to_the_end(table: str, check: Iterable[T], row: str = "-") -> Iterator[T | AuditFinding]:
    """What a check tells. Where it meets a value that no column of ours holds it ends, and the others go on."""
    try:
        yield from check
    except (*UNREADABLE, DatabaseError) as error:
        yield unreadable(table, row, error)


def unreadable(table: str, row: str, error: Exception) -> AuditFinding:
    """What ended a check. Raised again when it is the file, or our SQL."""
    if isinstance(error, DatabaseError) and not is_no_text(error):
        raise error
    return AuditFinding(table, row, f"it cannot be read to its end: {type(error).__name__}: {error}")
