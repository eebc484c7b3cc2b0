"""Coins that another wallet on the same words spends: booked to the unit, frozen, thawed, and rolled back."""

import asyncio
import gc
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
from payagent.agent.chain_sync import external_spends as external_spends
from payagent.agent.chain_sync import recovery as scan
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.chain.provider import AddressTx, Found, Movement
from payagent.chain.quorum_view import QuorumView
from payagent.core.invoice import Output
from payagent.core.money import MAX_UNITS
from payagent.core.payment import State
from payagent.core.problems import Refused
from payagent.store.db.opening import open_read_only
from payagent.store.rows import alerts, onchain
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.transaction import build, sign
from payagent.wallet.utxo_index import Utxo


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet that goes by the clock that a test puts off."""
    with world_with_clock(tmp_path) as world:
        world.fund(100 * ADA, 100 * ADA, 100 * ADA)
        yield world


def remembered() -> int:
    """How many transactions are in memory of which it was read what they moved."""
    gc.collect()
    return sum(type(one) is Movement for one in gc.get_objects())


async def test_a_search_keeps_only_the_newest_transactions_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "REMEMBERED_MAX", 2)
    async with world.run() as run:
        before = remembered()
        await run.run_pass()
        spend_elsewhere(run)
        await run.run_pass()
        assert await unfreeze(run.context, APP)
        world.block()
        await run.run_pass()
        assert remembered() == before + 2


async def test_an_external_spend_is_booked_and_freezes_until_an_operator_unfreezes(world: World) -> None:
    async with world.run() as run:
        row = await run.pay_in_block("first")
        tx_id = spend_elsewhere(run)
        await run.run_pass()
        assert run.context.chain.external_spends == (tx_id,)
        await require_whole(run)
        with pytest.raises(Refused, match="external_spend"):
            await run.pay("while frozen")
        assert alerts.last_kind(run.context.conn, "foreign") == "external_spend"
        assert run.state(row.id) is State.CONFIRMED
    async with world.run() as run:  # a restart thaws nothing
        await run.run_pass()
        with pytest.raises(Refused, match="external_spend"):
            await run.pay("while frozen")
        assert await unfreeze(run.context, APP) == (tx_id,)
        assert await unfreeze(run.context, APP) == ()
        assert alerts.last_kind(run.context.conn, "foreign") == "cleared"
        row = await run.pay("after the thaw")
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        await require_whole(run)


async def undo_the_last_block(run: Run) -> None:
    """A fork without its transactions, which nobody sends again, and long enough to be sure of it."""
    run.world.control("rollback", depth=1)
    run.world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
    run.world.block(2)
    await run.run_pass()
    await run.pass_time(5, 61)


async def test_a_spend_elsewhere_of_more_than_one_posting_holds_is_booked_and_lost_again(world: World) -> None:
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


async def test_what_payagent_never_spends_may_be_spent_elsewhere_and_is_back_after_a_fork(
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


async def test_an_unfreeze_that_has_not_seen_the_newest_external_spend_clears_nothing(
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
        told = [alert.kind for alert in alerts.after(run.context.conn, 0)]
        assert told == ["external_spend", "external_spend", "cleared"]
        await run.pay_in_block("after the thaw")


async def test_a_utxo_that_came_and_went_between_two_looks_is_booked_with_its_spend(world: World) -> None:
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


async def test_a_rollback_of_it_restores_the_utxos_and_unfreezes_nothing(world: World) -> None:
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
async def test_a_rollback_of_it_is_noticed_however_many_blocks_come_before_the_next_look(
    world: World, is_down: bool
) -> None:
    """It was not settled when it was last seen there, and is deeper than that on no chain now."""

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


async def test_a_settled_external_spend_is_no_longer_read(world: World) -> None:
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
    """It loses each third answer about a transaction."""

    asked, forgets = 0, False

    def heard(self, path: str, content: bytes) -> None:
        if path.startswith("/txs/") and not path.endswith("/utxos"):
            self.asked += 1
            if self.asked % 3 or not self.forgets:
                self.untell(path)
            else:
                self.tell(path, 503, {})


async def test_settled_external_spends_are_read_a_few_at_a_time_until_each_was_seen(
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


async def test_a_look_reads_nothing_of_a_past_that_is_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that was lost has all that it ever paid there."""
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


