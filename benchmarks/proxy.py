"""What the proxy costs: latency, calls per second, memory of long bodies, the first event of a stream.

Beside it stand nginx and mitmproxy in reverse mode where they are installed, and what most people would write.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks.clients import Call, at_once, in_turn
from benchmarks.measure import Spread, memory_mb
from benchmarks.results import Bound, Cell, Options, Part, Ratio, Table
from benchmarks.stage import ROOT, free_port, is_open, process, stage, until
from payagent.devnet.merchant import role_address

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


# --- the measures ------------------------------------------------------------------------------------------------

HOW = """\
The same call to a bare merchant, directly and through each: one client after the other, then 32 at once. Merchant,
proxies and clients are processes of this machine. payagent's proxy also finds the caller's app, and would pay.
"""
PAYAGENT = "payagent"
DIRECT = "direct"
PLAIN = "FastAPI and httpx"
CALL = "one call through the proxy, median"


def measure(options: Options) -> Part:
    part = Part(
        "proxy", "Calls through the proxy", HOW, left_out="TLS to the merchant; a network that loses packets."
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        merchant_url = _beside(stack, lambda port: (*_ME, "merchant", str(port)))
        up = stack.enter_context(stage([20_000_000], merchant=merchant_url))
        ours = f"{up.api}/proxy/t"
        urls: dict[str, str] = {DIRECT: merchant_url, PAYAGENT: ours}
        urls |= {other: _beside(stack, start) for other, start in _others(Path(name), merchant_url).items()}
        token = {"X-Payagent-Token": up.token}
        _measure_calls(part, urls, token, options)
        _measure_events(part, ours, token)
        if not options.is_quick:
            _measure_gigabytes(part, ours, token, up.pid)
    return part


_ME = (sys.executable, "-m", "benchmarks.proxy")


def _beside(stack: ExitStack, command: Callable[[int], Sequence[str]]) -> str:
    """A process that listens on a port of its own; its URL."""
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    stack.enter_context(process(command(port), **quiet))
    until(lambda: is_open(port), f"{command(port)[0]} listens")
    return f"http://127.0.0.1:{port}"


def _others(folder: Path, upstream: str) -> Mapping[str, Callable[[int], Sequence[str]]]:
    """Who else is measured, of those that are here: how each is started for a port."""
    found: dict[str, Callable[[int], Sequence[str]]] = {PLAIN: lambda port: (*_ME, "plain", str(port), upstream)}
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is not None:
        found["nginx"] = lambda port: (nginx, "-c", str(_nginx_config(folder, port, upstream)), "-e", "/dev/null")
    mitmdump = shutil.which("mitmdump", path=str(Path(sys.executable).parent)) or shutil.which("mitmdump")
    if mitmdump is not None:
        mode = ("--mode", f"reverse:{upstream}", "--set", "flow_detail=0", "--quiet")
        found["mitmproxy"] = lambda port: (mitmdump, "--listen-host", "127.0.0.1", "-p", str(port), *mode)
    return found


def _nginx_config(folder: Path, port: int, upstream: str) -> Path:
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; worker_processes 1; pid {folder}/nginx.pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};\n"
        f"  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"  upstream merchant {{ server {upstream.removeprefix('http://')}; keepalive 64; }}\n"
        f"  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;\n"
        "    location / { proxy_pass http://merchant; proxy_http_version 1.1;\n"
        '      proxy_set_header Connection ""; proxy_buffering off; } } }\n',
        encoding="ascii",
    )
    return path


def _measure_calls(part: Part, urls: Mapping[str, str], token: Mapping[str, str], options: Options) -> None:
    alone, each = options.pick(200, 1_500), options.pick(20, 100)
    rows: list[tuple[Cell, ...]] = []
    medians: dict[str, float] = {}
    for name, url in urls.items():
        headers = token if name == PAYAGENT else {}
        post = Call.of("POST", url + "/small", headers, b'{"message": "hello"}')
        asyncio.run(in_turn(url, [post] * 200))
        spread = Spread.of([answer.ms for answer in asyncio.run(in_turn(url, [post] * alone))])
        get = Call.of("GET", url + "/small", headers)
        rate = max(_rate(url, get, each) for _ in range(3))
        medians[name] = spread.median
        added = None if name == DIRECT else spread.median - medians[DIRECT]
        rows.append((name, spread.median, added, spread.p99, round(rate)))
    for name, median in medians.items():
        if name not in (DIRECT, PAYAGENT):
            part.ratios.append(Ratio(CALL, name, median / medians[PAYAGENT]))
    times = round(medians[PLAIN] / medians[PAYAGENT], 2)
    part.bounds.append(Bound(f"{CALL}: payagent ahead of {PLAIN}", times, 1, "times", at_least=True))
    part.tables.append(Table("Calls", ("by", "ms median", "ms added", "ms p99", "a second, 32 clients"), rows))


def _rate(url: str, call: Call, each: int) -> float:
    answers, took_s = asyncio.run(at_once(url, [call] * 32 * each, 32))
    if any(answer.status != 200 for answer in answers):
        raise SystemExit(f"unexpected: {answers[0].status} {answers[0].body[:300]!r}")
    return len(answers) / took_s


def _measure_gigabytes(part: Part, url: str, token: Mapping[str, str], pid: int) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(GIGABYTE // len(PIECE)):
            yield PIECE
        yield PIECE[: GIGABYTE % len(PIECE)]

    rows: list[tuple[Cell, ...]] = []
    before = memory_mb(pid)
    with httpx.Client(trust_env=False, timeout=600, headers=dict(token)) as http:
        for way in ("down", "up"):
            start_s = time.perf_counter()
            if way == "down":
                with http.stream("GET", f"{url}/big") as answer:
                    if sum(len(piece) for piece in answer.iter_raw()) != GIGABYTE:
                        raise SystemExit("a part of the gigabyte is missing")
            else:
                length = {"Content-Length": str(GIGABYTE)}
                http.post(f"{url}/sink", content=pieces(), headers=length).raise_for_status()
            grown = memory_mb(pid, "VmHWM") - before
            rows.append((f"1 GB {way}", time.perf_counter() - start_s, grown))
    part.tables.append(Table("Long bodies", ("", "s", "MB more at the peak"), rows))


def _measure_events(part: Part, url: str, token: Mapping[str, str]) -> None:
    rows: list[tuple[Cell, ...]] = []
    with httpx.Client(trust_env=False, timeout=60, headers=dict(token)) as http:
        for name, path in (("free", "/events"), ("paid", "/paid")):
            late = []
            with http.stream("GET", url + path) as answer:
                for line in answer.iter_lines():
                    if line:
                        late.append((time.monotonic_ns() - int(line[6:])) / 1e6)
            rows.append((f"{name} stream", late[0], max(late)))
    part.tables.append(Table("Events of a stream, how late", ("", "ms, the first", "ms, the latest of 20"), rows))


if __name__ == "__main__":
    if sys.argv[1] == "merchant":
        asyncio.run(merchant(int(sys.argv[2])))
    else:
        plain(int(sys.argv[2]), sys.argv[3])
