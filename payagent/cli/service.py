"""Tells a service manager that the daemon serves: systemd's Type=notify (sd_notify(3)).

May import: the standard library. Never: waits; fails the daemon.
"""

import os
import socket
from collections.abc import Mapping


def tell_ready(environ: Mapping[str, str], status: str) -> None:
    """One datagram to the socket that $NOTIFY_SOCKET names, when it names one; '@' stands for an abstract socket.

    A manager that does not listen starts the daemon anew after its own time-out; the log says no more of it.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        try:
            datagram.sendto(f"READY=1\nSTATUS={status}".encode(), os.fsencode(address.replace("@", "\0", 1)))
        except OSError:
            return
