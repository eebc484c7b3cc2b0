"""What the writer asks in its transaction it finds by an index: a long past costs nothing."""

from pathlib import Path

import pytest

from payagent.store.db.writer import Writer
from payagent.store.rows import attempts_and_utxos as queries

ASKED_OF_UTXOS = {
    "free": queries.free_utxos,
    "missing": queries.missing_utxos,
    "coming": lambda conn: queries.coming_utxos(conn, 7),
}


@pytest.mark.parametrize("name", ASKED_OF_UTXOS)
def test_no_question_about_utxos_looks_at_every_utxo(tmp_path: Path, name: str) -> None:
    def plan(unit):  # type: ignore[no-untyped-def]
        asked: list[str] = []
        unit.conn.set_trace_callback(asked.append)
        ASKED_OF_UTXOS[name](unit.conn)
        unit.conn.set_trace_callback(None)
        return [row[3] for sql in asked for row in unit.conn.execute(f"EXPLAIN QUERY PLAN {sql}")]

    writer = Writer(tmp_path / "ledger.db")
    try:
        steps = writer.submit("plan", plan).result(10)
    finally:
        writer.close()
    assert any(step.startswith("SEARCH c USING INDEX coins_by_state") for step in steps), steps
    assert not [step for step in steps if step.startswith("SCAN") or "AUTOMATIC" in step], steps
