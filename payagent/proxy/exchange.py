"""One errand under way: its client, its merchant, and how long it may take.

May import: asyncio's clock, the rest of proxy. Never: makes a call.
"""

import asyncio
from dataclasses import dataclass

from payagent.proxy.client_reply import Reply
from payagent.proxy.headers import Headers
from payagent.proxy.http1 import Body, Call, Upstream
from payagent.proxy.request import Errand
from payagent.proxy.request_body import Intake


@dataclass(slots=True)
class Trip:
    """One errand under way: its client, its merchant, and when its patience ends (in the loop's time)."""

    errand: Errand
    intake: Intake
    reply: Reply
    upstream: Upstream
    patience_s: float
    deadline_s: float = 0.0

    def call(self, body: Body, headers: Headers, poll: str | None = None) -> Call:
        """The errand's call with these headers; or, to poll the merchant, with `poll` in its query."""
        errand = self.errand
        target = errand.target
        if poll is not None:
            headers, target = errand.headers, target + (b"&" if b"?" in target else b"?") + poll.encode("ascii")
        return Call(errand.method.encode("ascii"), target, headers, body if errand.has_body else None)

    def start_clock(self) -> None:
        self.deadline_s = asyncio.get_running_loop().time() + self.patience_s

    @property
    def left_s(self) -> float:
        return self.deadline_s - asyncio.get_running_loop().time()
