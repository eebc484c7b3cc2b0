"""x402 from the 402 to settlement: proofs, refusals, expiry and the choice among offers."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import httpx
import pytest
from kit.agent import ADA, World, daily, with_terms, world_with_clock
from kit.commitments import commitment_to
from kit.handover import pass_ttl
from kit.payments import wait_for_void
from kit.x402 import PATH, ask, get, show

from payagent.agent.base.config import AgentConfig, merchant_config
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.commits.tx_planner import Planner
from payagent.core.invoice import Invoice
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.dialects import RetryVerdict, parse_answer
from payagent.settings.loading import read_merchant
from payagent.store.db.unit import Unit
from payagent.store.rows import payments
from payagent.wallet.tx_plan import TxPlan

TOKEN = "ab" * 28 + b"USD".hex()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


async def test_the_merchant_settles_the_transaction_in_the_proof(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"confirmations": -1})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        assert (row.invoice.dialect, row.invoice.merchant_submits, row.state) == ("x402-v2", True, State.IN_FLIGHT)
        assert world.waiting() == []
        answer, row, advice = await show(world, run, row)
        assert (answer.status_code, advice.verdict) == (200, RetryVerdict.SERVED)
        assert world.waiting() == [row.attempt.tx_id]
        await run.agent.deliveries.record_delivery(row.id, 200)
        await run.settle_down()
        row = run.context.payment(row.id)
        assert (row.state, row.delivery) == (State.CONFIRMED, Delivery.ACCEPTED)
        assert run.owned() == world.on_chain()


@pytest.mark.parametrize("version", [1, 2])
async def test_the_facilitator_accepts_a_payment_made_27_seconds_after_the_newest_block(
    world: World, version: int
) -> None:
    """It measures the time limit from that block's slot, and blocks are 20 s apart on average."""
    world.fund(50 * ADA)
    world.settings(x402={"version": version, "confirmations": -1})
    async with world.run() as run:
        await run.run_pass()
        world.clock.ahead_ms += 27_000
        row, _ = await run.agent.pay(ask(world))
        answer, row, advice = await show(world, run, row)
        assert (answer.status_code, advice.verdict) == (200, RetryVerdict.SERVED), answer.text


async def test_the_same_request_is_a_new_payment_once_it_was_served(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    world.settings(x402={"confirmations": -1})
    async with world.run() as run:
        await run.run_pass()
        first, _ = await run.agent.pay(ask(world))
        again, is_new = await run.agent.pay(ask(world))
        assert (again.id, again.attempt.cbor, is_new) == (first.id, first.attempt.cbor, False)
        with pytest.raises(Refused, match="invoice_already_paid/same_intent") as paid:
            await run.agent.quote(ask(world))
        assert paid.value.context["payment"] == first.id
        await show(world, run, first)
        await run.agent.deliveries.record_delivery(first.id, 200)
        assert (await run.agent.quote(ask(world))).refusal is None
        second, is_new = await run.agent.pay(ask(world))
        assert is_new
        assert second.id != first.id
        assert second.invoice.id != first.invoice.id


async def test_a_pending_answer_is_retried_with_the_identical_header(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"confirmations": 1})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        merchant = run.context.config.merchants[world.origin]
        header = retry_headers(row, merchant, world.address)["PAYMENT-SIGNATURE"]
        for _ in range(2):
            answer, row, advice = await show(world, run, row)
            assert (answer.status_code, advice.verdict) == (402, RetryVerdict.PENDING)
            assert advice.again_after_s is not None
            await run.settle_down()
        answer, row, advice = await show(world, run, row)
        assert (answer.status_code, advice.verdict) == (200, RetryVerdict.SERVED)
        assert retry_headers(row, merchant, world.address)["PAYMENT-SIGNATURE"] == header
        assert len(world.transactions()) == 1


async def test_a_v1_pending_answer_without_a_transaction_is_checked_against_the_chain(world: World) -> None:
    """In its examples a transaction that could not be submitted is also pending, as one already there."""
    world.fund(50 * ADA)
    world.settings(x402={"version": 1, "confirmations": -1})
    unsent = parse_answer(202, [("content-type", "application/json")], b'{"pending":true,"transaction":""}')
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        assert row.invoice.dialect == "x402-v1"
        row, advice = await run.agent.deliveries.take_answer(row.id, unsent)
        assert (advice.poll_query, advice.again_after_s is None) == (None, False)
        await show(world, run, row)
        await run.settle_down()
        _, advice = await run.agent.deliveries.take_answer(row.id, unsent)
        assert (advice.poll_query, advice.again_after_s is None) == (f"tx={row.attempt.tx_id}", False)


