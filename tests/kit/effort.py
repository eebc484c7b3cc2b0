"""Sample sizes of repeated and random tests: a sample, or all with `./scripts/test --long`."""

import os

import pytest

IS_LONG = os.environ.get("LONG_TESTS") == "1"


def pick(sample: int, whole: int) -> int:
    """The sample size for this run."""
    return whole if IS_LONG else sample


long_only = pytest.mark.skipif(not IS_LONG, reason="only ./scripts/test --long runs this")
"""Marks a test that only the long run has."""
