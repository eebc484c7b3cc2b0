"""The steps that a call takes, as values: what `purchase` yields, a transport carries out and sends back.

May import: httpx's values, client.streams, cli.errors. Never: I/O.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from payagent.client.errors import PayAgentError
from payagent.client.streams import Replay

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AskDaemon:
    """Ask the daemon; gives a `DaemonReply`. Raises `PayAgentError` when there is none."""

    method: str
    path: str
    body: Json | None = None
    key: str | None = None
    wait_s: int = 0


@dataclass(frozen=True, slots=True)
class DaemonReply:
    """What the daemon said: an object, or a problem (RFC 9457); `after_s` is its Retry-After."""

    status: int
    body: Json
    after_s: int = 0

    def value(self, **context: object) -> Json:
        """The object; a problem is raised."""
        if self.status >= 400:
            raise PayAgentError({**self.body, **context})
        return self.body


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send a call to the merchant; gives its answer, whose body is not read yet. Raises `httpx.TransportError`."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """Read an answer's body; gives (the raw bytes, or None if they are too many, and the answer anew)."""

    answer: httpx.Response


@dataclass(frozen=True, slots=True)
class BufferRequest:
    """Read what is left of the call's body."""

    body: Replay


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


Step = AskDaemon | SendRequest | ReadAnswer | BufferRequest | Sleep
Steps = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The answer for the client. `payment_id` is there when its last byte means that the payment is delivered."""

    answer: httpx.Response
    payment_id: str | None = None
