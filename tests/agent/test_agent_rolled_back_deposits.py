"""A rollback removes for good the deposit that a payment spends: alert, bookings, and the end of the payment."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Relay, Run, World, with_terms, world_with_clock
from kit.external_spends import require_whole
from kit.payments import assert_at_rest, assert_sound, fork_with, height

from payagent.agent.commits import payment_transitions as steps
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.aggregate import PaymentRow, TxSeen
from payagent.core.history import SENTENCES
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts
from payagent.store.rows import attempts_and_utxos as queries
from sim.forks import mint_fork_block

SETTLE_DEPTH = 12
PAST_THE_TTL_S = 2400


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet that shares its clock with the agent; a test can move it."""
    with world_with_clock(tmp_path) as world:
        yield world


@asynccontextmanager
async def living(world: World, **more: object) -> AsyncIterator[Run]:
    async with world.run(terms=with_terms(settle_depth=SETTLE_DEPTH), **more) as run:  # type: ignore[arg-type]
        yield run


def made_by(world: World, ref: str | None) -> bytes:
    """The bytes of the transaction that made a UTxO."""
    tx_id = (ref or "").partition("#")[0]
    return world.devnet.run(lambda devnet: devnet.chain.tx(tx_id)[0].raw)  # type: ignore[no-any-return]


async def pay_and_vanish(world: World, run: Run) -> tuple[PaymentRow, bytes]:
    """A payment whose deposit and transaction a fork removes; returns it with the bytes of the deposit."""
    before = height(world)
    world.fund(50 * ADA)
    row = await run.pay_in_block()
    deposit = made_by(world, row.nonce_utxo)
    fork_with(world, before)
    await run.run_pass()
    return run.context.payment(row.id), deposit


def gone_tx(world: World, at_height: int) -> str:
    """The transaction in the block after a height."""
    tx_id: str = world.devnet.run(lambda devnet: devnet.chain.block(at_height + 1).txs[0].tx_id)
    return tx_id


async def denied(run: Run) -> None:
    """Four passes, each at another tip, a minute apart: three of them show that the deposit is gone."""
    await run.pass_time(4, 61)


def last_alert(run: Run, row: PaymentRow) -> str | None:
    return alerts.last_kind(run.context.conn, f"deposit:{row.id}")


