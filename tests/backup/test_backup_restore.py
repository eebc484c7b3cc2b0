"""A wallet that comes back from a backup: what it knows, what it does not, and that it never pays by it twice."""

import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.agent import ADA, Clock, Relay, World
from kit.audit import of_an_older_payagent
from kit.backup import NOBODY, listing, put_back, settings_of, taken

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.base.ports import Ports, SystemRandomness
from payagent.backup.archive import LEDGER
from payagent.backup.compare_chain import Differences
from payagent.backup.restore import restore
from payagent.core.payment import State
from payagent.core.problems import Refused
from payagent.store.db.signer_record import SignerFile
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments


@dataclass
class Lost:
    """A payment after the backup: the coins that it spent, and what left the wallet by it."""

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


async def test_a_backup_is_taken_beside_the_payments_and_has_all_that_was_before_it(world: World) -> None:
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


async def test_of_an_older_payagents_ledger_the_older_one_makes_the_backup(world: World) -> None:
    """One by the new payagent would be none that the older one takes."""
    await lost_payment(world)
    of_an_older_payagent(world.folder / LEDGER)
    with pytest.raises(Refused, match="of an older payagent: use that version, or start this one") as caught:
        taken(world, "second.tar")
    assert caught.value.name == "file_invalid/backup"


async def test_what_is_put_back_is_private_and_leaves_nothing_beside_it(world: World) -> None:
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


async def test_the_utxos_that_are_gone_and_those_that_came_are_told(world: World) -> None:
    lost = await lost_payment(world)
    world.fund(7 * ADA)
    _, restored = await put_back(world, lost.backup)
    found = restored.differences
    assert isinstance(found, Differences)
    assert (found.gone.count, found.unknown.count) == (len(lost.spent), 2)
    assert found.gone.units["lovelace"] + 7 * ADA - found.unknown.units["lovelace"] == lost.lovelace


async def test_a_wallet_that_nothing_was_lost_of_differs_in_nothing(world: World) -> None:
    world.fund(100 * ADA, 100 * ADA)
    async with world.run() as run:
        await run.pay_in_block("known")
        await run.pay("under way")
        backup = taken(world)
    _, restored = await put_back(world, backup)
    found = restored.differences
    assert isinstance(found, Differences)
    assert (found.gone.count, found.unknown.count, restored.manifest.open_payments) == (0, 0, 2)


async def test_nothing_is_signed_until_all_that_is_unknown_has_landed_or_run_out(world: World) -> None:
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
    async with again.run() as run:  # a restart does not make it shorter
        await run.run_pass()
        for order in (run.agent.pay(world.ask("new")), run.agent.transfers.split("app_test", 2, 2 * ADA)):
            with pytest.raises(Refused, match="restored_recently"):
                await order
        world.clock.ahead_ms += 60_000
        await run.run_pass()
        row = await run.pay("new")
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED


async def test_a_payment_that_was_under_way_is_followed_meanwhile(world: World) -> None:
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


async def test_one_that_lands_late_is_seen_before_anything_is_signed(world: World) -> None:
    """Its bytes were on their way when the wallet was put back: its coin still looked free."""
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


async def test_a_provider_that_does_not_answer_keeps_nobody_from_restoring(world: World) -> None:
    lost = await lost_payment(world)
    again, restored = await put_back(world, lost.backup, "http://127.0.0.1:1/api/v0")
    assert "cannot read its genesis" in str(restored.differences)
    await pass_quiet(world)
    async with again.run() as run:
        await run.run_pass()
        assert not lost.spent & run.selectable()