async def test_a_payment_refused_before_it_was_broadcast_is_cancelled(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"fault": "refuse_verify"})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        _, row, advice = await show(world, run, row)
        assert (advice.verdict, advice.again_after_s) == (RetryVerdict.REFUSED, None)
        assert (row.state, row.problem.name) == (State.CANCELLING, "payment_void/merchant_refused")
        assert retry_headers(row, None, world.address) == {}
        await run.agent.submitter.drain(60)
        await run.settle_down()
        await wait_for_void(world, run)
        assert run.state(row.id) is State.VOID
        assert run.owned() == world.on_chain()
        assert len(world.transactions()) == 1, "only the cancel"


async def test_two_concurrent_reports_of_one_refusal_both_see_the_payment_being_cancelled(world: World) -> None:
    """A pass may also have begun the cancel a moment before the second report."""
    world.fund(50 * ADA)
    world.settings(x402={"fault": "refuse_verify"})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        answers = await asyncio.gather(show(world, run, row), show(world, run, row))
        assert [row.state for _, row, _ in answers] == [State.CANCELLING] * 2
        await run.agent.submitter.drain(60)


async def test_a_refusal_received_while_the_chain_is_away_cancels_after_a_restart(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"fault": "refuse_verify"})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        run.context.chain.problem = "the provider is away"
        _, row, _ = await show(world, run, row)
        assert row.state is State.IN_FLIGHT
    async with world.run() as run:
        await run.run_pass()
        await run.settle_down()
        assert run.state(row.id) is State.CANCELLING


@pytest.mark.parametrize("fault", ["settle_500_after_broadcast", "settle_500_before_broadcast", "empty_reason"])
async def test_an_unclear_answer_does_not_cancel_the_payment(world: World, fault: str) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"fault": fault, "fault_count": 1, "confirmations": -1})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        _, row, advice = await show(world, run, row)
        assert advice.verdict is RetryVerdict.UNCLEAR
        assert row.state is State.IN_FLIGHT
        for _ in range(3):
            answer, row, advice = await show(world, run, row)
            if answer.status_code == 200:
                break
            await run.settle_down()
        assert answer.status_code == 200
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        assert world.transactions() == [row.attempt.tx_id]


async def test_a_merchant_that_does_not_broadcast_in_time_is_not_paid(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        world.clock.ahead_ms += 400_000
        await pass_ttl(world, run)
        assert run.state(row.id) is State.CANCELLING
        await wait_for_void(world, run)
        answer, row, advice = await show(world, run, run.context.payment(row.id))
        assert (answer.status_code, advice.again_after_s) == (402, None)
        assert run.owned() == world.on_chain()


async def test_when_the_payer_must_broadcast_the_transaction_is_submitted_before_the_proof(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(x402={"submission_policy": "client", "confirmations": 0})
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        await run.agent.submitter.drain(60)
        assert (row.invoice.merchant_submits, row.invoice.proof) == (False, "signed_cbor")
        assert world.waiting() == [row.attempt.tx_id]
        assert not run.context.is_ready(run.context.payment(row.id))
        await run.settle_down()
        row = run.context.payment(row.id)
        assert run.context.is_ready(row)
        answer, _, advice = await show(world, run, row)
        assert (answer.status_code, advice.verdict) == (200, RetryVerdict.SERVED)


def with_tokens(terms: AgentConfig) -> AgentConfig:
    return replace(terms, limits=(*terms.limits, *daily(1_000_000, 2_000_000, TOKEN)))


def offering(world: World, *assets: tuple[str, str]) -> httpx.Response:
    """The merchant's 402 with an entry for each (asset, amount)."""
    answer = get(world)
    required = json.loads(base64.b64decode(answer.headers["PAYMENT-REQUIRED"]))
    entry = required["accepts"][0]
    required["accepts"] = [entry | {"asset": asset, "amount": amount} for asset, amount in assets]
    header = base64.b64encode(json.dumps(required).encode()).decode()
    return httpx.Response(402, headers={"PAYMENT-REQUIRED": header}, content=answer.content)


DOTTED = TOKEN[:56] + "." + TOKEN[56:]


@pytest.mark.parametrize(
    ("assets", "paid"),
    [
        ([(DOTTED, "500"), ("lovelace", "2000000")], "lovelace"),  # no such token in the wallet
        ([("lovelace", "9000000000"), ("lovelace", "2000000")], "lovelace"),  # the first is above the limit
    ],
)
async def test_the_first_offer_that_can_be_paid_is_chosen(
    world: World, assets: list[tuple[str, str]], paid: str
) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_tokens) as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world, offering(world, *assets)))
        assert [(o.asset, o.units) for o in row.outputs] == [(paid, 2_000_000)]


