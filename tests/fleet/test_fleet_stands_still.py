"""A database stands still: the daemon answers, says what it waits for, and goes on by itself."""

from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from fleetpair import fresh, two_accounts, until_ready
from kit.cli import until
from kit.daemons_of_a_fleet import Member, asked, member
from kit.effort import long_only, pick
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pair import server_pair

pytestmark = needs_postgresql


def until_silent(one: Member) -> None:
    """Until /readyz says that the database does not answer, and /healthz answers nevertheless."""
    until(
        lambda: "did not answer a read" in one.http.get("/readyz").text, "the daemon does not say what it misses"
    )
    assert one.http.get("/healthz").status_code == 200
    told = one.http.post("/v1/payments", json={}, headers={"Idempotency-Key": "k"})
    assert (told.status_code, told.json()["code"]) == (503, "store_failed")


@pytest.mark.parametrize("table", pick(["payments"], ["payments", "gate", "accounts", "events"]))
def test_a_daemon_answers_while_an_operator_locks_a_table(tmp_path: Path, postgresql: Server, table: str) -> None:
    local = postgresql.new_database()
    url = postgresql.tcp_url(local)
    with two_accounts(url, tmp_path) as devnet, member(fresh(tmp_path / "a", devnet, url)) as one:
        until_ready(one)
        with psycopg.connect(local) as operator:
            operator.execute(f"LOCK TABLE {table}")
            until_silent(one)
        until_ready(one)
        one.pay(asked(devnet, "once"), "once")


@long_only
def test_payments_go_on_at_the_new_primary_while_the_old_one_is_frozen(tmp_path: Path) -> None:
    with server_pair(is_synchronous=True) as servers, ExitStack() as stack:
        url = servers.tcp_url_in(0, 1)
        devnet = stack.enter_context(two_accounts(url, tmp_path))
        one = stack.enter_context(member(fresh(tmp_path / "a", devnet, url)))
        until_ready(one)
        servers.freeze_primary()
        until_silent(one)
        servers.promote(is_synchronous=True)
        until_ready(one)
        one.pay(asked(devnet, "once"), "once")
