"""Appends to the journal and to the event chain. What else a step changes is written by `store.executor`.

Never: commits.
"""

import json
from collections.abc import Mapping

from payagent.core.ledger import Entry
from payagent.core.payment.machine import State
from payagent.store.db.sql import add_halves, halves
from payagent.store.db.unit import Unit
from payagent.store.rows.events import event_hash


def put_meta(unit: Unit, key: str, value: str) -> None:
    """Record a fact about this database for good. A second value for the same key raises IntegrityError."""
    unit.conn.execute("INSERT INTO meta(key, value) VALUES (?, ?)", (key, value))


def note(
    unit: Unit,
    payment_id: str | None,
    event: str,
    state: State | None,
    now_ms: int,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Append an event of a payment or (None) of the wallet, chained to the event before.

    An event of the wallet says by which way its request came in, if not by a token.
    """
    heads = unit.heads
    way = {} if payment_id is not None or unit.via is None else {"via": unit.via}
    text = json.dumps({**(detail or {}), **way}, separators=(",", ":"))
    row = (heads.event_seq + 1, payment_id, event, state, text, now_ms)
    row_hash = event_hash(heads.event_hash, *row)
    unit.conn.execute(
        "INSERT INTO events(seq, payment_id, event, state, detail, at_ms, prev_hash, hash) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, heads.event_hash, row_hash),
    )
    heads.event_seq, heads.event_hash = row[0], row_hash


def write_entry(
    unit: Unit,
    entry: Entry,
    now_ms: int,
    *,
    payment_id: str | None = None,
    ref: str | None = None,
    pool_id: int | None = None,
) -> int:
    """Append an entry: its postings, which update the balances, then the row that seals them. Returns its id."""
    entry_id = unit.heads.entry_id + 1
    rows = ", ".join(["(?, ?, ?, ?)"] * len(entry.postings))
    unit.conn.execute(
        f"INSERT INTO postings(entry_id, account, asset, units) VALUES {rows}",  # noqa: S608  placeholders
        [value for p in entry.postings for value in (entry_id, p.account, p.asset, p.units)],
    )
    changed = [(p.account, p.asset, *halves(p.units)) for p in entry.postings]
    add_halves(unit.conn, "balances(account, asset, units_high, units_low)", changed)
    unit.conn.execute(
        "INSERT INTO entries(id, kind, payment_id, pool_id, ref, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (entry_id, entry.kind, payment_id, pool_id, ref, now_ms),
    )
    unit.heads.entry_id = entry_id
    return entry_id
