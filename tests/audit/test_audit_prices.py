"""The prices of ADA that a user gives for a report."""

import pytest

from payagent.audit.prices import PriceError, read_prices


@pytest.mark.parametrize(
    "text",
    [
        "",
        "price,date,currency\n",
        "date,price,currency\n",
        "date,price,currency\n2026-11-02,0.5\n",
        "date,price,currency\n2.11.2026,0.5,EUR\n",
        "date,price,currency\n2026-11-02,0.5,EUR\n2026-11-02,0.6,EUR\n",
        "date,price,currency\n2026-11-02,0.5,EUR\n2026-11-03,0.5,USD\n",
        'date,price,currency\n2026-11-02,"0,5",EUR\n',
        "date,price,currency\n2026-11-02,1e3,EUR\n",
        "date,price,currency\n2026-11-02,-1,EUR\n",
        pytest.param("x" * 131_073, id="a field that csv refuses"),
    ],
)
def test_an_unclear_file_of_prices_is_refused(text: str) -> None:
    with pytest.raises(PriceError, match=r"^(its|the|all|') ?"):
        read_prices(text)
