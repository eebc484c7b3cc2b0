"""Two accounts of the wallet, each with an agent of its own, over one ledger: each touches its own money alone."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, copied, daily, put, world_with_clock
from kit.external_spends import SOMEBODY, spend_elsewhere, submit
from kit.payments import BadSigner, assert_memory, wait_for_void
from kit.upkeep import PER_DAY, keep, own_orders

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.base.config import TopupSource
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.topups.orders import TopupGoal
from payagent.api.models.receipt import receipt_of
from payagent.api.models.wallet import wallet_units
from payagent.audit.finding import AuditFinding
from payagent.audit.plain_text_accounting import account_name
from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.invoice import Output
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.core.strict_json import dumps
from payagent.store.db.committer import Ownership
from payagent.store.db.signer_record import SignerFile, last_signed, signer_file
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import attempts_and_utxos, journal, onchain, payments, prepaid, topups, upkeep, writes
from payagent.wallet.keys import Signer
from payagent.wallet.transaction import MAINNET_PARAMETERS, build
from payagent.wallet.utxo_index import Utxo

FUNDS = (60 * ADA, 40 * ADA)
REQUEST = TopupSource("POST", "/chat", '{"message": "more"}')


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[tuple[World, World]]:
    """The wallet's accounts 0 and 1 on one devnet, each with a UTxO."""
    with world_with_clock(tmp_path) as zero:
        one = zero.of_account(1)
        for world, lovelace in zip((zero, one), FUNDS, strict=True):
            world.fund(lovelace)
        yield zero, one
        one.http.close()


@asynccontextmanager
async def running(worlds: tuple[World, World], *, signer: Signer | None = None) -> AsyncIterator[tuple[Run, Run]]:
    """An agent for each account over one ledger. `signer`: of account 0."""
    zero, one = worlds
    records = [SignerFile(zero.folder / signer_file(account)) for account in range(2)]
    writer = Writer(zero.folder / "ledger.db", own=Ownership("boot", dict(enumerate(records))))
    try:
        await writer.run("accounts", lambda unit: note_addresses(unit, worlds))
        async with (
            zero.run(writer=writer, record=records[0], signer=signer) as first,
            one.run(writer=writer, record=records[1]) as second,
        ):
            yield first, second
    finally:
        writer.close()
        for record in records:
            record.close()


def note_addresses(unit: Unit, worlds: tuple[World, World]) -> None:
    rows = [(number, world.address) for number, world in enumerate(worlds)]
    unit.conn.executemany("INSERT INTO accounts(account, address) VALUES (?, ?) ON CONFLICT DO NOTHING", rows)


async def both_pass(*runs: Run, blocks: int = 0) -> None:
    """A pass of each agent, then as many blocks, each with passes."""
    for count in range(blocks + 1):
        if count:
            runs[0].world.block()
        for run in runs:
            await run.run_pass()


def require_whole(*runs: Run) -> None:
    """Nothing is in flight: each account's books equal the chain, and the ledger verifies."""
    for run in runs:
        assert run.owned() == run.world.on_chain()
        assert run.selectable() == run.world.unspent()
        assert_memory(run)
    for run in runs:
        with run.context.readers.snapshot() as conn:
            found = verify(conn, Owner(run.context.config.own, DEVNET))
            assert [one for one in found if isinstance(one, AuditFinding)] == []
            for row in payments.payments_in(conn, list(State)):
                receipt = read_receipt(dumps(receipt_of(conn, row, run.context.config).model_dump()).encode())
                assert list(check_receipt(receipt)) == []


async def test_each_account_pays_with_its_own_utxos_and_has_its_own_books(worlds: tuple[World, World]) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        for run, lovelace in zip((first, second), FUNDS, strict=True):
            assert run.selectable() == run.world.unspent()
            assert run.owned() == {"lovelace": lovelace}
        rows = []
        for run in (first, second):
            before = run.world.unspent()
            rows.append(row := await run.pay(f"from account {run.context.config.account}"))
            (attempt,) = attempts_and_utxos.attempts(run.context.conn, row.id)
            assert {*attempt.inputs} <= before
            assert row.account == attempt.account == run.context.config.account
        books, held = first.books(), [payments.hold(first.context.conn, row.id)["lovelace"] for row in rows]
        assert [books[name]["lovelace"] for name in ("held", "held/1")] == held
        balances = journal.balances(first.context.conn)
        shown = wallet_units(attempts_and_utxos.utxos(first.context.conn), balances)["lovelace"]
        assert (shown["held"], shown["total"]) == (sum(held), sum(FUNDS))
        await both_pass(first, second, blocks=2)
        assert [first.state(row.id) for row in rows] == [State.CONFIRMED, State.CONFIRMED]
        require_whole(first, second)
        assert account_name("wallet/1") == "Assets:Payagent:Wallet:1"


