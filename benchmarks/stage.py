"""Where the daemon is measured: a devnet and `payagent serve` as a user starts them, each a process of its own.

May import: httpx and the standard library. Never: talks to the daemon but over HTTP.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
PAYAGENT = (sys.executable, "-m", "payagent")
PATIENCE_S = 60.0
STOP_S = 30.0
Json = dict[str, Any]

UNBOUND = {
    "PAYAGENT_API__RATE_LIMIT_PER_S": "1000000",
    "PAYAGENT_API__CONCURRENT_REQUESTS_MAX": "1000000",
    "PAYAGENT_LIMITS__PER_PAYMENT": "1000000 ADA",
    "PAYAGENT_LIMITS__PER_DAY": "10000000 ADA",
}
"""What keeps one app from taking everything is not what is measured; all of it is asked, and lets it pass."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is up: where it listens, the operator's token, the daemon's process and its log."""

    api: str
    token: str
    merchant: str
    control: str
    address: str
    pid: int
    log: Path
    folder: Path
    http: httpx.Client

    @property
    def authorization(self) -> Json:
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str) -> Json:
        answer = self.http.get(self.api + path, headers=self.authorization)
        answer.raise_for_status()
        told: Json = answer.json()
        return told


@contextmanager
def process(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A child that gets SIGTERM at the end."""
    child = subprocess.Popen(command, text=True, **options)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(STOP_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(reached: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait, and give up when that takes too long."""
    end_s = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > end_s:
            raise SystemExit(f"waited {patience_s:.0f} s in vain: {what}")
        time.sleep(0.02)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def stage(
    utxos_lovelace: Sequence[int],
    *,
    merchant: str | None = None,
    devnet_options: Sequence[str] = (),
    environ: Mapping[str, str] = UNBOUND,
    provider: Mapping[str, str] | None = None,
    tree: Path = ROOT,
) -> Iterator[Stage]:
    """A daemon that is ready to pay of these coins; `merchant` stands in for the devnet's own.

    `provider` is the table of a chain provider, with paths on the devnet for URLs. `tree` is the checkout whose
    code the daemon runs.
    """
    devnet_command = (*PAYAGENT, "devnet", "--json", *devnet_options)
    with (
        tempfile.TemporaryDirectory() as name,
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as http,
        process(devnet_command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as devnet,
    ):
        assert devnet.stdout is not None
        places, folder, log = json.loads(devnet.stdout.readline()), Path(name), Path(name) / "daemon.log"
        merchant = merchant or places["merchant"]
        env = {**os.environ, "PYTHONPATH": str(tree)}
        if provider is not None:
            place = "http://" + httpx.URL(places["chain"]).netloc.decode()
            table = {key: place + text if key.endswith("_url") else text for key, text in provider.items()}
            environ = {**environ, "PAYAGENT_CHAIN__PROVIDERS": json.dumps([table])}
        made = _initialise(folder, places["chain"], merchant, cwd=tree, env=env)
        for lovelace in utxos_lovelace:
            gift = {"address": made["address"], "lovelace": str(lovelace)}
            http.post(f"{places['control']}/faucet", json=gift).raise_for_status()
        port = free_port()
        serve = (*PAYAGENT, "serve", "--config", str(folder / "config.toml"), "--listen", f"127.0.0.1:{port}")
        with log.open("w") as told, process(serve, stderr=told, cwd=tree, env={**env, **environ}) as daemon:
            api = f"http://127.0.0.1:{port}"
            up = Stage(
                api, made["token"], merchant, places["control"], made["address"], daemon.pid, log, folder, http
            )
            until(lambda: is_open(port), "the daemon listens")
            until(lambda: http.get(f"{up.api}/readyz").is_success, "the daemon is ready")
            until(lambda: up.get("/v1/wallet")["utxos"]["available"] >= len(utxos_lovelace), "the coins are there")
            yield up


def _initialise(folder: Path, chain: str, merchant: str, **options: Any) -> Json:
    (folder / "passphrase").write_text("a passphrase for a benchmark")
    (folder / "passphrase").chmod(0o600)
    asked = ["--network", "devnet", "--chain-url", chain, "--merchant", f"t={merchant}"]
    asked += ["--passphrase-file", str(folder / "passphrase"), "--config", str(folder / "config.toml")]
    asked += ["--data-dir", str(folder / "data")]
    made = subprocess.run((*PAYAGENT, "init", "--json", *asked), capture_output=True, check=True, **options)
    told: Json = json.loads(made.stdout)
    return told
