"""An old primary comes back after an asynchronous failover, and a daemon with it: the fleet pays once.

Both servers take writes then. The daemons are `payagent serve`, by a URL that names both.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from fleetpair import fail_over, fresh, keep_first_account, landed, two_accounts, until_ready
from kit.cli import until
from kit.daemon import refused
from kit.daemons_of_a_fleet import Member, asked, member
from kit.effort import long_only
from kit.postgresql import needs_postgresql
from kit.postgresql_pair import server_pair

from payagent.store.db.daemon_file import DaemonFile

pytestmark = needs_postgresql


def timelines(folder: Path) -> list[int]:
    """What a daemon has kept in its data folder."""
    return list(json.loads((folder / "data/daemon.json").read_text())["timelines"].values())


def is_used(url: str) -> bool:
    """Whether a daemon has committed to a server since it was promoted."""
    with psycopg.connect(url, autocommit=True) as conn:
        return conn.execute("SELECT timeline FROM gate").fetchone() == (2,)


@pytest.mark.parametrize(
    "order",
    [pytest.param((0, 1), id="old primary first"), pytest.param((1, 0), id="new primary first", marks=long_only)],
)
def test_a_daemon_that_starts_with_the_old_primary_pays_nothing_again(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    # The standby has each commit, so that the accounts sign at once. The daemons do not count on that.
    with server_pair(is_synchronous=True) as servers, ExitStack() as stack:
        url = servers.tcp_url_in(*order)
        devnet = stack.enter_context(two_accounts(url, tmp_path))
        one = stack.enter_context(member(fresh(tmp_path / "a", devnet, url)))
        with member(fresh(tmp_path / "b", devnet, url)) as other:
            until_ready(one, other)
            other.leave()
        fail_over(servers)
        until(lambda: is_used(servers.url_of(1)), "the daemon does not use the new primary")
        until_ready(one)
        servers.start_again(0)
        keep_first_account(servers.url_of(0))
        other = stack.enter_context(member(tmp_path / "b"))
        until_ready(one, other)
        body = asked(devnet, "once")
        with ThreadPoolExecutor(2) as pool:
            told = list(pool.map(lambda at: at.pay(body, "once"), (one, other)))
        assert len({(row["id"], row["tx_hash"]) for row in told}) == 1
        for at in (one, other):  # every thread of a daemon reads where its writer commits
            with ThreadPoolExecutor(8) as pool:
                paths = [f"/v1/payments/{told[0]['id']}"] * 16
                assert {answer.status_code for answer in pool.map(at.http.get, paths)} == {200}
        until(lambda: landed(devnet), "the payment does not land")
        until(
            lambda: one.http.get(f"/v1/payments/{told[0]['id']}").json()["state"] == "confirmed",
            "the payment is not confirmed",
        )
        assert landed(devnet) == {told[0]["tx_hash"]}
        assert timelines(tmp_path / "a") == timelines(tmp_path / "b") == [2]


def test_a_daemon_that_waits_says_for_whom_goes_on_by_itself_and_can_be_stopped(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers, ExitStack() as stack:
        away = servers.host(1)
        devnet = stack.enter_context(two_accounts(servers.tcp_url, tmp_path))
        folder = fresh(tmp_path / "a", devnet, servers.tcp_url)
        servers.kill_standby()
        with member(folder) as one:
            require_waiting(one, away)
            one.leave()  # by SIGTERM, with exit code 0
        one = stack.enter_context(member(folder))
        require_waiting(one, away)
        servers.start_again(1)
        until_ready(one)
        one.pay(asked(devnet, "first"), "first")

        servers.kill_standby()
        end_sessions(servers.url_of(0))
        until(lambda: away in one.http.get("/readyz").text, "the daemon does not wait")
        require_waiting(one, away)
        servers.start_again(1)
        until_ready(one)
        one.pay(asked(devnet, "second"), "second")
        one.leave()

        servers.turn_away(1)
        code, said = refused(folder)
        assert (code, "refuses this daemon" in said, away in said) == (1, True, True)


def test_a_daemon_waits_for_the_new_primary_whatever_becomes_of_the_old_one(tmp_path: Path) -> None:
    # As after a power cut: the machines boot one after the other.
    with server_pair(is_synchronous=False) as servers, ExitStack() as stack:
        devnet = stack.enter_context(two_accounts(servers.tcp_url, tmp_path))
        folder = fresh(tmp_path / "a", devnet, servers.tcp_url)
        (folder / "data").mkdir(exist_ok=True)
        with psycopg.connect(servers.url_of(0)) as conn:
            (system,) = conn.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone() or ("",)
        DaemonFile(folder / "data/daemon.json").note_timeline(system, 2)
        fail_over(servers)
        servers.kill_standby()
        servers.start_again(0)
        one = stack.enter_context(member(folder))
        require_waiting(one, servers.host(1))
        servers.kill_primary()
        until(lambda: servers.host(0) in one.http.get("/readyz").text, "the daemon does not miss the old primary")
        require_waiting(one, servers.host(1))
        servers.start_again(1)
        require_waiting(one, servers.host(0))
        servers.start_again(0)
        until_ready(one)
        assert is_used(servers.url_of(1))


def require_waiting(one: Member, away: str) -> None:
    assert one.http.get("/healthz").status_code == 200
    ready = one.http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["code"]) == (503, False, "store_failed")
    assert away in ready.json()["checks"]["ledger"]
    told = one.http.post("/v1/payments", json={}, headers={"Idempotency-Key": "k"})
    assert (told.status_code, told.json()["code"]) == (503, "store_failed")
    assert away in told.json()["detail"]
    assert "Retry-After" in told.headers


def end_sessions(url: str) -> None:
    """As a network that fails for a moment does."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def test_a_daemon_starts_on_the_new_primary_while_the_old_one_is_frozen(tmp_path: Path) -> None:
    with server_pair(is_synchronous=True) as servers, ExitStack() as stack:
        url = servers.tcp_url_in(0, 1)
        devnet = stack.enter_context(two_accounts(url, tmp_path))
        with member(fresh(tmp_path / "a", devnet, url)) as one:
            until_ready(one)
            one.leave()
        servers.freeze_primary()
        servers.promote(is_synchronous=True)
        one = stack.enter_context(member(tmp_path / "a"))
        until_ready(one)
        one.pay(asked(devnet, "once"), "once")
