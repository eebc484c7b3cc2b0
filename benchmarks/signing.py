"""What a signature by the signer's process costs above one by the same key in this process; and the start of it.

May import: payagent's signer and wallet. The keystore is of the least scrypt cost, so that the start is that of
the process.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Spread
from benchmarks.results import Cell, Options, Part, Table
from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.core.network import NETWORKS
from payagent.secret_file import SecretFile
from payagent.signer.client import SignerProcess, unlocked
from payagent.signer.policy import Policy, clocks_of
from payagent.wallet.keys import Account, derive, seed_from_words
from payagent.wallet.new_keystore import create
from payagent.wallet.transaction import TxPlan, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex

WORDS, NETWORK = "abandon " * 23 + "art", NETWORKS["preprod"]
PASSPHRASE = "a passphrase"
ADA = 1_000_000
CAPS, DAY_CAPS = {LOVELACE: 20 * ADA}, {LOVELACE: 40 * ADA}
HERE, POLICY, BY_PROCESS = (
    "in this process",
    "the signer's policy alone",
    "by the signer's process, from an event loop, as the daemon asks",
)


def measure(options: Options) -> Part:
    here = derive(seed_from_words(WORDS), NETWORK)
    plan = _plan(here)
    taken_us: dict[str, list[float]] = {name: [] for name in (HERE, POLICY, BY_PROCESS)}
    policy = Policy(here.address.raw, CAPS, DAY_CAPS, clocks_of(None, time.monotonic, time.time))
    with tempfile.TemporaryDirectory() as name:
        source = _keystore(Path(name))
        start_s = time.perf_counter()
        with unlocked(Path(name) / "keystore.json", source, NETWORK, 0, CAPS, DAY_CAPS) as (signer, _missing):
            start_ms = (time.perf_counter() - start_s) * 1000
            # in turns, so that a busy moment of the machine is in all of them
            for _ in range(options.pick(4, 20)):
                taken_us[HERE] += _times_us(lambda: here.signer.sign(plan.body, plan.paid))
                taken_us[POLICY] += _times_us(lambda: policy.admit(plan.body, plan.paid))
                taken_us[BY_PROCESS] += asyncio.run(_times_from_a_loop_us(signer, plan))
    return part({name: Spread.of(us) for name, us in taken_us.items()}, start_ms)


def part(spreads: dict[str, Spread], start_ms: float) -> Part:
    """What the spreads, in microseconds, say."""
    rows: list[tuple[Cell, ...]] = [(name, s.median, s.p10, s.p90, s.p99, s.count) for name, s in spreads.items()]
    return Part(
        "signing",
        "A signature by the signer's process",
        "The body of a payment with two shares and change, signed by the same key in turns: in this process, and "
        "by the signer's process, which reads the body, applies its policy and answers over a socket.",
        tables=[
            Table("A signature", ("signed", "median us", "p10", "p90", "p99", "signatures"), rows),
            Table("The signer's process", ("what", "ms"), [("start, with the least scrypt", start_ms)]),
        ],
    )


def _times_us(work: Callable[[], object], rounds: int = 150) -> list[float]:
    taken = []
    for _ in range(rounds):
        start_ns = time.perf_counter_ns()
        work()
        taken.append((time.perf_counter_ns() - start_ns) / 1000)
    return taken


async def _times_from_a_loop_us(signer: SignerProcess, plan: TxPlan, rounds: int = 150) -> list[float]:
    signer.watch(lambda: None)
    taken = []
    for _ in range(rounds):
        start_ns = time.perf_counter_ns()
        await signer.accounts[0].signature(plan.body, plan.paid)
        taken.append((time.perf_counter_ns() - start_ns) / 1000)
    signer.unwatch()
    return taken


def _plan(here: Account) -> TxPlan:
    payees = [encode_address(b"\x60" + bytes([n]) * 28) for n in range(3)]
    outputs = [Output("split" if n else "pay_to", to, LOVELACE, 2 * ADA) for n, to in enumerate(payees)]
    utxo = Utxo("ab" * 32, 0, 100 * ADA)
    return select(UtxoIndex([utxo]), outputs, change=here.address, ttl_slot=4_000_000, network_id=0)


def _keystore(folder: Path) -> SecretFile:
    create(folder / "keystore.json", WORDS, PASSPHRASE, NETWORK, scrypt_n=16)
    (folder / "passphrase").touch(mode=0o600)
    (folder / "passphrase").write_text(PASSPHRASE, encoding="ascii")
    return SecretFile(folder / "passphrase", private=True)
