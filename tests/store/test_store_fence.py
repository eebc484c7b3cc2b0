"""The gate and the fence of a fleet: who holds an account writes for it, and nobody else.

One test runs on both engines. `./scripts/test --long` runs all of them on both.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.effort import pick
from kit.fleet import Daemon, pair_on
from kit.postgresql import needs_postgresql

from payagent.core.problems import Refused
from payagent.store.db.signer_record import LastSigned
from payagent.store.db.unit import Unit
from payagent.store.rows import fleet
from payagent.store.rows.fleet import LEASE_MS, AdmissionRequest

Pair = tuple[Daemon, Daemon]


ENGINES = ["file", pytest.param("postgresql", marks=needs_postgresql)]


@pytest.fixture(params=ENGINES[: pick(1, 2)])
def pair(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two daemons of a fleet on one ledger. The wallet has the accounts 0 and 1; the first daemon holds both."""
    place: Path | str = tmp_path / "ledger.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql").new_database()
    with pair_on(place) as made:
        yield made


@pytest.fixture
def by_clock(tmp_path: Path) -> Iterator[Pair]:
    """The same on a file, where leases go by the daemons' clocks."""
    with pair_on(tmp_path / "ledger.db") as made:
        yield made


def test_only_the_holder_of_an_account_writes_for_it(pair: Pair) -> None:
    one, two = pair
    one.note("mine", account=1)
    with pytest.raises(Refused, match="account 1") as refused:
        two.note("not mine", account=1)
    assert refused.value.code == "lease_lost"
    two.note("of all accounts", account=None)
    assert one.notes() == ["mine", "of all accounts"]


def test_a_lease_can_be_taken_when_it_is_over_and_not_before(by_clock: Pair) -> None:
    one, two = by_clock
    assert two.take([0], LEASE_MS) == {}
    one.renew(5_000)
    assert two.take([0], LEASE_MS + 1) == {}
    assert two.take([0], 5_000 + LEASE_MS + 1) == {0: 2}
    assert [row.holder for row in fleet.all_accounts(one.conn)] == ["two", "one"]


def test_who_lost_an_account_is_told_at_its_next_commit(pair: Pair) -> None:
    one, two = pair
    two.take_over([0])
    with pytest.raises(Refused, match="account 0"):
        one.note("stale", account=0)
    assert one.lost == [0]
    one.note("still mine", account=1)
    assert (one.notes(), one.lost) == (["still mine"], [0])


def test_a_lease_that_is_over_binds_nobody_while_no_other_took_it(by_clock: Pair) -> None:
    one, _ = by_clock
    one.renew(100 * LEASE_MS)
    one.note("late", account=0)
    assert one.notes() == ["late"]


def test_a_job_from_before_a_loss_is_refused_after_the_account_came_back(pair: Pair) -> None:
    one, two = pair
    job = one.job("stale", account=0)
    two.take_over([0])
    two.give_back(0)
    assert one.take([0], 2) == {0: 3}
    one.committer.commit([job])
    with pytest.raises(Refused, match="account 0"):
        job.outcome()
    one.note("new", account=0)
    assert one.notes() == ["new"]


def test_a_job_from_before_a_failover_is_refused_though_the_epoch_is_the_same_again(pair: Pair) -> None:
    """The failover lost the takeover in which the daemon got this epoch."""
    one, _ = pair
    job = one.job("stale", account=0)
    one.conn.execute("UPDATE accounts SET epoch = epoch - 1 WHERE account = 0")
    one.committer._timeline += 1
    one.seat.note_lost_connection()
    assert one.take([0], 2) == {0: 1}
    one.committer.commit([job])
    with pytest.raises(Refused, match="account 0"):
        job.outcome()
    one.note("new", account=0)
    assert one.notes() == ["new"]


@pytest.mark.parametrize("is_in_doubt", [False, True])
def test_an_account_outlives_its_connection_unless_the_outcome_of_a_commit_is_unknown(
    pair: Pair, is_in_doubt: bool
) -> None:
    one, two = pair
    two.take_over([1])
    job = one.job("asked for before the loss", account=0)
    one.seat.is_in_doubt = is_in_doubt
    one.seat.note_lost_connection()
    one.committer.commit([job])
    one.note("of all accounts", account=None)
    assert one.lost == ([0, 1] if is_in_doubt else [1])
    assert one.notes() == ["asked for before the loss"] * (not is_in_doubt) + ["of all accounts"]


def test_a_ledger_that_an_older_one_may_have_replaced_is_not_told_what_was_noted(pair: Pair) -> None:
    """Over a new connection the records are compared first: what an older ledger lacks may be signed again."""
    one, two = pair
    one.attempt(0)
    one.renew(1)
    assert fleet.is_noted(two.conn, 1, 0)
    two.conn.execute("UPDATE accounts SET noted = 0 WHERE account = 0")

    def compare(unit: Unit) -> None:
        assert not fleet.is_noted(unit.conn, 1, 0)
        one.seat.is_compared = True

    one.seat.on_connect = compare
    one.seat.note_lost_connection()
    one.renew(1)
    assert not fleet.is_noted(two.conn, 1, 0)
    one.renew(1)
    assert fleet.is_noted(two.conn, 1, 0)


def test_an_account_does_not_outlive_a_failover(pair: Pair) -> None:
    one, _ = pair
    one.committer._timeline += 1
    one.seat.note_lost_connection()
    with pytest.raises(Refused, match="account 0"):
        one.note("not read anew", account=0)
    assert one.lost == [0, 1]


