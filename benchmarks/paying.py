"""A payment over HTTP: from the request to the answer, whose attempt is signed and durable.

An invoice of the devnet's merchant is forwarded for each; blocks come every second, and what is paid is submitted
and watched meanwhile, as it is with a user.
"""

import asyncio
import json
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.clients import Answer, Call, Json, at_once, in_turn
from benchmarks.measure import Spread, memory_mb, times_ms
from benchmarks.results import Bars, Bound, Options, Part, Plot, Ratio, Table
from benchmarks.stage import ROOT, Stage, free_port, is_open, process, stage, until
from benchmarks.wallets import SIGNER
from payagent.store.db.signer_record import LastSigned, SignerFile

UTXO_LOVELACE = 100_000_000
FEW = 100
"""Coins for payments one after the other. The daemon lists its coins at each block, which takes time from payments
where they are many, as they have to be for many clients at once."""

BLOCKS = ("--block-time", "1")
PAUSE_S = 0.1
"""Between two payments of which each is to meet an idle daemon: the one before has been sent by then."""

HOW = f"""\
One payment: the 402 of the devnet's merchant (T Backend, 2 shares) is posted to `/v1/payments`; the answer comes
when the signed attempt is durable (two commits with `synchronous=FULL`, and the signer's record). Devnet, daemon,
signer and clients are processes of this machine. A free coin is there for every payment. Payments one after the
other come {PAUSE_S} s apart; what was paid before is watched meanwhile.

The bare prototype (`benchmarks/bare.py`) gets the same calls in the same run. It signs and makes durable, and does
nothing else; so it says how fast this machine is, and what rules, books, the signer's process and the chain cost.
"""

BARE = "the bare prototype"
BARE_RATIO_MIN = 0.05
"""Of its payments with 64 clients. One run gave 0.06 to 0.10 with 1 to 256 clients: this notices only a collapse.
What a change costs is judged by `benchmarks.before`."""


Measured = tuple[float, Spread]
"""How many a second, and how long each took."""


def measure(options: Options) -> Part:
    alone, many = options.pick(60, 500), options.pick((1, 64), (1, 4, 16, 64, 128, 256))
    each = options.pick(150, 1_000)
    part = Part("paying", "A payment over HTTP", HOW)
    with stage([UTXO_LOVELACE] * FEW, devnet_options=BLOCKS) as up:
        warm(up)
        _alone(part, up, payments(up, "alone", alone))
    with stage([UTXO_LOVELACE] * each, devnet_options=BLOCKS) as up:
        warm(up)
        lines: dict[str, list[tuple[float, float]]] = {}
        rows: list[tuple[str | float | int | None, ...]] = []
        for clients in many:
            settled(up)
            calls = payments(up, f"of {clients}", each)
            least = _of_the_bare(up, calls, clients)
            new, again = (_many(up.api, calls, clients, status) for status in (201, 200))
            for name, (rate, spread) in (("payments", new), ("replays", again), (BARE, least)):
                lines.setdefault(name, []).append((clients, rate))
                rows.append((name, clients, round(rate), spread.median, spread.p99))
            part.ratios.append(Ratio(f"durable payments, {clients} clients", BARE, new[0] / least[0]))
            if clients == 64:
                times = round(new[0] / least[0], 2)
                name = f"durable payments, 64 clients, of what {BARE} makes"
                part.bounds.append(Bound(name, times, BARE_RATIO_MIN, "times", at_least=True))
        part.tables.append(Table("Clients at once", ("what", "clients", "a second", "ms median", "ms p99"), rows))
        part.plots.append(Plot("paying", "Payments a second by clients", "clients", "a second", lines))
        rest = memory_mb(up.pid, "VmHWM")
        part.tables.append(Table("Memory", ("", "MB"), [("the daemon at its peak, after all of it", round(rest))]))
    return part


def warm(up: Stage) -> None:
    asyncio.run(in_turn(up.api, payments(up, "warm", 20)))
    settled(up)


def payments(up: Stage, name: str, count: int) -> list[Call]:
    """Calls that forward an invoice each."""
    calls = []
    for number in range(count):
        told = up.http.post(f"{up.merchant}/chat", json={"message": f"{name} {number}"})
        response = {"status": 402, "headers": {"content-type": "application/json"}, "body": told.json()}
        body: Json = {"origin": up.merchant, "response": response}
        headers = up.authorization | {"Idempotency-Key": f"{name}-{number}".replace(" ", "-")}
        calls.append(Call.of("POST", f"{up.api}/v1/payments", headers, body))
    return calls


def settled(up: Stage) -> None:
    """Wait until nothing is on its way."""
    until(lambda: not any(up.get(f"/v1/payments?state={state}&limit=1")["payments"] for state in
                          ("in_flight", "in_block")), "what was paid is confirmed")  # fmt: skip