async def test_a_payment_without_its_deposit_is_void_once_no_fork_can_bring_it_back(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        assert row.state is State.IN_FLIGHT
        assert last_alert(run, row) is None
        await denied(run)
        assert run.owned() == world.on_chain() == {}
        assert run.books()["held"]["lovelace"] > 0
        assert last_alert(run, row) == "deposit_rolled_back"
        assert "deposit_rolled_back" in run.events(row.id)
        assert_sound(world, run)
        await run.pass_time(2, PAST_THE_TTL_S)
        assert run.state(row.id) is State.IN_FLIGHT  # a fork may still reach back before its TTL
        await run.pass_time(SETTLE_DEPTH - 2, 61)
        assert run.state(row.id) is State.IN_FLIGHT
        await run.pass_time(4, 61)
        ended = run.context.payment(row.id)
        assert (ended.state, ended.problem.name, ended.attempt.tx_id) == (State.VOID, "deposit_rolled_back", None)
        assert last_alert(run, row) == "cleared"
        assert_at_rest(world, run)
        await require_whole(run)
        world.fund(50 * ADA)
        await run.run_pass()
        again = await run.pay("hello")  # the same request: nothing of the first payment can land any more
        await run.settle_down()
        assert again.id != row.id
        assert run.state(again.id) is State.CONFIRMED
        assert_at_rest(world, run)


async def test_a_rolled_back_deposit_that_is_locked_is_reversed_too(world: World) -> None:
    world.fund(20 * ADA)
    async with living(world) as run:
        before = height(world)
        ref = world.fund_with_datum(7 * ADA)
        deposit = made_by(world, ref)
        await run.run_pass()
        assert queries.utxo_states(run.context.conn)[ref] == "locked"
        await require_whole(run)
        fork_with(world, before)
        await denied(run)
        assert run.owned() == world.on_chain() == {"lovelace": 20 * ADA}
        await require_whole(run)
        world.devnet.run(lambda devnet: mint_fork_block(devnet.chain, [deposit], None))
        await run.run_pass()
        assert queries.utxo_states(run.context.conn)[ref] == "locked"
        assert run.owned() == world.on_chain() == {"lovelace": 27 * ADA}


async def test_a_deposit_that_returns_is_booked_again_and_the_payment_goes_on(world: World) -> None:
    world.settings(timeout=1200)
    async with living(world) as run:
        row, deposit = await pay_and_vanish(world, run)
        await denied(run)
        assert last_alert(run, row) == "deposit_rolled_back"
        world.devnet.run(lambda devnet: mint_fork_block(devnet.chain, [deposit], None))
        await run.pass_time(2, 201)
        assert run.state(row.id) is State.CONFIRMED
        assert last_alert(run, row) == "cleared"
        assert run.events(row.id).count("deposit_restored") == 1
        assert_at_rest(world, run)
        await require_whole(run)


async def test_a_pass_of_another_account_leaves_the_alert_as_it_is(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        await denied(run)
        assert last_alert(run, row) == "deposit_rolled_back"
    async with living(world.of_account(1)) as other:
        await other.pass_time(2, 61)
        assert alerts.raised(other.context.conn, "deposit_rolled_back") == [f"deposit:{row.id}"]
        assert "deposit_restored" not in other.events(row.id)


async def test_an_alert_of_an_earlier_version_is_raised_once_and_cleared(world: World) -> None:
    """Its subject had another word, and a sealed row keeps it."""
    world.settings(timeout=1200)
    async with living(world) as run:
        row, deposit = await pay_and_vanish(world, run)
        await denied(run)

        def as_before(unit: Unit, now_ms: int) -> None:
            clear_alert(unit, f"deposit:{row.id}", {}, now_ms)
            raise_alert(unit, "deposit_rolled_back", f"anchor:{row.id}", {"payment": row.id}, now_ms)

        await run.context.write_at("alert", as_before)
    async with living(world) as run:
        await run.pass_time(2, 61)
        assert alerts.raised(run.context.conn, "deposit_rolled_back") == [f"anchor:{row.id}"]
        world.devnet.run(lambda devnet: mint_fork_block(devnet.chain, [deposit], None))
        await run.pass_time(2, 201)
        assert alerts.raised(run.context.conn, "deposit_rolled_back") == []
        assert run.events(row.id).count("deposit_restored") == 1
        await require_whole(run)


async def test_a_deposit_that_returns_with_the_payment_that_spends_it_is_booked_with_it(world: World) -> None:
    async with living(world) as run:
        row, deposit = await pay_and_vanish(world, run)
        await denied(run)
        assert run.owned() == {}
        fork_with(world, height(world) - 1, deposit, row.attempt.cbor or b"")
        await run.pass_time(1)
        assert run.state(row.id) is State.CONFIRMED
        assert last_alert(run, row) == "cleared"
        assert_at_rest(world, run)
        await require_whole(run)


async def test_a_deposit_that_returns_after_the_payment_is_void_can_be_spent_again(world: World) -> None:
    async with living(world) as run:
        row, deposit = await pay_and_vanish(world, run)
        await denied(run)
        await run.pass_time(1, PAST_THE_TTL_S)
        await run.pass_time(SETTLE_DEPTH + 3, 61)
        assert run.state(row.id) is State.VOID
        world.devnet.run(lambda devnet: mint_fork_block(devnet.chain, [deposit], None))
        await run.run_pass()
        assert run.owned() == world.on_chain() == {"lovelace": 50 * ADA}
        again = await run.pay_in_block("another call")
        assert again.nonce_utxo == row.nonce_utxo
        assert run.state(again.id) is State.CONFIRMED
        assert_at_rest(world, run)
        await require_whole(run)


async def test_no_cancel_is_signed_without_the_deposit_and_an_earlier_cancel_delays_the_void(world: World) -> None:
    async with living(world) as run:
        before = height(world)
        world.fund(50 * ADA)
        row = await run.pay_in_block()
        fork_with(world, before)
        await run.run_pass()
        await run.agent.lifecycle.resolve(row.id, APP)
        await denied(run)
        with pytest.raises(Refused, match="deposit_rolled_back"):
            await run.agent.lifecycle.resolve(row.id, APP)
        await run.pass_time(1, PAST_THE_TTL_S)
        await run.pass_time(SETTLE_DEPTH + 3, 61)
        assert run.state(row.id) is State.CANCELLING
        await run.pass_time(1, 129_600)
        assert len(queries.attempts(run.context.conn, row.id)) == 2
        await run.pass_time(SETTLE_DEPTH + 3, 61)
        assert run.state(row.id) is State.VOID
        assert_at_rest(world, run)


async def test_a_payment_in_flight_without_its_deposit_cannot_be_cancelled(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        await denied(run)
        with pytest.raises(Refused, match="deposit_rolled_back"):
            await run.agent.lifecycle.resolve(row.id, APP)
        assert run.state(row.id) is State.IN_FLIGHT
        assert len(queries.attempts(run.context.conn, row.id)) == 1


async def test_a_payment_that_spends_the_change_is_void_together_with_its_parent(world: World) -> None:
    async with living(world) as run:
        before = height(world)
        world.fund(50 * ADA)
        parent = await run.pay_in_block("parent")
        child = await run.pay_in_block("child")
        assert (child.nonce_utxo or "").startswith(parent.attempt.tx_id or "?")
        fork_with(world, before)
        await run.run_pass()
        await denied(run)
        assert {last_alert(run, row) for row in (parent, child)} == {"deposit_rolled_back"}
        assert run.owned() == world.on_chain() == {}
        assert_sound(world, run)
        await run.pass_time(1, PAST_THE_TTL_S)
        await run.pass_time(SETTLE_DEPTH + 5, 61)
        assert {run.state(row.id) for row in (parent, child)} == {State.VOID}
        assert_at_rest(world, run)
        await require_whole(run)


async def test_a_payment_with_another_nonce_utxo_is_cancelled_without_the_deposit(world: World) -> None:
    """Another UTxO takes its place, in the next attempt or in the cancel."""
    async with living(world) as run:
        world.fund(8 * ADA)
        before = height(world)
        world.fund(9 * ADA)
        await run.run_pass()
        row = await run.pay()
        await run.settle_down()
        assert len(queries.attempts(run.context.conn, row.id)[0].inputs) == 2
        assert not (row.nonce_utxo or "").startswith(gone_tx(world, before))
        fork_with(world, before)
        await run.run_pass()
        await denied(run)
        assert last_alert(run, row) is None
        assert run.owned() == world.on_chain() == {"lovelace": 8 * ADA}
        await run.pass_time(1, PAST_THE_TTL_S)
        await run.pass_time(8, 61)
        assert run.state(row.id) is State.VOID
        assert [one.kind for one in queries.attempts(run.context.conn, row.id)] == ["pay", "cancel"]
        assert_sound(world, run)
        await run.pass_time(SETTLE_DEPTH, 61)
        assert_at_rest(world, run)
        await require_whole(run)


async def test_a_failed_read_does_not_count_as_evidence_against_the_deposit(world: World) -> None:
    with Relay(world.devnet).serving() as relay:
        async with living(world, providers={"relay": relay.url}) as run:
            before = height(world)
            world.fund(50 * ADA)
            row = await run.pay_in_block()
            fork_with(world, before)
            await run.run_pass()
            await run.pass_time(1, 61)
            relay.tell(f"/txs/{(row.nonce_utxo or '').partition('#')[0]}", 500, {})
            await run.pass_time(6, 61)
            assert last_alert(run, row) is None
            assert run.owned() == {"lovelace": 50 * ADA}
            relay.unfreeze()
            await run.pass_time(2, 61)
            assert last_alert(run, row) is None  # evidence from before the failed reads does not count
            await run.pass_time(2, 61)
            assert last_alert(run, row) == "deposit_rolled_back"
            assert run.owned() == world.on_chain() == {}


async def test_both_of_two_providers_must_report_the_deposit_gone(world: World) -> None:
    with Relay(world.devnet).serving() as other:
        async with living(world, providers={"devnet": world.devnet.chain_url, "other": other.url}) as run:
            before = height(world)
            world.fund(50 * ADA)
            row = await run.pay_in_block()
            made = (row.nonce_utxo or "").partition("#")[0]
            other.freeze(f"/txs/{made}")
            other.freeze(f"/txs/{made}/utxos")
            fork_with(world, before)
            for _ in range(5):
                await run.pass_time(1, 23)  # within the time in which providers may disagree
            assert last_alert(run, row) is None
            assert run.owned() == {"lovelace": 50 * ADA}
            other.unfreeze()
            await denied(run)
            await denied(run)
            assert last_alert(run, row) == "deposit_rolled_back"
            assert run.owned() == world.on_chain() == {}


async def test_restarts_repeat_no_event_and_do_not_start_the_wait_again(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        await denied(run)
        await run.pass_time(1, PAST_THE_TTL_S)
    for _ in range(SETTLE_DEPTH // 2):
        async with living(world) as run:
            await run.pass_time(2, 61)
    async with living(world) as run:
        await denied(run)
        assert run.state(row.id) is State.VOID
        assert run.events(row.id).count("deposit_rolled_back") == 1
        assert run.events(row.id).count("time_over") == 1
        assert last_alert(run, row) == "cleared"


async def test_a_fork_that_removes_the_first_block_after_the_ttl_starts_the_wait_again(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        await denied(run)
        await run.pass_time(1, PAST_THE_TTL_S)
        await run.pass_time(SETTLE_DEPTH - 3, 61)
        fork_with(world, height(world) - SETTLE_DEPTH + 1)
        await run.pass_time(5, 61)
        assert run.state(row.id) is State.IN_FLIGHT
        assert run.events(row.id).count("time_over") == 2
        await run.pass_time(SETTLE_DEPTH, 61)
        assert run.state(row.id) is State.VOID
        assert_at_rest(world, run)


async def test_verify_finds_a_payment_that_became_void_too_early(world: World) -> None:
    async with living(world) as run:
        row, _ = await pay_and_vanish(world, run)
        await denied(run)
        block = TxSeen("", "ab" * 32, height(world), (row.attempt.ttl_slot or 0) - 1)
        utxos, now_ms = run.context.utxos, world.clock.now_ms()

        def job(unit: Unit) -> None:
            steps.record_time_over(unit, row.id, block, utxos, now_ms)

        await run.context.write("void", job)
        assert run.state(row.id) is State.IN_FLIGHT  # the commit refuses to end it

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(steps, "any", lambda _: False, raising=False)
            await run.context.write("void", job)
        assert run.state(row.id) is State.VOID
        with run.context.readers.snapshot() as conn:
            found = [
                told
                for told in verify(conn, Owner(world.account.address, DEVNET))
                if isinstance(told, AuditFinding)
            ]
        assert [(one.table, "last limit" in one.what) for one in found] == [("events", True)]


def test_the_cli_has_words_for_rolled_back_deposit_events() -> None:
    assert {"deposit_rolled_back", "deposit_restored", "time_over"} <= SENTENCES.keys()
