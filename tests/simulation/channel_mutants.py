"""Seeded bugs of channels that the simulator must find. `kill` returns the first seed that finds one."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from simulation.mutants import put

from payagent.agent.channels import calls, steps
from payagent.agent.channels.calls import ChannelCalls
from sim import stage
from sim.channel_world import ChannelWorld
from sim.stage import SimStage

Mutant = Callable[[ExitStack], None]


def _sent_before_its_row(stack: ExitStack) -> None:
    """The voucher is signed before its promise is durable."""
    real = ChannelCalls._promise

    async def promise(self, intent, offer, channel):  # type: ignore[no-untyped-def]
        await self._voucher(channel, channel.count + offer.price)
        await real(self, intent, offer, channel)

    put(stack, ChannelCalls, "_promise", promise)


def _count_without_our_voucher(stack: ExitStack) -> None:
    """A count is adopted although the voucher that covers it is not ours."""
    put(stack, calls, "is_iou", lambda _key, _tag, _amount, _signature: True)


def _second_channel(stack: ExitStack) -> None:
    """A channel is opened while the first one may still land."""
    blind = SimpleNamespace(**vars(steps.rows) | {"live_channel": lambda _conn, _origin: None})
    stack.enter_context(patch.object(steps, "rows", blind))
    make = stage.make_template

    def without_index(folder: Path) -> Path:
        path = make(folder)
        with closing(sqlite3.connect(path)) as conn:
            conn.execute("DROP INDEX channels_live")
            conn.commit()
        return path

    stack.enter_context(patch.object(stage, "make_template", without_index))


def _no_probe(stack: ExitStack) -> None:
    """After silence another request is paid with the same amount, and nobody asks for the count."""

    async def probe(self, merchant, payment_request, offer, channel_id):  # type: ignore[no-untyped-def]
        pending = calls.channels.unanswered_call(self._context.conn, channel_id)
        if pending is not None:
            state = calls.CALLS[pending.state, calls.CallEvent.EXCLUDE]
            await self._context.write_at(
                "probe", lambda unit, now_ms: calls.channels.set_call(unit, pending, state, None, now_ms)
            )

    put(stack, ChannelCalls, "probe", probe)


MUTANTS: dict[str, Mutant] = {
    "a voucher before its row": _sent_before_its_row,
    "a count without our voucher": _count_without_our_voucher,
    "a second channel while the first may land": _second_channel,
    "another request with the same amount after silence": _no_probe,
}
WHAT = {
    "a voucher before its row": ("C1",),
    "a count without our voucher": ("C1", "C3"),
    "a second channel while the first may land": ("C5: https",),
    "another request with the same amount after silence": ("C4",),
}


@contextmanager
def _stage() -> Iterator[SimStage]:
    made = SimStage(ChannelWorld)
    try:
        yield made
    finally:
        made.close()


def kill(name: str, seeds: range) -> tuple[int, str] | None:
    """The first of the seeds that finds the bug, with what it violates. Other violations do not count."""
    with ExitStack() as stack:
        MUTANTS[name](stack)
        with _stage() as runs:
            for seed in seeds:
                for violation in runs.run(seed).violations:
                    if violation.startswith(WHAT[name]):
                        return seed, violation
    return None
