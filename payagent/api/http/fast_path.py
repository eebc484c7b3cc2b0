"""The call that comes most, answered without the framework's way to it, which costs more than the answer.

FastAPI routes and describes the same function; what stands around it here is what `access.need` asks, and `Guard`
tells what is refused. So both ways answer alike, and a test asks both.

May import: FastAPI, Starlette. Never: knows what a call is about.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class FastPath(FastAPI):
    """FastAPI, but for the calls of `at_once`, by method and path: each has an application of its own."""

    at_once: Mapping[tuple[str, str], ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self.at_once.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if call is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await call(scope, receive, send)


def answering(call: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """The application that answers with what the function gives."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = await call(Request(scope, receive, send))
        await answer(scope, receive, send)

    return app
