"""Upkeep of UTxOs: a burst is paid from one UTxO before a block, and UTxOs are kept ready within limits."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run, World, daily, with_terms, world_with_clock
from kit.payments import attempts, pass_time_of
from kit.upkeep import DAY_S, DEPTH, HOUR_S, PER_DAY, burst, keep, kept, land, own_orders

from payagent.agent.base.ports import Signatures
from payagent.agent.operator.pause import pause, unpause
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import ON_CHAIN, State
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments, upkeep

JUNK = "ab" * 28


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves, and whose merchant asks for 2 ADA."""
    with world_with_clock(tmp_path) as world:
        world.settings(price="2000000", splits=[])
        yield world


class SlowSigner:
    """A signer that waits until the test lets it sign."""

    def __init__(self, signer: Signatures) -> None:
        self._signer = signer
        self.public_key = signer.public_key
        self.is_asked, self.may_sign = asyncio.Event(), asyncio.Event()

    async def signature(self, body: bytes, paid: int) -> bytes:
        self.is_asked.set()
        await self.may_sign.wait()
        return await self._signer.signature(body, paid)


async def refused(world: World, run: Run, count: int, name: str = "call") -> list[str]:
    """The codes of the refusals among so many concurrent payments."""
    asks = [world.ask(f"{name} {n}", key=f"{name} {n}") for n in range(count)]
    answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
    await run.agent.submitter.drain(60)
    found = [answer for answer in answers if isinstance(answer, BaseException)]
    return [answer.code if isinstance(answer, Refused) else repr(answer) for answer in found]


def assert_all_is_well(world: World, run: Run, rows: list[PaymentRow]) -> None:
    """All payments are on the chain, each once, and the books match the chain."""
    states = {run.state(row.id) for row in rows}
    assert states == {State.CONFIRMED}
    assert len({row.nonce_utxo for row in rows}) == len(rows)
    assert run.owned() == world.on_chain()
    assert not run.books().get("held", {}).get("lovelace")
    transactions = world.transactions()
    assert len(set(transactions)) == len(transactions) == len(rows) + len(own_orders(run))


async def test_a_pass_waits_a_moment_for_pending_signatures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        first = await run.pay("first")
        signer = run.agent.signing._signer = SlowSigner(run.agent.signing._signer)
        assert await run.agent.signing.give_way() == 0
        paying = asyncio.create_task(run.pay("second"))
        await signer.is_asked.wait()
        assert await run.agent.signing.give_way() > 0, "it waits only a moment, although the signer is stuck"
        await run.settle_down()
        assert run.state(first.id) is State.CONFIRMED, "the pass still follows it"
        monkeypatch.setattr("payagent.agent.payments.sign.GIVE_WAY_S", 600)
        waiting = asyncio.create_task(run.agent.signing.give_way())
        await asyncio.sleep(0)
        assert not waiting.done()
        signer.may_sign.set()
        await asyncio.wait_for(asyncio.gather(paying, waiting), 60)


