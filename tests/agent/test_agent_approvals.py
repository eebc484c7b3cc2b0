"""Payments that need approval: what they count while they wait, and what a decision allows.

The chain and the agent share one clock, which a test can move.
"""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from kit.agent import ADA, APP, Run, World, daily, with_terms, world_apart, world_with_clock
from kit.handover import with_handover
from kit.merchants import guarded, pay_to
from kit.payments import is_sound

from payagent.agent.base.requests import Approver
from payagent.agent.commits.approvals import FEE_ROOM_LOVELACE
from payagent.agent.operator.apps import renew_token, revoke
from payagent.agent.operator.limits import set_limits
from payagent.agent.operator.pause import pause, unpause
from payagent.core.aggregate import PaymentRow
from payagent.core.merchant_rules import MerchantRules, Pin
from payagent.core.payment.machine import State
from payagent.core.policy import Scope, Window
from payagent.core.problems import PROBLEMS, STILL_ASKED, Refused
from payagent.store.rows import alerts, approvals, apps, events, limit_counters, payments
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.keys import Signer
from payagent.wallet.transaction import TxPlan

PRICE = 10 * ADA
"""The merchant's price."""

ASKING = with_terms(approval_required_above={"lovelace": 5 * ADA}, approval_timeout_s=600)
SOMEBODY = Approver("token", "app_somebody")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        world.fund(50 * ADA, 50 * ADA, 50 * ADA)
        world.settings(timeout=7_200, price=str(PRICE), splits=[])
        yield world


async def ask(run: Run, message: str = "hello", **more: object) -> PaymentRow:
    row, is_new = await run.agent.pay(run.world.ask(message, **more))  # type: ignore[arg-type]
    assert (row.state, is_new) == (State.AWAITING_APPROVAL, True)
    return row


async def add_somebody(run: Run) -> None:
    await run.context.write(
        "app", lambda unit: apps.add_with_token(unit, "app_somebody", "somebody", "1" * 64, ["approve"], 1)
    )


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.name


def spent(run: Run) -> int:
    return limit_counters.totals(run.context.conn, Scope(APP, run.world.origin)).get("lovelace", 0)


async def pass_time(run: Run, seconds: int) -> None:
    run.world.clock.ahead_ms += seconds * 1000
    await run.settle_down()
    await run.agent.decisions.deny_what_is_over()


