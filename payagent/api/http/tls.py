"""TLS on the port, required before other machines may connect.

Start at `server_context` (certificate and key) and `Handshakes`. asyncio creates the protocol only after the
handshake, so unfinished handshakes would escape every limit. Here a connection counts from its start, and its
handshake may take HANDSHAKE_S.

Never: falls back to plain text; knows HTTP.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from payagent.core.problems import Refused
from payagent.secret_file import require_private

HANDSHAKE_S = 5.0


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load certificate and key for TLS 1.2 or newer.

    Raises `config_invalid` when a file is missing, when the two do not match, or when others can read the key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        require_private(key)
        context.load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        reason = (
            "they do not belong together" if "MISMATCH" in (error.reason or "") else "they cannot be read as PEM"
        )
        raise Refused(
            "config_invalid", f"api.tls_certificate_file {certificate} and api.tls_key_file {key}: {reason}"
        ) from None
    except OSError as error:
        raise Refused(
            "config_invalid", f"{error.filename or certificate} cannot be read: {error.strerror}"
        ) from None
    return context


def _no_password() -> str:
    """Replaces OpenSSL's prompt on the terminal. An encrypted key counts as unreadable."""
    return ""


@dataclass(slots=True)
class Handshakes:
    """Performs the TLS handshakes of one port, at most `most` at once."""

    context: ssl.SSLContext
    most: int
    make: Callable[[], asyncio.Protocol]
    """Makes the protocol that runs over TLS."""

    handshake_s: float = HANDSHAKE_S
    _under_way: dict[asyncio.Task[None], None] = field(default_factory=dict)

    def protocol(self) -> asyncio.Protocol:
        """The protocol for a new connection."""
        return _Plain(self)

    def begin(self, transport: asyncio.Transport) -> None:
        if len(self._under_way) >= self.most:
            transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._handshake(transport))
        self._under_way[task] = None
        task.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _handshake(self, transport: asyncio.Transport) -> None:
        early = _Early()
        try:
            secure = await asyncio.get_running_loop().start_tls(
                transport,
                early,
                self.context,
                server_side=True,
                ssl_handshake_timeout=self.handshake_s,
                ssl_shutdown_timeout=self.handshake_s,
            )
        except (OSError, asyncio.CancelledError):
            transport.abort()
            return
        if secure is None or early.is_over:
            transport.abort()
            return
        protocol = self.make()
        protocol.connection_made(secure)
        secure.set_protocol(protocol)
        if early.data:
            protocol.data_received(bytes(early.data))


class _Plain(asyncio.Protocol):
    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._handshakes.begin(transport)  # type: ignore[arg-type]  # of a stream


class _Early(asyncio.Protocol):
    """Buffers data that arrives between the end of the handshake and the switch to the real protocol."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.is_over = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
