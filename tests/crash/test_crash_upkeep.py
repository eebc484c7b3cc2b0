"""The agent dies while it splits a UTxO for waiting payments; then each is paid once, with one split."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.agent import ADA, with_terms
from kit.crash import CrashWorld, Disk, crash_world, findings

from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import payments

COUNT = 8
DIES: dict[str, Callable[[list[str], str], bool]] = {
    "before the split is admitted": lambda _sites, name: name == "before keep",
    "when it is admitted": lambda _sites, name: name == "after keep",
    "before its signature is durable": lambda sites, name: name == "before sign" and "after keep" in sites,
    "when it is signed": lambda sites, name: name == "after sign" and "after keep" in sites,
}


class DiesWhen(Disk):
    """A disk that fails for good at the first site for which `is_due` (earlier sites, name) is true."""

    def __init__(self, folder: Path, is_due: Callable[[list[str], str], bool], die: Callable[[], object]) -> None:
        super().__init__(folder, kept=folder / "kept", die=die)
        self._is_due = is_due

    def __call__(self, name: str) -> None:
        if not self.dead and self._is_due(self.sites, name):
            self._crash_at = len(self.sites) + 1
        super().__call__(name)


async def live(world: CrashWorld, disk: Disk, keys: list[str], *, may_do_without: bool) -> None:
    """Request all payments at once, then make blocks until all are confirmed, unless the process died.

    `may_do_without`: no split is needed if the process died before it was admitted, since retries come one by one.
    """
    world.guard.gone = False
    terms = with_terms(unconfirmed_ancestors_max=2, upkeep_fees_per_day_lovelace=2 * ADA)
    async with world.run(checkpoint=disk, providers={"devnet": world.guard.url}, terms=terms) as run:
        await run.run_pass()
        asks = [world.ask(key, key=key) for key in keys]
        await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
        await run.agent.submitter.drain(30)
        if disk.dead:
            return
        for _ in range(30):
            await run.pass_time(1)
            for ask in asks:  # callers that were refused or got no answer retry
                try:
                    await run.agent.pay(ask)
                except Refused as refused:
                    if not refused.problem.retryable:
                        raise
            rows = payments.payments_in(run.context.conn, [*(set(State) - {State.REJECTED})])
            if {row.state for row in rows} == {State.CONFIRMED} and len(rows) >= len(keys):
                break
        assert {row.state for row in rows} == {State.CONFIRMED}
        kinds = sorted(row.kind for row in rows)
        assert kinds[: len(keys)] == ["invoice"] * len(keys)
        assert kinds[len(keys) :] in (["split"], [] if may_do_without else ["split"])
        assert len(world.transactions()) == len(set(world.transactions())) == len(rows)
        assert run.owned() == world.on_chain()


@pytest.mark.parametrize("when", DIES)
async def test_a_burst_is_paid_once_with_one_split_wherever_the_process_dies(tmp_path: Path, when: str) -> None:
    keys = [f"call {number}" for number in range(COUNT)]
    with crash_world(tmp_path) as world:
        world.settings(price="2000000", splits=[])
        world.fund(1_000 * ADA)

        def die() -> None:
            world.guard.gone = True

        disk = DiesWhen(tmp_path, DIES[when], die)
        may_do_without = when == "before the split is admitted"
        await live(world, disk, keys, may_do_without=may_do_without)
        assert disk.dead
        world.in_folder(tmp_path / "kept")
        await live(world, Disk(tmp_path / "kept"), keys, may_do_without=may_do_without)
        assert findings(world) == []
