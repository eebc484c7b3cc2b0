"""Formats times as RFC 3339.

Never: reads a clock.
"""

from datetime import UTC, datetime

LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def iso_time(ms: int) -> str:
    """Format POSIX milliseconds as RFC 3339 in UTC. Times after `LAST_MS` are written as `LAST_MS`."""
    ms = min(ms, LAST_MS)
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19] + f".{ms % 1000:03d}Z"
