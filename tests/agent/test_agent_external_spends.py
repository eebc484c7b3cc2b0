"""External spends, by another wallet with the same keys: booked exactly, frozen, unfrozen and rolled back."""

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from kit.agent import ADA, APP, DEVNET, Relay, Run, World, with_terms, world_with_clock
from kit.external_spends import SOMEBODY, require_whole, spend_elsewhere, submit
from kit.http import NO_TLS
from kit.payments import fork_with, height

from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.chain_sync import external_spends, recovery
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.chain.provider import AddressTx, Found, Movement
from payagent.chain.quorum_view import QuorumView
from payagent.core.invoice import Output
from payagent.core.money import MAX_UNITS
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.opening import open_read_only
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts, onchain
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.transaction import build
from payagent.wallet.utxo_index import Utxo
from sim.signing import sign


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        world.fund(100 * ADA, 100 * ADA, 100 * ADA)
        yield world


def remembered() -> int:
    """Count the transactions in memory whose inputs and outputs were read."""
    gc.collect()
    return sum(type(one) is Movement for one in gc.get_objects())


async def test_a_search_keeps_only_the_newest_transactions_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "REMEMBERED_MAX", 2)
    async with world.run() as run:
        before = remembered()
        await run.run_pass()
        spend_elsewhere(run)
        await run.run_pass()
        assert await unfreeze(run.context, APP)
        world.block()
        await run.run_pass()
        assert remembered() == before + 2


async def test_an_external_spend_is_booked_and_freezes_payments_until_an_operator_unfreezes(world: World) -> None:
    async with world.run() as run:
        row = await run.pay_in_block("first")
        tx_id = spend_elsewhere(run)
        await run.run_pass()
        assert run.context.chain.external_spends == (tx_id,)
        await require_whole(run)
        with pytest.raises(Refused, match="external_spend"):
            await run.pay("while frozen")
        assert alerts.last_kind(run.context.conn, "external_spend") == "external_spend"
        assert run.state(row.id) is State.CONFIRMED
    async with world.run() as run:  # a restart does not unfreeze
        await run.run_pass()
        with pytest.raises(Refused, match="external_spend"):
            await run.pay("while frozen")
        assert await unfreeze(run.context, APP) == (tx_id,)
        assert await unfreeze(run.context, APP) == ()
        assert alerts.last_kind(run.context.conn, "external_spend") == "cleared"
        row = await run.pay("after the unfreeze")
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        await require_whole(run)


async def test_an_unfreeze_clears_the_alert_of_an_earlier_version(world: World) -> None:
    """Its subject had another word, and a sealed row keeps it."""
    async with world.run() as run:
        await run.run_pass()
        spend_elsewhere(run)
        await run.run_pass()

        def as_before(unit: Unit, now_ms: int) -> None:
            clear_alert(unit, "external_spend", {}, now_ms)
            raise_alert(unit, "external_spend", "foreign", {"detail": "spent elsewhere"}, now_ms)

        await run.context.write_at("alert", as_before)
    async with world.run() as run:
        await run.run_pass()
        assert alerts.counts_raised(run.context.conn) == {"external_spend": 1}
        assert await unfreeze(run.context, APP)
        assert alerts.all_raised(run.context.conn) == []
        await require_whole(run)


async def undo_the_last_block(run: Run) -> None:
    """Roll back one block, drop its transactions, and wait until the rollback is certain."""
    run.world.control("rollback", depth=1)
    run.world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
    run.world.block(2)
    await run.run_pass()
    await run.pass_time(5, 61)


async def test_an_external_spend_larger_than_one_posting_is_booked_and_rolled_back(world: World) -> None:
    token = "ab" * 28 + "53"
    world.fund(10 * ADA, 10 * ADA, assets={token: MAX_UNITS})
    async with world.run() as run:
        await run.run_pass()
        both = [utxo for utxo in run.context.utxos if utxo.assets]
        assert [utxo.assets for utxo in both] == [((token, MAX_UNITS),)] * 2
        tx_id = spend_elsewhere(run, 3 * ADA, *both)
        await run.run_pass()
        assert run.context.chain.external_spends == (tx_id,)
        await require_whole(run)
        await undo_the_last_block(run)
        assert run.owned()[token] == 2 * MAX_UNITS
        await require_whole(run)


