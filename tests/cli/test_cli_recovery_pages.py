"""The pages about a move, a lost passphrase and a lost ledger: their commands, and what they make."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.canaries import plant
from kit.cli import Result, Shop, clean_environ, running, spawn, until, write_private
from kit.effort import long_only
from kit.pages import blocks

from payagent.devnet.server import DevnetThread
from payagent.wallet.keystore import open_keystore

FUNDS_LOVELACE = 100_000_000
NEW_PASSPHRASE = plant("the passphrase after a loss", "canary-that-replaces-a-lost-one")
PAGE = "docs/how-to/restore-and-recover.md"
SERVICE, AGAIN = "/var/lib/payagent", "~/payagent-again"


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A wallet that has paid, and whose daemon has stopped."""
    with DevnetThread(block_time_s=1) as devnet:
        shop = Shop(devnet, tmp_path_factory.mktemp("paid"))
        with closing(shop.http):
            for _ in range(2):
                shop.control("faucet", address=shop.made["address"], lovelace=str(FUNDS_LOVELACE))
            with running(shop):
                paid = pay(shop, "before")
                assert paid.code == 0, paid.err
                until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
            yield shop


def pay(shop: Shop, message: str) -> Result:
    until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
    return shop.payagent("pay", shop.saved(message), "--merchant", "t")


def on(shop: Shop, data_dir: Path) -> Shop:
    """The same wallet in another data folder."""
    moved = copy.copy(shop)
    moved.config, moved.data_dir = shop.config_of(data_dir), data_dir
    return moved


def refusal(shop: Shop) -> str:
    """The code with which a daemon refuses to start."""
    with spawn("serve", "--config", shop.config, stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=300)
    return str(json.loads(err.splitlines()[-1])["code"])


def run(block: str, shop: Shop, folder: Path, places: dict[str, str]) -> str:
    """Run a block of a page in a folder, with other places for those it names."""
    for place, here in places.items():
        assert place in block
        block = block.replace(place, here)
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
    }
    done = subprocess.run(
        ["bash", "-ec", block], cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_of_words(block: str, shop: Shop, folder: Path) -> None:
    """Run the block that makes a wallet of the words in `words.txt`."""
    words = write_private(folder / "words.txt", shop.words)
    chain = "https://cardano-preprod.blockfrost.io/api/v0"  # replaced first: it holds the network's name
    made = run(
        block, shop, folder, {chain: shop.devnet.chain_url, "preprod": "devnet", AGAIN: str(folder / "again")}
    )
    words.unlink()
    assert json.loads(made)["address"] == shop.made["address"]


@long_only
def test_a_moved_wallet_pays_at_once_and_the_old_folder_starts_no_daemon(paid: Shop, tmp_path: Path) -> None:
    old, new = on(paid, tmp_path / "old"), on(paid, tmp_path / "new")
    shutil.copytree(paid.data_dir, old.data_dir)
    page = "docs/how-to/move-to-another-machine.md"
    _stop, pack, unpack, check = blocks("Move payagent to another machine", page)
    run(pack, old, tmp_path, {SERVICE: str(old.data_dir)})
    run(unpack, new, tmp_path, {SERVICE: str(new.data_dir)})
    assert (tmp_path / "payagent-data.tar").stat().st_mode & 0o777 == 0o600
    (tmp_path / "payagent-data.tar").unlink()
    with running(new):
        sent = pay(new, "after the move")
        assert sent.code == 0, sent.err
        assert len(new.payments()) == 2
        run(check, new, tmp_path, {})
    assert refusal(old) == "config_invalid"


def test_the_words_make_the_same_keystore_under_a_new_passphrase(closed_shop: Shop, tmp_path: Path) -> None:
    shop = on(closed_shop, tmp_path / "data")
    shutil.copytree(closed_shop.data_dir, shop.data_dir)
    before = files(shop.data_dir)
    _read, make, put, _send = blocks("Recover from a lost passphrase", PAGE)
    write_private(tmp_path / "new-passphrase", NEW_PASSPHRASE)
    make_of_words(make, shop, tmp_path)
    run(put, shop, tmp_path, {"~/payagent/": f"{tmp_path}/", AGAIN: str(tmp_path / "again")})
    assert open_keystore(shop.data_dir / "keystore.json", NEW_PASSPHRASE).words == shop.words
    after = files(shop.data_dir)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"keystore.json"}


def test_the_words_make_a_new_ledger_for_the_same_address(closed_shop: Shop, tmp_path: Path) -> None:
    shutil.copy(closed_shop.folder / "passphrase", tmp_path / "passphrase")
    (make,) = blocks("Recover from a lost ledger", PAGE)
    make_of_words(make, closed_shop, tmp_path)
    assert {"ledger.db", "keystore.json", "operator.token"} <= files(tmp_path / "again/data").keys()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
