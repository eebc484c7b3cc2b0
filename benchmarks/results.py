"""What a part of the benchmark says, as data, of which JSON and page are made."""

from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
Cell = str | float | int | None


@dataclass(frozen=True, slots=True)
class Bound:
    """A ratio or a count that must hold: `seen` is at most, or at least, `bound`. Never a time or a rate."""

    name: str
    seen: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.seen >= self.bound if self.at_least else self.seen <= self.bound


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times more another one takes for the same work, in the same run."""

    name: str
    other: str
    times: float


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; what was not measured is None."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines of (x, y); its file is called by `name`."""

    name: str
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log_x: bool = True
    log_y: bool = True


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars on top of each other, each of named pieces in `unit`; its file is called by `name`."""

    name: str
    title: str
    unit: str
    bars: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Part:
    """One part. `how` says what was done, in words; `left_out` what the figures do not show."""

    name: str
    title: str
    how: str
    bounds: list[Bound] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is made: `is_quick` measures less of each part, `before` is the commit to measure beside."""

    is_quick: bool
    before: str = ""

    def pick(self, quick: T, full: T) -> T:
        return quick if self.is_quick else full
