"""Cancels that meet forks, lying providers and late answers. Each test reproduces a bug found in review."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pycardano
import pytest
from kit.agent import ADA, APP, Run, World, with_terms, world_with_clock
from kit.handover import VOID_DEPTH, broadcast
from kit.payments import assert_memory, wait_for_void
from kit.x402 import ask, get, show

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.commits.reservation import nonce_utxo_of
from payagent.api.models.payments import Payment
from payagent.core.address import parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import Output
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.dialects import RetryVerdict, make_response
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.transaction import MAINNET_PARAMETERS, min_lovelace, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex

REFUSAL = "invalid_exact_cardano_payload_phase1_invalid"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


def packed(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


async def say(run: Run, row: PaymentRow, reason: str) -> PaymentRow:
    """The merchant answers a retry with a 402 that names a reason."""
    header = packed({"x402Version": 2, "error": reason, "accepts": []})
    row, advice = await run.agent.deliveries.take_answer(
        row.id, make_response(402, {"payment-required": header}, {})
    )
    assert advice.verdict is RetryVerdict.REFUSED
    return row


def bent(answer: httpx.Response, **entry: object) -> httpx.Response:
    """Return the merchant's 402 with other terms."""
    required = json.loads(base64.b64decode(answer.headers["PAYMENT-REQUIRED"]))
    required["accepts"] = [required["accepts"][0] | entry]
    return httpx.Response(402, headers={"PAYMENT-REQUIRED": packed(required)}, content=answer.content)


async def refused_and_void(world: World, run: Run) -> PaymentRow:
    """Make a payment that is void long before its TTL."""
    world.settings(x402={"fault": "refuse_verify", "max_timeout_s": 1500})
    row, _ = await run.agent.pay(ask(world))
    await show(world, run, row)
    await run.agent.submitter.drain(60)
    await run.settle_down()
    await wait_for_void(world, run)
    assert run.state(row.id) is State.VOID
    world.settings(x402={"fault": None})
    return row


def fork_before(world: World, row: PaymentRow) -> int:
    """Roll back the payment's block and clear the mempool; return how many blocks were rolled back."""
    depth: int = world.devnet.run(lambda devnet: devnet.chain.tip.height) - (row.block.height or 0) + 1
    world.control("rollback", depth=depth)
    world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
    return depth


@pytest.mark.parametrize("policy", ["server", "client"])
async def test_a_void_payment_that_lands_on_a_fork_is_booked_while_the_next_payment_is_open(
    world: World, policy: str
) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_terms(settle_depth=12)) as run:
        await run.run_pass()
        first = await refused_and_void(world, run)
        world.settings(x402={"submission_policy": policy})
        second, _ = await run.agent.pay(ask(world))
        await run.agent.submitter.drain(60)
        if policy == "client":
            await run.settle_down()
        depth = fork_before(world, run.context.payment(first.id))
        assert broadcast(world, first.attempt.cbor or b"") == 200
        world.block(depth + 2)
        await run.run_pass()
        await run.settle_down(2)
        booked = run.context.payment(first.id)
        assert booked.state in (State.CONFIRMED, State.SETTLED)
        assert booked.attempt.tx_id == first.attempt.tx_id
        assert "reason" not in Payment.of(run.context, booked).model_fields_set
        found, is_new = await run.agent.pay(ask(world))
        assert (found.id, is_new) == (first.id, False), "the client gets the payment that landed"
        await run.settle_down(14)
        assert run.state(first.id) is State.SETTLED
        assert run.state(second.id) is not State.CONFIRMED
        assert world.transactions() == [first.attempt.tx_id]


