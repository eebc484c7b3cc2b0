"""The writer's queries use an index, so a long history costs nothing."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from payagent.store.db.writer import Writer
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments

ASKED_OF_UTXOS = {
    "free": queries.free_utxos,
    "missing": queries.missing_utxos,
    "coming": lambda conn: queries.coming_utxos(conn, 7),
}


@pytest.mark.parametrize("name", ASKED_OF_UTXOS)
def test_no_query_about_utxos_scans_all_utxos(tmp_path: Path, name: str) -> None:
    def plan(unit):  # type: ignore[no-untyped-def]
        asked: list[str] = []
        unit.conn.set_trace_callback(asked.append)
        ASKED_OF_UTXOS[name](unit.conn)
        unit.conn.set_trace_callback(None)
        return [row[3] for sql in asked for row in unit.conn.execute(f"EXPLAIN QUERY PLAN {sql}")]

    writer = Writer(tmp_path / "ledger.db")
    try:
        steps = writer.submit("plan", plan).result(60)
    finally:
        writer.close()
    assert any(step.startswith("SEARCH c USING INDEX utxos_by_state") for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN") or "AUTOMATIC" in step], steps


def test_the_payment_query_returns_a_column_for_each_field(tmp_path: Path) -> None:
    def names(unit):  # type: ignore[no-untyped-def]
        asked: list[str] = []
        unit.conn.set_trace_callback(asked.append)
        payments.payment(unit.conn, "pay")
        unit.conn.set_trace_callback(None)
        return [column[0] for column in unit.conn.execute(asked[0]).description]

    writer = Writer(tmp_path / "ledger.db")
    try:
        columns = writer.submit("names", names).result(60)
    finally:
        writer.close()
    row = payments.PaymentRow
    parts = (row, *(one.type for one in fields(row) if str(one.type).endswith("Part'>")))
    kept = [one.name for part in parts for one in fields(part) if one.type not in parts and one.default is MISSING]
    assert columns == kept
