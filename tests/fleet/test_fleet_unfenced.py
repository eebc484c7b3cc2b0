"""A daemon that never asks who holds an account: the trigger refuses its rows, or a judge finds them.

The sample has the trigger without processes (tests/store/test_store_postgresql_fleet.py).
"""

from pathlib import Path

from fleetworld import DrillFleet, drill_fleet
from kit.cli import until
from kit.effort import long_only
from kit.postgresql import Server, needs_postgresql

from payagent.store.db.postgresql.schema import FENCED

pytestmark = needs_postgresql


def wake_unfenced(drill: DrillFleet) -> None:
    """Stop the holder of all accounts until another has them. When woken it has no fence."""
    one, other = drill.daemons["a"], drill.start("b")
    drill.until_shared()
    one.order("without a fence")
    one.reach()
    one.order("stop", "after lease")
    one.reach()
    until(lambda: other.ready()["accounts"] == [0, 1, 2], "the accounts were not taken")
    one.wake()


@long_only
def test_what_a_daemon_without_a_fence_writes_is_refused_or_found(tmp_path: Path, postgresql: Server) -> None:
    with drill_fleet(tmp_path, postgresql, "a") as drill:
        wake_unfenced(drill)
        stale = drill.wanted()
        assert drill.ask(stale, "a") is None
        drill.pay(stale, "b")
        drill.judge()
        for table in FENCED:
            drill.conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_fence")
        drill.ask(drill.wanted(), "a")
        assert "payments" in {table for table, _ in drill.trespasses()}
