"""Payments whose signed transaction the merchant submits: followed, retried and cancelled.

The chain and the agent share one clock, which a test can move.
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
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import WALLET
from payagent.core.problems import Refused
from payagent.dialects import RetryVerdict, make_response
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import limit_counters

REFUSAL = {"detail": {"error": "x"}}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves, and a merchant that submits our signed transactions."""
    with world_with_clock(tmp_path) as world:
        world.terms = with_handover(world.terms)
        yield world


async def past_the_invoice(world: World, run: Run) -> None:
    """Wait until the invoice has expired, so that the merchant issues a new one."""
    world.clock.ahead_ms += 300_000
    await run.settle_down()


class TestMerchantSubmits:
    async def test_payagent_does_not_submit_a_payment_that_the_merchant_submits(self, world: World) -> None:
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

    async def test_a_transaction_the_merchant_submits_is_followed_until_it_settles(self, world: World) -> None:
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

    async def test_payagent_resubmits_the_transaction_itself_after_its_block_is_rolled_back(
        self, world: World
    ) -> None:
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

    async def test_a_restart_does_not_submit_a_payment_that_the_merchant_submits(self, world: World) -> None:
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

    async def test_a_transaction_too_big_for_a_header_is_refused_with_its_own_code(self, world: World) -> None:
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
            assert limit_counters.totals(run.context.conn, WALLET) == {"lovelace": fee}

    async def test_a_payment_is_void_only_after_its_cancel_is_deep_and_seen_three_times(
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
            assert run.state(row.id) is State.CANCELLING, "one block is not deep enough"
            await run.settle_down(VOID_DEPTH)
            for _ in range(5):
                await run.settle_down()
            assert run.state(row.id) is State.CANCELLING, "several passes within a minute count as one"
            world.clock.ahead_ms += 61_000
            await run.settle_down()
            assert run.state(row.id) is State.CANCELLING
            world.clock.ahead_ms += 61_000
            await run.settle_down()
            assert run.state(row.id) is State.VOID

    async def test_a_payment_that_lands_before_its_cancel_is_confirmed(self, world: World) -> None:
        """The merchant submits at the last moment, in a block that payagent sees late."""
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

    async def test_a_rolled_back_cancel_is_submitted_again_until_the_payment_is_void(self, world: World) -> None:
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

    async def test_a_cancel_that_reaches_no_block_before_its_ttl_is_replaced_by_a_new_cancel(
        self, world: World
    ) -> None:
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

    async def test_a_cancel_signed_before_a_restart_is_submitted_after_it(self, world: World) -> None:
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


class TestRetryAnswers:
    async def test_a_delivery_is_accepted_only_once_the_client_has_the_merchants_answer(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            row, advice = await run.agent.deliveries.take_answer(row.id, make_response(200, {}, {}))
            assert (advice.verdict, advice.again_after_s) == (RetryVerdict.SERVED, None)
            assert row.delivery is Delivery.PRESENTED
            row = await run.agent.deliveries.record_delivery(row.id, 200)
            assert row.delivery is Delivery.ACCEPTED

    async def test_the_delay_before_the_next_retry_grows_up_to_ten_seconds(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            pauses = []
            for _ in range(7):
                _, advice = await run.agent.deliveries.take_answer(row.id, make_response(503, {}, "busy"))
                pauses.append(advice.again_after_s)
            assert pauses == [0.5, 1, 2, 4, 8, 10, 10]

    async def test_a_request_is_not_retried_while_its_payment_is_being_cancelled(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            _, advice = await run.agent.deliveries.take_answer(row.id, make_response(503, {}, "busy"))
            assert advice.again_after_s is None


class TestNextPaymentOfTheIntent:
    async def test_the_next_payment_spends_an_output_of_the_cancel(self, world: World) -> None:
        world.fund(50 * ADA, 40 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await pass_ttl(world, run)
            same, is_new = await run.agent.pay(world.ask())
            assert (same.id, is_new) == (row.id, False), "a payment being cancelled is still the intent's payment"
            await wait_for_void(world, run)
            cancel = run.context.payment(row.id).attempt.tx_id
            await past_the_invoice(world, run)
            again = await run.pay()
            assert again.id != row.id
            assert (again.nonce_utxo or "").startswith(f"{cancel}#")

    async def test_the_next_payment_is_refused_while_no_output_of_the_cancel_is_available(
        self, world: World
    ) -> None:
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
                "an output that descends from the cancel will do"
            )


class TestCrash:
    @pytest.mark.parametrize("point", ["before cancel", "after cancel", "before void", "after void"])
    async def test_a_crash_at_a_commit_point_of_the_cancel_still_leaves_the_payment_void(
        self, world: World, point: str
    ) -> None:
        """Memory is lost at the crash. The next run continues from the ledger."""
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
