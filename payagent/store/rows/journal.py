"""Double entry: entries and their postings, account balances, and spend, in total or for a selection.

store.audit.books has the row-by-row reads of an audit.
Never: writes.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple

from payagent.store.db.sql import number, sums, whole
from payagent.store.db.tables import APP_OF_PROMISE, CHANNEL_OF_ENTRY, IS_OURS, IS_SPEND

_SUMS = sums("units")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries to read; None does not filter. The period includes `since_ms` and excludes `until_ms`.

    `origin`, `app` (id or name) and `state` are those of the entry's payment. For a use of a prepaid balance or of
    a channel they are its merchant and the app that made the request. `asset` filters postings. `text` is a
    case-insensitive part of the entry's or payment's names (`_NAMES`). `after_id`: entries that were written later
    than this one.
    """

    since_ms: int | None = None
    until_ms: int | None = None
    origin: str | None = None
    app: str | None = None
    asset: str | None = None
    kind: str | None = None
    state: str | None = None
    text: str | None = None
    after_id: int | None = None


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class SpendRow:
    """Spend in one asset: to merchants (prepaid included), on fees, and in transfers by the operator.

    `payments`: how many payments spent it, without those that a rollback reversed.
    """

    group: tuple[str | None, ...]
    asset: str
    paid: int
    fees: int
    sent: int
    payments: int

    @property
    def total(self) -> int:
        return self.paid + self.fees + self.sent

    @property
    def is_empty(self) -> bool:
        return not (self.paid or self.fees or self.sent or self.payments)

    def plus(self, other: "SpendRow") -> "SpendRow":
        """The sum with another row of the same group and asset."""
        names = ("paid", "fees", "sent", "payments")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})


class EntryRow(NamedTuple):
    """An entry with its postings. `origin` and `app` (its name): only as `entries_page` reads it."""

    id: int
    kind: str
    payment_id: str | None
    ref: str | None
    at_ms: int
    postings: tuple[tuple[str, str, int], ...]
    origin: str | None = None
    app: str | None = None


_APP_OF_MOVE = (
    "(SELECT COALESCE(m.app_id, b.app_id) FROM prepaid_moves m LEFT JOIN payments b ON b.id = m.payment_id "
    "WHERE m.entry_id = j.id)"
)
"""SQL: the app of a prepaid use, whose entry has no payment: the one that made the request or the purchase."""

_ENTRIES = (
    "entries j LEFT JOIN payments p ON p.id = j.payment_id LEFT JOIN invoices v ON v.seq = p.invoice_seq "
    f"LEFT JOIN prepaid_pools o ON o.id = j.pool_id {CHANNEL_OF_ENTRY} LEFT JOIN intents i ON i.id = p.intent_id "
    f"LEFT JOIN apps a ON a.id = COALESCE(p.app_id, {_APP_OF_MOVE}, {APP_OF_PROMISE})"
)
_ORIGIN = "COALESCE(v.origin, o.origin, k.origin, NULLIF(i.origin, ''))"
"""SQL: an entry's merchant. A transfer that changes a channel has it in its intent."""
_NAMES = (
    *(
        "j.kind",
        "j.ref",
        "p.id",
        "p.tx_id",
        "p.code",
        "p.reason",
        "p.detail",
        "v.origin",
        "o.origin",
        "v.invoice_id",
        "i.request",
    ),
)
_CONTAINS = (
    "EXISTS (SELECT 1 FROM (SELECT lower(?) AS part) s WHERE instr(lower("  # noqa: S608  our own names
    + " || '\n' || ".join(f"COALESCE({name}, '')" for name in _NAMES)
    + "), s.part) > 0 OR EXISTS "
    "(SELECT 1 FROM postings t WHERE t.entry_id = j.id AND instr(lower(t.account), s.part) > 0))"
)


_POSTS = "EXISTS (SELECT 1 FROM postings q WHERE q.entry_id = j.id AND q.{} = ?)"


def _chosen(only: Selection) -> dict[str, object]:
    """SQL clauses on `_ENTRIES` with their values. The caller adds `asset`, which filters postings."""
    return {
        "j.at_ms >= ?": only.since_ms,
        "j.at_ms < ?": only.until_ms,
        f"{_ORIGIN} = ?": only.origin,
        "? IN (a.id, a.name)": only.app,
        "j.kind = ?": only.kind,
        "p.state = ?": only.state,
        _CONTAINS: only.text,
        "j.id > ?": only.after_id,
    }


def _where(clauses: Mapping[str, object]) -> tuple[str, list[object]]:
    used = {clause: value for clause, value in clauses.items() if value is not None}
    return (" WHERE " + " AND ".join(used) if used else ""), list(used.values())