async def test_homes_and_ended_requests_follow_from_their_events(worlds: tuple[World, World]) -> None:
    def record(unit: Unit) -> None:
        unit.conn.execute("INSERT INTO homes VALUES ('https://m.example', 'p', 1)")
        home = {"origin": "https://m.example", "partner": "p", "account": "1"}
        writes.note(unit, None, "home_set", None, 5, home)
        unit.conn.execute("INSERT INTO admission_requests VALUES ('ask', 1, 'pay', 'boot', '{}', 9, 7, '[]')")
        writes.note(unit, None, "request_ended", None, 7, {"request": "ask", "outcome": "[]"})

    async with running(worlds) as (first, second):
        await both_pass(first, second)
        await first.context.write("fleet", record)
        require_whole(first, second)


async def test_a_purchase_of_one_account_is_found_by_the_other(worlds: tuple[World, World]) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        ask = first.world.ask("once", key="k")
        row, _ = await first.agent.pay(ask)
        again, is_new = await second.agent.pay(ask)
        assert (again.id, again.account, is_new) == (row.id, 0, False)
        await first.agent.submitter.drain(60)
        await both_pass(first, second, blocks=1)
        require_whole(first, second)


async def test_all_accounts_spend_from_the_same_limits(worlds: tuple[World, World]) -> None:
    zero, one = worlds
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        cost = payments.hold(first.context.conn, (await first.pay()).id)["lovelace"]
    limits = daily(100 * ADA, cost * 2 - 1)
    zero.terms, one.terms = (replace(world.terms, limits=limits) for world in worlds)
    async with running((zero, one)) as (first, second):
        await both_pass(first, second)
        with pytest.raises(Refused, match="limit_exceeded"):
            await second.pay("too much for one day")


async def test_an_account_leaves_the_payments_of_another_alone(worlds: tuple[World, World]) -> None:
    zero, _ = worlds
    broken = BadSigner(zero.account.signer, "mended")
    async with running(worlds, signer=broken) as (first, second):
        await both_pass(first, second)
        zero.fault("submit", "drop")
        lost = await first.pay("lost on its way")
        zero.fund(30 * ADA)
        await both_pass(first, second)
        broken.trouble = "fails"
        with pytest.raises(OSError, match="the signer is gone"):
            await first.pay("not signed")
    zero.control("faults", clear=True)
    zero.clock.ahead_ms += 60_000
    async with running(worlds) as (first, second):
        (unsigned,) = payments.payments_in(first.context.conn, (State.RESERVED,))
        await second.run_pass()
        assert second.chain_sync._open_payments.open(tuple(State)) == []
        assert (zero.waiting(), second.state(unsigned.id)) == ([], State.RESERVED)
        await second.settle_down()
        assert [second.state(row.id) for row in (lost, unsigned)] == [State.IN_FLIGHT, State.RESERVED]
        await first.run_pass()
        assert first.state(unsigned.id) is State.IN_FLIGHT
        await both_pass(first, second, blocks=1)
        assert {first.state(row.id) for row in (lost, unsigned)} == {State.CONFIRMED}
        require_whole(first, second)


