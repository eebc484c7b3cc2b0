"""Limits on connections, over real sockets: silent, slow, too many, or not HTTP."""

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from kit.certificates import certificate
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from payagent.api.http.connection_limits import HEAD_LINES_MAX, ConnectionLimits, bounded
from payagent.api.http.tls import Handshakes, server_context

HEAD_S = 1.0
READ_S = 1.0
BOUNDS = ConnectionLimits(tcp=5, unix=3, backlog=8)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE_S = 60
MANY = 16 * 1024 * 1024

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class Doors:
    """A served application that answers 200 as soon as `go_on` is set, and its two addresses.

    `fails`: it raises this in place of the end of its answer.
    """

    def __init__(self, folder: Path) -> None:
        self.unix_path = str(folder / "s")
        self.port = 0
        self._opened: list[asyncio.StreamWriter] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.pieces = [b"ok"]
        self.fails: BaseException | None = None

    async def app(self, _scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await self.go_on.wait()
        pieces = self.pieces
        headers = [] if self.fails else [(b"content-length", b"%d" % sum(map(len, pieces)))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[typeddict-item]
        for number, piece in enumerate(pieces, 1):
            more = self.fails is not None or number < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})  # type: ignore[typeddict-item]
        if self.fails:
            raise self.fails

    async def tcp(self) -> Streams:
        return self._kept(await asyncio.open_connection("127.0.0.1", self.port))

    async def unix(self) -> Streams:
        return self._kept(await asyncio.open_unix_connection(self.unix_path))

    def _kept(self, streams: Streams) -> Streams:
        self._opened.append(streams[1])
        return streams

    async def leave(self) -> None:
        for writer in self._opened:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def open_doors(folder: Path) -> AsyncIterator[Doors]:
    doors = Doors(folder)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(doors.unix_path)
        doors.port = tcp.getsockname()[1]
        config = uvicorn.Config(
            doors.app,
            interface="asgi3",
            http=bounded(BOUNDS, lambda: "call_1", HEAD_S, READ_S),
            lifespan="off",
            log_config=None,
            access_log=False,
            backlog=BOUNDS.backlog,
        )
        server = Server(config)
        task = asyncio.create_task(server.serve(sockets=[tcp, unix]))
        while not server.started:
            await asyncio.sleep(0.001)
        try:
            yield doors
        finally:
            doors.go_on.set()
            await doors.leave()
            server.should_exit = True
            await task


async def call(streams: Streams, request: bytes = GET) -> bytes:
    """One request on an open connection; the whole answer, or nothing if the connection was closed."""
    reader, writer = streams
    writer.write(request)
    async with asyncio.timeout(PATIENCE_S):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        return head + await reader.readexactly(2)


async def is_closed(streams: Streams) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await streams[0].read(1) == b""
        except ConnectionError:
            return True


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        assert await is_closed(await doors.tcp())
        assert await is_closed(await doors.unix())


async def test_a_request_head_of_too_many_lines_is_refused_with_400(tmp_path: Path) -> None:
    """Parsing 12,000 headers blocked the daemon for 50 ms, for anyone who could reach the port."""
    most = GET[:-2] + b"a:\r\n" * (HEAD_LINES_MAX - 2)
    async with open_doors(tmp_path) as doors:
        streams = await doors.tcp()
        for _ in range(2):
            assert b" 200 " in await call(streams, most + b"\r\n")
        streams[1].write(most)
        assert b" 200 " in await call(await doors.tcp()), "the unfinished head has arrived by now"
        assert b" 200 " in await call(streams, b"\r\n"), "a head in pieces counts like one in a single piece"
        for more in (b"a:\r\n", b"a:\n", b"a:\r\n" * 12_000):
            assert b" 400 " in await call(await doors.tcp(), most + more + b"\r\n")
        doors.go_on.clear()
        streams[1].write(GET + most + b"a:\r\n\r\n")
        doors.go_on.set()
        assert b" 200 " in await call(streams, b"")
        assert b" 400 " in await call(streams, b"")
        body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b"\n" * 1000
        for ends in (body, body.replace(b"\r", b"")):
            assert b" 200 " in await call(await doors.tcp(), ends), "lines of the body must not count"


