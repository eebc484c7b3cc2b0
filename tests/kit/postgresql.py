"""A PostgreSQL server for the tests of one process, and a new database with payagent's schema for each test.

It has a synchronous standby that never comes. A session that sets `synchronous_commit = on` waits for it for ever.
Two servers, of which one takes over, are in `kit.postgresql_pair`.
"""

import pwd
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kit.agent import OpenLedger, own_account
from kit.fleet import Record
from kit.postgresql_cluster import LEDGER, USER, Cluster, cluster_folder
from kit.postgresql_cluster import needs_postgresql as needs_postgresql
from payagent.store.db.committer import Checkpoint, Job, Ownership
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.move import write_file
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import fleet

_SETTINGS = "synchronous_standby_names = 'nobody'\nsynchronous_commit = local\n"


class Server:
    """A running server. `url` names a database of it, by its Unix socket; `tcp_url` by its port."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._count = 0

    def url(self, database: str) -> str:
        return self._cluster.url(database)

    def tcp_url(self, url: str) -> str:
        """The database of a `url` by the server's port: a daemon's sandbox opens no Unix sockets."""
        return f"postgresql://{USER}@127.0.0.1:{self._cluster.port}{urlsplit(url).path}"

    def new_database(self, template: str = LEDGER) -> str:
        """The URL of a new database, a copy of the template."""
        self._count += 1
        name = f"test_{self._count}"
        with closing(PostgresqlConnection(self.url("postgres"))) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(name)

    def url_with_password(self, url: str, password: str) -> str:
        """The database of a `url` by the server's port, where the user has to give this password."""
        with closing(PostgresqlConnection(self.url("postgres"))) as conn:
            conn.execute(f"ALTER USER {USER} PASSWORD '{password}'")
        self._cluster.ask_for_password(urlsplit(url).path.removeprefix("/"))
        return self.tcp_url(url)

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return self._cluster.pid

    def restart(self) -> None:
        """As after a crash: no session ends in order."""
        self._cluster.stop()
        self._cluster.start()

    def crash(self) -> None:
        """Every process of it is killed, and it starts again."""
        self._cluster.kill()
        self._cluster.start()

    @contextmanager
    def on_small_disk(self) -> Iterator[tuple[str, Path]]:
        """The URL of a new database on a disk of 64 megabytes, and that disk. Skipped if none can be mounted."""
        disk = self._cluster.folder / "small"
        disk.mkdir()
        owner = pwd.getpwnam(USER)
        options = f"size=64m,mode=700,uid={owner.pw_uid},gid={owner.pw_gid}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with closing(PostgresqlConnection(self.url("postgres"))) as conn:
                conn.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                conn.execute(f"CREATE DATABASE on_small_disk TEMPLATE {LEDGER} TABLESPACE small")
                yield self.url("on_small_disk"), disk
                conn.execute("DROP DATABASE on_small_disk WITH (FORCE)")
                conn.execute("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


@contextmanager
def server(settings: str = _SETTINGS) -> Iterator[Server]:
    with cluster_folder() as folder:
        cluster = Cluster(folder, settings=settings)
        cluster.start()
        try:
            yield Server(cluster)
        finally:
            cluster.stop()


class Impatient(PostgresqlCommitter):
    """A daemon that asks for the gate only once."""

    _gate_tries = 1


class Patient(PostgresqlCommitter):
    """A daemon that asks for the gate three times, 1.5 s each, while nobody gets through."""

    _gate_tries = 3


class Hasty(PostgresqlCommitter):
    """A daemon that waits half a second for each answer."""

    patience_s = 0.5


class Unfenced(PostgresqlCommitter):
    """A daemon with a bug: it runs jobs for accounts that it does not hold."""

    def _is_fenced_off(self, _job: Job) -> bool:
        return False


def ledger_at(url: str) -> OpenLedger:
    """A ledger on PostgreSQL, for `kit.agent.World.open_ledger`: of a daemon that holds the account 0."""

    def opened(path: Path, checkpoint: Checkpoint, own: Ownership | None) -> tuple[Writer, Readers]:
        seat = Seat("daemon", "host", {0: Record()} if own is None else own.records)

        def take(unit: Unit) -> None:
            fleet.add_account(unit, 0, own_account().address.text)
            seat.hold(unit, fleet.take_accounts(unit, seat.holder, [0], 0))
            fleet.prove(unit, seat.holder, 0)

        writer, readers = open_fleet_store(url, path.parent, checkpoint=checkpoint, seat=seat)
        writer.submit("take", take).result()
        return writer, readers

    return opened


def move_to_file(url: str, path: Path) -> None:
    """Write a ledger on PostgreSQL into a new file."""
    write_file(url, path)
