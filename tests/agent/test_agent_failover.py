"""The ledger of a fleet lost commits: nothing is signed until it is known what was, at any daemon."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from kit.agent import ADA, World, world_with_clock
from kit.failover import act, pay, refusals, signed, wait_quiet
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon

from payagent.agent.fleet.failover import AWAITED_MS
from payagent.agent.fleet.leases import BLIND_MS
from payagent.store.db.unit import Unit
from payagent.store.rows import onchain
from payagent.store.rows.fleet import LEASE_MS

Pair = tuple[FleetDaemon, FleetDaemon]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Accounts 0 and 1 of one wallet have UTxOs."""
    with world_with_clock(tmp_path) as zero:
        zero.clock.stop()
        zero.fund(60 * ADA, 50 * ADA, 50 * ADA)
        one = zero.of_account(1)
        one.fund(40 * ADA, 30 * ADA)
        one.http.close()
        yield zero


@pytest.fixture
def ledger(world: World) -> SharedLedger:
    return SharedLedger(world)


@pytest.fixture
async def pair(world: World, ledger: SharedLedger) -> AsyncIterator[Pair]:
    """Two daemons. Each holds the account of its number, has signed for it, and acts only when a test says so."""
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(fleet_daemon(world, ledger, name)) for name in "ab"]
        for daemon in (one, two):
            await daemon.fleet.leases.keep()
            await daemon.stand_still()
        for daemon in (one, two):
            await daemon.run_pass()
            await pay(daemon, f"first of {daemon.accounts}")
            await daemon.fleet.leases.keep()
        world.block()
        yield one, two


async def take_all(daemon: FleetDaemon, of: str) -> None:
    """Take a daemon's accounts, as if it had been silent for longer than its leases."""

    def job(unit: Unit) -> None:
        unit.conn.execute("UPDATE accounts SET until_ms = 0 WHERE holder = ?", (of,))
        unit.conn.execute("UPDATE daemons SET seen_at_ms = 0 WHERE id = ?", (of,))

    await daemon.writer.run("test", job)
    await act(daemon)
    assert daemon.accounts == [0, 1]


