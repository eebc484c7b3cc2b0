"""A wallet restored from a backup: what it knows, what it lost, and that it never pays twice."""

import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.agent import ADA, Clock, Relay, World
from kit.backup import NOBODY, listing, put_back, settings_of, taken
from kit.next_release import upgraded

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.base.ports import Ports, SystemRandomness
from payagent.backup.restore import Differences, restore
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.signer_record import SignerFile
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments


@dataclass
class Lost:
    """A payment made after the backup: the UTxOs it spent, and what left the wallet."""

    backup: Path
    spent: set[str]
    lovelace: int


async def lost_payment(world: World) -> Lost:
    world.fund(100 * ADA, 100 * ADA)
    async with world.run() as run:
        await run.pay_in_block("known")
        backup = taken(world)
        before = world.unspent()
        row = await run.pay_in_block("lost")
        left = payments.hold(run.context.conn, row.id)["lovelace"]
    return Lost(backup, before - world.unspent(), left)


async def pass_quiet(world: World) -> None:
    world.clock.ahead_ms += QUIET_MS
    world.block()


async def test_a_backup_taken_while_payments_run_has_everything_before_it(world: World) -> None:
    world.fund(100 * ADA, 100 * ADA)
    async with world.run() as run:
        known = await run.pay_in_block("known")
        assert (world.folder / "ledger.db-wal").stat().st_size > 0
        backup = taken(world)
        await run.pay_in_block("another")
        head = run.entries()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    again, restored = await put_back(world, backup)
    assert restored.manifest.payments == 1
    async with again.run() as run:
        assert run.state(known.id) is State.CONFIRMED
        assert run.entries() == head[-len(run.entries()) :]


async def test_a_newer_payagent_refuses_to_back_up_an_older_ledger(world: World) -> None:
    """The older payagent could not read a backup made by the newer one."""
    await lost_payment(world)
    older = "of an older payagent: use that version, or start this one"
    with upgraded(), pytest.raises(Refused, match=older) as caught:
        taken(world, "second.tar")
    assert caught.value.name == "file_invalid/backup"


async def test_a_restored_wallet_has_private_files_and_leaves_no_others(world: World) -> None:
    lost = await lost_payment(world)
    before = listing(world.folder.parent)
    _, restored = await put_back(world, lost.backup)
    data_dir = restored.data_dir
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.iterdir()}
    assert files == dict.fromkeys(("keystore.json", "ledger.db", "operator.token"), 0o600)
    assert (data_dir / "keystore.json").read_bytes() == (world.folder / "keystore.json").read_bytes()
    added = {"restored", "restored.toml", *(f"restored/{name}" for name in files)}
    assert listing(world.folder.parent) - added == before


async def test_a_restore_reports_utxos_spent_and_received_since_the_backup(world: World) -> None:
    lost = await lost_payment(world)
    world.fund(7 * ADA)
    _, restored = await put_back(world, lost.backup)
    found = restored.differences
    assert isinstance(found, Differences)
    assert (found.gone.count, found.unknown.count) == (len(lost.spent), 2)
    assert found.gone.units["lovelace"] + 7 * ADA - found.unknown.units["lovelace"] == lost.lovelace


async def test_a_restore_reports_no_difference_when_nothing_was_lost(world: World) -> None:
    world.fund(100 * ADA, 100 * ADA)
    async with world.run() as run:
        await run.pay_in_block("known")
        await run.pay("under way")
        backup = taken(world)
    _, restored = await put_back(world, backup)
    found = restored.differences
    assert isinstance(found, Differences)
    assert (found.gone.count, found.unknown.count, restored.manifest.open_payments) == (0, 0, 2)


