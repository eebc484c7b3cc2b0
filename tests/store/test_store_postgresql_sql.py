"""Every statement of the store can be read by PostgreSQL too: one text for both engines."""

import re
from contextlib import closing

import pytest
from kit.effort import pick
from kit.postgresql import Server, needs_postgresql
from kit.recorded_sql import Recorded, ask_everything, recorded_sql
from kit.simulation import require_clean

from payagent.store.db.opening import migrate, open_database
from payagent.store.db.postgresql.connection import PostgresqlConnection, postgresql_text
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, events, writes
from sim.run import run_share

SEEDS = pick(10, 50)
OF_THE_FILE = re.compile("PRAGMA|pragma_|sqlite_master|AS BLOB|VACUUM")
"""What is asked of the file alone, and the texts of rows, which are made in Python on PostgreSQL."""

BOUNDS = re.compile("BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    with recorded_sql() as found:
        require_clean(run_share(range(SEEDS)))
        with closing(open_database(tmp_path_factory.mktemp("ledger") / "ledger.db")) as conn:
            migrate(conn)
            conn.execute("PRAGMA foreign_keys = OFF")
            unit = Unit(conn)
            apps.add_with_token(unit, "events", "events", "events", [], 1)
            for _ in range(events.KEPT_AT_ONCE):
                writes.note(unit, "events", "events", None, 1)
            ask_everything(conn)
    return found


def test_every_statement_of_the_store_is_recorded(recorded: Recorded) -> None:
    """Those of `copy` move the file itself."""
    assert [place for place in recorded.missed() if not place.startswith("audit/copy.py")] == []


@needs_postgresql
def test_postgresql_reads_every_statement_of_the_store(recorded: Recorded, postgresql: Server) -> None:
    refused = []
    with closing(PostgresqlConnection(postgresql.new_database())) as conn:
        for sql, types in recorded.texts:
            if OF_THE_FILE.search(sql) or BOUNDS.match(sql):
                continue
            told = f"({', '.join(types)})" if types else ""
            try:
                conn.execute(f"PREPARE one{told} AS {postgresql_text(sql)}")
                conn.execute("DEALLOCATE one")
            except Exception as error:  # noqa: BLE001  each is told, with its text
                refused.append(f"{error}\n{sql}\n{types}")
    assert "\n\n".join(refused) == ""
