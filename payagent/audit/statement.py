"""The ledger over a period: opening balances, every entry, and closing balances.

Never: holds more than one entry in memory; depends on a format.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from payagent.store.db.unit import Connection
from payagent.store.rows import journal
from payagent.store.rows.journal import EntryRow, Selection

Balance = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class StatementEntry:
    """An entry, with its payment's merchant, app id and app name."""

    row: EntryRow
    origin: str | None
    app_id: str | None
    app: str | None


@dataclass(frozen=True, slots=True)
class Statement:
    """The ledger over a period. `closing` has every account with an entry up to the end, even with a zero balance.

    `first_ms` and `last_ms` are the times of its first and last content; None if it is empty.
    """

    network: str
    only: Selection
    opening: tuple[Balance, ...]
    closing: tuple[Balance, ...]
    first_ms: int | None
    last_ms: int | None
    entries: Iterator[StatementEntry]


def statement(conn: Connection, only: Selection, network: str) -> Statement:
    """The statement of a selection. Its entries are read lazily, so `conn` must be in one read transaction."""
    times_ms = [ms for ms in (only.since_ms, *journal.bounds_ms(conn, only)) if ms is not None]
    opening: list[Balance] = []
    if only.since_ms is not None:
        opening = journal.balances(conn, replace(only, since_ms=None, until_ms=only.since_ms))
    return Statement(
        network=network,
        only=only,
        opening=tuple(opening),
        closing=tuple(journal.turnover(conn, replace(only, since_ms=None))),
        first_ms=min(times_ms, default=None),
        last_ms=max(times_ms, default=None),
        entries=(StatementEntry(*booked) for booked in journal.booked(conn, only)),
    )
