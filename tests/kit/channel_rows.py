"""Channels as the ledger has them, put there without a merchant or a chain."""

from typing import Any

from payagent.core.channel import Channel, ChannelPhase
from payagent.store.db.unit import Unit
from payagent.store.rows import channels

ADA = 1_000_000
ENABLED = "\n[channels]\nenabled = true\n"
"""The table that turns channels on."""


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
        channels.add_channel(unit, row)
