"""The bounds on what one API request may ask for."""

from payagent.core.bounds import LIST_LIMIT_MAX


def test_the_maximum_page_size_is_1000_or_less() -> None:
    assert 0 < LIST_LIMIT_MAX <= 1_000
