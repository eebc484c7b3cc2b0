"""Units that one column cannot hold, in two: `high` * 2^32 + `low`, of which `low` is below 2^32 and not below 0.

SUM() of SQLite raises above 2^63-1, which two deposits of a token can pass. Halves cannot pass it, below 2^31 of
them, and are put together as Python integers of any size.
May import: nothing. Never: asks a database.
"""

ADD_HALVES = """ON CONFLICT DO UPDATE SET high = high + excluded.high + ((low + excluded.low) >> 32),
                          low = (low + excluded.low) & 4294967295"""
"""SQL, behind an INSERT of a row with `high` and `low`: where the row is there, they are added to it."""


def halves(units: int) -> tuple[int, int]:
    """(high, low): >> keeps the sign and & the rest, also of negative units."""
    return units >> 32, units & 4294967295


def whole(high: int, low: int) -> int:
    """What was taken in halves; `low` may be a sum of many."""
    return (high << 32) + low


def sums(column: str) -> str:
    """SQL: the sum of a column, in halves."""
    return f"SUM({column} >> 32), SUM({column} & 4294967295)"
