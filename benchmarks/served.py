"""How long a paid call takes until it is served: by `ready`, or by the kind of chain provider, on a slow devnet.

Start reading at `main`. Each pair of a setting and a number of confirmations has a devnet with 20 s blocks and a
daemon of its own, all at the same time. Calls go through the proxy. `python -m benchmarks.served`, also with
`--kinds`, prints the tables for docs/explanation/performance.md.
May import: httpx, benchmarks.stage, the standard library. Never: talks to the daemon but over HTTP.
"""

import argparse
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import product

import httpx

from benchmarks.stage import PATIENCE_S, UNBOUND, Stage, stage

BLOCK_S = 20
CONFIRM_DEPTH = 3
CONFIRMATIONS = (0, 1, 3)
READY = ("auto", "confirmed")
KINDS: Mapping[str, Mapping[str, str]] = {
    "blockfrost": {"base_url": "/api/v0"},
    "koios": {"base_url": "/koios/api/v1"},
    "ogmios-kupo": {"base_url": "/ogmios", "index_url": "/kupo"},
}
"""Where the devnet has each kind of chain provider."""
POLL_S = 0.05
PAUSES_S = (3.0, 13.0, 8.0, 17.0, 1.0)
"""Before each call: calls begin at several moments between two blocks."""


@dataclass(frozen=True, slots=True)
class Call:
    """Seconds until the answer: from the call on, and from the moment on at which the merchant would accept."""

    served_s: float
    late_s: float


@contextmanager
def heights(up: Stage) -> Iterator[dict[int, float]]:
    """When each block was first there, by its height (POSIX seconds), as long as it is open."""
    seen: dict[int, float] = {}
    is_over = threading.Event()

    def watch() -> None:
        with httpx.Client(trust_env=False, timeout=PATIENCE_S) as http:
            while not is_over.wait(POLL_S):
                height = http.get(f"{up.control}/state").json()["tip"]["height"]
                seen.setdefault(height, time.time())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def one_call(up: Stage, message: str, confirmations: int, seen: dict[int, float]) -> Call:
    """Make a call through the proxy, and compare its answer's moment with the chain's."""
    headers = {"X-Payagent-Token": up.token}
    with httpx.Client(trust_env=False, timeout=600) as http:
        began_s = time.time()
        answer = http.post(f"{up.api}/proxy/t/chat", json={"message": message}, headers=headers)
        ended_s = time.time()
    answer.raise_for_status()
    payment_id = answer.headers["x-payagent-payment"]
    while (payment := up.get(f"/v1/payments/{payment_id}"))["block"] is None:
        time.sleep(POLL_S)
    if confirmations:
        accepts_s = seen[payment["block"]["height"] + confirmations - 1]
    else:
        (sent, *_) = [row["at"] for row in payment["history"] if row["event"] == "provider_accepted"]
        accepts_s = datetime.fromisoformat(sent).timestamp()
    return Call(ended_s - began_s, ended_s - accepts_s)


def calls(kind: str, ready: str, confirmations: int, count: int) -> list[Call]:
    """So many calls, one after the other, on a devnet and a daemon of their own."""
    environ = UNBOUND | {
        "PAYAGENT_PAYMENTS__CONFIRM_DEPTH": str(CONFIRM_DEPTH),
        "PAYAGENT_MERCHANTS__T__READY": ready,
    }
    options = ("--block-time", str(BLOCK_S))
    provider = {"kind": kind, **KINDS[kind]}
    coins = [100_000_000] * count
    with stage(coins, devnet_options=options, environ=environ, provider=provider) as up, heights(up) as seen:
        settings = {"confirmations": confirmations}
        up.http.post(f"{up.merchant}/merchant/settings", json=settings).raise_for_status()
        made = []
        for number in range(count):
            time.sleep(PAUSES_S[number % len(PAUSES_S)])
            made.append(one_call(up, f"call {number}", confirmations, seen))
        return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=5, help="calls of each pair")
    parser.add_argument("--kinds", action="store_true", help="compare the kinds of chain providers")
    chosen = parser.parse_args()
    kinds, ready = (KINDS, READY[:1]) if chosen.kinds else (("blockfrost",), READY)
    rows = list(product(CONFIRMATIONS, kinds, ready))
    with ThreadPoolExecutor(len(rows)) as pool:
        made = list(pool.map(lambda row: calls(row[1], row[2], row[0], chosen.calls), rows))
    print("| merchant needs | provider | ready | call to served | after the merchant would accept |")
    print("|---|---|---|---|---|")
    for (confirmations, kind, how), done in zip(rows, made, strict=True):
        served = ", ".join(f"{call.served_s:.1f}" for call in done)
        late = ", ".join(f"{call.late_s:.1f}" for call in done)
        print(f"| {confirmations} confirmations | {kind} | {how} | {served} s | {late} s |")


if __name__ == "__main__":
    main()