async def test_a_payment_that_spends_a_cancels_output_lands_again_with_it_after_a_fork(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        first = await refused_and_void(world, run)
        world.settings(x402={"submission_policy": "client"})
        second, _ = await run.agent.pay(ask(world))
        await run.agent.submitter.drain(60)
        await run.settle_down()
        world.block(fork_before(world, run.context.payment(first.id)) + 2)
        await run.run_pass()
        for _ in range(8):
            world.clock.ahead_ms += 250_000
            world.block()
            await run.settle_down()
        await wait_for_void(world, run)
        assert (run.state(first.id), run.state(second.id)) == (State.VOID, State.CONFIRMED)
        assert run.owned() == world.on_chain()
        assert_memory(run)


class TestLateRefusals:
    async def test_a_refusal_after_the_request_was_served_does_not_cancel_the_payment(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(x402={"confirmations": -1})
        async with world.run() as run:
            await run.run_pass()
            row, _ = await run.agent.pay(ask(world))
            await show(world, run, row)
            await run.agent.deliveries.record_delivery(row.id, 200)
            row = await say(run, row, REFUSAL)
            assert (row.state, row.delivery) == (State.IN_FLIGHT, Delivery.ACCEPTED)
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED

    async def test_a_refusal_after_a_pending_settlement_does_not_cancel_the_payment(self, world: World) -> None:
        world.fund(50 * ADA)
        world.settings(x402={"confirmations": 5})
        async with world.run() as run:
            await run.run_pass()
            row, _ = await run.agent.pay(ask(world))
            await show(world, run, row)
            row = await say(run, row, "No matching payment requirements")
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED

    async def test_a_refusal_after_the_payment_was_in_a_block_does_not_cancel_it(self, world: World) -> None:
        """The refusal comes late, then the block is rolled back: the same bytes are in flight again."""
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row, _ = await run.agent.pay(ask(world))
            broadcast(world, row.attempt.cbor or b"")
            await run.settle_down()
            row = await say(run, row, REFUSAL)
            world.control("rollback", depth=1)
            world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
            world.fault("submit", "drop")
            world.block(2)
            await run.run_pass()
            world.control("faults", clear=True)
            await run.pass_time(3)
            assert run.state(row.id) is State.CONFIRMED
            assert world.transactions() == [row.attempt.tx_id]


async def test_a_payment_from_utxos_that_could_not_fund_its_cancel_is_refused(world: World) -> None:
    """A price may use up a UTxO exactly, but the output of a cancel needs more ADA than the merchant's output."""
    key = pycardano.VerificationKeyHash(b"\x07" * 28)
    pay_to = pycardano.Address(payment_part=key, network=pycardano.Network.TESTNET).encode()
    to = parse_address(pay_to, world.terms.network)
    units = min_lovelace(to.raw, {}, MAINNET_PARAMETERS)
    exact = units + 163_000

    def paid_by(lovelace: int) -> bool:
        try:
            select(
                UtxoIndex([Utxo("ab" * 32, 0, lovelace)]),
                (Output("pay_to", to, "lovelace", units),),
                change=world.account.address,
                ttl_slot=2000,
                network_id=0,
            )
        except Refused:
            return False
        return True

    exact = next(lovelace for lovelace in range(units + 155_381, units + 180_000) if paid_by(lovelace))
    world.fund(exact)
    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="not_enough_funds"):
            await run.agent.pay(ask(world, bent(get(world), amount=str(units), payTo=pay_to)))
        world.fund(50 * ADA)
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world, bent(get(world), amount=str(units), payTo=pay_to)))
        assert len(queries.attempts(run.context.conn, row.id)[0].inputs) == 1
        for _ in range(2):
            world.clock.ahead_ms += 700_000
            await run.settle_down()
        assert run.state(row.id) is State.CANCELLING


