"""Which process is at the other end of a Unix socket, according to the kernel (SO_PEERCRED).

Never: believes what the other end says about itself.
"""

import os
import socket
import struct


def peer_pid_and_uid(connection: socket.socket) -> tuple[int, int]:
    """Return the process id and the user id of the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def is_strangers(connection: socket.socket) -> bool:
    """Whether another user is at the other end. Root is allowed; nothing could stop it."""
    return peer_pid_and_uid(connection)[1] not in (0, os.geteuid())