async def test_a_locked_utxo_spent_externally_is_booked_and_locked_again_after_a_rollback(
    world: World,
) -> None:
    tx_id, _, index = (ref := world.fund_with_datum(7 * ADA)).partition("#")
    async with world.run() as run:
        await run.run_pass()
        assert ref not in run.selectable()
        spender = spend_elsewhere(run, 3 * ADA, Utxo(tx_id, int(index), 7 * ADA))
        await run.run_pass()
        assert run.context.chain.external_spends == (spender,)
        await require_whole(run)
        await undo_the_last_block(run)
        assert queries.utxo_states(run.context.conn)[ref] == "locked"
        assert ref not in run.selectable()
        await require_whole(run)


async def test_an_unfreeze_that_omits_the_newest_external_spend_is_refused(
    world: World,
) -> None:
    async with world.run() as run:
        await run.run_pass()
        first = spend_elsewhere(run)
        await run.run_pass()
        second = spend_elsewhere(run)
        await run.run_pass()
        assert [alert.facts["tx"] for alert in alerts.after(run.context.conn, 0)] == [first, second]
        with pytest.raises(Refused, match=second) as refused:
            await unfreeze(run.context, APP, [first])
        assert refused.value.name == "external_spend_new"
        with pytest.raises(Refused, match=rf"{second} \(and 1 before it\)"):
            await run.pay("while frozen")
        assert await unfreeze(run.context, APP, [first, second]) == (first, second)
        kinds = [alert.kind for alert in alerts.after(run.context.conn, 0)]
        assert kinds == ["external_spend", "external_spend", "cleared"]
        await run.pay_in_block("after the unfreeze")


async def test_a_utxo_received_and_spent_between_two_passes_is_booked_with_its_spend(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        first = spend_elsewhere(run)
        change = world.devnet.run(
            lambda devnet: next(
                (ref, out.lovelace)
                for ref, out in devnet.chain.utxos_at(world.account.address.raw)
                if ref[0] == first
            )
        )
        second = spend_elsewhere(run, ADA * 2, Utxo(first, change[0][1], change[1], ()))
        await run.run_pass()
        assert {row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)} == {first, second}
        await require_whole(run)


async def test_a_rolled_back_external_spend_restores_the_utxos_and_does_not_unfreeze(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        before = run.owned()
        tx_id = spend_elsewhere(run)
        await run.run_pass()
        assert run.owned() != before
        world.control("rollback", depth=1)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        world.block(2)
        await run.run_pass()
        assert onchain.external_spends_on_chain(run.context.conn) == []
        await run.pass_time(5, 61)
        assert tx_id not in world.transactions()
        assert run.owned() == before == world.on_chain()
        await require_whole(run)
        with pytest.raises(Refused, match="external_spend"):
            await run.pay("still frozen")
        await unfreeze(run.context, APP)
        await run.pay_in_block("again")
        await require_whole(run)


@pytest.mark.parametrize("is_down", [False, True])
async def test_a_rolled_back_external_spend_is_noticed_even_many_blocks_later(world: World, is_down: bool) -> None:
    """The external spend was not settled when it was last seen, and no chain holds it any more."""

    def undo() -> None:
        world.control("rollback", depth=6)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        world.block(30)

    async with world.run(terms=with_terms(settle_depth=10)) as run:
        await run.run_pass()
        before = run.owned()
        spend_elsewhere(run)
        await run.run_pass()
        world.block(5)
        await run.run_pass()
        if not is_down:
            undo()
            await run.run_pass()
            await run.pass_time(5, 61)
            assert run.owned() == before == world.on_chain()
    if is_down:
        undo()
        async with world.run(terms=with_terms(settle_depth=10)) as run:
            await run.run_pass()
            await run.pass_time(5, 61)
            assert run.owned() == before == world.on_chain()


async def test_a_settled_external_spend_is_not_read_from_the_provider_again(world: World) -> None:
    terms = with_terms(settle_depth=8)
    with Relay(world.devnet).serving() as relay:
        async with world.run(terms=terms, providers={"relay": relay.url}) as run:
            await run.run_pass()
            tx_id = spend_elsewhere(run)
            await run.run_pass()
            world.block(20)
            await run.run_pass()
        asked = [path for _, path in relay.calls].count(f"/txs/{tx_id}")
        async with world.run(terms=terms, providers={"relay": relay.url}) as run:
            world.block(2)
            await run.pass_time(3, 61)
            assert [row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)] == [tx_id]
            assert [path for _, path in relay.calls].count(f"/txs/{tx_id}") == asked > 0


class Forgetful(Relay):
    """A provider that fails every third request for a transaction."""

    asked, forgets = 0, False

    def heard(self, path: str, content: bytes) -> None:
        if path.startswith("/txs/") and not path.endswith("/utxos"):
            self.asked += 1
            if self.asked % 3 or not self.forgets:
                self.untell(path)
            else:
                self.tell(path, 503, {})


