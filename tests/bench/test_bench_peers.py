"""The build benchmark: each builder's transaction is valid or reported as refused. No time is asserted."""

from collections.abc import Iterator

import pytest
from kit.effort import long_only, pick
from ledger_check.scalus import available, needs_scalus

from benchmarks import builders, building
from benchmarks.builders import STOCK, Built, NotRun, Peer, TooSlow
from benchmarks.building import CHECKED, US, Found, Row, part
from benchmarks.judge import NOT_JUDGED, VALID, Judge, judging
from benchmarks.measure import Spread
from benchmarks.results import Options
from benchmarks.wallets import ASSETS, build, outputs, pay, wallet
from payagent.wallet.utxo_index import UtxoIndex

OK = VALID if available() else NOT_JUDGED


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with judging() as judge:
        yield judge


def asked_of(peer: Peer, size: int, asset: str, **limits: float) -> Built:
    job = builders.job(wallet(size, asset), outputs(asset), rounds=2, most_s=5)
    with builders.written(job) as told:
        return builders.ask(peer, told, 5, **limits)


@pytest.mark.parametrize("asset", [*ASSETS][: pick(1, 2)])
def test_stock_pycardano_builds_a_valid_transaction_for_a_job(asset: str, judge: Judge) -> None:
    built = asked_of(STOCK, 12, asset)
    verdict = judge.verdict(built.tx, wallet(12, asset), outputs(asset))
    assert (verdict.said, len(built.ms) in (1, 2), built.version[:9]) == (OK, True, "pycardano")


@pytest.mark.parametrize("work", [build, pay])
@pytest.mark.parametrize("asset", ASSETS)
def test_payagent_builds_a_valid_transaction_for_the_same_job(
    asset: str, work: building.Work, judge: Judge
) -> None:
    utxos = wallet(12, asset)
    verdict = judge.verdict(work(UtxoIndex(utxos), outputs(asset)), utxos, outputs(asset))
    assert verdict.said == OK
    assert verdict.fee_lovelace is not None
    assert 160_000 < verdict.fee_lovelace < 200_000


@needs_scalus
def test_a_transaction_the_ledger_refuses_is_reported_and_not_counted(judge: Judge) -> None:
    utxos, asked = wallet(1, "ada"), outputs("ada")
    tx = bytearray(build(UtxoIndex(utxos), asked))
    tx[-3] ^= 1  # in the signature
    task = building.Task("ada", utxos, asked)
    row = building.judged(task, US, Built([1.0], bytes(tx)), judge)
    assert row.said.startswith("refused: ")
    assert "signature" in row.said
    assert Found([row]).medians("ada", US) == {}
    assert [bound.holds for bound in part(Found([row])).bounds] == [False]


def test_a_transaction_that_pays_somebody_else_is_refused(judge: Judge) -> None:
    utxos, asked = wallet(1, "ada"), outputs("ada")
    tx = build(UtxoIndex(utxos), asked[:2])
    assert judge.verdict(tx, utxos, asked).said.startswith("refused: it does not pay 1000000 lovelace")


def test_bytes_that_are_not_a_transaction_are_refused(judge: Judge) -> None:
    assert judge.verdict(b"\x84", wallet(1, "ada"), outputs("ada")).said.startswith("refused: not a transaction")


def test_a_missing_peer_is_not_run_and_says_why() -> None:
    with pytest.raises(NotRun, match="No module named"):
        asked_of(Peer("nobody", "nobody"), 1, "ada")


def test_a_peer_that_fails_says_why() -> None:
    with (
        builders.written(builders.job([], outputs("ada"), 1, 1)) as told,
        pytest.raises(NotRun, match=r"UTxOSelectionException: All UTxO selectors failed\. Requested"),
    ):
        builders.ask(STOCK, told, 1)


@long_only
def test_a_first_build_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TooSlow, match="first build"):
        asked_of(STOCK, 30, "ada", first_s=0.001)


def test_a_peer_that_is_too_slow_is_not_run_on_larger_wallets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slow(peer: Peer, *_: object) -> Built:
        asked.append(peer)
        raise TooSlow("stopped")

    monkeypatch.setattr(builders, "ask", slow)
    monkeypatch.setattr(builders, "ALL", (STOCK,))
    monkeypatch.setattr(building, "QUICK_SIZES", (1, 2))
    told = building.measure(Options(is_quick=True))
    assert asked == [STOCK]
    said = [row[-1] for table in told.tables for row in table.rows if row[1] == STOCK.name]
    assert said[0] == "not run: stopped"
    assert set(said[1:]) == {"not asked: its first build was too slow at 1 coins"}


def test_a_peer_faster_than_payagent_breaks_the_bound() -> None:
    def row(builder: str, ms: float) -> Row:
        return Row("ada", 1, builder, VALID, Spread.of([ms]), 170_000)

    told = part(Found([row(US, 0.05), row(CHECKED, 0.13), row("other", 0.06)]))
    ahead = {bound.name.split(" beside")[0]: bound.holds for bound in told.bounds if bound.at_least}
    assert ahead == {US: True, CHECKED: False}
    assert [(ratio.other, round(ratio.times, 2)) for ratio in told.ratios] == [("other", 1.2)]
