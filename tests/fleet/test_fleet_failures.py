"""Real daemons of a fleet are killed or stopped at a commit point: others carry on, and nothing happens twice.

All points, on both sides, are in the rounds of `./scripts/test --long`.
"""

from itertools import islice
from pathlib import Path

import pytest
from fleetrounds import DAEMONS, Failure, every_round, run_round
from fleetworld import drill_fleet
from kit.effort import pick
from kit.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql

SAMPLE = [Failure("kill", "before sign"), Failure("stop", "before admit"), Failure("stop", "after sign")]
"""The second stands still in the gate."""


@pytest.mark.timeout(pick(300, 3600))
def test_when_all_holders_die_or_stop_another_daemon_carries_on(tmp_path: Path, postgresql: Server) -> None:
    with drill_fleet(tmp_path, postgresql, DAEMONS) as drill:
        for failures in [SAMPLE, *islice(every_round(), pick(0, 100))]:
            run_round(drill, failures)
