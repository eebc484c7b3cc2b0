"""What each target of notifications was told: how far it has read the events, and its deliveries.

An event of the ledger is the durable record of what is to be told. A delivery is added in the commit that moves
the target's cursor past its event.
Never: commits; holds what is told, or a secret.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from payagent.store.db.sql import LATEST, exists, find_all, find_one, number, places
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows.events import COLUMNS, EventRow

DeliveryState = Literal["waiting", "delivered", "given_up"]


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One event that one target is told. `tries`: failed ones since `from_ms`, when it was first due or replayed.

    `next_try_at_ms`: None once it is delivered or given up.
    """

    seq: int
    id: str
    target: str
    event_seq: int
    type: str
    from_ms: int
    tries: int
    next_try_at_ms: int | None
    delivered_at_ms: int | None
    last_problem: str | None
    payment_id: str | None

    @property
    def state(self) -> DeliveryState:
        if self.next_try_at_ms is not None:
            return "waiting"
        return "given_up" if self.delivered_at_ms is None else "delivered"


@dataclass(frozen=True, slots=True)
class TargetState:
    """How a target stands: how many wait for it, its last delivery, and why its last try failed, if it did."""

    waiting: int
    last_delivered_at_ms: int | None
    last_problem: str | None


_DELIVERY = (
    "SELECT seq, id, target, event_seq, type, from_ms, tries, next_try_at_ms, delivered_at_ms, last_problem, "
    "(SELECT COALESCE(e.payment_id, e.detail ->> 'payment') FROM events e WHERE e.seq = event_seq) "
    "FROM notification_deliveries"
)


def cursor(conn: Connection, target: str) -> int:
    """The last event that a target's deliveries were made of."""
    return number(conn, "SELECT event_seq FROM notification_cursors WHERE target = ?", (target,))


def read_events(conn: Connection, after_seq: int, until_seq: int, names: Sequence[str]) -> list[EventRow]:
    """The events of these names after one and until another, in order.

    It leaves out the frequent events without a notification: admissions that no approval decided, and answers
    after which the merchant may still serve.
    """
    return find_all(
        conn,
        EventRow,
        f"SELECT {COLUMNS} FROM events WHERE seq > ? AND seq <= ? "  # noqa: S608
        f"AND event IN ({places(len(names))}) AND (event <> 'reserve' OR detail ->> 'via' IS NOT NULL) "
        "AND (event <> 'merchant_answered' OR detail ->> 'delivery' = 'give_up') ORDER BY seq",
        (after_seq, until_seq, *names),
    )


def event(conn: Connection, seq: int) -> EventRow:
    return EventRow(*conn.execute(f"SELECT {COLUMNS} FROM events WHERE seq = ?", (seq,)).fetchone())  # noqa: S608


def was_over_before(conn: Connection, payment_id: str, seq: int) -> bool:
    """Whether an earlier event of a payment said that it was served, or that the merchant does not serve it."""
    return exists(
        conn,
        "SELECT 1 FROM events WHERE payment_id = ? AND seq < ? AND (event IN ('delivery_accept', "
        "'delivery_give_up') OR event = 'merchant_answered' AND detail ->> 'delivery' = 'give_up') LIMIT 1",
        (payment_id, seq),
    )


def due(conn: Connection, target: str, now_ms: int, longest_wait_ms: int, limit: int) -> list[DeliveryRow]:
    """The deliveries to try now, requests for approval first, then by when they were due.

    One that would wait for longer than the longest wait is due: the clock was set back.
    """
    times = (0, now_ms), (now_ms + longest_wait_ms + 1, LATEST)
    rows = [
        row
        for is_asking in (True, False)
        for first_ms, last_ms in times
        for row in conn.execute(
            f"{_DELIVERY} INDEXED BY notification_deliveries_waiting WHERE target = ? "
            "AND (type = 'approval.asked') = ? AND next_try_at_ms BETWEEN ? AND ? "
            "ORDER BY next_try_at_ms, seq LIMIT ?",
            (target, is_asking, first_ms, last_ms, limit),
        )
    ]
    return [DeliveryRow(*row) for row in rows[:limit]]


def delivery(conn: Connection, delivery_id: str) -> DeliveryRow | None:
    return find_one(conn, DeliveryRow, f"{_DELIVERY} WHERE id = ?", (delivery_id,))


def page(
    conn: Connection,
    *,
    target: str | None,
    state: DeliveryState | None,
    before_seq: int | None,
    limit: int,
) -> list[DeliveryRow]:
    """Deliveries, newest first."""
    is_in_state = {
        None: "TRUE",
        "waiting": "next_try_at_ms IS NOT NULL",
        "delivered": "next_try_at_ms IS NULL AND delivered_at_ms IS NOT NULL",
        "given_up": "next_try_at_ms IS NULL AND delivered_at_ms IS NULL",
    }[state]
    return find_all(
        conn,
        DeliveryRow,
        f"{_DELIVERY} WHERE (CAST(?1 AS TEXT) IS NULL OR target = ?1) AND {is_in_state} "
        f"AND seq < COALESCE(?2, {LATEST}) ORDER BY seq DESC LIMIT ?3",
        (target, before_seq, limit),
    )


