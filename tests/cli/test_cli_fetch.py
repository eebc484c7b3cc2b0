"""`payagent fetch`: a request from the shell that pays; bodies stay untouched, exit codes tell the outcome."""

import io
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kit.canaries import plant
from kit.cli import PATIENCE_S, TOKEN, Shop, running, spawn, until
from kit.sdk_merchant import SdkMerchant
from kit.terminal import at_terminal

from payagent.cli import run
from payagent.cli.terminal import Terminal
from payagent.core.money import format_ada
from payagent.core.problems import name_of
from payagent.core.version import USER_AGENT
from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread

BINARY = bytes(range(256)) * 300
CALL = '{"message": "hello"}'
DEEP = 100
"""Confirmations that come only when a test makes the blocks."""


class Raw(ThreadingHTTPServer):
    """A merchant that sells nothing: it sends bytes, echoes requests and counts connections.

    At /turncoat it asks for ADA first, and then for a token.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.asks = [("ADA", 6, "2000000"), (f"{TOKEN[:56]}.{TOKEN[56:]}", 0, "900")]
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        echo: Any = {"method": self.command, "headers": dict(self.headers), "body": sent.decode()}
        if self.path == "/turncoat":
            asks = self.server.asks  # type: ignore[attr-defined]
            echo = {"detail": _invoice(*(asks.pop(0) if len(asks) > 1 else asks[0]))}
        body = BINARY if self.path == "/binary" else json.dumps(echo).encode()
        self.send_response({"/missing": 404, "/turncoat": 402}.get(self.path, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        return


def _invoice(asset: str, decimals: int, units: str) -> dict[str, object]:
    extra = {"lovelace": asset == "ADA", "babel": False, "partner": "demo", "batchTarget": 1}
    return {
        **{"version": "0.1", "invoiceId": f"turn-{units}", "chain": "cardano-devnet", "timeout": 300},
        **{"asset": asset, "amountUnits": units, "decimals": decimals, "payTo": role_address("pay_to").text},
        "extra": extra,
    }


@dataclass(frozen=True)
class Got:
    """How a fetch ended; its body as bytes."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err.splitlines()[-1])

    @property
    def problem(self) -> str | None:
        """The code of the error, and its reason."""
        return name_of(self.error["code"], self.error.get("reason"))


