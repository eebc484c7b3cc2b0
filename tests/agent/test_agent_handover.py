"""Transactions that are handed over: the merchant broadcasts or nobody does, and what is refused comes back.

The chain and the agent share one clock here, which a test can move.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, Run, World, with_terms, world_with_clock
from kit.handover import VOID_DEPTH, broadcast, pass_ttl, with_handover
from kit.payments import assert_memory, wait_for_void

from payagent.agent.base.config import AgentConfig
from payagent.agent.payments.lifecycle import CANCEL_TTL_S
from payagent.core.payment import Delivery, State
from payagent.core.policy import WALLET
from payagent.core.problems import Refused
from payagent.dialects import RetryVerdict, make_response
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import limit_counters as spending

REFUSAL = {"detail": {"error": "x"}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves, and a merchant that takes signed transactions."""
    with world_with_clock(tmp_path) as world:
        world.terms = with_handover(world.terms)
        yield world


async def past_the_invoice(world: World, run: Run) -> None:
    """The merchant makes a new invoice for a call whose last one is over."""
    world.clock.ahead_ms += 300_000
    await run.settle_down()


class TestHandedOver:
    async def test_nothing_is_broadcast_and_the_headers_carry_the_bytes(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            assert (row.state, row.invoice.merchant_submits, row.invoice.proof) == (
                State.IN_FLIGHT,
                True,
                "signed_cbor",
            )
            assert run.context.is_ready(row)
            for _ in range(4):
                world.clock.ahead_ms += 60_000
                await run.settle_down()
            assert world.transactions() == []
            assert queries.submissions(run.context.conn, row.attempt.tx_id or "") == (0, 0)
            assert run.state(row.id) is State.IN_FLIGHT

    async def test_what_the_merchant_broadcasts_is_followed_to_the_end(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run(terms=with_terms(settle_depth=4)) as run:
            await run.run_pass()
            row = await run.pay()
            assert broadcast(world, row.attempt.cbor or b"") == 200
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            await run.settle_down(4)
            assert run.state(row.id) is State.SETTLED
            assert run.owned() == world.on_chain()
            assert_memory(run)

    async def test_after_a_block_held_it_payagent_sends_it_again_itself(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            broadcast(world, row.attempt.cbor or b"")
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            world.control("rollback", depth=1)
            world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
            await run.pass_time(4)
            assert run.events(row.id).count("block_lost") == 1
            assert run.state(row.id) is State.CONFIRMED
            assert world.transactions() == [row.attempt.tx_id]

    async def test_a_restart_broadcasts_nothing_either(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
        async with world.run() as run:
            await run.pass_time(4)
            assert world.transactions() == []
            assert run.state(row.id) is State.IN_FLIGHT
            again, is_new = await run.agent.pay(world.ask())
            assert (again.id, again.attempt.cbor, is_new) == (row.id, row.attempt.cbor, False)

    async def test_a_transaction_too_big_for_a_header_has_its_own_code(self, world: World) -> None:
        for _ in range(5):
            world.fund(*[1 * ADA] * 45)
        async with world.run() as run:
            await run.run_pass()
            world.settings(price=str(200 * ADA), splits=[])
            with pytest.raises(Refused, match="utxos_too_small/header_size"):
                await run.pay()
        async with world.run(terms=lambda terms: without_handover(terms)) as run:
            await run.run_pass()
            row, _ = await run.agent.pay(world.ask("by hash"))
            assert row.state is not State.REJECTED


def without_handover(terms: AgentConfig) -> AgentConfig:
    merchants = {origin: replace(merchant, proof="tx_hash") for origin, merchant in terms.merchants.items()}
    return replace(terms, merchants=merchants)


class TestCancel:
    async def test_a_payment_that_nobody_submits_in_time_is_cancelled(self, world: World) -> None:
        world.fund(50 * ADA, 30 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            before = run.owned()
            await pass_ttl(world, run)
            assert run.state(row.id) is State.CANCELLING
            assert run.context.payment(row.id).problem.name == "payment_void/not_broadcast"
            await wait_for_void(world, run)
            ended = run.context.payment(row.id)
            assert ended.state is State.VOID
            fee = ended.attempt.fee_lovelace or 0
            assert run.owned() == world.on_chain() == {"lovelace": before["lovelace"] - fee}
            assert run.books()["fees"] == {"lovelace": fee}
            assert "held" not in run.books()
            assert_memory(run)
            assert spending.totals(run.context.conn, WALLET) == {"lovelace": fee}

    async def test_a_payment_is_void_only_after_its_cancel_is_deep_and_was_seen_three_times(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            await run.settle_down()
            world.clock.ahead_ms += 200_000
            await run.run_pass()
            assert run.state(row.id) is State.CANCELLING, "one block is not deep"
            await run.settle_down(VOID_DEPTH)
            for _ in range(5):
                await run.settle_down()
            assert run.state(row.id) is State.CANCELLING, "many looks within a minute are one"
            world.clock.ahead_ms += 61_000
            await run.settle_down()
            assert run.state(row.id) is State.CANCELLING
            world.clock.ahead_ms += 61_000
            await run.settle_down()
            assert run.state(row.id) is State.VOID

    async def test_the_attempt_can_win_over_its_cancel(self, world: World) -> None:
        """A merchant that broadcasts at the last moment, in a block that payagent sees late."""
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            world.fault("/txs/" + (row.attempt.tx_id or ""), "server")
            broadcast(world, row.attempt.cbor or b"")
            world.block()
            await pass_ttl(world, run)
            assert run.state(row.id) is State.CANCELLING
            world.control("faults", clear=True)
            await run.settle_down(2)
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == world.on_chain()
            assert world.transactions() == [row.attempt.tx_id]

    async def test_a_cancel_whose_block_is_lost_is_on_its_way_again(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            depth = world.devnet.run(lambda devnet: devnet.chain.tip.height) - (
                run.context.payment(row.id).block.height or 0
            )
            world.control("rollback", depth=depth + 1)
            world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
            world.block(depth + 2)
            await run.run_pass()
            assert run.state(row.id) is State.CANCELLING
            assert run.books()["held"]
            assert run.owned() == world.on_chain()
            assert not run.selectable()
            await run.pass_time(2)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert run.owned() == world.on_chain()
            assert_memory(run)

    async def test_a_cancel_that_is_not_in_a_block_in_time_is_signed_anew(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            world.fault("submit", "drop")
            await pass_ttl(world, run)
            first = run.context.payment(row.id).attempt.tx_id
            world.clock.ahead_ms += 1000 * (CANCEL_TTL_S + 60)
            world.block()
            world.control("faults", clear=True)
            await run.settle_down(2)
            await run.settle_down(2)
            second = run.context.payment(row.id).attempt.tx_id
            assert first != second
            assert world.transactions() == [second]
            assert all(row.nonce_utxo in attempt.inputs for attempt in queries.attempts(run.context.conn, row.id))

    async def test_a_restart_between_the_cancel_and_its_sending_sends_it(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            world.fault("submit", "drop")
            await pass_ttl(world, run)
            assert run.state(row.id) is State.CANCELLING
        world.control("faults", clear=True)
        async with world.run() as run:
            await run.run_pass()
            world.clock.ahead_ms += 10_000
            await run.settle_down(2)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID


class TestAnswers:
    async def test_a_proof_that_is_accepted_counts_once_the_client_has_the_answer(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            row, advice = await run.agent.deliveries.take_answer(row.id, make_response(200, {}, {}))
            assert (advice.answer.said, advice.again_after_s) == (RetryVerdict.SERVED, None)
            assert row.delivery is Delivery.PRESENTED
            row = await run.agent.deliveries.record_delivery(row.id, 200)
            assert row.delivery is Delivery.ACCEPTED

    async def test_the_same_proof_is_shown_again_with_growing_pauses(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            pauses = []
            for _ in range(7):
                _, advice = await run.agent.deliveries.take_answer(row.id, make_response(503, {}, "busy"))
                pauses.append(advice.again_after_s)
            assert pauses == [0.5, 1, 2, 4, 8, 10, 10]

    async def test_a_cancelled_payment_shows_no_proof(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            _, advice = await run.agent.deliveries.take_answer(row.id, make_response(503, {}, "busy"))
            assert advice.again_after_s is None


class TestTheNextPaymentOfTheIntent:
    async def test_it_spends_what_the_cancel_gave_back(self, world: World) -> None:
        world.fund(50 * ADA, 40 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            same, is_new = await run.agent.pay(world.ask())
            assert (same.id, is_new) == (row.id, False), "while it is cancelled it is the intent's one payment"
            await wait_for_void(world, run)
            cancel = run.context.payment(row.id).attempt.tx_id
            await past_the_invoice(world, run)
            again = await run.pay()
            assert again.id != row.id
            assert (again.nonce_utxo or "").startswith(f"{cancel}#")

    async def test_it_waits_while_nothing_of_the_cancel_is_free(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            await run.pay()
            await pass_ttl(world, run)
            await wait_for_void(world, run)
            world.fund(60 * ADA)
            await run.run_pass()
            await past_the_invoice(world, run)
            other, _ = await run.agent.pay(world.ask("another"))
            with pytest.raises(Refused, match="cancel_too_recent"):
                await run.agent.pay(world.ask())
            broadcast(world, other.attempt.cbor or b"")
            await run.settle_down()
            again = await run.pay()
            assert (again.nonce_utxo or "").startswith(f"{other.attempt.tx_id}#"), (
                "what descends from the cancel is as good"
            )


class TestDeath:
    @pytest.mark.parametrize("point", ["before cancel", "after cancel", "before void", "after void"])
    async def test_at_a_commit_point_of_the_cancel_ends_in_the_same_place(self, world: World, point: str) -> None:
        """What that life still knew is lost; the next one goes on from what is durable."""
        world.fund(50 * ADA)
        dead = False

        def die(name: str) -> None:
            nonlocal dead
            dead |= name == point
            if dead:
                raise RuntimeError("killed")

        async with world.run(checkpoint=die) as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            if not dead:
                await wait_for_void(world, run)
            assert dead
        async with world.run() as run:
            await run.run_pass()
            await run.pass_time(2)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert run.owned() == world.on_chain()
            assert "held" not in run.books()
            assert len(world.transactions()) == 1
            assert_memory(run)
