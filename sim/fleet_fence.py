"""The trigger behind the fence, on a daemon's connection to the simulated ledger. PostgreSQL's is made of the same
table (store.db.postgresql.schema).

Never: asks which accounts a daemon believes to hold.
"""

import sqlite3
from collections.abc import Callable

from payagent.store.db.postgresql.schema import FENCED, fenced_changes

REFUSAL = "this daemon does not hold the account"


def install_fence(
    conn: sqlite3.Connection, holder: str, note: Callable[[str], None], *, refuses: bool = True
) -> None:
    """Note each row, by its table, of an account that the daemon of this id does not hold, and refuse it.

    On this connection alone.
    """
    conn.create_function("note_row_of_another", 1, note)
    refuse = f"SELECT RAISE(ABORT, '{REFUSAL}');" if refuses else ""
    for table, sql in FENCED.items():
        for change in fenced_changes(table):
            kind = change.split(" ")[0]
            own = sql.format(row="OLD" if kind == "DELETE" else "NEW")
            conn.execute(
                f"CREATE TEMP TRIGGER {table}_{kind.lower()}_fence BEFORE {change} ON main.{table} "  # noqa: S608
                f"WHEN {own} IS NOT NULL "
                f"AND NOT EXISTS (SELECT 1 FROM accounts WHERE account = {own} AND holder = '{holder}') "
                f"BEGIN SELECT note_row_of_another('{table}'); {refuse} END"
            )
