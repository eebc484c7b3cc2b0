"""An app that is refused all the time does not fill the disk, is told each time why, and gets what it may have."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from agent_kit import ADA, APP, Run, World, daily, with_terms, world_with_clock

from payagent.agent import floods
from payagent.agent.floods import AT_ONCE, EVERY_S, Floods
from payagent.core.problem import Refused
from payagent.store import apps, payments

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
    (count,) = run.desk.conn.execute("SELECT COUNT(*) FROM events WHERE event = 'refused'").fetchone()
    return int(count)


async def test_what_cannot_be_read_is_on_record_so_often_and_no_more(world: World) -> None:
    answer = world.call("hello")
    async with world.run() as run:
        await run.look()
        asks = [world.ask_of(answer, key=str(n), body='{"detail": "x"}') for n in range(6)]
        assert [await code_of(run, ask) for ask in asks[:3]] == ["not_an_invoice"] * 3
        before = on_record(run)
        assert [await code_of(run, ask) for ask in asks[3:]] == ["not_an_invoice"] * 3
        assert on_record(run) == before
        await run.desk.write("app", lambda unit: apps.add_with_token(unit, OTHER, "other", "1" * 64, ["pay"], 1))
        assert await code_of(run, replace(asks[0], app_id=OTHER)) == "not_an_invoice"
        assert on_record(run) == before + 1, "another app is counted by itself"


async def test_what_a_limit_forbids_is_on_record_so_often_and_no_more(world: World) -> None:
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 50 * ADA))) as run:
        await run.look()
        asks = [world.ask(f"call {n}", key=str(n)) for n in range(8)]
        codes = [await code_of(run, ask) for ask in asks]
        paid = codes.count("paid")
        assert codes == ["paid"] * paid + ["limit_exceeded"] * (8 - paid)
        assert 0 < paid < 4
        count, _ = payments.payment_counts(run.desk.conn)
        assert count == paid + 3, "of what was refused, three"
        assert await code_of(run, asks[0]) == "paid", "what it has it is given all the same"


async def test_what_is_paid_counts_as_nothing_and_what_leaves_no_record_neither(world: World) -> None:
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 1000 * ADA))) as run:
        unseen = [await code_of(run, world.ask(f"early {n}", key=f"early {n}")) for n in range(5)]
        assert unseen == ["chain_not_ready"] * 5
        await run.look()
        known = world.ask("known", key="known")
        assert [await code_of(run, known) for _ in range(6)] == ["paid"] * 6
        before = on_record(run)
        bad = world.ask_of(world.call("hello"), key="bad", body='{"detail": "x"}')
        assert [await code_of(run, bad) for _ in range(3)] == ["not_an_invoice"] * 3
        assert on_record(run) == before + 3


def test_who_was_refused_has_room_again_with_time_and_no_more_than_at_first() -> None:
    kept = Floods()
    for _ in range(AT_ONCE):
        assert kept.has_room(APP, 0.0)
        kept.note(APP, 0.0)
    assert not kept.has_room(APP, EVERY_S - 1)
    assert kept.has_room(APP, EVERY_S)
    kept.note(APP, EVERY_S)
    assert not kept.has_room(APP, EVERY_S)
    assert kept.has_room("app_another", EVERY_S)
    much_later_s = 10 * AT_ONCE * EVERY_S
    for _ in range(AT_ONCE):
        assert kept.has_room(APP, much_later_s)
        kept.note(APP, much_later_s)
    assert not kept.has_room(APP, much_later_s)
