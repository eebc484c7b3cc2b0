"""Times as they are written. May import: the standard library. Never: asks what time it is."""

from datetime import UTC, datetime

LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def iso_time(ms: int) -> str:
    """A time as RFC 3339 in UTC with milliseconds; the last that can be written for what lies behind it."""
    ms = min(ms, LAST_MS)
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19] + f".{ms % 1000:03d}Z"
