"""Commit points, isolated failures, limits, readiness and what a caller sees of its payment."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Clock, World, daily, with_terms, world_with_clock
from kit.payments import BadSigner, somebody_else

from payagent.api.models.payments import Payment
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import Limit, Scope, Window
from payagent.core.problems import Refused
from payagent.devnet.server import DevnetThread
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, limit_counters, payments
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.tx_check import CheckFailed

DAY_MS = 24 * 3600 * 1000


@dataclass
class Switch:
    """A checkpoint that fails at the named commit point."""

    at: str = ""

    def __call__(self, name: str) -> None:
        if name == self.at:
            raise sqlite3.OperationalError("disk full")


def limit_of(day_ada: int) -> tuple[Limit, ...]:
    return daily(1000 * ADA, day_ada * ADA)


@pytest.fixture
def on_clock(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


class TestCommitPoints:
    async def test_a_signature_over_other_bytes_is_refused_and_nothing_is_submitted(self, world: World) -> None:
        world.fund(50 * ADA)
        signer = BadSigner(world.account.signer, "signs something else")
        async with world.run(signer=signer) as run:
            await run.run_pass()
            with pytest.raises(CheckFailed, match="signature"):
                await run.pay(key="k")
            [row] = payments.payments_in(run.context.conn, list(State))
            assert row.state is State.RESERVED
            assert not queries.attempts(run.context.conn, row.id)
            assert not world.waiting()
            signer.trouble = "mended"
            await run.settle_down(2)
            assert run.state(row.id) is State.CONFIRMED

    async def test_a_payment_above_the_hard_cap_is_refused_before_anything_is_held(self, world: World) -> None:
        """The signer would refuse it too, and the hold would wait for a signature that never comes."""
        world.fund(50 * ADA)
        async with world.run(terms=with_terms(caps={"lovelace": 2 * ADA})) as run:
            await run.run_pass()
            with pytest.raises(Refused, match=r"limits\.per_transaction"):
                await run.pay(key="k")
            with pytest.raises(Refused, match=r"limits\.per_transaction"):
                await run.agent.transfers.send(APP, somebody_else(world), "lovelace", 2 * ADA)
            assert {row.state for row in payments.payments_in(run.context.conn, list(State))} == {State.REJECTED}
            assert run.context.utxos.totals["lovelace"] == 50 * ADA

    async def test_an_attempt_is_not_submitted_until_its_submission_is_recorded(self, world: World) -> None:
        world.fund(50 * ADA)
        switch = Switch("before submit")
        async with world.run(checkpoint=switch) as run:
            await run.run_pass()
            row = await run.pay()
            assert row.state is State.SIGNED
            assert not world.waiting()
            switch.at = ""
            await run.settle_down(2)
            assert run.state(row.id) is State.CONFIRMED

    async def test_a_signed_payment_keeps_its_hold_after_its_ttl_though_it_was_never_submitted(
        self, world: World
    ) -> None:
        """Its bytes may still have reached the network. If they land in a block, the payment is confirmed."""
        world.fund(50 * ADA)
        async with world.run(checkpoint=Switch("before submit")) as run:
            await run.run_pass()
            row = await run.pay()
        world.clock.ahead_ms += 290_000
        async with world.run() as run:
            await run.settle_down(2)
            run.agent.submitter.submit(row.id)
            await run.agent.submitter.drain(60)
            assert run.state(row.id) is State.SIGNED
            assert queries.submissions(run.context.conn, row.attempt.tx_id or "") == (0, 0)
            assert run.books()["held"]
            assert not run.selectable()
            sent = world.http.post(
                f"{world.devnet.chain_url}/tx/submit",
                content=queries.attempts(run.context.conn, row.id)[-1].cbor,
                headers={"Content-Type": "application/cbor"},
            )
            assert sent.json() == row.attempt.tx_id
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == world.on_chain()


class TestFailureIsolation:
    """A failure in one payment does not stop the others."""

    async def test_a_failing_signer_does_not_stop_payments_already_signed(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        signer = BadSigner(world.account.signer, "mended")
        async with world.run(signer=signer) as run:
            await run.run_pass()
            world.fault("submit", "full", count=1)
            row = await run.pay("a")
            signer.trouble = "fails"
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(world.ask("b", key="b"))
            await run.pass_time(3)
            assert run.state(row.id) is State.CONFIRMED
            [other] = payments.payments_in(run.context.conn, [State.RESERVED])
            signer.trouble = "mended"
            await run.settle_down(2)
            assert run.state(other.id) is State.CONFIRMED

    async def test_a_corrupt_payment_row_does_not_stop_the_other_payments(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA, 50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            broken, lost = await run.pay("broken"), await run.pay("lost")
            world.fault("submit", "drop", count=1)
            sent = await run.pay("in flight")
            await run.settle_down()
            with closing(sqlite3.connect(world.folder / "ledger.db")) as conn, conn:
                conn.execute("PRAGMA foreign_keys = OFF")
                conn.execute("UPDATE payments SET tx_id = 'no hash' WHERE id = ?", (broken.id,))
            conn.close()
            world.control("rollback", depth=1)
            world.block(2)
            await run.run_pass()
            assert "block_lost" in run.events(lost.id)
            await run.pass_time(2)
            assert {run.state(lost.id), run.state(sent.id)} == {State.CONFIRMED}

    async def test_an_old_tip_stops_signing_but_not_resubmission(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        world.settings(timeout=3000)
        signer = BadSigner(world.account.signer, "mended")
        async with world.run(signer=signer) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            row = await run.pay("a")
            signer.trouble = "fails"
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(world.ask("b", key="b"))
            signer.trouble = "mended"
            world.clock.ahead_ms += 400_000
            for _ in range(3):
                before, _ = queries.submissions(run.context.conn, row.attempt.tx_id or "")
                world.clock.ahead_ms += 60_000
                await run.run_pass()
                after, _ = queries.submissions(run.context.conn, row.attempt.tx_id or "")
                assert after == before + 1
            assert len(payments.payments_in(run.context.conn, [State.RESERVED])) == 1


class TestLimits:
    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Iterator[World]:
        """A world whose clock stands still for the agent and the devnet."""

        class Stopped(Clock):
            start_ms = time.time_ns() // 1_000_000

            def now_ms(self) -> int:
                return self.start_ms + self.ahead_ms

        clock = Stopped()
        with DevnetThread(now_ms=clock.now_ms) as devnet:
            world = World(devnet, tmp_path)
            world.clock = clock
            yield world
            world.http.close()

    async def test_a_daily_limit_frees_up_when_a_block_reaches_the_announced_time(self, stopped: World) -> None:
        world = stopped
        world.fund(50 * ADA, 50 * ADA)
        async with world.run(terms=with_terms(limits=limit_of(20))) as run:
            await run.pay_in_block("first")
            paid_ms = world.clock.now_ms()
            with pytest.raises(Refused, match="limit_exceeded") as refused:
                await run.pay("at once")
            frees_at = datetime.fromisoformat(str(refused.value.context["frees_at"]))
            frees_at_ms = round(frees_at.timestamp() * 1000)
            assert DAY_MS < frees_at_ms - paid_ms <= DAY_MS + 300_000
            for message, ahead_ms in (("a second early", -1000), ("in time", 0)):
                world.clock.ahead_ms += frees_at_ms + ahead_ms - world.clock.now_ms()
                with pytest.raises(Refused):
                    await run.pay("the clock alone frees nothing")
                world.block()
                await run.run_pass()
                if ahead_ms:
                    with pytest.raises(Refused, match="limit_exceeded"):
                        await run.pay(message)
            await run.pay("in time")

    async def test_a_released_hold_does_not_count_against_limits(self, world: World) -> None:
        world.fund(50 * ADA)
        terms = with_terms(limits=limit_of(20))
        signer = BadSigner(world.account.signer)
        async with world.run(terms=terms, signer=signer) as run:
            await run.run_pass()
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(world.ask("first"))
            world.clock.ahead_ms += 240_000
            await run.settle_down()
            [late] = payments.payments_in(run.context.conn, list(State))
            assert late.problem.name == "invoice_expired"
            signer.trouble = "mended"
            assert (await run.pay("second")).state is State.IN_FLIGHT

    async def test_transfers_do_not_count_against_payment_limits(self, world: World) -> None:
        world.fund(60 * ADA, 20 * ADA)
        async with world.run(terms=with_terms(limits=limit_of(20))) as run:
            await run.run_pass()
            await run.agent.transfers.send("app_test", somebody_else(world), "lovelace", 30 * ADA)
            await run.agent.submitter.drain(60)
            assert (await run.pay()).state is State.IN_FLIGHT

    async def test_a_release_that_cannot_be_committed_keeps_the_hold_and_its_utxos(self, world: World) -> None:
        world.fund(50 * ADA)
        switch = Switch()
        async with world.run(signer=BadSigner(world.account.signer), checkpoint=switch) as run:
            await run.run_pass()
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(world.ask())
            world.clock.ahead_ms += 240_000
            switch.at = "before reject"
            await run.settle_down()
            assert not run.selectable()
            assert run.books()["held"]
            switch.at = ""
            await run.settle_down()
            assert run.selectable() == world.unspent()
            assert "held" not in run.books()

    async def test_sending_the_same_402_later_does_not_extend_its_deadline(self, world: World) -> None:
        world.block()
        async with world.run() as run:
            await run.run_pass()
            ask = world.ask(key="k")
            ends_ms = world.clock.now_ms() + 300_000
            with pytest.raises(Refused, match="not_enough_funds"):
                await run.agent.pay(ask)
            world.clock.ahead_ms += 100_000
            world.fund(50 * ADA)
            await run.run_pass()
            row, is_new = await run.agent.pay(ask)
            slots = run.context.chain.slots
            assert is_new
            assert slots is not None
            assert 0 <= (slots.slot_at(ends_ms) - 20) - (row.attempt.ttl_slot or 0) + 1 <= 3


class TestReady:
    async def test_with_ready_submitted_a_payment_is_ready_once_a_provider_accepts_it(self, world: World) -> None:
        world.fund(50 * ADA)
        merchant = replace(world.terms.merchants[world.origin], ready="submitted")
        async with world.run(terms=with_terms(merchants={world.origin: merchant})) as run:
            await run.run_pass()
            world.fault("submit", "full", count=1)
            row = await run.pay()
            assert row.state is State.IN_FLIGHT
            assert not run.context.is_ready(row)
            world.clock.ahead_ms += 6_000
            await run.run_pass()
            assert run.context.payment(row.id).state is State.IN_FLIGHT
            assert run.context.is_ready(run.context.payment(row.id))


class TestCallerView:
    async def test_repeating_a_served_request_returns_the_same_payment(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            ask = world.ask()
            row, is_new = await run.agent.pay(ask)
            await run.agent.submitter.drain(60)
            await run.settle_down()
            await run.agent.deliveries.record_delivery(row.id, 200)
            again, is_new_again = await run.agent.pay(ask)
            assert (again.id, is_new, is_new_again) == (row.id, True, False)
            assert len(world.transactions()) == 1

    async def test_an_app_does_not_learn_which_payment_of_another_app_paid_an_invoice(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            ask = world.ask()
            row, _ = await run.agent.pay(ask)
            await run.context.write(
                "app", lambda unit: apps.add_with_token(unit, "app_other", "other", "1" * 64, ["pay"], 1)
            )
            with pytest.raises(Refused, match="invoice_already_paid/other_intent") as refused:
                await run.agent.pay(replace(ask, app_id="app_other"))
            assert row.id not in f"{refused.value} {refused.value.context}"

    async def test_an_invoice_belongs_to_the_app_that_pays_it_not_to_one_refused_earlier(
        self, world: World
    ) -> None:
        """The app whose limit refused the invoice came first, but the payment belongs to the app that paid."""
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            ask = world.ask()

            def add_app(unit: Unit) -> None:
                apps.add_with_token(unit, "app_other", "other", "1" * 64, ["pay"], 1)
                limit_counters.set_limit(unit, Limit(Scope("app_other"), "lovelace", Window.TOTAL, 1))

            await run.context.write("app", add_app)
            theirs = replace(ask, app_id="app_other")
            with pytest.raises(Refused, match="limit_exceeded"):
                await run.agent.pay(theirs)
            row, _ = await run.agent.pay(ask)
            for again in (theirs, replace(theirs, idempotency_key="another")):
                with pytest.raises(Refused, match="invoice_already_paid/other_intent") as refused:
                    await run.agent.pay(again)
                assert row.id not in f"{refused.value} {refused.value.context}"

    async def test_a_reused_idempotency_key_is_refused_even_if_the_402_is_unreadable(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            await run.pay("one", key="k")
            unreadable = world.ask_of(world.call("other"), key="k", body='{"detail":{"status":"pending"}}')
            with pytest.raises(Refused, match="idempotency_key_reused"):
                await run.agent.pay(unreadable)

    async def test_a_payment_without_a_signature_is_reported_as_not_signed_yet(self, world: World) -> None:
        world.fund(50 * ADA)
        async with world.run(signer=BadSigner(world.account.signer)) as run:
            await run.run_pass()
            ask = world.ask(key="k")
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(ask)
            [row] = payments.payments_in(run.context.conn, [State.RESERVED])
            with pytest.raises(Refused, match="not_signed_yet") as refused:
                await run.agent.pay(ask)
            assert refused.value.context["payment"] == row.id
            assert Payment.of(run.context, row).headers == {}

    @pytest.mark.parametrize("batch", [1, 100])
    async def test_an_unserved_payment_becomes_paid_not_served_when_its_invoice_expires(
        self, on_clock: World, batch: int
    ) -> None:
        on_clock.settings(batch=batch)
        on_clock.fund(50 * ADA)
        async with on_clock.run() as run:
            row = await run.pay_in_block()
            assert (await run.agent.deliveries.record_delivery(row.id, 402)).delivery is Delivery.PRESENTED
            await run.pass_time(1, 301)
            assert (await run.agent.deliveries.record_delivery(row.id, 402)).delivery is Delivery.PAID_NOT_SERVED
            assert (await run.agent.deliveries.record_delivery(row.id, 200)).delivery is Delivery.ACCEPTED

    async def test_an_invoice_without_an_expiry_counts_as_expired_after_an_hour(self, on_clock: World) -> None:
        on_clock.fund(50 * ADA)
        async with on_clock.run() as run:
            await run.run_pass()
            row, _ = await run.agent.transfers.send("app_test", somebody_else(on_clock), "lovelace", 5 * ADA)
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert row.invoice.expires_at_ms is None
            await run.pass_time(1, 3_580)
            assert (await run.agent.deliveries.record_delivery(row.id, 404)).delivery is Delivery.PRESENTED
            await run.pass_time(1, 30)
            assert (await run.agent.deliveries.record_delivery(row.id, 404)).delivery is Delivery.PAID_NOT_SERVED