async def test_a_payment_after_a_void_one_has_its_own_payment_identifier(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(
        x402={"payment_identifier": "optional", "confirmations": -1, "fault": "settle_500_before_broadcast"}
    )
    async with world.run() as run:
        await run.run_pass()
        first, _ = await run.agent.pay(ask(world))
        await show(world, run, first)
        world.settings(x402={"fault": None})
        world.clock.ahead_ms += 1_000_000
        await run.settle_down()
        await wait_for_void(world, run)
        second, is_new = await run.agent.pay(ask(world))
        assert is_new
        answer, *_ = await show(world, run, second)
        assert answer.status_code == 200


async def test_a_payment_does_not_become_void_while_the_provider_shows_no_new_blocks(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(ask(world))
        world.clock.ahead_ms += 1_000_000
        await run.settle_down(VOID_DEPTH + 2)
        for step_ms in (61_000, 61_000, 61_000, 3_600_000):
            world.clock.ahead_ms += step_ms
            await run.run_pass()
        assert run.state(row.id) is State.CANCELLING
        world.clock.ahead_ms -= 3_000_000
        await wait_for_void(world, run)
        assert run.state(row.id) is State.VOID


async def test_a_long_402_leaves_less_room_for_the_transaction_in_the_header(world: World) -> None:
    for _ in range(5):
        world.fund(*[2 * ADA] * 40)
    answer = get(world)
    required = json.loads(base64.b64decode(answer.headers["PAYMENT-REQUIRED"]))
    required["accepts"] = [required["accepts"][0] | {"amount": str(150 * ADA)}]
    async with world.run() as run:
        await run.run_pass()
        row, _ = await run.agent.pay(
            ask(world, httpx.Response(402, headers={"PAYMENT-REQUIRED": packed(required)}, content=b""))
        )
        assert len(retry_headers(row, None, world.address)["PAYMENT-SIGNATURE"]) < 14_336
        required["resource"]["description"] = "x" * 7000
        long = ask(world, httpx.Response(402, headers={"PAYMENT-REQUIRED": packed(required)}, content=b""))
        with pytest.raises(Refused, match="utxos_too_small/header_size"):
            await run.agent.pay(
                ask(
                    world,
                    httpx.Response(402, headers={"PAYMENT-REQUIRED": packed(required)}, content=b""),
                    idempotency_key="another",
                )
            )
        assert long.response.status == 402


async def test_the_next_request_is_a_new_payment_when_the_first_was_not_signed_in_time(world: World) -> None:
    world.fund(50 * ADA)

    def kill(name: str) -> None:
        if name == "before sign":
            raise RuntimeError("killed")

    async with world.run(checkpoint=kill) as run:
        await run.run_pass()
        with pytest.raises(Refused):
            await run.agent.pay(ask(world))
    world.clock.ahead_ms += 3_000_000
    world.block()
    async with world.run() as run:
        await run.run_pass()
        row, is_new = await run.agent.pay(ask(world))
        assert is_new
        assert row.state is State.IN_FLIGHT


async def test_the_next_payment_spends_an_output_that_descends_from_every_earlier_cancel(
    tmp_path: Path,
) -> None:
    """During a fork the last cancel may not descend from the one before it."""
    payment = (
        "INSERT INTO payments(id, kind, app_id, intent_id, outputs, state, delivery, nonce_utxo, tx_id, "
        "created_at_ms, updated_at_ms) VALUES (?, 'send', 'app', 'int', '[]', 'void', 'not_presented', ?, ?, 1, 1)"
    )
    utxo = "INSERT INTO utxos VALUES (?, ?, 0, ?, '{}', 'change', ?, ?, 0)"

    def two_voids(unit: Unit) -> None:
        unit.conn.execute("INSERT INTO apps VALUES ('app', 'a', 'pay', NULL, NULL, 1)")
        unit.conn.execute("INSERT INTO intents VALUES ('int', 'app', 'k', 0, 'f', 'o', NULL, 'r', 1, NULL)")
        for name in ("a", "b"):
            nonce_utxo, cancel = f"{name}{name}#0", f"cancel_{name}"
            unit.conn.execute(utxo, (nonce_utxo, name * 2, 5, "spent", cancel))
            unit.conn.execute(payment, (f"pay_{name}", nonce_utxo, cancel))
            unit.conn.execute("INSERT INTO reservations VALUES (?, ?)", (nonce_utxo, f"pay_{name}"))
            unit.conn.execute(utxo, (f"{cancel}#0", cancel, 4, "available", None))

    def join(unit: Unit) -> None:
        unit.conn.execute("UPDATE utxos SET state = 'spent', spent_by = 'both' WHERE tx_id GLOB 'cancel_*'")
        unit.conn.execute(utxo, ("both#0", "both", 3, "available", None))

    writer = Writer(tmp_path / "ledger.db")
    await writer.run("put", two_voids)
    with pytest.raises(Refused, match="cancel_too_recent"):
        await writer.run("ask", lambda unit: nonce_utxo_of(unit, "int", 0))
    await writer.run("put", join)
    nonce_utxo = await writer.run("ask", lambda unit: nonce_utxo_of(unit, "int", 0))
    assert nonce_utxo is not None
    assert nonce_utxo.ref == "both#0"
    assert await writer.run("ask", lambda unit: nonce_utxo_of(unit, "another", 0)) is None
    writer.close()


async def test_a_repeated_cancel_with_the_same_bytes_is_the_same_attempt(world: World) -> None:
    """Within a second one fork confirms the payment and another rolls it back: the new cancel has equal bytes."""
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay()
        world.clock.stop()
        cancelled = await run.agent.lifecycle.resolve(row.id, APP)
        await run.agent.submitter.drain(60)
        world.block()
        await run.run_pass()
        assert run.context.payment(row.id).attempt.tx_id == row.attempt.tx_id, (
            "the payment landed before its cancel"
        )
        depth = fork_before(world, run.context.payment(row.id))
        world.block(depth + 1)
        for _ in range(4):
            await run.run_pass()
        assert run.state(row.id) is State.IN_FLIGHT
        again = await run.agent.lifecycle.resolve(row.id, APP)
        assert (again.state, again.attempt.tx_id) == (State.CANCELLING, cancelled.attempt.tx_id)
        await run.settle_down(2)
        assert world.transactions() in ([row.attempt.tx_id], [cancelled.attempt.tx_id])
        assert run.owned() == world.on_chain()