async def test_a_utxo_without_a_known_spender_is_searched_for_less_and_less(world: World) -> None:
    """A provider's list may lack one for days, and each search lists all transactions since that one came."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            await run.run_pass()
            relay.tell(f"/addresses/{world.address}/utxos", 200, [])
            await run.pass_time(40, 61)
            listings = relay.calls.count(("GET", f"/addresses/{world.address}/transactions"))
            assert 5 < listings < 15
            relay.unfreeze()
            await run.settle_down()
            tx_id = spend_elsewhere(run)
            await run.run_pass()
            assert run.context.chain.external_spends == (tx_id,), "other coins are searched for at once"


async def test_a_search_of_a_long_past_lets_others_go_on_between(
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
        assert await scan.ExternalSpendSearch(run.context).find(view, 0) == []
        task.cancel()
        assert turns > 20


def raw_of(world: World, tx_id: str) -> bytes:
    """The bytes of a transaction on the devnet's chain."""
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
        assert alerts.last_kind(run.context.conn, "foreign") == "cleared"
        await require_whole(run)
    async with world.run() as run:  # a restart remembers what was told
        world.control("rollback", depth=height(world) - low)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        world.block(8)
        await run.pass_time(2, 61)
        assert onchain.external_spends_on_chain(run.context.conn) == []
        submit(world, raw)
        await run.pass_time(3, 61)
        assert [row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)] == [tx_id]
        row = await run.pay_in_block("it is told already")
        assert run.state(row.id) is State.CONFIRMED
        another = spend_elsewhere(run)
        await run.run_pass()
        assert run.context.chain.external_spends == (another,)
        assert alerts.last_kind(run.context.conn, "foreign") == "external_spend"
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
        assert alerts.last_kind(run.context.conn, "foreign") == "cleared"


async def test_a_payment_whose_nonce_utxo_went_elsewhere_is_void_when_that_is_deep(world: World) -> None:
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
        # a rollback that takes the foreign transaction away opens the payment again
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


async def test_a_rollback_of_it_leaves_alone_what_our_own_attempt_has_spent_since(world: World) -> None:
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
        assert nonce_utxo.ref not in {utxo.ref for utxo in queries.utxos(run.context.conn)}, "it is spent"
        await require_whole(run)


@pytest.mark.parametrize("lie", [{"block_height": 2**63 - 1}, {"block_height": 2**63 - 1, "block": "fa" * 32}])
async def test_a_spend_in_a_block_far_above_all_others_is_not_booked_there(
    world: World, lie: dict[str, object]
) -> None:
    """It never came so deep that what it overtook was void, and no tip came so high that it could be lost."""
    with Relay(world.devnet).serving() as relay:
        async with world.run(providers={"relay": relay.url}) as run:
            await run.run_pass()
            tx_id = spend_elsewhere(run)
            world.block()
            path = f"/txs/{tx_id}"
            told = httpx.get(f"{relay.upstream}{path}", verify=NO_TLS, trust_env=False).json()
            relay.tell(path, 200, told | lie)
            relay.freeze(f"{path}/utxos")
            await run.pass_time(4, 61)
            assert onchain.external_spends_on_chain(run.context.conn) == []
            relay.unfreeze()
            await run.pass_time(4, 61)
            (booked,) = onchain.external_spends_on_chain(run.context.conn)
            assert (booked.block_hash, booked.block_height) == (told["block"], told["block_height"])
            assert run.context.chain.external_spends == (tx_id,)


async def test_what_our_own_attempt_has_spent_since_is_booked_with_the_loss_of_it(world: World) -> None:
    """No chain holds both. A daemon that dies before it asks for the other one leaves books that are whole."""
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


async def test_the_other_utxos_of_what_was_overtaken_come_free_when_that_is_settled(world: World) -> None:
    world.settings(price=str(150 * ADA), splits=[])
    async with world.run(terms=with_terms(settle_depth=8)) as run:
        await run.run_pass()
        world.fault("submit", "drop", count=1)
        row = await run.pay("of two coins")
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


async def test_a_payment_that_lost_an_input_other_than_its_nonce_utxo_still_ends(world: World) -> None:
    """The attempt can land no more; what takes the anchor back spends what is left."""
    world.settings(price=str(150 * ADA), splits=[])
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", "drop")
        row = await run.pay("of two coins")
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
    """It spends a coin that our attempt was seen to spend, in a block that is lost: that is to be seen first."""
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
            assert run.context.chain.external_spends == (), "what is frozen is what the ledger says"
            relay.unfreeze()
            await run.pass_time(3, 61)
            assert run.context.chain.external_spends == onchain.frozen_by(run.context.conn) == (plan.tx_id,)


async def require_verified(run: Run) -> None:
    with closing(open_read_only(run.world.folder / "ledger.db")) as conn:
        conn.execute("BEGIN")
        owner = Owner(run.world.account.address, DEVNET)
        assert [told for told in verify(conn, owner) if isinstance(told, AuditFinding)] == []
