"""Races: a pass while a payment is being signed, a caller that disconnects, commits in an awkward order."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, World, world_with_clock
from kit.payments import TTL_S, attempts, lose, pass_time_of

from payagent.agent.commits import payment_transitions as steps
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import payments
from sim.signing import sign


@pytest.fixture
def movable_world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


async def test_resuming_payments_while_requests_sign_them_pays_each_once(world: World) -> None:
    world.fund(*[20 * ADA] * 40)
    async with world.run() as run:
        await run.run_pass()
        stop = asyncio.Event()

        async def send_all() -> None:
            while not stop.is_set():
                for row in payments.payments_in(run.context.conn, [State.RESERVED]):
                    await run.agent.lifecycle.resume(row)
                await asyncio.sleep(0)

        sweeping = asyncio.create_task(send_all())
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(30)]
        for ask in asks:
            await run.agent.pay(ask)
        stop.set()
        await sweeping
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert len(world.transactions()) == 30


@pytest.mark.parametrize("yields", range(0, 12, 2))
async def test_a_payment_is_made_once_even_if_its_caller_disconnects(world: World, yields: int) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        ask = world.ask(key="k")
        task = asyncio.create_task(run.agent.pay(ask))
        for _ in range(yields):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await run.context.write("flush", lambda _unit: None)  # the job that the caller queued has run
        await run.settle_down(2)
        row, _ = await run.agent.pay(ask)
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert world.transactions() == [row.attempt.tx_id]
        assert run.owned() == world.on_chain()


async def test_a_payment_that_moved_to_a_new_invoice_meanwhile_is_not_cancelled(movable_world: World) -> None:
    """A pass would cancel it, as its invoice expired, while a caller moves it to a new one; one commit decides."""
    world = movable_world
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        first = await lose(world, run)
        await pass_time_of(world, run, 310)
        world.clock.ahead_ms += 310_000
        world.block()
        ask, begun, release = world.ask(), threading.Event(), threading.Event()
        waiting = run.context._writer._queue  # type: ignore[attr-defined]
        held = asyncio.create_task(run.context.write("hold", lambda _unit: (begun.set(), release.wait(60))))
        try:
            await asyncio.to_thread(begun.wait, 60)
            looking = asyncio.create_task(run.run_pass())
            while not waiting.qsize():
                await asyncio.sleep(0)
            paying = asyncio.create_task(run.agent.pay(ask))
            while waiting.qsize() < 2:
                await asyncio.sleep(0)
        finally:
            release.set()
        await asyncio.gather(held, looking, paying)
        await run.agent.submitter.drain(60)
        row = run.context.payment(first.id)
        assert (row.state, [one.kind for one in attempts(run, row)]) == (State.IN_FLIGHT, ["pay", "pay"])
        assert row.invoice.id != first.invoice.id
        await run.settle_down()
        assert run.state(first.id) is State.CONFIRMED


@pytest.mark.parametrize("stale", ["ttl", "inputs", "nonce_utxo", "price"])
async def test_a_transaction_signed_from_a_stale_plan_is_not_recorded(movable_world: World, stale: str) -> None:
    world = movable_world
    world.fund(2 * ADA, 3 * ADA)
    world.settings(timeout=7_200, price="3000000", splits=[])
    unsigned: list[str] = []

    def kill(name: str) -> None:
        if name == "before sign" and unsigned:
            raise RuntimeError("killed")

    async with world.run(checkpoint=kill) as run:
        row = await lose(world, run)
        unsigned.append(row.id)
        await pass_time_of(world, run, TTL_S + 1)
        row = run.context.payment(row.id)
        assert row.state is State.REPLACING
        plan = run.agent.lifecycle._rebuild(row)
        assert len(plan.inputs) == 2
        unsigned.clear()
        if stale == "ttl":
            old = run.agent.lifecycle._rebuild(
                replace(row, attempt=replace(row.attempt, ttl_slot=(row.attempt.ttl_slot or 0) - 1))
            )
        elif stale == "inputs":
            old = plan._replace(inputs=(plan.nonce_utxo,))
        elif stale == "nonce_utxo":
            old = plan._replace(nonce_utxo=next(utxo for utxo in plan.inputs if utxo != plan.nonce_utxo))
        else:
            cheaper = tuple(replace(one, units=one.units - 1) for one in row.outputs)
            old = run.agent.lifecycle._rebuild(replace(row, outputs=cheaper))
        raw, own, now_ms = sign(old, world.account.signer), world.account.address.raw, world.clock.now_ms()
        with pytest.raises(Refused, match="wrong_state"):
            await run.context.write("sign", lambda unit: steps.record_attempt(unit, row.id, old, raw, own, now_ms))
        assert len(attempts(run, row)) == 1
        await run.run_pass()
        assert [one.tx_id for one in attempts(run, row)][1:] == [plan.tx_id]


async def test_a_pass_that_fails_halfway_still_resubmits_open_attempts(movable_world: World) -> None:
    world, failing = movable_world, [""]

    def fail(name: str) -> None:
        if name == failing[0]:
            raise RuntimeError("no")

    world.fund(50 * ADA)
    async with world.run(checkpoint=fail) as run:
        row = await lose(world, run)
        world.control("faults", clear=True)
        world.fund(7 * ADA)
        world.clock.ahead_ms += 60_000
        failing[0] = "before deposit"
        with pytest.raises(Refused, match="store_failed"):
            await run.run_pass()
        await run.agent.submitter.drain(60)
        assert world.waiting() == [row.attempt.tx_id]
        failing[0] = ""
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        assert run.owned() == world.on_chain()


async def test_an_attempt_seen_in_a_block_is_not_replaced_when_recording_it_fails(movable_world: World) -> None:
    world, failing = movable_world, [""]

    def fail(name: str) -> None:
        if name == failing[0]:
            raise RuntimeError("no")

    world.fund(50 * ADA)
    world.settings(timeout=7_200)
    async with world.run(checkpoint=fail) as run:
        await run.run_pass()
        row = await run.pay()
        world.block()
        world.clock.ahead_ms += (TTL_S + 1) * 1000
        world.block()
        failing[0] = "before observe"
        await run.run_pass()
        assert (run.state(row.id), len(attempts(run, row))) == (State.IN_FLIGHT, 1)
        failing[0] = ""
        await run.run_pass()
        assert run.state(row.id) is State.CONFIRMED
