"""Writes metrics in the Prometheus text exposition format, version 0.0.4.

Never: depends on a particular metric; accepts a number that is not an integer.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from payagent.core.money import format_units

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Histogram:
    """Durations, counted by the upper bounds they stay within. Measured in milliseconds, written in seconds.

    A negative duration, from a clock that was set back, counts as 0.
    """

    __slots__ = ("_bounds_ms", "_counts", "_sum_ms")

    def __init__(self, bounds_ms: tuple[int, ...]) -> None:
        self._bounds_ms = bounds_ms
        self._counts = [0] * (len(bounds_ms) + 1)
        self._sum_ms = 0

    def observe(self, duration_ms: int) -> None:
        duration_ms = max(duration_ms, 0)
        self._counts[bisect_left(self._bounds_ms, duration_ms)] += 1
        self._sum_ms += duration_ms

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterable[str]:
        counts = list(accumulate(self._counts))
        bounds = [*(format_units(bound_ms, 3) for bound_ms in self._bounds_ms), "+Inf"]
        for bound, count in zip(bounds, counts, strict=True):
            yield f"{name}_bucket{_labels({**labels, 'le': bound})} {count}"
        yield f"{name}_sum{_labels(labels)} {format_units(self._sum_ms, 3)}"
        yield f"{name}_count{_labels(labels)} {counts[-1]}"


Samples = tuple[tuple[Mapping[str, str], int | Histogram], ...]
"""Numbers or histograms, each with its labels."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: one value, or one for each set of labels. A counter only grows and restarts with the process."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    samples: Samples


def alone(number: int | None) -> Samples:
    """One sample without labels, or none if the number is None."""
    return () if number is None else (({}, number),)


def by_label(label: str, numbers: Mapping[str, int | Histogram]) -> Samples:
    """One sample for each value of a label."""
    return tuple(({label: value}, number) for value, number in numbers.items())


def write(families: Iterable[Family]) -> str:
    """Write the text. A family without samples still has its HELP and TYPE lines."""
    return "".join(line + "\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterable[str]:
    yield f"# HELP {family.name} {family.about}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            yield from value.lines(family.name, labels)
        else:
            yield f"{family.name}{_labels(labels)} {value}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""