async def test_external_spends_are_rechecked_a_few_per_pass_until_all_are_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_spends, "RECHECKS_MAX", 4)
    terms = with_terms(settle_depth=8)
    with Forgetful(world.devnet).serving() as relay:
        async with world.run(terms=terms, providers={"relay": relay.url}) as run:
            await run.run_pass()
            spent = []
            for _ in range(7):
                spent.append(spend_elsewhere(run))
                await run.run_pass()
            world.block(20)
            relay.forgets = True
            for _ in range(4):
                before = relay.asked
                world.block()
                await run.run_pass()
                assert relay.asked - before <= 4
            assert onchain.external_spends_settled(run.context.conn) >= height(world) - 4 - 8
            before = relay.asked
            await run.pass_time(3, 61)
            assert relay.asked == before
            assert [row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)] == spent


async def test_a_pass_loads_no_settled_external_spends_from_the_ledger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost ledger every earlier payment is an external spend, so there may be very many."""
    async with world.run(terms=with_terms(settle_depth=8)) as run:
        await run.run_pass()
        spend_elsewhere(run)
        await run.run_pass()
        world.block(20)
        await run.run_pass()
        read: list[object] = []
        monkeypatch.setattr(onchain, "ExternalSpendRow", lambda *row: read.append(row))
        await run.pass_time(3, 61)
        assert read == []


async def test_the_search_for_the_spender_of_a_missing_utxo_becomes_less_frequent(world: World) -> None:
    """A provider may omit a UTxO for days."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            await run.run_pass()
            relay.tell(f"/addresses/{world.address}/utxos", 200, [])
            await run.pass_time(40, 61)
            asked = Counter(path for _, path in relay.calls if re.fullmatch("/txs/[0-9a-f]{64}/utxos", path))
            assert len(asked) == 3
            assert all(5 < times < 15 for times in asked.values())
            relay.unfreeze()
            await run.settle_down()
            tx_id = spend_elsewhere(run)
            await run.run_pass()
            assert run.context.chain.external_spends == (tx_id,), "other UTxOs are searched for at once"


async def test_a_search_of_a_long_history_lets_other_tasks_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Found(tuple(AddressTx(f"{number:064x}", 1, 1) for number in range(20_000)))

    async def transactions(*_: object) -> Found[tuple[AddressTx, ...]]:
        return rows

    monkeypatch.setattr(QuorumView, "transactions", transactions)
    monkeypatch.setattr(onchain, "is_ours", lambda *_: True)
    async with world.run() as run:
        await run.run_pass()
        view, turns = run.chain_sync.provider_selection.view, 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        assert view is not None
        assert await recovery.ExternalSpendSearch(run.context).find(view, 0) == []
        task.cancel()
        assert turns > 20


def raw_of(world: World, tx_id: str) -> bytes:
    """Return the bytes of a transaction on the devnet's chain."""
    found: bytes = world.devnet.run(
        lambda devnet: next(tx.raw for block in devnet.chain.blocks for tx in block.txs if tx.tx_id == tx_id)
    )
    return found


async def test_a_reviewed_external_spend_does_not_freeze_again_when_a_fork_moves_it(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        low = height(world)
        tx_id = spend_elsewhere(run)
        raw = raw_of(world, tx_id)
        await run.run_pass()
        before = onchain.external_spends_on_chain(run.context.conn)
        await unfreeze(run.context, APP)
        fork_with(world, low, raw)
        await run.pass_time(3, 61)
        (moved,) = onchain.external_spends_on_chain(run.context.conn)
        assert [moved.tx_id] == [row.tx_id for row in before] == [tx_id]
        assert moved.block_hash != before[0].block_hash
        assert run.context.chain.external_spends == ()
        assert alerts.last_kind(run.context.conn, "external_spend") == "cleared"
        await require_whole(run)
    async with world.run() as run:  # a restart remembers which external spends were reported
        world.control("rollback", depth=height(world) - low)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        world.block(8)
        await run.pass_time(2, 61)
        assert onchain.external_spends_on_chain(run.context.conn) == []
        submit(world, raw)
        await run.pass_time(3, 61)
        assert [row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)] == [tx_id]
        row = await run.pay_in_block("already reported")
        assert run.state(row.id) is State.CONFIRMED
        another = spend_elsewhere(run)
        await run.run_pass()
        assert run.context.chain.external_spends == (another,)
        assert alerts.last_kind(run.context.conn, "external_spend") == "external_spend"
        await require_whole(run)


