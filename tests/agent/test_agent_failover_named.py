"""What a daemon says of a lost connection: nothing of the ledger, unless commits may be lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, World, world_with_clock
from kit.failover import act
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon

from payagent.core.problems import Refused


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as made:
        made.fund(50 * ADA)
        yield made


def refusal(daemon: FleetDaemon) -> str | None:
    """The code that /readyz tells of the chain and the ledger."""
    try:
        daemon.context.chain.require_ready(daemon.world.clock.now_ms())
    except Refused as refused:
        return refused.code
    return None


async def test_a_daemon_that_lost_its_connection_does_not_call_the_ledger_behind(world: World) -> None:
    async with fleet_daemon(world, SharedLedger(world), "a", count=1, is_synchronous=True) as daemon:
        await daemon.stand_still()
        await act(daemon)
        assert refusal(daemon) is None
        daemon.seat.note_lost_connection()
        await daemon.fleet.poll()  # before the loop drops what it knows of the account
        assert refusal(daemon) is None
        await act(daemon)
        assert (daemon.accounts, refusal(daemon)) == ([0], None)


async def test_an_account_that_is_not_proven_since_a_failover_is_called_behind(world: World) -> None:
    async with fleet_daemon(world, SharedLedger(world), "a", count=1) as daemon:
        await daemon.stand_still()
        await act(daemon)
        await daemon.writer.run(
            "unprove", lambda unit: unit.conn.execute("UPDATE accounts SET proven_timeline = 5")
        )
        await daemon.writer.run("its fence", lambda _unit: None)
        await daemon.fleet.poll()
        assert refusal(daemon) == "ledger_behind"
