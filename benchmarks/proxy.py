"""What the proxy costs: latency, calls per second, memory of long bodies, the first event of a stream.

    python benchmarks/proxy.py

Merchant, daemon and a plain FastAPI and httpx proxy are processes of their own on loopback. Not a test: it prints,
and nothing is asserted. The bounds that must hold stand beside the numbers.
"""

import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from payagent.devnet.merchant import role_address

PAYAGENT = [sys.executable, "-m", "payagent"]
GIGABYTE = 1_000_000_000
PIECE = b"x" * 65_536
SMALL = b'{"reply": "' + b"x" * 200 + b'"}'
EVENT_PAUSE_S = 0.05
INVOICE = {
    "invoiceId": "inv-1",
    "chain": "cardano-devnet",
    "asset": "ADA",
    "amountUnits": "2000000",
    "payTo": role_address("pay_to").text,
    "timeout": 600,
}


# --- the merchant, bare enough to cost nothing -------------------------------------------------------------------


async def merchant(port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await answer(head, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port, backlog=256) as server:
        await server.serve_forever()


async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    taken = 0
    while taken < length:
        taken += len(await reader.read(min(262_144, length - taken)))
    if b" /paid " in head and b"x-payment:" not in head.lower():
        body = json.dumps({"detail": INVOICE}).encode()
        kind = b"Content-Type: application/json\r\n"
        writer.write(b"HTTP/1.1 402 Pay\r\n" + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    elif b" /big " in head:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIGABYTE)
        for _ in range(GIGABYTE // len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
        writer.write(PIECE[: GIGABYTE % len(PIECE)])
    elif b" /events " in head or b" /paid " in head:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(EVENT_PAUSE_S)
            event = b"data: %d\n\n" % time.monotonic_ns()
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        writer.write(b"0\r\n\r\n")
    else:
        kind = b"Content-Type: application/json\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + kind + b"Content-Length: %d\r\n\r\n" % len(SMALL) + SMALL)


# --- what most people would write --------------------------------------------------------------------------------


def plain(port: int, upstream: str) -> None:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    app, client = FastAPI(), httpx.AsyncClient(base_url=upstream, timeout=600)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(request: Request, path: str) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        call = client.build_request(request.method, "/" + path, headers=headers, content=request.stream())
        got = await client.send(call, stream=True)
        kept = {name: value for name, value in got.headers.items() if name != "transfer-encoding"}
        return StreamingResponse(got.aiter_raw(), got.status_code, kept)

    uvicorn.run(app, host="127.0.0.1", port=port, http="h11", access_log=False, log_level="warning")


# --- clients -----------------------------------------------------------------------------------------------------


class Client:
    """One kept connection that sends the same call again and again."""

    def __init__(self, url: str, token: str | None, body: bytes = b"") -> None:
        parts = httpx.URL(url)
        self._place = (parts.host, parts.port)
        method = b"POST" if body else b"GET"
        lines = [method + b" " + parts.raw_path + b" HTTP/1.1", b"Host: %s:%d" % (parts.host.encode(), parts.port)]
        lines += [f"X-Payagent-Token: {token}".encode()] if token else []
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)] if body else []
        self._call = b"\r\n".join([*lines, b"", b""]) + body

    async def calls(self, count: int) -> list[float]:
        """The milliseconds that each took."""
        reader, writer = await asyncio.open_connection(*self._place)
        took = []
        for _ in range(count):
            start = time.perf_counter()
            writer.write(self._call)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"unexpected: {head[:300]!r} {await reader.read(1000)!r}")
            if b"chunked" in head.lower():
                await reader.readuntil(b"0\r\n\r\n")
            else:
                await reader.readexactly(len(SMALL))
            took.append((time.perf_counter() - start) * 1e3)
        writer.close()
        return took


def measure_calls(urls: dict[str, tuple[str, str | None]]) -> None:
    async def alone(url: str, token: str | None, count: int) -> list[float]:
        return await Client(url + "/small", token, b'{"message": "hello"}').calls(count)

    async def many(url: str, token: str | None, clients: int, count: int) -> float:
        start = time.perf_counter()
        await asyncio.gather(*(Client(url + "/small", token).calls(count) for _ in range(clients)))
        return clients * count / (time.perf_counter() - start)

    base = 0.0
    for name, (url, token) in urls.items():
        asyncio.run(alone(url, token, 200))
        median = statistics.median(asyncio.run(alone(url, token, 1500)))
        base = base or median
        rate = max(asyncio.run(many(url, token, 32, 100)) for _ in range(3))
        print(
            f"{name}: median {median:.2f} ms, {median - base:+.2f} ms (at most +1.5); "
            f"{rate:.0f} calls/s with 32 clients (at least 500)"
        )


def memory_mb(pid: int, name: str) -> float:
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status[name].split()[0]) / 1000


