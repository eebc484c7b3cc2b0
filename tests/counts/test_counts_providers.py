"""How many requests each kind of chain provider takes: for one payment more, and when nothing happens."""

from pathlib import Path

import pytest
from kit.agent import ADA, world_with_clock

from payagent.chain.open import KINDS, opened
from payagent.chain.provider_client import ProviderClient
from payagent.demo.stage import served_by

PAYMENTS = 10
MOST = {"blockfrost": (3, 4), "koios": (4, 4), "ogmios-kupo": (7, 6)}
"""By kind: requests of an idle look at a new block, and of one payment more."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_payment_takes_few_requests_whatever_the_kind(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def counted(name: str) -> None:
        whole = getattr(ProviderClient, name)

        def count(*args: object) -> object:
            nonlocal made
            made += 1
            return whole(*args)

        monkeypatch.setattr(ProviderClient, name, count)

    counted("_answer")
    counted("converse")
    with world_with_clock(tmp_path) as world:
        world.fund(*[20 * ADA] * (PAYMENTS + 1))
        async with (
            opened(kind, served_by(world.devnet, kind), "devnet") as provider,
            world.run(providers={kind: provider}) as run,
        ):
            await run.run_pass()
            await run.pay("first")
            await run.settle_down(3)
            made = 0
            await run.settle_down(10)
            idle = made / 10
            made = 0
            for number in range(PAYMENTS):
                await run.pay(f"call {number}")
            await run.settle_down(3)
            more = (made - 3 * idle) / PAYMENTS
    print(f"{kind}: {idle} requests of an idle look, {more} of one payment more")
    most_idle, most_more = MOST[kind]
    assert idle <= most_idle
    assert more <= most_more
