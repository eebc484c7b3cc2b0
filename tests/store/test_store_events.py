"""The event chain: its hashes reveal any change made with the triggers off."""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from payagent.core.payment.machine import State
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.tables import GENESIS
from payagent.store.db.unit import Unit
from payagent.store.rows import events
from payagent.store.rows import writes as records
from payagent.store.rows.events import EventRow


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Five events of two payments."""
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    conn.execute("PRAGMA foreign_keys = OFF")
    unit = Unit(conn)
    for n in range(5):
        records.note(unit, f"pay{n % 2}", "reserve", State.RESERVED, 10 + n, {"n": n, "of": "Zürich ₳"})
    yield conn
    conn.close()


def test_the_event_chain_is_intact_and_events_are_read_back(conn: sqlite3.Connection) -> None:
    assert events.broken_event(conn) is None
    detail = '{"n":1,"of":"Z\\u00fcrich \\u20b3"}'
    assert events.events(conn, "pay1")[0] == EventRow(2, "pay1", "reserve", "reserved", detail, 11)
    assert [row[0] for row in events.events(conn, "pay0")] == [1, 3, 5]


def test_an_event_hash_is_computed_as_documented() -> None:
    form = '["' + GENESIS + '",1,"pay_1","reserve","reserved","{\\"a\\":\\"\\u00fc\\"}",7]'
    expected = hashlib.sha256(form.encode("ascii")).hexdigest()
    assert events.event_hash(GENESIS, 1, "pay_1", "reserve", "reserved", '{"a":"ü"}', 7) == expected


def test_a_rolled_back_job_leaves_no_gap_in_the_events(conn: sqlite3.Connection) -> None:
    conn.execute("SAVEPOINT job")
    records.note(Unit(conn), "pay0", "reserve", State.RESERVED, 20)
    conn.execute("ROLLBACK TO job")
    conn.execute("RELEASE job")
    records.note(Unit(conn), "pay0", "reserve", State.RESERVED, 21)
    assert events.broken_event(conn) is None
    assert events.last_event(conn)[0] == 6


OTHER = "b" * 64


@pytest.mark.parametrize(
    ("tampering", "first_bad"),
    [
        ("UPDATE events SET payment_id = 'pay9' WHERE seq = 3", 3),
        ("UPDATE events SET event = 'sign' WHERE seq = 1", 1),
        ("UPDATE events SET state = 'void' WHERE seq = 5", 5),
        ("UPDATE events SET detail = '{}' WHERE seq = 2", 2),
        ("UPDATE events SET at_ms = at_ms + 1 WHERE seq = 4", 4),
        (f"UPDATE events SET hash = '{OTHER}' WHERE seq = 5", 5),
        (f"UPDATE events SET prev_hash = '{OTHER}' WHERE seq = 1", 1),
        ("DELETE FROM events WHERE seq = 1", 2),
        ("DELETE FROM events WHERE seq = 3", 4),
        ("UPDATE events SET seq = 9 WHERE seq = 5", 9),
        ("UPDATE events SET seq = -seq", -5),
        (f"INSERT INTO events VALUES (6, 'pay0', 'reserve', 'reserved', '{{}}', 1, '{OTHER}', '{OTHER}')", 6),
    ],
)
def test_the_first_changed_event_is_named_as_the_broken_link(
    conn: sqlite3.Connection, tampering: str, first_bad: int
) -> None:
    for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        conn.execute(f"DROP TRIGGER {name}")
    assert conn.execute(tampering).rowcount > 0
    assert events.broken_event(conn) == first_bad


def test_an_event_rewritten_with_a_new_hash_breaks_the_next_link(conn: sqlite3.Connection) -> None:
    rows = conn.execute(
        "SELECT seq, payment_id, event, state, detail, at_ms, prev_hash, hash FROM events ORDER BY seq"
    ).fetchall()
    rows = [EventRow(*row) for row in rows]
    seq, payment_id, event, _state, detail, at_ms, prev_hash, _hash = rows[1]
    made = events.event_hash(prev_hash, seq, payment_id, event, "void", detail, at_ms)
    forged = [*rows[:1], EventRow(seq, payment_id, event, "void", detail, at_ms, prev_hash, made), *rows[2:]]
    assert events.first_broken_link(iter(rows)) is None
    assert events.first_broken_link(iter(forged)) == 3
    assert events.first_broken_link([]) is None
