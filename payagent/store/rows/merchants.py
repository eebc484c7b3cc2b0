"""Merchants added at run time, and facts about all: pinned addresses, agreed prices, unserved streaks, readiness.

Events in the same commits record each change (agent.base.merchant_trust); these rows hold the current state.
Never: commits; judges a merchant's settings; decides which to trust.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from payagent.core.aggregate import AgreedPriceRow
from payagent.core.merchant_rules import Pin, Pins
from payagent.core.payment.machine import IN_NO_BLOCK, State
from payagent.core.retry_schedule import MerchantReadiness
from payagent.store.db.sql import find_all, find_one, number, sql_list
from payagent.store.db.unit import Connection, Unit


@dataclass(frozen=True, slots=True)
class MerchantRow:
    """A merchant. `settings` are as in its table of the config file."""

    name: str
    origin: str
    settings: Mapping[str, object]


def all_merchants(conn: Connection) -> list[MerchantRow]:
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


@dataclass(frozen=True, slots=True)
class UnservedStreak:
    """Unserved payments in a row, and since when nothing is bought there; None if buying goes on."""

    count: int = 0
    stopped_at_ms: int | None = None


def pins(conn: Connection, origin: str) -> Pins:
    return frozenset(find_all(conn, Pin, "SELECT role, address FROM address_pins WHERE origin = ?", (origin,)))


def add_pins(unit: Unit, origin: str, pins: Iterable[Pin]) -> None:
    unit.conn.executemany(
        "INSERT INTO address_pins(origin, role, address) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        [(origin, pin.role, pin.address) for pin in pins],
    )


def drop_pin(unit: Unit, origin: str, pin: Pin) -> bool:
    """Remove a pinned address; False if it was not pinned."""
    return (
        unit.conn.execute(
            "DELETE FROM address_pins WHERE origin = ? AND role = ? AND address = ?",
            (origin, pin.role, pin.address),
        ).rowcount
        > 0
    )


_PRICE = "SELECT method, path, asset, calls, units FROM agreed_prices WHERE origin = ?"


def agreed(conn: Connection, origin: str, method: str, path: str) -> list[AgreedPriceRow]:
    return find_all(
        conn, AgreedPriceRow, f"{_PRICE} AND method = ? AND path = ? ORDER BY asset, calls", (origin, method, path)
    )


def agree(unit: Unit, origin: str, price: AgreedPriceRow) -> None:
    """Record the agreed price; later prices of the request are compared with it."""
    unit.conn.execute(
        "INSERT INTO agreed_prices(origin, method, path, asset, calls, units) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (origin, method, path, asset, calls) DO UPDATE SET units = excluded.units",
        (origin, price.method, price.path, price.asset, price.calls, price.units),
    )


def prices(conn: Connection, origin: str) -> list[AgreedPriceRow]:
    return find_all(conn, AgreedPriceRow, f"{_PRICE} ORDER BY path, method, asset, calls", (origin,))


def unserved_streak(conn: Connection, origin: str) -> UnservedStreak:
    return (
        find_one(
            conn, UnservedStreak, "SELECT count, stopped_at_ms FROM unserved_streaks WHERE origin = ?", (origin,)
        )
        or UnservedStreak()
    )


def set_unserved_streak(unit: Unit, origin: str, now: UnservedStreak) -> None:
    unit.conn.execute(
        "INSERT INTO unserved_streaks(origin, count, stopped_at_ms) VALUES (?, ?, ?) "
        "ON CONFLICT (origin) DO UPDATE SET count = excluded.count, stopped_at_ms = excluded.stopped_at_ms",
        (origin, now.count, now.stopped_at_ms),
    )


def readiness(conn: Connection, origin: str) -> MerchantReadiness:
    row = conn.execute(
        "SELECT accepted_depth, refused_early FROM readiness WHERE origin = ?", (origin,)
    ).fetchone()
    return MerchantReadiness() if row is None else MerchantReadiness(row[0], bool(row[1]))


def set_readiness(unit: Unit, origin: str, now: MerchantReadiness) -> None:
    unit.conn.execute(
        "INSERT INTO readiness(origin, accepted_depth, refused_early) VALUES (?, ?, ?) "
        "ON CONFLICT (origin) DO UPDATE SET accepted_depth = excluded.accepted_depth, "
        "refused_early = excluded.refused_early",
        (origin, now.accepted_depth, int(now.refused_early)),
    )


def in_flight(conn: Connection, origin: str) -> int:
    """Number of payments to a merchant whose funds are held and whose transaction is in no block yet."""
    return number(
        conn,
        "SELECT COUNT(*) FROM payments p JOIN invoices v ON v.seq = p.invoice_seq "  # noqa: S608  our own names
        f"WHERE p.state IN {sql_list(State.RESERVED, *IN_NO_BLOCK)} AND v.origin = ?",
        (origin,),
    )