async def test_the_listings_of_an_account_have_nothing_of_another(worlds: tuple[World, World]) -> None:
    zero, _ = worlds
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        await first.agent.transfers.split(APP, 3, 8 * ADA)
        await first.agent.submitter.drain(60)
        await both_pass(first, second, blocks=1)
        await first.pay("in a block")
        await both_pass(first, second, blocks=1)
        zero.fault("submit", "drop")
        await first.pay("pending")
        zero.settings(batch=5)
        await first.topups.order(APP, "order", TopupGoal(zero.origin, "lovelace", 20 * ADA, REQUEST))
        conn, slot = first.context.conn, first.context.chain.slots.slot_at(zero.clock.now_ms())  # type: ignore[union-attr]
        until_ms = zero.clock.now_ms() + 3_600_000
        listings = {
            "free UTxOs": lambda account: attempts_and_utxos.free_utxos(conn, account),
            "UTxOs": lambda account: attempts_and_utxos.utxo_states(conn, account),
            "coming change": lambda account: attempts_and_utxos.coming_utxos(conn, slot, account),
            "change to chain on": lambda account: attempts_and_utxos.chainable_utxos(conn, slot, account),
            "missing UTxOs": lambda account: attempts_and_utxos.missing_utxos(conn, account),
            "missing deposits": lambda account: attempts_and_utxos.missing_deposits(conn, account),
            "unserved payments": lambda account: payments.unserved(conn, until_ms, account=account),
            "open payments": lambda account: payments.open_payments(conn, account),
            "payments by state": lambda account: payments.payments_in(conn, list(State), account),
            "recent payments": lambda account: upkeep.begun(conn, 0, account),
            "payments under way": lambda account: upkeep.is_any_in(conn, frozenset({State.IN_FLIGHT}), account),
            "last spend": lambda account: onchain.last_slot(conn, account) is not None,
            "last attempt": lambda account: last_signed(conn, account),
            "pools": lambda account: prepaid.all_pools(conn, account),
            "top-ups": lambda account: topups.all_open(conn, account),
        }
        await second.run_pass()
        await first.context.write("spoil", spoil)
        (own,) = second.selectable()
        for name, listing in listings.items():
            assert listing(0), name
            found = listing(1)
            assert not found or [getattr(one, "ref", one) for one in found] == [own], name  # type: ignore[attr-defined]


def spoil(unit: Unit) -> None:
    """In account 0 one UTxO is a missing deposit, and the payments were presented and never served."""
    free = attempts_and_utxos.free_utxos(unit.conn)[0]
    unit.conn.execute("UPDATE utxos SET state = 'missing', source = 'deposit' WHERE ref = ?", (free.ref,))
    unit.conn.execute("UPDATE payments SET delivery = 'presented' WHERE account = 0")


async def test_an_account_buys_for_its_own_top_ups_alone(worlds: tuple[World, World]) -> None:
    zero, _ = worlds
    zero.settings(batch=5)
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        order, _ = await first.topups.order(APP, "order", TopupGoal(zero.origin, "lovelace", 20 * ADA, REQUEST))
        await second.topups.run_once()
        assert payments.payments_of_topup(second.context.conn, order.id) == []
        await first.topups.run_once()
        await first.agent.submitter.drain(60)
        (row,) = payments.payments_of_topup(first.context.conn, order.id)
        (pool,) = prepaid.all_pools(first.context.conn)
        assert (row.account, pool.account, pool.wallet) == (0, 0, zero.address)
        await both_pass(first, second, blocks=1)
        for run, is_asked in ((second, False), (first, True)):
            await run.chain_sync.merchant_polling.observe_prepaid()
            assert (prepaid.last_observation(run.context.conn, pool.id) is not None) == is_asked
        await second.pay("a batch for the other account")
        (pool,) = prepaid.all_pools(second.context.conn, 1)
        assert pool.wallet == second.world.address
        await both_pass(first, second, blocks=1)
        require_whole(first, second)


async def test_an_account_plans_with_its_own_money_alone(worlds: tuple[World, World]) -> None:
    """Account 0 has pending change, change to chain on, a payment without a signature and a missing UTxO."""
    zero, one = worlds
    zero.terms, one.terms = (replace(world.terms, unconfirmed_ancestors_max=8) for world in worlds)
    broken = BadSigner(zero.account.signer, "mended")
    zero.fund(60 * ADA, 60 * ADA)
    async with running(worlds, signer=broken) as (first, second):
        await both_pass(first, second)
        zero.fault("submit", "drop")
        await first.pay("pending")
        broken.trouble = "fails"
        with pytest.raises(OSError, match="the signer is gone"):
            await first.pay("not signed")
        await first.context.write("spoil", spoil)
        with pytest.raises(Refused, match="not_enough_funds"):
            await second.agent.transfers.send(APP, SOMEBODY, "lovelace", FUNDS[1] + 5 * ADA)


