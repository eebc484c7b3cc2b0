"""uvicorn as the daemon and `payagent proxy` run it: which sockets, which protocol, and who hears the signals.

May import: core, api.connections, uvicorn. Never: knows an application; adds a header to an answer.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from payagent.api.connections import bounded, make_room
from payagent.core.problem import Refused

KEEP_ALIVE_S = 75
GRACE_S = 5


class Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again, and what comes after `serve` would never run."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def stop_on_signal(self) -> None:
        """From now on SIGTERM and SIGINT end `serve`."""

        def stop() -> None:
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def make_server(app: ASGIApp, new_id: Callable[[], str]) -> Server:
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
            date_header=False,  # the API writes its own, and the proxy passes the merchant's on
            backlog=bounds.backlog,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
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
