"""`prepaid topup` as an operator uses it: planned, ordered, repeated, refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli import Shop, running, until

CONFIG = """
[merchants.t.topup]
path = "/payments/topup"
body = "{}"
per_day = "60 ADA"
"""
COST = 13_000_000


@pytest.fixture(scope="module")
def shop(closed_shop: Shop) -> Iterator[Shop]:
    """A merchant that sells batches by a request of its own, a wallet of 300 ADA, and its daemon."""
    for _ in range(3):
        closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    closed_shop.settings(batch=10)
    with closed_shop.config.open("a") as config:
        config.write(CONFIG)
    with running(closed_shop):
        until(lambda: len(closed_shop.payagent("wallet", "utxos").json["utxos"]) == 3, "no deposit")
        yield closed_shop


def left(shop: Shop) -> str:
    (holding,) = shop.payagent("prepaid").json["prepaid"]
    return str(holding["left"])


def ordered(shop: Shop) -> list[str]:
    """The top-ups, also those that still go on."""
    return [topup["id"] for topup in shop.payagent("prepaid", "list").json["topups"]]


def test_a_dry_run_shows_the_price_and_pays_nothing(shop: Shop) -> None:
    planned = shop.payagent("prepaid", "topup", "t", "--amount", "20 ADA", "--dry-run")
    assert planned.code == 10, planned.err
    assert (planned.json["count"], planned.json["total"], planned.json["calls"]) == (2, str(2 * COST), "20")
    shown = shop.payagent("prepaid", "topup", "t", "--amount", "20 ADA", "--dry-run", "--human")
    assert "2 of 13 ADA" in shown.out
    assert "26 ADA" in shown.out
    above = shop.payagent("prepaid", "topup", "t", "--amount", "65 ADA", "--dry-run")
    assert (above.code, above.problem, above.json["within_limits"]) == (6, "limit_exceeded", False)
    assert "topup_per_day" in above.error["detail"]
    assert shop.payments() == []


def test_a_topup_is_cancelled(shop: Shop) -> None:
    shop.control("faults", on="submit", kind="drop")
    begun = shop.payagent("prepaid", "topup", "t", "--amount", "40 ADA", "--no-wait")
    until(lambda: shop.payagent("prepaid", "list").json["topups"][0]["payments"], "nothing is paid")
    ended = shop.payagent("prepaid", "cancel", begun.json["id"])
    assert (ended.code, ended.json["state"], ended.json["reason"]["reason"]) == (8, "stopping", "cancelled")
    shop.control("faults", clear=True)
    until(lambda: shop.payagent("prepaid", "list").json["topups"][0]["state"] == "stopped", "it does not end")
    assert left(shop) == "10", "what was paid is bought"
    again = shop.payagent("prepaid", "cancel", begun.json["id"])
    assert (again.code, again.problem) == (2, "wrong_state")
    unknown = shop.payagent("prepaid", "cancel", "top/none")
    assert (unknown.code, unknown.problem) == (2, "not_found")


def test_a_topup_waits_until_it_is_done_and_its_key_orders_it_once(shop: Shop) -> None:
    order = ("prepaid", "topup", "t", "--amount", "20 ADA", "--key", "march")
    done = shop.payagent(*order)
    assert done.code == 0, done.err
    assert (done.json["state"], done.json["paid"]) == ("done", {"lovelace": str(2 * COST)})
    assert left(shop) == "30"
    again = shop.payagent(*order)
    assert (again.code, again.json) == (0, done.json)
    assert len(shop.payments()) == 3
    other = shop.payagent("prepaid", "topup", "t", "--amount", "30 ADA", "--key", "march")
    assert (other.code, other.problem) == (6, "idempotency_key_reused")
    assert done.json["id"] in shop.payagent("prepaid", "list", "--human").out


def test_a_topup_without_waiting_is_pending_and_later_shows_what_stopped_it(shop: Shop) -> None:
    begun = shop.payagent("prepaid", "topup", "t", "--amount", "60 ADA", "--no-wait")
    assert (begun.code, begun.json["state"]) == (8, "open")
    until(lambda: shop.payagent("prepaid", "list").json["topups"][0]["state"] != "open", "it does not end")
    stopped = shop.payagent("prepaid", "list").json["topups"][0]
    assert (stopped["id"], stopped["state"], stopped["reason"]["code"]) == (
        *(begun.json["id"], "stopped", "limit_exceeded"),
    )
    refused = shop.payagent("prepaid", "topup", "t", "--amount", "60 ADA")
    assert (refused.code, refused.problem) == (6, "limit_exceeded")


def test_the_months_report_counts_the_topups_that_were_ordered(shop: Shop, tmp_path: Path) -> None:
    shop.payagent("prepaid", "topup", "t", "--amount", "1 ADA")
    topups = shop.payagent("prepaid", "list").json["topups"]
    (month,) = {row["created_at"][:7] for row in topups}
    ordered = sum(int(row["units"]) for row in topups)
    early = sum(row["state"] == "stopped" for row in topups)
    page = tmp_path / "month.html"
    assert shop.payagent("ledger", "report", "--month", month, "-o", page).code == 0
    text = " ".join(re.sub(r"<[^>]*>", " ", page.read_text()).split())
    ended = f" {early} ended early" if early else ""
    bought = sum(int(row["bought"]) for row in topups)
    amounts = " ".join(f"{units // 10**6}.{units % 10**6:06d} ADA" for units in (ordered, bought))
    assert f"order {len(topups)}{ended} {amounts}" in re.sub(r"(\.\d\d) (\d{4})", r"\1\2", text)


def test_a_topup_by_a_request_that_the_balance_serves_ends_without_a_payment(shop: Shop) -> None:
    data = shop.folder / "call.json"
    data.write_text('{"message": "hello"}')
    topup = ("prepaid", "topup", "t", "--amount", "13 ADA", "--path", "/chat", "--data-file", data)
    for _ in range(2):
        planned = shop.payagent(*topup, "--dry-run")
        assert (planned.code, planned.json["prepaid"], planned.json["unit"]) == (10, True, "calls")
    assert "serves this request" in shop.payagent(*topup, "--dry-run", "--human").out
    ended = shop.payagent(*topup)
    assert (ended.code, ended.json["state"], ended.json["reason"]["reason"]) == (0, "done", "nothing_sold")
    assert ended.json["payments"] == []


def test_usage_errors_are_reported_before_anything_is_ordered(shop: Shop) -> None:
    before = ordered(shop)
    for arguments, code in (
        (("t", "--amount", "5"), "amount_invalid"),
        (("nobody", "--amount", "5 ADA"), "merchant_not_allowed"),
    ):
        assert shop.payagent("prepaid", "topup", *arguments).problem == code
    assert shop.payagent("prepaid", "topup", "t", "--amount", "5 ADA", "--data-file", "-").code == 2
    assert ordered(shop) == before
