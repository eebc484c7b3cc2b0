"""Merchants that were added while the daemon ran. What was added and removed, the events tell too.

May import: the standard library, store.db. Never: judges what a merchant's settings say.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from payagent.store.db.unit import Unit


@dataclass(frozen=True, slots=True)
class MerchantRow:
    """`settings` are as in the merchant's table of the config file."""

    name: str
    origin: str
    settings: Mapping[str, object]


def everybody(conn: sqlite3.Connection) -> list[MerchantRow]:
    """All merchants that were added, by their names."""
    rows = conn.execute("SELECT name, origin, settings FROM merchants ORDER BY name")
    return [MerchantRow(name, origin, json.loads(settings)) for name, origin, settings in rows]


def add(unit: Unit, row: MerchantRow) -> None:
    unit.conn.execute(
        "INSERT INTO merchants(name, origin, settings) VALUES (?, ?, ?)",
        (row.name, row.origin, json.dumps(row.settings, separators=(",", ":"), sort_keys=True)),
    )


def remove(unit: Unit, name: str) -> None:
    unit.conn.execute("DELETE FROM merchants WHERE name = ?", (name,))
