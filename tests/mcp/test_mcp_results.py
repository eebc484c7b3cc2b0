"""What a model reads of a result: the structure alone says what it means for the money and what to do next."""

from collections.abc import Iterator
from typing import Any

import pytest
from kit.mcp import data, text
from kit.mcp_proxy import Market
from kit.proxy import Paywall, Peer, saying

from payagent.client.errors import own_error
from payagent.core.money import parse_amount
from payagent.core.payment.machine import Delivery
from payagent.mcp import results

UNPROCESSABLE = b"HTTP/1.1 422 Unprocessable\r\nContent-Length: 4\r\n\r\ngone"


def values(of: Any) -> Iterator[Any]:
    """All values at any depth."""
    yield of
    for one in of.values() if isinstance(of, dict) else of if isinstance(of, list) else ():
        yield from values(one)


def shown(result: Any) -> dict[str, Any]:
    """The structure of a result, which has nothing that is null or empty, and says what to do next."""
    got = data(result)
    assert [one for one in values(got) if one is None or one in ("", [])] == [], got
    assert got["money"] in text(result)
    assert got["fix"] in text(result)
    return got


def test_amounts_of_a_named_token_are_in_its_decimals_and_are_read_back_as_they_are() -> None:
    token, other = "5c" * 28 + "636c69", "ab" * 28 + "63"
    named = {"USDM": (token, 6)}
    results.tokens.set(named)
    for asset, units, written in (
        (token, 1_500_000, "1.5 USDM"),
        (token, 12_500_000_000, "12500 USDM"),
        ("lovelace", 12_500_000_000, "12500 ADA"),
        (other, 12_500, f"12500 {'ab' * 28}.63"),
    ):
        assert results.cost(asset, units).text == written
        assert parse_amount(written, named) == (units, asset)
    error = own_error("limit_exceeded", f"per_day: 12500000 units of {token} left of 20000.5 ADA")
    for said in (text(results.refused(error)), data(results.refused(error))["refusal"]["detail"]):
        assert "per_day: 12.5 USDM left of 20000.5 ADA" in said


async def test_a_call_that_waits_for_a_person_says_so_in_its_structure(peer_market: Market, peer: Peer) -> None:
    peer_market.ask_a_person()
    peer.answers["/chat"] = Paywall()
    call = {"url": f"{peer.url}/chat"}
    async with peer_market.wallet(answer_after_s=2) as wallet:
        got = shown(await wallet.call_tool("fetch", call))
        (row,) = data(await wallet.call_tool("payments"))["payments"]
    assert got["outcome"] == "awaiting_approval"
    assert got["fix"].count(row["awaiting"]) == 1
    assert "Only a person may decide" in got["fix"]
    assert "repeat this call unchanged: it pays nothing more" in got["fix"]
    assert (row["money"], row["fix"]) == (got["money"], got["fix"])


