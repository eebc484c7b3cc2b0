"""The page about fleets: its commands make a second machine of the first, and a balancer sends clients to both."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kit.certificates import certificate
from kit.cli import Shop, clean_environ, invoke, spawn, until
from kit.effort import long_only
from kit.http import free_port
from kit.pages import blocks
from kit.postgresql import Server, needs_postgresql

from payagent.devnet.server import DevnetThread
from payagent.settings.loading import load_settings

PAGE = "docs/how-to/run-a-fleet.md"
NAME = "pay.example.internal"
PASSWORD = "the-databases-password"
ETC, DATA = "/etc/payagent", "/var/lib/payagent"
STORE, API = blocks("Start the first daemon", PAGE, "toml")

SSH = 'ssh() { shift; "${@//"$HERE"/"$THERE"}"; }\n'
"""Runs a command on another machine, in whose place is another folder."""

needs_haproxy = pytest.mark.skipif(
    not shutil.which("haproxy"), reason="HAProxy is missing (Debian's package haproxy)"
)


@dataclass(frozen=True)
class Machine:
    """The folder of one machine, and where its daemon listens."""

    folder: Path
    port: int

    @property
    def config(self) -> Path:
        return self.folder / "etc/config.toml"

    def mapped(self, block: str) -> str:
        return block.replace(ETC, f"{self.folder}/etc").replace(DATA, f"{self.folder}/data")

    def run(self, block: str, other: Path | None = None, curl: str = "") -> str:
        """What a block of the page prints on this machine. `ssh` reaches the one whose folder is `other`."""
        (self.folder / ".curlrc").write_text(curl)
        environ = clean_environ() | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PAYAGENT_CONFIG": str(self.config),
            "CURL_HOME": str(self.folder),
            "HERE": str(self.folder),
            "THERE": str(other),
        }
        done = subprocess.run(
            ["bash", "-ec", SSH + self.mapped(block)],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def accounts(self) -> list[dict[str, Any]]:
        return list(invoke("wallet", "--config", self.config).json["accounts"])


@contextmanager
def serving(machine: Machine) -> Iterator["subprocess.Popen[str]"]:
    with (machine.folder / "log").open("a") as log:
        process = spawn("serve", "--allow-remote", "--config", machine.config, stdout=log, stderr=log)
        try:
            until(lambda: process.poll() is not None or is_ready(machine), "the daemon is not ready")
            assert process.poll() is None, (machine.folder / "log").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(60)


def is_ready(machine: Machine) -> bool:
    status = invoke("status", "--config", machine.config)
    return status.code == 0 and status.json["ready"]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def first_machine(folder: Path, devnet: DevnetThread, postgresql: Server) -> tuple[Machine, Shop]:
    """A new wallet whose ledger is on PostgreSQL, with the page's config and its password."""
    folder.mkdir()
    shop, machine = Shop(devnet, folder), Machine(folder, free_port())
    database = postgresql.new_database()
    moved = shop.payagent("store", "copy", "--to", postgresql.tcp_url(database))
    assert moved.code == 0, moved.err
    url = postgresql.url_with_password(database, PASSWORD)
    (folder / "data/ledger.db").rename(folder / "ledger.db")
    (folder / "etc").mkdir(mode=0o700)
    (folder / "etc/database-password").write_text(PASSWORD)
    (folder / "etc/database-password").chmod(0o600)
    public, private = certificate(folder, NAME)
    shutil.copy(public, folder / "etc/api-ca.pem")
    public.rename(folder / "etc/api-chain.pem")
    private.rename(folder / "etc/api-key.pem")
    api = f'{API}socket = "{folder}/s/payagent.sock"\n'.replace("0.0.0.0:8402", f"127.0.0.1:{machine.port}")
    store = re.sub('^url = ".*"', f'url = "{url}"', STORE, flags=re.MULTILINE).replace("synchronous = true\n", "")
    made = re.sub(r"^\[api\]\n(.+\n)*", api, shop.config.read_text(), flags=re.MULTILINE)
    machine.config.write_text(machine.mapped(f"{made}\n{store}"))
    return machine, shop


def second_machine(first: Machine) -> Machine:
    """The page's copy of the first."""
    machine = Machine(first.folder.with_name("bee"), free_port())
    (copy,) = blocks("Add a daemon", PAGE)
    first.run(copy, other=machine.folder)
    here = machine.config.read_text().replace(str(first.folder), str(machine.folder))
    here = here.replace(f"{machine.folder}/passphrase", f"{first.folder}/passphrase")
    machine.config.write_text(here.replace(f":{first.port}", f":{machine.port}"))
    return machine


