"""Reconcile: a ledger that agrees with the chain is clean, and each difference is named with its amounts."""

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.agent import ADA, DEVNET, Clock, Relay, Run, World
from kit.audit import TOKEN, live, tamper
from kit.handover import broadcast

from payagent.agent.base.ports import SystemRandomness
from payagent.api.app import create_app
from payagent.api.http.tokens import hash_token, new_token
from payagent.chain.address_history import read_history
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.provider import Unknown
from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.devnet.server import DevnetThread
from payagent.store.rows import apps
from payagent.wallet.transaction import select
from payagent.wallet.utxo_index import UtxoIndex
from sim.signing import sign

SOMEBODY = encode_address(bytes([0x60]) + bytes(28))
BAD = {"status_code": 500, "error": "Internal Server Error", "message": "down"}


@pytest.fixture(scope="module")
def lived_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Payments, a rollback, transfers to itself, a cancel, deposits, and a payment in flight."""
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = World(devnet, tmp_path_factory.mktemp("lived"))
        world.clock = clock
        world.terms = replace(world.terms, settle_depth=3)
        asyncio.run(live(world))
        yield world
        world.http.close()


async def reconciled(run: Run, **query: int) -> dict[str, Any]:
    """The answer to an auditor with a read-only token."""
    token = new_token(SystemRandomness())
    name, now_ms = hash_token(token)[:16], run.world.clock.now_ms()
    await run.context.write(
        "app", lambda unit: apps.add_with_token(unit, name, name, hash_token(token), ["read"], now_ms)
    )
    app = create_app(run.fleet, heartbeat=lambda: (None, True), signer=lambda: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        headers = {"Authorization": f"Bearer {token}"}
        answer = await http.get("/v1/ledger/reconcile", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@asynccontextmanager
async def paid(world: World, **more: Any) -> Any:
    """A wallet with one confirmed ADA payment."""
    world.fund(100 * ADA, 100 * ADA)
    world.fund(20 * ADA, assets={TOKEN: 1000})
    async with world.run(**more) as run:
        await run.pay_in_block("one")
        yield run


def agree(answer: dict[str, Any]) -> bool:
    """Whether the chain equals the books plus what is in flight, for each asset."""
    rows = answer["balances"]
    return all(int(row["chain"]) - int(row["books"]) == int(row["in_flight"]) for row in rows)


def path_of(world: World) -> Path:
    return world.folder / "ledger.db"


async def spend_elsewhere(run: Run, lovelace: int) -> str:
    """Another program with the wallet's key sends some of its money away."""
    world, own = run.world, run.world.account.address
    out = Output("pay_to", SOMEBODY, "lovelace", lovelace)
    slot = run.context.chain.require_ready(world.clock.now_ms())
    plan = select(
        UtxoIndex(run.context.utxos), (out,), change=own, ttl_slot=slot + 500, network_id=DEVNET.network_id
    )
    assert broadcast(world, sign(plan, world.account.signer)) == 200
    world.block()
    return plan.tx_id


async def test_an_intact_ledger_with_a_full_history_agrees_with_the_chain(lived_world: World) -> None:
    world = lived_world
    async with world.run() as run:
        await run.run_pass()
        answer = await reconciled(run)
        assert (answer["findings"], answer["could_not_tell"], answer["clean"]) == ([], [], True)
        shown = world.devnet.run(lambda devnet: devnet.chain.txs_at(world.account.address.raw))
        assert answer["checked"] == {"transactions": len(shown), "utxos": len(world.unspent())}
        assert {row["asset"]: int(row["chain"]) for row in answer["balances"]} == world.on_chain()
        assert {row["asset"]: int(row["books"]) for row in answer["balances"]} == run.owned()
        assert agree(answer)