async def test_a_call_that_goes_on_says_so_in_its_structure(peer_market: Market, peer: Peer) -> None:
    peer.answers["/chat"] = Paywall(serve=saying(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"))
    async with peer_market.wallet(answer_after_s=1) as wallet:
        got = shown(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
    assert got["outcome"] == "pending"
    assert "at most once" in got["money"]
    assert "Repeat this call unchanged" in got["fix"]


async def test_a_refusal_says_what_to_do_in_its_structure_and_is_one_object(
    peer_market: Market, peer: Peer
) -> None:
    peer.answers["/chat"] = Paywall()
    call = {"url": f"{peer.url}/chat", "max_cost": "1 ADA"}
    async with peer_market.wallet() as wallet:
        for tool in ("fetch", "quote"):
            got = shown(await wallet.call_tool(tool, call))
            assert got["code"] == "limit_exceeded"
            assert "the call's own limit leaves 1 ADA" in got["refusal"]["detail"]
            assert "`max_cost`" in got["fix"]
            shared = ["per_payment: at most 1000 ADA, shared", "per_day: at most 100000 ADA, shared"]
            assert got["budget_left"] == shared
            assert "detail" not in got
        elsewhere = shown(await wallet.call_tool("fetch", {"url": "http://127.0.0.1:9/"}))
        wrong = shown(await wallet.call_tool("fetch", {**call, "headers": {"X-Payagent-Max-Cost": "9 ADA"}}))
    assert "Only a person can allow a merchant" in elsewhere["fix"]
    assert (wrong["outcome"], wrong["code"]) == ("refused", "bad_request")


WRONG = (
    ("fetch", {"body": ["?"]}),
    ("fetch", {"maxcost": "1 ADA"}),
    ("quote", {"max_cost": ["1 ADA"]}),
    ("quote", {"method": "GET /"}),
    ("discover", {"operation": 1}),
    ("discover", {"origin": "elsewhere"}),
    ("payments", {"limit": 0}),
    ("budget", {"of": "me"}),
)


@pytest.mark.parametrize(("tool", "arguments"), WRONG)
async def test_wrong_arguments_are_refused_before_anything_is_sent(
    peer_market: Market, peer: Peer, tool: str, arguments: dict[str, Any]
) -> None:
    """Also those with names that the tool lacks: a misspelt `max_cost` must not be a call without a bound."""
    at = {
        "fetch": {"url": f"{peer.url}/chat"},
        "quote": {"url": f"{peer.url}/chat"},
        "discover": {"origin": peer.url},
    }
    async with peer_market.wallet() as wallet:
        listed = {one.name: one.input_schema for one in (await wallet.list_tools()).tools}
        got = await wallet.call_tool(tool, at.get(tool, {}) | arguments)
    assert (got.is_error, data(got)["outcome"], data(got)["code"]) == (True, "refused", "bad_request")
    assert next(iter(arguments)) in text(got)
    assert listed[tool]["additionalProperties"] is False
    assert peer.calls == []


async def test_an_argument_that_a_client_adds_by_itself_is_no_mistake(peer_market: Market) -> None:
    async with peer_market.wallet() as wallet:
        got = await wallet.call_tool("budget", {"wait_for_previous": True, "toolCallId": "call_1"})
    assert not got.is_error


async def test_a_paid_answer_that_failed_says_what_to_do_in_its_structure(peer_market: Market, peer: Peer) -> None:
    peer.answers["/chat"] = Paywall(serve=saying(UNPROCESSABLE))
    async with peer_market.wallet() as wallet:
        got = shown(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
    assert (got["outcome"], got["code"], got["status"]) == ("paid_not_served", "paid_not_served", 422)
    assert got["is_untrusted"] is True
    assert "Repeat this call unchanged" in got["fix"]
    assert peer_market.payments[0].delivery is not Delivery.ACCEPTED


async def test_a_paid_answer_that_breaks_off_is_not_called_unpaid(peer_market: Market, peer: Peer) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nConnection: close\r\n\r\nhalf"
    peer.answers["/chat"] = Paywall(serve=saying(half))
    async with peer_market.wallet(answer_after_s=2) as wallet:
        got = shown(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
    (paid,) = peer_market.payments
    assert (got["outcome"], got["payment_id"]) == ("pending", paid.id)
    assert "Repeat this call unchanged" in got["fix"]


async def test_price_fee_and_total_mean_the_same_in_each_result(peer_market: Market, peer: Peer) -> None:
    peer.answers["/chat"] = Paywall()
    call = {"url": f"{peer.url}/chat"}
    names = ("price", "fee", "total", "cost")
    async with peer_market.wallet() as wallet:
        quoted = data(await wallet.call_tool("quote", call))
        fetched = data(await wallet.call_tool("fetch", call))
        (listed,) = data(await wallet.call_tool("payments"))["payments"]
        limits = data(await wallet.call_tool("budget"))["limits"]
        priced = [one for one in data(await wallet.call_tool("merchants"))["merchants"] if "prices" in one]
    price, fee, total, cost = (int(fetched[name]["units"]) for name in names)
    assert (price, total, cost) == (2_000_000, 2_000_000 + fee, total)
    assert [listed[name] for name in names] == [fetched[name] for name in names]
    assert [quoted[name]["units"] for name in ("price", "total")] == ["2000000", quoted["cost"]["units"]]
    assert int(quoted["total"]["units"]) == 2_000_000 + int(quoted["fee"]["units"])
    assert {one["spent"]["units"] for one in limits if one["limit"] == "per_day"} == {str(total)}
    assert [one["price"] for one in priced[0]["prices"]] == [fetched["price"]]
