"""The available UTxOs in memory match the database right after a failed commit."""

import sqlite3

import pytest
from kit.agent import ADA, World

from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos as queries


class FullDisk:
    """A checkpoint that fails every commit with the name in `point`."""

    def __init__(self) -> None:
        self.point: str | None = None
        self.hits = 0

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.hits += 1
            raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize("name", ["admit", "sign", "observe", "confirm", "deposit"])
async def test_the_available_utxos_in_memory_match_the_database_after_a_failed_commit(
    world: World, name: str
) -> None:
    world.fund(50 * ADA, 50 * ADA)
    disk = FullDisk()

    async with world.run(checkpoint=disk) as run:

        def check() -> None:
            known = {row.ref for row in queries.free_utxos(run.context.conn)}
            assert {utxo.ref for utxo in run.context.utxos} == known

        await run.run_pass()
        check()
        disk.point = f"before {name}"
        codes = []
        for step in (lambda: run.pay("while the disk is full"), lambda: world.fund(20 * ADA), run.run_pass):
            try:
                if (waiting := step()) is not None:
                    await waiting
            except Refused as refused:
                codes.append(refused.code)
            check()
        assert disk.hits
        assert set(codes) <= {"store_failed"}
        disk.point = None
        for _ in range(3):
            world.clock.ahead_ms += 12_000
            await run.settle_down()
            check()
        await run.pay("when the disk has room")
        await run.settle_down(2)
        check()
        assert run.owned() == world.on_chain()
