"""A primary and its standby: two servers of one database. The first can be killed and the second promoted.

Synchronous: a commit waits until the standby has it. A promoted standby keeps commits elsewhere too, as the second
standby of a real cluster would.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg

from kit.cli import until
from kit.postgresql_cluster import LEDGER, OWNER, USER, Cluster, cluster_folder, program
from payagent.store.db.postgresql.connection import PostgresqlConnection


class ServerPair:
    """`url`, `tcp_url`: both servers of the database, whichever takes writes."""

    def __init__(self, folder: Path, stack: ExitStack, is_synchronous: bool) -> None:
        self._folder = folder
        self._stack = stack
        names = "*" if is_synchronous else ""
        settings = f"wal_keep_size = 64MB\nsynchronous_commit = on\nsynchronous_standby_names = '{names}'\n"
        self._primary = Cluster(folder, "primary", settings)
        self._standby = Cluster(folder, "standby", settings)
        self._standby.follow(self._primary)
        self._both = (self._primary, self._standby)
        folders, ports = ",".join([str(folder)] * 2), ",".join(str(one.port) for one in self._both)
        self.url = f"postgresql://{USER}@/{LEDGER}?host={folders}&port={ports}"
        self.tcp_url = self.tcp_url_in(0, 1)
        for one in self._both:
            one.start()
            stack.callback(one.stop)
        self._until_it_receives("WHERE state = 'streaming'")

    def _until_it_receives(self, where: str) -> None:
        with closing(PostgresqlConnection(self._primary.url())) as conn:
            asked = f"SELECT 1 FROM pg_stat_replication {where}"
            until(lambda: conn.execute(asked).fetchone(), "the standby does not receive what is committed")

    def leave_standby_behind(self) -> None:
        """Let the standby receive nothing more than what is committed by now."""
        with (
            closing(PostgresqlConnection(self._primary.url())) as primary,
            psycopg.connect(self._standby.url(), autocommit=True) as standby,
        ):
            (written,) = primary.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            self._until_it_receives(f"WHERE flush_lsn >= '{written}'")
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            standby.execute("SELECT pg_reload_conf()")
            asked = "SELECT 1 FROM pg_stat_replication"
            until(lambda: primary.execute(asked).fetchone() is None, "the standby still receives")

    def stop_waiting_for_standbys(self) -> None:
        """Let the primary's commits wait for no standby from now on."""
        with closing(PostgresqlConnection(self._primary.url())) as primary:
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            primary.execute("SELECT pg_reload_conf()")
            asked = "SHOW synchronous_standby_names"
            until(lambda: primary.execute(asked).fetchone() == ("",), "the primary still waits")

    def kill_primary(self) -> None:
        self._primary.kill()

    def kill_standby(self) -> None:
        self._standby.kill()

    def host(self, number: int) -> str:
        """How a server is named in a URL: the first is the primary, the second its standby."""
        return f"127.0.0.1:{self._both[number].port}"

    def tcp_url_in(self, *order: int) -> str:
        """As `tcp_url`, with the servers in this order."""
        return f"postgresql://{USER}@{','.join(map(self.host, order))}/{LEDGER}"

    def url_of(self, number: int) -> str:
        """One server, whether or not it takes writes."""
        return self._both[number].url()

    def start_again(self, number: int) -> None:
        """As a host that boots does. As a primary it waits for no standby."""
        self._both[number].set("synchronous_standby_names = ''")
        self._both[number].start()

    def freeze_primary(self) -> None:
        """Suspend its processes: it accepts connections and never answers."""
        self._primary.freeze()
        self._stack.callback(self._primary.kill)

    def turn_away(self, number: int) -> None:
        """Let a server refuse new sessions by its rules for authentication."""
        self._both[number].turn_away()

    def promote(self, is_synchronous: bool) -> None:
        self._standby.promote()
        if is_synchronous:
            self._receive_elsewhere()

    @contextmanager
    def standby_of_the_new_primary(self) -> Iterator[str]:
        """A third server, which follows the promoted standby: its name in a URL, once it is on that timeline."""
        third = Cluster(self._folder, "third")
        third.follow(self._standby)
        third.start()

        def is_on_it() -> bool:
            for one in (self._standby, third):
                with psycopg.connect(one.url(), autocommit=True) as conn:
                    conn.execute("CHECKPOINT")
                    found = conn.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
            return found == (2,)

        try:
            until(is_on_it, "the third server does not follow the second")
            yield f"127.0.0.1:{third.port}"
        finally:
            third.stop()

    def _receive_elsewhere(self) -> None:
        folder = self._folder / "wal"
        folder.mkdir()
        if OWNER is not None:
            shutil.chown(folder, OWNER)
        place = f"host={self._folder} port={self._standby.port} user={USER}"
        receiver = subprocess.Popen(
            [program("pg_receivewal"), "-D", str(folder), "-d", place, "--synchronous"],
            user=OWNER,
            group=OWNER,
            cwd="/",
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(receiver.wait)
        self._stack.callback(receiver.kill)


@contextmanager
def server_pair(*, is_synchronous: bool) -> Iterator[ServerPair]:
    with cluster_folder() as folder, ExitStack() as stack:
        yield ServerPair(folder, stack, is_synchronous)