def test_an_account_is_given_back_at_once(pair: Pair) -> None:
    one, two = pair
    one.give_back(1)
    assert (two.take([1], 1), one.lost) == ({1: 2}, [])
    with pytest.raises(Refused, match="account 1"):
        one.note("no more", account=1)


def test_a_takeover_that_is_not_committed_gives_nothing(pair: Pair) -> None:
    one, two = pair
    one.end_leases()
    take = two.taking([0], 1)
    two.committer.commit([two.committer.job("take", lambda unit: take(unit) and 1 / 0)])
    with pytest.raises(Refused, match="account 0"):
        two.note("not taken", account=0)
    one.note("mine", account=0)


def test_a_daemon_commits_nothing_to_tables_of_a_newer_payagent_and_lets_its_accounts_go(pair: Pair) -> None:
    one, two = pair
    two.conn.execute("UPDATE gate SET schema = 'm999_later'")
    for account in (0, None):
        with pytest.raises(Refused, match="m999_later") as refused:
            one.note("on newer tables", account)
        assert refused.value.code == "ledger_newer"
    assert (one.lost, one.notes()) == ([0, 1], [])


@pytest.mark.parametrize("pair", ENGINES, indirect=True)
def test_jobs_of_one_commit_are_fenced_each_by_its_account(pair: Pair) -> None:
    one, two = pair
    two.take_over([0])
    jobs = [one.job("stale", account=0), one.job("mine", account=1), one.job("all", account=None)]
    one.committer.commit(jobs)
    assert [type(job.raised) for job in jobs] == [Refused, type(None), type(None)]
    assert one.notes() == ["mine", "all"]


def test_the_commits_of_all_daemons_make_one_chain_of_events_and_seals(pair: Pair) -> None:
    one, two = pair
    for count in range(3):
        one.note(f"one {count}", account=None)
        two.note(f"two {count}", account=None)
    one.require_whole()


def test_a_daemon_presents_a_proof_of_another_once_the_holders_record_has_it(pair: Pair) -> None:
    one, two = pair
    one.attempt(0)
    assert (one.committer.is_noted(1), two.committer.is_noted(1)) == (True, False)
    assert not fleet.is_noted(two.conn, 1, 0)
    one.renew(1)
    assert fleet.is_noted(two.conn, 1, 0)
    assert not fleet.is_noted(two.conn, 2, 0)
    assert [row.last_signer for row in fleet.all_accounts(two.conn)] == ["host of one", None]


def test_a_record_has_only_attempts_of_accounts_that_its_daemon_held(pair: Pair) -> None:
    one, two = pair
    one.attempt(0)
    two.note("anything", account=None)
    assert (one.signed(0), two.signed(0)) == (LastSigned(1, "cc", 100), None)
    two.take_over([0])
    assert two.signed(0) == LastSigned(1, "cc", 100)


def test_nobody_signs_before_the_accounts_last_signer_is_found_in_the_ledger(pair: Pair) -> None:
    one, two = pair
    assert not one.seat.is_proven(0)
    one.prove(0)
    one.renew(1)
    assert (one.seat.is_proven(0), one.seat.is_proven(1), two.seat.is_proven(0)) == (True, False, False)


def test_a_request_to_a_holder_ends_once_and_with_an_event(pair: Pair) -> None:
    one, two = pair
    ask = AdmissionRequest("ask", 0, "pay", "two", "{}", 9)
    two.run(lambda unit: fleet.add_request(unit, ask))
    assert fleet.open_requests(one.conn, [0]) == [ask]
    assert fleet.open_requests(one.conn, [1]) == []
    before = fleet.event_seq(two.conn)
    for outcome in ('{"ok":1}', '{"late":1}'):
        one.run(lambda unit, outcome=outcome: fleet.end_request(unit, "ask", outcome, 7))  # type: ignore[misc]
    ended = fleet.request_of(two.conn, "ask")
    assert ended is not None
    assert (ended.outcome, fleet.event_seq(two.conn)) == ('{"ok":1}', before + 1)
    assert fleet.open_requests(one.conn, [0]) == []


def test_a_merchants_home_is_set_and_can_move(pair: Pair) -> None:
    one, two = pair
    assert fleet.home_of(one.conn, "https://m.example", "p") is None
    for account in (1, 0):
        two.run(lambda unit, account=account: fleet.set_home(unit, "https://m.example", "p", account, 1))  # type: ignore[misc]
        assert fleet.home_of(one.conn, "https://m.example", "p") == account
    one.require_whole()


def test_daemons_that_renew_are_living(by_clock: Pair) -> None:
    one, two = by_clock
    for daemon in by_clock:
        daemon.register(0)
    one.renew(LEASE_MS)
    living = {row.id: fleet.is_living(row, LEASE_MS + 1) for row in fleet.all_daemons(two.conn)}
    assert living == {"one": True, "two": False}
    two.run(lambda unit: fleet.forget_daemon(unit, "two"))
    assert [row.id for row in fleet.all_daemons(one.conn)] == ["one"]


def test_a_failover_that_lost_commits_leaves_no_gap_in_the_seals(by_clock: Pair, tmp_path: Path) -> None:
    one, two = by_clock
    with closing(sqlite3.connect(tmp_path / "standby.db")) as standby:
        one.conn.backup(standby)
        one.committer.commit([one.job("lost", None), one.job("lost too", None)])
        standby.backup(two.conn)
    two.note("in their place", None)  # its seal has the number of the lost one
    one.note("after it", None)
    one.require_whole()
    assert one.notes() == ["in their place", "after it"]
