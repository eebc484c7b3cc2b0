"""The client's link to the daemon: its imports, its token, and requests while the daemon is away."""

import asyncio
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from kit.agent import World
from kit.canaries import plant
from kit.client import BOTH, UTXOS, WAYS, Program, Start, both_ways, open_shop, refusal
from kit.proxy import SERVED, Heard, Paywall, Place, blocks, place, saying

from payagent.api.http.rate_limit import Rates
from payagent.body_buffer import MEMORY_BYTES
from payagent.client import AsyncPayAgentTransport, ExactCardanoScheme, PayAgentError, PayAgentTransport
from payagent.client.daemon_client import AsyncDaemonClient, DaemonAddress, DaemonClient
from payagent.client.steps import AskDaemon, DaemonReply
from payagent.client.streams import Replay, aread_up_to, read_up_to
from payagent.core.payment.machine import Delivery
from payagent.proxy.app import Bounds

TOKEN = plant("a client's token", "pa_" + "canary0client" * 3)


def test_importing_the_client_loads_no_third_party_package_besides_httpx() -> None:
    code = (
        "import sys, httpx; before = set(sys.modules); import payagent.client\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["payagent"]
    rooms = subprocess.run(
        [sys.executable, "-c", "import sys, payagent.client; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert {name.split(".")[1] for name in rooms.stdout.split() if name.startswith("payagent.")} == {
        "body_buffer",
        "client",
        "core",
    }


@pytest.mark.parametrize("make", [PayAgentTransport, AsyncPayAgentTransport, ExactCardanoScheme])
def test_the_token_is_in_no_repr(make: type) -> None:
    made = make(token=TOKEN)
    assert TOKEN not in repr(made) + repr(vars(made)) + repr(vars(made._daemon))


@pytest.mark.parametrize(
    ("daemon", "token"),
    [
        ("https://127.0.0.1:8402", TOKEN),
        ("http://192.0.2.1:8402", TOKEN),
        ("http://payagent.example:8402", TOKEN),
        ("127.0.0.1:8402", TOKEN),
        ("localhost:8402", TOKEN),
        ("http://127.0.0.1:8402/v1", TOKEN),
        ("http://127.0.0.1:8402", ""),
        ("http://127.0.0.1:8402", TOKEN + "\r\nX: y"),
    ],
)
def test_an_invalid_token_or_daemon_address_is_refused(daemon: str, token: str) -> None:
    with pytest.raises(ValueError, match=r"token|machine") as caught:
        PayAgentTransport(daemon=daemon, token=token)
    assert TOKEN not in str(caught.value)


@both_ways
async def test_the_token_may_come_from_the_environment_and_the_daemon_may_be_a_socket(
    shop: Place, start: Start, environ_token: None
) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    answer = await start(daemon=shop.api.unix_path, token=None).call(f"{shop.peer.url}/chat")
    assert (answer.status_code, wall.served) == (200, 1)


@pytest.fixture
def environ_token(shop: Place) -> Iterator[None]:
    os.environ["PAYAGENT_TOKEN"] = shop.token
    yield
    del os.environ["PAYAGENT_TOKEN"]


async def test_an_unknown_token_is_refused_only_for_a_request_that_costs(shop: Place, start: Start) -> None:
    shop.peer.answers["/chat"] = Paywall()
    program = start(token=TOKEN)
    assert (await program.call(f"{shop.peer.url}/free")).text == "ok"
    error = await refusal(program.call(f"{shop.peer.url}/chat"))
    assert isinstance(error, PayAgentError)
    assert isinstance(error, httpx.HTTPError)
    assert (error.code, TOKEN in str(error)) == ("unauthorized", False)


@both_ways
async def test_without_the_daemon_only_requests_that_cost_fail(shop: Place, start: Start, tmp_path: Path) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = f"http://127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "file").touch()
    for daemon, code in (
        (free, "daemon_not_running"),
        (str(tmp_path / "no.sock"), "daemon_not_running"),
        (str(tmp_path / "file"), "config_invalid"),
        (shop.peer.url, "daemon_timeout"),
    ):
        program = start(daemon=daemon)
        assert (await program.call(f"{shop.peer.url}/free")).text == "ok"
        error = await refusal(program.call(f"{shop.peer.url}/chat"))
        assert error.code == code, daemon
    assert wall.retries == []


@both_ways
async def test_a_transport_serves_one_client_after_another(shop: Place, start: Start) -> None:
    """Like httpx's own: a program makes one transport, and a client wherever it needs one."""
    wall = shop.peer.answers["/chat"] = Paywall()
    program = start()
    pays = program.transport()

    def blocking(path: str) -> int:
        with httpx.Client(transport=pays, timeout=60) as http:
            return http.get(shop.peer.url + path).status_code

    async def waiting(path: str) -> int:
        async with httpx.AsyncClient(transport=pays, timeout=60) as http:
            return (await http.get(shop.peer.url + path)).status_code

    for path in ("/chat?1", "/chat?2"):
        if program.way == "blocking":
            assert await asyncio.to_thread(blocking, path) == 200
        else:
            assert await waiting(path) == 200
    assert (wall.served, len(shop.payments)) == (2, 2)


FORKS = """
import os, sys, httpx
from payagent.client import PayAgentTransport
daemon, url = sys.argv[1:]
http = httpx.Client(transport=PayAgentTransport(daemon=daemon), timeout=60)
assert http.get(url + "?parent").status_code == 200
go, ready = os.pipe()
children = []
for number in range(4):
    if (child := os.fork()) == 0:
        os.close(ready)
        os.read(go, 1)
        try:
            os._exit(http.get(f"{url}?{number}").status_code != 200)
        except httpx.HTTPError as error:
            os.write(2, f"{error!r}\\n".encode())
        os._exit(1)
    children.append(child)
os.close(ready)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


async def test_a_forked_program_shares_no_connection(shop: Place) -> None:
    """Otherwise one process would read the other's answers, show its proofs and report its deliveries."""
    wall = shop.peer.answers["/chat"] = Paywall(strict=True)
    environ = os.environ | {"PAYAGENT_TOKEN": shop.token}
    arguments = (sys.executable, "-c", FORKS, shop.api.url, f"{shop.peer.url}/chat")
    program = await asyncio.create_subprocess_exec(*arguments, env=environ, stderr=subprocess.PIPE)
    _, said = await program.communicate()
    assert (program.returncode, said.decode()) == (0, "")
    assert (wall.served, len(shop.payments)) == (5, 5)
    assert {payment.delivery for payment in shop.payments} == {Delivery.ACCEPTED}


@pytest.mark.parametrize("way", WAYS)
async def test_a_daemon_that_starts_late_still_provides_the_headers_of_a_first_request(
    world: World, way: str
) -> None:
    """An invoice without a buyer is not paid when it could name the wallet."""
    world.fund(*UTXOS)
    refused: list[asyncio.StreamWriter] = []

    async with place(world, partner="demo") as at, blocks(at.run):
        wall = at.peer.answers["/chat"] = Paywall()
        port = int(at.api.url.rpartition(":")[2])

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Hangs up on the first connection; relays the others to the daemon."""
            if not refused:
                refused.append(writer)
                writer.close()
                return
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

        server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        program = Program(at, way, daemon=url)
        assert (await program.call(f"{at.peer.url}/chat")).status_code == 200
        server.close()
        said = [(call.header("x-partner"), call.header("x-wallet-address")) for call in wall.firsts + wall.retries]
        assert said == [(None, None), ("demo", world.address), ("demo", world.address)]
        assert len(at.payments) == 1


@pytest.mark.parametrize("way", BOTH)
async def test_the_client_waits_for_a_daemon_that_is_slow_to_accept(way: str) -> None:
    """The daemon or the program may be busy: after paying, that is no reason to report a timeout."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"merchants":[]}')
        writer.close()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        where = DaemonAddress.read(f"http://127.0.0.1:{address[1]}", TOKEN)
        ask = AskDaemon("GET", "/v1/merchants")
        blocking, waiting = DaemonClient(where), AsyncDaemonClient(where)
        with socket.create_connection(address):  # as many as may wait to be accepted
            asking = waiting.ask(ask) if way == "async" else asyncio.to_thread(blocking.ask, ask)
            asked = asyncio.ensure_future(asking)
            await asyncio.wait((asked,), timeout=2.5)
            assert not asked.done(), asked.exception()
            async with await asyncio.start_server(answer, sock=listening):
                assert (await asked).value() == {"merchants": []}
        blocking.close()
        await waiting.aclose()


@dataclass
class Relay:
    """A relay to the daemon; `leave` drops its connections, and while `away` it accepts none."""

    port: int
    away: bool = False
    url: str = ""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, back]
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    def leave(self) -> None:
        self.away = True
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        server = await asyncio.start_server(self.pass_on, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield self
        self.leave()
        server.close()


@both_ways
async def test_a_delivery_that_the_daemon_missed_is_reported_later(shop: Place, start: Start) -> None:
    """Otherwise the next identical request would show the used proof, and the merchant would always refuse it."""
    async with Relay(int(shop.api.url.rpartition(":")[2])).running() as relay:

        async def serve_while_it_restarts(heard: Heard) -> None:
            if not wall.served - 1:
                relay.leave()
            await SERVED(heard)

        wall = shop.peer.answers["/chat"] = Paywall(strict=True, serve=serve_while_it_restarts)
        program = start(daemon=relay.url)
        url = f"{shop.peer.url}/chat"

        def blocking() -> list[int]:
            with program.client() as http:
                first = http.get(url).status_code
                relay.away = False
                return [first, http.get(url).status_code]

        if program.way == "blocking":
            statuses = await asyncio.to_thread(blocking)
        else:
            async with program.async_client() as http:
                first = (await http.get(url)).status_code
                relay.away = False
                statuses = [first, (await http.get(url)).status_code]
    assert (statuses, len(shop.payments), wall.served) == ([200, 200], 2, 2)
    assert {payment.delivery for payment in shop.payments} == {Delivery.ACCEPTED}


async def test_a_delivery_whose_report_was_cut_off_is_reported_later(
    shop: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program's timeout may end between the answer's last byte and the daemon's reply."""
    wall = shop.peer.answers["/chat"] = Paywall(strict=True)
    program, telling, ask = Program(shop, "async"), asyncio.Event(), AsyncDaemonClient.ask

    async def slow(daemon: AsyncDaemonClient, asked: AskDaemon) -> DaemonReply:
        if asked.path.endswith("/delivery") and not telling.is_set():
            telling.set()
            await asyncio.Event().wait()
        return await ask(daemon, asked)

    monkeypatch.setattr(AsyncDaemonClient, "ask", slow)
    async with program.async_client() as http:
        first = asyncio.create_task(http.get(f"{shop.peer.url}/chat"))
        await telling.wait()
        first.cancel()
        await asyncio.wait((first,))
        second = await asyncio.wait_for(http.get(f"{shop.peer.url}/chat"), 60)
    assert (second.status_code, len(shop.payments), wall.served) == (200, 2, 2)
    assert {payment.delivery for payment in shop.payments} == {Delivery.ACCEPTED}


async def test_an_error_names_the_payment_even_when_the_daemon_went_away(shop: Place, start: Start) -> None:
    async with Relay(int(shop.api.url.rpartition(":")[2])).running() as relay:
        wall = Paywall()

        async def fail_while_it_restarts(heard: Heard) -> None:
            await heard.read_body()
            if heard.header("x-payment") is None:
                await wall(heard)
                return
            relay.leave()
            await heard.say(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

        shop.peer.answers["/chat"] = fail_while_it_restarts
        error = await refusal(start(daemon=relay.url).call(f"{shop.peer.url}/chat"))
    (payment,) = shop.payments
    assert error.code in ("daemon_timeout", "daemon_not_running")
    assert (error.payment, error.retryable) == (payment.id, True)


@pytest.mark.parametrize("way", WAYS)
async def test_a_rate_limited_client_still_gets_what_it_paid_for(world: World, way: str) -> None:
    """The merchant delays the first retry; meanwhile other requests use up the app's rate limit."""
    async with open_shop(world, bounds=BUSY) as at:
        wall = Paywall()

        async def put_off(heard: Heard) -> None:
            if heard.header("x-payment") is None or wall.retries:
                await wall(heard)
                return
            wall.retries.append(heard)
            await heard.read_body()
            await use_up(at)
            await heard.say(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

        at.peer.answers["/chat"] = put_off
        answer = await Program(at, way).call(f"{at.peer.url}/chat")
        assert (answer.status_code, answer.text, len(at.payments)) == (200, "served", 1)
        assert len({call.header("x-payment") for call in wall.retries}) == 1


async def test_a_delivery_report_refused_by_the_rate_limit_is_sent_later(world: World) -> None:
    """The next identical request reports it first, however long that takes: else it would show the old proof."""
    async with open_shop(world, bounds=BUSY) as at:
        wall = busy_paywall(at)
        async with Program(at, "async").async_client() as http:
            assert (await http.get(f"{at.peer.url}/chat")).status_code == 200
            wall.serve = SERVED
            second = await refused_no_more(lambda: http.get(f"{at.peer.url}/chat"))
        assert (second.status_code, len(at.payments), wall.served) == (200, 2, 2)


async def test_concurrent_requests_with_a_late_delivery_report_do_not_show_the_old_proof(world: World) -> None:
    """Of two identical requests one waits to report it; the other once got the old payment and its proof."""
    async with open_shop(world, bounds=BUSY) as at:
        wall = busy_paywall(at)
        async with Program(at, "async").async_client() as http:
            assert (await http.get(f"{at.peer.url}/chat")).status_code == 200
            wall.serve = SERVED
            (told_late,) = at.payments
            calls = [refused_no_more(lambda: http.get(f"{at.peer.url}/chat"), told_late.id) for _ in range(2)]
            assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200, 200]
        assert (len(at.payments), wall.served) == (3, 3)


BUSY = Bounds(rates=Rates(rate_limit_per_s=1))


def busy_paywall(at: Place) -> Paywall:
    """Serves once the app's rate limit is used up, so the delivery cannot be reported."""

    async def serve(heard: Heard) -> None:
        await use_up(at)
        await SERVED(heard)

    at.peer.answers["/chat"] = wall = Paywall(strict=True, serve=serve)
    return wall


async def refused_no_more(call: Callable[[], Awaitable[httpx.Response]], told_late: str = "") -> httpx.Response:
    """Repeat the request while it is rate limited, or while an identical one is served by the same payment.

    Showing the proof of `told_late`, which was served before, is an error.
    """
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except PayAgentError as error:
                shared = error.code == "paid_not_served" and told_late and error.payment != told_late
                if error.code != "rate_limited" and not shared:
                    raise


async def use_up(at: Place) -> None:
    """Use up the app's rate limit."""
    while (await at.api.as_("payer").get("/v1/limits")).status_code != 429:
        continue


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
    sink.close()


@pytest.mark.parametrize("wants", ["money", "the wallet"])
async def test_a_merchant_added_while_a_program_runs_gets_partner_and_wallet(world: World, wants: str) -> None:
    world.fund(*UTXOS)
    async with place(world, partner="demo") as at, blocks(at.run):
        agent, wall = at.run.agent, Paywall()
        known = dict(agent.context.from_file.merchants)
        added = known.pop(at.peer.url)
        said = b'{"detail": "wallet_address_required_for_prepaid_batches"}'
        refusal = saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

        async def sell(heard: Heard) -> None:
            knows = wants == "money" or heard.header("x-wallet-address")
            await (wall if knows else refusal)(heard)

        at.peer.answers["/chat"] = sell
        await agent.context.take_config(replace(agent.context.from_file, merchants=known), lambda _unit: None)
        async with Program(at, "async").async_client() as http:
            assert (await http.get(f"{at.peer.url}/chat")).status_code == (402 if wants == "money" else 400)
            terms = replace(agent.context.from_file, merchants={**known, added.origin: added})
            await agent.context.take_config(terms, lambda _unit: None)
            assert (await http.get(f"{at.peer.url}/chat")).status_code == 200
        buyers = [(call.header("x-partner"), call.header("x-wallet-address")) for call in at.peer.calls]
        assert buyers == [(None, None)] * 2 + [("demo", world.address)] * 2


@pytest.mark.parametrize("way", WAYS)
async def test_first_request_and_retry_name_the_same_partner_and_wallet(world: World, way: str) -> None:
    """A program may name another partner: the invoice is bound to it, so the retry names it too."""
    world.fund(*UTXOS)
    async with place(world, partner="demo") as at, blocks(at.run):
        wall = at.peer.answers["/chat"] = Paywall()
        other = {"X-Partner": "other"}
        assert (await Program(at, way).call(f"{at.peer.url}/chat", headers=other)).status_code == 200
        said = {(call.header("x-partner"), call.header("x-wallet-address")) for call in wall.firsts + wall.retries}
        assert said == {("other", world.address)}


def test_an_error_says_what_it_means_for_the_money() -> None:
    error = PayAgentError({"code": "limit_exceeded", "detail": "above it.", "money": "Nothing.", "fix": "Wait."})
    assert str(error) == "limit_exceeded: above it. Nothing. Wait."
    assert re.fullmatch(r"[a-z_]+", error.code)


def test_an_error_can_be_pickled_without_loss() -> None:
    error = PayAgentError({"code": "not_served_yet", "detail": "wait", "retryable": True, "payment": "pay_1"})
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), other.problem) == (PayAgentError, str(error), error.problem)
    assert (other.code, other.payment, other.retryable) == ("not_served_yet", "pay_1", True)


class Weighed(bytes):
    """A piece of a body that counts how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        Weighed.asked += 1
        return super().__len__()


class ByteByByte(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        return iter([Weighed(b"x")] * 1000)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


@pytest.mark.parametrize("way", BOTH)
async def test_reading_an_answer_in_many_small_pieces_takes_linear_time(way: str) -> None:
    """A merchant that answers 4xx byte by byte could block an event loop for minutes."""
    Weighed.asked = 0
    if way == "blocking":
        raw, _ = read_up_to(ByteByByte(), 2000)
    else:
        raw, _ = await aread_up_to(ByteByByte(), 2000)
    assert raw == b"x" * 1000
    assert Weighed.asked <= 2000


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_a_request_body_is_kept_whole_even_when_only_part_of_it_was_sent(sent: int) -> None:
    parts = [b"one", b"two", b"three"]
    replay = Replay(httpx.Request("POST", "http://a.example", content=iter(parts)).stream, 100)
    first = iter(replay)
    assert [next(first) for _ in range(sent)] == parts[:sent]
    first.close()  # type: ignore[attr-defined]
    replay.rest()
    assert b"".join(replay) == b"".join(replay) == b"onetwothree"
    assert replay.buffer.is_whole
    replay.buffer.close()


@pytest.mark.parametrize("way", BOTH)
async def test_no_more_of_a_request_body_is_read_than_can_be_kept(way: str) -> None:
    """A body may have no end."""
    taken: list[bytes] = []

    def endless() -> Iterator[bytes]:
        while len(taken) < 1000:
            taken.append(b"x" * 10)
            yield taken[-1]

    replay = Replay(httpx.Request("POST", "http://a.example", content=endless()).stream, 100)
    if way == "blocking":
        replay.rest()
    else:
        await replay.arest()
    assert (replay.buffer.is_whole, len(taken)) == (False, 11)
    replay.buffer.close()


@pytest.mark.parametrize("buffered", [8192, 4 * MEMORY_BYTES], ids=["at once", "at the end"])
def test_a_request_body_is_sent_even_when_the_disk_has_no_room_to_keep_it(
    monkeypatch: pytest.MonkeyPatch, buffered: int
) -> None:
    full = Path("/dev/full").open("w+b", buffering=buffered)  # noqa: SIM115  the body's, who closes it
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    parts = [b"x" * MEMORY_BYTES, b"y", b"z"]
    replay = Replay(httpx.Request("POST", "http://a.example", content=iter(parts)).stream, 10 * MEMORY_BYTES)
    assert list(replay) == parts
    assert not replay.buffer.is_whole
    replay.buffer.close()
