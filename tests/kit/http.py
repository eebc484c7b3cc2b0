"""What the tests' own HTTP clients share."""

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of servers that speak none: httpx would read every root certificate for each client, 25 ms each."""
