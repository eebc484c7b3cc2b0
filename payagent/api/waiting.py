"""The daemon's server. While the daemon waits for its database it answers /healthz and /readyz, and nothing else.

May import: core, the rest of api, Starlette. Never: opens the ledger.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Set

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from payagent.api.app import answering
from payagent.api.http.listeners import Listeners
from payagent.api.http.middleware import OuterMiddleware
from payagent.api.http.problems import JsonResponse, problem_response
from payagent.api.http.server import make_server
from payagent.api.models.health import Health
from payagent.api.routes.health import without_ledger
from payagent.core.problems import Refused
from payagent.core.version import VERSION


class Entrance:
    """A server whose application comes later. It stops on SIGTERM and SIGINT from its first answer on."""

    def __init__(
        self,
        listeners: Listeners,
        network: str,
        allowed_hosts: Set[str],
        new_id: Callable[[], str],
        announce: Callable[[], None],
    ) -> None:
        """`announce` is called once, when the server begins to answer."""
        self._plain, secure = listeners.sorted()
        self.server = make_server(self, new_id, secure)
        self._app: ASGIApp = OuterMiddleware(answering(self._answer), new_id, allowed_hosts, Counter())
        self._network = network
        self._announce = announce
        self._why = Refused("store_failed", "the ledger is being opened")
        self._serving: asyncio.Task[None] | None = None

    async def wait(self, why: Refused, seconds: float) -> bool:
        """Answer for a while with the reason why the ledger cannot be opened. False: a signal ended the server."""
        self._why = why
        await asyncio.wait([self._begin()], timeout=seconds)
        return not self._begin().done()

    async def serve(self, app: ASGIApp) -> None:
        """Answer by the application until a signal ends the server."""
        self._app = app
        await self._begin()

    async def close(self) -> None:
        """End the server, if it began."""
        if self._serving is not None:
            self.server.should_exit = True
            await self._serving

    def _begin(self) -> asyncio.Task[None]:
        if self._serving is None:
            self.server.stop_on_signal()
            self._announce()
            self._serving = asyncio.create_task(self.server.serve(sockets=self._plain))
        return self._serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path == "/healthz":
            return JsonResponse(Health(status="ok", version=VERSION))
        if request.url.path == "/readyz":
            return without_ledger(self._why, self._network)
        return problem_response(self._why, request.state.request_id)
