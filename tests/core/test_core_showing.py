"""When a proof is shown again, and what an answer says that it cost."""

from payagent.core.showing import again_after_s, cost_text

TOKEN = "ab" * 28 + "cd"


def test_a_proof_is_shown_again_ever_more_seldom_and_never_more_seldom_than_every_ten_seconds() -> None:
    assert [again_after_s(count) for count in (1, 2, 3, 4, 5, 6, 10_000)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_fee_is_part_of_what_ada_costs() -> None:
    assert cost_text([("lovelace", 10_000_000), ("lovelace", 2_000_000)], 171_000) == "12171000 lovelace"


def test_what_a_token_costs_has_neither_the_fee_nor_the_ada_that_rides_along() -> None:
    assert cost_text([(TOKEN, 5), ("lovelace", 1_200_000), (TOKEN, 7)], 171_000) == f"12 {TOKEN}"
