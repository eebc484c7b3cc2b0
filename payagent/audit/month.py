"""A month of the ledger: balances at both ends, what changed them, spend, refusals, top-ups, and the newest seal.

Never: writes; adds amounts of two assets.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain

from payagent.audit.finding import Head
from payagent.core.ledger import HELD, WALLET, general_account
from payagent.store.db.seals import last_seal
from payagent.store.db.unit import Connection
from payagent.store.rows import journal, operator_log, payments, topups
from payagent.store.rows.journal import Selection, SpendKey, SpendRow

SPEND_BY: tuple[SpendKey, ...] = ("merchant", "app", "day", "destination")

Amount = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class MonthRecord:
    """The month from `since_ms` up to `until_ms`, UTC. `spend` is grouped by `SPEND_BY`.

    `opening` and `closing`: (account, asset, units) of the wallet, what is held, prepaid balances, channels.
    `changes`: (kind of entry, asset, units) by which wallet and held together changed. `head` covers all of it.
    `unserved`: (asset, units) of each payment of the month that was paid and not served, by asset.
    `last_entry`: the ledger's newest entry then.
    """

    since_ms: int
    until_ms: int
    opening: tuple[Amount, ...]
    closing: tuple[Amount, ...]
    changes: tuple[Amount, ...]
    spend: tuple[SpendRow, ...]
    refusals: tuple[tuple[str | None, str | None, str, int], ...]
    topups: tuple[tuple[str, str, str, str, int, int, int, int], ...]
    unserved: tuple[tuple[str, int], ...]
    head: Head
    last_entry: int


class MonthRecords:
    """Reads the records of months. It keeps each one and later adds the entries written since."""

    def __init__(self) -> None:
        self._kept: dict[str, MonthRecord] = {}

    def read(self, conn: Connection, month: str) -> MonthRecord:
        """The record of a month, such as 2026-11. `conn` must be in one read transaction."""
        since_ms, until_ms = _bounds_ms(month)
        nothing = MonthRecord(since_ms, until_ms, (), (), (), (), (), (), (), Head(0, ""), 0)
        before = self._kept.get(month, nothing)
        only = Selection(since_ms=since_ms, until_ms=until_ms)
        later = replace(only, after_id=before.last_entry)
        moved = [
            (kind, general_account(account), asset, units)
            for kind, account, asset, units in journal.moved(conn, since_ms, until_ms, before.last_entry)
        ]
        record = self._kept[month] = MonthRecord(
            since_ms=since_ms,
            until_ms=until_ms,
            opening=_added(before.opening, (row[1:] for row in moved if row[0] is None)),
            closing=_added(before.closing, (row[1:] for row in moved)),
            changes=_added(
                before.changes,
                ((kind, asset, units) for kind, name, asset, units in moved if kind and name in (WALLET, HELD)),
            ),
            spend=_spend(before.spend, journal.spend(conn, SPEND_BY, later)),
            refusals=tuple(operator_log.refusals_counted(conn, only)),
            topups=tuple(topups.counted(conn, since_ms, until_ms)),
            unserved=tuple(sorted(payments.lost(conn, since_ms, until_ms))),
            head=Head(*last_seal(conn)),
            last_entry=journal.last_id(conn),
        )
        return record


def _added(*parts: Iterable[Amount]) -> tuple[Amount, ...]:
    total: Counter[tuple[str, str]] = Counter()
    for name, asset, units in chain(*parts):
        total[name, asset] += units
    return tuple((*key, units) for key, units in sorted(total.items()) if units)


def _spend(*parts: Iterable[SpendRow]) -> tuple[SpendRow, ...]:
    total: dict[tuple[tuple[str | None, ...], str], SpendRow] = {}
    for row in chain(*parts):
        key = row.group, row.asset
        total[key] = total[key].plus(row) if key in total else row
    rows = sorted(total.values(), key=lambda row: (*(name or "" for name in row.group), row.asset))
    return tuple(row for row in rows if not row.is_empty)


def _bounds_ms(month: str) -> tuple[int, int]:
    year, number = (int(part) for part in month.split("-"))
    first = datetime(year, number, 1, tzinfo=UTC)
    after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(first.timestamp()) * 1000, int(after.timestamp()) * 1000
