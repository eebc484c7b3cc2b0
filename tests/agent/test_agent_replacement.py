"""Attempts that reach no block before their TTL: replaced on the same nonce UTxO, or cancelled.

The chain and the agent share one clock here, which a test can move.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Relay, Run, World, with_terms, world_with_clock
from kit.handover import broadcast, with_handover
from kit.payments import (
    LONG_S,
    TTL_S,
    assert_at_rest,
    assert_sound,
    attempts,
    fork_with,
    height,
    lose,
    pass_time_of,
    wait_for_void,
)

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.chain_sync.follow_up import RESUBMIT_MAX_MS
from payagent.api.models.payments import Payment
from payagent.core.address import Address, encode_address, parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.policy import WALLET
from payagent.core.problems import Refused
from payagent.store.rows import alerts, events, limit_counters, payments
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.transaction import TxPlan, select, send_all
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


class TestSameInvoice:
    async def test_a_lost_attempt_is_replaced_and_lands_once(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        async with world.run(terms=with_terms(settle_depth=4)) as run:
            first = await lose(world, run)
            await pass_time_of(world, run, TTL_S + 1)
            row = run.context.payment(first.id)
            assert (row.state, len(attempts(run, row))) == (State.IN_FLIGHT, 2)
            assert row.attempt.tx_id != first.attempt.tx_id
            assert (row.nonce_utxo, row.outputs, row.invoice.seq) == (
                first.nonce_utxo,
                first.outputs,
                first.invoice.seq,
            )
            assert attempts(run, row)[0].inputs == attempts(run, row)[1].inputs
            merchant = run.context.config.merchants[world.origin]
            assert retry_headers(row, merchant, world.address)["X-Payment"] == row.attempt.tx_id
            assert_sound(world, run)
            await run.settle_down()
            assert (run.state(row.id), world.transactions()) == (State.CONFIRMED, [row.attempt.tx_id])
            assert_at_rest(world, run)
            await run.settle_down(4)
            assert run.state(row.id) is State.SETTLED
            assert run.selectable() == world.unspent()
            assert_at_rest(world, run)

    async def test_an_attempt_is_replaced_only_once_the_tip_passes_its_ttl_and_it_is_not_found(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        async with world.run() as run:
            row = await lose(world, run)
            world.clock.ahead_ms += (TTL_S - 200) * 1000
            await run.settle_down()
            world.clock.ahead_ms += 250_000
            await run.run_pass()
            assert len(attempts(run, row)) == 1, "only the local clock has passed the TTL"
            world.fault(f"/txs/{row.attempt.tx_id}", "rate", count=1)
            await run.settle_down()
            assert len(attempts(run, row)) == 1, "no provider could say whether it is in a block"
            world.clock.ahead_ms += 61_000
            await run.settle_down()
            assert len(attempts(run, row)) == 2

    async def test_an_old_attempt_that_lands_on_a_fork_confirms_the_payment(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        async with world.run(terms=with_terms(settle_depth=12)) as run:
            first = await lose(world, run)
            low = height(world)
            await pass_time_of(world, run, TTL_S + 1)
            await run.settle_down()
            second = run.context.payment(first.id)
            assert second.state is State.CONFIRMED
            fork_with(world, low, first.attempt.cbor or b"")
            await run.settle_down(2)
            row = run.context.payment(first.id)
            assert (row.state, row.attempt.tx_id) == (State.CONFIRMED, first.attempt.tx_id)
            assert world.transactions() == [first.attempt.tx_id]
            assert_at_rest(world, run)
            await run.settle_down(14)
            assert run.state(row.id) is State.SETTLED
            assert_at_rest(world, run)

    async def test_a_payment_is_replaced_each_time_its_attempt_expires(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        async with world.run() as run:
            row = await lose(world, run)
            for count in (2, 3):
                world.clock.ahead_ms += (TTL_S + 1) * 1000
                await run.settle_down()
                assert len(attempts(run, row)) == count
                assert_sound(world, run)
            world.control("faults", clear=True)
            await run.pass_time(2, 300)
            assert run.state(row.id) is State.CONFIRMED
            assert_at_rest(world, run)

    async def test_a_lost_transfer_is_replaced_although_it_has_no_invoice(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            world.fault("submit", "drop")
            row, _ = await run.agent.transfers.send_all(APP, world.account.address)
            await run.agent.submitter.drain(60)
            await pass_time_of(world, run, TTL_S + 1)
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert len(attempts(run, row)) == 2
            assert_at_rest(world, run)

    @pytest.mark.parametrize("late", [False, True])
    async def test_a_restart_recovers_a_payment_killed_before_its_replacement_was_signed(
        self, world: World, late: bool
    ) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        killed: list[str] = []

        def kill(name: str) -> None:
            if name == "after replace":
                killed.append(name)
            if name == "before sign" and killed:
                raise RuntimeError("killed")

        async with world.run(checkpoint=kill) as run:
            row = await lose(world, run)
            await pass_time_of(world, run, TTL_S + 1)
            assert run.state(row.id) is State.REPLACING
            shown = Payment.of(run.context, run.context.payment(row.id))
            assert (shown.tx_hash, shown.headers, shown.ready) == (None, {}, False)
            assert_sound(world, run)
        if late:
            world.clock.ahead_ms += LONG_S * 1000
        world.block()
        async with world.run() as run:
            await run.run_pass()
            await run.settle_down()
            if late:
                assert run.state(row.id) is State.CANCELLING
                await wait_for_void(world, run)
                assert run.state(row.id) is State.VOID
            else:
                assert run.state(row.id) is State.CONFIRMED
            assert_at_rest(world, run)

    async def test_an_attempt_that_lands_while_it_is_being_replaced_confirms_the_payment(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        killed: list[str] = []

        def kill(name: str) -> None:
            if name == "after replace":
                killed.append(name)
            if name == "before sign" and killed:
                raise RuntimeError("killed")

        async with world.run(checkpoint=kill) as run:
            row = await lose(world, run)
            low = height(world)
            await pass_time_of(world, run, TTL_S + 1)
            assert run.state(row.id) is State.REPLACING
            fork_with(world, low, row.attempt.cbor or b"")
            await run.run_pass()
            assert (run.state(row.id), run.context.payment(row.id).attempt.tx_id) == (
                State.CONFIRMED,
                row.attempt.tx_id,
            )
            assert_at_rest(world, run)

    async def test_a_replacement_swaps_a_missing_utxo_but_keeps_the_nonce_utxo(self, world: World) -> None:
        """Another wallet with the same keys spent it."""
        world.settings(timeout=LONG_S, price="4000000", splits=[])
        world.fund(3 * ADA, 3 * ADA)
        async with world.run(terms=with_terms(settle_depth=5)) as run:
            first = await lose(world, run)
            (other,) = set(attempts(run, first)[0].inputs) - {first.nonce_utxo}
            world.fund(30 * ADA)
            world.control("faults", clear=True)
            spend(world, queries.utxo(run.context.conn, other), first.outputs[0].address)
            world.fault("submit", "drop")
            await run.settle_down()
            assert (queries.utxo(run.context.conn, other) or first).state == "spent"
            await unfreeze(run.context, APP)
            await pass_time_of(world, run, TTL_S + 1)
            row = run.context.payment(first.id)
            assert first.nonce_utxo in attempts(run, row)[1].inputs
            assert other not in attempts(run, row)[1].inputs
            assert_sound(world, run)
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert_sound(world, run)
            await run.settle_down(5)
            assert run.state(row.id) is State.SETTLED
            assert_sound(world, run)

    async def test_a_payment_whose_replacement_would_exceed_its_hold_is_cancelled(self, world: World) -> None:
        """Replacing the missing UTxO with many small ones would cost a higher fee than was approved."""
        world.settings(timeout=LONG_S, price="4000000", splits=[])
        world.fund(3 * ADA, 3 * ADA)
        async with world.run() as run:
            first = await lose(world, run)
            (other,) = set(attempts(run, first)[0].inputs) - {first.nonce_utxo}
            world.fund(*[1_100_000] * 4)
            world.control("faults", clear=True)
            spend(world, queries.utxo(run.context.conn, other), first.outputs[0].address)
            world.fault("submit", "drop")
            await run.settle_down()
            await unfreeze(run.context, APP)
            await pass_time_of(world, run, TTL_S + 1)
            row = run.context.payment(first.id)
            assert (row.state, row.problem.name) == (State.CANCELLING, "payment_void/expired")
            assert [one.kind for one in attempts(run, row)] == ["pay", "cancel"]
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_sound(world, run)


def spend(world: World, utxo: queries.UtxoRow | None, to: str) -> None:
    """Spend a UTxO with our keys but outside payagent, all of it to another address."""
    assert utxo is not None
    plan = send_all(
        UtxoIndex([Utxo(utxo.tx_id, utxo.output_index, utxo.lovelace)]),
        parse_address(to, DEVNET),
        own=world.account.address,
        ttl_slot=world.devnet.run(lambda devnet: devnet.chain.slot) + 5000,
        network_id=0,
    )
    raw = sign(plan, world.account.signer)
    answer = world.http.post(
        f"{world.devnet.chain_url}/tx/submit", content=raw, headers={"Content-Type": "application/cbor"}
    )
    assert answer.status_code == 200, answer.text
    world.block()


class TestCancel:
    async def test_a_lost_payment_is_cancelled_once_its_invoice_has_expired(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run(terms=with_terms(settle_depth=20)) as run:
            row = await lose(world, run)
            await pass_time_of(world, run, 700)
            assert (run.state(row.id), run.context.payment(row.id).problem.name) == (
                State.CANCELLING,
                "payment_void/expired",
            )
            assert_sound(world, run)
            await wait_for_void(world, run)
            void = run.context.payment(row.id)
            assert void.state is State.VOID
            assert_at_rest(world, run)
            assert limit_counters.totals(run.context.conn, WALLET) == {"lovelace": void.attempt.fee_lovelace}
            again = await run.pay()
            assert again.id != row.id
            assert (again.nonce_utxo or "").startswith(void.attempt.tx_id or "-")
            await run.settle_down()
            assert run.state(again.id) is State.CONFIRMED
            assert_at_rest(world, run)

    @pytest.mark.parametrize("which", ["cancel", "old attempt"])
    async def test_a_void_payment_reopens_when_a_rollback_removes_its_cancel(
        self, world: World, which: str
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(terms=with_terms(settle_depth=20)) as run:
            row = await lose(world, run)
            low = height(world)
            await pass_time_of(world, run, 700)
            await wait_for_void(world, run)
            cancel = run.context.payment(row.id)
            assert cancel.state is State.VOID
            if which == "old attempt":
                fork_with(world, low, row.attempt.cbor or b"")
                await run.settle_down(2)
                assert run.context.payment(row.id).attempt.tx_id == row.attempt.tx_id
                assert run.state(row.id) is State.CONFIRMED
            else:
                depth = height(world) - (cancel.block.height or 0) + 1
                world.control("rollback", depth=depth)
                world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
                world.block(depth + 1)
                await run.run_pass()
                assert run.state(row.id) is State.CANCELLING
                assert limit_counters.totals(run.context.conn, WALLET) == payments.hold(run.context.conn, row.id)
                assert_sound(world, run)
                await run.pass_time(2, 250)
                await wait_for_void(world, run)
                assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)

    async def test_a_payment_rolled_back_after_its_ttl_is_cancelled(self, world: World) -> None:
        """The transaction can no longer enter a block, so the payment is cancelled."""
        world.fund(50 * ADA)
        async with world.run() as run:
            row = await run.pay_in_block()
            world.clock.ahead_ms += 700_000
            await run.settle_down()
            world.control("rollback", depth=height(world) - (run.context.payment(row.id).block.height or 0) + 1)
            world.block(4)
            await run.run_pass()
            await run.settle_down()
            assert run.state(row.id) is State.CANCELLING
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)

    async def test_a_cancel_adds_a_utxo_when_the_payments_own_cannot_cover_the_fee(self, world: World) -> None:
        """On its own the UTxO could not fund the cancel: our output would need more than it holds."""
        world.settings(price="969750", splits=[])
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            exact = exact_utxo((await run.agent.quote(world.ask())).plan, world.account.address)
            world.fund(exact)
            world.fault("submit", "drop")
            await run.run_pass()
            row = await run.pay()
            assert len(attempts(run, row)[0].inputs) == 1
            assert payments.hold(run.context.conn, row.id) == {"lovelace": exact}
            await pass_time_of(world, run, 700)
            assert run.state(row.id) is State.CANCELLING
            assert len(attempts(run, row)[1].inputs) == 2
            assert_sound(world, run)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)


def exact_utxo(plan: TxPlan, own: Address) -> int:
    """The lovelace of a UTxO that pays for a plan exactly, without change."""
    asked = sum(output.units for output in plan.asked)

    def paid_by(lovelace: int) -> bool:
        try:
            select(
                UtxoIndex([Utxo("ab" * 32, 0, lovelace)]),
                plan.asked,
                change=own,
                ttl_slot=plan.ttl_slot,
                network_id=0,
            )
        except Refused:
            return False
        return True

    return next(lovelace for lovelace in range(asked + 155_381, asked + 180_000) if paid_by(lovelace))


class TestNextInvoice:
    """The invoice has expired, and the merchant answers the same request with another one."""

    @staticmethod
    async def next_one(world: World, run: Run, **settings: object) -> tuple[PaymentRow, PaymentRow]:
        """A lost payment, before and after a new invoice for the same request."""
        first = await lose(world, run)
        await pass_time_of(world, run, 310)
        assert run.state(first.id) is State.IN_FLIGHT, "it waits a while for the next invoice"
        if settings:
            world.settings(**settings)
        row, is_new = await run.agent.pay(world.ask())
        await run.agent.submitter.drain(60)
        assert (row.id, is_new) == (first.id, False)
        return first, run.context.payment(row.id)

    async def test_the_next_invoice_is_paid_on_the_same_nonce_utxo(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            first, row = await self.next_one(world, run)
            assert (row.nonce_utxo, len(attempts(run, row))) == (first.nonce_utxo, 2)
            assert row.invoice.id != first.invoice.id
            merchant = run.context.config.merchants[world.origin]
            headers = retry_headers(row, merchant, world.address)
            assert (headers["X-Invoice-Id"], headers["X-Payment"]) == (row.invoice.id, row.attempt.tx_id)
            assert payments.hold(run.context.conn, row.id) == limit_counters.totals(run.context.conn, WALLET)
            assert_sound(world, run)
            await run.settle_down()
            assert (run.state(row.id), world.transactions()) == (State.CONFIRMED, [row.attempt.tx_id])
            assert (
                world.call(
                    "hello", retry_headers(run.context.payment(row.id), merchant, world.address)
                ).status_code
                == 200
            )
            assert_at_rest(world, run)

    async def test_the_old_invoice_is_never_paid_by_another_payment(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        answer = world.call("hello")
        async with world.run() as run:
            await run.run_pass()
            world.fault("submit", "drop")
            first, _ = await run.agent.pay(world.ask_of(answer))
            await run.agent.submitter.drain(60)
            await pass_time_of(world, run, 310)
            await run.agent.pay(world.ask())
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert run.context.payment(first.id).invoice.id != first.invoice.id
            world.clock.ahead_ms -= 310_000
            with pytest.raises(Refused, match="invoice_already_paid/other_intent"):
                await run.agent.pay(world.ask_of(answer, key="another"))
            world.clock.ahead_ms += 310_000

    async def test_an_old_attempt_lands_on_a_fork_even_if_another_intent_first_had_its_invoice(
        self, world: World
    ) -> None:
        """The other intent was refused by its own max_total; the payment returns to that invoice."""
        world.fund(50 * ADA)
        async with world.run(terms=with_terms(settle_depth=12)) as run:
            await run.run_pass()
            answer = world.call("hello")
            with pytest.raises(Refused, match="limit_exceeded"):
                await run.agent.pay(world.ask_of(answer, key="one", max_total_units=1))
            world.fault("submit", "drop")
            paid, _ = await run.agent.pay(world.ask_of(answer, key="two"))
            await run.agent.submitter.drain(60)
            first, low = run.context.payment(paid.id), height(world)
            await pass_time_of(world, run, 310)
            await run.agent.pay(world.ask(key="two"))
            await run.agent.submitter.drain(60)
            await run.settle_down()
            second = run.context.payment(first.id)
            assert (second.state, len(attempts(run, second))) == (State.CONFIRMED, 2)
            assert second.invoice.id != first.invoice.id
            fork_with(world, low, first.attempt.cbor or b"")
            await run.settle_down(2)
            row = run.context.payment(first.id)
            assert (row.state, row.attempt.tx_id, row.invoice.seq) == (
                State.CONFIRMED,
                first.attempt.tx_id,
                first.invoice.seq,
            )
            assert_at_rest(world, run)
            await run.settle_down(14)
            assert run.state(row.id) is State.SETTLED

    async def test_a_payment_can_take_an_invoice_that_another_intent_did_not_pay(self, world: World) -> None:
        """The other intent was refused by its own max_total; an unpaid invoice may be paid by any intent."""
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            world.fault("submit", "drop")
            first = world.call("hello")
            with pytest.raises(Refused, match="limit_exceeded"):
                await run.agent.pay(world.ask_of(first, key="one", max_total_units=1))
            paid, _ = await run.agent.pay(world.ask_of(first, key="two"))
            await run.agent.submitter.drain(60)
            await pass_time_of(world, run, 310)
            second = world.call("hello")
            with pytest.raises(Refused, match="limit_exceeded"):
                await run.agent.pay(world.ask_of(second, key="one", max_total_units=1))
            row, _ = await run.agent.pay(world.ask_of(second, key="two"))
            await run.agent.submitter.drain(60)
            await run.settle_down()
            row = run.context.payment(row.id)
            assert (row.id, row.nonce_utxo, row.state) == (paid.id, paid.nonce_utxo, State.CONFIRMED)
            assert [one.kind for one in attempts(run, row)] == ["pay", "pay"]
            assert row.invoice.id != paid.invoice.id
            with pytest.raises(Refused, match="invoice_already_paid/other_intent"):
                await run.agent.pay(world.ask_of(second, key="one"))
            assert_at_rest(world, run)

    async def test_a_submitted_payment_does_not_move_to_an_invoice_that_the_merchant_submits(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            world.fault("submit", "drop")
            paid, _ = await run.agent.pay(world.ask(key="two"))
            await run.agent.submitter.drain(60)
            await pass_time_of(world, run, 310)
            second, from_file = world.call("hello"), run.context.from_file
            merchants = {origin: replace(one, proof="signed_cbor") for origin, one in from_file.merchants.items()}
            await run.context.take_config(replace(from_file, merchants=merchants), lambda _unit: None)
            with pytest.raises(Refused, match="limit_exceeded"):
                await run.agent.pay(world.ask_of(second, key="one", max_total_units=1))
            await run.context.take_config(from_file, lambda _unit: None)
            row, _ = await run.agent.pay(world.ask_of(second, key="two"))
            assert (row.id, row.invoice.id, row.invoice.merchant_submits) == (paid.id, paid.invoice.id, False)

    async def test_a_lower_price_of_the_next_invoice_is_posted_and_the_rest_is_released(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            _, row = await self.next_one(world, run, price="1500000", splits=[])
            assert sum(output.units for output in row.outputs) == 1_500_000
            hold = payments.hold(run.context.conn, row.id)
            assert hold["lovelace"] > 1_500_000 + (row.attempt.fee_lovelace or 0)
            await run.settle_down()
            assert run.books()[f"merchant:{world.origin}"] == {"lovelace": 1_500_000}
            assert run.books()["fees"] == {"lovelace": row.attempt.fee_lovelace}
            assert_at_rest(world, run)

    async def test_when_the_old_attempt_lands_on_a_fork_its_own_amount_is_posted(self, world: World) -> None:
        """The posting for the new invoice is reversed, and the amount of the old one is posted."""
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            low = height(world)
            first, row = await self.next_one(world, run, price="1500000", splits=[])
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            fork_with(world, low, first.attempt.cbor or b"")
            await run.settle_down(2)
            landed = run.context.payment(row.id)
            assert (landed.state, landed.attempt.tx_id) == (State.CONFIRMED, first.attempt.tx_id)
            assert (landed.invoice.id, landed.outputs) == (first.invoice.id, first.outputs)
            assert world.transactions() == [first.attempt.tx_id]
            paid = sum(output.units for output in first.outputs)
            assert run.books()[f"merchant:{world.origin}"] == {"lovelace": paid}
            merchant = run.context.config.merchants[world.origin]
            assert retry_headers(landed, merchant, world.address)["X-Invoice-Id"] == first.invoice.id
            assert_at_rest(world, run)

    async def test_requests_of_a_batch_cost_what_the_attempt_on_the_chain_took(self, world: World) -> None:
        """Credits, reversals and uses follow the posting that is current at the time."""
        world.fund(50 * ADA)
        world.settings(batch=4)
        async with world.run() as run:
            await run.run_pass()
            low = height(world)
            first, row = await self.next_one(world, run, price="1500000", splits=[])
            await run.settle_down()
            await run.agent.deliveries.record_delivery(row.id, 200)
            assert run.books()[f"merchant:{world.origin}"] == {"lovelace": 1_500_000 // 4}
            fork_with(world, low, first.attempt.cbor or b"")
            await run.settle_down(2)
            assert run.context.payment(row.id).attempt.tx_id == first.attempt.tx_id
            paid = sum(output.units for output in first.outputs)
            assert run.books()[f"merchant:{world.origin}"] == {"lovelace": paid // 4}
            assert_at_rest(world, run)

    async def test_a_next_invoice_with_fewer_requests_for_the_same_price_is_not_paid(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(batch=4)
        async with world.run() as run:
            first, row = await self.next_one(world, run, batch=2)
            assert (row.attempt.tx_id, row.invoice.id, len(attempts(run, row))) == (
                first.attempt.tx_id,
                first.invoice.id,
                1,
            )
            assert "invoiced_again" in run.events(row.id)

    async def test_a_next_invoice_with_a_higher_price_is_not_paid(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            first, row = await self.next_one(world, run, price="40000000")
            assert (row.attempt.tx_id, row.invoice.id, len(attempts(run, row))) == (
                first.attempt.tx_id,
                first.invoice.id,
                1,
            )
            assert "invoiced_again" in run.events(row.id)
            await pass_time_of(world, run, 400)
            assert run.state(row.id) is State.CANCELLING
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)

    async def test_the_next_invoice_is_not_paid_while_the_old_attempt_may_still_land(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            first = await lose(world, run)
            world.clock.ahead_ms += 310_000
            row, _ = await run.agent.pay(world.ask())
            assert (row.id, row.attempt.tx_id, len(attempts(run, row))) == (first.id, first.attempt.tx_id, 1), (
                "no block yet"
            )
            assert "invoiced_again" in run.events(row.id)

    async def test_a_next_invoice_that_came_too_early_is_paid_when_it_is_sent_again(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            first = await lose(world, run)
            world.clock.ahead_ms += 310_000
            again = world.ask()
            await run.agent.pay(again)
            world.control("faults", clear=True)
            await run.settle_down()
            row, _ = await run.agent.pay(again)
            assert (row.id, len(attempts(run, row))) == (first.id, 2)
            assert row.invoice.id != first.invoice.id
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert_at_rest(world, run)

    async def test_max_total_applies_to_the_next_invoice_too(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            first = await lose(world, run)
            await pass_time_of(world, run, 310)
            row, _ = await run.agent.pay(world.ask(max_total_units=1))
            assert (row.attempt.tx_id, len(attempts(run, row))) == (first.attempt.tx_id, 1)
            ask = replace(world.ask(max_total_units=1000 * ADA), max_total_asset="ab" * 28)
            row, _ = await run.agent.pay(ask)
            assert (row.attempt.tx_id, len(attempts(run, row))) == (first.attempt.tx_id, 1)


class TestNeverValid:
    async def test_an_attempt_that_is_never_valid_raises_one_alert_and_is_resubmitted_rarely(
        self, world: World
    ) -> None:
        world.fund(50 * ADA)
        never = {"status_code": 400, "error": "Bad Request", "message": "ShelleyTxValidationError FeeTooSmallUTxO"}
        with Relay(world.devnet).serving() as relay:
            relay.tell("/tx/submit", 400, never)
            async with world.run(providers={"relay": relay.url}) as run:
                await run.run_pass()
                row = await run.pay()
                assert run.state(row.id) is State.IN_FLIGHT
                told = alerts.after(run.context.conn, 0)
                assert [(one.kind, one.subject) for one in told] == [("never_valid", f"never:{row.id}")]
                for _ in range(5):
                    world.clock.ahead_ms += 30_000
                    await run.run_pass()
                assert relay.submissions() == 1
                world.clock.ahead_ms += RESUBMIT_MAX_MS - 150_000
                await run.run_pass()
                assert relay.submissions() == 2
                assert len(alerts.after(run.context.conn, 0)) == 1
                relay.unfreeze()
                world.clock.ahead_ms += 800_000
                await run.settle_down()
                assert run.state(row.id) is State.CANCELLING
                await wait_for_void(world, run)
                assert run.state(row.id) is State.VOID
                assert_at_rest(world, run)


class TestResolve:
    async def test_a_payment_in_flight_is_cancelled_at_once(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            row = await lose(world, run)
            world.control("faults", clear=True)
            resolved = await run.agent.lifecycle.resolve(row.id, APP)
            await run.agent.submitter.drain(60)
            assert (resolved.state, resolved.problem.name) == (
                State.CANCELLING,
                "payment_void/cancelled_by_operator",
            )
            assert (await run.agent.lifecycle.resolve(row.id, APP)).attempt.tx_id == resolved.attempt.tx_id
            (told,) = [one.detail for one in events.events(run.context.conn, row.id) if one.event == "cancel"]
            assert f'"by":"{APP}"' in told
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)
            with pytest.raises(Refused, match="wrong_state"):
                await run.agent.lifecycle.resolve(row.id, APP)

    async def test_a_submitted_payment_may_land_before_its_cancel(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            await run.agent.lifecycle.resolve(row.id, APP)
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert (run.state(row.id), run.context.payment(row.id).attempt.tx_id) == (
                State.CONFIRMED,
                row.attempt.tx_id,
            )
            assert_at_rest(world, run)
            with pytest.raises(Refused, match="wrong_state"):
                await run.agent.lifecycle.resolve(row.id, APP)

    async def test_an_unsigned_payment_is_rejected(self, world: World) -> None:
        world.fund(50 * ADA)

        def kill(name: str) -> None:
            if name == "before sign":
                raise RuntimeError("killed")

        async with world.run(checkpoint=kill) as run:
            await run.run_pass()
            with pytest.raises(Refused, match="store_failed"):
                await run.agent.pay(world.ask())
            (row,) = payments.payments_in(run.context.conn, [State.RESERVED])
            resolved = await run.agent.lifecycle.resolve(row.id, APP)
            assert (resolved.state, resolved.problem.name) == (
                State.REJECTED,
                "payment_void/cancelled_by_operator",
            )
            assert_at_rest(world, run)
            assert run.selectable() == world.unspent()

    async def test_a_payment_that_the_merchant_submits_is_cancelled_too(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run(terms=with_handover) as run:
            await run.run_pass()
            row = await run.pay()
            await run.agent.lifecycle.resolve(row.id, APP)
            await run.agent.submitter.drain(60)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)

    async def test_a_payment_that_is_being_replaced_is_cancelled(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(timeout=LONG_S)
        killed: list[str] = []

        def kill(name: str) -> None:
            if name == "after replace":
                killed.append(name)
            if name == "before sign" and killed:
                raise RuntimeError("killed")

        async with world.run(checkpoint=kill) as run:
            row = await lose(world, run)
            await pass_time_of(world, run, TTL_S + 1)
            assert run.state(row.id) is State.REPLACING
            assert (await run.agent.lifecycle.resolve(row.id, APP)).state is State.CANCELLING
            await run.agent.submitter.drain(60)
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert_at_rest(world, run)


class TestRepeatedTransfer:
    """An operator repeats a transfer, by its key, after its payment was void."""

    @pytest.mark.parametrize("kind", ["send", "split", "sweep"])
    async def test_a_transfer_repeated_after_a_void_cannot_land_beside_the_first_on_any_fork(
        self, world: World, kind: str
    ) -> None:
        world.fund(50 * ADA, 40 * ADA)
        to = encode_address(bytes([0x60]) + bytes(28))

        async def order(run: Run) -> PaymentRow:
            agent = run.agent
            if kind == "send":
                row, _ = await agent.transfers.send(APP, to, "lovelace", 10 * ADA, "K")
            elif kind == "split":
                row, _ = await agent.transfers.split(APP, 2, 10 * ADA, "K")
            else:
                row, _ = await agent.transfers.send_all(APP, to, "K")
            await agent.submitter.drain(60)
            return agent.context.payment(row.id)

        async with world.run() as run:
            await run.run_pass()
            world.fund(20 * ADA)  # a UTxO that the first transfer does not know
            low = height(world)
            world.fault("submit", "drop")
            first = await order(run)
            world.control("faults", clear=True)
            await run.agent.lifecycle.resolve(first.id, APP)
            await run.agent.submitter.drain(60)
            await wait_for_void(world, run)
            void = run.context.payment(first.id)
            again = await order(run)
            assert (void.state, again.id == first.id) == (State.VOID, False)
            await run.settle_down(2)
            assert run.state(again.id) is State.CONFIRMED
            fork_with(world, low, first.attempt.cbor or b"")
            assert broadcast(world, run.context.payment(again.id).attempt.cbor or b"") == 400
            await run.settle_down(3)
            assert {first.attempt.tx_id, again.attempt.tx_id} & set(world.transactions()) == {first.attempt.tx_id}
            assert run.state(first.id) is State.CONFIRMED
            assert (again.nonce_utxo or "").startswith(f"{void.attempt.tx_id}#")
