"""The running API: the real agent behind uvicorn on a loopback port and a Unix socket, tokens, and clients.

`async with served(run) as api` on a `Run` of kit.agent. `api.stale.append("why")` reports late passes.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp

from kit.agent import Run, World
from kit.canaries import plant
from kit.http import NO_TLS
from payagent.agent.base.ports import SystemRandomness
from payagent.agent.operator.approval_links import ApprovalLinks
from payagent.api.app import create_app
from payagent.api.http.server import make_server
from payagent.api.http.sessions import Sessions
from payagent.api.http.tokens import hash_token, new_token
from payagent.api.routes.params import BODY_S
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.dashboard.app import HOST, Doors
from payagent.dashboard.build import create_dashboard
from payagent.outbound.egress import Egress
from payagent.proxy.app import Bounds, ProxyApp
from payagent.store.rows import apps

LINK_HOST = "approve.example"
"""The host at which only the pages of approval links answer."""

SCOPES = {
    "first": ("approve", "operate", "pay", "read"),
    "payer": ("pay",),
    "other": ("pay",),
    "both": ("pay", "read"),
    "reader": ("read",),
    "operator": ("operate",),
}


@dataclass
class Api:
    """What a client needs. `as_` is the client of an app; the default client has every scope."""

    url: str
    unix_path: str
    run: Run
    tokens: dict[str, str] = field(repr=False)
    stale: list[str] = field(default_factory=list)
    clients: dict[str, httpx.AsyncClient] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return self.run.world

    @property
    def http(self) -> httpx.AsyncClient:
        return self.as_("first")

    def as_(self, app: str) -> httpx.AsyncClient:
        if app not in self.clients:
            headers = {"Authorization": f"Bearer {self.tokens[app]}"}
            self.clients[app] = httpx.AsyncClient(
                base_url=self.url, headers=headers, verify=NO_TLS, trust_env=False, timeout=60
            )
        return self.clients[app]

    def body(self, message: str = "hello", **more: object) -> dict[str, object]:
        """The merchant's 402 for a request, as a client forwards it."""
        ask = self.world.call(message)
        assert ask.status_code == 402, ask.text
        return {
            "origin": self.world.origin,
            "response": {"status": 402, "headers": dict(ask.headers), "body": ask.json()},
            **more,
        }

    async def pay(self, message: str = "hello", app: str = "first", **more: object) -> dict[str, object]:
        answer = await self.as_(app).post("/v1/payments", json=self.body(message, **more))
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@contextlib.asynccontextmanager
async def served(
    run: Run,
    proxy: Bounds = Bounds(),  # noqa: B008  it is frozen
    body_s: float = BODY_S,
    links: ApprovalLinks | None = None,
) -> AsyncIterator[Api]:
    """The API and the proxy of one run of the agent, as the daemon serves them; with `links` the dashboard."""
    tokens = {name: plant(f"the token of {name}", new_token(SystemRandomness())) for name in SCOPES}

    def job(unit):  # type: ignore[no-untyped-def]
        for name, scopes in SCOPES.items():
            apps.add_with_token(unit, f"app_{name}", name, hash_token(tokens[name]), scopes, 1)

    await run.context.write("apps", job)
    stale: list[str] = []

    def heartbeat() -> tuple[str | None, bool]:
        return (stale[0], False) if stale else (None, True)

    now_ms = run.context.ports.clock.now_ms
    sessions = None if links is None else Sessions(SystemRandomness(), time.monotonic, now_ms, links.origin)
    then = create_app(
        run.fleet,
        heartbeat=heartbeat,
        signer=lambda: None,
        allowed_hosts=proxy.allowed_hosts,
        rates=proxy.rates,
        body_s=body_s,
        sessions=sessions,
    )
    proxied = ProxyApp(run.fleet, then, proxy, Egress())
    app: ASGIApp = proxied
    if sessions is not None:
        facts = dict.fromkeys(("version", "started_at", "url", "socket", "config", "data_dir"), run.world.origin)
        facts["started_at"] = iso_time(now_ms())
        dashboard = create_dashboard(
            run.fleet, then, sessions, links, run.world.origin, None, facts, is_devnet=True
        )
        app = Doors(app, dashboard, frozenset({HOST}), LINK_HOST)
    unix_path = str(run.world.folder / "api.sock")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(unix_path)
        unix.listen()
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = make_server(app, lambda: "call_test")
        task = asyncio.create_task(server.serve(sockets=[tcp, unix]))
        while not server.started:
            await asyncio.sleep(0.001)
        api = Api(f"http://127.0.0.1:{tcp.getsockname()[1]}", unix_path, run, tokens, stale)
        try:
            yield api
        finally:
            for client in api.clients.values():
                await client.aclose()
            server.should_exit = True
            await task
            proxied.close()


JSON = {"content-type": "application/json"}
PAY, QUOTE, SPLIT, SEND = "/v1/payments", "/v1/quotes", "/v1/wallet/split", "/v1/wallet/send"


def require_problem(answer: httpx.Response, name: str) -> dict[str, Any]:
    """Assert that the answer is this problem, complete and as in the table."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told: dict[str, Any] = answer.json()
    refused = Refused(name, "")
    row, code = refused.problem, refused.code
    assert told["reason"] == refused.reason
    assert (told["code"], told["status"], answer.status_code) == (code, row.status, row.status), told
    assert (told["title"], told["money"], bool(told["fix"])) == (row.title, row.money, True)
    assert told["retryable"] is row.retryable
    error = told["error"]
    assert (error["code"], error["type"]) == (code, "payagent_error")
    assert error["message"] == " ".join(f"{row.title}: {told['detail']}. {row.money} {told['fix']}".split())
    assert told["type"] == f"urn:payagent:problem:{code}"
    assert told["instance"] == f"urn:payagent:request:{answer.headers['x-request-id']}"
    assert ("retry-after" in answer.headers) == (row.status in (429, 503) or code == "batch_in_progress")
    assert ("www-authenticate" in answer.headers) == (row.status == 401)
    return told


def require_nothing_signed(api: Api) -> None:
    assert api.run.context.conn.execute("SELECT COUNT(*) FROM attempts").fetchone() == (0,)
