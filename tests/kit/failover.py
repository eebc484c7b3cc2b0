"""What daemons of a fleet do after their ledger lost commits. They act only when a test says so."""

import pytest

from kit.agent import World
from kit.fleet_daemons import FleetDaemon
from payagent.agent.base.chain_view import QUIET_MS
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused


async def act(*daemons: FleetDaemon) -> None:
    """What the daemons do again and again: renew, take in what others did, and read the chain."""
    for daemon in daemons * 3:
        await daemon.fleet.leases.keep()
        await daemon.run_pass()


async def wait_quiet(world: World, *daemons: FleetDaemon) -> None:
    """Let the quiet time pass."""
    await act(*daemons)
    world.clock.ahead_ms += QUIET_MS + 2_000
    world.block()
    await act(*daemons)


async def pay(daemon: FleetDaemon, message: str) -> PaymentRow:
    """Pay from the first account that the daemon holds, and submit the transaction."""
    agent = daemon.fleet.held[daemon.accounts[0]].agent
    row, _ = await agent.pay(daemon.world.ask(message))
    await agent.submitter.drain(60)
    return daemon.context.payment(row.id)


async def refusals(daemon: FleetDaemon) -> set[str]:
    """Why no account that the daemon holds pays."""
    codes = set()
    for account in daemon.accounts:
        with pytest.raises(Refused) as refused:
            await daemon.fleet.held[account].agent.pay(daemon.world.ask(f"too early for {account}"))
        codes.add(refused.value.code)
    return codes


def signed(daemon: FleetDaemon) -> int:
    return int(daemon.context.conn.execute("SELECT COUNT(*) FROM attempts").fetchone()[0])
