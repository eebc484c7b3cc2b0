"""Fits a table to a width: shortens texts, and drops columns that tell the least.

Never: shortens a number, or an id that a person copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
"""Spaces between two columns."""
LEAST = 8
"""A text is not shortened to less."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column and its cells. `is_whole`: never shortened. `rank`: columns with a lower one are dropped first.

    A column without a rank (None) is never dropped.
    """

    name: str
    cells: Sequence[str]
    is_whole: bool
    rank: int | None = None

    @property
    def width(self) -> int:
        return max(map(len, (self.name, *self.cells)))


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit into the width, with their texts shortened as little as needed.

    If even that does not suffice, the table stays wider.
    """
    kept = list(columns)
    while True:
        spare = width - sum(column.width for column in kept) - GAP * (len(kept) - 1)
        least = sum(column.width - _least(column) for column in kept)
        droppable = [column for column in kept if column.rank is not None]
        if spare + least >= 0 or not droppable:
            return _shortened(kept, -spare)
        kept.remove(min(droppable, key=lambda column: column.rank or 0))


def _least(column: Column) -> int:
    return column.width if column.is_whole else min(column.width, max(LEAST, len(column.name)))


def _shortened(columns: list[Column], excess: int) -> list[Column]:
    """Take one character after the other from the widest column that may be shortened."""
    widths = {column.name: column.width for column in columns}
    least = {column.name: _least(column) for column in columns}
    for _ in range(excess):
        name = max(widths, key=lambda name: (widths[name] > least[name], widths[name]))
        if widths[name] <= least[name]:
            break
        widths[name] -= 1
    return [
        Column(one.name, [shorten(cell, widths[one.name]) for cell in one.cells], one.is_whole, one.rank)
        for one in columns
    ]


def shorten(text: str, width: int) -> str:
    """Shorten a sentence at its end, and a single word, such as an address, in its middle."""
    if len(text) <= width:
        return text
    if " " in text:
        return text[: width - 1] + "…"
    head = width // 2
    return text[:head] + "…" + text[len(text) - (width - head - 1) :]
