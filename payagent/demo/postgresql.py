"""A PostgreSQL server for the demo of a fleet, in a temporary folder.

Never: leaves a server or a file behind; is reached without a password.
"""

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from payagent.demo.stage import DemoFailed, free_port

OWNER = "payagent"


@dataclass(frozen=True, slots=True)
class DemoDatabase:
    """An empty database: its URL, and the password of its owner."""

    url: str
    password: str


def pg_ctl(environ: Mapping[str, str]) -> str | None:
    """PostgreSQL's program that makes and starts a server; None if this machine has none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # where Debian has them
    return shutil.which("pg_ctl", path=os.pathsep.join([environ.get("PATH", ""), *map(str, folders)]))


@contextmanager
def database(environ: Mapping[str, str]) -> Iterator[DemoDatabase]:
    """Start a server, and stop it however the block ends."""
    program = pg_ctl(environ) or "pg_ctl"
    folder = Path(mkdtemp(prefix="payagent-demo-"))
    data, password, port = folder / "data", secrets.token_urlsafe(24), free_port()
    (folder / "password").write_text(password)
    as_user = _user(folder)
    options = f"-k {folder} -c listen_addresses=127.0.0.1 -p {port} -c fsync=off"
    try:
        _run(as_user, program, "initdb", "-D", data, "-o", _initdb_options(folder))
        _run(as_user, program, "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        try:
            yield DemoDatabase(f"postgresql://{OWNER}@127.0.0.1:{port}/postgres", password)
        finally:
            _run(as_user, program, "stop", "-w", "-D", data, "-m", "immediate")
    finally:
        shutil.rmtree(folder)


def _initdb_options(folder: Path) -> str:
    return f"--auth=scram-sha-256 --pwfile={folder}/password -U {OWNER} --encoding=UTF8 --locale=C --no-sync"


def _user(folder: Path) -> str | None:
    """The user that runs the server and owns its folder. None: this one. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    user = "postgres" if "postgres" in names else "nobody"
    for path in (folder, folder / "password"):
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
    return user


def _run(user: str | None, *command: str | Path) -> None:
    group = None if user is None else pwd.getpwnam(user).pw_gid
    done = subprocess.run(  # noqa: S603  a program of the machine's own PostgreSQL
        list(map(str, command)),
        user=user,
        group=group,
        extra_groups=None if user is None else [],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DemoFailed(f"{command[1]} of PostgreSQL failed: {done.stdout[-600:]}")
