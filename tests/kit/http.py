"""Options of the tests' own HTTP clients, and bodies for them."""

import gzip
import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP. Without it httpx reads every root certificate for each client, 25 ms each."""


def compressed(body: bytes, coding: str) -> bytes:
    """The body as its Content-Encoding says, such as "gzip, gzip"."""
    for _ in coding.split(", "):
        body = gzip.compress(body)
    return body
