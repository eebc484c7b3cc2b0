"""A merchant's word about a payment: the union of the known vocabularies, and no word is a reason to raise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.dialects import StatusSaid, read_status

HASH = "ab" * 32


@pytest.mark.parametrize(
    ("word", "said", "final"),
    [
        ("pending", "pending", False),
        ("processing", "pending", False),
        ("Submitted", "submitted", False),
        ("VERIFIED", "confirmed", True),
        ("confirmed", "confirmed", True),
        ("settled", "confirmed", True),
        ("completed", "confirmed", True),
        ("consumed", "consumed", True),
        ("expired", "expired", True),
        ("failed", "failed", True),
        ("rejected", "failed", True),
        ("cancelled", "failed", True),
        ("paid-ish", "unknown", False),
        ("", "unknown", False),
    ],
)
def test_words(word: str, said: str, final: bool) -> None:
    for body in ({"status": word}, {"detail": {"status": word}}):
        assert read_status(body).status == said
        assert read_status(body).final is final


def test_the_transaction_that_it_names() -> None:
    assert read_status({"status": "settled", "txHash": HASH.upper()}) == StatusSaid("confirmed", HASH)
    assert read_status({"status": "settled", "tx_hash": HASH}).tx_hash == HASH
    for strange in (None, 5, HASH[:-1], HASH + "0", "0x" + HASH, [HASH]):
        assert read_status({"status": "settled", "txHash": strange}).tx_hash is None


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["status", "detail", "pending"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "detail", "txHash", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_strange_answers_never_raise(body: object) -> None:
    said = read_status(body)
    assert said.final is False or said.status != "unknown"
