"""Options of the tests' own HTTP clients."""

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP. Without it httpx reads every root certificate for each client, 25 ms each."""
