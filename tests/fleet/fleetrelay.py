"""A TCP relay between a daemon and what it calls: it can be closed, or lose what goes one way."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Way = Literal["open", "closed", "requests are lost", "answers are lost"]


class Relay:
    """Listens on `port`, and forwards to another port of this machine. A connection that loses bytes ends."""

    def __init__(self, to_port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._way: Way = "open"
        self._ends: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._start(self._accept)

    def become(self, way: Way) -> None:
        self._way = way
        if way == "closed":
            self._hang_up(*self._ends)

    def close(self) -> None:
        self.become("closed")
        self._hang_up(self._listening)

    def _start(self, work: object, *args: object) -> None:
        threading.Thread(target=work, args=args, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    if self._way == "closed":
                        raise ConnectionRefusedError
                    far = socket.create_connection(self._to)
                except ConnectionError:
                    near.close()
                    continue
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ends |= {near, far}
                self._start(self._forward, near, far, "requests are lost")
                self._start(self._forward, far, near, "answers are lost")

    def _forward(self, source: socket.socket, to: socket.socket, lost: Way) -> None:
        with suppress(OSError):
            while (data := source.recv(65_536)) and self._way not in (lost, "closed"):
                to.sendall(data)
        self._ends -= {source, to}
        self._hang_up(source, to)

    @staticmethod
    def _hang_up(*ends: socket.socket) -> None:
        for one in ends:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def relay(to_port: int) -> Iterator[Relay]:
    one = Relay(to_port)
    try:
        yield one
    finally:
        one.close()
