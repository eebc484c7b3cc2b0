"""The ASGI application in front of the API: /proxy/... goes to merchants, everything else to the API.

Never: a framework's request object on this path.
"""

import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from payagent.agent.fleet.fleet import Fleet
from payagent.api.http.rate_limit import RateLimiter, Rates
from payagent.api.http.tokens import hash_token
from payagent.body_buffer import BodyBuffer
from payagent.outbound.egress import Egress
from payagent.proxy.http1 import Target, Upstream
from payagent.proxy.payer import ProxyPayer
from payagent.proxy.request import ROOT, MerchantRefused, read_request
from payagent.proxy.request_body import ClientBody
from payagent.proxy.request_scope import ClientReply, Exchange, Rules, run_request


@dataclass(frozen=True, slots=True)
class Bounds:
    """The operator's limits for the proxy."""

    body_buffer_bytes_max: int = 64 * 1024 * 1024  # the largest body kept for a replay
    read_timeout_s: float = 600.0  # how long a merchant may be silent, and a client slow
    payment_timeout_s: float = 900.0  # the longest wait for a paid answer
    allowed_hosts: frozenset[str] = frozenset()  # names that `Host` may have besides the loopback ones
    rates: Rates = field(default_factory=Rates)  # each app's rate limits


class ProxyApp:
    """The proxy; `then` is the API. There is one for the daemon's lifetime, and `close` closes its connections."""

    def __init__(self, fleet: Fleet, then: ASGIApp, bounds: Bounds, egress: Egress) -> None:
        self._fleet = fleet
        self._context = fleet.context
        self._then = then
        self._bounds = bounds
        self._egress = egress
        self._rules = Rules(bounds.allowed_hosts, bounds.read_timeout_s, fleet.context.metrics.refusals)
        self._upstreams: dict[str, Upstream] = {}
        self._payer = ProxyPayer(fleet)
        self._rate_limiter = RateLimiter(bounds.rates, time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["raw_path"].startswith(ROOT):
            await self._then(scope, receive, send)
            return

        async def work(client_body: ClientBody, reply: ClientReply) -> None:
            try:
                request = read_request(
                    scope, self._context.config, lambda token: self._context.app_of(hash_token(token))
                )
            except MerchantRefused as refused:
                await self._fleet.intake.note_refused_call(
                    refused.app_id, refused.origin, refused.request, refused
                )
                raise
            with self._rate_limiter.admit(request.app_id):
                client_body.listen()
                upstream = self._upstream(request.merchant.origin)
                await self._payer.run(
                    Exchange(request, client_body, reply, upstream, self._bounds.payment_timeout_s)
                )

        buffer = BodyBuffer(self._bounds.body_buffer_bytes_max)
        await run_request(scope, receive, send, self._context.ports.new_id("call"), buffer, self._rules, work)

    def close(self) -> None:
        for upstream in self._upstreams.values():
            upstream.close()

    def _upstream(self, origin: str) -> Upstream:
        if origin not in self._upstreams:
            target = Target.of_origin(origin)
            self._upstreams[origin] = Upstream(target, self._bounds.read_timeout_s, self._egress)
        return self._upstreams[origin]
