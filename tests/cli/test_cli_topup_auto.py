"""Automatic top-ups: the daemon raises a low prepaid balance as the config says."""

from kit.cli import Shop, running, until

CONFIG = """
[merchants.t.topup]
path = "/payments/topup"
body = "{}"
auto_below = 5
auto_to = 15
auto_per_day_max = 1
"""


def test_a_low_prepaid_balance_is_topped_up_automatically(closed_shop: Shop) -> None:
    closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    closed_shop.control("blocks", count=1)  # else the daemon may order before the deposit is in a block
    closed_shop.settings(batch=10)
    with closed_shop.config.open("a") as config:
        config.write(CONFIG)
    with running(closed_shop):
        until(lambda: _states(closed_shop) == ["done"], "nothing was topped up")
        (row,) = closed_shop.payagent("prepaid", "list").json["topups"]
        assert (row["trigger"], row["unit"], row["units"], row["bought"]) == ("auto", "calls", "15", "20")
        until(lambda: _merchant_says(closed_shop) == "20", "the merchant was not asked again")
        spend = closed_shop.payagent("ledger", "spend", "--by", "app").json["spend"]
        assert [one["app"] for one in spend] == ["auto top-up"]


def _states(shop: Shop) -> list[str]:
    return [row["state"] for row in shop.payagent("prepaid", "list").json["topups"]]


def _merchant_says(shop: Shop) -> str | None:
    (holding,) = shop.payagent("prepaid").json["prepaid"]
    return holding["merchant_says"]["remaining"] if holding["merchant_says"] else None
