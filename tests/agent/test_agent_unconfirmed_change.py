"""Change that is in no block yet, spent when the available UTxOs are not enough: parents, children, their ends.

The chain and the agent share one clock here, which a test can move.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Relay, Run, World, with_terms, world_with_clock
from kit.external_spends import spend_elsewhere
from kit.handover import with_handover
from kit.payments import (
    LONG_S,
    TTL_S,
    assert_at_rest,
    assert_sound,
    attempts,
    family,
    fork_with,
    height,
    pass_time_of,
    replace_parent,
    wait_for_void,
)

from payagent.agent.base.config import AgentConfig
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.core.aggregate import PaymentRow, UtxoRow
from payagent.core.payment.machine import State
from payagent.core.policy import WALLET
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import limit_counters, payments
from payagent.wallet.utxo_index import Utxo

DEPTH = 8
chained = with_terms(unconfirmed_ancestors_max=DEPTH)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


async def test_a_chain_of_eight_unconfirmed_ancestors_lands_in_one_block(world: World) -> None:
    world.fund(300 * ADA)
    async with world.run(terms=with_terms(unconfirmed_ancestors_max=DEPTH, settle_depth=4)) as run:
        await run.run_pass()
        rows = [await run.pay(f"call {number}") for number in range(DEPTH + 1)]
        assert [queries.unconfirmed_ancestors(run.context.conn, row.attempt.tx_id or "") for row in rows] == list(
            range(DEPTH + 1)
        )
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("one too many")
        assert_sound(world, run)
        await run.settle_down()
        blocks = {run.context.payment(row.id).block.hash for row in rows}
        assert {run.state(row.id) for row in rows} == {State.CONFIRMED}
        assert len(blocks) == 1
        assert sorted(world.transactions()) == sorted(row.attempt.tx_id or "" for row in rows)
        assert_at_rest(world, run)
        await run.settle_down(4)
        assert {run.state(row.id) for row in rows} == {State.SETTLED}
        assert run.selectable() == world.unspent()
        assert_at_rest(world, run)


async def test_twenty_payments_from_one_utxo_land_within_a_few_blocks(world: World) -> None:
    world.fund(500 * ADA)
    async with world.run(terms=chained) as run:
        await run.run_pass()
        paid: set[str] = set()
        for _ in range(4):
            for number in range(20):
                with contextlib.suppress(Refused):
                    paid.add((await run.pay(f"call {number}")).id)
            await run.settle_down()
        assert len(paid) == 20
        assert {run.state(payment_id) for payment_id in paid} == {State.CONFIRMED}
        assert_at_rest(world, run)


async def test_unconfirmed_change_is_not_spent_when_off_or_when_the_merchant_submits(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.pay("first")
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("second")
    async with world.run(terms=lambda terms: with_handover(chained(terms))) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("third")


async def test_change_of_a_payment_that_the_merchant_submits_is_not_spent(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=lambda terms: with_handover(chained(terms))) as run:
        await run.run_pass()
        await run.pay("handed over")
    async with world.run(terms=chained) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("another")


async def test_change_of_a_payment_close_to_its_ttl_is_not_spent(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=chained) as run:
        await run.run_pass()
        world.fault("submit", "drop")
        await run.pay("first")
        world.clock.ahead_ms += 200_000
        await run.settle_down()
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("second")


NO_CBOR = {"status_code": 400, "error": "Bad Request", "message": "Invalid transaction CBOR."}
MISSING = {"status_code": 400, "error": "Bad Request", "message": "(UtxoFailure (BadInputsUTxO"}


@pytest.mark.parametrize("body", [NO_CBOR, MISSING], ids=["without a class", "by the ledger"])
async def test_change_of_a_refused_transaction_is_not_spent_until_a_provider_accepts_it(
    world: World, body: dict[str, object]
) -> None:
    world.fund(100 * ADA)
    with Relay(world.devnet).serving() as relay:
        async with world.run(terms=chained, providers={"relay": relay.url}) as run:
            await run.run_pass()
            relay.tell("/tx/submit", 400, body)
            await run.pay("first")
            with pytest.raises(Refused, match="funds_pending"):
                await run.pay("second")
            relay.untell("/tx/submit")
            world.clock.ahead_ms += 6_000
            await run.run_pass()
            second = await run.pay("second")
            await run.settle_down()
            assert run.state(second.id) is State.CONFIRMED
            assert_at_rest(world, run)


async def test_change_is_spent_when_one_of_two_providers_accepted_its_transaction(world: World) -> None:
    world.fund(100 * ADA)
    with Relay(world.devnet).serving() as relay:
        relay.tell("/tx/submit", 400, NO_CBOR)
        urls = {"relay": relay.url, "devnet": world.devnet.chain_url}
        async with world.run(terms=chained, providers=urls) as run:
            await run.run_pass()
            rows = [await run.pay(name) for name in ("first", "second")]
            await run.settle_down()
            assert [run.state(row.id) for row in rows] == [State.CONFIRMED] * 2


async def test_a_confirmed_utxo_is_chosen_as_the_nonce_utxo_when_there_is_one(world: World) -> None:
    world.settings(price="6000000", splits=[])
    world.fund(4 * ADA, 20 * ADA)
    async with world.run(terms=chained) as run:
        await run.run_pass()
        first = await run.pay("first")
        assert len(attempts(run, first)[0].inputs) == 1
        world.settings(price="15000000", splits=[])
        second = await run.pay("second")
        inputs = attempts(run, second)[0].inputs
        assert {ref.partition("#")[0] == first.attempt.tx_id for ref in inputs} == {True, False}
        assert not (second.nonce_utxo or "").startswith(first.attempt.tx_id or "-")
        await run.settle_down()
        assert {run.state(row.id) for row in (first, second)} == {State.CONFIRMED}
        assert_at_rest(world, run)


async def test_a_lost_parent_is_resubmitted_before_its_child(world: World) -> None:
    """Every transaction was dropped; each pass resubmits what is due, parents first."""
    world.fund(300 * ADA)
    async with world.run(terms=chained) as run:
        rows = await family(world, run, "a", "b", "c")
        world.control("faults", clear=True)
        run.agent.submitter.submit(rows[2].id)
        await run.agent.submitter.drain(60)
        assert world.waiting() == [row.attempt.tx_id for row in rows]
        await run.settle_down()
        assert {run.state(row.id) for row in rows} == {State.CONFIRMED}
        assert_at_rest(world, run)


async def test_a_split_spends_pending_change(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=chained) as run:
        await run.run_pass()
        await run.pay("first")
        row, _ = await run.agent.transfers.split(APP, 3, 5 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        assert_at_rest(world, run)


@contextlib.asynccontextmanager
async def two_providers(world: World, terms: Callable[[AgentConfig], AgentConfig]) -> AsyncIterator[Run]:
    with Relay(world.devnet).serving() as one, Relay(world.devnet).serving() as other:
        async with world.run(terms=terms, providers={"one": one.url, "other": other.url}) as run:
            yield run


class TestChildWithoutParent:
    @staticmethod
    async def cancelled(world: World, run: Run) -> list[PaymentRow]:
        """A child whose parent is cancelled; the cancel is deep."""
        parent, child = await family(world, run, "parent", "child")
        world.control("faults", clear=True)
        await run.agent.lifecycle.resolve(parent.id, APP)
        await run.agent.submitter.drain(60)
        await wait_for_void(world, run)
        await wait_for_void(world, run)
        return [parent, child]

    async def test_a_child_is_void_once_its_parents_replacement_is_deep(self, world: World) -> None:
        world.fund(300 * ADA)
        async with world.run(terms=with_terms(unconfirmed_ancestors_max=DEPTH, settle_depth=25)) as run:
            parent, child, grandchild = await replace_parent(world, run)
            assert len(attempts(run, parent)) == 2
            await run.settle_down()
            assert run.state(parent.id) is State.CONFIRMED
            for row in (child, grandchild):
                assert run.state(row.id) is not State.VOID, "not before the replacement is deep"
            assert_sound(world, run)
            await wait_for_void(world, run)
            await wait_for_void(world, run)
            for row in (child, grandchild):
                void = run.context.payment(row.id)
                assert (void.state, void.problem.name, void.attempt.tx_id) == (
                    State.VOID,
                    "payment_void/parent_replaced",
                    None,
                )
                assert void.void_tx_id == run.context.payment(parent.id).attempt.tx_id
            assert_at_rest(world, run)
            spent = limit_counters.totals(run.context.conn, WALLET)
            assert spent == payments.hold(run.context.conn, parent.id), "the void children count against no limit"
            await pass_time_of(world, run, LONG_S)
            again = await run.pay("child")
            assert again.id != child.id
            assert (again.nonce_utxo or "").startswith(run.context.payment(parent.id).attempt.tx_id or "-")
            await run.settle_down()
            assert run.state(again.id) is State.CONFIRMED
            assert_at_rest(world, run)
            await run.settle_down(26)
            assert run.state(parent.id) is State.SETTLED
            assert run.selectable() == world.unspent()
            assert_at_rest(world, run)

    async def test_a_void_child_is_confirmed_when_its_parent_returns_on_a_fork(self, world: World) -> None:
        world.fund(300 * ADA)
        async with world.run(terms=with_terms(unconfirmed_ancestors_max=DEPTH, settle_depth=60)) as run:
            await run.run_pass()
            low = height(world)
            parent, child, grandchild = await replace_parent(world, run)
            await run.settle_down()
            await wait_for_void(world, run)
            await wait_for_void(world, run)
            assert run.state(child.id) is State.VOID
            fork_with(world, low, *((row.attempt.cbor or b"") for row in (parent, child, grandchild)))
            for _ in range(3):
                await run.settle_down()
            for row in (parent, child, grandchild):
                assert run.state(row.id) is State.CONFIRMED
                assert run.context.payment(row.id).attempt.tx_id == row.attempt.tx_id
            assert_at_rest(world, run)

    async def test_parent_and_children_are_confirmed_again_after_a_rollback(self, world: World) -> None:
        world.fund(300 * ADA)
        async with world.run(terms=chained) as run:
            await run.run_pass()
            rows = [await run.pay(name) for name in ("a", "b", "c")]
            await run.settle_down()
            world.control("rollback", depth=1)
            world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
            await run.pass_time(3)
            assert {run.state(row.id) for row in rows} == {State.CONFIRMED}
            assert all(run.events(row.id).count("block_lost") == 1 for row in rows)
            assert_at_rest(world, run)

    async def test_a_child_is_void_when_its_parent_is_cancelled(self, world: World) -> None:
        world.fund(300 * ADA)
        async with world.run(terms=chained) as run:
            parent, child = await self.cancelled(world, run)
            assert run.state(parent.id) is State.VOID
            void = run.context.payment(child.id)
            assert (void.state, void.problem.name) == (State.VOID, "payment_void/parent_replaced")
            assert_at_rest(world, run)

    async def test_the_books_stay_sound_when_a_fork_moves_the_cancel_of_a_parent(self, world: World) -> None:
        """The child is void by the block of its parent's cancel, so that block must be in the books first."""
        world.fund(300 * ADA)
        terms = with_terms(unconfirmed_ancestors_max=DEPTH, settle_depth=60)
        async with two_providers(world, terms) as run:
            await run.run_pass()
            low = height(world)
            parent, child = await self.cancelled(world, run)
            assert run.state(parent.id) is run.state(child.id) is State.VOID
            cancel = attempts(run, parent)[-1]
            world.fault(f"/txs/{cancel.tx_id}", "server", count=2)
            fork_with(world, low, cancel.cbor)
            await run.run_pass()
            assert run.state(parent.id) is State.VOID, "no provider answered about it"
            fork_with(world, low)
            world.devnet.run(lambda devnet: devnet.chain.submit(cancel.cbor))
            for _ in range(3):
                await run.settle_down()
            assert_sound(world, run)

    async def test_a_child_with_its_own_nonce_utxo_is_replaced(self, world: World) -> None:
        world.settings(price="6000000", splits=[], timeout=LONG_S)
        world.fund(4 * ADA, 20 * ADA)
        async with world.run(terms=chained) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            parent = await run.pay("parent")
            world.settings(price="15000000", splits=[], timeout=LONG_S)
            child = await run.pay("child")
            assert not (child.nonce_utxo or "").startswith(parent.attempt.tx_id or "-")
            world.fund(60 * ADA)
            await run.run_pass()
            await pass_time_of(world, run, TTL_S + 60)
            await run.settle_down(2)
            assert run.state(parent.id) is State.CONFIRMED
            await pass_time_of(world, run, TTL_S + 60)
            await run.settle_down(2)
            row = run.context.payment(child.id)
            assert (row.state, row.nonce_utxo) == (State.CONFIRMED, child.nonce_utxo)
            assert_at_rest(world, run)


