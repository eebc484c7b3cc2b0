"""A shortcut past FastAPI for the most frequent request, whose routing would cost more than its answer.

FastAPI still routes and documents the same function. The shortcut makes the checks of `api.routes.auth.need`, and
`OuterMiddleware` turns refusals into problems. A test compares the answers of both ways.

May import: FastAPI, Starlette.
Never: knows what a request is about.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class FastPath(FastAPI):
    """FastAPI, except that each (method, path) in `at_once` goes straight to an ASGI application of its own."""

    at_once: Mapping[tuple[str, str], ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self.at_once.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if call is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await call(scope, receive, send)


def answering(call: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Wrap a function from request to response as an ASGI application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = await call(Request(scope, receive, send))
        await answer(scope, receive, send)

    return app
