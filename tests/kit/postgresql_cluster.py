"""PostgreSQL clusters: data folders, each with a server of its own.

`initdb` runs once for all processes of a run, and each cluster is a copy of what it made. The database `LEDGER`
has payagent's tables. All clusters have the same system identifier, so to payagent they are one server.
"""

import atexit
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest

from kit.cli import until
from kit.daemon import children
from kit.http import free_port
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.migrate import bring_up_to_date

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(not _BINARIES, reason="PostgreSQL is missing (Debian's package postgresql)")

OWNER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""

USER = OWNER or pwd.getpwuid(os.geteuid()).pw_name

LEDGER = "ledger"
"""The database with payagent's tables that each cluster has."""

_SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = off
full_page_writes = off
autovacuum = off
min_wal_size = 16MB
max_wal_size = 64MB
"""
"""No test simulates a power loss."""


class Cluster:
    """A data folder in `folder`, where its server has its Unix socket too. It also listens on loopback."""

    def __init__(self, folder: Path, name: str = "data", settings: str = "") -> None:
        """`settings`: further lines of its configuration, which override those of the tests."""
        self.folder, self.port = folder, free_port()
        self._data = folder / name
        subprocess.run(["cp", "-a", "--reflink=auto", _ready(), self._data], check=True)
        self.set(f"{_SETTINGS}port = {self.port}\nunix_socket_directories = '{folder}'\n{settings}")

    def set(self, settings: str) -> None:
        """Append settings. They apply at the next start, and the last value of a name wins."""
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"{settings}\n")

    def url(self, database: str = LEDGER) -> str:
        """A database by the server's Unix socket."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def follow(self, primary: "Cluster") -> None:
        """Make this the standby of another cluster, before both of them start."""
        place = f"host={primary.folder} port={primary.port} user={USER}"
        self.set(f"primary_conninfo = '{place}'")
        (self._data / "standby.signal").touch()

    def start(self) -> None:
        self._control("start", "-l", str(self.folder / f"{self._data.name}.log"))

    def stop(self) -> None:
        """End the server if it runs, as a crash would: no session ends in order."""
        if self._pid_file.exists():
            self._control("stop", "-m", "immediate")

    def promote(self) -> None:
        self._control("promote")

    def freeze(self) -> None:
        """Let its processes stand still: it accepts connections and never answers. End it by `kill`."""
        for pid in (self.pid, *children(self.pid)):
            os.kill(pid, signal.SIGSTOP)

    def turn_away(self) -> None:
        """Refuse new sessions by the rules for authentication."""
        (self._data / "pg_hba.conf").write_text("local all all trust\nhost all all all reject\n")
        self._control("reload")

    def ask_for_password(self, database: str) -> None:
        """Want the user's password of whoever opens this database by the server's port."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host {database} all 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self._control("reload")

    @contextmanager
    def upgraded(self) -> Iterator["Cluster"]:
        """The cluster that pg_upgrade makes of this one, which is never started again."""
        self._control("stop", "-m", "fast")
        one = Cluster(self.folder, "upgraded")
        shutil.rmtree(one._data)
        _init(one._data)
        places = (
            "-b",
            str(_BINARIES[-1].parent),
            "-B",
            str(_BINARIES[-1].parent),
            "-d",
            str(self._data),
            "-D",
            str(one._data),
        )
        run("pg_upgrade", *places, "-U", USER, "-s", str(self.folder), cwd=self.folder)
        one.set(f"{_SETTINGS}port = {one.port}\nunix_socket_directories = '{self.folder}'")
        one.start()
        try:
            yield one
        finally:
            one.stop()

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int(self._pid_file.read_text().split()[0])

    def kill(self) -> None:
        """Kill every process of the server."""
        killed = (self.pid, *children(self.pid))
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in killed), "the server is not dead")
        self._pid_file.unlink()

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"

    def _control(self, *args: str) -> None:
        run("pg_ctl", "-w", "-D", str(self._data), *args)


@contextmanager
def cluster_folder() -> Iterator[Path]:
    """A temporary folder that servers may use."""
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        _give_away(Path(name))
        yield Path(name)


@cache
def _ready() -> Path:
    """The data folder that clusters are copies of. The last process of the run that has used it removes it."""
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = Path(tempfile.gettempdir(), f"pg-{run_id}")
    folder.mkdir(mode=0o700, exist_ok=True)
    _give_away(folder)
    in_use = os.open(folder, os.O_RDONLY)
    fcntl.flock(in_use, fcntl.LOCK_SH)
    with (folder / "lock").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            shutil.rmtree(folder / "making", ignore_errors=True)
            _make(folder, folder / "making")
            (folder / "making").rename(folder / "ready")
    atexit.register(_leave, folder, in_use)
    return folder / "ready"


def _make(folder: Path, data: Path) -> None:
    _init(data)
    port = free_port()
    options = f"-k {folder} -p {port} -c listen_addresses= -c fsync=off"
    run("pg_ctl", "start", "-w", "-D", str(data), "-l", str(folder / "log"), "-o", options)
    place = f"?host={folder}&port={port}"
    with closing(PostgresqlConnection(f"postgresql://{USER}@/postgres{place}")) as conn:
        conn.execute(f"CREATE DATABASE {LEDGER}")
    with closing(PostgresqlConnection(f"postgresql://{USER}@/{LEDGER}{place}")) as conn:
        bring_up_to_date(conn)
    run("pg_ctl", "stop", "-w", "-D", str(data), "-m", "fast")


def _init(data: Path) -> None:
    made = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1", "-U", USER)
    run("initdb", "-D", str(data), *made)


def _leave(folder: Path, in_use: int) -> None:
    with suppress(BlockingIOError):
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    os.close(in_use)


def _give_away(folder: Path) -> None:
    if OWNER is not None:
        shutil.chown(folder, OWNER, pwd.getpwnam(OWNER).pw_gid)


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs."""
    return str(_BINARIES[-1].with_name(name))


def run(name: str, *args: str, cwd: Path = Path("/")) -> None:
    """Run one of PostgreSQL's programs as the servers' user."""
    done = subprocess.run(
        [program(name), *args],
        user=OWNER,
        group=OWNER,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
