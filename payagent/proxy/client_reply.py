"""The answer to the client: the merchant's, piece by piece, or a problem of our own.

Never: changes an answer that it forwards.
"""

from collections import Counter
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from payagent.api.http.connection_limits import break_off
from payagent.api.http.problems import JsonResponse, problem_response
from payagent.core.problems import Refused
from payagent.proxy.headers import Headers
from payagent.proxy.http1 import UpstreamAnswer


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
