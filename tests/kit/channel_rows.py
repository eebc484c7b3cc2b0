"""Channels as the ledger has them, put there without a merchant or a chain, and a recorder of orders."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from payagent.agent.channels.moves import move
from payagent.core.channel import Channel, ChannelPhase, OpeningVoid
from payagent.core.problems import Refused
from payagent.settings.schema import ChannelSettings
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import channels

ADA = 1_000_000
ENABLED = "\n[channels]\nenabled = true\n"
"""The table that turns channels on."""

ON = ChannelSettings(enabled=True, scripts=("ab" * 28,))
"""The same for an agent."""


def a_channel(number: int, origin: str, phase: str, **more: Any) -> Channel:
    """A channel of 5 ADA, of which 2 ADA are signed and 1 ADA is claimed."""
    amounts = {"deposited": 5 * ADA, "capacity": 4 * ADA, "signed": 2 * ADA, "count": 1_500_000, "claimed": ADA}
    return Channel(
        id=f"{number:064x}",
        origin=origin,
        account=0,
        asset="lovelace",
        provider="cd" * 28,
        script_hash="ab" * 28,
        iou_key="ef" * 32,
        close_period_ms=900_000,
        pay_to="addr_test1",
        created_at_ms=number,
        phase=ChannelPhase(phase),
        **amounts | more,
    )


def put_channels(unit: Unit, *rows: Channel) -> None:
    for row in rows:
        channels.put(unit, row)


def put_void(data_dir: Path, origin: str, problem: str) -> None:
    """A channel that was never opened, with its events, into the ledger of a daemon that does not run."""
    nothing = dict.fromkeys(("signed", "count", "claimed", "capacity"), 0)
    channel = a_channel(1, origin, "opening", problem=problem, **nothing)

    def job(unit: Unit) -> None:
        put_channels(unit, channel)
        move(unit, channel, OpeningVoid(), 1)

    writer = Writer(data_dir / "ledger.db")
    asyncio.run(writer.run("test", job))
    writer.close()


@dataclass
class Orders:
    """Takes the place of what makes a channel's transactions, and keeps what it was asked for."""

    channel: Channel
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def steps(self) -> "Orders":
        return self

    async def open(self, app_id: str, origin: str, units: int | None = None, key: str | None = None) -> Any:
        if units == 1:
            raise Refused("channel_unoffered", "t: it sent no offer yet")
        return self._made("open", app_id, origin, units, key)

    async def add(self, app_id: str, channel_id: str, units: int, key: str | None = None) -> Any:
        return self._made("add", app_id, channel_id, units, key)

    async def close(self, app_id: str, channel_id: str, key: str | None = None) -> Any:
        return self._made("close", app_id, channel_id, key)

    async def recover(self, app_id: str) -> list[Channel]:
        self.asked.append(("recover", app_id))
        return [self.channel]

    def _made(self, *asked: object) -> Any:
        self.asked.append(asked)
        return self.channel, None
