"""The steps of a request as values: `paid_request` and `retry` yield them, a transport executes them.

Never: I/O.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from payagent.client.errors import PayAgentError
from payagent.client.streams import Replay

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AskDaemon:
    """Ask the daemon. Results in a `DaemonReply`, or raises `PayAgentError` if there is none."""

    method: str
    path: str
    body: Json | None = None
    key: str | None = None
    wait_s: int = 0


@dataclass(frozen=True, slots=True)
class DaemonReply:
    """The daemon's answer: an object, or a problem (RFC 9457). `after_s` is its Retry-After."""

    status: int
    body: Json
    after_s: int = 0

    def value(self, **context: object) -> Json:
        """Return the object; raise a problem as `PayAgentError`."""
        if self.status >= 400:
            raise PayAgentError({**self.body, **context})
        return self.body


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Send a request to the merchant. Results in an answer with an unread body. Raises `httpx.TransportError`."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """Read an answer's body. Results in (raw bytes, or None if too long; the answer to use from now on)."""

    answer: httpx.Response


@dataclass(frozen=True, slots=True)
class BufferRequest:
    """Read the rest of the request's body into its buffer."""

    body: Replay


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some seconds."""

    seconds: float


Step = AskDaemon | SendRequest | ReadAnswer | BufferRequest | Sleep
Steps = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The answer for the client.

    `payment_id` is set if the payment counts as delivered once the last byte was read. `receipt`: what the report
    of it has beside the status.
    """

    answer: httpx.Response
    payment_id: str | None = None
    receipt: Mapping[str, object] = field(default_factory=dict)
