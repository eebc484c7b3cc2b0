"""The bounds on what one call may ask for, against what could be meant."""

from payagent.core.bounds import LIST_LIMIT_MAX


def test_a_page_has_an_end() -> None:
    assert 0 < LIST_LIMIT_MAX <= 1_000
