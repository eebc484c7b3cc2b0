"""How long to wait before something that failed is tried again.

May import: nothing.
Never: reads a clock.
"""


def backoff(first: int, longest: int, failures: int) -> int:
    """Return the wait after so many failures in a row: `first`, doubled after each further one, up to a limit."""
    return min(first << min(max(failures - 1, 0), 32), longest)
