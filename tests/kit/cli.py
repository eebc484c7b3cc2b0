"""The command as a user runs it: a devnet, a folder made by `payagent init`, and the daemon as a process."""

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from kit.agent import take_only_hashes
from kit.canaries import plant
from kit.forks import Forked, Process
from kit.http import NO_TLS
from payagent.cli import run
from payagent.cli.daemon_client import OperatorClient
from payagent.cli.terminal import Terminal
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused, name_of
from payagent.devnet.server import DevnetThread
from payagent.settings.config_file import DaemonPaths
from payagent.wallet.new_keystore import create

PASSPHRASE = plant("the passphrase", "canary-passphrase-of-the-cli")
TOKEN = "5c" * 28 + "636c69"
PATIENCE_S = 180.0

_ADDED = """
[api]
listen = "127.0.0.1:0"
socket = "{socket}"

[[limits.assets]]
asset = "{token}"
decimals = 0
name = "COIN"
per_payment = "1000"
per_day = "5000"
"""


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The last line of stderr, as a program reads it."""
        return json.loads(self.err.splitlines()[-1])

    @property
    def problem(self) -> str | None:
        """The code of the error, and its reason."""
        return name_of(self.error["code"], self.error.get("reason"))


def invoke(*arguments: str | Path) -> Result:
    """Run a command in this process, with pipes for streams."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    try:
        code = run([str(argument) for argument in arguments], Terminal(io.StringIO(), out, err))
    finally:  # `serve` and `proxy` configure the log of the whole process
        logger.handlers[:] = handlers
        logger.setLevel(level)
        structlog.reset_defaults()
    out.flush()
    return Result(code, out.buffer.getvalue().decode(), err.getvalue())


def checks(config: Path) -> dict[str, Any]:
    """The doctor's results for this config, by check."""
    return {check["name"]: check for check in invoke("doctor", "--config", config).json["checks"]}


def spawn(
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    under: tuple[str, ...] = (),
    **options: Any,
) -> subprocess.Popen[str]:
    """Run a command as a process. `environ` is added to ours; `under` is a shell that starts it.

    Ctrl-C reaches it even if the tests run in the background with SIGINT ignored.
    """
    start = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "runpy.run_module('payagent', run_name='__main__', alter_sys=True)"
    command = [*under, sys.executable, "-c", start, *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=clean_environ() | dict(environ or {}), **options)


def clean_environ() -> dict[str, str]:
    """This process's environment without variables that would reach another payagent."""
    return {n: v for n, v in os.environ.items() if not n.startswith("PAYAGENT_") and n != "XDG_RUNTIME_DIR"}


def until(reached: Callable[[], object], what: str, every_s: float = 0.1) -> None:
    """Wait until the condition holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end_s, what
        time.sleep(every_s)


def write_private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def make_cheap(keystore: Path, words: str) -> None:
    """Encrypt the words of a devnet's keystore anew, so that opening it takes no processor time."""
    keystore.unlink()
    create(keystore, words, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)


class Shop:
    """A devnet with its merchant, a wallet made by `init`, and the daemon when it runs."""

    def __init__(self, devnet: DevnetThread, folder: Path) -> None:
        self.devnet = devnet
        self.folder = folder
        self.config = folder / "config.toml"
        self.data_dir = folder / "data"
        self.http = httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE_S)
        made = invoke(*self.init_arguments())
        assert made.code == 0, made.err
        self.made = made.json
        plant("the operator token", self.made["token"])
        words = self.data_dir / "recovery-words.txt"
        self.words = plant("the recovery words", words.read_text().strip())
        words.unlink()
        make_cheap(self.data_dir / "keystore.json", self.words)
        with self.config.open("a") as config:
            config.write(_ADDED.format(socket=folder / "s", token=TOKEN))
        take_only_hashes(devnet)

    def init_arguments(self) -> list[str | Path]:
        passphrase = write_private(self.folder / "passphrase", PASSPHRASE + "\n")
        return [
            *("init", "--json", "--network", "devnet", "--chain-url", self.devnet.chain_url),
            *("--merchant", f"t={self.devnet.merchant_url}", "--partner", "t=demo"),
            *("--passphrase-file", passphrase, "--config", self.config, "--data-dir", self.data_dir),
        ]

    def payagent(self, *arguments: str | Path) -> Result:
        """A command on this wallet's config."""
        return invoke(*arguments, "--config", self.config)

    def config_of(self, data_dir: Path) -> Path:
        """A config like this one with another data folder, beside this one."""
        config = self.folder / f"of-{data_dir.name}.toml"
        config.write_text(self.config.read_text().replace(str(self.data_dir), str(data_dir)))
        return config

    def control(self, path: str, **body: object) -> None:
        self.http.post(f"{self.devnet.origin}/devnet/{path}", json=body).raise_for_status()

    def settings(self, **settings: object) -> None:
        self.http.post(f"{self.devnet.merchant_url}/merchant/settings", json=settings).raise_for_status()

    def call(self, message: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        sent = {"X-Partner": "demo", "X-Wallet-Address": self.made["address"], **(headers or {})}
        return self.http.post(f"{self.devnet.merchant_url}/chat", json={"message": message}, headers=sent)

    def saved(self, message: str, name: str = "invoice.json") -> Path:
        """The body of a 402, as `curl -o` saves it."""
        answer = self.call(message)
        assert answer.status_code == 402, answer.text
        path = self.folder / name
        path.write_bytes(answer.content)
        return path

    def held(self) -> list[str]:
        return [row["held"] for row in self.payagent("wallet").json["assets"]]

    def payments(self) -> list[dict[str, Any]]:
        return list(self.payagent("payments").json["payments"])


@contextmanager
def running(shop: Shop, *more: str, under: tuple[str, ...] = ()) -> Iterator[Process]:
    """The daemon, ready; its log is beside the config. Forked, unless a shell starts it (`under`)."""
    command = ("serve", "--config", str(shop.config), *more)
    with (shop.folder / "daemon.log").open("a") as log:
        process: Process = (
            spawn(*command, under=under, stdout=log, stderr=log)
            if under
            else Forked(*command, environ=clean_environ(), log=log)
        )
        try:
            until(lambda: _is_ready(shop, process), "the daemon is not ready")
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _is_ready(shop: Shop, process: Process) -> bool:
    assert process.poll() is None, (shop.folder / "daemon.log").read_text()
    return bool(readiness(shop.folder / "s").get("ready"))


def readiness(socket: Path) -> dict[str, Any]:
    """The answer of a daemon's /readyz. Empty while none answers."""
    try:
        return OperatorClient(DaemonPaths(socket, socket.parent), None).readiness()
    except Refused:
        return {}
