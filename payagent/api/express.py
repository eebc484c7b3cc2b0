"""The call that comes most, answered without the framework's way to it, which costs more than the answer.

FastAPI routes and describes the same function; what stands around it here is what `access.need` asks, and `Guard`
tells what is refused. So both ways answer alike, and a test asks both.

May import: Starlette. Never: knows what a call is about.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response]]


class Express:
    """A middleware within `Guard`. `calls` are answered here, by method and path; all others go on."""

    def __init__(self, app: ASGIApp, calls: dict[tuple[str, str], Answer]) -> None:
        self._app = app
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._calls.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if call is None:
            await self._app(scope, receive, send)
            return
        answer = await call(Request(scope, receive, send))
        await answer(scope, receive, send)
