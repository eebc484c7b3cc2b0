"""Real daemons of a fleet are killed or stopped at every commit point: others carry on, and nothing happens twice.

The sample has one round, in test_fleet_together.py.
"""

from pathlib import Path

import pytest
from fleetrounds import DAEMONS, Failure, every_round, run_round
from fleetworld import drill_fleet
from kit.effort import long_only
from kit.postgresql import Server, needs_postgresql

pytestmark = [needs_postgresql, long_only]

IN_THE_GATE = [Failure("kill", "before sign"), Failure("stop", "before admit"), Failure("stop", "after sign")]
"""The second stands still in the gate."""


@pytest.mark.timeout(3600)
def test_when_all_holders_die_or_stop_another_daemon_carries_on(tmp_path: Path, postgresql: Server) -> None:
    with drill_fleet(tmp_path, postgresql, DAEMONS) as drill:
        for failures in [IN_THE_GATE, *every_round()]:
            run_round(drill, failures)