class TestBurst:
    async def test_a_burst_of_100_payments_is_paid_from_one_utxo_before_the_next_block(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            before = world.transactions()
            rows = await burst(world, run, 100)
            assert world.transactions() == before, "no block has come"
            assert len({row.attempt.tx_id for row in rows}) == 100
            (split,) = own_orders(run)
            assert (split.kind, split.state, len(split.outputs)) == ("split", State.IN_FLIGHT, 99)
            await land(run, *rows)
            assert run.state(split.id) is State.CONFIRMED
            assert_all_is_well(world, run, rows)

    async def test_no_payment_has_more_unconfirmed_ancestors_than_allowed(self, world: World) -> None:
        world.fund(400 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=3, upkeep_fees_per_day_lovelace=PER_DAY)
        ) as run:
            await run.run_pass()
            rows = await burst(world, run, 60)
            depths = [queries.unconfirmed_ancestors(run.context.conn, row.attempt.tx_id or "") for row in rows]
            assert max(depths) <= 3
            await land(run, *rows)
            assert_all_is_well(world, run, rows)

    async def test_two_concurrent_bursts_make_one_split(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            first, second = await asyncio.gather(burst(world, run, 30, "a"), burst(world, run, 30, "b"))
            assert [order.kind for order in own_orders(run)] == ["split"]
            await land(run, *first, *second)
            assert_all_is_well(world, run, [*first, *second])

    async def test_a_small_burst_spends_its_own_change_and_needs_no_split(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            rows = await burst(world, run, DEPTH)
            assert own_orders(run) == []
            await land(run, *rows)
            assert_all_is_well(world, run, rows)

    async def test_a_utxo_is_split_before_payments_in_a_row_use_up_the_unconfirmed_ancestors(
        self, world: World
    ) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            rows = []
            for number in range(2 * DEPTH):
                rows.append(await run.pay(f"call {number}"))
                await run.agent.utxo_pool.keep_ready()
                await run.agent.submitter.drain(60)
            assert own_orders(run)[0].kind == "split"
            await land(run, *rows)
            assert_all_is_well(world, run, rows)

    async def test_a_known_intent_does_not_wait_in_the_queue(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            known = world.ask("known", key="known")
            row, _ = await run.agent.pay(known)
            many = asyncio.ensure_future(burst(world, run, 40))
            await asyncio.sleep(0)
            again, is_new = await run.agent.pay(known)
            assert (again.id, is_new) == (row.id, False)
            await many

    async def test_a_burst_is_submitted_once_the_provider_accepts_transactions_again(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            rows = await burst(world, run, 30)
            assert world.waiting() == []
            world.control("faults", clear=True)
            await land(run, *rows)
            assert_all_is_well(world, run, rows)

    async def test_a_second_burst_uses_the_utxos_of_the_first_split(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            rows = await burst(world, run, 40, "a")
            await land(run, *rows)
            rows += await burst(world, run, 40, "b")
            assert len(own_orders(run)) == 1, "the second burst uses the UTxOs of the first split"
            await land(run, *rows)
            assert_all_is_well(world, run, rows)

    async def test_a_burst_is_paid_from_a_utxo_that_also_holds_tokens(self, world: World) -> None:
        world.fund(5_000 * ADA, assets={f"{JUNK}01": 7})
        async with world.run(terms=kept) as run:
            await run.run_pass()
            rows = await burst(world, run, 30)
            await land(run, *rows)
            assert_all_is_well(world, run, rows)
            assert run.owned()[f"{JUNK}01"] == 7


class TestNoSplit:
    async def test_a_wallet_that_the_payments_use_up_is_not_split(self, world: World) -> None:
        world.fund(12 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            codes = await refused(world, run, 12)
            assert len(codes) in (7, 8)
            assert set(codes) <= {"funds_pending", "not_enough_funds"}
            assert own_orders(run) == []

    async def test_a_wallet_with_little_ada_beside_tokens_is_not_split(self, world: World) -> None:
        world.fund(4 * ADA, assets={f"{JUNK}01": 7})
        async with world.run(terms=kept) as run:
            await run.run_pass()
            assert set(await refused(world, run, 6)) <= {"funds_pending", "not_enough_funds"}
            assert own_orders(run) == []

    async def test_no_utxo_is_split_when_upkeep_is_switched_off(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=with_terms(unconfirmed_ancestors_max=DEPTH)) as run:
            await run.run_pass()
            assert await refused(world, run, 30) == ["funds_pending"] * 29
            await keep(run)
            assert own_orders(run) == []

    async def test_no_utxo_is_split_when_the_daily_upkeep_fees_do_not_cover_it(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=150_000)
        ) as run:
            await run.run_pass()
            codes = await refused(world, run, 30)
            assert set(codes) == {"funds_pending"}
            assert len(codes) == 30 - 1 - DEPTH
            assert own_orders(run) == []

    async def test_each_refused_payment_is_recorded_once(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=1, upkeep_fees_per_day_lovelace=150_000)
        ) as run:
            await run.run_pass()
            codes = await refused(world, run, 4)
            rejected = payments.payments_in(run.context.conn, (State.REJECTED,))
            assert [row.problem.name for row in rejected] == codes == ["funds_pending"] * 2

    async def test_a_payment_over_a_limit_is_refused_by_that_limit_during_a_burst(self, world: World) -> None:
        world.fund(10_000 * ADA)
        limits = daily(1000 * ADA, 12 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=PER_DAY, limits=limits)
        ) as run:
            await run.run_pass()
            assert await refused(world, run, 20) == ["limit_exceeded"] * 15

    async def test_no_utxo_is_split_for_payments_over_a_limit(self, world: World) -> None:
        world.fund(10_000 * ADA)
        limits = daily(1000 * ADA, 1 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=PER_DAY, limits=limits)
        ) as run:
            await run.run_pass()
            assert await refused(world, run, 30) == ["limit_exceeded"] * 30
            rejected = payments.payments_in(run.context.conn, (State.REJECTED,))
            assert len(rejected) == 30, "each is recorded"
            assert own_orders(run) == []

    async def test_no_utxo_is_split_for_payments_that_await_approval(self, world: World) -> None:
        world.fund(10_000 * ADA)
        above = {"lovelace": 1 * ADA}
        terms = with_terms(
            unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=PER_DAY, approval_required_above=above
        )
        async with world.run(terms=terms) as run:
            await run.run_pass()
            rows = await burst(world, run, 30)
            assert {row.state for row in rows} == {State.AWAITING_APPROVAL}
            assert own_orders(run) == []

    async def test_no_utxo_is_split_for_payments_that_would_need_approval(self, world: World) -> None:
        world.fund(10_000 * ADA)
        terms = with_terms(
            unconfirmed_ancestors_max=DEPTH,
            upkeep_fees_per_day_lovelace=PER_DAY,
            approval_required_above={"lovelace": 10 * ADA},
        )
        async with world.run(terms=terms) as run:
            await run.run_pass()
            signer = run.agent.signing._signer = SlowSigner(run.agent.signing._signer)
            first = asyncio.create_task(run.pay("takes the coin"))
            await signer.is_asked.wait()
            world.settings(price=str(50 * ADA))
            others = asyncio.create_task(refused(world, run, 5))
            while (
                len(payments.payments_in(run.context.conn, (State.REJECTED,))) < 5
                and not run.agent.utxo_pool._queue
            ):
                await asyncio.sleep(0)
            signer.may_sign.set()
            assert (await first).attempt.tx_id
            assert await others == ["funds_pending"] * 5
            assert own_orders(run) == []

    async def test_no_utxo_is_split_for_payments_that_a_merchant_rule_refuses(self, world: World) -> None:
        world.fund(10_000 * ADA)
        merchant = world.terms.merchants[world.origin]
        busy = {world.origin: replace(merchant, rules=replace(merchant.rules, payments_in_flight_max=1))}
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=PER_DAY, merchants=busy)
        ) as run:
            await run.run_pass()
            await run.pay("the only one")
            assert await refused(world, run, 30) == ["merchant_in_flight_limit"] * 30
            assert own_orders(run) == []

    async def test_no_utxo_is_split_during_a_pause(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            await land(run, *await burst(world, run, 20))
            orders = len(own_orders(run))
            await pause(run.context, APP, "a drill")
            world.fund(10_000 * ADA)
            await run.run_pass()
            with pytest.raises(Refused, match="paused"):
                await run.agent.utxo_pool.keep_utxos([2 * ADA] * 500)
            await keep(run)
            assert len(own_orders(run)) == orders
            await unpause(run.context, APP)

    async def test_no_utxo_is_split_before_the_chain_has_been_read(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            with pytest.raises(Refused, match="chain_not_ready"):
                await run.agent.utxo_pool.keep_utxos([2 * ADA] * 50)
            await keep(run)
            assert own_orders(run) == []


class TestUtxosKeptReady:
    async def test_a_wallet_without_bursts_keeps_its_single_utxo(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            await keep(run)
            await run.pay("one")
            await run.settle_down()
            await keep(run)
            assert own_orders(run) == []

    async def test_after_a_burst_new_funds_are_split(self, world: World) -> None:
        world.fund(60 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=0, upkeep_fees_per_day_lovelace=PER_DAY)
        ) as run:
            await run.run_pass()
            assert await refused(world, run, 12) == ["funds_pending"] * 11
            await land(run)
            world.fund(1_000 * ADA)
            await run.run_pass()
            await keep(run)
            (split,) = own_orders(run)
            assert (split.kind, len(split.outputs)) == ("split", 12)
            await keep(run)
            assert len(own_orders(run)) == 1, "one at a time"
            await land(run)
            rows = await burst(world, run, 12, "again")
            await keep(run)
            await land(run, *rows)
            assert {run.state(row.id) for row in rows} == {State.CONFIRMED}
            assert len(own_orders(run)) == 1
            assert run.owned() == world.on_chain()

    async def test_payments_refused_by_a_limit_cause_no_split(self, world: World) -> None:
        """Otherwise refused requests would make the wallet pay fees."""
        world.fund(60 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=0, upkeep_fees_per_day_lovelace=PER_DAY)
        ) as run:
            await run.run_pass()
            await run.pay("one")
            for n in range(11):
                with pytest.raises(Refused, match="limit_exceeded"):
                    await run.pay(f"too much {n}", max_total_units=1)
            await land(run)
            world.fund(1_000 * ADA)
            await run.run_pass()
            await keep(run)
            assert own_orders(run) == []

    async def test_the_fee_of_a_split_is_booked_like_any_other_fee(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            await land(run, *await burst(world, run, 20))
            (split,) = own_orders(run)
            posted = [entry for entry in run.entries() if (entry.payment_id, entry.kind) == (split.id, "post")]
            assert [(account, units) for account, _, units in posted[0].postings if units > 0] == [
                ("fees", split.attempt.fee_lovelace)
            ]
            (told,) = upkeep.orders(run.context.conn, 24)
            assert told.fee_lovelace == split.attempt.fee_lovelace

    async def test_upkeep_fees_are_limited_per_day(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=0, upkeep_fees_per_day_lovelace=250_000)
        ) as run:
            await run.run_pass()
            await refused(world, run, 80, "a")
            await land(run)
            await keep(run)
            (split,) = own_orders(run)
            assert len(split.outputs) < 30
            assert (split.attempt.fee_lovelace or 0) <= 250_000
            await land(run)
            await refused(world, run, 80, "b")
            await land(run)
            await keep(run)
            assert len(own_orders(run)) == 1, "the day's fees are used up"
            await pass_time_of(world, run, DAY_S + 60)
            await refused(world, run, 80, "c")
            await land(run)
            await keep(run)
            assert len(own_orders(run)) == 2

    async def test_a_lost_split_is_replaced_like_a_payment(self, world: World) -> None:
        world.fund(10_000 * ADA)
        async with world.run(
            terms=with_terms(unconfirmed_ancestors_max=0, upkeep_fees_per_day_lovelace=PER_DAY)
        ) as run:
            await run.run_pass()
            await refused(world, run, 12)
            await land(run)
            world.fault("submit", "drop")
            await keep(run)
            (split,) = own_orders(run)
            await pass_time_of(world, run, 1_900)
            world.control("faults", clear=True)
            await land(run)
            assert [order.id for order in own_orders(run)] == [split.id]
            assert run.state(split.id) in ON_CHAIN
            assert {one.nonce_utxo for one in attempts(run, split)} == {split.nonce_utxo}
            assert run.owned() == world.on_chain()


class TestGathering:
    async def test_dust_is_gathered_into_one_utxo_an_hour_after_the_last_payment(self, world: World) -> None:
        world.fund(100 * ADA, *[1_200_000] * 55)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            row = await run.pay("one")
            await land(run)
            await keep(run)
            assert own_orders(run) == [], "a payment began less than an hour ago"
            await pass_time_of(world, run, HOUR_S + 60)
            await keep(run)
            (gathered,) = own_orders(run)
            assert gathered.kind == "sweep"
            assert len(attempts(run, gathered)[0].inputs) >= 50
            await land(run)
            assert run.state(gathered.id) is State.CONFIRMED
            assert run.state(row.id) is State.CONFIRMED
            assert len(run.selectable()) < 8
            assert run.owned() == world.on_chain()

    async def test_dust_is_not_gathered_while_a_payment_is_in_flight(self, world: World) -> None:
        world.settings(price="2000000", splits=[], timeout=7200)
        world.fund(100 * ADA, *[1_200_000] * 55)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            row = await run.pay("one")
            await pass_time_of(world, run, HOUR_S + 60)
            await keep(run)
            assert run.state(row.id) not in ON_CHAIN
            assert own_orders(run) == []

    async def test_dust_is_gathered_at_most_once_a_day(self, world: World) -> None:
        world.fund(100 * ADA, *[1_200_000] * 55)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            await keep(run)
            await land(run)
            world.fund(*[1_200_000] * 55)
            await run.run_pass()
            await keep(run)
            assert len(own_orders(run)) == 1
            await pass_time_of(world, run, DAY_S + 60)
            await keep(run)
            assert len(own_orders(run)) == 2

    async def test_tokens_not_used_for_payments_are_gathered(self, world: World) -> None:
        for number in range(51):
            world.control(
                "faucet",
                address=world.address,
                lovelace="1400000",
                assets={f"{JUNK}{number:02x}": str(number + 1)},
            )
        world.block()
        async with world.run(terms=kept) as run:
            await run.run_pass()
            before = run.owned()
            await keep(run)
            (gathered,) = own_orders(run)
            await land(run)
            assert run.state(gathered.id) is State.CONFIRMED
            after = run.owned()
            assert after == world.on_chain()
            assert before | {"lovelace": 0} == after | {"lovelace": 0}
            assert before["lovelace"] - after["lovelace"] == gathered.attempt.fee_lovelace

    async def test_tokens_used_for_payments_are_not_gathered(self, world: World) -> None:
        token = f"{JUNK}01"
        for _ in range(51):
            world.control("faucet", address=world.address, lovelace="1400000", assets={token: "5"})
        world.block()

        def terms(base: object) -> object:
            return replace(kept(base), limits=(*daily(1000 * ADA, 1000 * ADA), *daily(10, 100, token)))  # type: ignore[arg-type]

        async with world.run(terms=terms) as run:  # type: ignore[arg-type]
            await run.run_pass()
            await keep(run)
            assert own_orders(run) == []