async def test_a_payment_that_awaits_approval_counts_in_full_and_reserves_no_utxo(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        free = run.selectable()
        row = await ask(run)
        assert (row.nonce_utxo, row.attempt.tx_id) == (None, None)
        assert PRICE < spent(run) < PRICE + ADA
        assert run.selectable() == free
        assert run.books().get("held", {}) == {}
        again, is_new = await run.agent.pay(world.ask())
        assert (again.id, is_new) == (row.id, False)
        await run.settle_down(3)
        assert run.state(row.id) is State.AWAITING_APPROVAL
        assert world.transactions() == []
        assert alerts.raised(run.context.conn, "approval_needed") == [f"approval:{row.id}"]
        assert is_sound(run)


async def test_the_alert_names_every_reason(world: World) -> None:
    known = guarded(world, MerchantRules(from_file=frozenset({Pin("pay_to", pay_to("known"))})))
    async with world.run(terms=lambda config: ASKING(known(config))) as run:
        await run.run_pass()
        row = await ask(run)
        alert = alerts.last_of_kind(run.context.conn, "approval_needed", f"approval:{row.id}")
        assert alert is not None
        assert pay_to("pay_to") in alert.facts["detail"]
        assert "more than 5 ADA" in alert.facts["detail"]


async def test_a_payment_below_the_threshold_needs_no_approval(world: World) -> None:
    async with world.run(terms=with_terms(approval_required_above={"lovelace": 11 * ADA})) as run:
        await run.run_pass()
        assert (await run.pay()).state is State.IN_FLIGHT


async def test_an_approved_payment_is_paid_once_and_counts_once(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        approved = await run.agent.decisions.approve(row.id, SOMEBODY)
        assert approved.attempt.tx_id is not None
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert world.transactions() == [approved.attempt.tx_id]
        assert spent(run) == PRICE + (approved.attempt.fee_lovelace or 0)
        assert alerts.raised(run.context.conn, "approval_needed") == []
        assert run.owned() == world.on_chain()
        assert is_sound(run)
        recorded = approvals.decided(run.context.conn, row.id)
        assert recorded is not None
        assert (recorded.decision, recorded.via, recorded.by_app) == ("approved", "token", "app_somebody")


async def test_a_denial_releases_the_amount_and_refuses_the_same_request_for_a_while(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        denied = await run.agent.decisions.deny(row.id, SOMEBODY)
        assert (denied.state, denied.problem.name) == (State.DENIED, "approval_denied/person")
        assert denied.problem.detail == "a person denied it", "who may only approve is not the operator"
        assert spent(run) == 0
        with pytest.raises(Refused) as refused:
            await run.agent.pay(world.ask())
        assert (code_of(refused), refused.value.context["payment"]) == ("approval_denied/person", row.id)
        await ask(run, "another call")
        await pass_time(run, 601)
        again = await ask(run)
        assert again.id != row.id
        assert is_sound(run)


async def test_a_denial_made_while_the_clock_was_ahead_ends_when_the_clock_is_corrected(tmp_path: Path) -> None:
    with world_apart(tmp_path) as world:
        world.fund(*[100 * ADA] * 2)
        async with world.run(terms=ASKING) as run:
            await run.run_pass()
            await add_somebody(run)
            row = await ask(run)
            world.clock.ahead_ms = 86_400_000
            await run.agent.decisions.deny(row.id, SOMEBODY)
            world.clock.ahead_ms = 0
            assert (await ask(run)).id != row.id


async def test_a_denial_applies_to_the_same_request_under_any_idempotency_key(world: World) -> None:
    """Another Idempotency-Key is another intent, but the same request: an app in a loop cannot ask for ever."""
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run, key="a")
        await run.agent.decisions.deny(row.id, SOMEBODY)
        for key in ("a", "b", None):
            with pytest.raises(Refused) as refused:
                await run.agent.pay(world.ask(key=key))
            assert (code_of(refused), refused.value.context["payment"]) == ("approval_denied/person", row.id)
        await ask(run, "another call", key="c")
        theirs, _ = await run.agent.pay(replace(world.ask(key="a"), app_id="app_somebody"))
        assert theirs.state is State.AWAITING_APPROVAL, "the denial does not apply to another app"
        unnamed = replace(world.ask("request not described"), request=None)
        assert (await run.agent.pay(unnamed))[0].state is State.AWAITING_APPROVAL


async def test_a_refused_decision_is_recorded_and_its_detail_omits_the_figures(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row, _ = await run.agent.pay(replace(world.ask(), app_id="app_somebody"))
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        await refuses(run, row, "limit_exceeded")
        note = events.last_note(run.context.conn, row.id, "decision_refused")
        assert note is not None
        assert (note["code"], note["by"], note["via"]) == ("limit_exceeded", "app_somebody", "token")
        assert ("leaves 9 ADA" in note["figures"], "9 ADA" in note["detail"]) == (True, False)
        with pytest.raises(Refused, match="not_found"):
            await run.agent.decisions.approve("pay_x", SOMEBODY)
        await run.agent.decisions.deny(row.id, SOMEBODY)
        with pytest.raises(Refused, match="already_decided"):
            await run.agent.decisions.deny(row.id, SOMEBODY)
        assert run.events(row.id) == ["request_approval", "decision_refused", "deny", "decision_refused"]
        with patch.object(events, "KEPT_AT_ONCE", 1), pytest.raises(Refused, match="already_decided"):
            await run.agent.decisions.deny(row.id, SOMEBODY)
        assert len(run.events(row.id)) == 4, "who has a link does not fill the ledger with it"
        assert is_sound(run)


@pytest.mark.parametrize("first", ["approve", "deny"])
@pytest.mark.parametrize("second", ["approve", "deny"])
async def test_the_first_of_two_concurrent_decisions_counts_and_the_second_is_refused(
    world: World, first: str, second: str
) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        decide = {"approve": run.agent.decisions.approve, "deny": run.agent.decisions.deny}
        ended = await asyncio.gather(
            decide[first](row.id, SOMEBODY), decide[second](row.id, SOMEBODY), return_exceptions=True
        )
        done = [one for one in ended if isinstance(one, PaymentRow)]
        (refused,) = [one for one in ended if isinstance(one, Refused)]
        assert len(done) == 1
        assert (refused.code, refused.problem.status) == ("already_decided", 409)
        assert refused.context["decision"] == {"approve": "approved", "deny": "denied"}[first]
        assert refused.context["state"] in ("denied", "reserved", "signed", "in_flight")
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert len(world.transactions()) == (first == "approve")


async def test_a_second_approval_does_not_disturb_a_payment_that_is_being_signed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        signing, release, sign = asyncio.Event(), asyncio.Event(), run.agent.signing.sign

        async def slow(payment_id: str, plan: TxPlan) -> None:
            signing.set()
            await release.wait()
            await sign(payment_id, plan)

        monkeypatch.setattr(run.agent.signing, "sign", slow)
        first = asyncio.create_task(run.agent.decisions.approve(row.id, SOMEBODY))
        await signing.wait()
        with pytest.raises(Refused) as refused:
            await run.agent.decisions.approve(row.id, SOMEBODY)
        assert code_of(refused) == "already_decided"
        with pytest.raises(Refused) as refused:
            await run.agent.lifecycle.resolve(row.id, "app_somebody")
        assert code_of(refused) == "not_signed_yet"
        release.set()
        assert (await first).attempt.tx_id is not None


async def test_an_approval_times_out_by_block_time_not_by_the_local_clock(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        row = await ask(run)
        run.world.clock.ahead_ms += 500_000
        await run.agent.decisions.deny_what_is_over()
        await run.settle_down()
        await run.agent.decisions.deny_what_is_over()
        assert run.state(row.id) is State.AWAITING_APPROVAL
        run.world.clock.ahead_ms += 200_000
        await run.agent.decisions.deny_what_is_over()  # no new block yet
        assert run.state(row.id) is State.AWAITING_APPROVAL
        await pass_time(run, 0)
        denied = run.context.payment(row.id)
        assert (denied.state, denied.problem.name) == (State.DENIED, "approval_denied/timeout")
        assert spent(run) == 0
        with pytest.raises(Refused) as refused:
            await run.agent.decisions.approve(row.id, SOMEBODY)
        assert code_of(refused) == "already_decided"
        await ask(run)
        assert is_sound(run)


async def test_an_approval_after_the_timeout_is_refused(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        row = await ask(run)
        world.clock.ahead_ms += 601_000
        await run.settle_down()
        assert run.state(row.id) is State.AWAITING_APPROVAL
        with pytest.raises(Refused) as refused:
            await run.agent.decisions.approve(row.id, SOMEBODY)
        assert code_of(refused) == "approval_denied/timeout"
        assert run.state(row.id) is State.DENIED
        assert spent(run) == 0
        assert is_sound(run)


async def test_an_approval_times_out_before_its_invoice_expires(world: World) -> None:
    world.settings(timeout=400)
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        row = await ask(run)
        approval = approvals.of_payment(run.context.conn, row.id)
        assert approval is not None
        assert approval.expires_at_ms == (row.invoice.expires_at_ms or 0) - run.context.config.min_window_s * 1000
        await pass_time(run, 290)
        assert run.context.payment(row.id).problem.name == "approval_denied/timeout"


async def test_an_expired_invoice_ends_its_approval_even_without_new_blocks(world: World) -> None:
    """Nobody can approve it any more, and what it counts would keep others out while the chain is away."""
    world.settings(timeout=400)
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        row, late = await ask(run), await ask(run, "late")
        world.clock.ahead_ms += 270_000
        await run.agent.decisions.deny_what_is_over()
        assert run.state(row.id) is State.AWAITING_APPROVAL
        world.clock.ahead_ms += 20_000
        run.context.chain.problem = "nobody answers"
        with pytest.raises(Refused) as refused:
            await run.agent.decisions.approve(late.id, SOMEBODY)
        assert code_of(refused) == "approval_denied/timeout"
        assert run.context.metrics.refusals["approval_denied"] == 0, "the API counts this refusal"
        await run.agent.decisions.deny_what_is_over()
        assert run.context.payment(row.id).problem.name == "approval_denied/timeout"
        await run.agent.decisions.deny_what_is_over()
        assert run.context.metrics.refusals["approval_denied"] == 1
        assert spent(run) == 0
        assert is_sound(run)


async def test_a_pending_approval_survives_a_restart(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        assert run.state(row.id) is State.AWAITING_APPROVAL
        assert spent(run) > PRICE
        await run.agent.decisions.approve(row.id, SOMEBODY)
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED


class LostSigner:
    """The signer process is gone when a signature is requested."""

    def __init__(self, signer: Signer) -> None:
        self.public_key, self.payment_key_hash = signer.public_key, signer.payment_key_hash

    def sign(self, body: bytes, paid: int) -> bytes:
        raise Refused("signer_lost", "the signer is gone")


async def test_a_payment_approved_while_the_signer_is_lost_is_signed_after_a_restart(world: World) -> None:
    async with world.run(terms=ASKING, signer=LostSigner(world.account.signer)) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        approved = await run.agent.decisions.approve(row.id, SOMEBODY)
        assert (approved.state, approved.attempt.tx_id) == (State.RESERVED, None)
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert len(world.transactions()) == 1
        assert is_sound(run)


async def test_payments_that_await_approval_count_against_the_daily_limit(world: World) -> None:
    async def lowered(run: Run) -> None:
        await run.run_pass()
        await ask(run, "one")
        with pytest.raises(Refused) as refused:
            await run.agent.pay(world.ask("two"))
        assert code_of(refused) == "limit_exceeded"

    terms = lambda terms: replace(ASKING(terms), limits=daily(15 * ADA, 15 * ADA))  # noqa: E731
    async with world.run(terms=terms) as run:
        await lowered(run)


async def test_an_approval_checks_limits_pauses_tokens_and_chain_at_the_time_of_the_decision(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        everybody = replace(apps.require(run.context.conn, APP), id="app_somebody")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        await refuses(run, row, "limit_exceeded")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 11 * ADA})
        await pause(run.context, APP, "")
        await refuses(run, row, "paused")
        await unpause(run.context, APP)
        await revoke(run.context, everybody, APP)
        await refuses(run, row, "forbidden")
        await renew_token(run.context, everybody, APP, "2" * 64, None)
        run.context.chain.problem = "nobody answers"
        await refuses(run, row, "chain_not_ready")
        run.context.chain.problem = None
        await run.agent.decisions.approve(row.id, SOMEBODY)
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED


async def refuses(run: Run, row: PaymentRow, code: str) -> None:
    """Assert that the approval is refused and changes nothing."""
    before = spent(run)
    with pytest.raises(Refused) as refused:
        await run.agent.decisions.approve(row.id, SOMEBODY)
    assert code_of(refused) == code
    assert (run.state(row.id), spent(run)) == (State.AWAITING_APPROVAL, before)


async def test_an_approval_for_a_merchant_removed_from_the_config_is_refused(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        row = await ask(run)
    async with world.run(terms=lambda terms: replace(ASKING(terms), merchants={})) as run:
        await run.run_pass()
        await refuses(run, row, "merchant_not_allowed")


async def test_an_approval_is_refused_while_the_payment_costs_more_than_the_amount_shown(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        world.settings(price=str(40 * ADA))
        row = await ask(run)
        world.fund(*[1_100_000] * 60)
        await run.run_pass()
        other = world.account.address
        for _ in range(3):  # to ourselves: the UTxOs are not available for a while
            await run.agent.transfers.send(APP, other, "lovelace", 45 * ADA)
        await refuses(run, row, "approved_amount_exceeded")
        await run.settle_down(2)
        await run.agent.decisions.approve(row.id, SOMEBODY)
        asked = payments.hold(run.context.conn, row.id, "approval")["lovelace"]
        assert payments.hold(run.context.conn, row.id)["lovelace"] <= asked


@pytest.mark.parametrize("spare", [0, FEE_ROOM_LOVELACE - 1])
@pytest.mark.parametrize("bound", ["per_payment", "per_day", "max_total", "caps"])
async def test_a_payment_within_a_limit_awaits_approval_and_never_exceeds_the_limit(
    world: World, bound: str, spare: int
) -> None:
    async with world.run() as run:
        await run.run_pass()
        needed = (await run.agent.quote(world.ask())).plan.spend["lovelace"]
    most = needed + spare
    per_payment, per_day, cap = (
        most if bound == name else 99 * ADA for name in ("per_payment", "per_day", "caps")
    )
    limits, caps = daily(per_payment, per_day), {"lovelace": cap}
    more = {"max_total_units": most} if bound == "max_total" else {}
    async with world.run(terms=lambda terms: replace(ASKING(terms), limits=limits, caps=caps)) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run, **more)
        assert spent(run) == most
        approved = await run.agent.decisions.approve(row.id, SOMEBODY)
        assert approved.state is State.SIGNED
        assert spent(run) == needed
        assert is_sound(run)


@pytest.mark.parametrize("bound", ["per_payment", "caps"])
async def test_a_payment_over_a_limit_only_by_its_fee_is_refused_without_an_approval(
    world: World, bound: str
) -> None:
    most = PRICE + 1
    limits, caps = daily(most if bound == "per_payment" else 99 * ADA, 99 * ADA), {"lovelace": 99 * ADA}
    caps = {"lovelace": most} if bound == "caps" else caps
    async with world.run(terms=lambda terms: replace(ASKING(terms), limits=limits, caps=caps)) as run:
        await run.run_pass()
        with pytest.raises(Refused) as refused:
            await run.agent.pay(world.ask())
        assert code_of(refused) == "limit_exceeded"
        assert spent(run) == 0


async def test_an_approval_is_refused_while_the_fee_takes_the_payment_over_the_limit(world: World) -> None:
    world.settings(price=str(40 * ADA))
    async with world.run() as run:
        await run.run_pass()
        needed = (await run.agent.quote(world.ask())).plan.spend["lovelace"]
    async with world.run(terms=lambda terms: replace(ASKING(terms), limits=daily(needed, 99 * ADA))) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        world.fund(*[1_100_000] * 60)
        await run.run_pass()
        for _ in range(3):  # the UTxOs are not available for a while
            await run.agent.transfers.send(APP, world.account.address, "lovelace", 45 * ADA)
        await refuses(run, row, "limit_exceeded")
        await run.settle_down(2)
        await run.agent.decisions.approve(row.id, SOMEBODY)
        assert spent(run) == needed


async def test_an_approval_covers_only_the_terms_that_were_shown(world: World) -> None:
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        world.settings(price=str(2 * PRICE))
        again, is_new = await run.agent.pay(world.ask())
        assert (again.id, is_new, again.invoice.id) == (row.id, False, row.invoice.id)
        with pytest.raises(Refused) as refused:
            await run.agent.decisions.approve(row.id, replace(SOMEBODY, terms_hash="0" * 64))
        assert code_of(refused) == "terms_changed"
        approved = await run.agent.decisions.approve(row.id, replace(SOMEBODY, terms_hash=row.invoice.terms_hash))
        assert sum(output.units for output in approved.outputs) == PRICE


async def test_an_approved_payment_that_never_landed_does_not_move_to_another_invoice(world: World) -> None:
    world.settings(timeout=600)
    async with world.run(terms=ASKING) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        world.fault("submit", "drop")
        await run.agent.decisions.approve(row.id, SOMEBODY)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        world.control("faults", clear=True)
        world.clock.ahead_ms += 620_000
        await run.settle_down()
        again, _ = await run.agent.pay(world.ask())
        assert (again.id, again.invoice.id) == (row.id, row.invoice.id)
        assert [one.kind for one in queries.attempts(run.context.conn, row.id)] == ["pay"]


async def test_an_approved_payment_that_the_merchant_submits_is_signed_at_the_next_request(world: World) -> None:
    async with world.run(terms=lambda terms: with_handover(ASKING(terms))) as run:
        await run.run_pass()
        await add_somebody(run)
        row = await ask(run)
        approved = await run.agent.decisions.approve(row.id, SOMEBODY)
        assert approved.state is State.RESERVED
        await run.settle_down(2)
        assert run.state(row.id) is State.RESERVED
        again, is_new = await run.agent.pay(world.ask())
        assert (again.id, is_new, again.attempt.tx_id is not None) == (row.id, False, True)


def test_the_fee_room_of_an_approval_is_below_what_the_signer_allows() -> None:
    assert FEE_ROOM_LOVELACE < 900_000 - 200_000


async def test_two_decisions_that_fail_in_one_commit_get_their_own_errors(world: World) -> None:
    """One commit fails with one error, which both decisions receive."""
    batches: list[str] = []

    def fail_once(name: str) -> None:
        if name == "before approve" and batches.count(name) == 1:
            raise OSError("the disk is full")
        batches.append(name)

    held, release = threading.Event(), threading.Event()
    async with world.run(terms=ASKING, checkpoint=fail_once) as run:
        await run.run_pass()
        paid, waits = await ask(run, "paid"), await ask(run, "waits")
        await run.agent.decisions.approve(paid.id, SOMEBODY)
        before = asyncio.create_task(run.context.write("wait", lambda _: (held.set(), release.wait())))
        await asyncio.to_thread(held.wait)
        both = [asyncio.create_task(run.agent.decisions.approve(row.id, SOMEBODY)) for row in (waits, paid)]
        await asyncio.sleep(0)
        release.set()
        await before
        of_waiting, of_paid = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(of_waiting, Refused)
    assert isinstance(of_paid, Refused)
    assert (of_waiting.code, of_waiting.money) == ("store_failed", STILL_ASKED)
    assert (of_paid.code, of_paid.money) == ("store_failed", PROBLEMS["store_failed"].money)
