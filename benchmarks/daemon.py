"""A payment through the whole daemon over HTTP, received to durable; its memory; how fast the command starts.

    python benchmarks/daemon.py [payments]

Starts devnet and daemon as a user does, in a temporary folder. Not a test: it prints, and nothing is asserted.
"""

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PAYAGENT = [sys.executable, "-m", "payagent"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command of ours with the first line that it prints."""
    process = subprocess.Popen(
        [*PAYAGENT, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline() if "--json" in arguments else ""
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def memory_mb(pid: int, name: str) -> float:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1000


def spread(name: str, ms: list[float]) -> None:
    ordered = sorted(ms)
    print(f"{name}: median {statistics.median(ms):.2f} ms, p95 {ordered[int(len(ms) * 0.95)]:.2f} ms, n {len(ms)}")


def help_ms() -> float:
    start = time.perf_counter()
    subprocess.run([*PAYAGENT, "--help"], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1e3


def main(count: int) -> None:
    spread("payagent --help", [help_ms() for _ in range(10)])
    with tempfile.TemporaryDirectory() as name, running("devnet", "--block-time", "1", "--json") as (_, line):
        folder, urls, http = Path(name), json.loads(line), httpx.Client(trust_env=False, timeout=30)
        (folder / "passphrase").write_text("a passphrase for a benchmark")
        (folder / "passphrase").chmod(0o600)
        options = ["--network", "devnet", "--chain-url", urls["chain"], "--merchant", f"t={urls['merchant']}"]
        options += ["--passphrase-file", str(folder / "passphrase"), "--config", str(folder / "config.toml")]
        made = subprocess.run(
            [*PAYAGENT, "init", "--json", *options, "--data-dir", str(folder / "data")],
            capture_output=True,
            check=True,
        )
        wallet = json.loads(made.stdout)
        for _ in range(count):
            http.post(f"{urls['control']}/faucet", json={"address": wallet["address"], "lovelace": "20000000"})
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        with running("serve", "--config", str(folder / "config.toml"), "--listen", address) as (
            daemon,
            _,
        ):
            api = httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=60)
            api.headers["Authorization"] = f"Bearer {wallet['token']}"
            wait_for_coins(api, count)
            measure(api, http, urls["merchant"], count)
            print(
                f"daemon: {memory_mb(daemon.pid, 'VmRSS'):.0f} MB, at most {memory_mb(daemon.pid, 'VmHWM'):.0f} MB"
            )


def wait_for_coins(api: httpx.Client, count: int) -> None:
    while True:
        try:
            if api.get("/v1/wallet").json()["coins"]["free"] >= count:
                return
        except (httpx.TransportError, KeyError):
            pass
        time.sleep(0.1)


def measure(api: httpx.Client, http: httpx.Client, merchant: str, count: int) -> None:
    asks = []
    for number in range(count):
        answer = http.post(f"{merchant}/chat", json={"message": f"call {number}"})
        response = {"status": 402, "headers": {"content-type": "application/json"}, "body": answer.json()}
        asks.append((f"bench-{number}", {"origin": merchant, "response": response}))
    first, again = [], []
    for expected, times in ((201, first), (200, again)):
        for key, ask in asks:
            start = time.perf_counter()
            answer = api.post("/v1/payments", json=ask, headers={"Idempotency-Key": key})
            times.append((time.perf_counter() - start) * 1e3)
            assert answer.status_code == expected, answer.text
    spread("payment, received to durable and answered", first)
    spread("the same again", again)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