@contextmanager
def balancer(*machines: Machine) -> Iterator[int]:
    """HAProxy with the page's config, and its port."""
    (config,) = blocks("Put a load balancer before them", PAGE, "text")[:1]
    port, folder = free_port(), machines[0].folder
    config = config.replace("bind :8402", f"bind 127.0.0.1:{port}").replace(
        "/etc/haproxy/payagent-ca.pem", f"{folder}/etc/api-ca.pem"
    )
    for name, machine in zip("ab", machines, strict=True):
        config = config.replace(f"{name}.example:8402", f"127.0.0.1:{machine.port}")
    config = config.replace("  server c c.example:8402\n", "")
    (folder / "haproxy.cfg").write_text(config)
    with subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]) as process:
        try:
            until(lambda: is_open(port), "the balancer does not listen")
            yield port
        finally:
            process.terminate()


def asked(port: int, machine: Machine, body: dict[str, object]) -> httpx.Response:
    """What a client gets from the balancer for one purchase."""
    token = (machine.folder / "data/operator.token").read_text().strip()
    headers = {"Host": NAME, "Authorization": f"Bearer {token}", "Idempotency-Key": "once"}
    trust = ssl.create_default_context(cafile=machine.folder / "etc/api-ca.pem")
    url = f"https://127.0.0.1:{port}/v1/payments"
    return httpx.post(url, json=body, headers=headers, verify=trust, trust_env=False, timeout=60)


def test_the_config_of_the_page_is_valid(tmp_path: Path) -> None:
    provider = '[[chain.providers]]\nkind = "blockfrost"\nbase_url = "https://provider.example/api/v0"\n'
    config = tmp_path / "config.toml"
    config.write_text(f'network = "preprod"\ndata_dir = "{tmp_path}"\n{provider}{STORE}{API}')
    settings = load_settings(config, {"HOME": str(tmp_path)})
    assert (settings.store.synchronous, settings.wallet.accounts) == (True, 3)
    assert settings.api.allowed_hosts == {NAME}
    for section in ("Set up PostgreSQL", "Run it on Kubernetes"):
        assert [yaml.safe_load(block) for block in blocks(section, PAGE, "yaml")]


@long_only
@needs_postgresql
@needs_haproxy
def test_the_pages_commands_make_a_fleet_in_which_one_machine_may_stop(tmp_path: Path, postgresql: Server) -> None:
    with DevnetThread(block_time_s=1) as devnet:
        first, shop = first_machine(tmp_path / "ay", devnet, postgresql)
        with closing(shop.http), serving(first) as process:
            first.run(blocks("Start the first daemon", PAGE)[0])
            for row in first.accounts():
                shop.control("faucet", address=row["address"], lovelace="100000000")
            second = second_machine(first)
            with serving(second), balancer(first, second) as port:
                until(lambda: len({row["holder"] for row in second.accounts()}) == 2, "nothing is shared out")
                body = {"origin": devnet.merchant_url, "response": response(shop)}
                until(lambda: asked(port, first, body).status_code in (200, 201), "nothing is paid")
                before = asked(port, first, body).json()

                (ask,) = blocks("Put a load balancer before them", PAGE)
                connect = f"connect-to = {NAME}:8402:127.0.0.1:{port}"

                def held() -> int:
                    """How many accounts the daemon holds that answers."""
                    return len(json.loads(second.run(ask, curl=connect))["accounts"])

                until(lambda: {held(), held()} == {1, 2}, "the balancer does not send clients to both")
                process.terminate()
                assert process.wait(60) == 0
                until(lambda: held() == 3, "the accounts are not taken")
                after = asked(port, first, body)
                assert (after.status_code, after.json()["id"]) == (200, before["id"])
                until(lambda: asked(port, first, body).json()["state"] == "confirmed", "it is not confirmed")
        second.config.write_text(second.config.read_text().replace("accounts = 3", "accounts = 4"))
        with serving(second):
            assert [row["account"] for row in second.accounts()] == [0, 1, 2, 3]


def response(shop: Shop) -> dict[str, object]:
    """The merchant's 402, as a client forwards it."""
    answer = shop.call("once")
    return {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.json()}
