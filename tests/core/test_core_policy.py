"""Limits: each binds exactly at its edge, the answer names it, and nothing without a limit is spent."""

import pytest

from payagent.core.policy import Limit, decide
from payagent.core.problem import Refused

TOKEN = "ab" * 28 + "55534454"
LIMITS = {"lovelace": Limit(5_000_000, 20_000_000), TOKEN: Limit(100, 250)}


def refusal(spend: dict[str, int], spent_day: dict[str, int], max_total: int | None = None) -> Refused | None:
    try:
        decide(spend, LIMITS, spent_day, paid_asset=next(reversed(spend)), max_total_units=max_total)
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize(
    ("spend", "spent_day", "max_total", "limit", "left"),
    [
        ({"lovelace": 5_000_000}, {}, None, None, None),
        ({"lovelace": 5_000_001}, {}, None, "per_payment", "5000000"),
        ({"lovelace": 5_000_000}, {"lovelace": 15_000_000}, None, None, None),
        ({"lovelace": 5_000_000}, {"lovelace": 15_000_001}, None, "per_day", "4999999"),
        ({"lovelace": 1}, {"lovelace": 25_000_000}, None, "per_day", "0"),
        ({"lovelace": 1_500_000, TOKEN: 100}, {}, None, None, None),
        ({"lovelace": 1_500_000, TOKEN: 101}, {}, None, "per_payment", "100"),
        ({"lovelace": 1_500_000, TOKEN: 60}, {TOKEN: 200}, None, "per_day", "50"),
        ({"lovelace": 5_000_001, TOKEN: 1}, {}, None, "per_payment", "5000000"),  # ADA that rides along counts
        ({"lovelace": 2_000_000}, {}, 2_000_000, None, None),
        ({"lovelace": 2_000_001}, {}, 2_000_000, "max_total", "2000000"),
        ({"lovelace": 4_000_000}, {}, 10_000_000, None, None),
        ({"lovelace": 6_000_000}, {}, 10_000_000, "per_payment", "5000000"),  # the caller's bound only tightens
    ],
)
def test_a_limit_binds_at_its_edge(
    spend: dict[str, int], spent_day: dict[str, int], max_total: int | None, limit: str | None, left: str | None
) -> None:
    refused = refusal(spend, spent_day, max_total)
    if limit is None:
        assert refused is None
    else:
        assert refused is not None
        assert (refused.code, refused.context["limit"], refused.context["left"]) == ("limit_exceeded", limit, left)


def test_an_asset_without_a_limit_is_refused() -> None:
    refused = refusal({"lovelace": 1, "cd" * 28: 1}, {})
    assert refused is not None
    assert refused.code == "asset_not_allowed"
