"""The benchmarks of ledgers, start-up and seeds run and report data. No time is asserted."""

import dataclasses
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kit.effort import long_only, pick

from benchmarks import before, ledgers, seeds, starting, store
from benchmarks.results import Options, Part
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.store.db.readers import Readers
from payagent.store.rows import payments


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ledgers, "KEPT", tmp_path)
    return tmp_path


def told(part: Part) -> str:
    return json.dumps(dataclasses.asdict(part))


def test_a_generated_ledger_is_valid_with_settled_payments_and_payments_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    subprocess.run([sys.executable, ledgers.MAKER, path, "3", "20"], check=True)
    with Readers(path).snapshot() as conn:
        owner = Owner(store.ACCOUNT.address, store.NETWORK)
        assert [one for one in verify(conn, owner) if isinstance(one, AuditFinding)] == []
        assert payments.payments_by_state(conn) == {"settled": 3, "in_flight": 24}


def test_a_generated_ledger_is_kept_and_reused(tmp_path: Path) -> None:
    made = ledgers.settled(2)
    before = made.stat()
    assert ledgers.settled(2).stat() == before
    with ledgers.folder() as folder:
        assert ledgers.copied(made, folder).read_bytes() == made.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


class Little(Options):
    """The smallest possible run."""

    def pick(self, quick, full):  # type: ignore[no-untyped-def]
        return (5,) if isinstance(quick, tuple) else 3


def test_the_history_benchmark_reports_its_bound_and_plot_by_payments(tmp_path: Path) -> None:
    part = store.measure(Little(True))
    assert [bound.name for bound in part.bounds] == ["admission at 5 payments, times an empty ledger"]
    assert {len(points) for plot in part.plots for points in plot.lines.values()} == {1}
    assert '"first page"' in told(part)


def test_a_payment_is_admitted_recorded_and_followed_to_its_end(tmp_path: Path) -> None:
    with closing(store.Payer(tmp_path / "ledger.db", 2)) as payer:
        plan = payer.admit(1)
        payer.record(1, plan, store.sign(plan, store.ACCOUNT.signer))
        payer.follow(1, plan)
        assert payments.payments_by_state(payer.readers.conn) == {"settled": 1}


@long_only
def test_the_startup_benchmark_runs_with_payments_in_flight() -> None:
    start = starting.start(8)
    assert start.first_pass_s is not None
    assert 0 < start.signer_mb < start.rest_mb <= start.peak_mb


def test_the_startup_benchmark_reports_each_count_of_payments_and_judges_nothing() -> None:
    start = starting.Start(8, opened_s=1, opened_mb=60, first_pass_s=2, peak_mb=70, rest_mb=65, signer_mb=30)
    part = starting.as_part([dataclasses.replace(start, payments=0), start])
    assert part.bounds == []
    assert [row[0] for row in part.tables[0].rows] == [0, 8]


def test_processor_time_beside_the_commit_before_is_judged_by_the_medians() -> None:
    def holds(ours_ms: float) -> bool:
        turns = [(ours_ms, 100.0), (ours_ms, 100.0), (99.0, 1.0)]
        (bound,) = before.as_part("", {before.THIS: turns, before.BEFORE: [(10.0, 400.0)] * 3}).bounds
        return bound.holds

    assert [holds(11.4), holds(11.7)] == [True, False]


def test_the_seed_benchmark_reports_a_positive_rate() -> None:
    part = seeds.of(range(count := pick(1, 3)))
    assert part.bounds == []
    assert [row[0] for row in part.tables[0].rows] == [count]