def fetch(shop: Shop, *arguments: str | Path) -> Got:
    """Run it in this process, with pipes for streams."""
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    words = ["fetch", *map(str, arguments), "--config", str(shop.config)]
    code = run(words, Terminal(io.StringIO(), out, err))
    out.flush()
    return Got(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


@dataclass
class Street:
    """The merchants that are configured, and one that is not."""

    shop: Shop
    raw: Raw
    sdk: SdkMerchant
    stranger: Raw

    @property
    def chat(self) -> str:
        return f"{self.shop.devnet.merchant_url}/chat"


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    folder = tmp_path_factory.mktemp("street")
    with (
        serving(Raw()) as raw,
        serving(Raw()) as stranger,
        DevnetThread(block_time_s=1) as devnet,
        SdkMerchant(devnet, confirmations=0) as sdk,
    ):
        shop = Shop(devnet, folder)
        with shop.http:
            with shop.config.open("a") as config:
                bare = devnet.merchant_url.replace("127.0.0.1", "localhost")
                others = {"raw": raw.url, "sdk": sdk.url, "gone": "http://127.0.0.1:9", "bare": bare}
                for name, origin in others.items():
                    config.write(f'\n[merchants.{name}]\norigin = "{origin}"\n')
            fund(shop)
            with running(shop):
                until(lambda: len(shop.payagent("wallet", "utxos").json["utxos"]) == 7, "no deposit")
                yield Street(shop, raw, sdk, stranger)


@contextmanager
def serving(server: Raw) -> Iterator[Raw]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fund(shop: Shop) -> None:
    address = shop.made["address"]
    for _ in range(6):
        shop.control("faucet", address=address, lovelace="60000000")
    shop.control("faucet", address=address, lovelace="5000000", assets={TOKEN: "1000"})


@pytest.fixture(autouse=True)
def usual_terms(street: Street) -> None:
    x402 = {"version": 2, "fault": None, "confirmations": 0}
    street.shop.settings(price="2000000", splits=[], asset="lovelace", confirmations=1, batch=1, x402=x402)


@pytest.mark.parametrize("path", ["/chat", "/x402/premium?day=1"])
def test_a_request_is_paid_and_prints_the_merchants_body(street: Street, path: str) -> None:
    before = len(street.shop.payments())
    got = fetch(street.shop, street.shop.devnet.merchant_url + path, *(("-d", CALL) if path == "/chat" else ()))
    assert got.code == 0, got.err
    payment, *rest = street.shop.payments()
    assert len(rest) == before
    assert got.json["txHash"] == payment["tx_hash"]
    assert (payment["delivery"], payment["state"]) in {("accepted", "confirmed"), ("accepted", "in_flight")}
    assert payment["id"] in got.err
    assert f"it cost {format_ada(2_000_000 + int(payment['fee']))}\n" in got.err


def test_the_official_sdks_server_is_paid(street: Street) -> None:
    got = fetch(street.shop, f"{street.sdk.url}/chat", "-d", CALL)
    assert (got.code, got.json) == (0, {"reply": "hello"}), got.err
    assert street.shop.payments()[0]["tx_hash"] in street.sdk.payments


def test_a_streamed_answer_is_printed_to_its_end(street: Street) -> None:
    got = fetch(street.shop, street.chat, "-d", '{"message": "hello", "stream": true}')
    assert (got.code, got.out.endswith(b"data: [DONE]\n\n")) == (0, True)


def test_a_binary_body_is_written_unchanged(street: Street, tmp_path: Path) -> None:
    assert fetch(street.shop, f"{street.raw.url}/binary").out == BINARY
    got = fetch(street.shop, f"{street.raw.url}/binary", "-o", tmp_path / "there")
    assert (got.code, got.out, (tmp_path / "there").read_bytes()) == (0, b"", BINARY)


@pytest.mark.parametrize(
    ("arguments", "method", "content_type", "body"),
    [
        ((), "GET", None, ""),
        (("-d", "a=1&b=2"), "POST", "application/x-www-form-urlencoded", "a=1&b=2"),
        (("-d", CALL), "POST", "application/json", CALL),
        (("-d", CALL, "-X", "PUT", "-H", "Content-Type: text/plain"), "PUT", "text/plain", CALL),
    ],
)
def test_the_request_has_the_method_headers_and_body_that_were_given(
    street: Street, arguments: tuple[str, ...], method: str, content_type: str | None, body: str
) -> None:
    got = fetch(street.shop, f"{street.raw.url}/echo", "-H", "X-Mine: a: b", *arguments)
    headers = {name.lower(): value for name, value in got.json["headers"].items()}
    assert (got.json["method"], got.json["body"]) == (method, body)
    assert (headers.get("content-type"), headers["x-mine"]) == (content_type, "a: b")
    assert headers["user-agent"] == USER_AGENT
    assert not any(name.startswith("x-payagent") or name == "authorization" for name in headers)


def test_data_file_reads_a_file_or_standard_input(street: Street, tmp_path: Path) -> None:
    (tmp_path / "call.json").write_text(CALL)
    url = f"{street.raw.url}/echo"
    assert fetch(street.shop, url, "--data-file", tmp_path / "call.json").json["body"] == CALL
    piped = spawn(
        *("fetch", url, "--data-file", "-", "--config", street.shop.config),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = piped.communicate(CALL, timeout=PATIENCE_S)
    assert (piped.returncode, json.loads(out)["body"]) == (0, CALL), err


def test_a_dry_run_shows_the_price_and_pays_nothing(street: Street) -> None:
    before = street.shop.payments()
    got = fetch(street.shop, street.chat, "-d", CALL, "--dry-run")
    assert (got.code, got.json["outputs"][0]["units"]) == (10, "2000000")
    over = fetch(street.shop, street.chat, "-d", CALL, "--dry-run", "--max", "1 ADA")
    assert (over.code, over.problem) == (6, "limit_exceeded")
    within = fetch(street.shop, street.chat, "-d", CALL, "--dry-run", "--max", "3 ADA", "--human")
    assert (within.code, b"2 ADA" in within.out) == (10, True)
    free = fetch(street.shop, f"{street.raw.url}/binary", "--dry-run", "--max", "1 ADA")
    assert (free.code, free.out) == (0, BINARY)
    assert street.shop.payments() == before


def test_concurrent_requests_buy_one_batch_and_are_served_from_it(street: Street) -> None:
    street.shop.settings(batch=5)
    before = len(street.shop.payments())

    def call(number: int) -> Got:
        return fetch(street.shop, street.chat, "-d", json.dumps({"message": f"batch {number}"}))

    with ThreadPoolExecutor(5) as pool:
        ended = list(pool.map(call, range(5)))
    assert [got.code for got in ended] == [0] * 5, [got.err for got in ended]
    assert len(street.shop.payments()) == before + 1
    assert sum("it cost" in got.err for got in ended) == 1


def test_a_dry_run_uses_nothing_of_the_prepaid_balance(street: Street) -> None:
    street.shop.settings(batch=4)
    call = (street.chat, "-d", CALL)
    assert fetch(street.shop, *call).code == 0
    before, merchant = len(street.shop.payments()), f"{street.shop.devnet.merchant_url}/merchant/state"
    served = street.shop.http.get(merchant).json()["served_prepaid"]
    for more in ((), ("--max", "20 ADA"), ("--max", "5 units")):
        dry = fetch(street.shop, *call, "--dry-run", *more)
        assert (dry.code, dry.json["prepaid"], dry.json["units"]) == (10, True, "1")
    shown = fetch(street.shop, *call, "--dry-run", "--human")
    assert (shown.code, b"1 prepaid call" in shown.out) == (10, True)
    assert street.shop.http.get(merchant).json()["served_prepaid"] == served
    for more in ((), ("--max", "1 ADA"), ("--max", "5 units")):
        assert fetch(street.shop, *call, *more).code == 0
    assert street.shop.http.get(merchant).json()["served_prepaid"] == served + 3
    assert len(street.shop.payments()) == before


def test_a_merchant_that_requires_the_wallet_address_gets_it(street: Street) -> None:
    street.shop.settings(batch=2)
    before = len(street.shop.payments())
    for number in range(2):
        got = fetch(street.shop, street.chat.replace("127.0.0.1", "localhost"), "-d", f'{{"message": "{number}"}}')
        assert got.code == 0, got.err
    assert len(street.shop.payments()) == before + 1


def test_a_saved_402_is_not_paid_while_a_batch_is_being_bought(street: Street) -> None:
    street.shop.settings(batch=5)
    first, second = (street.shop.saved(f"saved {n}", f"{n}.json") for n in range(2))
    assert street.shop.payagent("pay", first, "--merchant", "t").code == 0
    got = street.shop.payagent("pay", second, "--merchant", "t")
    assert (got.code, got.problem) == (8, "batch_in_progress")


def test_no_more_than_max_is_paid(street: Street) -> None:
    got = fetch(street.shop, street.chat, "-d", '{"message": "bounded"}', "--max", "2 ADA")
    assert (got.code, got.problem) == (6, "limit_exceeded")  # the fee counts
    assert fetch(street.shop, street.chat, "-d", '{"message": "bounded"}', "--max", "3 ADA").code == 0
    wrong = fetch(street.shop, street.chat, "-d", CALL, "--max", "120 units")
    assert (wrong.code, wrong.problem) == (2, "amount_invalid")
    street.shop.settings(asset=TOKEN, price="10")
    token = fetch(street.shop, street.chat, "-d", '{"message": "token"}', "--max", "5 ADA")
    assert (token.code, token.problem) == (2, "amount_invalid")
    assert fetch(street.shop, street.chat, "-d", '{"message": "token"}', "--max", "10 units").code == 0


def test_a_max_in_ada_refuses_a_merchant_that_switches_to_tokens(street: Street) -> None:
    before = len(street.shop.payments())
    got = fetch(street.shop, f"{street.raw.url}/turncoat", "--max", "5 ADA")
    assert (got.code, got.problem) == (6, "limit_exceeded")
    assert len(street.raw.asks) == 1
    assert [row["state"] for row in street.shop.payments()[: -before or None]] == ["rejected"]


def test_a_payment_already_made_is_found_whatever_max_says(street: Street) -> None:
    """A second command for a request in flight costs nothing, so --max does not refuse it."""
    street.shop.settings(confirmations=DEEP)
    words = (street.chat, "-d", '{"message": "found"}')
    first = hurried(street, *words)
    assert first.returncode == 8
    street.shop.control("blocks", count=DEEP)
    before = len(street.shop.payments())
    assert fetch(street.shop, *words, "--max", "0.5 ADA").code == 0
    assert len(street.shop.payments()) == before


def hurried(street: Street, *words: str) -> subprocess.CompletedProcess[str]:
    """A fetch with a short timeout."""
    process = spawn(
        *("fetch", *words, "--config", street.shop.config),
        environ={"PAYAGENT_PROXY__PAYMENT_TIMEOUT_S": "10"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def test_an_origin_that_is_not_configured_is_never_contacted(street: Street) -> None:
    got = fetch(street.shop, f"{street.stranger.url}/chat", "-d", CALL)
    assert (got.code, got.problem, street.stranger.connections) == (6, "merchant_not_allowed", 0)


@pytest.mark.parametrize(
    ("terms", "code", "exit_code"),
    [
        ({"price": "400000000"}, "not_enough_funds", 7),
        ({"price": "2000000000"}, "limit_exceeded", 6),
        ({"price": "1"}, "invoice_invalid/below_min_ada", 3),
    ],
)
def test_a_refusal_says_why_and_pays_nothing(
    street: Street, terms: dict[str, str], code: str, exit_code: int
) -> None:
    street.shop.settings(**terms)
    held = street.shop.held()
    got = fetch(street.shop, street.chat, "-d", json.dumps({"message": code}))
    assert (got.code, got.problem, got.out) == (exit_code, code, b""), got.err
    assert street.shop.held() == held


def test_an_error_answer_of_the_merchant_is_printed_and_exits_with_4(street: Street) -> None:
    got = fetch(street.shop, f"{street.raw.url}/missing")
    assert (got.code, got.json["method"]) == (4, "GET")
    assert "the merchant answered 404" in got.err
    gone = fetch(street.shop, "http://127.0.0.1:9/chat")
    assert (gone.code, gone.problem) == (4, "merchant_unreachable")


def test_a_redirect_after_paying_is_reported_and_not_followed(street: Street) -> None:
    street.shop.settings(x402={"fault": "redirect_307", "fault_count": 1})
    before = len(street.shop.payments())
    got = fetch(street.shop, f"{street.shop.devnet.merchant_url}/x402/moved")
    assert got.code == 4, got.err
    assert "the merchant answered 307; the redirect to /x402/elsewhere was not followed" in got.err
    assert len(street.shop.payments()) == before + 1
    assert fetch(street.shop, f"{street.shop.devnet.merchant_url}/x402/moved").code == 0
    assert len(street.shop.payments()) == before + 1


def test_paid_but_not_yet_served_exits_with_8_and_a_later_command_is_served(street: Street) -> None:
    for merchant in street.shop.payagent("merchants").json["merchants"]:
        assert street.shop.payagent("merchants", "resume", merchant["name"]).code == 0
    street.shop.settings(confirmations=DEEP)
    words = (street.chat, "-d", '{"message": "later"}')
    ended = hurried(street, *words)
    assert ended.returncode == 8, ended.stderr
    error = json.loads(ended.stderr)
    assert (ended.stdout, error["code"]) == ("", "paid_not_served")
    assert error["payment"] == street.shop.payments()[0]["id"]
    assert json.loads(error["merchant_answer"]["body"]) == {"detail": {"status": "pending"}}
    before = len(street.shop.payments())
    street.shop.control("blocks", count=DEEP)
    assert fetch(street.shop, *words).code == 0
    assert len(street.shop.payments()) == before


def test_an_answer_that_cannot_be_written_is_paid_for_only_once(street: Street, tmp_path: Path) -> None:
    words = (street.chat, "-d", '{"message": "full"}', "-o")
    got = fetch(street.shop, *words, "/dev/full")
    assert (got.code, got.problem) == (2, "write_failed/merchant_answer")
    paid = street.shop.payments()[0]
    assert got.error["payment"] == paid["id"]
    assert fetch(street.shop, *words, tmp_path / "answer.json").code == 0
    assert json.loads((tmp_path / "answer.json").read_bytes())["reply"]
    assert street.shop.payments()[0]["id"] == paid["id"]


def test_a_terminal_shows_progress_while_waiting(street: Street) -> None:
    words = ("fetch", street.chat, "-d", '{"message": "wait"}', "--config", street.shop.config)
    with at_terminal(*words) as session:
        session.expect(" s\r")
        session.expect("was paid for")
        assert session.end() == 0
    assert "\npayment pay_" in session.seen, "the body ends without a newline, and the message begins a new line"


def test_an_interrupted_wait_is_continued_by_the_same_command(street: Street) -> None:
    street.shop.settings(confirmations=DEEP)
    words = ("fetch", street.chat, "-d", '{"message": "stop"}', "--config", street.shop.config)
    with at_terminal(*words) as session:
        session.expect("confirmed, ")
        session.interrupt()
        session.expect("continues. Run the same command")
        assert session.end() == 130
    before = len(street.shop.payments())
    street.shop.control("blocks", count=DEEP)
    assert fetch(street.shop, *words[1:4]).code == 0
    assert len(street.shop.payments()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("ftp://127.0.0.1/x",),
        ("127.0.0.1:80/x",),
        ("http://127.0.0.1/x", "-d", "a", "--data-file", "/dev/null"),
        ("http://127.0.0.1/x", "-d", "@call.json"),
        ("http://127.0.0.1/x", "-X", "GE T"),
        ("http://127.0.0.1/x", "-H", "no colon"),
        ("http://127.0.0.1/x", "-H", "X A: b"),
        ("http://127.0.0.1/x", "-H", "Content-Length: 5", "-d", "abc"),
        ("http://127.0.0.1/x", "-H", "transfer-encoding: chunked", "-d", "abc"),
        ("http://127.0.0.1/x", "-H", "X: a\r\nY: b"),
        ("http://127.0.0.1/x", "--max", "much"),
        ("http://127.0.0.1/x", "-o", "/nowhere/at/all"),
    ],
)
def test_invalid_arguments_exit_with_2(street: Street, arguments: tuple[str, ...]) -> None:
    assert fetch(street.shop, *arguments).code == 2


def test_without_the_daemon_nothing_is_sent(street: Street) -> None:
    away = copy(street.shop)
    away.config = street.shop.folder / "away.toml"
    away.config.write_text(street.shop.config.read_text().replace(f"{street.shop.folder}/s", "/none/s"))
    before = street.raw.connections
    got = fetch(away, f"{street.raw.url}/chat", "-d", CALL)
    assert (got.code, got.problem) == (4, "daemon_not_running")
    assert street.raw.connections == before


def test_an_apps_token_in_the_environment_pays_within_the_apps_budget(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, file = street.shop, street.shop.saved("of an app", "app.json")
    added = shop.payagent("app", "add", "shell", "--per-day", "3 ADA").json
    monkeypatch.setenv("PAYAGENT_TOKEN", plant("the token of shell", added["token"]))
    assert fetch(shop, street.chat, "-d", '{"message": "of the app"}').code == 0
    assert shop.payments()[0]["app"] == added["id"]
    over = fetch(shop, street.chat, "-d", '{"message": "over its budget"}')
    assert (over.code, over.problem, "shell's daily limit" in over.error["detail"]) == (6, "limit_exceeded", True)
    by_hand = shop.payagent("pay", file, "--merchant", "t")
    assert (by_hand.code, by_hand.problem) == (6, "limit_exceeded")
    own = shop.payagent("pay", file, "--merchant", "t", "--token-file", shop.data_dir / "operator.token")
    assert own.code == 0, own.err
    assert shop.payments()[0]["app"] != added["id"]
    monkeypatch.setenv("PAYAGENT_TOKEN", "")
    nobody = fetch(shop, street.chat, "-d", '{"message": "of nobody"}')
    assert (nobody.code, nobody.problem) == (5, "unauthorized")