def measure_gigabytes(url: str, token: str, pid: int) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(GIGABYTE // len(PIECE)):
            yield PIECE
        yield PIECE[: GIGABYTE % len(PIECE)]

    headers = {"X-Payagent-Token": token}
    with httpx.Client(trust_env=False, timeout=600, headers=headers) as http:
        before = memory_mb(pid, "VmRSS")
        start = time.perf_counter()
        with http.stream("GET", f"{url}/big") as answer:
            size = sum(len(piece) for piece in answer.iter_raw())
        down_s = time.perf_counter() - start
        print(
            f"1 GB down: {size} bytes in {down_s:.1f} s, memory {before:.0f} MB, at its peak "
            f"{memory_mb(pid, 'VmHWM') - before:+.1f} MB (under +60)"
        )
        start = time.perf_counter()
        http.post(f"{url}/sink", content=pieces(), headers={"Content-Length": str(GIGABYTE)}).raise_for_status()
        print(
            f"1 GB up: in {time.perf_counter() - start:.1f} s, memory at its peak "
            f"{memory_mb(pid, 'VmHWM') - before:+.1f} MB (under +60)"
        )


def measure_events(url: str, token: str) -> None:
    with httpx.Client(trust_env=False, timeout=60, headers={"X-Payagent-Token": token}) as http:
        for name, path in (("free", "/events"), ("paid", "/paid")):
            late = []
            with http.stream("GET", url + path) as answer:
                for line in answer.iter_lines():
                    if line:
                        late.append((time.monotonic_ns() - int(line[6:])) / 1e6)
            print(
                f"{name} events: the first is here {late[0]:.2f} ms after it was sent, the latest of {len(late)} "
                f"{max(late):.2f} ms (at most 10)"
            )


# --- processes ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]
    try:
        yield running
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def until_open(port: int) -> None:
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on {port}")


def daemon(stack: ExitStack, folder: Path, merchant_url: str) -> tuple[str, str, int]:
    """A running daemon with this merchant: its URL, a token, its process id."""
    devnet = stack.enter_context(process(*PAYAGENT, "devnet", "--json", stdout=subprocess.PIPE))
    assert devnet.stdout is not None
    places = json.loads(devnet.stdout.readline())
    (folder / "passphrase").write_text("a passphrase for a benchmark")
    (folder / "passphrase").chmod(0o600)
    options = ["--network", "devnet", "--chain-url", places["chain"], "--merchant", f"t={merchant_url}"]
    options += ["--passphrase-file", str(folder / "passphrase"), "--config", str(folder / "config.toml")]
    options += ["--data-dir", str(folder / "data")]
    made = subprocess.run([*PAYAGENT, "init", "--json", *options], capture_output=True, check=True)
    wallet = json.loads(made.stdout)
    gift = {"address": wallet["address"], "lovelace": "20000000"}
    httpx.post(f"{places['control']}/faucet", json=gift, trust_env=False).raise_for_status()
    port = free_port()
    log = stack.enter_context((folder / "daemon.log").open("w"))
    listen = ["--config", str(folder / "config.toml"), "--listen", f"127.0.0.1:{port}"]
    no_bound = ("env", "PAYAGENT_API__CALLS_PER_S=1000000")
    serving = stack.enter_context(process(*no_bound, *PAYAGENT, "serve", *listen, stderr=log))
    until_open(port)
    until_funded(f"http://127.0.0.1:{port}", wallet["token"])
    return f"http://127.0.0.1:{port}/proxy/t", wallet["token"], serving.pid


def until_funded(api: str, token: str) -> None:
    for _ in range(400):
        answer = httpx.get(f"{api}/v1/wallet", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
        if answer.json()["coins"]["free"]:
            return
        time.sleep(0.05)
    raise SystemExit("the faucet's coin did not come")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        merchant_port, plain_port = free_port(), free_port()
        merchant_url = f"http://127.0.0.1:{merchant_port}"
        me = [sys.executable, __file__]
        stack.enter_context(process(*me, "merchant", str(merchant_port)))
        stack.enter_context(process(*me, "plain", str(plain_port), merchant_url))
        url, token, pid = daemon(stack, Path(name), merchant_url)
        until_open(merchant_port)
        until_open(plain_port)
        measure_calls(
            {
                "direct": (merchant_url, None),
                "payagent": (url, token),
                "FastAPI and httpx": (f"http://127.0.0.1:{plain_port}", None),
            }
        )
        measure_events(url, token)
        measure_gigabytes(url, token, pid)


if __name__ == "__main__":
    roles: dict[str, Callable[..., object]] = {
        "merchant": lambda port: asyncio.run(merchant(int(port))),
        "plain": lambda port, upstream: plain(int(port), upstream),
    }
    if len(sys.argv) > 1:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        main()
