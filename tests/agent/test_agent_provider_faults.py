"""Providers that lie, lose, stall and forget, and chains that fork: one transaction per payment, correct books."""

from dataclasses import dataclass, replace

import pytest
from kit.agent import ADA, PATIENT, Run, World, with_terms

from payagent.agent.base.chain_view import ChainView
from payagent.agent.chain_sync import follow_up
from payagent.agent.chain_sync.follow_up import resubmit_due_ms
from payagent.chain.provider import BlockSeen, Genesis, ProtocolParameters
from payagent.core.network import NETWORKS
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import journal, payments
from sim.in_process_signer import InProcessSigner


async def until_confirmed(world: World, run: Run, payment_id: str) -> None:
    """Let time and blocks pass until the payment is confirmed, which must take at most 16 rounds."""
    for _ in range(16):
        world.clock.ahead_ms += 12_000
        await run.run_pass()
        world.block()
        await run.run_pass()
        if run.context.payment(payment_id).state is State.CONFIRMED:
            return
    raise AssertionError(f"not confirmed: {run.context.payment(payment_id)}, {run.events(payment_id)}")


@pytest.mark.parametrize("accept", ["now", "later", "never"])
@pytest.mark.parametrize(
    "kind",
    [
        "lost_reply",
        "full",
        "rate",
        "quota",
        "banned",
        "server",
        "html",
        "truncated",
        "oversized",
        "lying_ok",
        "drop",
    ],
)
async def test_a_failed_or_false_submit_answer_never_leads_to_a_second_transaction(
    world: World, kind: str, accept: str
) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", kind, accept=accept, count=2)
        row = await run.pay()
        assert row.state is State.IN_FLIGHT
        await until_confirmed(world, run, row.id)
        assert world.transactions() == [row.attempt.tx_id]
        assert run.owned() == world.on_chain()
        assert "held" not in run.books()
        reached = world.http.get(f"{world.devnet.origin}/devnet/state").json()["faults"]["triggered"]
        assert reached[f"submit:{kind}"] >= 1


async def test_a_payment_is_confirmed_although_the_provider_hangs_on_submit(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(timeouts=replace(PATIENT, submit_s=1)) as run:
        await run.run_pass()
        world.fault("submit", "hang", count=1, accept="now")
        row = await run.pay()
        assert row.state is State.IN_FLIGHT
        await until_confirmed(world, run, row.id)
        assert world.transactions() == [row.attempt.tx_id]


@pytest.mark.parametrize(
    "kind", ["server", "html", "rate", "quota", "truncated", "oversized", "lost_reply", "not_found"]
)
async def test_a_failed_read_changes_no_payment(world: World, kind: str) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay()
        world.block()
        world.fault("/txs/", kind)
        await run.run_pass()
        assert run.context.payment(row.id).state is State.IN_FLIGHT
        assert run.books()["held"]
        world.control("faults", clear=True)
        world.clock.ahead_ms += 61_000  # a rate-limited provider is not called for a while
        await run.run_pass()
        await run.settle_down()
        assert run.context.payment(row.id).state is State.CONFIRMED


async def test_nothing_is_signed_while_the_provider_is_down_at_the_start(world: World) -> None:
    world.fund(50 * ADA)
    world.fault("reads", "server")
    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="chain_not_ready"):
            await run.agent.pay(world.ask())
        assert not payments.payments_in(run.context.conn, list(State))
        world.control("faults", clear=True)
        await run.run_pass()
        assert (await run.pay()).state is State.IN_FLIGHT


