"""Admissions through the gate of a fleet on PostgreSQL, beside those of one daemon on a file.

Each daemon is a process with an account, a writer and the agent's own jobs; the chain is made up. All daemons are
up from the start and take turns, so that what else the machine does befalls them alike.

    python -m benchmarks.fleet PLACE ACCOUNT PAYMENTS

PLACE is a file or a URL. It then carries out lines of stdin, FIRST COUNT WAITING, and prints how long each took.
May import: payagent, benchmarks.store, tests/kit for the server and the signer's record. Never: signs for an
account of another daemon.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kit import postgresql
from kit.fleet import Record

from benchmarks.measure import Spread
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
RATIO_MAX = 10.0
"""One run gave 5: this notices only a collapse."""

FILE, SOCKET, TCP = "SQLite", "PostgreSQL, Unix socket", "PostgreSQL, TCP"
THREE = f"{TCP}, {DAEMONS} daemons"
DURABLE = "-c fsync=on -c full_page_writes=on -c synchronous_standby_names=''"

HOW = f"""\
Each admission is the agent's own job, with ten sums for limits, on the real writer: `synchronous=FULL` on SQLite,
`fsync` on PostgreSQL. {WAITING} wait at the same time, or one alone. The daemons take turns. Of the {DAEMONS}
daemons on one database each has {WAITING} waiting, and all begin at once.
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

    def took_s(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a daemon has ended")
        return float(line)

    def admit(self, count: int, waiting: int) -> float:
        """Seconds that it took."""
        self.start(count, waiting)
        return self.took_s()


def measure(options: Options) -> Part:
    rounds, alone = options.pick(3, 20), options.pick(10, 20)
    payments = WARM + rounds * (WAITING + alone)
    taken: dict[tuple[str, int], list[float]] = {}
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
            daemon.admit(WARM, WAITING)
        for url in urls:
            with closing(PostgresqlConnection(url)) as conn:
                conn.execute("ANALYZE")
        for _ in range(rounds):
            for waiting, count in ((WAITING, WAITING), (1, alone)):
                for name, daemon in zip((FILE, SOCKET, TCP), daemons, strict=False):
                    taken.setdefault((name, waiting), []).append(daemon.admit(count, waiting) / count)
            taken.setdefault((THREE, WAITING), []).append(_together(daemons[3:]) / (DAEMONS * WAITING))
    return as_part({key: Spread.of([s * 1e3 for s in each]) for key, each in taken.items()})


def _together(daemons: Sequence[Daemon]) -> float:
    began_s = time.perf_counter()
    for daemon in daemons:
        daemon.start(WAITING, WAITING)
    for daemon in daemons:
        daemon.took_s()
    return time.perf_counter() - began_s


def as_part(spreads: dict[tuple[str, int], Spread]) -> Part:
    part = Part("fleet", "A fleet on PostgreSQL", HOW, left_out=LEFT_OUT)
    rows: list[tuple[Cell, ...]] = []
    for (name, waiting), spread in spreads.items():
        least = spreads[FILE, waiting]
        rows.append((name, waiting, spread.median, spread.p10, spread.p90, round(1000 / spread.median)))
        if name != FILE:
            part.ratios.append(Ratio(f"an admission, {waiting} waiting", name, spread.median / least.median))
    times = round(spreads[TCP, WAITING].median / spreads[FILE, WAITING].median, 2)
    part.bounds.append(Bound(f"an admission by {TCP}, {WAITING} waiting, times {FILE}", times, RATIO_MAX, "times"))
    columns = ("ledger", "waiting", "ms each, median of rounds", "10 %", "90 %", "a second, all daemons together")
    part.tables.append(Table("Admissions", columns, rows))
    bars = {name: {"ms": spread.median} for (name, waiting), spread in spreads.items() if waiting == WAITING}
    part.bars.append(Bars("fleet", f"One admission, {WAITING} waiting", "ms", bars))
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
        print(0, flush=True)
        for line in sys.stdin:
            first, count, waiting = map(int, line.split())
            began_s = time.perf_counter()
            for start in range(first, first + count, waiting):
                payer.admit_at_once((account << 32) + n for n in range(start, min(start + waiting, first + count)))
            print(time.perf_counter() - began_s, flush=True)


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
