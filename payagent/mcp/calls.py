"""Requests to merchants for an agent: each is paid if it must be, and goes on when the agent stops waiting.

Two calls with the same method, URL and body at the same time are one request. If every agent that waited for a
paid request has gone, its answer is kept for the next identical call.
Never: sends anything to an origin that the app may not pay; follows a redirect; decides whether to pay.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from mcp_types import CallToolResult

from payagent.client.errors import PayAgentError, own_error
from payagent.client.merchant_answers import decoded
from payagent.client.paid_request import QUOTE_MARK, REFUSAL_MARK
from payagent.client.transport import AsyncPayAgentTransport, time_limit
from payagent.core.cost_headers import DRY_RUN_HEADER, MAX_COST_HEADER
from payagent.core.money import parse_bound
from payagent.core.origin import MCP
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT
from payagent.mcp import results
from payagent.mcp.daemon import AppClient, Payer, paying
from payagent.mcp.paid_calls import BODY_KEPT_BYTES, OUTCOME, PaidWire, server_origin

ANSWER_AFTER_S = 45.0
"""How long a call waits before it answers `pending`. MCP clients give up after 60 seconds by default."""

_TELL_EVERY_S = 1.0
_READ_S = 120.0
_OWN = ("content-length", "transfer-encoding", "connection", "host", "idempotency-key")
_METHOD = re.compile(r"[A-Z]{1,16}", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class CallAnswer:
    """What a merchant answered. `quote` is a dry run's result.

    `is_truncated`: it was longer than `BODY_KEPT_BYTES`, and the rest was not read.
    `outcome` is what came of an MCP call: the server's result, or its `MCPError`.
    """

    status: int
    headers: httpx.Headers
    body: bytes
    is_truncated: bool = False
    quote: Mapping[str, Any] | None = None
    outcome: Any = None


@dataclass(frozen=True, slots=True)
class Call:
    """A request as the agent asked for it. `max_cost` is an amount such as "5 ADA"; `reason` is for people."""

    url: httpx.URL
    method: str
    headers: httpx.Headers
    body: bytes
    max_cost: str = ""
    reason: str = ""
    is_quote: bool = False
    extensions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, url: str, method: str, headers: Mapping[str, str], body: str, **more: Any) -> "Call":
        """Read the arguments of a tool. Raises `PayAgentError`: `bad_request`."""
        for name, value in headers.items():
            if name.lower() in _OWN or name.lower().startswith("x-payagent"):
                raise own_error("bad_request", f"payagent itself sets the header {name[:60]!a}")
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                detail = "needs a name of letters, digits and dashes, and a value of printable ASCII"
                raise own_error("bad_request", f"the header {name[:60]!a} {detail}")
        method = (method or ("POST" if body else "GET")).upper()
        if not _METHOD.fullmatch(method) or method == MCP:
            raise own_error("bad_request", f"the method {method[:60]!a} is none of HTTP, such as POST")
        server_origin(url)
        defaults = {"user-agent": USER_AGENT} | ({"content-type": "application/json"} if body else {})
        return cls(
            httpx.URL(url).copy_with(fragment=None),
            method,
            httpx.Headers(defaults | {name.lower(): value for name, value in headers.items()}),
            body.encode(),
            **more,
        )

    @property
    def origin(self) -> str:
        return server_origin(str(self.url))


@dataclass(slots=True)
class RunningCall:
    """A request under way. `payer` shows its payment."""

    task: asyncio.Task[CallAnswer]
    payer: Payer

    @property
    def state(self) -> str:
        payment = self.payer.payment
        return "asking the merchant" if payment is None else f"payment {payment['id']}: {payment['state']}"


Tell = Callable[[float, RunningCall], Awaitable[bool]]
"""Tells the agent the seconds that passed and what is waited for. Returns whether to stop waiting."""


class Calls:
    """All requests of this process. A call waits `answer_after_s` for its answer."""

    def __init__(self, daemon: AppClient, answer_after_s: float) -> None:
        self._daemon = daemon
        self._answer_after_s = answer_after_s
        timeout = httpx.Timeout(_READ_S, connect=10.0)
        transport = AsyncPayAgentTransport(PaidWire(), daemon=daemon)
        self._http = httpx.AsyncClient(
            transport=transport, timeout=timeout, trust_env=False, headers={"accept-encoding": "identity"}
        )
        self._running: dict[tuple[object, ...], RunningCall] = {}

    async def run(self, call: Call, tell: Tell) -> tuple[CallAnswer | None, Payer]:
        """Make the request, or join the same one. Returns (its answer, or None if that takes longer; its payer).

        Raises `PayAgentError` if it was not paid or not served, `httpx.HTTPError` if the merchant does not answer.
        """
        await self.require_merchant(call.origin)
        key = (call.method, str(call.url), call.body, call.is_quote)
        running = self._running.get(key)
        if running is None:
            payer = Payer(" ".join(call.reason.split()) or None)
            running = self._running[key] = RunningCall(asyncio.create_task(self._send(call, payer)), payer)
            running.task.add_done_callback(lambda _task: self._drop_unless_owed(key, running))
        since_s = time.monotonic()
        while not (await asyncio.wait({running.task}, timeout=_TELL_EVERY_S))[0]:
            passed_s = time.monotonic() - since_s
            if passed_s >= self._answer_after_s or await tell(passed_s, running):
                return None, running.payer
        self._running.pop(key, None)
        return running.task.result(), running.payer

    async def require_merchant(self, origin: str) -> None:
        """Refuse an origin that the app may not pay, before anything is sent to it."""
        if origin not in {row["origin"] for row in (await self._daemon.get("/v1/merchants"))["merchants"]}:
            raise own_error("merchant_not_allowed", f"{origin} is not in [merchants], or not for this app")

    async def limits(self) -> list[results.Left]:
        """What this app may still spend. The task's results then call tokens as the config does."""
        answer = await self._daemon.get("/v1/limits")
        results.tokens.set({one["name"]: (one["asset"], one["decimals"]) for one in answer["tokens"]})
        return results.limits_left(answer["limits"])

    async def left(self) -> list[str]:
        """The same in a few words, or nothing if the daemon does not answer: an answer must not be lost for it."""
        try:
            return results.budget_left(await self.limits())
        except PayAgentError:
            return []

    async def refused(self, error: PayAgentError, *, is_proxied: bool = False) -> CallToolResult:
        """The result of a refused call, with what the limits leave unless the daemon cannot be reached."""
        is_cut_off = error.code in ("daemon_not_running", "daemon_timeout")
        return results.refused(error, [] if is_cut_off else await self.left(), is_proxied=is_proxied)

    async def aclose(self) -> None:
        """End all requests. Payments go on in the daemon, and the next identical call finds them."""
        for running in self._running.values():
            running.task.cancel()
        await self._http.aclose()

    def _drop_unless_owed(self, key: tuple[object, ...], running: RunningCall) -> None:
        """Keep what was paid for if nobody waits for it; an error or a free answer is not kept."""
        failed = running.task.cancelled() or running.task.exception() is not None
        if failed or running.payer.payment is None:
            self._running.pop(key, None)

    async def _bound(self, max_cost: str) -> str:
        """The same amount in units, for the transport, which knows no token by its name."""
        await self.limits()
        try:
            units, asset = parse_bound(max_cost, results.tokens.get())
        except Refused as refused:
            raise own_error(refused.name, refused.detail) from None
        return f"{units} {asset or 'units'}"

    async def _send(self, call: Call, payer: Payer) -> CallAnswer:
        paying.set(payer)
        options = {MAX_COST_HEADER: await self._bound(call.max_cost)} if call.max_cost else {}
        options |= {DRY_RUN_HEADER: "true"} if call.is_quote else {}
        request = self._http.build_request(
            call.method,
            call.url,
            headers={**call.headers, **options},
            content=call.body or None,
            extensions=dict(call.extensions),
        )
        answer = await self._http.send(request, stream=True)
        marks = answer.extensions
        quote, outcome = marks.get(QUOTE_MARK), marks.get(OUTCOME)
        try:
            async with time_limit():
                raw = b"" if quote else b"".join([part async for part in answer.aiter_raw()])
        finally:
            await answer.aclose()
        if REFUSAL_MARK in marks:  # an unpaid 402
            raise PayAgentError(marks[REFUSAL_MARK])
        body = raw if (unpacked := decoded(answer, raw, cut_at=BODY_KEPT_BYTES)) is None else unpacked
        return CallAnswer(
            answer.status_code,
            answer.headers,
            body[:BODY_KEPT_BYTES],
            max(len(raw), len(body)) > BODY_KEPT_BYTES,
            quote,
            outcome,
        )