async def test_a_restored_wallet_signs_nothing_until_lost_payments_have_landed_or_expired(world: World) -> None:
    lost = await lost_payment(world)
    again, restored = await put_back(world, lost.backup)
    async with again.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="restored_recently") as refused:
            await run.agent.pay(world.ask("new"))
        assert "nothing is signed until" in refused.value.detail
    assert restored.signs_at_ms is not None
    world.clock.ahead_ms += restored.signs_at_ms - 60_000 - world.clock.now_ms()
    world.block()
    async with again.run() as run:  # a restart does not shorten the wait
        await run.run_pass()
        for order in (run.agent.pay(world.ask("new")), run.agent.transfers.split("app_test", 2, 2 * ADA)):
            with pytest.raises(Refused, match="restored_recently"):
                await order
        world.clock.ahead_ms += 60_000
        await run.run_pass()
        row = await run.pay("new")
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED


async def test_a_payment_in_flight_at_the_backup_is_followed_during_the_quiet_time(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay("under way")
        backup = taken(world)
    again, _ = await put_back(world, backup)
    async with again.run() as run:
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED


async def test_the_utxos_of_a_lost_payment_are_not_spent_again(world: World) -> None:
    lost = await lost_payment(world)
    again, _ = await put_back(world, lost.backup)
    await pass_quiet(world)
    on_chain = len(world.transactions())
    async with again.run() as run:
        await run.run_pass()
        assert not lost.spent & run.selectable()
        row = await run.pay("new")
        (attempt,) = queries.attempts(run.context.conn, row.id)
        assert not lost.spent & set(attempt.inputs)
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
    assert len(world.transactions()) == on_chain + 1


async def test_a_lost_payment_that_lands_late_is_seen_before_anything_is_signed(world: World) -> None:
    """Its bytes were in flight during the restore, so its UTxO still looked available."""
    world.fund(100 * ADA, 100 * ADA)
    async with world.run() as run:
        await run.pay_in_block("known")
        backup = taken(world)
        before = world.unspent()
        await run.pay("lost")
    again, restored = await put_back(world, backup)
    assert isinstance(restored.differences, Differences)
    assert restored.differences.gone.count == 0
    world.block()
    spent = before - world.unspent()
    assert spent
    await pass_quiet(world)
    async with again.run() as run:
        await run.run_pass()
        assert not spent & run.selectable()


async def test_a_restore_works_while_the_provider_is_down(world: World) -> None:
    lost = await lost_payment(world)
    again, restored = await put_back(world, lost.backup, "http://127.0.0.1:1/api/v0")
    assert "cannot read its newest block" in str(restored.differences)
    await pass_quiet(world)
    async with again.run() as run:
        await run.run_pass()
        assert not lost.spent & run.selectable()


async def test_a_restore_asks_the_second_provider_when_the_first_is_on_another_chain(world: World) -> None:
    lost = await lost_payment(world)
    with Relay(world.devnet).serving() as relay:
        relay.tell("/genesis", 200, {"network_magic": 42, "system_start": 1, "slot_length": 20})
        settings = settings_of(world.folder.with_name("restored"), relay.url)
        both = [settings.chain.providers[0], settings_of(world.folder, world.devnet.chain_url).chain.providers[0]]
        settings = settings.model_copy(update={"chain": settings.chain.model_copy(update={"providers": both})})
        restored = await restore(settings, lost.backup, Ports(world.clock, SystemRandomness()))
    assert isinstance(restored.differences, Differences)


async def test_one_provider_with_a_wrong_clock_does_not_stop_a_restore(world: World) -> None:
    lost = await lost_payment(world)
    with Relay(world.devnet).serving() as relay:
        relay.tell("/health/clock", 200, {"server_time": world.clock.now_ms() + 3_600_000})
        settings = settings_of(world.folder.with_name("restored"), relay.url)
        both = [settings.chain.providers[0], settings_of(world.folder, world.devnet.chain_url).chain.providers[0]]
        settings = settings.model_copy(update={"chain": settings.chain.model_copy(update={"providers": both})})
        restored = await restore(settings, lost.backup, Ports(world.clock, SystemRandomness()))
    assert isinstance(restored.differences, Differences)


async def test_a_restore_is_refused_when_our_clock_is_behind(world: World) -> None:
    """The time from which signing is safe could not be computed."""
    lost = await lost_payment(world)
    world.clock.ahead_ms += 3_600_000
    world.block()
    world.clock.ahead_ms -= 3_600_000
    with pytest.raises(Refused, match="clock_skew"):
        await put_back(world, lost.backup)
    assert not world.folder.with_name("restored").exists()


async def test_a_restore_is_refused_when_our_clock_is_ahead(world: World) -> None:
    """All blocks look old, as if the chain had stopped; the provider's clock shows the truth."""
    lost = await lost_payment(world)
    data_dir, ahead = world.folder.with_name("restored"), Clock(world.clock.ahead_ms + 3_600_000)
    with pytest.raises(Refused, match="clock_skew"):
        await restore(settings_of(data_dir, world.devnet.chain_url), lost.backup, Ports(ahead, SystemRandomness()))
    assert not data_dir.exists()


@pytest.mark.parametrize("off_ms", [-30 * 86_400_000, 30 * 86_400_000])
async def test_a_restore_without_the_chain_waits_from_when_the_clock_is_right_again(
    world: World, off_ms: int
) -> None:
    lost = await lost_payment(world)
    world.clock.ahead_ms += off_ms
    again, restored = await put_back(world, lost.backup, NOBODY)
    assert restored.signs_at_ms is None
    world.clock.ahead_ms -= off_ms
    world.block()
    record = SignerFile(again.folder / "signer.json")
    for _ in range(2):  # a restart neither shortens nor extends the wait
        async with again.run(record=record) as run:
            await run.run_pass()
            with pytest.raises(Refused, match="ledger_behind"):
                await run.agent.pay(world.ask("new"))
        world.clock.ahead_ms += QUIET_MS // 2 + 1_000
        world.block()
    async with again.run(record=record) as run:
        await run.run_pass()
        row = await run.pay("new")
        assert not lost.spent & set(queries.attempts(run.context.conn, row.id)[0].inputs)
        assert run.context.chain.external_spends == (), "spends of the lost ledger freeze nothing"


async def test_a_restore_keeps_a_token_the_ledger_knows_and_refuses_an_unknown_one(world: World) -> None:
    lost = await lost_payment(world)
    again, first = await put_back(world, lost.backup)
    token = (first.data_dir / "operator.token").read_text()
    for name in ("ledger.db", "keystore.json"):
        (first.data_dir / name).unlink()
    with pytest.raises(Refused, match="already_exists/file"):
        await put_back(world, lost.backup)
    assert listing(first.data_dir) == {"operator.token"}
    assert (first.data_dir / "operator.token").read_text() == token
    (first.data_dir / "operator.token").unlink()
    _, second = await put_back(world, lost.backup)
    kept = taken(again, "second.tar")
    for path in {*second.data_dir.iterdir()} - {second.data_dir / "operator.token"}:
        path.unlink()
    _, third = await put_back(world, kept)
    assert (second.app is not None, third.app) == (True, None)


async def test_a_ledger_restored_twice_waits_from_the_later_restore(world: World) -> None:
    lost = await lost_payment(world)
    again, _ = await put_back(world, lost.backup)
    world.clock.ahead_ms += QUIET_MS // 2
    world.block()
    again.folder = again.folder.rename(again.folder.with_name("first"))
    once_more, second = await put_back(world, taken(again, "second.tar"))
    async with once_more.run() as run:
        assert run.context.chain.restored_at_ms == second.restored_at_ms


async def test_a_ledger_that_fails_verify_is_not_backed_up(world: World) -> None:
    await lost_payment(world)
    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn, conn:
        conn.execute("DROP TRIGGER invoices_delete")
    before = listing(world.folder.parent)
    with pytest.raises(Refused, match=r"file_invalid.*invoices_delete"):
        taken(world, "second.tar")
    assert listing(world.folder.parent) == before
