"""A merchant of raw sockets, a client of raw sockets, and the daemon's proxy between them.

The merchant records every request byte for byte and answers as a test scripts; it uses no payagent code.
"""

import asyncio
import base64
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from kit.agent import Run, World
from kit.api import Api, served
from kit.commitments import commitment_to
from payagent.agent.base.config import MerchantConfig
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import Delivery
from payagent.devnet.merchant import role_address
from payagent.proxy.app import Bounds
from payagent.proxy.request_scope import Exchange
from payagent.store.rows import payments

PATIENCE_S = 60.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Heard:
    """A request as it reached the merchant: the raw `head`, and the body without chunking."""

    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: int
    body: bytes = b""
    is_read: bool = False

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def path(self) -> str:
        return self.line.split(b" ")[1].decode().partition("?")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def header(self, name: str) -> str | None:
        found = [value.decode("latin-1") for key, value in self.headers if key == name.encode()]
        assert len(found) < 2, found
        return found[0] if found else None

    async def read_body(self) -> bytes:
        """The rest of the body; trailers must not be there."""
        if self.is_read:
            return self.body
        self.is_read = True
        if self.header("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                self.body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n", "a trailer came through"
        else:
            self.body += await self.reader.readexactly(int(self.header("content-length") or 0) - len(self.body))
        return self.body

    async def say(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def say_chunk(self, data: bytes) -> None:
        await self.say(b"%x\r\n%b\r\n" % (len(data), data))

    async def until_hung_up(self) -> None:
        """Whether the other side has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while await self.reader.read(65_536):
                    continue


Answer = Callable[[Heard], Awaitable[None]]


async def say_ok(heard: Heard) -> None:
    await heard.read_body()
    await heard.say(OK)


def saying(raw: bytes) -> Answer:
    """Read the request and send this answer."""

    async def answer(heard: Heard) -> None:
        await heard.read_body()
        await heard.say(raw)

    return answer


class Peer:
    """The merchant. `answers` are by path; any other path is answered with "ok"."""

    def __init__(self) -> None:
        self.calls: list[Heard] = []
        self.answers: dict[str, Answer] = {}
        self.connections = 0
        self.url = ""
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Peer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1024 * 1024, ssl=tls)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for call in self.calls:
                call.writer.close()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=PATIENCE_S)
            if self.failures:
                raise self.failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        try:
            while True:
                heard = Heard(await reader.readuntil(b"\r\n\r\n"), reader, writer, number)
                self.calls.append(heard)
                await self.answers.get(heard.path, say_ok)(heard)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception as failure:  # noqa: BLE001  reported to the test that made the peer
            self.failures.append(failure)
        finally:
            writer.close()


@dataclass
class Got:
    """An answer as it came; `body` is None if it broke off."""

    status: int
    head: bytes
    headers: list[tuple[str, str]]
    body: bytes | None

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class Wire:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, raw: bytes) -> None:
        self.writer.write(raw)
        await self.writer.drain()

    async def head(self) -> Got:
        """The status and the headers of the answer."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:-2])
        ]
        return Got(int(lines[0].split(" ")[1]), head, headers, None)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked answer; b"" is the end."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def answer(self, *, of_head: bool = False) -> Got:
        """The whole answer."""
        got = await self.head()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if of_head or got.status in (204, 304):
                got.body = b""
            elif got.values("transfer-encoding"):
                parts = []
                while part := await self.chunk():
                    parts.append(part)
                got.body = b"".join(parts)
            else:
                async with asyncio.timeout(PATIENCE_S):
                    got.body = await self.reader.readexactly(int(got.values("content-length")[0]))
        return got

    def hang_up(self) -> None:
        self.writer.transport.abort()


@dataclass
class Place:
    """The proxy, its merchant and what a client knows. The merchant is `t`; the devnet's own is `devnet`."""

    api: Api
    peer: Peer

    @property
    def run(self) -> Run:
        return self.api.run

    @property
    def token(self) -> str:
        return self.api.tokens["payer"]

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        port = int(self.api.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield Wire(reader, writer)
        finally:
            writer.close()

    def call(
        self,
        path: str = "/chat",
        *headers: str,
        method: str = "GET",
        body: bytes | None = None,
        merchant: str = "t",
        token: bool = True,
    ) -> bytes:
        """A request as bytes."""
        lines = [f"{method} /proxy/{merchant}{path} HTTP/1.1", f"Host: {self.api.url[7:]}", *headers]
        lines += [f"X-Payagent-Token: {self.token}"] if token else []
        lines += [f"Content-Length: {len(body)}"] if body is not None else []
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")

    async def ask(self, path: str = "/chat", *headers: str, **more: object) -> Got:
        """One request on a connection of its own, and its answer."""
        async with self.wire() as wire:
            await wire.say(self.call(path, *headers, **more))  # type: ignore[arg-type]
            return await wire.answer(of_head=more.get("method") == "HEAD")

    async def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait until the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                assert not self.peer.failures, what
                await asyncio.sleep(0.005)

    async def until_delivered(self, count: int = 1) -> None:
        """Wait until that many payments are delivered in the ledger, a moment after the client's answer."""
        await self.until(
            lambda: sum(row.delivery is Delivery.ACCEPTED for row in self.payments) == count, "not delivered"
        )

    @property
    def payments(self) -> list[PaymentRow]:
        """Every payment, oldest first."""
        page = payments.payments_page(
            self.run.context.conn, app_id=None, state=None, origin=None, since_ms=None, before_seq=None, limit=100
        )
        return page[::-1]


@asynccontextmanager
async def place(world: World, bounds: Bounds = Bounds(), **terms: object) -> AsyncIterator[Place]:  # noqa: B008
    """The daemon's proxy in front of a raw merchant `t` (`terms` are that merchant's) and the devnet's."""
    async with Peer().running() as peer:
        known = world.terms.merchants[world.origin]
        raw = replace(MerchantConfig("t", peer.url, None, None, "confirmed", 5), **terms)  # type: ignore[arg-type]
        merchants = {world.origin: replace(known, name="devnet"), raw.origin: raw}
        async with world.run(terms=lambda given: replace(given, merchants=merchants)) as run:
            await run.run_pass()
            async with served(run, bounds) as api:
                yield Place(api, peer)


def end_patience(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object]) -> None:
    """Let the proxy's timeout end only once the condition holds, however busy the machine is."""
    monkeypatch.setattr(Exchange, "left_s", property(lambda _trip: 0.0 if when() else PATIENCE_S))


@asynccontextmanager
async def blocks(run: Run, every_s: float = 0.02) -> AsyncIterator[None]:
    """A chain that makes blocks by itself, and an agent that runs its passes.

    Five blocks follow each transaction, as deep as a merchant of these tests waits for. Otherwise they are rare.
    """

    async def go_on() -> None:
        left = 5
        for turn in itertools.count():
            left = 5 if run.world.waiting() else left - 1
            if left >= 0 or turn % 50 == 0:
                await asyncio.to_thread(run.world.block)
                await run.run_pass()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


SERVED = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nserved")


@dataclass
class Paywall:
    """A paid resource at the raw merchant: T Backend invoices, and proofs it accepts without checking.

    `strict`: one request for each payment. `pending`: how many retries must wait. `serve`: the paid answer.
    """

    strict: bool = False
    same_invoice: bool = False
    pending: int = 0
    serve: Answer = field(default_factory=lambda: SERVED)
    price: int = 2_000_000
    name: str = "inv"
    served: int = 0
    invoices: int = 0
    proofs: list[str] = field(default_factory=list)
    retries: list[Heard] = field(default_factory=list)
    firsts: list[Heard] = field(default_factory=list)

    async def __call__(self, heard: Heard) -> None:
        await heard.read_body()
        proof = heard.header("x-payment")
        if proof is None:
            self.firsts.append(heard)
            await heard.say(as_402(self._invoice()))
            return
        self.retries.append(heard)
        if self.pending:
            self.pending -= 1
            await heard.say(as_402({"status": "pending"}))
        elif self.strict and proof in self.proofs:
            await heard.say(as_402({"error": "payment_flow_error", "reason": "paid_already"}))
        else:
            self.proofs.append(proof)
            self.served += 1
            await self.serve(heard)

    def _invoice(self) -> dict[str, object]:
        if not self.same_invoice or not self.invoices:
            self.invoices += 1
        return {
            "invoiceId": f"{self.name}-{self.invoices}",
            "chain": "cardano-devnet",
            "asset": "ADA",
            "amountUnits": str(self.price),
            "payTo": role_address("pay_to").text,
            "timeout": 600,
        }


@dataclass
class Pending202:
    """A paid resource by x402 version 2, at a server that answers 202 while its settlement is pending.

    `kind`: the content type of that answer's body; without one the body is empty. Its receipt, repeated
    `receipts` times, denies success in both known ways.
    """

    times: int
    kind: str | None = "application/json"
    receipts: int = 1
    proofs: list[str] = field(default_factory=list)

    async def __call__(self, heard: Heard) -> None:
        await heard.read_body()
        proof = heard.header("payment-signature")
        if proof is None:
            await heard.say(as_402(None, f"PAYMENT-REQUIRED: {packed(x402_required())}"))
            return
        self.proofs.append(proof)
        if len(self.proofs) > self.times:
            await SERVED(heard)
            return
        no = "false" if len(self.proofs) % 2 else False
        told = {"success": no, "errorReason": "settlement_pending", "network": "cardano:devnet"}
        typed, body = ("", "") if self.kind is None else (f"Content-Type: {self.kind}\r\n", "{}")
        head = f"HTTP/1.1 202 Accepted\r\n{typed}Content-Length: {len(body)}\r\n"
        receipts = f"PAYMENT-RESPONSE: {packed(told)}\r\n" * self.receipts
        await heard.say(f"{head}{receipts}\r\n{body}".encode())


@dataclass
class OneEach:
    """A paid resource by x402 version 2: one request for each payment.

    A proof that has served a request gets `word`, and so does each new one `early` times before it is served.
    """

    word: str
    early: int = 0
    shown: list[str] = field(default_factory=list)

    async def __call__(self, heard: Heard) -> None:
        await heard.read_body()
        proof = heard.header("payment-signature")
        if proof is None:
            await heard.say(as_402(None, f"PAYMENT-REQUIRED: {packed(x402_required())}"))
            return
        self.shown.append(proof)
        if self.shown.count(proof) == self.early + 1:
            receipt = packed({"success": True, "transaction": "", "network": "cardano:devnet"})
            await heard.say(
                f"HTTP/1.1 200 OK\r\nPAYMENT-RESPONSE: {receipt}\r\nContent-Length: 0\r\n\r\n".encode()
            )
        else:
            await heard.say(as_402(None, f"PAYMENT-REQUIRED: {packed(x402_required(error=self.word))}"))


BOUND = ("accept-language", "content-type", "x-account")
"""Names of headers that a merchant may bind a payment to, in their order."""


@dataclass
class Binding:
    """A paid resource by x402 version 2 at a merchant that requires a commitment to the request."""

    names: tuple[str, ...]

    async def __call__(self, heard: Heard) -> None:
        body = await heard.read_body()
        if heard.header("payment-signature") is not None:
            await SERVED(heard)
            return
        method, path, _ = heard.line.decode().split(" ")
        said = {name: [value for key, value in heard.headers if key == name.encode()] for name in self.names}
        bound = {name: ", ".join(map(bytes.decode, found)) if found else None for name, found in said.items()}
        extension = commitment_to(f"http://{heard.header('host')}{path}", True, method, body, bound)
        await heard.say(as_402(None, f"PAYMENT-REQUIRED: {packed(x402_required(extensions=extension))}"))


def x402_required(**more: object) -> dict[str, object]:
    """The requirements of an x402 version 2 402: 2 ADA."""
    entry = {"scheme": "exact", "network": "cardano:devnet", "amount": "2000000", "asset": "lovelace"}
    accepted = {**entry, "payTo": role_address("pay_to").text, "maxTimeoutSeconds": 600}
    return {"x402Version": 2, "accepts": [accepted], **more}


def packed(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def as_402(detail: object, *headers: str, body: bytes | None = None) -> bytes:
    raw = json.dumps({"detail": detail}).encode() if body is None else body
    head = ["HTTP/1.1 402 Payment Required", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(raw)}", "", ""]).encode() + raw
