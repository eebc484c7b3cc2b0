"""Formats times as RFC 3339, and counts milliseconds.

Never: reads a clock.
"""

from datetime import UTC, datetime, timedelta

LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def iso_time(ms: int) -> str:
    """Format POSIX milliseconds as RFC 3339 in UTC. Times after `LAST_MS` are written as `LAST_MS`."""
    ms = min(ms, LAST_MS)
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19] + f".{ms % 1000:03d}Z"


def posix_ms(moment: datetime) -> int:
    """POSIX milliseconds of a time with a zone. Raises OverflowError if its year in UTC is not one of Python's."""
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