def _alone(part: Part, up: Stage, calls: Sequence[Call]) -> None:
    first = up.log.stat().st_size
    answers = asyncio.run(in_turn(up.api, calls, PAUSE_S))
    require(answers, 201)
    spread = Spread.of([answer.ms for answer in answers])
    with bare() as url:
        asyncio.run(in_turn(url, payments(up, "warm alone", 20)))
        least = asyncio.run(in_turn(url, calls, PAUSE_S))
    require(least, 201)
    bare_spread = Spread.of([answer.ms for answer in least])
    part.ratios.append(Ratio("one payment on an idle daemon, median", BARE, bare_spread.median / spread.median))
    again = asyncio.run(in_turn(up.api, calls))
    require(again, 200)
    replay = Spread.of([answer.ms for answer in again])
    rows: list[tuple[str | float | int | None, ...]] = [
        ("a payment", spread.median, spread.p10, spread.p90, spread.p99),
        ("the same again", replay.median, replay.p10, replay.p90, replay.p99),
        (BARE, bare_spread.median, bare_spread.p10, bare_spread.p90, bare_spread.p99),
    ]
    stages = _stages(up.log, first, answers)
    rows += [(f"of it: {name}", one.median, one.p10, one.p90, one.p99) for name, one in stages.items()]
    floor = floor_ms(up)
    rows += [(f"the floor: {name}", ms, None, None, None) for name, ms in floor.items()]
    bars = {"a payment": {name: one.median for name, one in stages.items()}, "its floor": floor}
    part.bars.append(Bars("stages", "One payment over HTTP, at the median", "ms", bars))
    part.tables.append(Table("One after the other, ms", ("", "median", "p10", "p90", "p99"), rows))


RECEIVED, SIGNED, ANSWERED = (
    "received, read, decided and durable",
    "signed, checked, durable and noted",
    "answered",
)


def _stages(log: Path, first_byte: int, answers: Sequence[Answer]) -> dict[str, Spread]:
    """By the daemon's log, which tells each commit, and the clients' clock, which is the same machine's."""
    with log.open("rb") as file:
        file.seek(first_byte)
        lines = [json.loads(line) for line in file]
    at: dict[tuple[str, str], float] = {}
    for line in lines:
        if "payment" in line:
            when = datetime.fromisoformat(line["timestamp"]).timestamp()
            at.setdefault((line["event"], line["payment"]), when)
    taken: dict[str, list[float]] = {RECEIVED: [], SIGNED: [], ANSWERED: []}
    for answer in answers:
        payment = json.loads(answer.body)["id"]
        admitted_s, signed_s = at["payment.admit", payment], at["payment.sign", payment]
        taken[RECEIVED].append((admitted_s - answer.sent_s) * 1000)
        taken[SIGNED].append((signed_s - admitted_s) * 1000)
        taken[ANSWERED].append((answer.sent_s - signed_s) * 1000 + answer.ms)
    return {name: Spread.of(ms) for name, ms in taken.items()}


def floor_ms(up: Stage) -> dict[str, float]:
    """What no payment can do without, each by itself: one exchange by HTTP with the daemon, two commits that are
    synced, a line of a small file that is synced too, and a signature.
    """
    exchange = Call.of("GET", f"{up.api}/healthz", {})
    answers = asyncio.run(in_turn(up.api, [exchange] * 200))
    return {
        "HTTP": Spread.of([answer.ms for answer in answers]).median,
        "two commits": 2 * Spread.of(times_ms(_committer(up.folder), 100)).median,
        "the signer's record": Spread.of(times_ms(_noter(up.folder), 100)).median,
        "a signature": Spread.of(times_ms(lambda: SIGNER.sign_hash(bytes(32)), 200)).median,
    }


def _committer(folder: Path) -> Callable[[], object]:
    """One row of 4 kB, synced as the ledger is."""
    conn = sqlite3.connect(folder / "floor.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("CREATE TABLE rows(what BLOB)")
    return lambda: conn.execute("INSERT INTO rows VALUES (?)", (bytes(4_000),))


def _noter(folder: Path) -> Callable[[], object]:
    record = SignerFile(folder / "floor.json")
    signed = LastSigned(1, "ab" * 32, 1)
    return lambda: record.write(signed)


@contextmanager
def bare() -> Iterator[str]:
    """Where the bare prototype listens."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        process([sys.executable, "-m", "benchmarks.bare", str(port), folder], cwd=ROOT),
    ):
        until(lambda: is_open(port), "the bare prototype listens")
        yield f"http://127.0.0.1:{port}"


def _of_the_bare(up: Stage, calls: Sequence[Call], clients: int) -> Measured:
    """The same calls; after some of a first one, as the daemon had too."""
    with bare() as url:
        _many(url, payments(up, f"warm of {clients}", 100), clients, 201)
        return _many(url, calls, clients, 201)


def _many(url: str, calls: Sequence[Call], clients: int, status: int) -> Measured:
    answers, took_s = asyncio.run(at_once(url, calls, clients))
    require(answers, status)
    return len(answers) / took_s, Spread.of([answer.ms for answer in answers])


def require(answers: Sequence[Answer], status: int) -> None:
    other = next((answer for answer in answers if answer.status != status), None)
    if other is not None:
        raise SystemExit(f"{status} was expected, and {other.status} came: {other.body[:500]!r}")
