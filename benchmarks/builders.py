"""The peers that build and sign, asked in child processes: what each gets, and what it answered or why it did not.

May import: payagent's core and wallet for the job; `benchmarks.wallets`. Never: a peer's library in this process.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.wallets import KEY, OWN, SIGNER, TTL_SLOT
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.wallet.transaction import MAINNET_PARAMETERS
from payagent.wallet.utxo_index import Utxo

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks/peers"
TOKEN_OUTPUT_LOVELACE = 1_300_000
"""What an output of the token holds besides: peers want it said, and it is above the least."""

FIRST_BUILD_S = 10
"""A first build that takes longer is the peer's last."""

READY_S = 300
"""So long a peer may make its own objects for the coins, which is not timed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody else's builder: a program of `benchmarks/peers`, run by this Python or by node."""

    name: str
    program: str

    def command(self) -> list[str]:
        """How it is run. Raises `NotRun` when what runs it is not installed."""
        if not self.program.endswith(".mjs"):
            return [sys.executable, "-m", f"benchmarks.peers.{self.program}"]
        node = shutil.which("node")
        if node is None:
            raise NotRun("node is missing")
        if not (PEERS / "node_modules").is_dir():
            raise NotRun("its package is not installed (npm ci in benchmarks/peers)")
        return [node, str(PEERS / self.program)]


STOCK = Peer("pycardano", "stock")
ALL = (
    STOCK,
    Peer("libcardano-c", "cometa"),
    Peer("CSL", "csl.mjs"),
    Peer("lucid-evolution", "lucid.mjs"),
)


@dataclass(frozen=True, slots=True)
class Built:
    """What a builder gave: the time of each build, one of its transactions, and what it is."""

    ms: list[float]
    tx: bytes
    version: str = ""


class NotRun(Exception):  # noqa: N818 - it is an answer as good as another
    """A builder gave no transaction; the text says why."""


class TooSlow(NotRun):
    """Its first build took longer than it may: it is not asked for more coins."""


def job(utxos: Sequence[Utxo], asked: Sequence[Output], rounds: int, most_s: float) -> dict[str, Any]:
    """What a peer is told; see `benchmarks.peers`."""
    return {
        "coins": [
            {"tx_id": utxo.tx_id, "index": utxo.index, "lovelace": utxo.lovelace, "assets": utxo.assets}
            for utxo in utxos
        ],
        "outputs": [{"address": output.address.text, **_held(output)} for output in asked],
        "change": OWN.text,
        "key": KEY.hex(),
        "public_key": SIGNER.public_key.hex(),
        "ttl_slot": TTL_SLOT,
        "parameters": asdict(MAINNET_PARAMETERS),
        "rounds": rounds,
        "most_s": most_s,
    }


def _held(output: Output) -> dict[str, Any]:
    if output.asset == LOVELACE:
        return {"lovelace": output.units, "assets": []}
    return {"lovelace": TOKEN_OUTPUT_LOVELACE, "assets": [(output.asset, output.units)]}


@contextmanager
def written(told: dict[str, Any]) -> Iterator[IO[str]]:
    """A job as a file, which any number of peers read one after the other."""
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:
        json.dump(told, file)
        yield file


def ask(peer: Peer, told: IO[str], most_s: float, first_s: float = FIRST_BUILD_S) -> Built:
    """Have a peer do the written job, whose own `most_s` is given again. Raises `NotRun`, `TooSlow`."""
    command = peer.command()
    told.seek(0)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(command, cwd=ROOT, stdin=told, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            version = _line(child, READY_S, errors)["ready"]
            try:
                built_ms = _line(child, first_s, errors)["built"]
            except TimeoutError:
                raise TooSlow(f"stopped: its first build took more than {first_s} s") from None
            answer = _line(child, most_s + built_ms / 1000 + FIRST_BUILD_S, errors)
        except TimeoutError as error:
            raise NotRun(str(error)) from None
        finally:
            child.kill()
            child.communicate()
    return Built(answer["ms"], bytes.fromhex(answer["tx"]), version)


def _line(child: subprocess.Popen[str], most_s: float, errors: IO[str]) -> dict[str, Any]:
    """The next line; a child that is late is ended, which is a `TimeoutError`, and one that fails is `NotRun`."""
    assert child.stdout is not None
    late = threading.Timer(most_s, child.kill)
    late.start()
    end_s = time.monotonic() + most_s
    line = child.stdout.readline()
    late.cancel()
    if line:
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise NotRun(" ".join(told["error"].split()))
        return told
    if time.monotonic() >= end_s:
        raise TimeoutError(f"stopped: no word for {most_s:.0f} s")
    raise NotRun(_last_error(errors))


def _last_error(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip()]
    named = [line for line in lines if "Error" in line]
    return (named or lines or ["it ended without a word"])[-1][:300]
