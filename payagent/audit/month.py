"""A month of the ledger: balances at both ends, what changed them, spend, refusals, top-ups, and the newest seal.

Never: writes; adds amounts of two assets.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from payagent.audit.finding import Head
from payagent.core.ledger import HELD, WALLET, general_account
from payagent.store.db.seals import last_seal
from payagent.store.db.unit import Connection
from payagent.store.rows import journal, operator_log, topups
from payagent.store.rows.journal import Selection, SpendKey, SpendRow

SPEND_BY: tuple[SpendKey, ...] = ("merchant", "app", "day", "destination")

Amount = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class MonthRecord:
    """The month from `since_ms` up to `until_ms`, UTC. `spend` is grouped by `SPEND_BY`.

    `opening` and `closing`: (account, asset, units) of the wallet, of what is held, and of prepaid balances.
    `changes`: (kind of entry, asset, units) by which wallet and held together changed. `head` covers all of it.
    """

    since_ms: int
    until_ms: int
    opening: tuple[Amount, ...]
    closing: tuple[Amount, ...]
    changes: tuple[Amount, ...]
    spend: tuple[SpendRow, ...]
    refusals: tuple[tuple[str | None, str | None, str, int], ...]
    topups: tuple[tuple[str, str, str, str, int, int, int], ...]
    head: Head


def month_record(conn: Connection, month: str) -> MonthRecord:
    """The record of a month, such as 2026-11. `conn` must be in one read transaction."""
    since_ms, until_ms = _bounds_ms(month)
    only = Selection(since_ms=since_ms, until_ms=until_ms)
    return MonthRecord(
        since_ms=since_ms,
        until_ms=until_ms,
        opening=_owned(conn, since_ms),
        closing=_owned(conn, until_ms),
        changes=tuple(journal.own_changes(conn, only)),
        spend=tuple(journal.spend(conn, SPEND_BY, only)),
        refusals=tuple(operator_log.refusals_counted(conn, only)),
        topups=tuple(topups.counted(conn, since_ms, until_ms)),
        head=Head(*last_seal(conn)),
    )


def _owned(conn: Connection, until_ms: int) -> tuple[Amount, ...]:
    total: dict[tuple[str, str], int] = {}
    for name, asset, units in journal.balances(conn, Selection(until_ms=until_ms)):
        account = general_account(name)
        if account in (WALLET, HELD) or account.startswith("prepaid:"):
            total[account, asset] = total.get((account, asset), 0) + units
    return tuple((account, asset, units) for (account, asset), units in sorted(total.items()))


def _bounds_ms(month: str) -> tuple[int, int]:
    year, number = (int(part) for part in month.split("-"))
    first = datetime(year, number, 1, tzinfo=UTC)
    after = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(first.timestamp()) * 1000, int(after.timestamp()) * 1000