async def test_a_header_of_many_blanks_takes_no_time_to_parse(tmp_path: Path) -> None:
    """Anyone who reached the port could block the daemon for minutes, before a token was checked."""
    async with open_doors(tmp_path) as doors:
        streams = await doors.tcp()
        began_s = time.process_time()
        assert b" 400 " in await call(streams, GET[:-2] + b"X:" + b" " * 60_000 + b"\0\r\n\r\n")
        assert time.process_time() - began_s < 3
        assert b" 200 " in await call(await doors.tcp(), GET[:-2] + b"X:" + b" \t" * 5_000 + b"\r\n\r\n")


async def test_a_request_head_sent_byte_by_byte_is_cut_off(tmp_path: Path) -> None:
    """Also after an answered request, where the first byte ends the keep-alive timeout."""
    async with open_doors(tmp_path) as doors:
        for before in (b"", GET):
            streams = await doors.tcp()
            assert not before or b" 200 " in await call(streams, before)
            closed = asyncio.create_task(is_closed(streams))
            streams[1].write(b"GET / HTTP/1.1\r\nX: ")
            while not closed.done():
                streams[1].write(b"x")
                await asyncio.wait([closed], timeout=HEAD_S / 10)
            assert closed.result()


async def test_a_slow_answer_is_not_cut_off_and_the_connection_serves_the_next_request(
    tmp_path: Path,
) -> None:
    async with open_doors(tmp_path) as doors:
        doors.go_on.clear()
        patient, silent = await doors.tcp(), await doors.tcp()
        answer = asyncio.create_task(call(patient))
        # a younger, silent connection is closed before this request is answered
        assert await is_closed(silent)
        assert await is_closed(await doors.tcp())
        assert not answer.done()
        doors.go_on.set()
        assert b" 200 " in await answer
        # between two requests the keep-alive timeout applies
        assert await is_closed(await doors.tcp())
        assert b" 200 " in await call(patient)


