"""Runs the devnet: the chain's port, the merchants' ports, the slot clock and the block producer, in one loop.

`serve_devnet` is for the command and runs until a signal. `Devnet.start` is for async programs, `DevnetThread` for
programs without a loop.

Never: binds an address other than loopback.
"""

import asyncio
import contextlib
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, Self, TypeVar

import uvicorn
from anyio.from_thread import start_blocking_portal
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from payagent.devnet.blockfrost_api import API_ROOT, chain_app
from payagent.devnet.faults import Switches
from payagent.devnet.faulty_responses import ABORT
from payagent.devnet.koios_api import KOIOS_ROOT, KoiosApi
from payagent.devnet.merchant import DEVNET, DevnetMerchant, role_address
from payagent.devnet.merchant_api import MCP_PATH, merchant_app
from payagent.devnet.node import Node
from payagent.devnet.ogmios_kupo_api import KUPO_ROOT, OGMIOS_ROOT, OgmiosKupoApi
from payagent.devnet.x402 import Shop

HAS_MCP = find_spec("mcp") is not None
_GRACE_S = 1
_T = TypeVar("_T")


def wall_clock_ms() -> int:
    """POSIX time in whole milliseconds."""
    return time.time_ns() // 1_000_000


class _Protocol(H11Protocol):
    """HTTP/1.1 with a way for requests to drop their connection, for faults without an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner = self.app

        async def droppable(scope: Scope, receive: Receive, send: Send) -> None:
            scope[ABORT] = transport.abort
            await inner(scope, receive, send)

        self.app = droppable


class _Server(uvicorn.Server):
    """A server that leaves signals to `serve_devnet`, because several servers share the loop.

    uvicorn checks ten times a second whether to stop, and then waits another tenth. This server stops at once, so
    that each test can have its own devnet.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="websockets-sansio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
            )
        )
        self._stop_requested = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stop_requested.set()

    async def main_loop(self) -> None:
        """Tick once a second, for the Date header."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), 1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(_GRACE_S):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            for task in state.tasks:
                task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Devnet:
    """A running devnet. Use it only from its own event loop."""

    def __init__(
        self,
        node: Node,
        merchants: Mapping[str, DevnetMerchant],
        chain_origin: str,
        koios: KoiosApi,
        ogmios_kupo: OgmiosKupoApi,
    ) -> None:
        """`merchants` has the merchants by URL; the first is the default one."""
        self.node = node
        self.chain = node.chain
        self.merchants = merchants
        self.merchant_url, self.merchant = next(iter(merchants.items()))
        self.origin = chain_origin
        self.chain_url = chain_origin + API_ROOT
        self.koios, self.ogmios_kupo = koios, ogmios_kupo
        self.provider_urls = {
            "koios": chain_origin + KOIOS_ROOT,
            "ogmios": chain_origin + OGMIOS_ROOT,
            "kupo": chain_origin + KUPO_ROOT,
        }

    def announcement(self) -> dict[str, object]:
        """What `payagent devnet --json` prints."""
        return {
            "chain": self.chain_url,
            "merchant": self.merchant_url,
            "merchants": list(self.merchants),
            "network": DEVNET.name,
            "control": f"{self.origin}/devnet",
            "pay_to": role_address("pay_to").text,
            **({"mcp": self.merchant_url + MCP_PATH} if HAS_MCP else {}),
        }

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        *,
        host: str = "127.0.0.1",
        chain_port: int = 0,
        merchants: int = 1,
        block_time_s: int = 0,
        project_id: str | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> AsyncIterator[Self]:
        """Run a devnet for the length of the `async with` block; port 0 takes a free port.

        With `block_time_s` 0 it makes blocks only on request. Raises `ValueError` for a host that is not loopback
        and `OSError` if a port is taken.
        """
        node = Node(now_ms, Switches())
        stopping = asyncio.Event()
        koios, ogmios_kupo = KoiosApi(node, stopping), OgmiosKupoApi(node, stopping)
        async with contextlib.AsyncExitStack() as running:
            chain_socket = running.enter_context(_listen(host, chain_port))
            apps: list[tuple[ASGIApp, socket.socket]] = [
                (
                    chain_app(node, stopping, block_time_s, project_id, [*koios.mounts(), *ogmios_kupo.mounts()]),
                    chain_socket,
                )
            ]
            shops = {}
            for number in range(merchants):
                listening = running.enter_context(_listen(host, 0))
                shops[_origin(listening)], app = _open_shop(str(number), node, now_ms, running)
                apps.append((app, listening))
            devnet = cls(node, shops, _origin(chain_socket), koios, ogmios_kupo)
            await running.enter_async_context(_serving(apps))
            if block_time_s:
                await running.enter_async_context(_background(_produce_blocks(node, block_time_s)))
            running.callback(stopping.set)
            yield devnet


def _open_shop(
    name: str, node: Node, now_ms: Callable[[], int], running: contextlib.AsyncExitStack
) -> tuple[DevnetMerchant, ASGIApp]:
    """A merchant with its own records. It has an MCP server if the extra `mcp` is installed."""
    merchant = DevnetMerchant(node, lambda: str(uuid.uuid4()))
    shop = Shop(node, lambda: merchant.terms)
    mcp = LazyMcp(shop, node.tick, running) if HAS_MCP else None
    return merchant, merchant_app(merchant, shop, now_ms, node.tick, mcp, name)


class LazyMcp:
    """The MCP server of a merchant. Its first call imports the SDK, which takes a second."""

    def __init__(self, shop: Shop, tick: Callable[[], None], running: contextlib.AsyncExitStack) -> None:
        self._make = (shop, tick)
        self._running = running
        self._lock = asyncio.Lock()
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._lock:
            if self._app is None:
                from payagent.devnet.mcp_shop import McpShop

                server, started = McpShop(*self._make).server(), asyncio.Event()
                app = server.streamable_http_app()

                async def hold() -> None:
                    async with server.session_manager.run():
                        started.set()
                        await asyncio.Event().wait()

                await self._running.enter_async_context(_background(hold()))
                await started.wait()
                self._app = app
        await self._app(scope, receive, send)


def _listen(host: str, port: int) -> socket.socket:
    if not ip_address(host).is_loopback:
        raise ValueError(f"{host} is not a loopback address; a devnet gives money to whoever asks")
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio sets this only on sockets that it creates; without it an answer waits 40 ms for an ACK
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _origin(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def _serving(apps: Iterable[tuple[ASGIApp, socket.socket]]) -> AsyncIterator[None]:
    """Serve each application on its socket. At the end all servers are told to stop before any is awaited."""
    servers = [(_Server(app), listening) for app, listening in apps]
    tasks = [asyncio.create_task(server.serve(sockets=[listening])) for server, listening in servers]
    try:
        while not all(server.started for server, _ in servers):
            for task in tasks:
                if task.done():
                    await task
            await asyncio.sleep(0.005)
        yield
    finally:
        for server, _ in servers:
            server.stop()
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _produce_blocks(node: Node, block_time_s: int) -> None:
    while True:
        await asyncio.sleep(block_time_s)
        node.make_blocks(1)


async def serve_devnet(
    *,
    host: str,
    chain_port: int = 0,
    block_time_s: int,
    announce: Callable[[dict[str, object]], None],
) -> None:
    """Run a devnet until SIGTERM or SIGINT. `announce` gets the addresses once all ports answer."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Devnet.start(host=host, chain_port=chain_port, block_time_s=block_time_s) as devnet:
        announce(devnet.announcement())
        await stop.wait()


class DevnetThread:
    """A devnet in its own thread, for programs without a loop: `with DevnetThread() as devnet: ...`.

    The options are those of `Devnet.start`. `origin` is that of the control API (/devnet/...).
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._running = contextlib.ExitStack()

    def run(self, act: Callable[[Devnet], _T]) -> _T:
        """Call a function with the devnet in the devnet's loop, and return its result."""
        return self._portal.call(act, self.devnet)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as running:
            self._portal = running.enter_context(start_blocking_portal())
            started = self._portal.wrap_async_context_manager(Devnet.start(**self._options))
            self.devnet = running.enter_context(started)
            self.chain_url = self.devnet.chain_url
            self.merchant_url = self.devnet.merchant_url
            self.origin = self.devnet.origin
            self._running = running.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._running.close()
