"""A fleet's database restarts. Its daemon keeps its accounts, unless the outcome of a commit is unknown."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from kit.agent import ADA, World, world_with_clock
from kit.cli import until
from kit.effort import long_only
from kit.failover import act
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon
from kit.postgresql import needs_postgresql
from kit.postgresql_cluster import Cluster, cluster_folder

from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.sql import find_all

pytestmark = needs_postgresql


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as made:
        made.fund(*[50 * ADA] * 4)
        yield made


@pytest.fixture
def server() -> Iterator[Cluster]:
    with cluster_folder() as folder:
        one = Cluster(folder)
        one.start()
        yield one
        one.stop()


@pytest.fixture
async def daemon(world: World, server: Cluster) -> AsyncIterator[FleetDaemon]:
    """It holds the only account, and acts only when a test says so."""
    async with fleet_daemon(world, SharedLedger(world, server.url()), "a", count=1) as one:
        await one.stand_still()
        await act(one)
        yield one


def epochs(daemon: FleetDaemon) -> list[int]:
    return find_all(daemon.context.conn, int, "SELECT epoch FROM accounts ORDER BY account")


async def connect_again(daemon: FleetDaemon) -> None:
    """The first read and the first commit find their connections lost."""
    for step in (daemon.fleet.poll, daemon.fleet.leases.keep):
        with suppress(Refused, sqlite3.OperationalError):
            await step()
    await daemon.fleet.leases.keep()


async def test_a_restart_of_the_server_takes_no_account_away(
    world: World, server: Cluster, daemon: FleetDaemon
) -> None:
    held = dict(daemon.fleet.held)
    before = await daemon.pay("before the restart", key="before")
    server.stop()
    server.start()
    await connect_again(daemon)
    assert (epochs(daemon), daemon.fleet.held) == ([1], held)
    after = await daemon.pay("after the restart")  # no pass has read the chain since
    for _ in range(3):
        await daemon.run_pass()
        world.block()
    for row in (before, after):
        assert daemon.context.payment(row.id).state is State.CONFIRMED
    assert len(world.transactions()) == 2
    SharedLedger(world, server.url()).require_whole()


def wait_for_nobody(server: Cluster, names: str) -> None:
    """Let the server's commits wait for the standbys of these names; it has none."""
    server.set(f"synchronous_standby_names = '{names}'")
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        conn.execute("SELECT pg_reload_conf()")


async def test_an_account_is_read_anew_if_a_commit_took_place_and_its_answer_was_lost(
    world: World, server: Cluster, daemon: FleetDaemon
) -> None:
    held = dict(daemon.fleet.held)
    wait_for_nobody(server, "missing")
    paying = asyncio.create_task(daemon.pay("once", key="k"))

    def is_committing() -> bool:
        with psycopg.connect(server.url()) as conn:
            asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            return conn.execute(asked).fetchone() is not None

    await asyncio.to_thread(until, is_committing, "nothing is committed")
    server.set("synchronous_standby_names = ''")
    server.stop()
    with pytest.raises((Refused, sqlite3.OperationalError)):
        await paying
    server.start()
    await connect_again(daemon)
    assert epochs(daemon) == [2]
    assert daemon.fleet.held.keys() == held.keys()
    assert daemon.fleet.held != held
    for _ in range(3):
        await daemon.run_pass()
        world.block()
    row = await daemon.pay("once", key="k")
    assert row.state is State.CONFIRMED
    assert world.transactions() == [row.attempt.tx_id]
    SharedLedger(world, server.url()).require_whole()


@long_only
async def test_after_pg_upgrade_the_owner_lets_the_ledger_be_that_of_the_new_server(world: World) -> None:
    with cluster_folder() as folder:
        server = Cluster(folder)
        server.start()
        ledger = SharedLedger(world, server.url())
        async with fleet_daemon(world, ledger, "a", count=1) as one:
            await act(one)
            before = await one.pay("before the upgrade")
            await one.stand_still()
            await one.fleet.leave()
        with server.upgraded() as upgraded:
            ledger = SharedLedger(world, upgraded.url())
            with pytest.raises(Refused, match="the ledger belongs to the database server"):
                async with fleet_daemon(world, ledger, "a", count=1):
                    pass
            with psycopg.connect(upgraded.url(), autocommit=True) as conn:
                conn.execute("UPDATE gate SET system = ''")
            async with fleet_daemon(world, ledger, "a", count=1) as one:
                await act(one)
                assert (await one.pay("after the upgrade")).state is State.SIGNED
                for _ in range(3):
                    await one.run_pass()
                    world.block()
                assert one.context.payment(before.id).state is State.CONFIRMED
            ledger.require_whole()
