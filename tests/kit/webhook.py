"""The operator's server that receives notifications."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kit.canaries import plant
from payagent.outbound.webhook import signing_key

SECRET = plant("the webhook's secret", "whsec_" + base64.b64encode(b"a canary that signs webhooks").decode())
KEY = signing_key(SECRET)
plant("the webhook's key", KEY.decode())
plant("the webhook's key in base64", SECRET.removeprefix("whsec_"))


def target(url: str, secret: Path, name: str = "ops", more: str = "") -> str:
    """A target of the config. `more`: its filter."""
    return f'[[notifications]]\nname = "{name}"\nkind = "webhook"\nurl = "{url}"\nsecret_file = "{secret}"\n{more}'


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the webhook; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, str]:
        """What the notification is about."""
        return dict(json.loads(self.body)["data"])

    @property
    def type(self) -> str:
        return str(json.loads(self.body)["type"])


class Receiver:
    """The operator's server. It answers `status`, with `retry_after`; `calls` are all requests it received."""

    def __init__(self) -> None:
        self.status = 204
        self.retry_after = ""
        self.calls: list[Call] = []
        self.called = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.calls.append(Call(self.path, headers, body))
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                if receiver.retry_after:
                    self.send_header("Retry-After", receiver.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.called.set()

            do_GET = do_POST  # noqa: N815  http.server's name

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def ids(self) -> list[str]:
        return [call.headers["webhook-id"] for call in self.calls]

    def said(self) -> list[tuple[str, str]]:
        """Kind and subject of the alerts."""
        return [(call.said["kind"], call.said["subject"]) for call in self.calls]

    def types(self) -> list[str]:
        return [call.type for call in self.calls]

    @contextmanager
    def serving(self) -> Iterator["Receiver"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()