class TestCancelWithMissingInputs:
    async def test_a_cancel_does_not_wait_for_change_that_may_never_exist(self, world: World) -> None:
        world.settings(price="6000000", splits=[], timeout=900)
        world.fund(4 * ADA, 20 * ADA)
        async with world.run(terms=chained) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            parent = await run.pay("parent")
            world.settings(price="15000000", splits=[], timeout=900)
            child = await run.pay("child")
            assert any(ref.startswith(parent.attempt.tx_id or "-") for ref in attempts(run, child)[0].inputs)
            world.fund(60 * ADA)
            await run.run_pass()
            await pass_time_of(world, run, 900)
            await pass_time_of(world, run, 400)
            await wait_for_void(world, run)
            await wait_for_void(world, run)
            assert (run.state(parent.id), run.state(child.id)) == (State.VOID, State.VOID)
            assert_at_rest(world, run)

    async def test_a_cancel_is_signed_again_when_one_of_its_utxos_was_spent_externally(self, world: World) -> None:
        world.settings(price="150000000", splits=[], timeout=900)
        world.fund(100 * ADA, 100 * ADA, 100 * ADA)
        async with world.run() as run:
            row, other = await self.cancelled(world, run)
            world.control("faults", clear=True)
            spend_elsewhere(run, 3 * ADA, Utxo(other.tx_id, other.output_index, other.lovelace, ()))
            await run.run_pass()
            await unfreeze(run.context, APP)
            await run.settle_down()
            assert [set(one.inputs) for one in attempts(run, row)[1:]] == [
                {row.nonce_utxo, other.ref},
                {row.nonce_utxo},
            ]
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)

    async def test_an_operator_can_have_a_cancel_signed_again_without_a_rolled_back_utxo(
        self, world: World
    ) -> None:
        world.settings(price="150000000", splits=[], timeout=900)
        world.fund(100 * ADA)
        low = height(world)
        world.fund(110 * ADA)
        async with world.run() as run:
            row, other = await self.cancelled(world, run)
            assert other.lovelace == 110 * ADA
            fork_with(world, low)
            await run.run_pass()
            world.control("faults", clear=True)
            assert (await run.agent.lifecycle.resolve(row.id, APP)).state is State.CANCELLING
            await run.agent.submitter.drain(60)
            assert [set(one.inputs) for one in attempts(run, row)[1:]] == [
                {row.nonce_utxo, other.ref},
                {row.nonce_utxo},
            ]
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_sound(world, run)

    @staticmethod
    async def cancelled(world: World, run: Run) -> tuple[PaymentRow, UtxoRow]:
        """A payment of two UTxOs whose cancel no provider has; also the UTxO that is not its nonce UTxO."""
        await run.run_pass()
        world.fault("submit", "drop")
        row = await run.pay("of two coins")
        utxos = queries.utxos_reserved_for(run.context.conn, row.id)
        assert len(utxos) == 2
        await run.agent.lifecycle.resolve(row.id, APP)
        await run.agent.submitter.drain(60)
        return row, next(utxo for utxo in utxos if utxo.ref != row.nonce_utxo)