async def test_reconcile_from_a_later_slot_is_clean_too(lived_world: World) -> None:
    world = lived_world
    async with world.run() as run:
        await run.run_pass()
        whole = (await reconciled(run))["checked"]["transactions"]
        slots = world.devnet.run(lambda devnet: [block.slot for block in devnet.chain.blocks if block.txs])
        counts = []
        for slot in (slots[0], slots[len(slots) // 2], slots[-1] + 1):
            answer = await reconciled(run, since_slot=slot)
            assert answer["findings"] == []
            assert answer["clean"]
            counts.append(answer["checked"]["transactions"])
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == whole


async def test_payments_and_deposits_in_flight_are_listed_and_are_not_findings(world: World) -> None:
    world.terms = replace(world.terms, confirm_depth=3)
    async with paid(world) as run:
        in_block = await reconciled(run)
        (moved,) = in_block["in_flight"]
        assert run.state(moved["payment"]) == "in_block"
        held = {asset: -units for asset, units in run.books()["held"].items()}
        assert {asset: int(units) for asset, units in moved["units"].items()} == held
        assert in_block["clean"]
        assert agree(in_block)
        world.fund(7 * ADA)
        unseen = await reconciled(run)
        assert [told["units"] for told in unseen["in_flight"]] == [moved["units"], {"lovelace": str(7 * ADA)}]
        assert unseen["clean"]
        assert agree(unseen)
        await run.settle_down(3)
        settled = await reconciled(run)
        assert (settled["in_flight"], settled["clean"]) == ([], True)


async def test_a_deposit_that_one_of_two_providers_does_not_list_yet_is_in_flight(world: World) -> None:
    """It is booked once both list it, however many blocks that takes; nothing is wrong meanwhile."""
    with Relay(world.devnet).serving() as late:
        async with paid(world, providers={"first": world.devnet.chain_url, "late": late.url}) as run:
            late.freeze(f"/addresses/{world.address}/utxos", "?count=100&page=1")
            world.fund(7 * ADA)
            await run.settle_down(3)
            unlisted = await reconciled(run)
            assert unlisted["findings"] == []
            assert [told["units"] for told in unlisted["in_flight"]] == [{"lovelace": str(7 * ADA)}]
            assert agree(unlisted)
            late.unfreeze()
            await run.settle_down()
            answer = await reconciled(run)
            assert (answer["in_flight"], answer["clean"]) == ([], True)
            tamper(path_of(world), "DELETE FROM entries WHERE id = (SELECT MAX(id) FROM entries)")
            assert {told["kind"] for told in (await reconciled(run))["findings"]} >= {"foreign"}


async def test_a_deposit_on_a_fork_payagent_has_not_seen_yet_is_not_a_finding(world: World) -> None:
    """Its block is lower than the last one payagent read, which the fork has removed."""
    async with paid(world) as run:
        await run.settle_down(5)
        world.control("rollback", depth=5)
        world.fund(7 * ADA)
        answer = await reconciled(run)
        assert answer["findings"] == []
        assert not answer["complete"]
        assert [told["units"] for told in answer["in_flight"]] == [{"lovelace": str(7 * ADA)}]
        assert agree(answer)


async def test_a_deposit_on_a_fork_that_one_provider_does_not_list_yet_is_in_flight(world: World) -> None:
    """payagent had booked past this height on the lost branch, and has seen the fork since."""
    with Relay(world.devnet).serving() as late:
        async with paid(world, providers={"first": world.devnet.chain_url, "late": late.url}) as run:
            await run.settle_down(5)
            world.control("rollback", depth=5)
            late.freeze(f"/addresses/{world.address}/utxos", "?count=100&page=1")
            world.fund(7 * ADA)
            await run.run_pass()
            answer = await reconciled(run)
            assert (answer["findings"], answer["complete"]) == ([], True)
            assert [told["units"] for told in answer["in_flight"]] == [{"lovelace": str(7 * ADA)}]
            assert agree(answer)


async def test_a_rollback_payagent_is_not_sure_of_makes_reconcile_incomplete_without_a_finding(
    world: World,
) -> None:
    """It has seen the fork, but the old height is not reached yet and the deposit was denied only once."""
    async with paid(world) as run:
        world.fund(7 * ADA)
        await run.settle_down()
        world.control("rollback", depth=3)
        await run.run_pass()
        low = await reconciled(run)
        assert (low["findings"], low["complete"]) == ([], False)
        world.block(4)
        await run.run_pass()
        denied = await reconciled(run)
        assert (denied["findings"], denied["complete"]) == ([], False)
        await run.pass_time(16)
        answer = await reconciled(run)
        assert (answer["findings"], answer["clean"]) == ([], True)


async def test_reconcile_since_a_slot_still_includes_everything_not_booked_yet(world: World) -> None:
    """All unspent outputs are compared, so a payment not booked yet is listed however old its block is."""
    world.terms = replace(world.terms, confirm_depth=3)
    async with paid(world) as run:
        asked = (1 << 53) - 1
        answer = await reconciled(run, since_slot=asked)
        assert answer["findings"] == []
        (moved,) = answer["in_flight"]
        assert run.state(moved["payment"]) == "in_block"
        assert answer["since_slot"] < asked
        assert answer["clean"]
        assert agree(answer)
        await run.settle_down(3)
        settled = await reconciled(run, since_slot=asked)
        assert (settled["in_flight"], settled["clean"]) == ([], True)
        assert settled["since_slot"] == run.context.chain.tip.slot


async def test_an_external_spend_is_reported_until_payagent_books_it(world: World) -> None:
    async with paid(world) as run:
        tx_id = await spend_elsewhere(run, 3 * ADA)
        answer = await reconciled(run)
        assert not answer["clean"]
        (finding,) = answer["findings"]
        assert (finding["kind"], finding["table"], finding["tx_hash"]) == ("foreign", "utxos", tx_id)
        assert finding["row"] in finding["what"]
        raw = world.account.address.raw

        def moved(devnet: Any) -> int:
            tx, _ = devnet.chain.tx(tx_id)
            spent = [devnet.chain.tx(made)[0].outputs[index] for made, index in tx.inputs]
            own = [out.lovelace for out in tx.outputs if out.address == raw]
            return sum(own) - sum(out.lovelace for out in spent)

        assert f"{world.devnet.run(moved)} lovelace" in finding["what"]
        await run.settle_down()  # payagent sees it and books it
        answer = await reconciled(run)
        assert answer["clean"]
        assert agree(answer)


async def test_amounts_changed_in_the_ledger_are_reported_as_differing_from_the_chain(world: World) -> None:
    async with paid(world) as run:
        (row,) = [entry for entry in run.entries() if entry.kind == "post"]
        tamper(
            path_of(world),
            f"UPDATE postings SET units = units - 5 WHERE entry_id = {row.id} AND account LIKE 'merchant:%'",
            f"UPDATE postings SET units = units + 5 WHERE entry_id = {row.id} AND account = 'held'",
        )
        answer = await reconciled(run)
        told = {(finding["kind"], finding["table"], finding["row"]) for finding in answer["findings"]}
        assert ("differing", "payments", row.payment_id) in told


async def test_a_deposit_missing_from_the_ledger_is_reported_as_foreign(world: World) -> None:
    async with paid(world) as run:
        world.fund(9 * ADA)
        await run.settle_down()
        (entry,) = [e for e in run.entries() if ("wallet", "lovelace", 9 * ADA) in e.postings]
        tamper(
            path_of(world),
            f"DELETE FROM entries WHERE id = {entry.id}",
            f"DELETE FROM postings WHERE entry_id = {entry.id}",
        )
        answer = await reconciled(run)
        unbooked = [finding for finding in answer["findings"] if finding["table"] == "utxos"]
        assert [(f["kind"], f["row"]) for f in unbooked] == [("foreign", entry.ref)]
        assert f"{9 * ADA} lovelace" in unbooked[0]["what"]


async def test_a_rollback_since_the_last_pass_makes_reconcile_incomplete_without_a_finding(world: World) -> None:
    """The blocks of the deposit and of the payment are rolled back, with no pass since."""
    async with paid(world) as run:
        world.fund(9 * ADA)
        await run.run_pass()
        payment = await run.pay("two")
        await run.settle_down()
        world.control("rollback", depth=2)
        world.block(3)
        answer = await reconciled(run)
        assert (answer["findings"], answer["clean"], answer["complete"]) == ([], False, False)
        looked, lost, _ = answer["could_not_tell"]
        assert "newest block that payagent read" in looked
        assert str(payment.attempt.tx_id) in lost


async def test_a_payment_whose_block_is_rolled_back_before_confirmation_stays_in_flight(world: World) -> None:
    world.terms = replace(world.terms, confirm_depth=3)
    world.block(3)
    async with paid(world) as run:
        world.control("rollback", depth=1)
        answer = await reconciled(run)
        assert answer["findings"] == []
        (moved,) = answer["in_flight"]
        assert (run.state(moved["payment"]), moved["units"]) == ("in_block", {})
        assert agree(answer)


async def test_booked_payments_and_deposits_that_are_not_on_the_chain_are_reported_missing(world: World) -> None:
    async with paid(world) as run:
        world.fault("submit", "drop", count=10)
        lost = await run.pay("lost")
        tamper(
            path_of(world),
            "UPDATE payments SET state = 'confirmed', block_slot = 1, block_height = 1, "
            f"block_hash = '{'b' * 64}' WHERE id = '{lost.id}'",
            "INSERT INTO postings(entry_id, account, asset, units) VALUES (1000, 'wallet', 'lovelace', "
            f"{9 * ADA})",
            f"INSERT INTO entries(id, kind, ref, at_ms) VALUES (1000, 'deposit', '{'c' * 64}#0', 1)",
            f"UPDATE balances SET units_low = units_low + {9 * ADA} WHERE account = 'wallet' AND asset = "
            "'lovelace'",
        )
        answer = await reconciled(run)
        assert [(f["kind"], f["row"], f["tx_hash"]) for f in answer["findings"]] == [
            ("missing", lost.id, lost.attempt.tx_id),
            ("missing", "1000", "c" * 64),
        ]
        assert f"{9 * ADA} lovelace" in answer["findings"][1]["what"]
        assert answer["complete"]


@pytest.mark.parametrize("below", ["/blocks/latest", "/addresses", "/txs", "/addresses/{}/utxos"])
async def test_reconcile_is_incomplete_when_the_only_provider_fails(world: World, below: str) -> None:
    with Relay(world.devnet).serving() as relay:
        async with paid(world, providers={"only": relay.url}) as run:
            relay.tell(below.format(world.address), 500, BAD)
            answer = await reconciled(run)
            assert (answer["clean"], answer["complete"], answer["found"]) == (False, False, 0)
            assert answer["could_not_tell"][0].startswith("only: ")
            assert answer["balances"] == []
            relay.unfreeze()
            assert (await reconciled(run))["clean"]


async def test_reconcile_asks_the_next_provider_when_one_fails(world: World) -> None:
    with Relay(world.devnet).serving() as relay:
        async with paid(world, providers={"first": relay.url, "second": world.devnet.chain_url}) as run:
            relay.tell("/txs", 500, BAD)
            answer = await reconciled(run)
            assert (answer["clean"], answer["provider"]) == (True, "second")


async def test_a_transaction_the_provider_does_not_list_makes_reconcile_incomplete(world: World) -> None:
    with Relay(world.devnet).serving() as relay:
        async with paid(world, providers={"only": relay.url}) as run:
            relay.freeze(f"/addresses/{world.address}/transactions", "?order=desc")
            await run.pay_in_block("hidden")
            answer = await reconciled(run)
            assert (answer["clean"], answer["complete"]) == (False, False)
            assert "its lists are of different blocks" in answer["could_not_tell"][0]


async def test_the_history_is_read_again_while_new_blocks_arrive_but_not_forever(world: World) -> None:
    """A new block arrives during each of three reads; later, during every read."""
    moves = 3

    class Moving(Blockfrost):
        async def utxos(self, address: str) -> Any:
            nonlocal moves
            found = await super().utxos(address)
            if moves:
                moves -= 1
                world.fund(5 * ADA)
            return found

    world.fund(50 * ADA)
    source = Moving("moving", world.devnet.chain_url, None)
    history = await read_history(source, [world.address], 0)
    assert not isinstance(history, Unknown)
    assert (len(history.transactions), len(history.utxos)) == (4, 4)
    assert {tx.tx_id for tx in history.transactions} == {utxo.tx_id for utxo in history.utxos}
    moves = 1000
    assert isinstance(await read_history(source, [world.address], 0), Unknown)
    await source.aclose()


async def test_a_fork_during_the_read_leaves_nothing_of_the_lost_branch(world: World) -> None:
    forks = 1

    class Forking(Blockfrost):
        async def utxos(self, address: str) -> Any:
            nonlocal forks
            if forks:
                forks -= 1
                world.control("rollback", depth=1)
                world.fund(6 * ADA)
            return await super().utxos(address)

    world.fund(50 * ADA)
    world.fund(5 * ADA)
    source = Forking("forking", world.devnet.chain_url, None)
    history = await read_history(source, [world.address], 0)
    assert not isinstance(history, Unknown)
    assert [sum(sum(value.values()) for value in moved.made.values()) for moved in history.movements.values()] == [
        50 * ADA,
        6 * ADA,
    ]
    await source.aclose()
