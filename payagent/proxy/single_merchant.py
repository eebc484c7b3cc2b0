"""`payagent proxy`: a loopback port that acts as one merchant's origin, for clients that need a bare origin.

It forwards requests to the daemon over its Unix socket with the operator's token. So any process that reaches the
port may spend within the limits. The port is loopback only and refuses web pages.
Never: pays, or knows a merchant's own address.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from starlette.types import Receive, Scope, Send

from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.api.http.server import make_server
from payagent.body_buffer import BodyBuffer
from payagent.core.problems import Refused
from payagent.proxy.headers import TOKEN_HEADER, Headers, has_body, passing, replaced, wants_websocket
from payagent.proxy.http1 import Target, Upstream, UpstreamRequest
from payagent.proxy.request import ROOT
from payagent.proxy.request_body import ClientBody
from payagent.proxy.request_scope import ClientReply, Rules, run_request


class SingleMerchantApp:
    """The application. `token` reads the operator's token; `timeout_s` limits the daemon's silence.

    Only loopback names are accepted in Host, whatever `api.allowed_hosts` says. Any other name may be a web
    page's, and a browser omits Sec-Fetch-Site for addresses that it does not trust.
    """

    def __init__(self, daemon: Path, merchant: str, token: Callable[[], str], timeout_s: float) -> None:
        self._upstream = Upstream(Target.of_daemon(daemon), timeout_s)
        self._root = ROOT + merchant.encode("ascii")
        self._token = token
        self._rules = Rules(frozenset(), timeout_s)
        self._ports = Ports(SystemClock(), SystemRandomness())

    def new_id(self) -> str:
        return self._ports.new_id("call")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work(client_body: ClientBody, reply: ClientReply) -> None:
            call = self._call(scope, client_body)
            client_body.listen()
            async with self._upstream.call(call) as answer:
                await reply.stream(answer, client_body.close)

        await run_request(scope, receive, send, self.new_id(), BodyBuffer(0), self._rules, work)

    def close(self) -> None:
        self._upstream.close()

    def _call(self, scope: Scope, client_body: ClientBody) -> UpstreamRequest:
        headers: Headers = scope["headers"]
        path, query = scope["raw_path"], scope["query_string"]
        if not path.startswith(b"/"):
            raise Refused("bad_request", "the path must begin with /")
        if wants_websocket(headers):
            raise Refused("websocket_not_supported", "the request asks for a WebSocket")
        forwarded = [pair for pair in passing(headers, own=True) if pair[0] != b"host"]
        return UpstreamRequest(
            scope["method"].encode("ascii"),
            self._root + path + (b"?" + query if query else b""),
            replaced(forwarded, [(TOKEN_HEADER, self._token().encode("ascii"))]),
            client_body if has_body(headers) else None,
        )


def serve_bare(app: SingleMerchantApp, listener: socket.socket, announce: Callable[[], object]) -> None:
    """Serve until SIGTERM or SIGINT."""

    async def serve() -> None:
        server = make_server(app, app.new_id)
        server.stop_on_signal()
        announce()
        try:
            await server.serve(sockets=[listener])
        finally:
            app.close()

    asyncio.run(serve())
