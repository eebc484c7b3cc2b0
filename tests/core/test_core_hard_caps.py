"""The hard caps on what one transaction may take out of the wallet, per asset and including the fee."""

import pytest

from payagent.core.hard_caps import barred, require_within_caps
from payagent.core.problems import Refused

TOKEN = "aa" * 28
CAPS = {"lovelace": 5_000_000, TOKEN: 10}


@pytest.mark.parametrize("leaving", [{}, {"lovelace": 5_000_000, TOKEN: 10}], ids=["none", "all"])
def test_an_asset_may_leave_up_to_its_cap(leaving: dict[str, int]) -> None:
    require_within_caps(leaving, CAPS)


@pytest.mark.parametrize(("asset", "units"), [("lovelace", 5_000_001), (TOKEN, 11)])
def test_one_unit_above_the_cap_is_refused_with_the_limit_and_what_is_left(asset: str, units: int) -> None:
    with pytest.raises(Refused) as refused:
        require_within_caps({"lovelace": 1, TOKEN: 1} | {asset: units}, CAPS)
    assert refused.value.name == "limit_exceeded"
    told = {"limit": "per_transaction", "asset": asset, "left": str(CAPS[asset]), "asked": str(units)}
    assert refused.value.context == told


def test_a_token_without_a_cap_or_with_a_cap_of_0_is_barred() -> None:
    assert barred(["lovelace", TOKEN, "bb" * 28, "cc" * 28], CAPS | {"cc" * 28: 0}) == {"bb" * 28, "cc" * 28}
    assert barred(["lovelace"], {}) == frozenset()


def test_an_asset_without_a_cap_cannot_leave() -> None:
    with pytest.raises(Refused) as refused:
        require_within_caps({"lovelace": 1, "bb" * 28: 1}, CAPS)
    assert refused.value.name == "asset_not_allowed"
