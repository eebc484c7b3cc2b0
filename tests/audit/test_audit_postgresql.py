"""The real agent over PostgreSQL: every kind of payment, then an audit of what it wrote, and how it is found."""

import json
import re
import runpy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from kit.agent import APP
from kit.audit import Past, findings, past
from kit.effort import long_only
from kit.postgresql import Server, ledger_at, move_to_file, needs_postgresql
from kit.recorded_sql import answers

from payagent.store.db.engine import copy_to_database
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.migrate import bring_up_to_date
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
    "fleet.event_seq",
    "fleet.database_of",
)
"""What only the file has, or PostgreSQL answers in another way."""


MAKER = Path(__file__).resolve().parents[2] / "scripts" / "make_ledger"
PAYMENTS = 1_000
ALL_SINCE = re.compile(r"\b(seq|rowid|id) > ")
"""Of rows that were added since the last commit. Only their number says whether an index helps."""

Asked = dict[str, tuple[Any, ...]]
"""The texts of statements, each with its last values."""


@pytest.fixture(scope="module")
def asked() -> Asked:
    return {}


@pytest.fixture(scope="module")
def lived(
    tmp_path_factory: pytest.TempPathFactory, postgresql: Server, asked: Asked
) -> Iterator[tuple[str, Past]]:
    """The URL of a ledger on PostgreSQL, of a daemon whose role has only its rights, and the same in a file."""
    folder, url = tmp_path_factory.mktemp("lived"), postgresql.new_database()
    with closing(PostgresqlConnection(url)) as operator:
        operator.execute("CREATE ROLE daemon LOGIN")
        bring_up_to_date(operator, "daemon")
    execute = PostgresqlConnection.execute

    def noting(conn: PostgresqlConnection, sql: str, values: Any = ()) -> Any:
        asked[sql] = tuple(values)
        return execute(conn, sql, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PostgresqlConnection, "execute", noting)
        with past(folder, ledger_at(re.sub("//[^@]*@", "//daemon@", url))) as one:
            patch.undo()
            move_to_file(url, folder / "moved.db")
            yield url, replace(one, path=folder / "moved.db")


def test_a_ledger_written_on_postgresql_is_valid_with_its_seals_in_a_file(lived: tuple[str, Past]) -> None:
    url, moved = lived
    with closing(PostgresqlConnection(url)) as conn:
        assert missing_guards(conn) == []
    assert findings(moved.path, moved.owner) == []


def test_both_engines_answer_the_same(lived: tuple[str, Past]) -> None:
    url, moved = lived
    with closing(PostgresqlConnection(url)) as operator:  # nobody holds an account in the file
        operator.execute("UPDATE accounts SET holder = NULL, until_ms = 0, proven_timeline = NULL")
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


@long_only
def test_no_statement_about_a_payment_reads_a_whole_table(
    lived: tuple[str, Past], asked: Asked, postgresql: Server, tmp_path: Path
) -> None:
    """By the plans over a ledger of many payments, for the account that made them and for one that made none."""
    del lived
    url = postgresql.new_database("template0")
    runpy.run_path(str(MAKER))["make"](tmp_path / "ledger.db", PAYMENTS)
    copy_to_database(tmp_path / "ledger.db", url, None, "host", {})
    found = []
    with closing(PostgresqlConnection(url)) as conn:
        sizes = dict(conn.execute("SELECT relname::text, reltuples::bigint FROM pg_class WHERE relkind = 'r'"))
        large = {name for name, rows in sizes.items() if rows >= PAYMENTS}
        assert {"attempts", "events", "payments", "postings", "seals", "utxos"} <= large
        for sql, values in asked.items():
            if ALL_SINCE.search(sql) or not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", sql):
                continue
            for account in (0, 7):
                of_account = [account if repr(value) == "0" else value for value in values]
                (plan,) = conn.execute(f"EXPLAIN (FORMAT JSON) {sql}", of_account).fetchone()
                found += [(one, sql) for one in scanned(json.loads(plan)[0]["Plan"]) if one in large]
    assert found == []


def scanned(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan reads from the first row to the last."""
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scanned(part)
