"""An app that is refused all the time does not fill the disk, and keeps no other app waiting."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from agent_kit import ADA, APP, Run, World, daily, with_terms, world_with_clock

from payagent.agent import floods
from payagent.agent.floods import AT_ONCE, Floods
from payagent.core.problem import Refused
from payagent.store import apps

OTHER = "app_other"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world, patch.object(floods, "AT_ONCE", 3):
        world.fund(*[50 * ADA] * 4)
        yield world


async def code_of(run: Run, ask: object) -> str:
    try:
        await run.agent.pay(ask)  # type: ignore[arg-type]
    except Refused as refused:
        return refused.code
    return "paid"


def on_record(run: Run) -> int:
    (count,) = run.agent.conn.execute("SELECT COUNT(*) FROM events").fetchone()
    return int(count)


async def test_what_cannot_be_read_is_on_record_so_often_and_no_more(world: World) -> None:
    answer = world.call("hello")
    async with world.run() as run:
        await run.look()
        asks = [world.ask_of(answer, key=str(n), body='{"detail": "x"}') for n in range(6)]
        assert [await code_of(run, ask) for ask in asks[:3]] == ["not_an_invoice"] * 3
        before = on_record(run)
        assert [await code_of(run, ask) for ask in asks[3:]] == ["rate_limited"] * 3
        assert on_record(run) == before
        await run.agent.write("app", lambda unit: apps.add_with_token(unit, OTHER, "other", "1" * 64, ["pay"], 1))
        assert await code_of(run, replace(asks[0], app_id=OTHER)) == "not_an_invoice"


async def test_what_a_limit_forbids_is_on_record_so_often_and_no_more(world: World) -> None:
    async with world.run(terms=with_terms(limits=daily(1 * ADA, 1 * ADA))) as run:
        await run.look()
        asks = [world.ask(f"call {n}", key=str(n)) for n in range(6)]
        assert [await code_of(run, ask) for ask in asks] == ["limit_exceeded"] * 3 + ["rate_limited"] * 3


async def test_what_is_paid_counts_as_nothing_and_what_leaves_no_record_neither(world: World) -> None:
    async with world.run() as run:
        unseen = [await code_of(run, world.ask(f"early {n}", key=f"early {n}")) for n in range(5)]
        assert unseen == ["chain_not_ready"] * 5
        await run.look()
        known = world.ask("known", key="known")
        assert [await code_of(run, known) for _ in range(6)] == ["paid"] * 6


def test_who_was_refused_is_heard_again_with_time_and_has_no_more_than_at_first() -> None:
    kept = Floods()
    for _ in range(AT_ONCE):
        kept.require_calm(APP, 0.0)
        kept.note(APP, 0.0)
    with pytest.raises(Refused, match="heard once a second") as told:
        kept.require_calm(APP, 0.9)
    assert told.value.context["retry_after_s"] == 1
    kept.require_calm(APP, 1.0)
    kept.note(APP, 1.0)
    with pytest.raises(Refused, match="rate_limited"):
        kept.require_calm(APP, 1.0)
    kept.require_calm("app_another", 1.0)
    for _ in range(AT_ONCE):
        kept.require_calm(APP, 1_000_000.0)
        kept.note(APP, 1_000_000.0)
    with pytest.raises(Refused, match="rate_limited"):
        kept.require_calm(APP, 1_000_000.0)