async def test_a_rollback_reopens_the_payment_and_the_same_bytes_are_resubmitted(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        row = await run.pay_in_block()
        confirmed = run.books()
        assert run.context.payment(row.id).state is State.CONFIRMED
        world.control("rollback", depth=1)
        world.block(2)
        await run.run_pass()
        reopened = run.context.payment(row.id)
        assert (reopened.state, reopened.attempt.tx_id) == (State.IN_FLIGHT, row.attempt.tx_id)
        assert set(run.books()) == {"external", "held", "wallet"}
        assert run.owned() == world.on_chain()
        await run.settle_down()
        assert run.context.payment(row.id).state is State.CONFIRMED
        assert run.books() == confirmed
        assert world.transactions() == [row.attempt.tx_id]
        assert [kind.kind for kind in reversed(entries(run, row.id))] == [
            "reserve",
            "post",
            "post_reversed",
            "post",
        ]


async def test_a_transaction_that_a_fork_moves_to_another_block_is_followed(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        row = await run.pay_in_block()
        first = run.context.payment(row.id).block.hash
        world.control("rollback", depth=1, readd=True)
        await run.settle_down(2)
        moved = run.context.payment(row.id)
        assert moved.state is State.CONFIRMED
        assert moved.block.hash != first
        assert run.owned() == world.on_chain()


async def test_change_from_a_rolled_back_block_is_not_spent_until_it_returns(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.pay_in_block()
        assert len(run.context.utxos) == 1
        world.control("rollback", depth=1)
        world.block(2)
        world.fault("submit", "drop", count=1)
        await run.run_pass()
        assert len(run.context.utxos) == 0
        with pytest.raises(Refused, match="funds_pending"):
            await run.agent.pay(world.ask("next"))
        world.clock.ahead_ms += 12_000
        await run.run_pass()
        await run.settle_down()
        assert len(run.context.utxos) == 1


async def test_a_payment_is_confirmed_and_settled_at_the_configured_depths(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_terms(confirm_depth=3, settle_depth=6)) as run:
        await run.run_pass()
        row = await run.pay()
        states = []
        for _ in range(6):
            await run.settle_down()
            states.append(run.context.payment(row.id).state)
        assert states == [State.IN_BLOCK, State.IN_BLOCK, *[State.CONFIRMED] * 3, State.SETTLED]
        assert not queries.utxos_reserved_for(run.context.conn, row.id)
        assert len(run.context.utxos) == 1


async def test_an_attempt_past_its_ttl_keeps_its_hold_and_is_not_resubmitted(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", "drop")
        row = await run.pay()
        world.clock.ahead_ms += 290_000
        sent = queries.submissions(run.context.conn, row.attempt.tx_id or "")
        await run.run_pass()
        assert queries.submissions(run.context.conn, row.attempt.tx_id or "") == sent
        assert run.context.payment(row.id).state is State.IN_FLIGHT
        assert run.books()["held"]


async def test_a_utxo_missing_from_a_stale_list_is_unavailable_until_it_is_listed_again(world: World) -> None:
    world.fund(50 * ADA)
    world.fund(60 * ADA)
    async with world.run() as run:
        await run.run_pass()
        assert len(run.context.utxos) == 2
        world.fault("reads", "stale_index", blocks=2)
        await run.settle_down()
        assert len(run.context.utxos) == 1
        assert run.owned() == {"lovelace": 110 * ADA}
        world.control("faults", clear=True)
        await run.settle_down()
        assert len(run.context.utxos) == 2


async def test_a_rolled_back_deposit_is_reversed_only_after_repeated_evidence(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        world.fund(60 * ADA)
        await run.run_pass()
        world.control("rollback", depth=1)
        world.block(2)
        for seconds, owned in ((0, 110), (30, 110), (30, 110), (60, 50)):
            world.clock.ahead_ms += seconds * 1000
            await run.settle_down()
            assert run.owned() == {"lovelace": owned * ADA}
        assert run.owned() == world.on_chain()
        assert len(run.context.utxos) == 1


async def test_a_stale_list_does_not_restore_a_spent_utxo(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.pay()
        world.fault("reads", "stale_index", blocks=1)
        await run.settle_down()
        assert run.selectable() == set()
        world.control("faults", clear=True)
        await run.settle_down()
        assert [queries.utxo(run.context.conn, ref).source for ref in run.selectable()] == ["change"]  # type: ignore[union-attr]
        assert run.books()["external"] == {"lovelace": -50 * ADA}


async def test_a_payment_admitted_but_not_signed_is_signed_after_a_restart(world: World) -> None:
    world.fund(50 * ADA)

    @dataclass
    class Broken:
        public_key: bytes
        payment_key_hash: bytes

        def sign(self, body: bytes, paid: int) -> bytes:
            raise OSError("the signer is gone")

    async with world.run() as run:
        await run.run_pass()
        good = world.account.signer
        run.agent.signing._signer = InProcessSigner(Broken(good.public_key, good.payment_key_hash))
        with pytest.raises(OSError, match="the signer is gone"):
            await run.agent.pay(world.ask(key="k"))
        [reserved] = payments.payments_in(run.context.conn, [State.RESERVED])
    async with world.run() as run:
        await run.run_pass()
        row = run.context.payment(reserved.id)
        assert (row.state, row.nonce_utxo, row.attempt.ttl_slot) == (
            State.IN_FLIGHT,
            reserved.nonce_utxo,
            reserved.attempt.ttl_slot,
        )
        await run.settle_down()
        assert run.context.payment(row.id).state is State.CONFIRMED
        assert run.owned() == world.on_chain()


async def test_a_restart_too_late_to_sign_releases_the_hold(world: World) -> None:
    world.fund(50 * ADA)

    async def stop_before_signing(*_: object) -> None:
        raise OSError("killed")

    async with world.run() as run:
        await run.run_pass()
        run.agent.signing.sign = stop_before_signing  # type: ignore[method-assign]
        with pytest.raises(OSError, match="killed"):
            await run.agent.pay(world.ask(key="k"))
        [reserved] = payments.payments_in(run.context.conn, [State.RESERVED])
        assert run.books()["held"]
    world.clock.ahead_ms += 240_000
    async with world.run() as run:
        world.block()
        await run.run_pass()
        row = run.context.payment(reserved.id)
        assert (row.state, row.problem.name) == (State.REJECTED, "invoice_expired")
        assert "held" not in run.books()
        assert len(run.context.utxos) == 1


def entries(run: Run, payment_id: str) -> list[journal.EntryRow]:
    return journal.entries_page(run.context.conn, payment_id=payment_id, account=None, before_id=None, limit=50)


def test_the_delay_between_resubmissions_doubles_up_to_200_seconds() -> None:
    waits = [resubmit_due_ms(count, 0) // 1000 for count in range(1, 10)]
    assert waits == [5, 10, 20, 40, 80, 160, 200, 200, 200]


class TestChainView:
    """When the view of the chain is good enough to sign."""

    NOW_MS = 1_700_000_000_000
    SLOT = 1_700_000_000 - 1_655_769_600 + 86_400

    def view(self, tip_slot: int) -> ChainView:
        view = ChainView(NETWORKS["preprod"], problem=None, is_compared=True)
        view.learn_genesis(Genesis(1, 1_654_041_600, 1))
        view.tip = BlockSeen(1, tip_slot, "aa" * 32, 0)
        return view

    @pytest.mark.parametrize(
        ("tip_slot", "code"),
        [
            (SLOT, None),
            (SLOT - 300, None),
            (SLOT - 301, "chain_not_ready"),
            (SLOT + 120, None),
            (SLOT + 121, "clock_skew"),
        ],
    )
    def test_signing_requires_a_tip_that_is_neither_too_old_nor_in_the_future(
        self, tip_slot: int, code: str | None
    ) -> None:
        if code is None:
            assert self.view(tip_slot).require_ready(self.NOW_MS) == self.SLOT
        else:
            with pytest.raises(Refused, match=code):
                self.view(tip_slot).require_ready(self.NOW_MS)

    def test_a_provider_with_the_genesis_of_another_network_is_refused(self) -> None:
        with pytest.raises(Refused, match="provider_untrusted"):
            ChainView(NETWORKS["preprod"]).learn_genesis(Genesis(2, 1_654_041_600, 1))

    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("min_fee_a", 1),
            ("min_fee_b", 1),
            ("coins_per_utxo_byte", 1),
            ("max_tx_size", -1),
            ("max_value_size", -1),
        ],
    )
    def test_protocol_parameters_stricter_than_the_pinned_ones_are_refused(self, name: str, step: int) -> None:
        """Under stricter parameters our transactions would be invalid; looser ones make no difference."""
        pinned = {"min_fee_a": 44, "min_fee_b": 155381, "coins_per_utxo_byte": 4310, "max_tx_size": 16384}
        pinned |= {"max_value_size": 5000, "epoch": 1}
        view = ChainView(NETWORKS["preprod"])
        view.learn_parameters(ProtocolParameters(**pinned))
        view.learn_parameters(ProtocolParameters(**{**pinned, name: pinned[name] - step}))
        with pytest.raises(Refused, match=name):
            view.learn_parameters(ProtocolParameters(**{**pinned, name: pinned[name] + step}))

    @pytest.mark.parametrize(
        ("left_s", "ttl_in_s"), [(300, 280), (140, 120), (139, None), (0, None), (86_400, 1800), (None, 1800)]
    )
    def test_the_ttl_ends_before_the_invoice_expires(self, left_s: int | None, ttl_in_s: int | None) -> None:
        ends = None if left_s is None else self.NOW_MS + left_s * 1000
        view = self.view(self.SLOT)
        if ttl_in_s is None:
            with pytest.raises(Refused, match="invoice_expired"):
                view.ttl_slot(self.SLOT, ends, 120)
        else:
            assert view.ttl_slot(self.SLOT, ends, 120) == self.SLOT + ttl_in_s

    @pytest.mark.parametrize(
        ("left_s", "age_s", "ttl_in_s"),
        [(300, 27, 253), (170, 30, 120), (170, 31, None), (3600, 200, 1800), (None, 200, 1800)],
    )
    def test_the_ttl_is_counted_from_the_newest_block(
        self, left_s: int | None, age_s: int, ttl_in_s: int | None
    ) -> None:
        ends = None if left_s is None else self.NOW_MS + left_s * 1000
        view = self.view(self.SLOT - age_s)
        if ttl_in_s is None:
            with pytest.raises(Refused, match="invoice_expired"):
                view.ttl_slot(self.SLOT, ends, 120, from_block=True)
        else:
            assert view.ttl_slot(self.SLOT, ends, 120, from_block=True) == self.SLOT + ttl_in_s
            assert view.ttl_slot(self.SLOT, ends, 120) >= self.SLOT + ttl_in_s


async def test_after_a_restart_open_attempts_are_resubmitted_a_few_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each submission takes memory, and 100,000 may be open."""
    monkeypatch.setattr(follow_up, "SENT_AT_ONCE_MAX", 2)
    world.fund(*[20 * ADA] * 5)
    async with world.run() as run:
        await run.run_pass()
        paid = [await run.pay(f"call {number}") for number in range(5)]
    async with world.run() as run:
        sent = []
        for _ in range(3):
            await run.chain_sync.run_once()
            sent.append(run.agent.submitter.count)
            await run.agent.submitter.drain(60)
        assert max(sent) == 2
        counts = [queries.submissions(run.context.conn, row.attempt.tx_id or "")[0] for row in paid]
        assert min(counts) >= 2, "each was resubmitted once"
