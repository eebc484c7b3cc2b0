"""A ledger that is older than the signer record, or lost: payagent waits, reads the chain and catches up."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Clock, Relay, World, copied, put, with_terms, world_with_clock
from kit.external_spends import require_whole
from kit.handover import with_handover
from kit.payments import fork_with, height
from kit.providers import FAKE, providers, raised, tip_of

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.chain_sync import recovery
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.api.models.payments import Payment
from payagent.chain.provider import AddressTx, Read
from payagent.chain.quorum_view import QuorumView
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.signer_record import SIGNER_FILE, LastSigned, SignerFile, last_signed
from payagent.store.rows import alerts, onchain, payments

__all__ = ["world"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet that shares its clock with the agent; a test can move it."""
    with world_with_clock(tmp_path) as world:
        world.fund(100 * ADA, 100 * ADA, 100 * ADA)
        yield world


@pytest.fixture
def record(tmp_path: Path) -> SignerFile:
    return SignerFile(tmp_path / SIGNER_FILE)


def pass_quiet(world: World) -> None:
    world.clock.ahead_ms += QUIET_MS + 2000
    world.block()


async def test_the_signer_record_names_the_last_attempt_and_is_private(world: World, record: SignerFile) -> None:
    async with world.run(record=record) as run:
        await run.run_pass()
        assert record.read() is None
        rows = [await run.pay("one"), await run.pay("two")]
        assert record.read() == last_signed(run.context.conn)
        assert (record.read() or LastSigned(0, "", 0)).tx_id == rows[-1].attempt.tx_id
        assert (record.read() or LastSigned(0, "", 0)).attempts == 2
    assert (world.folder / SIGNER_FILE).stat().st_mode & 0o777 == 0o600


async def test_the_history_of_a_lost_ledger_is_read_once(world: World, record: SignerFile) -> None:
    terms = with_terms(settle_depth=8)
    async with world.run(record=record) as run:
        row = await run.pay_in_block("long ago")
    put(world, None)
    world.block(20)
    with Relay(world.devnet).serving() as relay:
        async with world.run(terms=terms, record=record, providers={"relay": relay.url}) as run:
            await run.run_pass()
            await run.run_pass()
            pass_quiet(world)
            await run.run_pass()
            assert [one.tx_id for one in onchain.external_spends_on_chain(run.context.conn)] == [row.attempt.tx_id]
            asked = relay.calls.count(("GET", f"/txs/{row.attempt.tx_id}"))
            await run.pass_time(3, 61)
            assert relay.calls.count(("GET", f"/txs/{row.attempt.tx_id}")) == asked > 0
            await require_whole(run)


class Faltering(Relay):
    """A provider that fails every fourth read of a transaction."""

    asked, falters = 0, True

    def heard(self, path: str, content: bytes) -> None:
        if path.startswith("/txs/") and not path.endswith("/utxos"):
            self.asked += 1
            if self.asked % 4 or not self.falters:
                self.untell(path)
            else:
                self.tell(path, 503, {})


async def test_a_long_history_is_read_over_several_passes(
    world: World, record: SignerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed_since: list[int] = []

    async def transactions(view: QuorumView, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        listed_since.append(since_s)
        return await listing(view, address, since_s)

    listing = QuorumView.transactions
    monkeypatch.setattr(QuorumView, "transactions", transactions)
    monkeypatch.setattr(recovery, "LAG_S", 0)
    monkeypatch.setattr(recovery, "ROWS_AT_ONCE", 1)
    world.fund(100 * ADA, 100 * ADA, 100 * ADA, 100 * ADA)
    async with world.run(record=record) as run:
        await run.run_pass()
        rows = [await run.pay(f"call {number}") for number in range(7)]
        await run.settle_down()
    put(world, None)
    world.block(20)
    with Faltering(world.devnet).serving() as relay:
        terms = with_terms(settle_depth=8)
        async with world.run(terms=terms, record=record, providers={"relay": relay.url}) as run:
            await run.run_pass()
            await run.run_pass()
            pass_quiet(world)
            told = []
            while (behind := run.context.chain.behind) is not None:
                await run.run_pass()
                told.append(behind.rpartition(": ")[2])
            assert told[1:] == [f"{count} of the wallet's 14 transactions so far" for count in (10, 13)]
            assert {one.tx_id for one in onchain.external_spends_on_chain(run.context.conn)} == {
                row.attempt.tx_id for row in rows
            }
            assert len(listed_since) > 2
            assert listed_since[:2] == [0, 0], "once to notice the history, once after the quiet period"
            assert min(listed_since[2:]) > 0, "a part that no rollback reaches was listed again"
            relay.falters = False
            await require_whole(run)


async def test_an_old_ledger_signs_nothing_until_it_has_caught_up_with_the_chain(
    world: World, record: SignerFile
) -> None:
    async with world.run(record=record) as run:
        known = await run.pay_in_block("known")
        old = copied(world)
        forgotten = [await run.pay_in_block("forgotten"), await run.pay("under way")]
    put(world, old)
    async with world.run(record=record) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="ledger_behind"):
            await run.pay("too early")
        world.block()
    world.clock.ahead_ms += QUIET_MS - 30_000
    async with world.run(record=record) as run:  # a restart neither restarts nor ends the quiet period
        world.block()
        await run.run_pass()
        with pytest.raises(Refused, match="ledger_behind"):
            await run.pay("still too early")
        world.clock.ahead_ms += 60_000
        world.block()
        await run.run_pass()
        assert run.context.chain.behind is None
        assert run.context.chain.external_spends == ()
        found = {row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)}
        assert found == {row.attempt.tx_id for row in forgotten}
        await run.run_pass()
        await require_whole(run)
        row = await run.pay("after it")
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        assert run.state(known.id) is State.CONFIRMED
        await require_whole(run)
        assert record.read() == last_signed(run.context.conn)
    async with world.run(record=record) as run:
        assert run.context.chain.behind is None