async def test_an_offer_in_a_token_that_the_wallet_has_is_paid_if_it_comes_first(world: World) -> None:
    world.fund(50 * ADA, assets={TOKEN: 5000})
    async with world.run(terms=with_tokens) as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world, offering(world, (DOTTED, "500"), ("lovelace", "2000000"))))
        assert [(o.asset, o.units) for o in row.outputs] == [(TOKEN, 500)]


@pytest.mark.parametrize(
    ("most", "assets", "paid"),
    [
        # the min-ADA of the token is above the limit
        (1_250_000, [(DOTTED, "500"), ("lovelace", "1000000")], "lovelace"),
        # the fee takes it above the limit
        (2_100_000, [("lovelace", "2000000"), (DOTTED, "500")], TOKEN),
        # its fee takes it above the approval threshold
        (20 * ADA, [("lovelace", "5000000"), ("lovelace", "2000000")], "lovelace"),
    ],
)
async def test_fee_and_min_ada_count_when_an_offer_is_chosen(
    world: World, most: int, assets: list[tuple[str, str]], paid: str
) -> None:
    world.fund(50 * ADA, 50 * ADA, assets={TOKEN: 5000})
    limits = (*daily(most, 100 * ADA), *daily(1_000_000, 2_000_000, TOKEN))
    terms = with_terms(limits=limits, approval_required_above={"lovelace": 5 * ADA})
    async with world.run(terms=terms) as run:
        await run.run_pass()
        answer = offering(world, *assets)
        told = await run.agent.quote(ask(world, answer))
        row, _ = await run.agent.pay(ask(world, answer))
        assert (row.outputs[0].asset, str(row.outputs[0].units)) == (paid, assets[1][1])
        assert (told.refusal, told.reasons, told.invoice.asset) == (None, (), paid)


async def test_an_offer_that_needs_approval_is_chosen_when_no_other_is_within_limits(world: World) -> None:
    """The first offer is above the limits; the second needs an approval."""
    world.fund(50 * ADA, 50 * ADA, assets={TOKEN: 5000})
    limits = (*daily(20 * ADA, 100 * ADA), *daily(100, 2_000_000, TOKEN))
    async with world.run(terms=with_terms(limits=limits, approval_required_above={"lovelace": 5 * ADA})) as run:
        await run.run_pass()
        answer = offering(world, (DOTTED, "500"), ("lovelace", "9000000"), ("lovelace", "8000000"))
        row, _ = await run.agent.pay(ask(world, answer))
        assert (row.state, row.outputs[0].units) == (State.AWAITING_APPROVAL, 9 * ADA)


async def test_an_offer_that_waits_for_pending_funds_is_preferred_to_a_refused_one(world: World) -> None:
    """The first offer is over the limits; the refusal says that the second can be paid in a moment."""
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        answer = offering(world, ("lovelace", "9000000000"), ("lovelace", "2000000"))
        await run.agent.pay(ask(world, answer, idempotency_key="one"))
        with pytest.raises(Refused, match="funds_pending"):
            await run.agent.quote(ask(world, answer, idempotency_key="two"))
        with pytest.raises(Refused, match="funds_pending"):
            await run.agent.pay(ask(world, answer, idempotency_key="two"))


