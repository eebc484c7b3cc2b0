"""The real agent over PostgreSQL: every kind of payment, then an audit of what it wrote."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product

import pytest
from kit.agent import APP
from kit.audit import Past, findings, past
from kit.postgresql import Server, ledger_at, move_to_file, needs_postgresql
from kit.recorded_sql import answers

from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.schema import missing_guards
from payagent.store.db.readers import Readers

pytestmark = needs_postgresql


OF_THE_FILE = (
    "path_of",
    "other_triggers",
    "broken_references",
    "row_texts",
    "event_texts",
    "version",
    "database_ms",
)
"""What only the file has, or PostgreSQL answers in another way."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> Iterator[tuple[str, Past]]:
    """The URL of a ledger on PostgreSQL, and the same ledger in a file."""
    folder, url = tmp_path_factory.mktemp("lived"), postgresql.new_database()
    with past(folder, ledger_at(url)) as one:
        move_to_file(url, folder / "moved.db")
        yield url, replace(one, path=folder / "moved.db")


def test_a_ledger_written_on_postgresql_is_valid_with_its_seals_in_a_file(lived: tuple[str, Past]) -> None:
    url, moved = lived
    with closing(PostgresqlConnection(url)) as conn:
        assert missing_guards(conn) == []
    assert findings(moved.path, moved.owner) == []


def test_both_engines_answer_the_same(lived: tuple[str, Past]) -> None:
    url, moved = lived
    with closing(PostgresqlConnection(url)) as theirs, Readers(moved.path).snapshot() as ours:
        (payment, tx_id) = ours.execute("SELECT id, tx_id FROM payments WHERE state = 'settled'").fetchone()
        for text, number in product((payment, tx_id, APP, moved.origin, "lovelace"), (1, 1000, 2**53)):
            found, expected = answers(theirs, text, number), answers(ours, text, number)
            differing = {
                name: (found[name], value)
                for name, value in expected.items()
                if not name.endswith(OF_THE_FILE) and _in_order(name, found[name]) != _in_order(name, value)
            }
            assert differing == {}


def _in_order(name: str, answer: object) -> object:
    """The payments of `begun` may come in any order."""
    return sorted(answer, key=repr) if name.endswith("begun") and isinstance(answer, list) else answer
