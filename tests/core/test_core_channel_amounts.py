"""What a channel holds, and what can be lost, in each of its states."""

import pytest

from payagent.core.channel import Channel, ChannelPhase

HELD = ("opening", "open", "closing")


@pytest.mark.parametrize("phase", ChannelPhase)
def test_only_a_channel_that_holds_money_can_lose_some(phase: ChannelPhase) -> None:
    channel = Channel(
        *("ab", "https://m.example", 0, "lovelace", "p", "s", "k", 900_000, "addr", 1, phase),
        deposited=10,
        capacity=9,
        signed=5,
        claimed=3,
    )
    assert (channel.locked, channel.most_lost) == ((7, 2) if phase in HELD else (0, 0))
