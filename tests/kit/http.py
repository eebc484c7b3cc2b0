"""Options of the tests' own HTTP clients, bodies for them, and ports for their servers."""

import gzip
import random
import socket
import ssl
from contextlib import suppress

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP. Without it httpx reads every root certificate for each client, 25 ms each."""


def compressed(body: bytes, coding: str) -> bytes:
    """The body as its Content-Encoding says, such as "gzip, gzip"."""
    for _ in coding.split(", "):
        body = gzip.compress(body)
    return body


def free_port() -> int:
    """A port that no program gets by chance before its server starts: the kernel gives out higher ones."""
    while True:
        port = random.randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
