"""uvicorn as the daemon and `payagent proxy` run it: which sockets, which protocol, and who hears the signals.

May import: core, api.http, uvicorn. Never: knows an application; adds a header to an answer.
"""

import asyncio
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
"""How long a stop waits for the calls that are open."""

CUT_OFF_S = 1.0
"""And then for those that are cut off, which tell so, and note what they have used."""


Secure = tuple[socket.socket, ssl.SSLContext]
"""A port, and what it needs to speak TLS."""


class Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again, and what comes after `serve` would never run.

    `secure` is a port that speaks TLS, with at most `handshakes_most` handshakes under way, beside the sockets
    that `serve` gets, which do not.
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
        """What the calls need must be there until they have ended."""
        await super().shutdown(sockets)
        if cut_off := self.server_state.tasks:
            await asyncio.wait(cut_off, timeout=CUT_OFF_S)

    def _make_protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them for its own sockets."""
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def stop_on_signal(self) -> None:
        """From now on SIGTERM and SIGINT end `serve`."""

        def stop() -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def make_server(app: ASGIApp, new_id: Callable[[], str], secure: Secure | None = None) -> Server:
    """A server for one process. `new_id` names the answers to what is not HTTP."""
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
            proxy_headers=False,  # who calls says nothing of where from, nor does $FORWARDED_ALLOW_IPS
            date_header=False,  # the API writes its own, and the proxy passes the merchant's on
            backlog=bounds.backlog,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        ),
        secure,
        bounds.tcp,
    )


def listen_tcp(listen: str, what: str) -> socket.socket:
    """A socket that listens on HOST:PORT; `what` names the setting in the refusal."""
    host, _, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        tcp = socket.create_server((bare, int(port)), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    except OSError as error:
        raise Refused("config_invalid", f"{what} {listen} cannot be bound: {error.strerror}") from None
    # asyncio sets this only on sockets of its own making; without it answers wait 40 ms for an ACK
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp
