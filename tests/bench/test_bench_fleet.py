"""The benchmark of a fleet: its daemons admit on both engines, and the ratio is judged. No time is asserted."""

import sqlite3
from contextlib import closing
from pathlib import Path

from kit.effort import long_only
from kit.postgresql import Server, needs_postgresql

from benchmarks import fleet
from benchmarks.fleet import FILE, TCP, WAITING, Taken
from payagent.store.db.postgresql.connection import PostgresqlConnection

ADMITTED = "SELECT COUNT(*) FROM payments WHERE state = 'reserved'"


@long_only
@needs_postgresql
def test_daemons_on_a_file_and_on_postgresql_admit_what_they_are_told(postgresql: Server, tmp_path: Path) -> None:
    path, url = tmp_path / "ledger.db", postgresql.new_database()
    places = ((str(path), 0), (postgresql.tcp_url(url), 1))
    for place, account in places:
        with fleet.running(place, account, 5) as daemon:
            taken = fleet.Taken()
            fleet.admit([daemon], 4, 2, postgresql.pid, taken)
            fleet.admit([daemon], 1, 1, postgresql.pid, taken)
            assert (len(taken.ms), taken.admitted) == (2, 5)
            assert taken.cpu_ms > 0
    for conn in (sqlite3.connect(path), PostgresqlConnection(url)):
        with closing(conn):
            assert conn.execute(ADMITTED).fetchone() == (5,)


def test_an_admission_on_postgresql_is_judged_beside_one_on_sqlite() -> None:
    def holds(ms: float) -> bool:
        took = {(FILE, WAITING): Taken([1.0], 0.001, 1), (TCP, WAITING): Taken([1.0], ms / 1000, 1)}
        (bound,) = fleet.as_part(took).bounds
        return bound.holds

    assert [holds(19.9), holds(20.1)] == [True, False]
