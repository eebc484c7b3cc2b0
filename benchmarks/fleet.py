"""Admissions through the gate of a fleet on PostgreSQL, beside those of one daemon on a file.

Each daemon is a process with an account, a writer and the agent's own jobs; the chain is made up. All daemons are
up from the start and take turns, so that what else the machine does befalls them alike.

    python -m benchmarks.fleet PLACE ACCOUNT PAYMENTS

PLACE is a file or a URL. It then carries out lines of stdin, FIRST COUNT WAITING, and prints how many seconds and
how many seconds of processor time each took.
May import: payagent, the rest of benchmarks, tests/kit for the server and the signer's record. Never: signs for an
account of another daemon.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kit import postgresql
from kit.fleet import Record

from benchmarks.measure import Spread, cpu_s
from benchmarks.results import Bars, Bound, Cell, Options, Part, Ratio, Table
from benchmarks.stage import ROOT
from benchmarks.store import NETWORK, WORDS, Payer
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import fleet
from payagent.wallet.keys import derive, seed_from_words

WAITING = 64
"""Payments that are asked for at once, by as many clients. Each gets one; then the next are asked for."""

DAEMONS = 3
WARM = 2 * WAITING
RATIO_MAX = 20.0
"""Of processor time. Runs beside other work gave 5 to 10: this notices only a collapse."""

FILE, SOCKET, TCP = "SQLite", "PostgreSQL, Unix socket", "PostgreSQL, TCP"
THREE = f"{TCP}, {DAEMONS} daemons"
DURABLE = "fsync = on\nfull_page_writes = on\n"

HOW = f"""\
Each admission is the agent's own job, with ten sums for limits, on the real writer: `synchronous=FULL` on SQLite,
`fsync` on PostgreSQL. {WAITING} wait at the same time, or one alone. The daemons take turns. Of the {DAEMONS}
daemons on one database each has {WAITING} waiting, and all begin at once. Processor time is the daemons' and the
server's together.
"""

LEFT_OUT = "Signing, HTTP, a network between daemon and database, and a synchronous standby."


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that admits as it is told."""

    process: "subprocess.Popen[str]"
    _numbers: list[int] = field(default_factory=lambda: [0])

    def start(self, count: int, waiting: int) -> None:
        first = self._numbers[0]
        self._numbers[0] += count
        assert self.process.stdin is not None
        self.process.stdin.write(f"{first} {count} {waiting}\n")
        self.process.stdin.flush()

    def took_s(self) -> tuple[float, float]:
        """Time and processor time."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a daemon has ended")
        seconds, cpu_seconds = line.split()
        return float(seconds), float(cpu_seconds)


@dataclass(slots=True)
class Taken:
    """What the rounds of one ledger took: milliseconds for each admission, and processor time in all."""

    ms: list[float] = field(default_factory=list)
    cpu_s: float = 0
    admitted: int = 0

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / self.admitted


def measure(options: Options) -> Part:
    rounds, alone = options.pick(3, 20), options.pick(10, 20)
    payments = WARM + rounds * (WAITING + alone)
    taken: dict[tuple[str, int], Taken] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(postgresql.server(DURABLE))
        urls = [server.new_database() for _ in range(3)]
        places = (f"{folder}/ledger.db", urls[0], server.tcp_url(urls[1]), *[server.tcp_url(urls[2])] * DAEMONS)
        accounts = (0, 0, 0, *range(DAEMONS))
        daemons = [
            stack.enter_context(running(place, account, payments))
            for place, account in zip(places, accounts, strict=True)
        ]
        for daemon in daemons:
            admit([daemon], WARM, WAITING, server.pid, Taken())
        for url in urls:
            with closing(PostgresqlConnection(url)) as conn:
                conn.execute("ANALYZE")
        turns = [
            *(
                (name, [daemon], WAITING, WAITING)
                for name, daemon in zip((FILE, SOCKET, TCP), daemons, strict=False)
            ),
            (THREE, daemons[3:], WAITING, WAITING),
            *((name, [daemon], alone, 1) for name, daemon in zip((FILE, SOCKET, TCP), daemons, strict=False)),
        ]
        for _ in range(rounds):
            for name, group, count, waiting in turns:
                admit(group, count, waiting, server.pid, taken.setdefault((name, waiting), Taken()))
    return as_part(taken)


def admit(daemons: Sequence[Daemon], count: int, waiting: int, server: int, taken: Taken) -> None:
    """So many admissions by each daemon at once. `server`: PostgreSQL's process."""
    before_s, began_s = cpu_s(server), time.perf_counter()
    for daemon in daemons:
        daemon.start(count, waiting)
    own_s = sum(daemon.took_s()[1] for daemon in daemons)
    admitted = count * len(daemons)
    taken.ms.append(1000 * (time.perf_counter() - began_s) / admitted)
    taken.cpu_s += own_s + cpu_s(server) - before_s
    taken.admitted += admitted


