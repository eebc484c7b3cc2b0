"""The pause, which stops all signing at once, whatever is in progress, and survives a restart."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, world_with_clock
from kit.payments import attempts, lose, pass_time_of

from payagent.agent.operator.apps import revoke
from payagent.agent.operator.pause import pause, unpause
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.address import parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.devnet.merchant import role_address
from payagent.store.db.writer import Writer
from payagent.store.rows import alerts, apps, pauses, payments
from payagent.wallet.keys import Signer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


class PausingSigner:
    """A signer during whose signature an operator pauses, before the attempt is recorded."""

    def __init__(self, signer: Signer) -> None:
        self.public_key, self.payment_key_hash = signer.public_key, signer.payment_key_hash
        self.writer: Writer | None = None
        self.signed = 0
        self._signer = signer

    def sign(self, body: bytes, paid: int) -> bytes:
        signature = self._signer.sign(body, paid)
        self.signed += 1
        if self.writer is not None:
            self.writer.submit("pause", lambda unit: pauses.begin(unit, APP, "now", 1)).result(10)
        return signature


async def hold(run: Run, signer: PausingSigner, asked: Callable[[], Awaitable[object]]) -> PaymentRow:
    """Run a request that a pause interrupts: its payment is reserved and has no recorded attempt."""
    await run.run_pass()
    signer.writer = run.context._writer  # type: ignore[assignment]
    with pytest.raises(Refused) as refused:
        await asked()
    signer.writer = None
    (row,) = payments.payments_in(run.context.conn, list(State))
    assert (code_of(refused), row.state, attempts(run, row)) == ("paused", State.RESERVED, [])
    return row


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.name


async def test_a_pause_refuses_new_payments_and_transfers_and_holds_nothing(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await pause(run.context, APP, "a leak")
        with pytest.raises(Refused, match="a leak") as refused:
            await run.pay()
        assert code_of(refused) == "paused"
        assert refused.value.problem.retryable
        assert payments.payments_in(run.context.conn, list(State)) == []
        assert run.books().get("held", {}) == {}
        other = parse_address(role_address("creator").text, run.context.config.network)
        for order in (
            run.agent.transfers.send(APP, other, "lovelace", 5 * ADA),
            run.agent.transfers.send_all(APP, other),
            run.agent.transfers.split(APP, 2, 5 * ADA),
        ):
            with pytest.raises(Refused) as refused:
                await order
            assert code_of(refused) == "paused"
        await unpause(run.context, APP)
        assert (await run.pay()).state is State.IN_FLIGHT


async def test_a_pause_lets_signed_payments_finish(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        ask = world.ask()
        row, _ = await run.agent.pay(ask)
        await pause(run.context, APP, "")
        await run.agent.submitter.drain(60)
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        again, is_new = await run.agent.pay(ask)
        assert (again.id, is_new) == (row.id, False)
        assert world.transactions() == [row.attempt.tx_id]


async def test_a_pause_survives_a_restart_and_ends_when_an_operator_resumes(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await pause(run.context, APP, "for the night")
    async with world.run() as run:
        await run.run_pass()
        standing = pauses.standing(run.context.conn)
        assert standing is not None
        assert (standing.by, standing.reason) == (APP, "for the night")
        with pytest.raises(Refused) as refused:
            await run.pay()
        assert code_of(refused) == "paused"
        first = standing.at_ms
        again, is_new = await pause(run.context, "app_else", "another reason")
        assert again is not None
        assert not is_new
        assert (again.at_ms, again.reason) == (first, "for the night")
        assert alerts.raised(run.context.conn, "paused") == ["pause"]
        assert await unpause(run.context, APP) is None
        assert alerts.raised(run.context.conn, "paused") == []
        told = verify(run.context.conn, Owner(world.account.address, DEVNET))
        assert [one for one in told if isinstance(one, AuditFinding)] == []


async def test_a_transaction_signed_as_a_pause_begins_is_not_submitted_until_resumed(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    signer = PausingSigner(world.account.signer)
    async with world.run(signer=signer) as run:
        row = await hold(run, signer, run.pay)
        assert signer.signed == 1
        await run.settle_down(3)
        assert (signer.signed, world.transactions()) == (1, [])
        await unpause(run.context, APP)
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert len(world.transactions()) == 1
        assert run.owned() == world.on_chain()


async def test_an_expired_hold_is_released_during_a_pause(world: World) -> None:
    world.fund(50 * ADA)
    signer = PausingSigner(world.account.signer)
    async with world.run(signer=signer) as run:
        row = await hold(run, signer, run.pay)
        await pass_time_of(world, run, 1_800)
        assert run.state(row.id) is State.REJECTED
        assert run.books().get("held", {}).get("lovelace", 0) == 0


async def revoke_the_payer(run: Run) -> None:
    somebody = replace(apps.require(run.context.conn, APP), id="app_operator")
    await revoke(run.context, somebody, APP)


async def remove_the_merchant(run: Run) -> None:
    await run.context.take_config(replace(run.context.from_file, merchants={}), lambda _unit: None)


@pytest.mark.parametrize(
    ("end", "code"), [(revoke_the_payer, "forbidden"), (remove_the_merchant, "merchant_not_allowed")]
)
async def test_a_hold_is_released_when_its_app_is_revoked_or_its_merchant_removed(
    world: World, end: Callable[[Run], Awaitable[None]], code: str
) -> None:
    """Pause after a token leaked, revoke its app, resume: its unsigned payments are rejected."""
    world.fund(50 * ADA)
    signer = PausingSigner(world.account.signer)
    async with world.run(signer=signer) as run:
        row = await hold(run, signer, run.pay)
        await end(run)
        await unpause(run.context, APP)
        await run.settle_down(2)
        row = run.context.payment(row.id)
        assert (row.state, row.problem.name, signer.signed) == (State.REJECTED, code, 1)
        assert run.books().get("held", {}).get("lovelace", 0) == 0
        assert world.transactions() == []


async def test_an_unsigned_transfer_is_rejected_when_its_operator_is_revoked(world: World) -> None:
    world.fund(50 * ADA)
    signer = PausingSigner(world.account.signer)
    other = parse_address(role_address("creator").text, DEVNET)
    async with world.run(signer=signer) as run:
        row = await hold(run, signer, lambda: run.agent.transfers.send(APP, other, "lovelace", 5 * ADA))
        await revoke_the_payer(run)
        await unpause(run.context, APP)
        await run.settle_down(2)
        row = run.context.payment(row.id)
        assert (row.state, row.problem.name, signer.signed) == (State.REJECTED, "forbidden", 1)
        assert world.transactions() == []


async def test_a_lost_payment_of_a_revoked_app_is_cancelled_and_not_replaced(world: World) -> None:
    world.settings(timeout=86_400)
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        row = await lose(world, run)
        await revoke_the_payer(run)
        await pass_time_of(world, run, 2_400)
        assert [one.kind for one in attempts(run, row)] == ["pay", "cancel"]
        assert run.context.payment(row.id).problem.name == "forbidden"


async def test_during_a_pause_no_payment_is_replaced_or_cancelled(world: World) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run() as run:
        row = await lose(world, run)
        await pause(run.context, APP, "")
        with pytest.raises(Refused) as refused:
            await run.agent.lifecycle.resolve(row.id, APP)
        assert code_of(refused) == "paused"
        await pass_time_of(world, run, 2_400)
        await run.settle_down(2)
        assert len(attempts(run, row)) == 1
        await unpause(run.context, APP)
        await run.settle_down(2)
        assert [one.kind for one in attempts(run, row)] == ["pay", "cancel"]


@pytest.mark.parametrize("yields", range(0, 16, 3))
async def test_no_attempt_is_recorded_after_the_call_to_pause_has_returned(world: World, yields: int) -> None:
    world.fund(*[20 * ADA] * 8)
    async with world.run() as run:
        await run.run_pass()
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(8)]
        tasks = [asyncio.create_task(run.agent.pay(ask)) for ask in asks]
        for _ in range(yields):
            await asyncio.sleep(0)
        await pause(run.context, APP, "stop")
        signed = signed_by(run)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not isinstance(one, BaseException) or is_paused(one) for one in ended), ended
        await run.settle_down(2)
        assert signed_by(run) == signed
        assert len(world.transactions()) == len(signed)


def is_paused(error: BaseException) -> bool:
    return isinstance(error, Refused) and error.code == "paused"


def signed_by(run: Run) -> list[str]:
    return [tx_id for (tx_id,) in run.context.conn.execute("SELECT tx_id FROM attempts ORDER BY rowid")]
