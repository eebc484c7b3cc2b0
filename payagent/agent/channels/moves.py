"""Writes an event of a channel, in the commit of whatever caused it.

Never: decides; commits.
"""

from payagent.core.channel import Channel, ChannelMove, apply
from payagent.store.db.unit import Unit
from payagent.store.executor import write
from payagent.store.rows import channels


def move(unit: Unit, channel: Channel, by: ChannelMove, now_ms: int) -> Channel:
    """Apply an event, write the channel and what else changes, and return the channel. Refused: as `apply`."""
    after, changes = apply(channel, by, now_ms)
    channels.put(unit, after)
    write(unit, changes, now_ms)
    return after
