"""A primary and its standby: two servers of one database. The first can be killed and the second promoted.

Synchronous: a commit waits until the standby has it. A promoted standby keeps commits elsewhere too, as the second
standby of a real cluster would.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psycopg

from kit.cli import until
from kit.daemon import children
from kit.postgresql import _BINARIES, _OWNER, _run, _user, free_port
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.migrate import bring_up_to_date

_OPTIONS = (
    "-c listen_addresses=127.0.0.1 -c fsync=off -c full_page_writes=off -c max_wal_size=64MB "
    "-c wal_keep_size=64MB -c synchronous_commit=on"
)


class ServerPair:
    """`url`, `tcp_url`: both servers of the database, whichever takes writes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._ports = [free_port(), free_port()]
        folders = ",".join([str(folder)] * 2)
        self.url = f"postgresql://{_user()}@/postgres?host={folders}&port={','.join(map(str, self._ports))}"
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.tcp_url = f"postgresql://{_user()}@{hosts}/postgres"

    def start(self, is_synchronous: bool) -> None:
        names = "*" if is_synchronous else ""
        _run(
            "initdb",
            "-D",
            self._data(0),
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "-U",
            _user(),
        )
        with Path(self._data(0), "postgresql.conf").open("a") as settings:
            settings.write(f"synchronous_standby_names = '{names}'\n")
        self._begin(0)
        _run("pg_basebackup", "-D", self._data(1), "-d", self._place(0), "-R", "-c", "fast", "--no-sync")
        self._begin(1)
        with closing(PostgresqlConnection(self.url)) as conn:
            bring_up_to_date(conn)

    def _data(self, number: int) -> str:
        return str(self._folder / f"data{number}")

    def _place(self, number: int) -> str:
        return f"host={self._folder} port={self._ports[number]} user={_user()}"

    def _begin(self, number: int, more: str = "") -> None:
        options = f"-k {self._folder} -p {self._ports[number]} {_OPTIONS} {more}"
        log = str(self._folder / f"log{number}")
        _run("pg_ctl", "start", "-w", "-D", self._data(number), "-l", log, "-o", options)
        self._stack.callback(self._kill, number)

    def leave_standby_behind(self) -> None:
        """Let the standby receive nothing more."""
        with psycopg.connect(f"{self._place(1)} dbname=postgres", autocommit=True) as standby:
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            standby.execute("SELECT pg_reload_conf()")
        with closing(PostgresqlConnection(self.url)) as conn:
            asked = "SELECT 1 FROM pg_stat_replication"
            until(lambda: conn.execute(asked).fetchone() is None, "the standby still receives")

    def stop_waiting_for_standbys(self) -> None:
        """Let the primary's commits wait for no standby from now on."""
        with psycopg.connect(f"{self._place(0)} dbname=postgres", autocommit=True) as primary:
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            primary.execute("SELECT pg_reload_conf()")
            asked = "SHOW synchronous_standby_names"
            until(lambda: primary.execute(asked).fetchone() == ("",), "the primary still waits")

    def kill_primary(self) -> None:
        self._kill(0)

    def kill_standby(self) -> None:
        self._kill(1)

    def host(self, number: int) -> str:
        """How a server is named in a URL: the first is the primary, the second its standby."""
        return f"127.0.0.1:{self._ports[number]}"

    def tcp_url_in(self, *order: int) -> str:
        """As `tcp_url`, with the servers in this order."""
        return f"postgresql://{_user()}@{','.join(map(self.host, order))}/postgres"

    def url_of(self, number: int) -> str:
        """One server, whether or not it takes writes."""
        return f"postgresql://{_user()}@/postgres?host={self._folder}&port={self._ports[number]}"

    def start_again(self, number: int) -> None:
        """As a host that boots does, without what its processes left. As a primary it waits for no standby."""
        (self._folder / f".s.PGSQL.{self._ports[number]}.lock").unlink(missing_ok=True)
        self._begin(number, "-c synchronous_standby_names=''")

    def freeze_primary(self) -> None:
        """Its processes stand still: it accepts connections and never answers."""
        pid = int((Path(self._data(0)) / "postmaster.pid").read_text().split()[0])
        for one in (pid, *children(pid)):
            os.kill(one, signal.SIGSTOP)

    def turn_away(self, number: int) -> None:
        """Let a server refuse new sessions by its rules for authentication."""
        (Path(self._data(number)) / "pg_hba.conf").write_text("host all all all reject\n")
        _run("pg_ctl", "reload", "-D", self._data(number))

    def _kill(self, number: int) -> None:
        pid_file = Path(self._data(number)) / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text().split()[0])
        with suppress(ProcessLookupError, FileNotFoundError):
            for one in (pid, *children(pid)):
                os.kill(one, signal.SIGKILL)
        pid_file.unlink()

    def promote(self, is_synchronous: bool) -> None:
        _run("pg_ctl", "promote", "-w", "-D", self._data(1))
        if is_synchronous:
            self._receive_elsewhere()

    def _receive_elsewhere(self) -> None:
        folder = self._folder / "wal"
        folder.mkdir()
        if _OWNER is not None:
            shutil.chown(folder, _OWNER)
        receiver = subprocess.Popen(
            [
                str(_BINARIES[-1].with_name("pg_receivewal")),
                "-D",
                str(folder),
                "-d",
                self._place(1),
                "--synchronous",
            ],
            user=_OWNER,
            group=_OWNER,
            cwd="/",
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(receiver.wait)
        self._stack.callback(receiver.kill)


@contextmanager
def server_pair(*, is_synchronous: bool) -> Iterator[ServerPair]:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if _OWNER is not None:
        shutil.chown(folder, _OWNER, pwd.getpwnam(_OWNER).pw_gid)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        made = ServerPair(folder, stack)
        made.start(is_synchronous)
        yield made
