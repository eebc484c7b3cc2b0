"""A daemon commits only to its own ledger on a server that keeps what the config claims."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from kit.fleet import Daemon, Record, daemon_on
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pooler import needs_pooler, pooler

from payagent.core.problems import Refused
from payagent.store.db.engine import copy_to_database, copy_to_file
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.signer_record import DatabaseMark, LastSigned

pytestmark = needs_postgresql


@pytest.fixture
def url(postgresql: Server) -> str:
    return postgresql.new_database()


def execute(url: str, statement: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute(statement)


def refusal(url: str, record: Record | None = None, *, is_synchronous: bool = False) -> str:
    """Why a daemon with this signer's record does not start."""
    seat = Seat("daemon", "host", {0: record or Record()}, is_synchronous=is_synchronous)
    with pytest.raises(Refused) as refused:
        PostgresqlCommitter(url, seat=seat)
    assert refused.value.code == "config_invalid"
    return str(refused.value.detail)


@contextmanager
def signed_on(url: str) -> Iterator[tuple[Daemon, Record]]:
    """A daemon that has signed, and its record."""
    with daemon_on(url, "one") as one:
        one.add_accounts()
        one.take([0], 0)
        one.attempt(0)
        record = one.seat.records[0]
        assert isinstance(record, Record)
        yield one, record


@pytest.mark.parametrize(
    ("names", "commit", "told"),
    [("", "on", "synchronous_standby_names is ''"), ("*", "local", "synchronous_commit is local")],
)
def test_a_claim_of_a_synchronous_standby_that_the_server_does_not_keep_is_refused(
    url: str, names: str, commit: str, told: str
) -> None:
    database = url.partition("@/")[2].partition("?")[0]
    execute(url, f"ALTER DATABASE {database} SET synchronous_commit = {commit}")
    with settings(url, names):
        assert told in refusal(url, is_synchronous=True)


@contextmanager
def settings(url: str, names: str) -> Iterator[None]:
    """The server's `synchronous_standby_names`, for new sessions too."""
    if names:
        yield
        return
    execute(url, "ALTER SYSTEM SET synchronous_standby_names = ''")
    yield


@needs_pooler
def test_a_pooler_is_refused(postgresql: Server, url: str) -> None:
    with pooler(postgresql.tcp_url(url)) as through:
        assert "leads to a pooler" in refusal(through)