async def test_a_full_port_does_not_block_the_owners_socket(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        doors.go_on.clear()
        busy = [await doors.tcp() for _ in range(BOUNDS.tcp)]
        answers = [asyncio.create_task(call(streams)) for streams in busy]
        assert await call(await doors.tcp()) == b""
        owner = asyncio.create_task(call(await doors.unix()))
        doors.go_on.set()
        assert b" 200 " in await owner
        assert all(b" 200 " in answer for answer in await asyncio.gather(*answers))
        busy[0][1].close()
        await busy[0][1].wait_closed()
        while b" 200 " not in await call(await doors.tcp()):
            pass


async def test_the_unix_socket_limits_its_connections_too(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        doors.go_on.clear()
        answers = [asyncio.create_task(call(await doors.unix())) for _ in range(BOUNDS.unix)]
        assert await call(await doors.unix()) == b""
        doors.go_on.set()
        assert all(b" 200 " in answer for answer in await asyncio.gather(*answers))


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "bounds"),
    [
        (64, 2048, 2048, ConnectionLimits(512, 256, 256)),
        (64, 64, 64, ConnectionLimits(16, 8, 8)),
        (64, 9999, 4096, ConnectionLimits(1024, 512, 512)),
    ],
)
def test_the_open_file_limit_is_raised_as_far_as_allowed(
    soft: int, hard: int, raised: int, bounds: ConnectionLimits
) -> None:
    code = (
        "import resource; from payagent.api.http.connection_limits import make_room;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "print(make_room(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == f"{bounds} {(raised, hard)}\n"


async def test_bytes_that_are_not_http_are_refused_with_problem_json(tmp_path: Path) -> None:
    async with open_doors(tmp_path) as doors:
        for nonsense in (
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            reader, writer = await doors.tcp()
            writer.write(nonsense)
            async with asyncio.timeout(PATIENCE_S):
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), head
            assert b"application/problem+json" in head
            problem = json.loads(body)
            assert (problem["code"], problem["status"]) == ("bad_request", 400)
            assert problem["instance"] == "urn:payagent:request:call_1"


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_request_with_content_length_and_chunks_is_refused_and_the_next_is_not_read(
    tmp_path: Path, method: bytes, order: tuple[int, int]
) -> None:
    both = (b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n")
    head = method + b" / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(both[at] for at in order) + b"\r\n"
    async with open_doors(tmp_path) as doors:
        for reader, writer in (await doors.tcp(), await doors.unix()):
            writer.write(head + b"0\r\n\r\n" + GET)
            async with asyncio.timeout(PATIENCE_S):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 400 "), answer
            assert b" 200 " not in answer
            assert b"connection: close" in answer.lower()
            body = answer.partition(b"\r\n\r\n")[2]
            assert (json.loads(body)["code"] if method == b"POST" else body) in ("bad_request", b"")


async def test_an_upgrade_request_is_answered_over_http_and_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_doors(tmp_path) as doors:
        for wanted in (b"websocket", b"h2c"):
            streams = await doors.tcp()
            asked = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: " + wanted + b"\r\n\r\n"
            assert (await call(streams, asked)).startswith(b"HTTP/1.1 200 ")
            assert (await call(streams)).startswith(b"HTTP/1.1 200 ")
    assert caplog.text == ""


async def test_garbage_after_an_answer_only_closes_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the body of a request that was answered before the body arrived."""
    async with open_doors(tmp_path) as doors:
        streams = await doors.tcp()
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b" 200 " in await call(streams, head)
        streams[1].write(b"this is no chunk\r\n\r\n")
        assert await is_closed(streams)
        assert b" 200 " in await call(await doors.tcp())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("error", [RuntimeError("it breaks"), asyncio.CancelledError("the server is to stop")])
async def test_an_http_1_0_client_can_tell_that_an_answer_is_incomplete(
    tmp_path: Path, error: BaseException
) -> None:
    """HTTP/1.0 takes the end of the connection for the end of the answer, so it is reset."""
    async with open_doors(tmp_path) as doors:
        doors.fails = error
        reader, writer = await doors.tcp()
        writer.write(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize("pieces", [[b"x" * MANY], [b"x" * (MANY // 8)] * 8], ids=["at once", "piece by piece"])
async def test_clients_that_do_not_read_their_answers_do_not_block_others(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    """Otherwise an unread answer would hold its connection for as long as the client likes."""
    async with open_doors(tmp_path) as doors:
        doors.pieces = pieces
        for _ in range(BOUNDS.unix):
            reader, writer = await doors.unix()
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
        doors.pieces = [b"ok"]
        async with asyncio.timeout(PATIENCE_S):
            while b" 200 " not in await call(await doors.unix()):
                pass


async def test_a_slow_reader_gets_the_whole_answer(tmp_path: Path) -> None:
    """The answer takes several times READ_S."""
    async with open_doors(tmp_path) as doors:
        doors.pieces = [b"x" * MANY]
        reader, writer = await doors.unix()
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(16):
            await asyncio.sleep(READ_S / 5)
            assert len(await reader.readexactly(MANY // 16)) == MANY // 16


async def test_an_unfinished_tls_handshake_is_counted_and_closed(tmp_path: Path) -> None:
    """Silent handshakes block others only until they time out; above the limit they are dropped at once."""
    public, private = certificate(tmp_path)

    async def app(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[typeddict-item]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[typeddict-item]

    config = uvicorn.Config(app, http=bounded(BOUNDS, lambda: "call", HEAD_S, READ_S), ws="none", lifespan="off")
    state = uvicorn.server.ServerState()

    def make() -> asyncio.Protocol:
        return config.http_protocol_class(config=config, server_state=state, app_state={})  # type: ignore[call-arg, return-value]

    config.load()
    shakes = Handshakes(server_context(public, private), 3, make, handshake_s=1.0)
    server = await asyncio.get_running_loop().create_server(shakes.protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(PATIENCE_S):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
        dropped_at_once = [one for one in silent[3:] if await one[0].read() == b""]
        assert len(dropped_at_once) == 5
        trusted = ssl.create_default_context(cafile=public)
        assert [await reader.read() for reader, _ in silent[:3]] == [b""] * 3
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted)
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        writer.close()
        for _, one in silent:
            one.close()
    server.close()
