"""Signatures that the signer refuses by its own policy: no payment waits for one that never comes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run, World, world_with_clock
from kit.payments import LONG_S, TTL_S, BadSigner, attempts, lose, pass_time_of

from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import alerts, payments


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


def not_signed(run: Run) -> list[tuple[str, str]]:
    """The alerts about the signer, in order: kind and payment."""
    told = [alert for alert in alerts.after(run.context.conn, 0) if alert.subject == "signer"]
    return [(alert.kind, alert.facts.get("payment", "")) for alert in told]


async def test_a_payment_that_the_signer_refuses_is_rejected_and_raises_one_alert(world: World) -> None:
    world.fund(50 * ADA)
    signer = BadSigner(world.account.signer, "refuses")
    async with world.run(signer=signer) as run:
        await run.run_pass()
        for key in ("a", "b"):
            with pytest.raises(Refused, match="too much in a day") as caught:
                await run.agent.pay(world.ask(key, key=key))
            assert caught.value.name == "limit_exceeded"
        rejected = payments.payments_in(run.context.conn, [State.REJECTED])
        assert [row.problem.name for row in rejected] == ["limit_exceeded"] * 2
        assert "held" not in run.books()
        assert run.context.utxos.totals == {"lovelace": 50 * ADA}
        assert [kind for kind, _ in not_signed(run)] == ["signer_refused"]
        signer.trouble = "mended"
        row = await run.pay("c")
        assert row.state is State.IN_FLIGHT
        assert [kind for kind, _ in not_signed(run)] == ["signer_refused", "cleared"]


async def test_a_payment_admitted_before_a_cap_was_lowered_is_rejected_after_a_restart(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fund(50 * ADA)
    async with world.run(signer=BadSigner(world.account.signer)) as run:
        await run.run_pass()
        with pytest.raises(OSError, match="the signer is gone"):
            await run.agent.pay(world.ask(key="k"))
        (row,) = payments.payments_in(run.context.conn, [State.RESERVED])
    async with world.run(signer=BadSigner(world.account.signer, "refuses")) as run:
        await run.settle_down(3)
        assert run.state(row.id) is State.REJECTED
        assert "held" not in run.books()
        assert not_signed(run) == [("signer_refused", row.id)]
    assert "step_failed" not in capsys.readouterr().out


async def test_a_replacement_that_the_signer_refuses_keeps_its_hold_and_raises_one_alert(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fund(50 * ADA)
    world.settings(timeout=LONG_S)
    signer = BadSigner(world.account.signer, "mended")
    async with world.run(signer=signer) as run:
        row = await lose(world, run)
        signer.trouble = "refuses"
        await pass_time_of(world, run, TTL_S + 60)
        await run.settle_down(3)
        assert run.state(row.id) is State.REPLACING
        assert len(attempts(run, row)) == 1
        assert run.books()["held"]["lovelace"] > 0
        assert not_signed(run) == [("signer_refused", row.id)]
        signer.trouble = "mended"
        await run.settle_down(3)
        assert run.state(row.id) is State.CONFIRMED
        assert len(attempts(run, row)) == 2
    assert "step_failed" not in capsys.readouterr().out


async def test_a_cancel_that_the_signer_refuses_leaves_the_payment_in_flight(world: World) -> None:
    world.fund(50 * ADA)
    signer = BadSigner(world.account.signer, "mended")
    async with world.run(signer=signer) as run:
        row = await lose(world, run)
        signer.trouble = "refuses"
        with pytest.raises(Refused, match="too much in a day"):
            await run.agent.lifecycle.resolve(row.id, APP)
        assert run.state(row.id) is State.IN_FLIGHT
        assert not_signed(run) == [("signer_refused", row.id)]
        signer.trouble = "mended"
        assert (await run.agent.lifecycle.resolve(row.id, APP)).state is State.CANCELLING