@pytest.mark.parametrize("off_s", [-86_400, 86_400])
async def test_the_quiet_period_starts_once_our_clock_agrees_with_the_chain(
    world: World, record: SignerFile, off_s: int
) -> None:
    """The daemon finds the old ledger while its clock is a day off; the clock is corrected a minute later."""
    async with world.run(record=record) as run:
        await run.pay_in_block("known")
        old = copied(world)
        forgotten = await run.pay("under way")
    put(world, old)
    true, world.clock = world.clock, Clock()
    world.clock.ahead_ms = true.ahead_ms + off_s * 1000
    async with world.run(record=record) as run:
        await run.run_pass()
        world.clock.ahead_ms, true.ahead_ms = true.ahead_ms + 60_000, true.ahead_ms + 60_000
        for passed_s, is_behind in ((0, True), (60, True), (QUIET_MS // 1000 - 90, True), (60, False)):
            for clock in (true, world.clock):
                clock.ahead_ms += passed_s * 1000
            world.block()
            await run.run_pass()
            assert (run.context.chain.behind is not None) is is_behind, passed_s
        assert {row.tx_id for row in onchain.external_spends_on_chain(run.context.conn)} == {
            forgotten.attempt.tx_id
        }


async def test_the_quiet_period_covers_transactions_signed_while_the_clock_was_ahead(
    world: World, record: SignerFile
) -> None:
    """A clock may be ahead of the newest block by as much as a tip may be old, and a TTL is by the clock."""
    true = world.clock
    async with world.run(record=record) as run:
        await run.run_pass()
        old = copied(world)
    world.clock = Clock()
    world.clock.ahead_ms = true.ahead_ms + 250_000
    async with world.run(record=record) as run:
        await run.run_pass()
        await run.agent.transfers.split(APP, 2, 5 * ADA)
    put(world, old)
    world.clock = true
    async with world.run(record=record) as run:
        await run.run_pass()
        pass_quiet(world)
        await run.run_pass()
        assert (run.context.chain.behind, run.context.chain.tip is None) == (None, False)
        assert run.context.chain.tip.slot >= (record.read() or LastSigned(0, "", 0)).ttl_slot


async def test_a_ledger_that_caught_up_is_not_behind_again_after_a_restart(
    world: World, record: SignerFile
) -> None:
    async with world.run(record=record) as run:
        await run.run_pass()
        old = copied(world)
        await run.pay_in_block("forgotten")
    put(world, old)
    for _ in range(2):
        async with world.run(record=record) as run:
            await run.run_pass()
            pass_quiet(world)
            await run.run_pass()
            assert run.context.chain.behind is None
            behind = count_of(run.context.conn, "ledger_behind")
    assert behind == 1
    put(world, old)  # the same old copy is behind again
    async with world.run(record=record) as run:
        assert run.context.chain.behind is not None


async def test_a_recovered_transaction_that_a_fork_moves_freezes_nothing(world: World, record: SignerFile) -> None:
    async with world.run(record=record) as run:
        await run.pay_in_block("known")
        old = copied(world)
    async with world.run(record=record) as run:
        await run.run_pass()
        row = await run.pay_in_block("forgotten")
    low = height(world) - 1
    put(world, old)
    async with world.run(record=record) as run:
        await run.run_pass()
        pass_quiet(world)
        await run.run_pass()
        (before,) = onchain.external_spends_on_chain(run.context.conn)
        assert (before.tx_id, run.context.chain.behind) == (row.attempt.tx_id, None)
        fork_with(world, low, row.attempt.cbor or b"")
        await run.pass_time(3, 61)
        (moved,) = onchain.external_spends_on_chain(run.context.conn)
        assert (moved.tx_id, moved.block_hash == before.block_hash) == (row.attempt.tx_id, False)
        assert run.context.chain.external_spends == ()
        assert count_of(run.context.conn, "external_spend") == 0
        await require_whole(run)


async def test_after_a_catch_up_an_attempt_missing_from_the_signer_record_is_still_added(
    world: World, record: SignerFile
) -> None:
    async with world.run(record=record) as run:
        await run.pay_in_block("known")
        old = copied(world)
        for message in ("forgotten", "forgotten too", "and this"):
            await run.pay_in_block(message)
    put(world, old)
    async with world.run(record=record) as run:
        await run.run_pass()
        pass_quiet(world)
        await run.run_pass()
        assert run.context.chain.behind is None
        caught_up = copied(world)
        ahead = record.read()
    async with world.run() as run:  # it signs, and dies before it updates the record
        await run.run_pass()
        row = await run.pay("not noted")
    assert record.read() == ahead
    with unwritable(world.folder / SIGNER_FILE):
        async with world.run(record=record) as run:
            assert not run.context.payment(row.id).is_noted
    async with world.run(record=record) as run:
        assert run.context.chain.behind is None
        assert record.read() == last_signed(run.context.conn)
        assert run.context.payment(row.id).is_noted
    put(world, caught_up)
    async with world.run(record=record) as run:  # it lacks the attempts signed since
        assert run.context.chain.behind is not None


def count_of(conn: sqlite3.Connection, event: str) -> int:
    return int(conn.execute("SELECT COUNT(*) FROM events WHERE event = ?", (event,)).fetchone()[0])


@pytest.mark.parametrize("has_record", [True, False])
async def test_a_lost_ledger_is_rebuilt_from_the_chain(world: World, record: SignerFile, has_record: bool) -> None:
    world.fault("reads", "no_optional")
    async with world.run(record=record) as run:
        await run.pay_in_block("one")
        await run.agent.transfers.send(APP, world.account.address, "lovelace", 5 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        await run.pay_in_block("three")
    put(world, None)
    if not has_record:
        (world.folder / SIGNER_FILE).unlink()
    async with world.run(record=record) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="ledger_behind"):
            await run.pay("too early")
        await run.run_pass()
        pass_quiet(world)
        await run.run_pass()
        assert run.context.chain.behind is None
        assert len(onchain.external_spends_on_chain(run.context.conn)) == 3
        await require_whole(run)
        row = await run.pay_in_block("after it")
        assert run.state(row.id) is State.CONFIRMED
        await require_whole(run)


@pytest.mark.parametrize("is_new", [True, False])
async def test_an_unreadable_history_is_reported_with_its_reason_and_raises_an_alert(
    world: World, record: SignerFile, is_new: bool
) -> None:
    """Once it lasts, an alert reports it too."""
    if not is_new:
        async with world.run(record=record) as run:
            await run.pay_in_block("before")
        put(world, None)
    with Relay(world.devnet).serving() as relay:
        relay.tell(f"/addresses/{world.address}/transactions", 500, {})
        async with world.run(record=record, providers={"relay": relay.url}) as run:
            await run.run_pass()
            pass_quiet(world)
            await run.run_pass()
            for _ in range(13):
                world.clock.ahead_ms += 12_000
                await run.settle_down()
            with pytest.raises(Refused, match="transactions: http 500") as refused:
                await run.pay("too early")
            assert refused.value.name == "ledger_behind"
            (detail,) = [row.facts["detail"] for row in alerts.after(run.context.conn, 0)]
            assert "transactions: http 500" in detail
            relay.unfreeze()
            await run.settle_down(2)
            assert run.context.chain.behind is None or not is_new
            assert not alerts.raised(run.context.conn, "provider_excluded")


async def test_a_new_wallet_without_a_history_pays_at_once(world: World, record: SignerFile) -> None:
    async with world.run(record=record) as run:
        await run.run_pass()
        assert run.context.chain.behind is None
        row = await run.pay_in_block("first")
        assert run.state(row.id) is State.CONFIRMED
        assert count_of(run.context.conn, "ledger_behind") == 0


async def test_the_next_process_adds_an_attempt_that_a_killed_one_did_not_record(
    world: World, record: SignerFile
) -> None:
    async with world.run() as run:  # it signs without a signer record
        await run.pay_in_block("not noted")
    async with world.run(record=record) as run:
        await run.run_pass()
        world.block()
        await run.run_pass()
        await run.agent.transfers.split(APP, 2, 5 * ADA)
        assert (record.read() or LastSigned(0, "", 0)).attempts == 2


async def test_nothing_is_submitted_while_the_signer_record_cannot_be_written(
    world: World, record: SignerFile
) -> None:
    async with world.run(record=record) as run:
        await run.run_pass()
        with unwritable(world.folder / SIGNER_FILE):
            with pytest.raises(Refused, match="store_failed"):
                await run.pay("not noted")
            await run.run_pass()
            assert world.waiting() == []
            (row,) = payments.payments_in(run.context.conn, (State.SIGNED,))
        await run.run_pass()
        assert world.waiting() == [row.attempt.tx_id]
        assert (record.read() or LastSigned(0, "", 0)).tx_id == row.attempt.tx_id


async def test_no_proof_is_shown_before_the_signer_record_has_its_attempt(
    world: World, record: SignerFile
) -> None:
    with ExitStack() as blocked:
        async with world.run(record=record, terms=with_handover) as run:
            await run.run_pass()
            first = await run.pay("noted")
            ask = world.ask("not noted")
            blocked.enter_context(unwritable(world.folder / SIGNER_FILE))
            for _ in range(2):  # after the commit, and before the next one
                with pytest.raises(Refused, match=f"{SIGNER_FILE}.*could not be written"):
                    await run.agent.pay(ask)
            rows = payments.payments_in(run.context.conn, (State.IN_FLIGHT,))
            row = run.context.payment(rows[-1].id)
            shown = Payment.of(run.context, row)
            assert row.attempt.cbor is not None
            assert (shown.headers, shown.ready, shown.tx_hash) == ({}, False, None)
            assert Payment.of(run.context, run.context.payment(first.id)).headers != {}
            with pytest.raises(Refused, match="store_failed"):
                run.context.require_noted(row)
            over = world.ask_of(world.call("not noted"), body="{}")
            with pytest.raises(Refused, match="store_failed"):
                await run.agent.pay(over)
        async with world.run(record=record, terms=with_handover) as run:  # not after a restart either
            assert Payment.of(run.context, run.context.payment(row.id)).headers == {}
    async with world.run(record=record, terms=with_handover) as run:
        assert Payment.of(run.context, run.context.payment(row.id)).headers != {}
        assert (record.read() or LastSigned(0, "", 0)).tx_id == row.attempt.tx_id


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """A directory takes the place of the file, so it cannot be written."""
    kept = path.rename(path.with_name("kept")) if path.exists() else None
    path.mkdir()
    yield
    path.rmdir()
    if kept is not None:
        kept.rename(path)


class TestDataFolderRestoredFromSnapshot:
    """A machine snapshot restores an old ledger together with an old signer record, so the two agree."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        """The wallet cannot pay for a request until more funds arrive."""
        with world_with_clock(tmp_path) as world:
            world.fund(5 * ADA)
            yield world

    @staticmethod
    async def roll_back(world: World) -> str:
        """Restore the data folder from before a payment and its deposit; returns the payment's transaction."""
        record = SignerFile(world.folder / SIGNER_FILE)
        async with world.run(record=record) as run:
            await run.run_pass()
            await run.agent.transfers.send(APP, world.account.address, "lovelace", 1 * ADA)
            await run.agent.submitter.drain(60)
            await run.settle_down()
            ledger, signed = copied(world), (world.folder / SIGNER_FILE).read_bytes()
            world.fund(50 * ADA)
            forgotten = await run.pay_in_block("forgotten")
        record.close()
        world.fund(50 * ADA)
        put(world, ledger)
        (world.folder / SIGNER_FILE).write_bytes(signed)
        return str(forgotten.attempt.tx_id)

    async def test_an_unknown_spend_freezes_payments_before_anything_is_signed(
        self, world: World, record: SignerFile
    ) -> None:
        forgotten = await self.roll_back(world)
        async with world.run(record=record) as run:
            await run.run_pass()
            assert (run.context.chain.behind, run.context.chain.external_spends) == (None, (forgotten,))
            with pytest.raises(Refused, match=r"external_spend.*the ledger does not know"):
                await run.pay("forgotten")
            assert alerts.last_kind(run.context.conn, recovery.ALERT) == "external_spend"
            await require_whole(run)
            await unfreeze(run.context, APP)
        async with world.run(record=record) as run:  # the spend is known once it was unfrozen
            await run.run_pass()
            await run.pay("when somebody has looked at it")

    async def test_nothing_is_signed_while_one_provider_hides_the_unknown_spend(
        self, world: World, record: SignerFile
    ) -> None:
        listing = f"/addresses/{world.address}/transactions"
        with Relay(world.devnet).serving() as liar, Relay(world.devnet).serving() as honest:
            liar.freeze(listing)
            await self.roll_back(world)
            async with world.run(record=record, providers=providers(liar, honest, True)) as run:
                await run.run_pass()
                with pytest.raises(Refused, match=r"chain_not_ready.*transactions"):
                    await run.pay("forgotten")

    async def test_nothing_is_signed_until_the_wallets_transactions_are_listed_once_per_start(
        self, world: World, record: SignerFile
    ) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run(record=record) as run:
            await run.pay_in_block("before")
        listing = f"/addresses/{world.address}/transactions"
        with Relay(world.devnet).serving() as relay:
            relay.tell(listing, 500, {})
            async with world.run(record=record, providers={"relay": relay.url}) as run:
                await run.run_pass()
                with pytest.raises(Refused, match=r"chain_not_ready.*transactions"):
                    await run.pay("too early")
                relay.unfreeze()
                relay.calls.clear()
                await run.pass_time(3, 61)
                await run.pay("now")
                assert relay.calls.count(("GET", listing)) == 1


class TestLyingProvider:
    """Two providers: one invents a transaction that spent everything, the other is away now and then."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        """Devnet and agent share a clock, so tip ages are true."""
        with world_with_clock(tmp_path) as world:
            world.clock.ahead_ms += 1_000_000
            world.fund(50 * ADA)
            yield world

    @pytest.fixture
    def pair(self, world: World) -> Iterator[tuple[Relay, Relay]]:
        with ExitStack() as stack:
            liar, honest = (stack.enter_context(Relay(world.devnet).serving()) for _ in range(2))
            yield liar, honest

    @staticmethod
    def invent_spend(world: World, liar: Relay) -> None:
        (ref,) = world.unspent()
        tip = tip_of(liar)
        row = {"tx_hash": FAKE, "tx_index": 0, "block_height": tip["height"], "block_time": tip["time"]}
        liar.tell(f"/addresses/{world.address}/transactions", 200, [row])
        spent = {
            "address": world.address,
            "tx_hash": ref[:64],
            "output_index": int(ref[65:]),
            "amount": [{"unit": "lovelace", "quantity": str(50 * ADA)}],
            "collateral": False,
            "reference": False,
            "data_hash": None,
            "inline_datum": None,
            "reference_script_hash": None,
        }
        liar.tell(f"/txs/{FAKE}/utxos", 200, {"hash": FAKE, "inputs": [spent], "outputs": []})
        block = {"block": tip["hash"], "block_height": tip["height"], "slot": tip["slot"]}
        liar.tell(f"/txs/{FAKE}", 200, {"hash": FAKE} | block)

    async def test_an_invented_spend_is_not_booked_while_the_honest_provider_is_briefly_away(
        self, world: World, record: SignerFile, pair: tuple[Relay, Relay]
    ) -> None:
        liar, honest = pair
        self.invent_spend(world, liar)
        async with world.run(providers=providers(liar, honest, True), record=record) as run:
            for ahead_ms in (0, QUIET_MS + 2000, 10_000, 10_000):
                world.clock.ahead_ms += ahead_ms
                for is_away in (False, True):
                    honest.unfreeze()
                    if is_away:
                        honest.tell("/blocks/latest", 500, {})
                    world.block()
                    await run.run_pass()
            honest.unfreeze()
            for _ in range(20):
                world.clock.ahead_ms += 10_000
                world.block()
                await run.run_pass()
            assert not onchain.external_spends_on_chain(run.context.conn)
            assert run.context.chain.behind is not None
            assert "providers" in raised(run)
            liar.unfreeze()
            world.block()
            await run.run_pass()
            assert run.context.chain.behind is None
            assert run.owned() == world.on_chain()
            assert run.selectable() == world.unspent()
