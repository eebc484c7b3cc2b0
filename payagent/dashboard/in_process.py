"""Calls the API in this process, as a session's app.

Never: opens a connection; reads a token.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from payagent.api.http.problems import problem_of
from payagent.api.http.sessions import Answer
from payagent.api.routes.auth import SESSION_TOKEN
from payagent.core.problems import Refused


class ApiRefusedError(Exception):
    """The API refused a call. `problem` is its problem details (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(problem.get("code"))
        self.status = status
        self.problem = problem

    @classmethod
    def of(cls, refused: Refused, request_id: str = "") -> Self:
        """The same for what a page refuses itself, such as an amount that cannot be read."""
        return cls(refused.problem.status, problem_of(refused, request_id).model_dump())


@dataclass(frozen=True, slots=True)
class InProcessApi:
    """The API for one session. `outer`: the request of the browser, whose server may stop meanwhile."""

    app: ASGIApp
    token_hash: str
    outer: Scope

    async def get(self, path: str, **query: object) -> dict[str, Any]:
        """GET an object; query values that are None are left out. Raises `ApiRefusedError`."""
        given = {name: value for name, value in query.items() if value is not None}
        return _good(await self.call("GET", path, urlencode(given)))

    async def post(self, path: str, body: object = None, key: str | None = None) -> dict[str, Any]:
        """POST an object, with an optional idempotency key. Raises `ApiRefusedError`."""
        return _good(await self.call("POST", path, "", body, key))

    async def call(
        self, method: str, path: str, query: str = "", body: object = None, key: str | None = None
    ) -> Answer:
        """Status and object of the answer, whatever it is."""
        raw = b"" if body is None else json.dumps(body).encode()
        headers = [] if body is None else [(b"content-type", b"application/json")]
        if key is not None:
            headers.append((b"idempotency-key", key.encode()))
        unread: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if not unread:  # the caller stays
                await anyio.sleep_forever()
            return unread.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(self._scope(method, path, query, headers), receive, send)
        return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent))

    async def stream(self, path: str, query: str, receive: Receive, send: Send) -> None:
        """Give a GET's answer to the browser as it comes, such as an export."""
        await self.app(self._scope("GET", path, query, []), receive, send)

    def _scope(self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]]) -> Scope:
        ours = {name: value for name, value in self.outer.items() if name.startswith("payagent.")}
        return ours | {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": headers,
            "client": None,
            "server": ("dashboard", None),  # no port, like the daemon's Unix socket
            SESSION_TOKEN: self.token_hash,
        }


def _good(answer: Answer) -> dict[str, Any]:
    status, found = answer
    if status >= 400 and "title" in found:  # /readyz answers 503 without one
        raise ApiRefusedError(status, found)
    return found
