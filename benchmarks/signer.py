"""What the signer's process costs: to start, and for each signature, beside the same key in this process.

Run `python benchmarks/signer.py`; it prints medians, and 90 and 99 of 100, in microseconds. A payment with two
shares and change; a keystore of the least scrypt cost, so that the start is that of the process.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.core.network import NETWORKS
from payagent.secretfile import SecretFile
from payagent.signer.handle import SignerProcess, unlocked
from payagent.signer.policy import Policy, clocks_of
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.creation import create
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.transaction import select

WORDS, NETWORK = "abandon " * 23 + "art", NETWORKS["preprod"]
ADA, TIMES, ROUNDS = 1_000_000, 3_000, 3
CAPS, DAY_CAPS = {LOVELACE: 20 * ADA}, {LOVELACE: 40 * ADA}


def measure(name: str, what: Callable[[], object]) -> None:
    taken_us = []
    for _ in range(TIMES):
        begin_ns = time.perf_counter_ns()
        what()
        taken_us.append((time.perf_counter_ns() - begin_ns) / 1000)
    show(name, taken_us)


async def measure_in_a_loop(signer: SignerProcess, body: bytes, paid: int) -> None:
    """As the daemon asks, whose loop goes on meanwhile."""
    signer.watch(lambda: None)
    taken_us = []
    for _ in range(TIMES):
        begin_ns = time.perf_counter_ns()
        await signer.signature(body, paid)
        taken_us.append((time.perf_counter_ns() - begin_ns) / 1000)
    show("the same, from a loop", taken_us)
    signer.unwatch()


def show(name: str, taken_us: list[float]) -> None:
    taken_us.sort()
    print(f"{name:24}" + "".join(f"{taken_us[len(taken_us) * part // 100]:10.1f}" for part in (50, 90, 99)))


def main() -> None:
    here = derive(seed_from_words(WORDS), NETWORK)
    payees = [encode_address(b"\x60" + bytes([n]) * 28) for n in range(3)]
    outputs = [Output("pay_to" if n == 0 else "split", to, LOVELACE, 2 * ADA) for n, to in enumerate(payees)]
    coin = Coin("ab" * 32, 0, 100 * ADA)
    plan = select(Coins([coin]), outputs, change=here.address, ttl_slot=4_000_000, network_id=0)
    clocks = clocks_of(None, time.monotonic, time.time)
    policy = Policy(here.address.raw, CAPS, DAY_CAPS, clocks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create(folder / "keystore.json", WORDS, "a passphrase", NETWORK, scrypt_n=16)
        (folder / "passphrase").touch(mode=0o600)
        (folder / "passphrase").write_text("a passphrase")
        begin_s = time.perf_counter()
        source = SecretFile(folder / "passphrase", private=True)
        with unlocked(folder / "keystore.json", source, NETWORK, 0, CAPS, DAY_CAPS) as (_, signer, _missing):
            print(f"start: {(time.perf_counter() - begin_s) * 1000:.0f} ms\n")
            print(f"{'microseconds':24}{'50 %':>10}{'90 %':>10}{'99 %':>10}")
            for _ in range(ROUNDS):
                measure("in this process", lambda: here.signer.sign(plan.body, plan.paid))
                measure("the policy alone", lambda: policy.admit(plan.body, plan.paid))
                measure("by the signer's process", lambda: signer.sign(plan.body, plan.paid))
            asyncio.run(measure_in_a_loop(signer, plan.body, plan.paid))


if __name__ == "__main__":
    main()
