"""The real daemons of a fleet are upgraded one after the other, and pay all the while."""

from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from kit.cli import invoke, until
from kit.daemon import refused
from kit.daemons_of_a_fleet import asked, fleet_of, member
from kit.effort import pick
from kit.next_release import NAME, OLDER, VERSION, upgraded
from kit.postgresql import Server, needs_postgresql

from payagent.core.version import VERSION as OLD_VERSION
from payagent.devnet.server import DevnetThread
from payagent.store.db.postgresql.connection import PostgresqlConnection

pytestmark = [needs_postgresql, pytest.mark.timeout(1200)]

LATER = "kit.next_release"

COUNT = pick(2, 3)


def test_a_fleet_is_upgraded_one_by_one_and_migrated_at_the_end(tmp_path: Path, postgresql: Server) -> None:
    url = postgresql.tcp_url(postgresql.new_database())

    def schema() -> str:
        with closing(PostgresqlConnection(url)) as conn:
            (name,) = conn.execute("SELECT schema FROM gate").fetchone()
            return str(name)

    with (
        DevnetThread(block_time_s=1) as devnet,
        fleet_of(COUNT, tmp_path, devnet, url) as members,
        ExitStack() as stack,
    ):

        def each_pays(why: str) -> None:
            until(lambda: all(one.ready()["ready"] for one in members), "not each is ready")
            for number, one in enumerate(members):
                assert one.pay(asked(devnet, f"{why} {number}"), f"{why}-{number}")["state"] != "rejected"

        def upgrade(number: int) -> None:
            members[number].leave()
            members[number] = stack.enter_context(member(tmp_path / "abc"[number], LATER))

        upgrade(0)
        each_pays("one-is-newer")
        with upgraded():
            migrated = invoke("store", "migrate", "--url", url)
        assert migrated.problem == "already_running"
        assert f"runs payagent {OLD_VERSION}, which does not know {NAME}" in migrated.error["detail"]
        for number in range(1, COUNT - 1):
            upgrade(number)
            each_pays("one-is-older")
        assert schema() == OLDER

        members[-1].leave()
        code, said = refused(tmp_path / "abc"[COUNT - 1])
        assert code == 2
        assert f"runs payagent {VERSION}, this is {OLD_VERSION}" in said
        assert schema() == OLDER

        members[-1] = stack.enter_context(member(tmp_path / "abc"[COUNT - 1], LATER))
        assert schema() == NAME
        each_pays("all-are-newer")
        for one in members:
            one.leave()
        code, said = refused(tmp_path / "a")
        assert code == 2
        assert f"a newer payagent changed the database: {NAME}" in said
