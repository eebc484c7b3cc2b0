"""Build and sign one payment, by the size of the wallet, beside the public builders of Cardano transactions.

payagent does it twice: as the peers do, and as the daemon does, with its check of the signed bytes. May import:
the wallet, the peers as child processes, the independent ledger as judge.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks import builders
from benchmarks.builders import Built, NotRun, Peer, TooSlow
from benchmarks.judge import Judge, judging
from benchmarks.measure import Spread, times_ms
from benchmarks.results import Bound, Cell, Options, Part, Plot, Ratio, Table
from benchmarks.wallets import ASSETS, build, outputs, pay, wallet
from payagent.core.invoice import Output
from payagent.wallet.utxo_index import Utxo, UtxoIndex

US = "payagent"
CHECKED = "payagent with its check"
Work = Callable[[UtxoIndex, list[Output]], bytes]
OURS: dict[str, Work] = {US: build, CHECKED: pay}
SIZES = (1, 10, 100, 1_000, 10_000, 100_000)
QUICK_SIZES = (1, 100, 1_000)
MOST_GROWTH = 2
"""Sizes are measured minutes apart, and the machine's speed varies by half. Work that grows with the wallet grows
tenfold from one size to the next."""
AHEAD_MIN = {US: 1.0, CHECKED: 0.5}
"""Times as fast as the fastest peer. No peer reads again what it signed."""
COLUMNS = ("coins", "builder", "median ms", "p10", "p90", "p99", "builds", "fee in lovelace", "transaction")


@dataclass(frozen=True, slots=True)
class Task:
    """One payment from one wallet."""

    asset: str
    utxos: list[Utxo]
    asked: list[Output]


@dataclass(frozen=True, slots=True)
class Row:
    """One builder at one size: its times and what the judge said of its transaction, or why there are none."""

    asset: str
    utxos: int
    builder: str
    said: str
    spread: Spread | None = None
    fee_lovelace: int | None = None
    version: str = ""
    is_refused: bool = False

    def cells(self) -> tuple[Cell, ...]:
        times: tuple[Cell, ...] = (None,) * 5
        if self.spread:
            times = (self.spread.median, self.spread.p10, self.spread.p90, self.spread.p99, self.spread.count)
        return (self.utxos, self.builder, *times, self.fee_lovelace, self.said)


@dataclass(frozen=True, slots=True)
class Found:
    """All rows of a run."""

    rows: list[Row]

    def medians(self, asset: str, builder: str) -> dict[int, float]:
        """Milliseconds by coins, of what was built and not refused."""
        return {
            row.utxos: row.spread.median
            for row in self.rows
            if (row.asset, row.builder) == (asset, builder) and row.spread and not row.is_refused
        }

    def builders(self) -> list[str]:
        return list(dict.fromkeys(row.builder for row in self.rows))

    def versions(self) -> dict[str, str]:
        return {row.builder: row.version for row in self.rows if row.version}


def measure(options: Options) -> Part:
    with judging() as judge:
        return part(Found(list(_rows(options, judge))))


def _rows(options: Options, judge: Judge) -> Iterator[Row]:
    too_slow_at: dict[Peer, int] = {}
    rounds, most_s = options.pick(100, 1_000), options.pick(0.25, 5.0)
    first_s = options.pick(2, builders.FIRST_BUILD_S)
    for size in options.pick(QUICK_SIZES, SIZES):
        for asset in ASSETS:
            task = Task(asset, wallet(size, asset), outputs(asset))
            yield from _ours(task, judge, options.pick(250, 3_000))
            with builders.written(builders.job(task.utxos, task.asked, rounds, most_s)) as told:
                for peer in builders.ALL:
                    if peer in too_slow_at:
                        why = f"not asked: its first build was too slow at {too_slow_at[peer]:,} coins"
                        yield Row(asset, size, peer.name, why)
                        continue
                    try:
                        yield judged(task, peer.name, builders.ask(peer, told, most_s, first_s), judge)
                    except NotRun as why:
                        yield Row(asset, size, peer.name, f"not run: {why}")
                        if isinstance(why, TooSlow):
                            too_slow_at[peer] = size


def _ours(task: Task, judge: Judge, rounds: int) -> Iterator[Row]:
    index = UtxoIndex(task.utxos)
    for name, work in OURS.items():
        taken_ms = times_ms(partial(work, index, task.asked), rounds)
        yield judged(task, name, Built(taken_ms, work(index, task.asked)), judge)


def judged(task: Task, name: str, built: Built, judge: Judge) -> Row:
    """What one builder gave, with the verdict on its transaction."""
    verdict = judge.verdict(built.tx, task.utxos, task.asked)
    size, spread = len(task.utxos), Spread.of(built.ms)
    told = (verdict.said, spread, verdict.fee_lovelace, built.version, verdict.is_refused)
    return Row(task.asset, size, name, *told)


def part(found: Found) -> Part:
    """What the rows say."""
    tables = [
        Table(f"Build and sign, {asset}", COLUMNS, [row.cells() for row in found.rows if row.asset == asset])
        for asset in ASSETS
    ]
    versions = Table("The builders", ("builder", "version"), list(found.versions().items()))
    return Part(
        "building",
        "Build and sign",
        "One payment (payTo, two splits, change) from a wallet of so many coins: coins chosen, transaction built, "
        "signed with the same extended key, and encoded, in memory and one after the other. The daemon reads the "
        "signed bytes again and compares, which no peer does: that is told beside it. Each builder has its own "
        "objects, or its index, of the coins made before. One build warms up; a builder whose first takes over "
        "10 s is asked no more. The independent ledger scalus judges one transaction of each row; a refused one "
        "counts for nobody.",
        bounds(found),
        ratios(found),
        [*tables, versions],
        [_plot(found, asset) for asset in ASSETS],
        left_out="Reading the coins from a provider, and keeping an index of them as they come and go. Peers run "
        "in processes of their own: what they keep in memory is not compared.",
    )


def bounds(found: Found) -> list[Bound]:
    told = []
    for asset in ASSETS:
        if ours := found.medians(asset, CHECKED).values():
            name = f"build, sign and check, {asset}, slowest size over the fastest, at the median"
            told.append(Bound(name, max(ours) / min(ours), MOST_GROWTH, "times"))
    for ours_name, at_least in AHEAD_MIN.items():
        if closest := min(ratios(found, ours_name), key=lambda ratio: ratio.times, default=None):
            name = f"{ours_name} beside the closest peer and size: {closest.other}, {closest.name}"
            told.append(Bound(name, closest.times, at_least, "times", at_least=True))
    refused = sum(row.builder in OURS and row.is_refused for row in found.rows)
    told.append(Bound("transactions of payagent that the independent ledger refuses", refused, 0, ""))
    return told


def ratios(found: Found, ours_name: str = US) -> list[Ratio]:
    """Of each peer at each size, where neither transaction was refused."""
    return [
        Ratio(f"build and sign, {asset}, {size:,} coins", peer, theirs_ms / ours[size])
        for asset in ASSETS
        for ours in [found.medians(asset, ours_name)]
        for peer in found.builders()
        if peer not in OURS
        for size, theirs_ms in found.medians(asset, peer).items()
        if size in ours
    ]


def _plot(found: Found, asset: str) -> Plot:
    lines = {
        name: [(float(size), ms) for size, ms in sorted(found.medians(asset, name).items())]
        for name in found.builders()
    }
    title = f"Build and sign one payment, {asset}"
    return Plot(f"building-{asset}", title, "coins in the wallet", "ms at the median", lines)