async def test_upkeep_prepares_utxos_for_the_payments_of_its_own_account(worlds: tuple[World, World]) -> None:
    zero, one = worlds
    zero.settings(price="2000000", splits=[])
    zero.terms, one.terms = (replace(world.terms, upkeep_fees_per_day_lovelace=PER_DAY) for world in worlds)
    one.fund(1000 * ADA)
    async with running((zero, one)) as (first, second):
        await both_pass(first, second)
        for number in range(12):
            with suppress(Refused):
                await first.pay(f"burst {number}")
        await both_pass(first, second, blocks=1)
        await keep(second)
        assert own_orders(second) == []
        zero.fund(1000 * ADA)
        await first.run_pass()
        await keep(first)
        for number in range(12):
            with suppress(Refused):
                await second.pay(f"burst {number} of the other")
        one.fund(1000 * ADA)
        await second.run_pass()
        await keep(second)
        assert [row.account for row in own_orders(second)] == [0, 1]
        await both_pass(first, second, blocks=1)
        require_whole(first, second)


async def test_an_account_judges_the_deliveries_of_its_own_payments(worlds: tuple[World, World]) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        row = await first.pay("not served")
        await both_pass(first, second, blocks=1)
        await first.agent.deliveries.record_delivery(row.id, 402)
        for run in (first, second):
            await run.agent.deliveries.give_up_unserved()
        first.world.clock.ahead_ms += 3_605_000
        await both_pass(first, second, blocks=1)
        for run, delivery in ((second, Delivery.PRESENTED), (first, Delivery.PAID_NOT_SERVED)):
            await run.agent.deliveries.give_up_unserved()
            assert run.context.payment(row.id).delivery is delivery


async def test_money_sent_from_one_account_to_another_is_booked_once_in_each(worlds: tuple[World, World]) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        to = second.world.account.address
        row, _ = await first.agent.transfers.send(APP, to, "lovelace", 7 * ADA)
        await first.agent.submitter.drain(60)
        first.world.block()
        await second.run_pass()  # it books its deposit before the sender's payment is seen in its block
        assert second.owned() == {"lovelace": FUNDS[1] + 7 * ADA}
        await both_pass(first, second, blocks=1)
        assert first.state(row.id) is State.CONFIRMED
        assert first.books()["external"]["lovelace"] == -sum(FUNDS)
        require_whole(first, second)


async def test_a_cancelled_payment_returns_its_money_to_its_own_account(worlds: tuple[World, World]) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        second.world.fault("submit", "drop")
        row = await second.pay("hangs")
        second.world.control("faults", clear=True)
        await second.agent.lifecycle.resolve(row.id, APP)
        await second.agent.submitter.drain(60)
        await both_pass(first, second, blocks=1)
        await wait_for_void(second.world, second)
        await first.run_pass()
        assert first.state(row.id) is State.VOID
        assert "held/1" not in first.books()
        cancel = first.context.payment(row.id).attempt.tx_id or ""
        returned = [
            attempts_and_utxos.free_descendants(first.context.conn, cancel, account) for account in range(2)
        ]
        assert ([], second.selectable()) == (returned[0], {one.ref for one in returned[1]})
        for run in (first, second):
            assert run.owned() == run.world.on_chain()


async def test_an_external_spend_is_booked_in_each_account_that_it_took_from(worlds: tuple[World, World]) -> None:
    """Somebody with the wallet's words spends from both accounts in one transaction."""
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        inputs = [utxo for run in (first, second) for utxo in run.context.utxos]
        submit(first.world, emptied(inputs, worlds))
        first.world.block()
        await both_pass(first, second, blocks=3)
        spends = [onchain.external_spends_on_chain(first.context.conn, account=account) for account in range(2)]
        for ((spend,), lovelace), utxo in zip(zip(spends, FUNDS, strict=True), inputs, strict=True):
            assert (spend.inputs, spend.spent) == ((utxo.ref,), {"lovelace": lovelace})
        assert [run.owned() for run in (first, second)] == [{}, {}]
        assert [run.context.chain.external_spends for run in (first, second)] == [(spends[0][0].tx_id,)] * 2
        require_whole(first, second)


