"""Several `payagent serve` of one wallet on one PostgreSQL, each with a folder of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kit.canaries import plant
from kit.cli import until
from kit.daemon import PASSPHRASE, WORDS, Process, announced
from kit.fleet import Record
from kit.http import NO_TLS
from payagent.api.http.tokens import hash_token
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.rows import apps
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.new_keystore import create

TOKEN = plant("the token of a fleet", "a-canary-in-a-fleet")
ADDRESSES = [derive(seed_from_words(WORDS), NETWORKS["devnet"], number).address.text for number in range(3)]


@dataclass
class Member:
    """One daemon's process."""

    process: Process
    http: httpx.Client

    def ready(self) -> dict[str, Any]:
        return dict(self.http.get("/readyz").json())

    def pay(self, body: dict[str, object], key: str) -> dict[str, Any]:
        answer = self.http.post("/v1/payments", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    def leave(self) -> None:
        """Stop in order: the others take its accounts at once."""
        self.process.terminate()
        assert self.process.wait(60) == 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(60)
        if self.process.stderr is not None:
            self.process.stderr.close()


def furnish(folder: Path, devnet: DevnetThread, url: str, more: str = "", accounts: int = len(ADDRESSES)) -> Path:
    """A daemon's folder: keystore and config."""
    data = folder / "data"
    data.mkdir(mode=0o700, parents=True)
    create(data / "keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
    (folder / "passphrase").write_text(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    (folder / "config.toml").write_text(
        f'network = "devnet"\ndata_dir = "{data}"\n'
        f'[api]\nlisten = "127.0.0.1:0"\nsocket = "{folder}/s/payagent.sock"\n'
        f'[[chain.providers]]\nkind = "blockfrost"\nbase_url = "{devnet.chain_url}"\n'
        f'[keystore]\npassphrase_file = "{folder}/passphrase"\n'
        f'[merchants.t]\norigin = "{devnet.merchant_url}"\npartner = "demo"\n'
        f'[store]\nurl = "{url}"\n[wallet]\naccounts = {accounts}\n{more}'
    )
    return folder


def asked(devnet: DevnetThread, message: str) -> dict[str, object]:
    """The merchant's 402 for a request, as a client forwards it."""
    headers = {"X-Partner": "demo", "X-Wallet-Address": ADDRESSES[0]}
    answer = httpx.post(
        f"{devnet.merchant_url}/chat", json={"message": message}, headers=headers, verify=NO_TLS, trust_env=False
    )
    assert answer.status_code == 402
    return {
        "origin": devnet.merchant_url,
        "response": {"status": 402, "headers": dict(answer.headers), "body": answer.json()},
    }


@contextmanager
def member(folder: Path, module: str | None = None) -> Iterator[Member]:
    """A daemon that has announced itself. `module`: as for `kit.daemon.announced`."""
    process, port, _ = announced(folder, module=module)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers=headers, verify=NO_TLS, trust_env=False, timeout=60
    ) as http:
        one = Member(process, http)
        try:
            yield one
        finally:
            one.stop()


def add_app(url: str, folder: Path) -> None:
    """The app whose token is `TOKEN`."""
    writer, _ = open_fleet_store(
        url, folder, checkpoint=lambda _name: None, seat=Seat("test", "test", {0: Record()})
    )
    scopes = ["pay", "read", "operate", "approve"]
    writer.submit(
        "app", lambda unit: apps.add_with_token(unit, "app_fleet", "fleet", hash_token(TOKEN), scopes, 1)
    ).result()
    writer.close()


@contextmanager
def fleet_of(count: int, folder: Path, devnet: DevnetThread, url: str) -> Iterator[list[Member]]:
    """So many daemons, each ready with one account that has funds."""
    add_app(url, folder)
    control = httpx.Client(base_url=devnet.origin, verify=NO_TLS, trust_env=False)
    with ExitStack() as stack, control:
        for address in ADDRESSES[:count]:
            control.post("/devnet/faucet", json={"address": address, "lovelace": "100000000"}).raise_for_status()
        control.post("/devnet/blocks", json={"count": 1}).raise_for_status()
        members = [
            stack.enter_context(member(furnish(folder / name, devnet, url, accounts=count)))
            for name in "abc"[:count]
        ]
        until(
            lambda: all(one.ready()["ready"] and len(one.ready()["accounts"]) == 1 for one in members),
            "the daemons do not each hold an account",
        )
        yield members
