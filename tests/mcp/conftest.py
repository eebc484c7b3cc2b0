"""One devnet, one wallet that asks a person above 5 ADA, and its daemon, for the tests of a file."""

from collections.abc import AsyncIterator, Iterator

import pytest
from kit.agent import World
from kit.cli import Shop, running, until
from kit.mcp import AgentShop, raw_merchant
from kit.mcp_proxy import Market, market
from kit.proxy import Peer

from payagent.devnet.server import DevnetThread


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentShop]:
    with DevnetThread(block_time_s=1) as devnet, raw_merchant(devnet.merchant_url) as raw:
        at = Shop(devnet, tmp_path_factory.mktemp("shop"))
        with at.http:
            text = at.config.read_text().replace("[merchants.t]", "[merchants.t]\nprice_rise_percent_max = 300")
            at.config.write_text(text + '\n[approvals]\nrequired_above = "5 ADA"\n')
            for _ in range(6):
                at.control("faucet", address=at.made["address"], lovelace="100000000")
            with running(at):
                until(lambda: len(at.payagent("wallet", "utxos").json["utxos"]) == 6, "no deposit")
                yield AgentShop(at, raw)


@pytest.fixture(scope="module")
def url(shop: AgentShop) -> Iterator[str]:
    """Where a `payagent mcp --listen` serves."""
    with shop.listening() as at:
        yield at


@pytest.fixture
def usual_terms(shop: AgentShop) -> None:
    shop.at.settings(price="2000000", asset="lovelace", splits=[], batch=1, confirmations=0)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A merchant of raw sockets."""
    async with Peer().running() as peer:
        yield peer


@pytest.fixture
async def peer_market(world: World, peer: Peer) -> AsyncIterator[Market]:
    """A daemon that may pay it, and the devnet's merchant."""
    async with market(world, peer=peer.url) as there:
        yield there