async def test_an_external_spend_of_one_account_freezes_all(worlds: tuple[World, World]) -> None:
    """The accounts have the same words."""
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        spend_elsewhere(second)
        await both_pass(first, second, blocks=1)
        with pytest.raises(Refused, match="external_spend"):
            await second.pay("frozen")
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        for run in (first, second):
            with pytest.raises(Refused, match="external_spend"):
                await run.pay("frozen")
        await unfreeze(second.context, APP)
        await second.pay("again")


async def test_only_its_own_account_voids_a_payment_that_an_external_spend_overtook(
    worlds: tuple[World, World],
) -> None:
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        (utxo,) = first.context.utxos
        first.world.fault("submit", "drop")
        row = await first.pay("overtaken")
        first.world.control("faults", clear=True)
        spend_elsewhere(first, 3 * ADA, utxo)
        await first.run_pass()
        await wait_for_void(second.world, second)
        assert first.state(row.id) is State.IN_FLIGHT
        await wait_for_void(first.world, first)
        assert first.state(row.id) is State.VOID
        require_whole(first, second)


async def test_each_account_follows_its_own_external_spends_and_deposits_in_a_rollback(
    worlds: tuple[World, World],
) -> None:
    zero, one = worlds
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        spend_elsewhere(second)
        await second.run_pass()
        zero.fund(5 * ADA)
        await first.run_pass()
        assert first.owned() == {"lovelace": FUNDS[0] + 5 * ADA}
        zero.control("rollback", depth=2)
        zero.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        zero.block(3)
        await first.run_pass()
        await second.pass_time(5, 61)
        assert second.owned() == one.on_chain() == {"lovelace": FUNDS[1]}
        assert first.owned() == {"lovelace": FUNDS[0] + 5 * ADA}
        await first.pass_time(5, 61)
        await second.run_pass()
        require_whole(first, second)


def emptied(inputs: list[Utxo], worlds: tuple[World, World]) -> bytes:
    """A transaction that sends everything away, signed by both accounts' keys."""
    fees = replace(MAINNET_PARAMETERS, min_fee_b=MAINNET_PARAMETERS.min_fee_b + 10_000)
    out = Output("pay_to", SOMEBODY, "lovelace", 90 * ADA)
    slot = worlds[0].devnet.run(lambda devnet: devnet.chain.tip.slot)
    plan = build(
        inputs,
        inputs[0],
        (out,),
        change=SOMEBODY,
        ttl_slot=slot + 500,
        network_id=DEVNET.network_id,
        params=fees,
        rest_role="pay_to",
    )
    signers = [world.account.signer for world in worlds]
    witnesses = b"".join(
        b"\x82\x58\x20" + one.public_key + b"\x58\x40" + one.sign(plan.body, 0) for one in signers
    )
    return b"\x84" + plan.body + b"\xa1\x00\x82" + witnesses + b"\xf5\xf6"


async def test_each_account_has_a_record_of_what_its_key_signed(worlds: tuple[World, World]) -> None:
    zero, _ = worlds
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        rows = [await run.pay(f"signed by {run.context.config.account}") for run in (second, first)]
    signed = {n: SignerFile(zero.folder / signer_file(n)).read() for n in range(2)}
    assert [one and one.tx_id for one in signed.values()] == [row.attempt.tx_id for row in reversed(rows)]


async def test_a_ledger_that_lacks_what_one_account_signed_stops_all_accounts(worlds: tuple[World, World]) -> None:
    zero, _ = worlds
    async with running(worlds) as (first, second):
        await both_pass(first, second)
    before = copied(zero)
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        await second.pay("forgotten")
    put(zero, before)
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        with pytest.raises(Refused, match="ledger_behind"):
            await second.pay("not before the chain is read")
    async with running(worlds) as (first, second):
        await both_pass(first, second)
        for run in (first, second):
            with pytest.raises(Refused, match="ledger_behind"):
                await run.pay("not before the chain is read")
        zero.clock.ahead_ms += QUIET_MS + 2000
        await both_pass(second, blocks=1)
    async with running(worlds) as (first, second):
        assert second.context.chain.behind is None
        assert "older than what was signed" in str(first.context.chain.behind)
        await both_pass(first, second, blocks=1)
        require_whole(first, second)
    async with running(worlds) as (first, second):
        assert [run.context.chain.behind for run in (first, second)] == [None, None]
