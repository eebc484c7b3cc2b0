"""The real agent over PostgreSQL: every kind of payment, then an audit of what it wrote."""

from contextlib import closing
from pathlib import Path

from kit.audit import findings, past
from kit.postgresql import Server, ledger_at, move_to_file, needs_postgresql

from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.schema import missing_guards

pytestmark = needs_postgresql


def test_a_ledger_written_on_postgresql_is_valid_with_its_seals_in_a_file(
    tmp_path: Path, postgresql: Server
) -> None:
    url = postgresql.new_database()
    with past(tmp_path, ledger_at(url)) as lived:
        with closing(PostgresqlConnection(url)) as conn:
            assert missing_guards(conn) == []
            (payments,) = conn.execute("SELECT COUNT(*) FROM payments").fetchone() or (0,)
            assert payments > 10
        move_to_file(url, tmp_path / "moved.db")
        assert findings(tmp_path / "moved.db", lived.owner) == []
