"""Writes metrics in the Prometheus text exposition format, version 0.0.4.

May import: the standard library.
Never: depends on a particular metric; accepts a number that is not an integer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


Samples = tuple[tuple[Mapping[str, str], int], ...]
"""Numbers, each with its labels."""


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: one number, or one for each set of labels. A counter only grows and restarts with the process."""

    name: str
    kind: Literal["counter", "gauge"]
    about: str
    samples: Samples


def alone(number: int | None) -> Samples:
    """One sample without labels, or none if the number is None."""
    return () if number is None else (({}, number),)


def by_label(label: str, numbers: Mapping[str, int]) -> Samples:
    """One sample for each value of a label."""
    return tuple(({label: value}, number) for value, number in numbers.items())


def write(families: Iterable[Family]) -> str:
    """Write the text. A family without samples still has its HELP and TYPE lines."""
    return "".join(line + "\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterable[str]:
    yield f"# HELP {family.name} {family.about}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, number in family.samples:
        yield f"{family.name}{_labels(labels)} {number}"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""
