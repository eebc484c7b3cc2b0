"""pgbouncer in transaction mode before a database, as hosters of PostgreSQL offer it."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kit.http import free_port
from kit.postgresql_cluster import OWNER, USER

_PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
needs_pooler = pytest.mark.skipif(_PROGRAM is None, reason="pgbouncer is missing (Debian's package pgbouncer)")


@contextmanager
def pooler(url: str) -> Iterator[str]:
    """The URL of the same database, through the pooler."""
    parts, port = urlsplit(url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pool-"))
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port} user={USER}\n"
        f"[pgbouncer]\npool_mode = transaction\nauth_type = any\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\n"
    )
    folder.chmod(0o755)
    try:
        with subprocess.Popen(
            [str(_PROGRAM), str(config)], user=OWNER, group=OWNER, cwd="/", stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            said = next((line for line in process.stderr if "process up" in line), None)
            assert said is not None
            try:
                yield f"postgresql://{USER}@127.0.0.1:{port}{parts.path}"
            finally:
                process.kill()
    finally:
        shutil.rmtree(folder)