SpendKey = Literal["merchant", "app", "path", "destination", "hour", "day", "week", "month"]
_PATH_ON = "substr(i.request, instr(i.request, ' ') + 1)"
_SPEND_KEYS: Mapping[SpendKey, str] = {
    "merchant": _ORIGIN,
    "app": "a.name",
    "path": f"substr({_PATH_ON}, 1, instr(replace({_PATH_ON}, '?', ' '), ' ') - 1)",
    "destination": "CASE WHEN p.kind IN ('send', 'sweep') AND p.outputs -> 0 ->> 'role' = 'pay_to' "
    "THEN p.outputs -> 0 ->> 'address' END",
    "hour": "strftime('%Y-%m-%dT%H:00Z', j.at_ms / 1000, 'unixepoch')",
    "day": "strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch')",
    "week": "strftime('%Y-%m-%d', (j.at_ms / 86400000 - (j.at_ms / 86400000 + 3) % 7) * 86400, 'unixepoch')",
    "month": "strftime('%Y-%m', j.at_ms / 1000, 'unixepoch')",
}
"""SQL of each key. A path is without its query; a week is its Monday; only a transfer out has a destination."""

_SPEND_PARTS = ", ".join(
    f"CAST(COALESCE(SUM(q.units) FILTER (WHERE q.account {test}), 0) AS BIGINT) AS {part}"
    for part, test in (("paid", "NOT IN ('fees', 'external')"), ("fees", "= 'fees'"), ("sent", "= 'external'"))
)


_TIMES = "CASE j.kind WHEN 'post_reversed' THEN -1 WHEN 'use_reversed' THEN 0 ELSE 1 END AS times"


def balances(conn: sqlite3.Connection, only: Selection = EVERYTHING) -> list[tuple[str, str, int]]:
    """(account, asset, units) of every account with a balance, from the selected entries."""
    return [row for row in turnover(conn, only) if row[2]]


def turnover(conn: sqlite3.Connection, only: Selection) -> list[tuple[str, str, int]]:
    """Like `balances`, with accounts whose balance is zero again."""
    if replace(only, asset=None) != EVERYTHING:
        return added_up(conn, only)
    where, values = _where({"asset = ?": only.asset})
    rows = conn.execute(
        f"SELECT account, asset, units_high, units_low FROM balances{where} ORDER BY account, asset",  # noqa: S608  our own names
        values,
    )
    return [(account, asset, whole(high, low)) for account, asset, high, low in rows]


def added_up(conn: sqlite3.Connection, only: Selection = EVERYTHING) -> list[tuple[str, str, int]]:
    """Like `turnover`, but summed from the postings themselves, even without a selection."""
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    # CROSS: entries before their postings, so the conditions on an entry run once, not once per posting
    source = "postings q" if only == EVERYTHING else f"{_ENTRIES} CROSS JOIN postings q ON q.entry_id = j.id"
    rows = conn.execute(
        f"SELECT q.account, q.asset, {_SUMS} FROM {source}{where} "  # noqa: S608  our own names
        "GROUP BY q.account, q.asset ORDER BY q.account, q.asset",
        values,
    )
    return [(account, asset, whole(high, low)) for account, asset, high, low in rows]


def moved(
    conn: sqlite3.Connection, since_ms: int, until_ms: int, after_id: int
) -> list[tuple[str | None, str, str, int]]:
    """(kind of entry, account, asset, units) of the wallet, what is held, prepaid balances, and channels.

    Of the entries after `after_id` and before `until_ms`. Kind None: all of them before `since_ms`.
    """
    rows = conn.execute(
        f"SELECT CASE WHEN j.at_ms >= ? THEN j.kind END AS moved_by, q.account, q.asset, {_SUMS} "  # noqa: S608  our own names
        f"FROM entries j CROSS JOIN postings q ON q.entry_id = j.id AND ({IS_OURS} OR q.account LIKE 'prepaid:%' "
        "OR q.account LIKE 'channel:%') "
        "WHERE j.at_ms < ? AND j.id > ? GROUP BY moved_by, q.account, q.asset",
        (since_ms, until_ms, after_id),
    )
    return [(kind, account, asset, whole(high, low)) for kind, account, asset, high, low in rows]


def entries_page(
    conn: sqlite3.Connection,
    *,
    payment_id: str | None,
    account: str | None,
    before_id: int | None,
    limit: int,
    only: Selection = EVERYTHING,
) -> list[EntryRow]:
    """Entries, newest first. `only.asset` selects entries; each is returned with all its postings."""
    where, values = _where(
        _chosen(only)
        | {
            "j.payment_id = ?": payment_id,
            _POSTS.format("account"): account,
            _POSTS.format("asset"): only.asset,
            "j.id < ?": before_id,
        }
    )
    heads = conn.execute(
        f"SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, {_ORIGIN}, a.name "  # noqa: S608
        f"FROM {_ENTRIES}{where} ORDER BY j.id DESC LIMIT ?",
        (*values, limit),
    ).fetchall()
    return [_entry(conn, head) for head in heads]


