"""One devnet, one wallet that asks a person above 5 ADA, its daemon, and one browser, for the tests of a file."""

from collections.abc import Iterator

import pytest
from kit.browser import chromium
from kit.channel_rows import ENABLED, put_void
from kit.cli import Shop, until
from kit.dashboard import running_daemon
from playwright.sync_api import Browser

from payagent.devnet.server import DevnetThread

HOSTILE = f"<script>window.isHacked=1</script> {'x' * 400}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with DevnetThread(block_time_s=1) as devnet:
        at = Shop(devnet, tmp_path_factory.mktemp("shop"))
        with at.http:
            at.config.write_text(at.config.read_text() + '\n[approvals]\nrequired_above = "5 ADA"\n' + ENABLED)
            put_void(at.data_dir, f"https://{'long.' * 12}example", HOSTILE)
            for _ in range(6):
                at.control("faucet", address=at.made["address"], lovelace="100000000")
            with running_daemon(at):
                until(lambda: len(at.payagent("wallet", "utxos").json["utxos"]) == 6, "no deposit")
                yield at


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def usual_terms(shop: Shop) -> None:
    shop.settings(price="2000000", splits=[], batch=1, confirmations=0)
