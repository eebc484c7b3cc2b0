"""A real HTTP server on loopback with scripted answers and faults. It counts TCP connections."""

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BASE_PATH = "/x/y"


@dataclass
class Reply:
    """One scripted answer.

    `fault`: silent | reset | short (of its own length) | drip (a header, for ever) | early (103, and the answer a
    moment later) | flood (`body` as it stands in place of an answer, and then `more` for ever).
    """

    body: Any = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None
    more: bytes = b""

    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Script = Reply | list[Reply] | Callable[[Seen], Reply]

NOT_FOUND = Reply(
    {"status_code": 404, "error": "Not Found", "message": "The requested component has not been found."}, 404
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    provider: "FaultyProvider"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.provider.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignored: some tests make the client hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _serve(self) -> None:
        provider = self.server.provider
        length = int(self.headers.get("content-length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, self.rfile.read(length))
        reply = provider.next_reply(seen)
        if reply.fault == "silent":
            provider.over.wait()
            self.close_connection = True
        elif reply.fault == "reset":
            self.close_connection = True
        elif reply.fault == "drip":
            self._drip(provider)
        elif reply.fault == "flood":
            self._flood(reply)
        else:
            if reply.fault == "early":
                self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")
                provider.over.wait(0.1)
            self._answer(reply)

    do_GET = do_POST = _serve  # noqa: N815

    def _answer(self, reply: Reply) -> None:
        raw = reply.raw()
        length = len(raw) + (10 if reply.fault == "short" else 0)
        (self.send_response_only if "Date" in reply.headers else self.send_response)(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(length))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
        if reply.fault == "short":
            self.close_connection = True

    def _flood(self, reply: Reply) -> None:
        self.close_connection = True
        self.wfile.write(reply.raw())
        while True:
            self.wfile.write(reply.more)

    def _drip(self, provider: "FaultyProvider") -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.close_connection = True
        while not provider.over.wait(0.02):
            self.wfile.write(b"a")


class FaultyProvider:
    """`routes` maps "METHOD path" (below BASE_PATH, without the query) to what is answered; else a bare 404."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, Script] = {}
        self.seen: list[Seen] = []
        self.connections = 0
        self.over = threading.Event()
        self._arrived = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.origin = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self.base_url = self.origin + BASE_PATH

    def next_reply(self, seen: Seen) -> Reply:
        with self._arrived:
            self.seen.append(seen)
            self._arrived.notify_all()
        path = seen.path.partition("?")[0].removeprefix(BASE_PATH)
        script = self.routes.get(f"{seen.method} {path}", Reply(status=404))
        if isinstance(script, list):
            return script.pop(0) if len(script) > 1 else script[0]
        return script(seen) if callable(script) else script

    def wait_for_requests(self, count: int) -> bool:
        """Block until `count` requests have arrived."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.seen) >= count, timeout=60)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
