"""Sample sizes of repeated and random tests: a sample, or all with `./scripts/test --long`."""

import os
from typing import TypeVar

import pytest

T = TypeVar("T")

IS_LONG = os.environ.get("LONG_TESTS") == "1"

long_only = pytest.mark.skipif(not IS_LONG, reason="only ./scripts/test --long runs this")
"""Marks a test that only the long run has."""


def pick(sample: T, whole: T) -> T:
    """Return `whole` with `--long`, else `sample`: a size, or the cases themselves."""
    return whole if IS_LONG else sample
