"""Times as they are written. May import: the standard library. Never: asks what time it is."""

from datetime import UTC, datetime


def iso_time(ms: int) -> str:
    """A time as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19] + f".{ms % 1000:03d}Z"
