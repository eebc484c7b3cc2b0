"""`payagent channels`: what it shows, and what it says before money is locked."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kit.agent import World
from kit.api import Api, served
from kit.channel_rows import ADA, ENABLED, ON, Orders, a_channel, put_channels
from kit.cli import Result, invoke, write_private
from kit.terminal import at_terminal, shown

from payagent.core.channel import Channel

CONFIG = """
network = "devnet"
data_dir = "{folder}"

[api]
socket = "{socket}"

[[chain.providers]]
kind = "blockfrost"
base_url = "{chain}"

[merchants.data]
origin = "{origin}"

[merchants.data.channel]
provider_keys = ["{key}"]
deposit = "6 ADA"
withdraw_delay_max = 7200
"""
OPEN, CLOSING = f"{2:064x}", f"{1:064x}"


@dataclass
class Desk:
    """An operator's command line, before an API with two channels and a recorder of orders."""

    config: Path
    orders: Orders

    async def payagent(self, *arguments: str) -> Result:
        return await asyncio.to_thread(invoke, "channels", *arguments, "--config", self.config)

    async def on_screen(self, *arguments: str) -> str:
        return await asyncio.to_thread(shown, "channels", *arguments, "--config", self.config)

    async def answering(self, question: str, answer: str, *arguments: str) -> tuple[int, str]:
        """The exit code, and all that a terminal shows."""

        def ask() -> tuple[int, str]:
            with at_terminal("channels", *arguments, "--config", self.config, columns=200) as session:
                session.expect(question)
                session.type(answer)
                return session.end(), session.seen

        return await asyncio.to_thread(ask)


def configured(api: Api) -> Path:
    world = api.world
    places = {"folder": world.folder, "socket": api.unix_path, "chain": world.devnet.chain_url}
    text = CONFIG.format(**places, origin=world.origin, key="cd" * 28) + ENABLED
    write_private(world.folder / "operator.token", api.tokens["operator"])
    return write_private(world.folder / "config.toml", text)


@pytest.fixture
async def desk(world: World) -> AsyncIterator[Desk]:
    merchants = {world.origin: replace(world.terms.merchants[world.origin], name="data")}
    world.terms = replace(world.terms, channels=ON, merchants=merchants)
    gone: Channel = a_channel(
        1, "https://gone.example", "closing", elapse_at_ms=1_790_000_000_000, problem="nobody answers"
    )
    opened = a_channel(2, world.origin, "open")
    async with world.run() as run:
        await run.context.write("test", lambda unit: put_channels(unit, gone, opened))
        orders = Orders(opened)
        run.agent.channels = orders  # type: ignore[assignment]
        async with served(run) as api:
            yield Desk(configured(api), orders)


async def test_a_list_says_what_is_locked_what_can_be_lost_and_when_the_rest_returns(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    head, _, first, second = (await desk.on_screen("list")).splitlines()
    assert " ".join(head.split()) == "channel merchant state locked signed claimed most lost returns"
    assert " ".join(first.split()) == f"{OPEN} data open 4 ADA 2 ADA 1 ADA 1 ADA"
    assert second.split()[:3] == [CLOSING, "https://gone.example", "closing"]
    assert second.endswith("2026-09-21 14:13:20")
    monkeypatch.setenv("COLUMNS", "100")
    narrow = await desk.on_screen()
    assert ("most lost" in narrow, "signed" in narrow) == (True, False)


async def test_a_list_comes_in_pages_and_is_json_in_a_pipe(desk: Desk) -> None:
    first = await desk.payagent("list", "--limit", "1")
    assert [one["id"] for one in first.json["channels"]] == [OPEN]
    assert f"--cursor {first.json['next']}" in (await desk.payagent("list", "--limit", "1", "--human")).err
    second = await desk.payagent("list", "--limit", "1", "--cursor", first.json["next"])
    assert [one["id"] for one in second.json["channels"]] == [CLOSING]


async def test_a_channel_is_shown_with_what_its_state_means(desk: Desk) -> None:
    text = await desk.on_screen("show", CLOSING)
    for words in ("closing: it pays no calls; what is left returns", "nobody answers", "1 ADA", "(none)"):
        assert words in text
    assert (await desk.payagent("show", "none")).problem == "not_found"


async def test_opening_says_first_what_is_locked_lost_at_most_and_how_the_rest_returns(desk: Desk) -> None:
    code, text = await desk.answering("Lock 6 ADA at data? [y/N]", "n", "open", "data")
    assert (code, desk.orders.asked) == (130, [])
    before = " ".join(text.partition("Lock 6 ADA")[0].split())
    for words in ("locks 6 ADA at data", "You can lose all of it", "The rest returns after", "(7200 s at most)"):
        assert words in before
    code, _ = await desk.answering("Lock 9 ADA at data? [y/N]", "y", "open", "data", "--amount", "9 ADA")
    assert code == 0
    ((*asked, units, key),) = desk.orders.asked
    assert (asked[:2], units, key) == (["open", "app_operator"], 9 * ADA, None)


async def test_adding_and_closing_ask_too(desk: Desk) -> None:
    code, _ = await desk.answering("Lock 2 ADA more? [y/N]", "n", "add", OPEN, "--amount", "2 ADA")
    assert (code, desk.orders.asked) == (130, [])
    code, text = await desk.answering("Close the channel? [y/N]", "y", "close", OPEN)
    assert (code, desk.orders.asked) == (0, [("close", "app_operator", OPEN, None)])
    assert "pays no more calls" in text


async def test_without_a_terminal_an_order_asks_nothing(desk: Desk) -> None:
    opened = await desk.payagent("open", "data", "--key", "k")
    assert (opened.code, opened.json["id"]) == (0, OPEN)
    assert "You can lose all of it" in opened.err
    assert (await desk.payagent("add", OPEN, "--amount", "2 ADA")).code == 0
    assert (await desk.payagent("close", OPEN)).code == 0
    assert [one["id"] for one in (await desk.payagent("recover")).json["channels"]] == [OPEN]
    names = [asked[0] for asked in desk.orders.asked]
    assert (names, desk.orders.asked[0][-1]) == (["open", "add", "close", "recover"], "k")


async def test_where_channels_are_off_the_command_names_the_setting(world: World) -> None:
    async with world.run() as run, served(run) as api:
        config = configured(api)
        result = await asyncio.to_thread(invoke, "channels", "--config", config)
    assert (result.code, result.problem) == (2, "not_found")
    assert result.error["detail"] == "channels are off (channels.enabled)"
