"""Merchants that were added at run time. Events record each addition and removal too.

May import: the standard library, store.db. Never: judges a merchant's settings.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from payagent.store.db.unit import Unit


@dataclass(frozen=True, slots=True)
class MerchantRow:
    """A merchant. `settings` are as in its table of the config file."""

    name: str
    origin: str
    settings: Mapping[str, object]


def everybody(conn: sqlite3.Connection) -> list[MerchantRow]:
    """All merchants added at run time, by name."""
    rows = conn.execute("SELECT name, origin, settings FROM merchants ORDER BY name")
    return [MerchantRow(name, origin, json.loads(settings)) for name, origin, settings in rows]


def add(unit: Unit, row: MerchantRow) -> None:
    unit.conn.execute(
        "INSERT INTO merchants(name, origin, settings) VALUES (?, ?, ?)",
        (row.name, row.origin, json.dumps(row.settings, separators=(",", ":"), sort_keys=True)),
    )


def remove(unit: Unit, name: str) -> None:
    unit.conn.execute("DELETE FROM merchants WHERE name = ?", (name,))
