"""The primary of a fleet's database is killed and its standby promoted, with all commits or without the last."""

import asyncio
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kit.agent import ADA, World, world_with_clock
from kit.effort import long_only
from kit.failover import act, pay, refusals, signed, wait_quiet
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pair import server_pair

from payagent.agent.fleet import failover
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import PostgresqlConnection

pytestmark = needs_postgresql


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Accounts 0 and 1 of one wallet have UTxOs."""
    with world_with_clock(tmp_path) as zero:
        one = zero.of_account(1)
        for account in (zero, one):
            account.fund(*[50 * ADA] * 4)
        one.http.close()
        yield zero


@asynccontextmanager
async def two_daemons(
    world: World, ledger: SharedLedger, *, is_synchronous: bool
) -> AsyncIterator[tuple[FleetDaemon, FleetDaemon]]:
    """Each holds the account of its number, has signed for it, and acts only when a test says so."""
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(fleet_daemon(world, ledger, name, is_synchronous=is_synchronous))
            for name in "ab"
        ]
        for daemon in (one, two):
            await daemon.fleet.leases.keep()
            await daemon.stand_still()
        await act(one, two)
        for daemon in (one, two):
            await pay(daemon, f"first of {daemon.accounts}")
            await daemon.fleet.leases.keep()
        world.block()
        yield one, two


def put_back(database: str, server: Server, dump: Path) -> None:
    """Put an old dump in the database's place, as its administrator."""
    name = urlsplit(database).path[1:]
    with closing(PostgresqlConnection(server.url("postgres"))) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    subprocess.run(["psql", "-q", "-d", database, "-f", dump], check=True, capture_output=True)


async def connect_again(*daemons: FleetDaemon) -> None:
    """The first read and the first commit of each daemon find their connections lost."""
    for daemon in daemons:
        for step in (daemon.fleet.poll, daemon.fleet.leases.keep):
            with suppress(Refused, sqlite3.OperationalError):
                await step()
    await act(*daemons)


def attempts(daemon: FleetDaemon) -> set[str]:
    return {tx_id for (tx_id,) in daemon.context.conn.execute("SELECT tx_id FROM attempts")}


async def test_a_synchronous_failover_loses_no_payment_and_stops_nobody(world: World) -> None:
    with server_pair(is_synchronous=True) as servers:
        ledger = SharedLedger(world, servers.url)
        async with two_daemons(world, ledger, is_synchronous=True) as (one, two):
            paying = [
                asyncio.create_task(pay(daemon, f"{number} of {daemon.accounts}"))
                for number in range(3)
                for daemon in (one, two)
            ]
            await paying[0]
            servers.kill_primary()
            await two.die()
            answers = await asyncio.gather(*paying, return_exceptions=True)
            servers.promote(is_synchronous=True)
            await connect_again(one)
            after = await pay(one, "after the failover")
            world.block()
            landed = set(world.transactions())
            assert after.attempt.tx_id in landed
            told = {row.attempt.tx_id for row in answers if isinstance(row, PaymentRow)}
            assert told
            assert landed | told <= attempts(one)
        ledger.require_whole()


@pytest.mark.parametrize(
    "is_signer_alive", [True, pytest.param(False, marks=long_only)], ids=["signer alive", "signer dead"]
)
async def test_an_asynchronous_failover_that_loses_a_payment_signs_nothing_before_the_quiet_time(
    world: World, is_signer_alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "AWAITED_MS", 0 if not is_signer_alive else failover.AWAITED_MS)
    with server_pair(is_synchronous=False) as servers:
        ledger = SharedLedger(world, servers.url)
        async with two_daemons(world, ledger, is_synchronous=False) as (one, two):
            with pytest.raises(Refused, match="synchronous_standby_names is ''"):
                PostgresqlCommitter(servers.url, seat=Seat("c", "host of c", {}, is_synchronous=True))
            servers.leave_standby_behind()
            lost = await pay(two, "lost with the primary")
            world.block()
            servers.kill_primary()
            servers.promote(is_synchronous=False)
            here = [one, two] if is_signer_alive else [one]
            if not is_signer_alive:
                await two.die()
            await connect_again(*here)
            before = signed(one)
            assert lost.attempt.tx_id not in attempts(one)
            for daemon in here:
                assert await refusals(daemon) == {"ledger_behind"}
            await wait_quiet(world, *here)
            assert signed(one) == before
            for daemon in here:
                await pay(daemon, f"after the quiet time, by {daemon.accounts}")
        ledger.require_whole()


async def test_a_database_put_back_from_an_old_dump_freezes_all_accounts_by_the_first_daemon_that_saw_more(
    world: World, postgresql: Server, tmp_path: Path
) -> None:
    database = postgresql.new_database()
    ledger = SharedLedger(world, database)
    async with two_daemons(world, ledger, is_synchronous=False) as (one, two):
        dump = tmp_path / "old.sql"
        subprocess.run(["pg_dump", "-d", database, "-f", dump], check=True)
        lost = await pay(two, "after the dump")
        await one.fleet.leases.keep()
        world.block()
        put_back(database, postgresql, dump)
        await connect_again(one)
        assert await refusals(one) == {"ledger_behind"}
        await connect_again(two, one)
        assert lost.attempt.tx_id not in attempts(one)
        before = signed(one)
        for daemon in (one, two):
            assert await refusals(daemon) == {"ledger_behind"}
        await wait_quiet(world, one, two)
        assert signed(one) == before
        for daemon in (one, two):
            await pay(daemon, f"after the quiet time, by {daemon.accounts}")
    ledger.require_whole()
