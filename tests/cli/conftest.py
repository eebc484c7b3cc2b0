"""One devnet, one wallet and one daemon for the tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli import TOKEN, Shop, running, until

from payagent.devnet.server import DevnetThread

FUNDS_LOVELACE = 100_000_000
UTXOS = 5


@pytest.fixture(scope="module")
def closed_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A wallet whose daemon does not run."""
    folder: Path = tmp_path_factory.mktemp("shop")
    with DevnetThread(block_time_s=1) as devnet:
        shop = Shop(devnet, folder)
        with shop.http:
            yield shop


@pytest.fixture(scope="module")
def shop(closed_shop: Shop) -> Iterator[Shop]:
    """A wallet of 500 ADA and 1000 tokens, and its daemon."""
    address = closed_shop.made["address"]
    for _ in range(UTXOS):
        closed_shop.control("faucet", address=address, lovelace=str(FUNDS_LOVELACE))
    closed_shop.control("faucet", address=address, lovelace="5000000", assets={TOKEN: "1000"})
    with running(closed_shop):
        until(lambda: len(closed_shop.payagent("wallet", "utxos").json["utxos"]) == UTXOS + 1, "no deposit")
        yield closed_shop