def as_part(taken: Mapping[tuple[str, int], Taken]) -> Part:
    part = Part("fleet", "A fleet on PostgreSQL", HOW, left_out=LEFT_OUT)
    rows: list[tuple[Cell, ...]] = []
    for (name, waiting), one in taken.items():
        spread, least = Spread.of(one.ms), taken[FILE, waiting]
        rows.append(
            (name, waiting, spread.median, spread.p10, spread.p90, round(1000 / spread.median), one.cpu_ms)
        )
        if name != FILE:
            what = f"an admission, {waiting} waiting"
            part.ratios.append(Ratio(what, name, spread.median / Spread.of(least.ms).median))
            part.ratios.append(Ratio(f"{what}, processor time", name, one.cpu_ms / least.cpu_ms))
    times = round(taken[TCP, WAITING].cpu_ms / taken[FILE, WAITING].cpu_ms, 2)
    part.bounds.append(Bound(f"processor time of an admission by {TCP}, of {FILE}'s", times, RATIO_MAX, "times"))
    columns = ("ledger", "waiting", "ms each, median", "10 %", "90 %", "a second", "processor time, ms")
    part.tables.append(Table("Admissions of all daemons together", columns, rows))
    bars = {name: {"processor time": one.cpu_ms} for (name, waiting), one in taken.items() if waiting == WAITING}
    part.bars.append(Bars("fleet", f"Processor time of an admission, {WAITING} waiting", "ms", bars))
    return part


@contextmanager
def running(place: str, account: int, payments: int) -> Iterator[Daemon]:
    command = [sys.executable, "-m", "benchmarks.fleet", place, str(account), str(payments)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=env) as process:
        daemon = Daemon(process)
        daemon.took_s()  # it is ready
        yield daemon  # leaving closes stdin, which ends it


def main(place: str, account: int, payments: int) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(_payer(place, account, payments, Path(folder))) as payer:
        print(0, 0, flush=True)
        for line in sys.stdin:
            first, count, waiting = map(int, line.split())
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            for start in range(first, first + count, waiting):
                payer.admit_at_once((account << 32) + n for n in range(start, min(start + waiting, first + count)))
            print(time.perf_counter() - began_s, time.process_time() - began_cpu_s, flush=True)


def _payer(place: str, account: int, payments: int, folder: Path) -> Payer:
    opened = _joined(place, account, folder) if "://" in place else (Writer(Path(place)), Readers(Path(place)))
    return Payer(opened, payments, account=account)


def _joined(url: str, account: int, folder: Path) -> tuple[Writer, Readers]:
    """The ledger of a fleet whose account this daemon holds."""
    seat = Seat(f"daemon {account}", f"host {account}", {account: Record()})
    writer, readers = open_fleet_store(url, folder, checkpoint=lambda _name: None, seat=seat)

    def take(unit: Unit) -> None:
        fleet.add_account(unit, account, derive(seed_from_words(WORDS), NETWORK, account).address.text)
        seat.hold(unit, fleet.take_accounts(unit, seat.holder, [account], 0))

    writer.submit("take", take).result()
    return writer, readers


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
