"""How soon `payagent serve` is there when many payments are open, and how much memory it and its signer take.

Each daemon has a devnet of its own, on whose chain the coins of all open payments really are; none of their
transactions is on it, so that the daemon has to look for each and to send each again. It is open when its API
answers what the wallet has, which needs the ledger; the first pass over the chain is done when it is ready to pay.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import ledgers
from benchmarks.measure import memory_mb
from benchmarks.results import Cell, Options, Part, Table
from payagent.agent.base.ports import SystemRandomness
from payagent.api.http.tokens import hash_token, new_token
from payagent.devnet.server import Devnet, DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps

PAYAGENT = [sys.executable, "-m", "payagent"]
WORDS = "abandon " * 23 + "art"
BLOCK_TIME_S = 20
DEPOSITS_PER_BLOCK = 500
OPEN_S, PASS_S, REST_S = 120.0, 1_200.0, 5.0
"""How long is waited for a daemon to open, for its first pass, and for it to come to rest."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start. `first_pass_s` is None when the first pass was not done in `PASS_S`."""

    payments: int
    opened_s: float
    opened_mb: float
    first_pass_s: float | None
    peak_mb: float
    rest_mb: float
    signer_mb: float


def measure(options: Options) -> Part:
    starts = [start(count) for count in options.pick((0, 1_000), (0, 1_000, 10_000, 100_000))]
    return as_part(starts)


def as_part(starts: list[Start]) -> Part:
    idle = starts[0]
    columns = ("open payments", "open after s", "MB then", "first pass done after s", "MB at most", "signer MB")
    rows: list[tuple[Cell, ...]] = [
        (s.payments, s.opened_s, s.opened_mb, s.first_pass_s, s.peak_mb, s.signer_mb) for s in starts
    ]
    return Part(
        "starting",
        "Start-up and memory",
        how="`payagent serve` with a ledger of payments in flight, from the start of the process until "
        "`/v1/wallet` answers, and until `/readyz` does, which waits for the first pass over the chain. The "
        f"devnet makes a block every {BLOCK_TIME_S} s and knows none of the transactions.",
        tables=[
            Table("Start-up by open payments", columns, rows),
            Table("Memory at rest", ("process", "MB"), [("daemon", idle.rest_mb), ("signer", idle.signer_mb)]),
        ],
        left_out="A provider that bears ten calls a second needs as many seconds for the first pass as there are "
        "open payments, divided by ten.",
    )


def start(count: int) -> Start:
    with ledgers.folder() as folder, DevnetThread(block_time_s=BLOCK_TIME_S) as devnet:
        refs = devnet.run(lambda one: deposited(one, count))
        token = prepare(folder, devnet.chain_url, ledgers.in_flight(refs))
        began_s = time.perf_counter()
        with daemon(folder) as (process, url), httpx.Client(base_url=url, trust_env=False, timeout=PASS_S) as http:
            authorization = {"Authorization": f"Bearer {token}"}

            def seconds_until(path: str, most_s: float) -> float | None:
                found = until(lambda: answers(http, path, authorization, process), most_s)
                return round(time.perf_counter() - began_s, 2) if found else None

            opened_s = seconds_until("/v1/wallet", OPEN_S)
            opened_mb = memory_mb(process.pid)
            first_pass_s = seconds_until("/readyz", PASS_S)
            time.sleep(REST_S)
            return Start(
                count,
                float("inf") if opened_s is None else opened_s,
                opened_mb,
                first_pass_s,
                memory_mb(process.pid, "VmHWM"),
                memory_mb(process.pid),
                memory_mb(child_of(process.pid)),
            )


def deposited(devnet: Devnet, count: int) -> list[tuple[str, int]]:
    """Coins of the wallet on the chain for so many payments that are to be open, the same each time. And one more,
    which is free."""
    names = ledgers.maker()
    own, lovelace, node = names["OWN"].raw, names["CHAIN_LOVELACE"], devnet.node
    refs = []
    for number in range(count // names["CHAIN_DEPTH"]):
        refs.append((node.faucet(own, lovelace, {}), 0))
        if number % DEPOSITS_PER_BLOCK == 0:
            node.make_blocks(1)
    node.faucet(own, lovelace, {})
    node.make_blocks(2)
    return refs


def prepare(folder: Path, chain_url: str, ledger: Path) -> str:
    """What `payagent init` makes, with that ledger instead of an empty one; a token for the API."""
    for name, text in (("passphrase", "a passphrase for a benchmark"), ("words", WORDS)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    options = ["--network", "devnet", "--chain-url", chain_url, "--restore", str(folder / "words")]
    options += ["--passphrase-file", str(folder / "passphrase"), "--config", str(folder / "config.toml")]
    options += ["--merchant", "t=http://127.0.0.1:9", "--data-dir", str(folder / "data")]
    subprocess.run([*PAYAGENT, "init", "--json", *options], check=True, stdout=subprocess.DEVNULL)
    for left in (folder / "data").glob("ledger.db*"):
        left.unlink()
    shutil.copyfile(ledger, folder / "data" / "ledger.db")
    token = new_token(SystemRandomness())
    writer = Writer(folder / "data" / "ledger.db")
    try:
        scopes = ("pay", "read", "operate")
        job = lambda unit: apps.add_with_token(unit, "app_bench", "bench", hash_token(token), scopes, 1)  # noqa: E731
        writer.submit("app", job).result()
    finally:
        writer.close()
    return token


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`payagent serve` in a process of its own, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [*PAYAGENT, "serve", "--config", str(folder / "config.toml"), "--listen", address]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    try:
        yield process, f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def answers(http: httpx.Client, path: str, headers: dict[str, str], process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the daemon ended with exit code {process.returncode}")
    with suppress(httpx.TransportError):
        return http.get(path, headers=headers).is_success
    return False


def until(reached: Callable[[], bool], most_s: float) -> bool:
    end_s = time.perf_counter() + most_s
    while not reached():
        if time.perf_counter() > end_s:
            return False
        time.sleep(0.02)
    return True


def child_of(pid: int) -> int:
    """The signer's process: the only one that a daemon starts."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(children[0])
