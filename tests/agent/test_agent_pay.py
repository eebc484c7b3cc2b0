"""The main path on the devnet: a 402 is paid on the chain, the request is served, the books match."""

import asyncio
import sqlite3
from contextlib import closing

import httpx
import pytest
from kit.agent import ADA, Run, World, daily, with_terms

from payagent.agent.chain_sync.sync import ChainSync
from payagent.api.models.payments import Payment
from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.outbound.merchant_client import MerchantClient
from payagent.store.rows import payments

TOKEN = "ab" * 28 + "55534454"


def served(world: World, run: Run, payment_id: str, message: str) -> int:
    """Show the proof and return the status that the merchant answers."""
    shown = Payment.of(run.context, run.context.payment(payment_id))
    return world.call(message, shown.headers).status_code


@pytest.mark.parametrize("dialect", ["t-backend", "flux"])
async def test_a_402_is_paid_and_the_request_is_served(world: World, dialect: str) -> None:
    world.settings(dialect=dialect)
    world.fund(100 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay("hello")
        assert (row.state, row.invoice.dialect) == (State.IN_FLIGHT, dialect)
        assert served(world, run, row.id, "hello") == 402
        await run.settle_down()
        assert run.context.payment(row.id).state is State.CONFIRMED
        assert served(world, run, row.id, "hello") == 200
        await run.chain_sync.merchant_polling.poll_merchants()
        assert run.context.payment(row.id).merchant_status == "consumed"
        paid = sum(output.units for output in row.outputs)
        assert run.books()[f"merchant:{world.origin}"] == {"lovelace": paid}
        assert run.books()["fees"] == {"lovelace": row.attempt.fee_lovelace}
        assert run.owned() == world.on_chain() == {"lovelace": 100 * ADA - paid - (row.attempt.fee_lovelace or 0)}
        assert world.transactions() == [row.attempt.tx_id]


class CountingNet(httpx.AsyncHTTPTransport):
    """A transport that counts its requests."""

    calls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        return await super().handle_async_request(request)


async def test_a_merchant_is_polled_less_often_as_its_invoice_ages(world: World) -> None:
    world.fund(100 * ADA)
    net = CountingNet()
    async with world.run() as run:
        world.clock.stop()
        await run.pay_in_block()
        world.clock.ahead_ms += 1000  # the age at the first poll, however long the payment took
        client = MerchantClient(net)
        chain_sync = ChainSync(run.agent, client)
        counts = []
        for _ in range(0, 3600, 2):
            await chain_sync.merchant_polling.poll_merchants()
            counts.append(net.calls)
            world.clock.ahead_ms += 2000
        await client.aclose()
    assert [counts[n] for n in (0, 2, 5, 11)] == [1, 2, 3, 4], "polled again at twice the age of the last poll"
    assert 13 < counts[-1] < 20, "and finally every ten minutes"


async def test_a_merchant_is_polled_before_the_payment_is_in_a_block(world: World) -> None:
    world.fund(100 * ADA)
    net = CountingNet()
    async with world.run() as run:
        await run.run_pass()
        await run.pay()
        client = MerchantClient(net)
        chain_sync = ChainSync(run.agent, client)
        await chain_sync.merchant_polling.poll_merchants()
        assert net.calls == 1
        world.clock.ahead_ms -= 3_600_000
        await chain_sync.merchant_polling.poll_merchants()
        assert net.calls == 2, "a clock set back does not stop polling"
        await client.aclose()


async def test_open_invoices_are_polled_50_at_a_time_in_turn(world: World) -> None:
    world.fund(*[20 * ADA] * 60)
    net = CountingNet()
    async with world.run() as run:
        await run.run_pass()
        rows = [await run.pay(f"call {number}") for number in range(60)]
        world.clock.ahead_ms += 60_000
        client = MerchantClient(net)
        chain_sync = ChainSync(run.agent, client)
        await chain_sync.merchant_polling.poll_merchants()
        assert net.calls == 50
        await chain_sync.merchant_polling.poll_merchants()
        await client.aclose()
        assert all(run.context.payment(row.id).merchant_status for row in rows), (
            "the second poll begins with the rest"
        )


async def test_a_native_token_invoice_is_paid_together_with_its_min_ada(world: World) -> None:
    world.settings(asset=TOKEN, price="250", splits=[])
    world.fund(20 * ADA, assets={TOKEN: 1000})
    limits = daily(1000 * ADA, 1000 * ADA) + daily(300, 1000, TOKEN)
    async with world.run(terms=with_terms(limits=limits)) as run:
        row = await run.pay_in_block()
        assert served(world, run, row.id, "hello") == 200
        spent = run.books()[f"merchant:{world.origin}"]
        assert spent[TOKEN] == 250
        assert 1 * ADA < spent["lovelace"] < 2 * ADA
        assert run.owned() == world.on_chain()


async def test_a_repeated_payment_request_is_answered_without_a_commit(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run() as run:
        await run.run_pass()
        ask = world.ask("hello")
        first, is_new = await run.agent.pay(ask)
        await run.agent.submitter.drain(60)
        commits = run.commits
        again, is_new_again = await run.agent.pay(ask)
        assert (first.id, is_new, is_new_again) == (again.id, True, False)
        assert run.commits == commits


async def test_fifty_concurrent_requests_of_one_intent_make_one_payment(world: World) -> None:
    world.fund(*[20 * ADA] * 60)
    async with world.run() as run:
        await run.run_pass()
        ask = world.ask(key="one")
        answers = await asyncio.gather(*(run.agent.pay(ask) for _ in range(50)))
        assert len({row.id for row, _ in answers}) == len({row.attempt.tx_id for row, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1
        assert all(row.attempt.tx_id is not None for row, _ in answers)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert len(world.transactions()) == 1


async def test_fifty_concurrent_intents_are_paid_from_sixty_utxos(world: World) -> None:
    world.fund(*[20 * ADA] * 60)
    async with world.run() as run:
        await run.run_pass()
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(50)]
        answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks))
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        rows = [run.context.payment(row.id) for row, _ in answers]
        assert {row.state for row in rows} == {State.CONFIRMED}
        assert len({row.nonce_utxo for row in rows}) == 50
        assert sorted(world.transactions()) == sorted(row.attempt.tx_id or "" for row in rows)
        assert run.owned() == world.on_chain()
        assert "held" not in run.books()


async def test_concurrent_payments_stay_within_the_limits(world: World) -> None:
    world.fund(*[20 * ADA] * 30)
    limit = daily(1000 * ADA, 40 * ADA)
    async with world.run(terms=with_terms(limits=limit)) as run:
        await run.run_pass()
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(20)]
        answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
        paid = [answer for answer in answers if not isinstance(answer, BaseException)]
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert {refusal.code for refusal in refused} == {"limit_exceeded"}
        assert len(paid) + len(refused) == 20
        await run.agent.submitter.drain(60)
        taken = -sum(units for units in run.books()["external"].values()) - run.books()["wallet"]["lovelace"]
        assert 26 * ADA < taken <= 40 * ADA