def state_of(conn: Connection, target: str) -> TargetState:
    """The problem is that of a delivery that waits; if none has failed, that of the newest that waits no more."""
    waiting = number(
        conn,
        "SELECT COUNT(*) FROM notification_deliveries WHERE target = ? AND next_try_at_ms IS NOT NULL",
        (target,),
    )
    delivered_at_ms = find_one(
        conn,
        int,
        "SELECT delivered_at_ms FROM notification_deliveries WHERE target = ? AND delivered_at_ms IS NOT NULL "
        "ORDER BY seq DESC LIMIT 1",
        (target,),
    )
    problem = find_one(
        conn,
        str,
        "SELECT last_problem FROM notification_deliveries INDEXED BY notification_deliveries_waiting "
        "WHERE target = ? AND next_try_at_ms IS NOT NULL AND last_problem IS NOT NULL ORDER BY seq DESC LIMIT 1",
        (target,),
    )
    if problem is None:
        problem = find_one(
            conn,
            str,
            "SELECT last_problem FROM notification_deliveries WHERE target = ? AND next_try_at_ms IS NULL "
            "ORDER BY seq DESC LIMIT 1",
            (target,),
        )
    return TargetState(waiting, delivered_at_ms, problem)


def targets(conn: Connection) -> set[str]:
    """The targets that have a cursor."""
    return {target for (target,) in conn.execute("SELECT target FROM notification_cursors")}


def waiting(conn: Connection) -> dict[str, int]:
    """How many deliveries wait, by target."""
    return dict(
        conn.execute(
            "SELECT target, COUNT(*) FROM notification_deliveries WHERE next_try_at_ms IS NOT NULL GROUP BY target"
        ).fetchall()
    )


def set_cursor(unit: Unit, target: str, event_seq: int) -> None:
    unit.conn.execute(
        "INSERT INTO notification_cursors(target, event_seq) VALUES (?, ?) "
        "ON CONFLICT(target) DO UPDATE SET event_seq = excluded.event_seq",
        (target, event_seq),
    )


def add(unit: Unit, target: str, told: Iterable[tuple[str, int, str]], now_ms: int) -> None:
    """Add deliveries, each of (id, event, type), due at once."""
    unit.conn.executemany(
        "INSERT INTO notification_deliveries(id, target, event_seq, type, from_ms, next_try_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        [(delivery_id, target, event_seq, kind, now_ms, now_ms) for delivery_id, event_seq, kind in told],
    )


def set_delivered(unit: Unit, row: DeliveryRow, now_ms: int, problem: str | None) -> None:
    """Record that a target took a delivery. All that waits for the target is due: it answers again.

    `problem`: why a part of the target did not take it.
    """
    unit.conn.execute(
        "UPDATE notification_deliveries SET next_try_at_ms = NULL, delivered_at_ms = ?, last_problem = ? "
        "WHERE id = ?",
        (now_ms, problem, row.id),
    )
    unit.conn.execute(
        "UPDATE notification_deliveries INDEXED BY notification_deliveries_waiting SET next_try_at_ms = ?1 "
        "WHERE target = ?2 AND (type = 'approval.asked') IN (FALSE, TRUE) AND next_try_at_ms > ?1",
        (now_ms, row.target),
    )


def set_missed(
    unit: Unit, row: DeliveryRow, problem: str, again_at_ms: int | None, tries: int, now_ms: int
) -> None:
    """Record why a delivery was not taken, and when to try again. With None, it is given up."""
    unit.conn.execute(
        "UPDATE notification_deliveries SET tries = ?1, next_try_at_ms = ?2, last_problem = ?3, "
        "from_ms = CASE WHEN from_ms < ?4 THEN from_ms ELSE ?4 END WHERE id = ?5",
        (tries, again_at_ms, problem, now_ms, row.id),
    )


def give_up_old(unit: Unit, target: str, until_ms: int) -> None:
    """Give up what was first due at `until_ms` or before, except requests for approval."""
    unit.conn.execute(
        "UPDATE notification_deliveries INDEXED BY notification_deliveries_waiting SET next_try_at_ms = NULL, "
        "last_problem = COALESCE(last_problem, 'not taken within a day') WHERE target = ? "
        "AND (type = 'approval.asked') = FALSE AND next_try_at_ms IS NOT NULL AND from_ms <= ?",
        (target, until_ms),
    )


def replay(unit: Unit, delivery_id: str, now_ms: int) -> None:
    """Make a delivery due again, as if it were new."""
    unit.conn.execute(
        "UPDATE notification_deliveries SET from_ms = ?1, tries = 0, next_try_at_ms = ?1, delivered_at_ms = NULL "
        "WHERE id = ?2",
        (now_ms, delivery_id),
    )


def forget_others(unit: Unit, targets: Sequence[str]) -> None:
    """Give up what waits for targets that are no longer in the config. One that returns starts anew."""
    kept = places(len(targets))
    unit.conn.execute(f"DELETE FROM notification_cursors WHERE target NOT IN ({kept})", targets)  # noqa: S608
    unit.conn.execute(
        "UPDATE notification_deliveries SET next_try_at_ms = NULL, last_problem = 'no longer in the config' "  # noqa: S608
        f"WHERE next_try_at_ms IS NOT NULL AND target NOT IN ({kept})",
        targets,
    )