async def test_after_a_failover_nothing_is_signed_until_each_daemon_has_compared_its_records(
    pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    for daemon in pair:
        daemon.fail_over()
    await act(one)
    assert await refusals(one) == {"ledger_behind"}
    await act(two, one)
    assert (await pay(one, "all was found")).account == 0
    assert (await pay(two, "here too")).account == 1
    ledger.require_whole()


async def test_with_a_synchronous_standby_a_failover_stops_nobody(world: World, ledger: SharedLedger) -> None:
    async with fleet_daemon(world, ledger, "a", is_synchronous=True) as one:
        await one.stand_still()
        await act(one)
        await pay(one, "before")
        await one.fleet.leases.keep()
        one.fail_over()
        await act(one)
        await pay(one, "after")
    ledger.require_whole()


@pytest.mark.parametrize("is_synchronous", [False, True])
async def test_a_daemon_alone_whose_record_is_ahead_waits_and_goes_on(
    world: World, ledger: SharedLedger, tmp_path: Path, is_synchronous: bool
) -> None:
    async with fleet_daemon(world, ledger, "a", is_synchronous=is_synchronous) as one:
        await one.stand_still()
        await act(one)
        ledger.copy_file(tmp_path / "standby.db")
        lost = await pay(one, "lost with the primary")
        await one.fleet.leases.keep()
        world.block()
        ledger.put_back(tmp_path / "standby.db")
        one.fail_over()
        await act(one)
        assert (await refusals(one), signed(one)) == ({"ledger_behind"}, 0)
        await wait_quiet(world, one)
        await pay(one, "after the quiet time")
        spends = onchain.external_spends_on_chain(one.context.conn, account=lost.account)
        assert [spend.tx_id for spend in spends] == [lost.attempt.tx_id]
        assert one.context.chain.external_spends == ()
    ledger.require_whole()


class TestLostTakeover:
    """The lost commits moved account 0 to the second daemon, which signed for it."""

    @pytest.fixture
    async def lost(self, pair: Pair, ledger: SharedLedger, world: World, tmp_path: Path) -> str:
        """The transaction that is lost."""
        _, two = pair
        ledger.copy_file(tmp_path / "standby.db")
        await take_all(two, "a")
        row = await pay(two, "lost with the primary")
        assert row.account == 0
        world.block()
        ledger.put_back(tmp_path / "standby.db")
        for daemon in pair:
            daemon.fail_over()
        return row.attempt.tx_id

    async def test_a_record_that_is_ahead_freezes_all_accounts(
        self, pair: Pair, ledger: SharedLedger, world: World, lost: str
    ) -> None:
        one, two = pair
        await act(one)
        assert one.accounts == [0]
        assert await refusals(one) == {"ledger_behind"}
        before = signed(one)
        await act(two, one)
        assert await refusals(one) == await refusals(two) == {"ledger_behind"}
        await wait_quiet(world, *pair)
        assert signed(one) == before
        for daemon in pair:
            await pay(daemon, f"after the quiet time, by {daemon.accounts}")
        spends = onchain.external_spends_on_chain(one.context.conn)
        assert [spend.tx_id for spend in spends] == [lost]
        ledger.require_whole()

    async def test_what_was_noticed_once_freezes_nothing_again(self, pair: Pair, world: World, lost: str) -> None:
        one, two = pair
        await act(two, one)
        await wait_quiet(world, one, two)
        two.fail_over()
        await act(two, one)
        await pay(two, "the same record again")

    async def test_a_daemon_that_does_not_come_back_costs_the_quiet_time(
        self, pair: Pair, ledger: SharedLedger, world: World, lost: str
    ) -> None:
        one, two = pair
        await two.die()
        await act(one)
        world.clock.ahead_ms += AWAITED_MS
        world.block()
        await act(one)
        assert (await refusals(one), one.accounts) == ({"ledger_behind"}, [0, 1])
        await wait_quiet(world, one)
        await pay(one, "after the quiet time")
        spends = onchain.external_spends_on_chain(one.context.conn)
        assert [spend.tx_id for spend in spends] == [lost]
        ledger.require_whole()

    async def test_a_daemon_that_stood_still_at_the_end_of_the_ledger_is_awaited_too(
        self, pair: Pair, ledger: SharedLedger, world: World, tmp_path: Path
    ) -> None:
        """It may have gone on in the lost commits, and signed."""
        one, two = pair
        world.clock.ahead_ms += 3 * LEASE_MS
        await act(one)
        ledger.copy_file(tmp_path / "standby.db")
        await take_all(two, "a")
        await pay(two, "lost with the primary")
        ledger.put_back(tmp_path / "standby.db")
        await two.die()
        one.fail_over()
        await act(one)
        assert await refusals(one) == {"ledger_behind"}
        world.clock.ahead_ms += AWAITED_MS
        await act(one)
        assert (await refusals(one), one.accounts) == ({"ledger_behind"}, [0, 1])

    @pytest.mark.parametrize("is_started_again", [False, True])
    async def test_a_host_that_comes_back_after_the_quiet_time_freezes_nothing_again(
        self, pair: Pair, ledger: SharedLedger, world: World, lost: str, is_started_again: bool
    ) -> None:
        one, two = pair
        await act(one)
        world.clock.ahead_ms += AWAITED_MS
        await act(one)
        await wait_quiet(world, one)
        await pay(one, "after the quiet time")
        if is_started_again:
            two.seat.last_event = (0, "")
        await act(two, one)
        for daemon in pair:
            await pay(daemon, f"the late host is back: {daemon.accounts}")
        ledger.require_whole()


@pytest.mark.parametrize("is_synchronous", [False, True], ids=["dump", "PITR of a synchronous server"])
async def test_a_daemon_that_saw_more_than_a_ledger_that_was_put_back_freezes_all_accounts(
    pair: Pair, ledger: SharedLedger, world: World, tmp_path: Path, is_synchronous: bool
) -> None:
    one, two = pair
    one.seat.is_synchronous = is_synchronous
    ledger.copy_file(tmp_path / "old.db")
    lost = await pay(two, "lost")
    await one.fleet.leases.keep()
    world.block()
    ledger.put_back(tmp_path / "old.db")
    for daemon in pair:
        daemon.fail_over(timeline=int(is_synchronous))
    await act(one)
    assert await refusals(one) == {"ledger_behind"}
    before = signed(one)
    await act(two)
    assert await refusals(two) == {"ledger_behind"}
    await wait_quiet(world, *pair)
    assert signed(one) == before
    for daemon in pair:
        await pay(daemon, f"after the quiet time, by {daemon.accounts}")
    spends = onchain.external_spends_on_chain(one.context.conn, account=lost.account)
    assert [spend.tx_id for spend in spends] == [lost.attempt.tx_id]
    ledger.require_whole()


async def test_a_ledger_that_was_put_back_freezes_all_accounts_by_any_record(
    pair: Pair, ledger: SharedLedger, tmp_path: Path
) -> None:
    one, two = pair
    ledger.copy_file(tmp_path / "old.db")
    await pay(two, "lost")
    ledger.put_back(tmp_path / "old.db")
    for daemon in pair:
        daemon.fail_over(timeline=0)
        daemon.seat.last_event = (0, "")  # it was started again
    await act(two, one)
    assert await refusals(one) == {"ledger_behind"}
    assert await refusals(two) == {"ledger_behind"}


async def test_a_daemon_that_leaves_right_after_a_failover_compares_its_records_first(
    pair: Pair, ledger: SharedLedger, world: World, tmp_path: Path
) -> None:
    one, two = pair
    ledger.copy_file(tmp_path / "standby.db")
    await pay(two, "lost with the primary")
    world.block()
    ledger.put_back(tmp_path / "standby.db")
    for daemon in pair:
        daemon.fail_over()
    await two.fleet.leave()
    await act(one)
    assert await refusals(one) == {"ledger_behind"}
    await wait_quiet(world, one)
    await pay(one, "after the quiet time")
    ledger.require_whole()


async def test_a_daemon_that_cannot_read_the_chain_compares_its_records_all_the_same(
    pair: Pair, ledger: SharedLedger, world: World
) -> None:
    one, two = pair
    for daemon in pair:
        daemon.fail_over()
    two.context.providers = {"devnet": "it does not answer"}
    world.clock.ahead_ms += BLIND_MS + 1
    world.block()
    await act(one)
    assert await refusals(one) == {"ledger_behind"}
    await two.fleet.leases.keep()
    assert two.accounts == []
    await act(one)
    await pay(one, "all was found")
    ledger.require_whole()


async def test_after_a_move_nothing_is_signed_before_the_last_signer_on_another_host_is_back(
    pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair

    def move(unit: Unit) -> None:
        unit.conn.execute("UPDATE accounts SET proven_timeline = NULL WHERE account = 1")
        unit.conn.execute("DELETE FROM daemons WHERE id = 'b'")

    await one.writer.run("test", move)
    one.fail_over()
    await act(one)
    assert await refusals(one) == {"ledger_behind"}
    two.fail_over()
    await act(two, one)
    await pay(one, "its record was found")
    ledger.require_whole()