@pytest.mark.parametrize(
    ("fund", "code"),
    [((), "not_enough_funds"), ((5 * ADA,), "not_enough_funds"), ((13 * ADA,), "not_enough_funds")],
)
async def test_a_payment_without_enough_funds_is_refused_and_holds_nothing(
    world: World, fund: tuple[int, ...], code: str
) -> None:
    if fund:
        world.fund(*fund)
    else:
        world.block()
    async with world.run() as run:
        await run.run_pass()
        ask = world.ask(key="k")
        with pytest.raises(Refused, match=code):
            await run.agent.pay(ask)
        assert "held" not in run.books()
        world.fund(50 * ADA)
        await run.run_pass()
        row, is_new = await run.agent.pay(ask)
        assert is_new
        assert row.state is State.SIGNED


async def test_a_payment_over_a_limit_is_refused_by_that_limit_even_if_the_wallet_is_empty(world: World) -> None:
    world.block()
    async with world.run(terms=with_terms(limits=daily(ADA, ADA))) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="limit_exceeded"):
            await run.agent.pay(world.ask())


async def test_an_idempotency_key_reused_for_another_request_is_refused(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.pay("first", key="k")
        with pytest.raises(Refused, match="idempotency_key_reused"):
            await run.agent.pay(world.ask("second", key="k"))


async def test_a_new_invoice_for_the_same_intent_is_not_paid_again(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay("hello", key="k")
        world.settings(price="20000000")
        again, is_new = await run.agent.pay(world.ask("hello", key="k"))
        assert (again.id, again.attempt.tx_id, is_new) == (row.id, row.attempt.tx_id, False)
        await run.settle_down()
        assert world.transactions() == [row.attempt.tx_id]


async def test_a_served_request_can_be_bought_again_except_under_the_same_explicit_key(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        first = await run.pay_in_block()
        assert served(world, run, first.id, "hello") == 200
        await run.agent.deliveries.record_delivery(first.id, 200)
        second = await run.pay("hello")
        assert second.id != first.id
        named = await run.pay("other", key="k")
        await run.agent.deliveries.record_delivery(named.id, 200)
        again, is_new = await run.agent.pay(world.ask_of(world.call("other"), key="k"))
        assert (again.id, is_new) == (named.id, False)


async def test_a_pending_402_after_paying_returns_the_payment_and_pays_nothing(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay("hello")
        pending = world.call("hello", Payment.of(run.context, row).headers)
        assert pending.json() == {"detail": {"status": "pending"}}
        again, is_new = await run.agent.pay(world.ask_of(pending))
        assert (again.id, is_new) == (row.id, False)
        with pytest.raises(Refused, match="not_an_invoice"):
            await run.agent.pay(world.ask_of(pending, key="never seen"))


async def test_changed_terms_and_an_invoice_paid_by_another_intent_are_refused(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        answer = world.call("hello")
        row, _ = await run.agent.pay(world.ask_of(answer, key="a"))
        with pytest.raises(Refused, match="invoice_already_paid/other_intent") as other:
            await run.agent.pay(world.ask_of(answer, key="b"))
        assert other.value.context["payment"] == row.id
        assert row.id in other.value.detail
        dearer = answer.text.replace('"amountUnits":"10000000"', '"amountUnits":"11000000"')
        assert dearer != answer.text
        with pytest.raises(Refused, match="terms_changed"):
            await run.agent.pay(world.ask_of(answer, key="a", body=dearer))


async def test_an_unknown_origin_is_refused(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_terms(merchants={})) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="merchant_not_allowed"):
            await run.agent.pay(world.ask())


async def test_an_invoice_that_is_about_to_expire_is_not_paid(world: World) -> None:
    world.settings(timeout=130)
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="invoice_expired"):
            await run.agent.pay(world.ask())
        assert payments.payments_in(run.context.conn, list(State))[0].problem.name == "invoice_expired"


async def test_max_total_caps_the_payment_with_its_fee(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        takes = r"the call's own limit leaves 13 ADA, this payment takes 13\.17\d+ ADA with its fee"
        with pytest.raises(Refused, match=takes):
            await run.agent.pay(world.ask(max_total_units=13 * ADA))
        takes = "the call's own limit leaves 12 ADA, this payment takes 13 ADA and its fee"
        with pytest.raises(Refused, match=takes):
            await run.agent.pay(world.ask("too little by far", max_total_units=12 * ADA))
        row, _ = await run.agent.pay(world.ask("other", max_total_units=13 * ADA + 200_000))
        assert row.state is State.SIGNED


async def test_a_quote_reserves_and_writes_nothing(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_terms(limits=daily(ADA, ADA))) as run:
        await run.run_pass()
        quote = await run.agent.quote(world.ask())
        assert quote.refusal is not None
        assert quote.refusal.code == "limit_exceeded"
        assert quote.plan.fee_lovelace == 155_381 + 44 * quote.plan.size
        assert not payments.payments_in(run.context.conn, list(State))
        assert len(run.context.utxos) == 1


async def test_quote_and_payment_name_the_limit_first_when_funds_are_lacking_too(
    world: World,
) -> None:
    """Otherwise a user who adds funds would be refused again, by the limit."""
    world.fund(5 * ADA)
    async with world.run(terms=with_terms(limits=daily(12 * ADA, 100 * ADA))) as run:
        await run.run_pass()
        for pays in (run.agent.quote, run.agent.pay):
            with pytest.raises(Refused, match="limit_exceeded: the wallet's limit per payment leaves 12 ADA"):
                await pays(world.ask())
        world.settings(price=str(9 * ADA), splits=[])
        for pays in (run.agent.quote, run.agent.pay):
            with pytest.raises(Refused, match="not_enough_funds"):
                await pays(world.ask("within the limit"))


async def test_transfers_to_ourselves_are_confirmed_and_cost_only_their_fees(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        split, _ = await run.agent.transfers.split("app_test", 5, 10 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert run.context.payment(split.id).state is State.CONFIRMED
        assert run.owned() == world.on_chain()
        assert len(run.context.utxos) >= 6
        out = world.account.address
        swept, _ = await run.agent.transfers.send_all("app_test", out)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert run.context.payment(swept.id).state is State.CONFIRMED
        assert len(run.context.utxos) == 1
        assert run.owned() == world.on_chain()
        fees = run.books()["fees"]["lovelace"]
        assert run.owned() == {"lovelace": 100 * ADA - fees}


async def test_the_largest_allowed_split_fits_in_one_transaction(world: World) -> None:
    world.fund(500 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.agent.transfers.split("app_test", SPLIT_COUNT_MAX, ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert len(run.context.utxos) == SPLIT_COUNT_MAX + 1
        assert run.owned() == world.on_chain()


async def test_a_bought_batch_is_booked_as_prepaid(world: World) -> None:
    world.settings(batch=100)
    world.fund(50 * ADA)
    async with world.run() as run:
        row = await run.pay_in_block()
        paid = sum(output.units for output in row.outputs)
        assert run.books()[f"prepaid:{world.origin}"] == {"lovelace": paid}


async def test_wait_returns_when_the_proof_is_ready(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay()
        waiting = asyncio.create_task(run.context.wait(row.id, 20))
        await run.settle_down()
        assert (await waiting).state in (State.IN_BLOCK, State.CONFIRMED)


async def test_plain_sql_shows_balanced_postings_that_cannot_be_changed(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.pay_in_block()
    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn, conn:
        sums = conn.execute("SELECT asset, SUM(units) FROM postings GROUP BY asset").fetchall()
        assert sums == [("lovelace", 0)]
        for statement in ("UPDATE postings SET units = units + 1", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                conn.execute(statement)
