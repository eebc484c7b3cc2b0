"""The ledger as a whole: its identity, whether anything was committed since, and whether it came from a backup.

Never: writes.
"""

import json
import sqlite3

from payagent.store.db.sql import find_all, find_one


def version(conn: sqlite3.Connection) -> tuple[int, int]:
    """Changes whenever anything is committed, by this connection or another."""
    (by_others,) = conn.execute("PRAGMA data_version").fetchone()
    return by_others, conn.total_changes


def meta(conn: sqlite3.Connection, key: str) -> str | None:
    return find_one(conn, str, "SELECT value FROM meta WHERE key = ?", (key,))


def account_addresses(conn: sqlite3.Connection) -> dict[int, str]:
    """The address of each account of the wallet; empty for a daemon alone on its ledger, which has only one."""
    return dict(conn.execute("SELECT account, address FROM accounts").fetchall())


def restored_at_ms(conn: sqlite3.Connection) -> int | None:
    """When this ledger was last restored from a backup; None if never, or if no clock confirmed the time."""
    facts = find_all(conn, json.loads, "SELECT value FROM meta WHERE key LIKE 'restored:%'")
    return max((int(one["restored_at_ms"]) for one in facts if one["is_clock_right"]), default=None)
