"""Tells a service manager that the daemon is ready: systemd's Type=notify (sd_notify(3)).

May import: the standard library.
Never: waits; makes the daemon fail.
"""

import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def service_manager(environ: Mapping[str, str]) -> Generator[Callable[[str], None]]:
    """A function that tells READY=1, with a status, to the socket that $NOTIFY_SOCKET names, if it names one.

    It tells once, and the socket is closed then. It is connected at once, since the daemon's fence lets none be
    connected later. '@' stands for an abstract socket. A manager that does not listen starts the daemon anew after
    its own time-out; the log says no more of it.
    """
    address = environ.get("NOTIFY_SOCKET", "")  # of no name none is connected
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        try:
            datagram.connect(os.fsencode(address.replace("@", "\0", 1)))
        except OSError:
            datagram.close()

        def tell_ready(status: str) -> None:
            with datagram, suppress(OSError):
                datagram.send(f"READY=1\nSTATUS={status}".encode())

        yield tell_ready
