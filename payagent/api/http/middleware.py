"""The outermost middleware: refuses requests from web pages and turns every error into a problem response.

A browser on this machine can reach a loopback port, so a web page could spend money. Two headers expose a browser:
`Host` with a rebound DNS name, and `Origin` or `Sec-Fetch-Site`, which browsers add. Every value of the last two
is refused. A merchant's page passed on by the proxy is same-origin. The dashboard, where browsers are welcome, has
host names of its own. No CORS header is sent, so a browser's own rules also keep pages out.

Never: reads a body or a token.
"""

import asyncio
import re
from collections.abc import Callable, MutableMapping, Set
from contextlib import ExitStack
from email.utils import formatdate
from typing import cast

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from payagent.api.http.connection_limits import break_off
from payagent.api.http.problems import BrokenOffError, JsonResponse, problem_response
from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError, failure

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?", re.ASCII)
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]", re.ASCII)
_EVERYWHERE = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_OURS = frozenset((b"x-request-id", b"date", *(name for name, _ in _EVERYWHERE)))

log = structlog.get_logger("payagent.api")


class OuterMiddleware:
    """Gives each request an id, refuses browsers, and answers every error as a problem.

    `new_id` makes the request id that the answer and its log lines carry. `allowed_hosts` are names of this
    machine that are accepted like localhost. `refusals` counts refusals by code. Context managers entered on
    `state.inside` are closed when the answer is complete.
    """

    def __init__(
        self, app: ASGIApp, new_id: Callable[[], str], allowed_hosts: Set[str], refusals: MutableMapping[str, int]
    ) -> None:
        self._app = app
        self._refusals = refusals
        self._new_id = new_id
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                others = [header for header in message["headers"] if header[0].lower() not in _OURS]
                own = ((b"x-request-id", request_id.encode()), (b"date", formatdate(usegmt=True).encode()))
                message["headers"] = [*others, *own, *_EVERYWHERE]
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id), ExitStack() as inside:
            scope["state"]["inside"] = inside
            try:
                require_own_target(scope)
                refuse_browsers(scope, self._allowed_hosts)
                await self._app(scope, receive, answer)
            except asyncio.CancelledError:  # the server stops and no longer waits for this request
                cast("asyncio.Task[None]", asyncio.current_task()).uncancel()
                if started:
                    log.info("api.broken_off", why="payagent stops")
                    await break_off(scope, receive)
                else:
                    silent = Refused("daemon_timeout", "payagent shut down while the request was waiting")
                    await self._problem(silent, request_id)(scope, receive, answer)
            except ClientDisconnect:
                log.info("api.client_gone")
            except BrokenOffError as why:
                log.info("api.broken_off", why=str(why))
                await break_off(scope, receive)
            except Exception as error:
                refused = error if isinstance(error, Refused) else _ledger_refusal(error)
                if started or refused is None:
                    log.exception("api.failed", method=scope["method"])
                if started:
                    raise
                bug = Refused("internal_error", "the request failed; see the log")
                await self._problem(refused or bug, request_id)(scope, receive, answer)

    def _problem(self, refused: Refused, request_id: str) -> JsonResponse:
        """Count the refusal and return it as a problem response."""
        self._refusals[refused.code] += 1
        return problem_response(refused, request_id)


def _ledger_refusal(error: Exception) -> Refused | None:
    """The refusal for an unreadable ledger file; None when the file is not the cause."""
    refused = failure(error) if isinstance(error, DatabaseError) else None
    if refused is not None:
        log.warning("ledger.not_readable", error=str(error))
    return refused


def require_own_target(scope: Scope) -> None:
    """Raise `bad_request` for a request made to a forward proxy: its target is an absolute URL or HOST:PORT."""
    if not scope["path"].startswith(("/", "*")):
        raise Refused(
            "bad_request",
            "the request uses payagent as a forward proxy (HTTP_PROXY, curl -x, CONNECT), which it is not: put its"
            " address (the daemon's with /proxy/NAME) into the base URL, in place of the merchant's origin",
        )


def refuse_browsers(scope: Scope, allowed_hosts: Set[str]) -> None:
    """Raise `browser_refused/host` or `browser_refused/web_page` for a request that a web page may have made.

    `allowed_hosts` are names that the operator configured besides loopback ones: lower case, without a port.
    """
    headers = Headers(scope=scope)
    if _is_tcp(scope):
        hosts = headers.getlist("host")
        host = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if host is None or not (_LOOPBACK.fullmatch(host[1]) or host[1] in allowed_hosts):
            raise Refused(
                "browser_refused/host",
                "the Host header is not a loopback name or address, and not in api.allowed_hosts",
            )
    if "origin" in headers:
        raise Refused("browser_refused/web_page", "the request has an Origin header")
    if "sec-fetch-site" in headers:
        raise Refused("browser_refused/web_page", "the request has a Sec-Fetch-Site header")


def _is_tcp(scope: Scope) -> bool:
    """False for the Unix socket: no browser reaches it, and clients put anything into Host there."""
    server = scope.get("server")
    return server is None or server[1] is not None
