"""The bounds on what one call may ask for, against what could be meant."""

from payagent.core.bounds import LIST_LIMIT_MAX, SPLIT_COUNT_MAX

OUTPUT_BYTES = 3 + 57 + 5
"""A key address and an amount above 65,535 lovelace, with their heads: no output that the ledger takes is less."""
INPUT_BYTES, WITNESS_BYTES = 36, 102
MAX_TX_BYTES = 16_384


def test_no_transaction_holds_as_many_coins_as_may_be_asked_for() -> None:
    assert SPLIT_COUNT_MAX * OUTPUT_BYTES + INPUT_BYTES + WITNESS_BYTES > MAX_TX_BYTES


def test_a_page_has_an_end() -> None:
    assert 0 < LIST_LIMIT_MAX <= 1_000
