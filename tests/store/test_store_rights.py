"""A role of the database that lacks a right: reads and commits are refused by its name, and it is no bug."""

import re
import sqlite3
from contextlib import closing

import pytest
from kit.fleet import daemon_on
from kit.postgresql import Server, needs_postgresql

from payagent.core.problems import Refused
from payagent.store.db.opening import failure
from payagent.store.db.postgresql.connection import PostgresqlConnection

pytestmark = needs_postgresql


def test_a_role_without_a_right_is_named_in_what_is_refused(postgresql: Server) -> None:
    url = postgresql.new_database()
    with closing(PostgresqlConnection(url)) as owner:
        owner.execute("CREATE ROLE without_events LOGIN")
        owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO without_events")
        with daemon_on(re.sub(r"//\w+@", "//without_events@", url), "one") as one:
            one.note("before", account=None)
            owner.execute("REVOKE INSERT ON events FROM without_events")
            with pytest.raises(
                Refused, match="the role without_events lacks a right: permission denied"
            ) as refused:
                one.note("after", account=None)
            assert refused.value.code == "store_failed"
            assert "payagent store migrate --daemon-role without_events" in refused.value.detail
            owner.execute("REVOKE SELECT ON events FROM without_events")
            with pytest.raises(sqlite3.OperationalError) as error:
                one.notes()
            told = failure(error.value)
            assert told is not None
            assert (told.code, "the role without_events lacks a right" in told.detail) == ("store_failed", True)
            owner.execute("GRANT SELECT, INSERT ON events TO without_events")
            one.note("again", account=None)
            assert one.notes() == ["before", "again"]
        owner.execute("DROP OWNED BY without_events")
        owner.execute("DROP ROLE without_events")
