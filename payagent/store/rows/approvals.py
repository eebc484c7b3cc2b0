"""Approval requests for payments, and their decisions. A payment is put before a person once, and decided once.

Never: commits; decides.
"""

import json
import sqlite3
from dataclasses import dataclass
from typing import Literal

from payagent.core.changes import AddApproval
from payagent.core.findings import Finding
from payagent.core.payment.machine import State
from payagent.store.db.sql import find_all, find_one, number

STANDING_MAX = 1_000
"""How many payments to a merchant show how it stands: a merchant may have many."""

Decision = Literal["approved", "denied", "timed_out"]
Via = Literal["token", "dashboard", "link", "telegram", "clock"]


@dataclass(frozen=True, slots=True)
class ApprovalRow(AddApproval):
    """A request for approval, as it was added."""

    asked_at_ms: int


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """The decision on a request for approval.

    `by_app`: an app's id; for `telegram` the target, chat and user; None if the clock or a link decided.
    """

    decision: Decision
    via: Via
    by_app: str | None
    at_ms: int


def of_payment(conn: sqlite3.Connection, payment_id: str) -> ApprovalRow | None:
    row = conn.execute(
        "SELECT payment_id, terms_hash, reasons, plan, max_total, expires_at_ms, asked_at_ms FROM approvals "
        "WHERE payment_id = ?",
        (payment_id,),
    ).fetchone()
    if row is None:
        return None
    reasons = tuple(Finding(code, detail, asks=True) for code, detail in json.loads(row[2]))
    return ApprovalRow(row[0], row[1], reasons, json.loads(row[3]), *row[4:])


def decided(conn: sqlite3.Connection, payment_id: str) -> DecisionRow | None:
    """The decision on a payment that needed approval; None while it is pending."""
    row = conn.execute(
        "SELECT event, detail ->> 'via', detail ->> 'by', at_ms FROM events "
        "WHERE payment_id = ? AND event IN ('reserve', 'deny') ORDER BY seq LIMIT 1",
        (payment_id,),
    ).fetchone()
    if row is None:
        return None
    event, via, by_app, at_ms = row
    refusal: Decision = "timed_out" if via == "clock" else "denied"
    return DecisionRow("approved" if event == "reserve" else refusal, via, by_app, at_ms)


def over(conn: sqlite3.Connection, clock_ms: int, until_ms: int) -> list[str]:
    """Payments that still await a decision although their time is up, or their invoice expires by `until_ms`."""
    return find_all(
        conn,
        str,
        "SELECT p.id FROM payments p JOIN approvals a ON a.payment_id = p.id JOIN invoices v ON v.seq = "
        "p.invoice_seq "
        "WHERE p.state = 'awaiting_approval' AND (a.expires_at_ms <= ? OR v.expires_at_ms <= ?) ORDER BY p.seq",
        (clock_ms, until_ms),
    )


def count_awaiting(conn: sqlite3.Connection, app_id: str | None) -> int:
    """How many payments of an app await a decision; None: of all apps."""
    return number(
        conn,
        "SELECT COUNT(*) FROM payments WHERE state = 'awaiting_approval' "
        "AND (CAST(?1 AS TEXT) IS NULL OR app_id = ?1)",
        (app_id,),
    )


def denied_between(
    conn: sqlite3.Connection,
    since_ms: int,
    until_ms: int,
    *,
    intent_id: str | None,
    app_id: str,
    fingerprint: str | None,
) -> str | None:
    """The last payment that a person denied in this period, for the same intent or the same request of the app.

    A None in the filters matches nothing.
    """
    return find_one(
        conn,
        str,
        "SELECT p.id FROM payments p JOIN intents i ON i.id = p.intent_id "
        "WHERE p.code = 'approval_denied' AND p.reason = 'person' AND p.updated_at_ms > ? AND p.updated_at_ms < ? "
        "AND (i.id = ? OR (i.app_id = ? AND i.fingerprint = ? AND i.request IS NOT NULL)) "
        "ORDER BY p.seq DESC LIMIT 1",
        (since_ms, until_ms, intent_id, app_id, fingerprint),
    )


def standing_at(conn: sqlite3.Connection, origin: str, but: str) -> dict[State, tuple[int, int]]:
    """The last payments to a merchant except this one: for each state, their number and the newest's time."""
    rows = conn.execute(
        "SELECT state, COUNT(*), MAX(created_at_ms) FROM (SELECT state, created_at_ms FROM payments "
        "WHERE origin = ? AND id <> ? ORDER BY seq DESC LIMIT ?) newest GROUP BY state",
        (origin, but, STANDING_MAX),
    )
    return {State(state): (count, newest_ms) for state, count, newest_ms in rows}
