"""Moves a ledger between a file and a database, row by row: numbers, texts and seals stay as they are.

A ledger in a database is read in one snapshot, by a cursor on the server, while daemons go on. An empty database
is filled in one commit. Its triggers are off until the end of that commit, and no other session can write
meanwhile: not every row of today would pass them one by one, such as an attempt for an earlier invoice of its
payment.

Never: writes to the ledger that it reads.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from payagent.core.problems import Refused
from payagent.store.db import opening
from payagent.store.db.fence import Gate, leave_gate, make_gate
from payagent.store.db.postgresql import schema
from payagent.store.db.postgresql.connection import PATIENCE_S, Database, PostgresqlConnection
from payagent.store.db.postgresql.migrate import bring_up_to_date, lacking, require_guards
from payagent.store.db.schema import newest_migration
from payagent.store.db.seals import last_seal
from payagent.store.db.unit import SELECT_HEADS

_OF_A_RUN = frozenset({"boot", "daemons", "gate"})
"""Tables about running daemons: nothing of them is moved."""


def write_file(database: Database | str, path: Path) -> None:
    """Write the ledger in a database into an empty file, in today's form. It has no -wal file beside it.

    Refused: `ledger_tampered` if guards are missing in the database; `tables_missing`, `ledger_newer`.
    """
    with closing(PostgresqlConnection(database, patience_s=PATIENCE_S)) as source:
        source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        require_guards(source)
        opening.bring_up_to_date(path, without=lacking(source))
        with closing(sqlite3.connect(path, isolation_level=None)) as target:
            triggers = target.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            target.execute("BEGIN")
            for name, _ in triggers:
                target.execute(f"DROP TRIGGER {name}")
            for table, columns in _moved(target):
                marks = ", ".join("?" * len(columns))
                insert = f"INSERT INTO {table.name}({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  our own names
                target.executemany(insert, source.stream(_select(table, columns)))
            target.execute(_RELEASED)
            for _, sql in triggers:
                target.execute(sql)
            target.execute("COMMIT")
    opening.bring_up_to_date(path)


def fill(database: Database | str, path: Path, host: str, noted: Mapping[int, int]) -> None:
    """Write a ledger of today's form from a file into an empty database, of whose tables this role is the owner.

    `noted`: for each account of which `host` has the signer's record, the attempt in it. The ledger has that
    attempt, so the account may sign at once.
    Refused: `already_exists/ledger`; `ledger_newer`; `store_failed` for a role that does not own the tables.
    """
    with (
        closing(opening.open_read_only(path)) as source,
        closing(PostgresqlConnection(database)) as target,
    ):
        bring_up_to_date(target)
        target.execute("BEGIN")
        for name in schema.tables():
            target.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")
        for name in schema.tables().keys() - {"gate"}:
            if target.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() is not None:  # noqa: S608  our own names
                raise Refused(
                    "already_exists/ledger", f"the table {name} of {database} has rows, so nothing was copied"
                )
        for table, columns in _moved(source):
            target.copy_in(table.name, columns, source.execute(_select(table, columns)))
        _hand_over(target, host, noted)
        target.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for name in schema.tables():
            target.execute(f"ALTER TABLE {name} ENABLE TRIGGER USER")
        target.execute("COMMIT")
        target.execute("ANALYZE")


_RELEASED = "UPDATE accounts SET holder = NULL, until_ms = 0, proven_timeline = NULL"


def _hand_over(target: PostgresqlConnection, host: str, noted: Mapping[int, int]) -> None:
    """Write the gate, and who signed last for which account. A ledger of one daemon has no accounts yet."""
    conn: Any = target
    timeline = target.timeline()
    target.execute(
        "INSERT INTO accounts(account, address) SELECT 0, value FROM meta WHERE key = 'address' "
        "ON CONFLICT DO NOTHING"
    )
    for account, attempt in noted.items():
        target.execute(
            "UPDATE accounts SET noted = ?1, last_signer = ?2, proven_timeline = ?3 "
            "WHERE account = ?4 AND split_part(COALESCE(last_signer, ?2), '#', 2) = split_part(?2, '#', 2)",
            (attempt, host, timeline, account),
        )
    make_gate(conn, newest_migration(), timeline)
    event_seq, event_hash, _ = conn.execute(f"SELECT {SELECT_HEADS}").fetchone()
    leave_gate(conn, Gate(event_seq, event_hash, *last_seal(conn), timeline, newest_migration()))


def _moved(file: sqlite3.Connection) -> Iterator[tuple[schema.Table, list[str]]]:
    """The tables that are moved and the columns that they have in the file, each after those that it refers to."""
    tables = schema.tables()
    order = TopologicalSorter({name: schema.parents(table) for name, table in tables.items()}).static_order()
    for name in order:
        columns = [f'"{column}"' for _, column, *_ in file.execute(f"PRAGMA table_info({name})")]
        if columns and name not in _OF_A_RUN:  # one of an older payagent lacks the newest tables
            yield tables[name], columns + ["rowid"] * tables[name].is_rowid


def _select(table: schema.Table, columns: list[str]) -> str:
    return f"SELECT {', '.join(columns)} FROM {table.name} ORDER BY {table.number or '1'}"  # noqa: S608