async def test_the_second_provider_is_asked_when_the_first_is_of_another_chain(world: World) -> None:
    lost = await lost_payment(world)
    with Relay(world.devnet).serving() as relay:
        relay.tell("/genesis", 200, {"network_magic": 42, "system_start": 1, "slot_length": 20})
        settings = settings_of(world.folder.with_name("restored"), relay.url)
        both = [settings.chain.providers[0], settings_of(world.folder, world.devnet.chain_url).chain.providers[0]]
        settings = settings.model_copy(update={"chain": settings.chain.model_copy(update={"providers": both})})
        restored = await restore(settings, lost.backup, Ports(world.clock, SystemRandomness()))
    assert isinstance(restored.differences, Differences)


async def test_one_provider_whose_own_clock_is_wrong_keeps_nothing_from_being_restored(world: World) -> None:
    lost = await lost_payment(world)
    with Relay(world.devnet).serving() as relay:
        relay.tell("/health/clock", 200, {"server_time": world.clock.now_ms() + 3_600_000})
        settings = settings_of(world.folder.with_name("restored"), relay.url)
        both = [settings.chain.providers[0], settings_of(world.folder, world.devnet.chain_url).chain.providers[0]]
        settings = settings.model_copy(update={"chain": settings.chain.model_copy(update={"providers": both})})
        restored = await restore(settings, lost.backup, Ports(world.clock, SystemRandomness()))
    assert isinstance(restored.differences, Differences)


async def test_by_a_clock_that_is_behind_nothing_is_restored(world: World) -> None:
    """The time from which on it is safe to sign could not be told."""
    lost = await lost_payment(world)
    world.clock.ahead_ms += 3_600_000
    world.block()
    world.clock.ahead_ms -= 3_600_000
    with pytest.raises(Refused, match="clock_skew"):
        await put_back(world, lost.backup)
    assert not world.folder.with_name("restored").exists()


async def test_by_a_clock_that_is_ahead_nothing_is_restored(world: World) -> None:
    """To it all blocks are old, as if the chain stood still; the provider's own clock tells."""
    lost = await lost_payment(world)
    data_dir, ahead = world.folder.with_name("restored"), Clock(world.clock.ahead_ms + 3_600_000)
    with pytest.raises(Refused, match="clock_skew"):
        await restore(settings_of(data_dir, world.devnet.chain_url), lost.backup, Ports(ahead, SystemRandomness()))
    assert not data_dir.exists()


@pytest.mark.parametrize("off_ms", [-30 * 86_400_000, 30 * 86_400_000])
async def test_by_a_wrong_clock_and_without_the_chain_it_is_quiet_from_when_that_is_mended(
    world: World, off_ms: int
) -> None:
    lost = await lost_payment(world)
    world.clock.ahead_ms += off_ms
    again, restored = await put_back(world, lost.backup, NOBODY)
    assert restored.signs_at_ms is None
    world.clock.ahead_ms -= off_ms
    world.block()
    record = SignerFile(again.folder / "signer.json")
    for _ in range(2):  # a restart does not make it shorter, nor longer
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
        assert run.context.chain.external_spends == (), "what the lost ledger knew freezes nothing"


async def test_a_token_that_the_ledger_knows_is_kept_and_another_is_not_taken(world: World) -> None:
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


async def test_a_ledger_that_was_put_back_twice_is_quiet_after_the_later_time(world: World) -> None:
    lost = await lost_payment(world)
    again, _ = await put_back(world, lost.backup)
    world.clock.ahead_ms += QUIET_MS // 2
    world.block()
    again.folder = again.folder.rename(again.folder.with_name("first"))
    once_more, second = await put_back(world, taken(again, "second.tar"))
    async with once_more.run() as run:
        assert run.context.chain.restored_at_ms == second.restored_at_ms


async def test_books_that_are_not_whole_are_neither_taken_nor_put_back(world: World) -> None:
    await lost_payment(world)
    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn, conn:
        conn.execute("DROP TRIGGER invoices_no_delete")
    before = listing(world.folder.parent)
    with pytest.raises(Refused, match=r"file_invalid.*invoices_no_delete"):
        taken(world, "second.tar")
    assert listing(world.folder.parent) == before