def spend(conn: sqlite3.Connection, by: Sequence[SpendKey], only: Selection) -> list[SpendRow]:
    """Spend by group and asset, without empty rows. Each entry is in one group, so the groups add up.

    Spend is what one of our transactions on the chain moved out: the posts of payments and the fees of cancels,
    minus reversals. Of a channel it is what its vouchers promise.
    """
    keys = [f"MIN({_SPEND_KEYS[key]}) AS key{place}" for place, key in enumerate(by)]
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    columns = ", ".join([*keys, "q.asset AS asset", _SPEND_PARTS, _TIMES])
    entries = (
        f"SELECT {columns} FROM {_ENTRIES} CROSS JOIN postings q ON q.entry_id = j.id AND {IS_SPEND}"  # noqa: S608
        f"{where} GROUP BY j.id, q.asset"
    )
    names = [*(f"key{place}" for place in range(len(keys))), "asset"]
    group, order = ", ".join(names), ", ".join(f"{name} NULLS FIRST" for name in names)
    parts = ", ".join(sums(part) for part in ("paid", "fees", "sent"))
    rows = conn.execute(
        f"SELECT {group}, {parts}, SUM(times) FROM ({entries}) spent GROUP BY {group} ORDER BY {order}",  # noqa: S608
        values,
    )
    spend_rows = (_spend_row(row[: len(keys)], *row[len(keys) :]) for row in rows)
    return [row for row in spend_rows if not row.is_empty]


def left_wallet(conn: sqlite3.Connection, payment_id: str) -> dict[str, int]:
    """What a payment takes from the wallet, per asset and with its fee: what it holds, and then what was posted.

    Empty if nothing is held and nothing was posted.
    """
    rows = conn.execute(
        "SELECT q.asset, -SUM(q.units) FROM entries j JOIN postings q ON q.entry_id = j.id "
        "WHERE j.payment_id = ? AND (q.account = 'wallet' OR q.account LIKE 'wallet/%') "
        "GROUP BY q.asset HAVING SUM(q.units) <> 0 ORDER BY q.asset",
        (payment_id,),
    )
    return dict(rows.fetchall())


def last_id(conn: sqlite3.Connection) -> int:
    """The number of the newest entry; 0 if there is none."""
    return number(conn, "SELECT COALESCE(MAX(id), 0) FROM entries")


def _spend_row(group: tuple[str | None, ...], asset: str, *numbers: int) -> SpendRow:
    *halves, payments = numbers
    paid, fees, sent = (whole(*halves[place : place + 2]) for place in (0, 2, 4))
    return SpendRow(group, asset, paid, fees, sent, payments)


def bounds_ms(conn: sqlite3.Connection, only: Selection) -> tuple[int | None, int | None]:
    """When the first and the last of the selected entries were written; None if there are none."""
    where, values = _where(_chosen(only) | {_POSTS.format("asset"): only.asset})
    row = conn.execute(f"SELECT MIN(j.at_ms), MAX(j.at_ms) FROM {_ENTRIES}{where}", values).fetchone()  # noqa: S608
    return row[0], row[1]


def booked(
    conn: sqlite3.Connection, only: Selection
) -> Iterator[tuple[EntryRow, str | None, str | None, str | None]]:
    """The selected entries, oldest first and row by row: (entry, merchant's origin, app id, app name)."""
    where, values = _where(_chosen(only) | {"q.asset = ?": only.asset})
    rows = conn.execute(
        f"SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, {_ORIGIN}, a.id, a.name, "  # noqa: S608
        "q.account, q.asset, q.units "
        f"FROM {_ENTRIES} JOIN postings q ON q.entry_id = j.id{where} ORDER BY j.id, q.seq",
        values,
    )
    for (entry_id, kind, payment_id, ref, at_ms, *whose), lines in groupby(rows, key=lambda row: row[:8]):
        postings = tuple(line[8:] for line in lines)
        origin, app_id, app = whose
        yield EntryRow(entry_id, kind, payment_id, ref, at_ms, postings), origin, app_id, app


def _entry(conn: sqlite3.Connection, head: tuple[Any, ...]) -> EntryRow:
    number, kind, payment_id, ref, at_ms, origin, app = head
    return EntryRow(number, kind, payment_id, ref, at_ms, postings(conn, number), origin, app)


def postings(conn: sqlite3.Connection, entry_id: int | None) -> tuple[tuple[str, str, int], ...]:
    """(account, asset, units) of each posting; empty without an entry."""
    return tuple(
        conn.execute(
            "SELECT account, asset, units FROM postings WHERE entry_id = ? ORDER BY seq", (entry_id,)
        ).fetchall()
    )
