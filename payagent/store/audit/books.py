"""Reads the ledger row by row for an audit: everything but payments (`payment_records`) and limits (`recount`).

Rows are tuples, the fastest values that Python can make.
Never: writes; judges; holds a whole table in memory.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from payagent.core.ledger import add
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, POSTED
from payagent.store.audit.payment_records import value_of
from payagent.store.db.seals import row_text
from payagent.store.db.sql import find_each, find_one, places, sql_list
from payagent.store.db.triggers import KEPT, TRIGGERS
from payagent.store.rows.journal import EntryRow

REFERRING = (*sorted(KEPT), "reservations", "channel_calls", "channel_steps")
"""The tables of record, whose rows are never deleted, and others whose rows name a payment or a channel."""


class Seal(NamedTuple):
    """The seal over the rows that one commit added (store.db.seals). Each payment has several."""

    seq: int
    what: str
    marks: bytes
    hash: str


def path_of(conn: sqlite3.Connection) -> Path | None:
    """The file that a connection reads; None for an in-memory database."""
    (_, _, name), *_ = conn.execute("PRAGMA database_list").fetchall()
    return Path(name) if name else None


def unpaid_ends(conn: sqlite3.Connection) -> Iterator[int]:
    """Row numbers of intents that ended without a payment."""
    return find_each(
        conn,
        int,
        "SELECT rowid FROM intents i WHERE ended_at_ms IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM payments WHERE intent_id = i.id) "
        "AND NOT EXISTS (SELECT 1 FROM channel_calls WHERE intent_id = i.id)",
    )


def entries_of_no_payment(conn: sqlite3.Connection) -> Iterator[EntryRow]:
    """Every entry that names no payment, in order."""
    rows = conn.execute(
        "SELECT j.id, j.kind, j.payment_id, j.ref, j.at_ms, q.account, q.asset, q.units FROM entries j "
        "LEFT JOIN postings q ON q.entry_id = j.id WHERE j.payment_id IS NULL ORDER BY j.id, q.seq"
    )
    for (number, kind, owner, ref, at_ms), lines in groupby(rows, key=itemgetter(0, 1, 2, 3, 4)):
        yield EntryRow(number, kind, owner, ref, at_ms, tuple(line[5:] for line in lines if line[5] is not None))


def row_texts(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int, bytes]]:
    """(row number, the bytes that are sealed) for every row, in order."""
    return conn.execute(f"SELECT rowid, {row_text(conn, table)} FROM {table} ORDER BY rowid")  # noqa: S608


def seals(conn: sqlite3.Connection) -> Iterator[Seal]:
    """Every seal, in order."""
    return map(Seal._make, conn.execute("SELECT seq, what, marks, hash FROM seals ORDER BY seq"))


def event_texts(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str, bytes]]:
    """(seq, prev_hash, hash, the bytes that the hash covers) for every event, in order."""
    return conn.execute(
        "SELECT seq, prev_hash, hash, CAST(json_array(prev_hash, seq, payment_id, event, state, detail, at_ms) AS "
        "BLOB) FROM events ORDER BY seq"
    )


def unposted(conn: sqlite3.Connection) -> Iterator[int]:
    """Ids of entries without a posting."""
    return find_each(
        conn, int, "SELECT id FROM entries j WHERE NOT EXISTS (SELECT 1 FROM postings WHERE entry_id = j.id)"
    )


def other_triggers(conn: sqlite3.Connection) -> Iterator[str]:
    """Names of triggers that are not among our guards."""
    ours = {trigger.name for trigger in TRIGGERS}
    rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
    return (name for (name,) in rows if name not in ours)


def broken_references(conn: sqlite3.Connection, table: str) -> Iterator[tuple[int | None, str]]:
    """(row number, referenced table) for every row whose referenced row does not exist."""
    return ((number, parent) for _, number, parent, _ in conn.execute(f"PRAGMA foreign_key_check({table})"))


def unmoved(conn: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """(entry, number of prepaid moves) for every `use` or `use_reversed` entry that books not one move.

    One that names a channel books none.
    """
    return conn.execute(
        "SELECT j.id, COUNT(m.seq) FROM entries j LEFT JOIN prepaid_moves m ON m.entry_id = j.id "
        "WHERE j.kind IN ('use', 'use_reversed') GROUP BY j.id "
        "HAVING COUNT(m.seq) <> CASE WHEN j.ref IN (SELECT id FROM channels) THEN 0 ELSE 1 END"
    )


def channel_sums(conn: sqlite3.Connection) -> Iterator[tuple[str, int, int, int, int, int]]:
    """(channel, promised, charged, used, locked, under way) of every channel, in units of its asset.

    Promised and charged by its calls, used by the entries of its promises, locked by those of the payments that
    change it. Under way: how many of these payments the channel has yet to take into account.
    """
    total, lines = "SELECT CAST(COALESCE(SUM({}), 0) AS BIGINT)", "JOIN postings q ON q.entry_id = j.id"
    return conn.execute(
        f"SELECT c.id, ({total.format('promised')} FROM channel_calls WHERE channel_id = c.id), "  # noqa: S608
        f"({total.format('charged')} FROM channel_calls WHERE channel_id = c.id), "
        f"({total.format('q.units')} FROM entries j {lines} WHERE j.kind IN ('use', 'use_reversed') "
        "AND j.ref = c.id AND q.account = 'merchant:' || c.origin AND q.asset = c.asset), "
        f"({total.format('q.units')} FROM channel_steps s JOIN entries j ON j.payment_id = s.payment_id {lines} "
        "WHERE s.channel_id = c.id AND q.account = 'channel:' || c.origin AND q.asset = c.asset), "
        "(SELECT COUNT(*) FROM channel_steps s JOIN payments p ON p.id = s.payment_id WHERE s.channel_id = c.id "
        f"AND s.step <> 'close' AND NOT (s.is_booked = 0 AND p.state IN {sql_list(*ENDED_WITHOUT_PAYING)}) "
        f"AND NOT (s.is_booked = 1 AND p.state IN {sql_list(*POSTED)})) "
        "FROM channels c ORDER BY c.seq"
    )


def deposited(conn: sqlite3.Connection, ref: str) -> tuple[dict[str, int] | None, int | None, bool]:
    """The value and the account of a deposit's UTxO, if known, and whether the deposit was ever reversed."""
    row = conn.execute(
        "SELECT lovelace, assets, account FROM utxos WHERE ref = ? AND source = 'deposit'", (ref,)
    ).fetchone()
    if row is not None:
        return value_of(*row[:2]), row[2], False
    reversal = conn.execute(
        "SELECT 1 FROM entries WHERE payment_id IS NULL AND kind = 'deposit_reversed' AND ref = ?", (ref,)
    ).fetchone()
    return None, None, reversal is not None