async def test_the_wallet_stays_frozen_when_a_fork_moves_the_external_spend(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        low = height(world)
        tx_id = spend_elsewhere(run)
        await run.run_pass()
        fork_with(world, low, raw_of(world, tx_id))
        await run.pass_time(3, 61)
        assert run.context.chain.external_spends == onchain.frozen_by(run.context.conn) == (tx_id,)
        assert await unfreeze(run.context, APP) == (tx_id,)
        assert run.context.chain.external_spends == ()
        assert alerts.last_kind(run.context.conn, "external_spend") == "cleared"


async def test_a_payment_is_void_once_the_external_spend_of_its_nonce_utxo_is_deep(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", "drop", count=1)
        row = await run.pay("overtaken")
        assert run.state(row.id) is State.IN_FLIGHT
        nonce_utxo = next(c for c in queries.utxos(run.context.conn) if c.ref == row.nonce_utxo)
        tx_id = spend_elsewhere(
            run, 3 * ADA, Utxo(nonce_utxo.tx_id, nonce_utxo.output_index, nonce_utxo.lovelace, ())
        )
        await run.run_pass()
        assert run.context.chain.external_spends == (tx_id,)
        assert run.state(row.id) is State.IN_FLIGHT
        assert run.books()["held"]
        await run.pass_time(2, 61)
        assert run.state(row.id) is State.IN_FLIGHT
        await run.pass_time(3, 61)
        assert run.state(row.id) is State.VOID
        assert "held" not in run.books()
        await require_whole(run)
        # a rollback of the external spend reopens the payment
        world.control("rollback", depth=6)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        world.block(8)
        await run.run_pass()
        assert run.state(row.id) is State.CANCELLING
        assert run.context.payment(row.id).attempt.tx_id == row.attempt.tx_id
        await unfreeze(run.context, APP)
        await run.pass_time(3, 10)
        assert run.state(row.id) in (State.CANCELLING, State.IN_BLOCK, State.CONFIRMED)
        await require_verified(run)


async def test_rolling_back_an_external_spend_keeps_a_utxo_spent_by_our_own_attempt(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        low = height(world)
        world.fault("submit", "drop")
        row = await run.pay("overtaken for a while")
        world.control("faults", clear=True)
        nonce_utxo = next(c for c in queries.utxos(run.context.conn) if c.ref == row.nonce_utxo)
        tx_id = spend_elsewhere(
            run, 3 * ADA, Utxo(nonce_utxo.tx_id, nonce_utxo.output_index, nonce_utxo.lovelace, ())
        )
        await run.run_pass()
        assert [one.tx_id for one in onchain.external_spends_on_chain(run.context.conn)] == [tx_id]
        fork_with(world, low, row.attempt.cbor or b"")
        await run.run_pass()
        await run.pass_time(4, 61)
        assert (run.state(row.id), world.transactions()) == (State.CONFIRMED, [row.attempt.tx_id])
        assert nonce_utxo.ref not in {utxo.ref for utxo in queries.utxos(run.context.conn)}, "the UTxO is spent"
        await require_whole(run)


@pytest.mark.parametrize("lie", [{"block_height": 2**63 - 1}, {"block_height": 2**63 - 1, "block": "fa" * 32}])
async def test_an_external_spend_in_a_block_far_above_the_tip_is_not_booked(
    world: World, lie: dict[str, object]
) -> None:
    """In such a block it would never be deep enough to void a payment, nor could it ever be rolled back."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            await run.run_pass()
            tx_id = spend_elsewhere(run)
            world.block()
            path = f"/txs/{tx_id}"
            shown = httpx.get(f"{relay.upstream}{path}", verify=NO_TLS, trust_env=False).json()
            relay.tell(path, 200, shown | lie)
            relay.freeze(f"{path}/utxos")
            await run.pass_time(4, 61)
            assert onchain.external_spends_on_chain(run.context.conn) == []
            relay.unfreeze()
            await run.pass_time(4, 61)
            (booked,) = onchain.external_spends_on_chain(run.context.conn)
            assert (booked.block_hash, booked.block_height) == (shown["block"], shown["block_height"])
            assert run.context.chain.external_spends == (tx_id,)


async def test_booking_our_own_attempt_also_rolls_back_the_external_spend_it_replaces(world: World) -> None:
    """No chain holds both. The books are correct even if the daemon dies before it reads the other transaction."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            await run.run_pass()
            low = height(world)
            world.fault("submit", "drop")
            row = await run.pay("overtaken for a while")
            world.control("faults", clear=True)
            nonce_utxo = next(c for c in queries.utxos(run.context.conn) if c.ref == row.nonce_utxo)
            tx_id = spend_elsewhere(
                run, 3 * ADA, Utxo(nonce_utxo.tx_id, nonce_utxo.output_index, nonce_utxo.lovelace, ())
            )
            await run.run_pass()
            assert [one.tx_id for one in onchain.external_spends_on_chain(run.context.conn)] == [tx_id]
            fork_with(world, low, row.attempt.cbor or b"")
            relay.tell("/addresses/", 500, {})
            await run.run_pass()
            assert run.state(row.id) in (State.IN_BLOCK, State.CONFIRMED)
            assert onchain.external_spends_on_chain(run.context.conn) == []
            await require_verified(run)
        relay.unfreeze()
        async with world.run(providers={"relay": relay.url}) as run:
            await run.pass_time(4, 61)
            assert (run.state(row.id), world.transactions()) == (State.CONFIRMED, [row.attempt.tx_id])
            await require_whole(run)


async def test_the_other_utxos_of_a_void_payment_become_available_when_the_external_spend_settles(
    world: World,
) -> None:
    world.settings(price=str(150 * ADA), splits=[])
    async with world.run(terms=with_terms(settle_depth=8)) as run:
        await run.run_pass()
        world.fault("submit", "drop", count=1)
        row = await run.pay("from two UTxOs")
        reserved = {utxo.ref: utxo for utxo in queries.utxos_reserved_for(run.context.conn, row.id)}
        assert len(reserved) == 2
        nonce_utxo = reserved.pop(row.nonce_utxo or "")
        spend_elsewhere(run, 3 * ADA, Utxo(nonce_utxo.tx_id, nonce_utxo.output_index, nonce_utxo.lovelace, ()))
        await run.run_pass()
        await run.pass_time(4, 61)
        assert run.state(row.id) is State.VOID
        assert not reserved.keys() & run.selectable()
        await run.pass_time(6, 61)
        assert reserved.keys() <= run.selectable()
        await require_whole(run)


async def test_a_payment_that_lost_an_input_other_than_its_nonce_utxo_becomes_void(world: World) -> None:
    """The attempt can no longer land. The cancel spends the nonce UTxO and the inputs that are left."""
    world.settings(price=str(150 * ADA), splits=[])
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", "drop")
        row = await run.pay("from two UTxOs")
        utxos = queries.utxos_reserved_for(run.context.conn, row.id)
        other = next(utxo for utxo in utxos if utxo.ref != row.nonce_utxo)
        world.control("faults", clear=True)
        spend_elsewhere(run, 3 * ADA, Utxo(other.tx_id, other.output_index, other.lovelace, ()))
        await run.run_pass()
        assert run.state(row.id) is State.IN_FLIGHT
        await unfreeze(run.context, APP)
        for _ in range(12):
            await run.pass_time(1, 300)
        assert run.state(row.id) is State.VOID
        await require_whole(run)


async def test_an_external_spend_that_cannot_be_booked_yet_does_not_freeze(
    world: World,
) -> None:
    """It spends a UTxO of our attempt, whose block was rolled back. That rollback has to be noticed first."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            row = await run.pay_in_block("its block is lost")
            nonce_utxo = next(
                c for c in queries.utxos_reserved_for(run.context.conn, row.id) if c.ref == row.nonce_utxo
            )
            world.control("rollback", depth=1)
            world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
            relay.tell(f"/txs/{row.attempt.tx_id}", 200, {})
            both = [utxo_of(nonce_utxo), next(utxo for utxo in run.context.utxos if utxo.ref in world.unspent())]
            slot = run.context.chain.slots.slot_at(world.clock.now_ms())  # type: ignore[union-attr]
            out = Output("pay_to", SOMEBODY, "lovelace", 3 * ADA)
            own, network_id = world.account.address, DEVNET.network_id
            plan = build(both, both[0], (out,), change=own, ttl_slot=slot + 500, network_id=network_id)
            submit(world, sign(plan, world.account.signer))
            world.block(2)
            await run.run_pass()
            assert onchain.external_spends_on_chain(run.context.conn) == []
            assert (run.context.chain.external_spends, onchain.frozen_by(run.context.conn)) == ((), ())
            run.context.chain.external_spends = (plan.tx_id,)
            assert await unfreeze(run.context, APP) == ()
            assert run.context.chain.external_spends == (), "the freeze follows the ledger"
            relay.unfreeze()
            await run.pass_time(3, 61)
            assert run.context.chain.external_spends == onchain.frozen_by(run.context.conn) == (plan.tx_id,)


async def require_verified(run: Run) -> None:
    with closing(open_read_only(run.world.folder / "ledger.db")) as conn:
        conn.execute("BEGIN")
        owner = Owner(run.world.account.address, DEVNET)
        assert [finding for finding in verify(conn, owner) if isinstance(finding, AuditFinding)] == []
