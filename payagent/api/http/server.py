"""Runs uvicorn for the daemon and for `payagent proxy`: sockets, protocol and signals.

Never: knows an application; adds a header to an answer.
"""

import asyncio
import errno
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from payagent.api.http.connection_limits import bounded, make_room
from payagent.api.http.tls import Handshakes
from payagent.core.problems import Refused

KEEP_ALIVE_S = 75
GRACE_S = 5
"""How long a stop waits for open requests."""

CUT_OFF_S = 1.0
"""How long a stop then waits for cancelled requests, which answer and record what they used."""


Secure = tuple[socket.socket, ssl.SSLContext]
"""A port and its TLS context."""


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to us and can serve one TLS port.

    uvicorn would raise a captured signal again, and no code after `serve` would run. `secure` is a TLS port with
    at most `handshakes_most` handshakes in progress. The sockets passed to `serve` stay plain text.
    """

    def __init__(self, config: uvicorn.Config, secure: Secure | None, handshakes_most: int) -> None:
        super().__init__(config)
        self._secure = secure
        self._handshakes_most = handshakes_most

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._secure is None:
            return
        port, context = self._secure
        make = Handshakes(context, self._handshakes_most, self._make_protocol).protocol
        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_server(make, sock=port, backlog=self.config.backlog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for cancelled requests too, because they still use the ledger and the network."""
        await super().shutdown(sockets)
        if cut_off := self.server_state.tasks:
            await asyncio.wait(cut_off, timeout=CUT_OFF_S)

    def _make_protocol(self) -> asyncio.Protocol:
        """Make a protocol as uvicorn does for its own sockets."""
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def stop_on_signal(self) -> None:
        """Make SIGTERM and SIGINT end `serve` from now on."""

        def stop() -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def make_server(app: ASGIApp, new_id: Callable[[], str], secure: Secure | None = None) -> Server:
    """Make the server of this process. `new_id` makes the request ids of refusals of non-HTTP input."""
    bounds = make_room()
    return Server(
        uvicorn.Config(
            app,
            http=bounded(bounds, new_id),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # forwarded-for headers and $FORWARDED_ALLOW_IPS are ignored
            date_header=False,  # the API writes its own Date, and the proxy passes on the merchant's
            backlog=bounds.backlog,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        ),
        secure,
        bounds.tcp,
    )


def listen_tcp(listen: str, setting: str) -> socket.socket:
    """Open a socket that listens on HOST:PORT. `setting` names it in a refusal."""
    host, _, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        tcp = socket.create_server((bare, int(port)), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        fix = f"Stop the program that listens there, or set another port: {setting}." if is_taken else None
        raise Refused("config_invalid", f"{setting} {listen} cannot be bound: {error.strerror}", fix=fix) from None
    # asyncio sets this only on sockets that it creates; without it an answer waits 40 ms for an ACK
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp
