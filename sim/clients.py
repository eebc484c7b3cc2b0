"""The simulated clients: programs that want a paid request served, and retry as real programs do.

Some pay over the API and retry themselves, some use the proxy. They lose answers, give up waiting, ask again with
the same 402 or a new one, and outlive the daemon.

Never: signs; pays in another way.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.prepaid import Buyer
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.body_buffer import BodyBuffer
from payagent.core.aggregate import PaymentRow
from payagent.core.pay_and_retry import Answered
from payagent.core.payment.machine import WITHOUT_PROOF
from payagent.core.problems import Refused
from payagent.dialects import HttpResponse, RetryVerdict, make_response
from payagent.proxy.request import ProxyRequest
from payagent.proxy.request_body import ClientBody
from payagent.proxy.request_scope import ClientReply, Exchange, Rules, run_request
from payagent.store.rows import apps
from sim.judge import Judge
from sim.merchants import SimResponse, SimShop, SimUpstream, UnreachedError
from sim.process import DeadError, SimDaemon
from sim.trace import Trace
from sim.virtual_loop import VirtualLoop

PARTNER = "demo"
PROXY_PATIENCE_S = 240.0
LOST = 0.5
"""How often a client loses the proxy's answer and asks again."""


@dataclass(frozen=True, slots=True)
class ClientGoal:
    """One purchase that an app wants, once."""

    app_id: str
    shop: SimShop
    path: str
    text: str
    key: str | None
    by_proxy: bool
    starts_at_s: float
    pause_s: float
    tries: int

    @property
    def body(self) -> bytes:
        return json.dumps({"message": self.text}).encode()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class ClientWorld(Protocol):
    """The clients' view of the world."""

    loop: VirtualLoop
    story: Trace
    judge: Judge
    wallet: str
    asking: Counter[str]
    """How many clients wait for the daemon now, by purchase."""

    async def life(self) -> SimDaemon:
        """The daemon, as soon as it runs."""

    def draw(self) -> float:
        """A random number from 0 to 1."""


