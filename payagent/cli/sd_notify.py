"""Tells a service manager that the daemon is ready: systemd's Type=notify (sd_notify(3)).

Never: waits; makes the daemon fail.
"""

import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def service_manager(environ: Mapping[str, str]) -> Generator[Callable[[str], None]]:
    """Yield a function that sends READY=1 and a status to the socket in $NOTIFY_SOCKET, if that is set.

    Call it once; it closes the socket. The socket is connected at once, because the daemon's sandbox allows no
    later connection. '@' stands for an abstract socket. Errors are ignored: systemd restarts the daemon after its
    timeout.
    """
    address = environ.get("NOTIFY_SOCKET", "")  # "" fails to connect
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        try:
            datagram.connect(os.fsencode(address.replace("@", "\0", 1)))
        except OSError:
            datagram.close()

        def tell_ready(status: str) -> None:
            with datagram, suppress(OSError):
                datagram.send(f"READY=1\nSTATUS={status}".encode())

        yield tell_ready
