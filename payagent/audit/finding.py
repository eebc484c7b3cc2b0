"""What an audit tells: a finding, and how far it is.

May import: the standard library. Never: I/O.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and in which row of which table it shows."""

    table: str
    row: str
    what: str


@dataclass(frozen=True, slots=True)
class Progress:
    """So many rows of a table (or all that belongs to so many payments) have been looked at."""

    table: str
    rows: int