class BuyerTask:
    """One goal, from the first request until it is served or given up."""

    def __init__(self, world: ClientWorld, goal: ClientGoal) -> None:
        self._world = world
        self._goal = goal
        self.payment: str | None = None
        self.is_served = False

    async def run(self) -> None:
        await asyncio.sleep(self._goal.starts_at_s)
        for number in range(self._goal.tries):
            if self.is_served:
                return
            if number:
                self._world.story.reach("a client asks again")
                await asyncio.sleep(self._world.draw() * self._goal.pause_s)
            try:
                life = await self._world.life()
                self.is_served |= await (self._by_proxy(life) if self._goal.by_proxy else self._by_hand(life))
            except UnreachedError:
                continue
            except DeadError:
                self._world.story.reach("a client is left without an answer")
                continue
            except Refused as refused:
                self._world.story.reach(f"refused: {refused.name}")
                self._world.story.tell(f"{self._goal.text}: refused {refused.name}: {refused.detail[:120]}")
                continue
            if self.is_served:
                self._world.story.reach("a want is served")
                return
        self._world.story.reach("a client gives up")

    # --- by hand

    async def _by_hand(self, life: SimDaemon) -> bool:
        goal, world = self._goal, self._world
        first = await goal.shop.call("POST", goal.path, self._headers(), goal.body)
        if 200 <= first.status < 300:
            return True
        if first.status != 402:
            return False
        with self._asking():
            row, _ = await life.call(life.fleet.pay(self._payment_request(first)))
        if row.kind == "invoice":
            self.payment = row.id
            world.judge.answered(goal.sha256, row.id, None if life.is_over else life.conn)
        world.story.tell(f"{goal.text}: {row.id} is {row.state}")
        return await self._present(life, row)

    async def _present(self, life: SimDaemon, row: PaymentRow) -> bool:
        """Wait until the proof is ready, within limits, and present it up to three times."""
        goal, world = self._goal, self._world
        for _ in range(3):
            depth = await life.call(_depth_if_ready(life, row))
            if depth is None:
                row = await life.call(life.fleet.context.wait(row.id, 20 + world.draw() * 60))
                depth = await life.call(_depth_if_ready(life, row))
            if depth is None or row.state in WITHOUT_PROOF:
                if world.draw() < 0.3:
                    return False  # gives up waiting: the next try begins with a new request
                continue
            merchant = life.fleet.context.config.merchants.get(row.invoice.origin or "")
            proof = retry_headers(row, merchant, world.wallet)
            headers = {name.lower(): value for name, value in proof.items()}
            if not headers:
                return False
            answer = await goal.shop.call("POST", goal.path, self._headers() | headers, goal.body)
            if world.draw() < 0.2:
                continue  # it never reports the answer to the daemon
            response = make_response(answer.status, dict(answer.headers), answer.body.decode(errors="replace"))
            row, advice = await life.call(_take_answer(life, row.id, response, depth))
            if advice.verdict is RetryVerdict.SERVED:
                self.is_served = True  # served, whatever happens to the daemon now
                self._delivered(answer.body)
                await life.call(_record_delivery(life, row.id, answer.status))
                return True
            if advice.again_after_s is None:
                return False
            await asyncio.sleep(advice.again_after_s)
        return False

    def _delivered(self, body: bytes) -> None:
        """The client has got a paid answer."""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Count how many clients wait for the daemon at once, and how many of them for the same purchase."""
        asking, name = self._world.asking, self._goal.sha256
        if asking[name]:
            self._world.story.reach("clients of one purchase ask at once")
        elif asking.total():
            self._world.story.reach("clients of several purchases ask at once")
        asking[name] += 1
        try:
            yield
        finally:
            asking[name] -= 1
            if not asking[name]:
                del asking[name]

    def _headers(self) -> dict[str, str]:
        return {
            "content-type": "application/json",
            "x-partner": PARTNER,
            "x-wallet-address": self._world.wallet,
        }

    def _payment_request(self, answer: SimResponse) -> PaymentRequest:
        goal = self._goal
        text = answer.body.decode()
        return PaymentRequest(
            app_id=goal.app_id,
            origin=goal.shop.origin,
            response=make_response(answer.status, dict(answer.headers), text),
            received=json.dumps({"status": answer.status, "body": text}),
            request=MerchantRequest("POST", goal.path, goal.sha256),
            idempotency_key=goal.key,
            buyer=Buyer(PARTNER, self._world.wallet),
        )

    # --- by the proxy

    async def _by_proxy(self, life: SimDaemon) -> bool:
        """Let the proxy's payer make the request. The client hangs up when it has waited long enough."""
        gone: asyncio.Future[None] = self._world.loop.create_future()
        patience_s = 60 + self._world.draw() * 400
        self._world.loop.call_later(patience_s, _end, gone)
        with self._asking():
            status = await life.call(self._request(life, gone))
        self._world.story.tell(f"{self._goal.text}: the proxy answered {status}")
        if gone.done():
            self._world.story.reach("a client hangs up on the proxy")
        if status is not None and 200 <= status < 300:
            # without a key, a served request is over, and the next one is a new purchase
            if self._goal.key is not None and self._world.draw() < LOST:
                self._world.story.reach("a client loses what the proxy served it")
                self.is_served = False
                return False
            self._world.story.reach("the proxy serves a client")
            return True
        return False

    async def _request(self, life: SimDaemon, gone: asyncio.Future[None]) -> int | None:
        goal = self._goal
        bodies = [{"type": "http.request", "body": goal.body, "more_body": False}]
        statuses: list[int] = []
        parts: list[bytes] = []

        async def receive() -> dict[str, object]:
            if bodies:
                return bodies.pop()
            await asyncio.wait([gone])
            return {"type": "http.disconnect"}

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(int(str(message["status"])))
                return
            parts.append(bytes(message.get("body", b"")))  # type: ignore[call-overload]
            if not message.get("more_body") and not gone.done():
                self.is_served = 200 <= statuses[0] < 300
                if self.is_served:
                    self._delivered(b"".join(parts))

        headers = [(name.encode(), value.encode()) for name, value in self._headers().items()]
        if goal.key is not None:
            headers.append((b"idempotency-key", goal.key.encode()))
        merchant = life.fleet.context.config.merchants[goal.shop.origin]
        keys = (goal.key.encode(),) if goal.key is not None else ()
        find_app = partial(apps.by_id, life.fleet.context.conn, goal.app_id)
        request = ProxyRequest(
            goal.app_id, merchant, "POST", goal.path.encode(), headers, True, keys, None, None, False, find_app
        )

        async def work(intake: ClientBody, reply: ClientReply) -> None:
            intake.listen()
            upstream = SimUpstream(goal.shop)
            exchange = Exchange(request, intake, reply, upstream, PROXY_PATIENCE_S)  # type: ignore[arg-type]
            await life.payer.run(exchange)

        scope: dict[str, object] = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"host", b"localhost")],
        }
        scope["payagent.abort"] = partial(_end, gone)
        scope["payagent.gone"] = gone
        rules = Rules(frozenset(), PROXY_PATIENCE_S)
        await run_request(scope, receive, send, "call", BodyBuffer(1024 * 1024), rules, work)  # type: ignore[arg-type]
        return statuses[0] if statuses else None


async def _depth_if_ready(life: SimDaemon, row: PaymentRow) -> int | None:
    """Return how deep the payment's transaction is if its proof may be shown, else None."""
    context = life.fleet.context
    return context.depth(row) if context.is_ready(row) else None


async def _take_answer(
    life: SimDaemon, payment_id: str, response: HttpResponse, depth: int
) -> tuple[PaymentRow, Answered]:
    deliveries = life.fleet.deliveries(payment_id)
    return await deliveries.take_answer(payment_id, response, shown_depth=depth)


async def _record_delivery(life: SimDaemon, payment_id: str, status: int) -> None:
    await life.fleet.deliveries(payment_id).record_delivery(payment_id, status)


def _end(connection: asyncio.Future[None]) -> None:
    if not connection.done():
        connection.set_result(None)
