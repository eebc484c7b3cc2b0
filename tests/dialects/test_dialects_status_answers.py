"""A merchant's payment status: every known status word, and no answer raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.dialects import read_status
from payagent.dialects.status_answers import WORDS


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pending", "pending"),
        ("processing", "pending"),
        ("Submitted", "submitted"),
        ("VERIFIED", "confirmed"),
        ("confirmed", "confirmed"),
        ("settled", "confirmed"),
        ("completed", "confirmed"),
        ("consumed", "consumed"),
        ("expired", "expired"),
        ("failed", "failed"),
        ("rejected", "failed"),
        ("cancelled", "failed"),
        ("paid-ish", "unknown"),
        ("", "unknown"),
    ],
)
def test_each_known_status_word_gets_its_meaning(word: str, said: str) -> None:
    for body in ({"status": word}, {"detail": {"status": word}}):
        assert read_status(body) == said


@pytest.mark.parametrize("body", [None, "pending", ["pending"], {}, {"status": 1}, {"detail": "pending"}])
def test_an_answer_without_a_status_word_is_unknown(body: object) -> None:
    assert read_status(body) == "unknown"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["status", "detail", "pending"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "detail", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_any_status_answer_is_read_without_an_error(body: object) -> None:
    assert read_status(body) in {*WORDS.values(), "unknown"}