def wallet_events(conn: sqlite3.Connection, names: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """(event, detail, at_ms) of the wallet's own events with these names, in order."""
    listed = list(names)
    return conn.execute(
        "SELECT event, detail, at_ms FROM events WHERE payment_id IS NULL "  # noqa: S608  placeholders
        f"AND event IN ({places(len(listed))}) ORDER BY seq",
        listed,
    )


EVENT_TABLES: Mapping[str, str] = {
    "address_pins": "SELECT origin, role, address FROM address_pins",
    "agreed_prices": "SELECT origin, method, path, asset, calls, units FROM agreed_prices",
    "apps": "SELECT id, name, scopes, merchants, assets, created_at_ms FROM apps ORDER BY rowid",
    "limits": 'SELECT app, merchant, asset, "window", most_units FROM limits ORDER BY 1, 2, 3, 4',
    "merchants": "SELECT name, origin, settings FROM merchants ORDER BY name",
    "readiness": "SELECT origin, accepted_depth, refused_early FROM readiness",
    "tokens": "SELECT app_id, created_at_ms, expires_at_ms, revoked_at_ms FROM tokens ORDER BY rowid",
    "unserved_streaks": "SELECT origin, count, stopped_at_ms FROM unserved_streaks",
}
"""The tables whose rows follow from the wallet's events: the columns of the key, then the others."""


def rows_of(conn: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Every row of one of `EVENT_TABLES`."""
    return conn.execute(EVENT_TABLES[table])


# a UTxO counts from the moment its transaction is booked until the transaction that spends it is booked
_BOOKED = """EXISTS (SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id AND p.tx_id = a.tx_id
             WHERE a.tx_id = c.{} AND a.account = c.account AND p.state IN ('confirmed', 'settled', 'void'))"""

_EXTERNAL_SPENDS = """EXISTS (SELECT 1 FROM external_spends f WHERE f.tx_id = c.spent_by AND f.is_on_chain = 1
                     AND f.account = c.account AND instr(' ' || f.inputs || ' ', ' ' || c.ref || ' ') > 0)"""

_UTXO_COUNTS = f"""
SELECT c.ref, c.lovelace, c.assets,
       CAST((c.source = 'deposit' AND c.state <> 'rolled_back') OR {_BOOKED.format("tx_id")} AS INTEGER)
         - CAST(c.spent_by IS NOT NULL AND ({_BOOKED.format("spent_by")} OR {_EXTERNAL_SPENDS}) AS INTEGER),
       c.source = 'deposit' AND NOT c.ref IN (SELECT ref FROM entries WHERE kind = 'deposit'),
       c.spent_by IS NOT NULL AND NOT EXISTS (SELECT 1 FROM attempts a
                                              WHERE a.tx_id = c.spent_by AND a.account = c.account
                                              AND instr(' ' || a.inputs || ' ', ' ' || c.ref || ' ') > 0)
         AND NOT {_EXTERNAL_SPENDS},
       c.ref <> c.tx_id || '#' || c.output_index
         OR (c.source = 'change' AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.tx_id = c.tx_id
                                                               AND a.account = c.account)),
       c.state = 'pending' AND c.ref NOT IN (SELECT ref FROM reservations)
         AND EXISTS (SELECT 1 FROM attempts a JOIN payments p ON p.id = a.payment_id
                     WHERE a.tx_id = c.tx_id AND (p.state = 'void' AND p.code = 'deposit_rolled_back'
                                                  OR p.state = 'settled' AND p.tx_id <> c.tx_id))
FROM utxos c ORDER BY c.rowid
"""  # noqa: S608  our own names


class UtxoCount(NamedTuple):
    """A UTxO as the entries count it.

    `times` is 1 or 0; it is -1 for a UTxO that a booked transaction spends although the UTxO itself is not booked.
    """

    ref: str
    value: Mapping[str, int]
    times: int
    is_unbooked: bool
    is_spent_by_nothing: bool
    is_made_by_nothing: bool
    can_never_be: bool


def utxo_counts(conn: sqlite3.Connection) -> Iterator[UtxoCount]:
    """Every UTxO that the ledger ever held."""
    for ref, lovelace, assets, times, *wrong in conn.execute(_UTXO_COUNTS):
        yield UtxoCount(ref, value_of(lovelace, assets), times, *map(bool, wrong))


class MoveRow(NamedTuple):
    """One change of a prepaid balance; `entry_id` is the entry that books the use."""

    seq: int
    pool_id: int
    unit: str
    kind: str
    bought: int
    used: int
    unexplained: int
    payment_id: str | None
    entry_id: int | None


def prepaid_moves(conn: sqlite3.Connection) -> Iterator[MoveRow]:
    """Every prepaid move, oldest first."""
    return find_each(
        conn,
        MoveRow,
        "SELECT seq, pool_id, unit, kind, bought, used, unexplained, payment_id, entry_id FROM prepaid_moves "
        "ORDER BY seq",
    )


def bought_by(conn: sqlite3.Connection, move: MoveRow) -> int | None:
    """The entry that posted the payment behind a `buy` move, or behind the `buy` that a `take_back` reverses.

    The n-th `buy` of a payment belongs to its n-th `post`. A payment is posted again when a fork brings back its
    block or puts another of its attempts in a block.
    """
    return find_one(
        conn,
        int,
        "SELECT id FROM entries WHERE payment_id = ?1 AND kind = 'post' ORDER BY id LIMIT 1 OFFSET "
        "(SELECT CASE WHEN COUNT(*) > 0 THEN COUNT(*) - 1 ELSE 0 END FROM prepaid_moves "
        "WHERE payment_id = ?1 AND kind = 'buy' AND seq <= ?2)",
        (move.payment_id, move.seq),
    )


_READABLE_EVENTS = (
    "(SELECT seq, payment_id, event, at_ms, CASE WHEN json_valid(detail) THEN detail ELSE '{}' END AS detail "
    "FROM events)"
)
"""SQL: events with a detail that JSON functions can read. SQLite aborts the query on a detail that is not JSON."""
_REASONS = "detail ->> 'code', detail ->> 'reason', detail ->> 'detail'"


def topup_ends(conn: sqlite3.Connection) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """(row number, stop and end as in the row, stop and end as in the events) of every top-up.

    Each side is (stop code, reason, detail, end time, end on the limits' clock, code, reason, detail); None where
    nothing is recorded.
    """
    stops = {
        topup_id: reasons
        for topup_id, *reasons in conn.execute(
            f"SELECT detail ->> 'topup', {_REASONS} FROM {_READABLE_EVENTS} e "  # noqa: S608  our own names
            "WHERE payment_id IS NULL AND event = 'topup_stopped'"
        )
    }
    ends = {
        topup_id: (at_ms, *ended)
        for at_ms, topup_id, *ended in conn.execute(
            f"SELECT at_ms, detail ->> 'topup', CAST(detail ->> 'clock_ms' AS BIGINT), {_REASONS} "  # noqa: S608
            f"FROM {_READABLE_EVENTS} e WHERE payment_id IS NULL AND event = 'topup_ended'"
        )
    }
    for number, topup_id, *stored in conn.execute(
        "SELECT seq, id, stop_code, stop_reason, stop_detail, ended_at_ms, ended_clock_ms, code, reason, detail "
        "FROM topups ORDER BY seq"
    ):
        by_events = (*stops.get(topup_id, (None,) * 3), *ends.get(topup_id, (None,) * 5))
        yield number, tuple(stored), by_events


def homes(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str | None]]:
    """(row number, account, account by the last event `home_set`) of every home."""
    return conn.execute(
        "SELECT h.rowid, CAST(h.account AS TEXT), (SELECT detail ->> 'account' "  # noqa: S608  our own names
        f"FROM {_READABLE_EVENTS} e WHERE payment_id IS NULL AND event = 'home_set' "
        "AND detail ->> 'origin' = h.origin AND detail ->> 'partner' = h.partner ORDER BY seq DESC LIMIT 1) "
        "FROM homes h ORDER BY h.rowid"
    )


def request_ends(conn: sqlite3.Connection) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """(row number, time and outcome as in the row, as in the event `request_ended`) of every admission request."""
    rows = conn.execute(
        "SELECT r.rowid, r.ended_at_ms, r.outcome, e.at_ms, e.detail ->> 'outcome' "  # noqa: S608  our own names
        f"FROM admission_requests r LEFT JOIN {_READABLE_EVENTS} e ON e.payment_id IS NULL "
        "AND e.event = 'request_ended' AND e.detail ->> 'request' = r.id ORDER BY r.rowid"
    )
    return ((number, (ended_at_ms, outcome), tuple(by_event)) for number, ended_at_ms, outcome, *by_event in rows)


def external_spend_sums(conn: sqlite3.Connection) -> Iterator[tuple[int, str, bool, int, dict[str, int]]]:
    """(row number, tx id, whether it is on chain, account, value of the spent UTxOs) for every observation of an
    external spend.

    The value comes from the UTxO rows if all of them still exist, otherwise from the observation itself.
    """
    rows = conn.execute(
        "SELECT seq, tx_id, is_on_chain, account, inputs, spent FROM external_spends ORDER BY seq"
    ).fetchall()
    for number, tx_id, is_on_chain, account, inputs, spent in rows:
        refs = inputs.split(" ")
        utxos = conn.execute(
            f"SELECT lovelace, assets FROM utxos WHERE ref IN ({','.join('?' * len(refs))})",  # noqa: S608
            refs,
        ).fetchall()
        value = add(value_of(*utxo) for utxo in utxos) if len(utxos) == len(refs) else _units(spent)
        yield number, tx_id, bool(is_on_chain), account, value


def _units(text: str) -> dict[str, int]:
    """Units per asset, parsed from JSON. Unreadable text becomes a value that no UTxO can have."""
    try:
        return {str(asset): int(units) for asset, units in json.loads(text).items()} or {"": 0}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {"": 0}


def external_spend_entries(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str | None]]:
    """(entry, kind, tx id) of every entry for an external spend, in order."""
    return conn.execute(
        "SELECT id, kind, ref FROM entries WHERE kind IN ('external_spend', 'external_spend_reversed') ORDER BY id"
    )


def unseen_voids(conn: sqlite3.Connection) -> Iterator[int]:
    """Numbers of `void` events whose cause, another transaction, was not observed in the block that they name.

    The cause is an external spend or a transaction of another payment.
    """
    yield from _unseen_external_voids(conn)
    yield from find_each(
        conn,
        int,
        f"SELECT seq FROM {_READABLE_EVENTS} e "  # noqa: S608  our own names
        "WHERE event = 'void' AND payment_id IS NOT NULL AND detail ->> 'void_tx_id' IS NOT NULL AND NOT "
        "EXISTS (SELECT 1 FROM block_observations s WHERE s.tx_id = e.detail ->> 'void_tx_id' AND s.block_hash "
        "= e.detail ->> 'block_hash') AND NOT EXISTS (SELECT 1 FROM external_spends f WHERE f.is_on_chain = 1 "
        "AND f.tx_id = e.detail ->> 'void_tx_id' AND f.block_hash = e.detail ->> 'block_hash') ORDER BY seq",
    )


def _unseen_external_voids(conn: sqlite3.Connection) -> Iterator[int]:
    return find_each(
        conn,
        int,
        f"SELECT e.seq FROM {_READABLE_EVENTS} e "  # noqa: S608  our own names
        "JOIN payments p ON p.id = e.payment_id WHERE e.event = 'void' AND e.detail ->> 'code' = 'external_spend' "
        "AND NOT EXISTS (SELECT 1 FROM external_spends f WHERE f.is_on_chain = 1 AND f.tx_id = e.detail ->> "
        "'tx_id' AND f.block_hash = e.detail ->> 'block_hash' AND instr(' ' || f.inputs || ' ', ' ' || "
        "p.nonce_utxo || ' ') > 0) ORDER BY e.seq",
    )
