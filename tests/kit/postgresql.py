"""A PostgreSQL server for the tests of one process, and a new database with payagent's schema for each test.

The server listens on a Unix socket in a temporary folder, and on loopback. It does not sync: no test takes its
power away. It has a synchronous standby that never comes. A session that sets `synchronous_commit = on` waits for
it for ever.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kit.agent import OpenLedger, own_account
from kit.cli import until
from kit.daemon import children
from kit.fleet import Record
from payagent.store.db.committer import Checkpoint, Job, Ownership
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.migrate import bring_up_to_date
from payagent.store.db.postgresql.move import write_file
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import fleet

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(not _BINARIES, reason="PostgreSQL is missing (Debian's package postgresql)")

_OWNER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""

_TEMPLATE = "payagent_template"


class Server:
    """A running server. `url` names a database of it, by its Unix socket; `tcp_url` by its port."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._count = 0

    def url(self, database: str) -> str:
        return f"postgresql://{_user()}@/{database}?host={self._folder}&port={self._port}"

    def tcp_url(self, url: str) -> str:
        """The database of a `url` by the server's port: a daemon's sandbox opens no Unix sockets."""
        return f"postgresql://{_user()}@127.0.0.1:{self._port}{urlsplit(url).path}"

    def new_database(self, template: str = _TEMPLATE) -> str:
        """The URL of a new database, a copy of the template."""
        self._count += 1
        name = f"test_{self._count}"
        with closing(PostgresqlConnection(self.url("postgres"))) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return int((self._folder / "data/postmaster.pid").read_text().split()[0])

    def restart(self) -> None:
        """As after a crash: no session ends in order."""
        _run("pg_ctl", "restart", "-w", "-D", str(self._folder / "data"), "-l", str(self._folder / "log"), "-m",
             "immediate")  # fmt: skip

    def crash(self) -> None:
        """Every process of it is killed, and it starts again."""
        postmaster = int((self._folder / "data/postmaster.pid").read_text().split()[0])
        killed = (postmaster, *children(postmaster))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), "the server is not dead")
        self.restart()

    @contextmanager
    def on_small_disk(self) -> Iterator[tuple[str, Path]]:
        """The URL of a new database on a disk of 64 megabytes, and that disk. Skipped if none can be mounted."""
        disk = self._folder / "small"
        disk.mkdir()
        owner = pwd.getpwnam(_user())
        options = f"size=64m,mode=700,uid={owner.pw_uid},gid={owner.pw_gid}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        try:
            with closing(PostgresqlConnection(self.url("postgres"))) as conn:
                conn.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                conn.execute(f"CREATE DATABASE on_small_disk TEMPLATE {_TEMPLATE} TABLESPACE small")
                yield self.url("on_small_disk"), disk
                conn.execute("DROP DATABASE on_small_disk WITH (FORCE)")
                conn.execute("DROP TABLESPACE small")
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def make_template(self) -> None:
        with closing(PostgresqlConnection(self.url("postgres"))) as conn:
            conn.execute(f"CREATE DATABASE {_TEMPLATE}")
        with closing(PostgresqlConnection(self.url(_TEMPLATE))) as conn:
            bring_up_to_date(conn)


@contextmanager
def server(more: str = "") -> Iterator[Server]:
    """`more`: further options, which override those of the tests."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    data = folder / "data"
    if _OWNER is not None:
        shutil.chown(folder, _OWNER, pwd.getpwnam(_OWNER).pw_gid)
    try:
        _run(
            "initdb", "-D", str(data), "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", _user()
        )
        port = free_port()
        options = (
            f"-k {folder} -c listen_addresses=127.0.0.1 -p {port} -c fsync=off -c full_page_writes=off "
            f"-c max_wal_size=64MB -c synchronous_standby_names=nobody -c synchronous_commit=local {more}"
        )
        _run("pg_ctl", "start", "-w", "-D", str(data), "-l", str(folder / "log"), "-o", options)
        try:
            found = Server(folder, port)
            found.make_template()
            yield found
        finally:
            _run("pg_ctl", "stop", "-w", "-D", str(data), "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _user() -> str:
    return _OWNER or pwd.getpwuid(os.geteuid()).pw_name


def _run(program: str, *args: str) -> None:
    command = [str(_BINARIES[-1].with_name(program)), *args]
    done = subprocess.run(
        command, user=_OWNER, group=_OWNER, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


class Impatient(PostgresqlCommitter):
    """A daemon that asks for the gate only once."""

    _gate_tries = 1


class Patient(PostgresqlCommitter):
    """A daemon that asks for the gate twice while nobody gets through."""

    _gate_tries = 2


class Hasty(PostgresqlCommitter):
    """A daemon that waits for the answer to a COMMIT only briefly."""

    _commit_patience_s = 2


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
