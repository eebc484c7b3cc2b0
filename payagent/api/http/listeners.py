"""The daemon's listeners: a Unix socket that only its owner can reach, and a TCP port.

The Unix socket is bound here, because uvicorn would create it open to every user.

Never: takes over a socket that another process listens on.
"""

import os
import socket
import ssl
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from payagent.api.http.server import Secure
from payagent.core.problems import Refused
from payagent.secret_file import require_own_folder


@dataclass(frozen=True, slots=True)
class Listeners:
    """The two listeners. With `tls`, the port accepts only TLS."""

    unix: socket.socket
    tcp: socket.socket
    tls: ssl.SSLContext | None

    def sorted(self) -> tuple[list[socket.socket], Secure | None]:
        """The plain-text sockets, and the TLS port if there is one."""
        return ([self.unix, self.tcp], None) if self.tls is None else ([self.unix], (self.tcp, self.tls))

    @property
    def url(self) -> str:
        """The URL of the port. It keeps a wildcard address (0.0.0.0, ::) as it is."""
        host, port = self.tcp.getsockname()[:2]
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def listen_unix(path: Path) -> Generator[socket.socket]:
    """Open a socket that only its owner can reach: mode 0600 from the start, in a private folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        require_own_folder(path.parent)
        _clear_stale(path)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            unix.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        raise Refused("config_invalid", f"api.socket {path} cannot be bound: {error.strerror}") from None
    unix.listen(128)
    try:
        yield unix
    finally:
        unix.close()
        path.unlink(missing_ok=True)


def _clear_stale(path: Path) -> None:
    """Remove the socket file of a killed daemon. Refuse when another process still listens on it."""
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise Refused("config_invalid", f"api.socket {path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise Refused("config_invalid", f"another process listens on api.socket {path}")
    path.unlink()