async def test_offers_after_the_first_payable_one_are_not_planned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plan takes time on the writer's thread, and a merchant may make 64 offers."""
    world.fund(50 * ADA)
    planned: list[int] = []
    plan = Planner.plan

    def counting(planner: Planner, unit: Unit, invoice: Invoice, *more: Any) -> TxPlan:
        planned.append(invoice.total_units)
        return plan(planner, unit, invoice, *more)

    async with world.run() as run:
        await run.run_pass()
        monkeypatch.setattr(Planner, "plan", counting)
        await run.agent.pay(ask(world, offering(world, *[("lovelace", str(2_000_000 + n)) for n in range(64)])))
    assert planned == [2_000_000, 2_000_000]


async def test_a_402_for_another_resource_is_not_paid(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        other = world.http.get(f"{world.origin}/x402/other")
        with pytest.raises(Refused, match="resource_mismatch"):
            await run.agent.pay(ask(world, other))


async def test_a_resource_url_of_another_origin_is_paid_only_if_the_operator_configured_it(world: World) -> None:
    world.fund(50 * ADA)
    required = json.loads(base64.b64decode(get(world).headers["PAYMENT-REQUIRED"]))
    required["resource"]["url"] = "http://localhost:3000" + PATH
    header = base64.b64encode(json.dumps(required).encode()).decode()
    asked = ask(world, httpx.Response(402, headers={"PAYMENT-REQUIRED": header}))

    def knowing(terms: AgentConfig) -> AgentConfig:
        named = read_merchant(
            "m", {"origin": world.origin, "resource_origins": ["http://localhost:3000"]}, "devnet"
        )
        resource_origins = merchant_config("m", named, None).resource_origins
        return replace(
            terms, merchants={o: replace(m, resource_origins=resource_origins) for o, m in terms.merchants.items()}
        )

    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="resource_mismatch"):
            await run.agent.pay(asked)
    async with world.run(terms=knowing) as run:
        await run.run_pass()
        row, _ = await run.agent.pay(asked)
        assert (row.invoice.origin, row.invoice.merchant_submits) == (world.origin, True)


async def test_a_payment_commits_to_its_request_on_the_chain(world: World) -> None:
    world.fund(50 * ADA)
    answer = get(world)
    required = json.loads(base64.b64decode(answer.headers["PAYMENT-REQUIRED"]))
    required["extensions"] = commitment_to(world.origin + PATH, True)
    header = base64.b64encode(json.dumps(required).encode()).decode()
    asked = ask(world, httpx.Response(402, headers={"PAYMENT-REQUIRED": header}))

    def committing(terms: AgentConfig) -> AgentConfig:
        return replace(
            terms, merchants={o: replace(m, request_commitment=True) for o, m in terms.merchants.items()}
        )

    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="invoice_unsupported/extension"):
            await run.agent.pay(asked)
    async with world.run(terms=committing) as run:
        await run.run_pass()
        row, _ = await run.agent.pay(asked)
        auxiliary = cbor2.loads(row.attempt.cbor or b"")[3]
        assert auxiliary == {402: {"p": "http:1", "h": bytes.fromhex(row.invoice.commitment or "")}}
        again, _ = await run.agent.pay(asked)
        assert again.attempt.cbor == row.attempt.cbor
        submitted = world.http.post(
            f"{world.devnet.chain_url}/tx/submit",
            content=row.attempt.cbor,
            headers={"Content-Type": "application/cbor"},
        )
        assert submitted.json() == row.attempt.tx_id
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED


async def test_a_payment_reserved_before_a_crash_is_signed_when_it_is_requested_again(world: World) -> None:
    """A reserved payment is signed when the request is sent again, not at the restart."""
    world.fund(50 * ADA)

    class KilledError(Exception):
        pass

    def kill(name: str) -> None:
        if name == "before sign":
            raise KilledError

    asked = ask(world)
    async with world.run(checkpoint=kill) as run:
        await run.run_pass()
        with pytest.raises(Refused):
            await run.agent.pay(asked)
    async with world.run() as run:
        await run.run_pass()
        (row,) = payments.payments_in(run.context.conn, list(State))
        assert row.state is State.RESERVED, "nothing is signed until it is requested again"
        again, is_new = await run.agent.pay(asked)
        assert (again.id, again.state, is_new) == (row.id, State.IN_FLIGHT, False)
