"""Run one proxy request from its first byte to its last, and turn every error into an answer.

Never: knows a merchant or the daemon; changes an answer that it forwards; puts the path, which may hold a token,
in a log or an error.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import cast

import structlog
from starlette.types import Receive, Scope, Send

from payagent.api.http.connection_limits import GONE, break_off
from payagent.api.http.middleware import refuse_browsers, require_own_target
from payagent.api.http.problems import JsonResponse, problem_response
from payagent.body_buffer import BodyBuffer
from payagent.core.problems import Refused
from payagent.proxy.headers import Headers
from payagent.proxy.http1 import AnswerBrokenError, Upstream, UpstreamAnswer, UpstreamRequest
from payagent.proxy.request import ProxyRequest
from payagent.proxy.request_body import ClientBody

log = structlog.get_logger("payagent.proxy")


class ClientReply:
    """The answer to one request.

    `id` names the request in the log and in a problem. `refusals` counts problems by code.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, call_id: str, refusals: Counter[str]) -> None:
        self.id = call_id
        self._refusals = refusals
        self._scope = scope
        self._receive = receive
        self._send = send
        self.has_started = False

    async def stream(
        self, answer: UpstreamAnswer, before_end: Callable[[], object], more_headers: Headers = ()
    ) -> None:
        """Forward a merchant's answer as it arrives. `before_end` is called before its last piece is sent."""
        self.has_started = True
        headers = [*answer.headers, *more_headers]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        more = True
        while more:
            chunk, more = await answer.read()
            if not more:
                before_end()
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def json(self, value: object) -> None:
        """Answer with JSON of our own."""
        self.has_started = True
        answer = JsonResponse(value, headers={"X-Request-Id": self.id, "Cache-Control": "no-store"})
        await answer(self._scope, self._receive, self._send)

    async def problem(self, refused: Refused) -> None:
        """Answer with a problem. If an answer has started, close the connection instead."""
        if self.has_started:
            await break_off(self._scope, self._receive)
            return
        self.has_started = True
        self._refusals[refused.code] += 1
        headers = {"X-Request-Id": self.id, "Cache-Control": "no-store"}
        await problem_response(refused, self.id, headers)(self._scope, self._receive, self._send)


@dataclass(slots=True)
class Exchange:
    """One proxy request in progress. `deadline_s` is in the event loop's time."""

    request: ProxyRequest
    client_body: ClientBody
    reply: ClientReply
    upstream: Upstream
    payment_timeout_s: float
    deadline_s: float = 0.0

    def call(self, body: AsyncIterable[bytes], headers: Headers, poll: str | None = None) -> UpstreamRequest:
        """Build the request to the merchant with these headers; to poll it, add `poll` to the query instead."""
        request = self.request
        target = request.target
        if poll is not None:
            headers, target = request.headers, target + (b"&" if b"?" in target else b"?") + poll.encode("ascii")
        return UpstreamRequest(request.method.encode("ascii"), target, headers, body if request.has_body else None)

    def start_clock(self) -> None:
        self.deadline_s = asyncio.get_running_loop().time() + self.payment_timeout_s

    @property
    def left_s(self) -> float:
        return self.deadline_s - asyncio.get_running_loop().time()


Work = Callable[[ClientBody, ClientReply], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for clients: the `allowed_hosts` of `refuse_browsers`, and the `slow_s` of a `ClientBody`.

    `refusals` counts problems by code.
    """

    allowed_hosts: Set[str]
    slow_s: float
    refusals: Counter[str] = field(default_factory=Counter)


async def run_request(
    scope: Scope, receive: Receive, send: Send, call_id: str, buffer: BodyBuffer, rules: Rules, work: Work
) -> None:
    """Run `work` and report its errors.

    It is cancelled if the client hangs up or is too slow, and by a server that stops.
    """
    reply = ClientReply(scope, receive, send, call_id, rules.refusals)
    task = cast("asyncio.Task[None]", asyncio.current_task())
    with structlog.contextvars.bound_contextvars(request=call_id):
        client_body = ClientBody(receive, buffer, task.cancel, rules.slow_s, scope[GONE])
        try:
            require_own_target(scope)
            refuse_browsers(scope, rules.allowed_hosts)
            await work(client_body, reply)
        except asyncio.CancelledError:
            task.uncancel()
            if client_body.is_slow:
                await reply.problem(Refused("body_too_slow", "the request's body did not arrive in time"))
            elif client_body.is_gone:
                log.info("proxy.client_gone")
            else:  # the server stops
                client_body.close()
                await reply.problem(Refused("daemon_timeout", "payagent shut down while the request was waiting"))
        except Refused as refused:
            client_body.close()
            await reply.problem(refused)
        except AnswerBrokenError as broken:
            log.info("proxy.answer_broken", reason=str(broken))
            client_body.close()
            await reply.problem(Refused("merchant_unreachable", f"its answer broke off: {broken}"))
        except Exception:
            client_body.close()
            log.exception("proxy.failed", method=scope["method"])
            await reply.problem(Refused("internal_error", "the request failed; see the log"))
        finally:
            await client_body.aclose()
