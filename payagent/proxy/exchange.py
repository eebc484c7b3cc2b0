"""One proxy request in progress: its client, its merchant, and its time limit.

Never: sends a request.
"""

import asyncio
from dataclasses import dataclass

from payagent.proxy.headers import Headers
from payagent.proxy.http1 import Upstream, UpstreamBody, UpstreamRequest
from payagent.proxy.request import ProxyRequest
from payagent.proxy.request_body import ClientBody
from payagent.proxy.request_scope import ClientReply


@dataclass(slots=True)
class Exchange:
    """One proxy request in progress. `deadline_s` is in the event loop's time."""

    request: ProxyRequest
    client_body: ClientBody
    reply: ClientReply
    upstream: Upstream
    payment_timeout_s: float
    deadline_s: float = 0.0

    def call(self, body: UpstreamBody, headers: Headers, poll: str | None = None) -> UpstreamRequest:
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
