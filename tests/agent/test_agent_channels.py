"""Channels on the chain: opening, adding, closing, getting back what is left, and what may go wrong in between."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run
from kit.channel_agent import DEPOSIT, ChannelWorld, channel_world, hear, open_channel, parts, steps

from payagent.core.channel import Channel, ChannelPhase
from payagent.core.ledger import channel_account
from payagent.core.payment.machine import State
from payagent.store.rows import channels as rows


@pytest.fixture
def at(tmp_path: Path) -> Iterator[ChannelWorld]:
    with channel_world(tmp_path) as at:
        at.world.fund(30 * ADA, 10 * ADA, 10 * ADA)
        yield at


def now(run: Run, channel: Channel) -> Channel:
    return rows.channel(run.context.conn, channel.id)


def in_channel(run: Run) -> int:
    """What the books say is in the channel."""
    return run.books().get(channel_account(run.world.origin), {}).get("lovelace", 0)


async def test_a_channel_is_opened_added_to_closed_and_returns_after_its_delay(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        assert in_channel(run) == at.held() == DEPOSIT
        assert run.owned() == at.world.on_chain()
        assert 3 * ADA < channel.capacity < DEPOSIT
        await parts(run).steps.add(APP, channel.id, 2 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert in_channel(run) == at.held() == DEPOSIT + 2 * ADA
        assert now(run, channel).capacity == channel.capacity + 2 * ADA
        closing, _ = await parts(run).steps.close(APP, channel.id)
        assert closing.phase is ChannelPhase.CLOSING
        await run.agent.submitter.drain(60)
        await run.settle_down()
        elapse_at_ms = now(run, channel).elapse_at_ms
        assert elapse_at_ms is not None
        at.world.clock.ahead_ms += elapse_at_ms - run.context.ports.clock.now_ms() - 30_000
        await run.settle_down()
        assert [step.step for step in steps(run, channel)] == ["open", "add", "close"]
        at.world.clock.ahead_ms += 60_000
        await run.settle_down(2)
        ended = now(run, channel)
        assert (ended.phase, ended.returned, ended.claimed) == (ChannelPhase.ENDED, DEPOSIT + 2 * ADA, 0)
        assert in_channel(run) == at.held() == 0
        assert run.owned() == at.world.on_chain()
        assert all(step.state is State.CONFIRMED for step in steps(run, channel))
