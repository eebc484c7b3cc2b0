"""Logs: a registered secret never reaches the stream, and a slow or full log does not stop the program."""

import base64
import fcntl
import io
import json
import logging
import os
import re
import resource
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from payagent.log import REDACTED, Redactor, configure_logging

CANARY = "canary-Zebra-7f3a91d2"
KEY = bytes(range(32))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Holder:
    """An object whose repr shows a secret, as pycardano's keys do."""

    def __repr__(self) -> str:
        return f"Key({KEY.hex()}, {CANARY!r})"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(params=[io.StringIO, Terminal])
def stream(request: pytest.FixtureRequest) -> io.StringIO:
    out: io.StringIO = request.param()
    redactor = Redactor()
    redactor.register(CANARY)
    redactor.register(KEY)
    configure_logging(out, redactor, level="debug")
    return out


def _leak() -> None:
    held = CANARY  # a local variable next to the raise, as in a signing function
    raise RuntimeError(f"cannot use {held}")


def _say_traceback(log: structlog.stdlib.BoundLogger) -> None:
    try:
        _leak()
    except RuntimeError:
        log.warning("sign.failed", exc_info=True)


def _bind(log: structlog.stdlib.BoundLogger) -> None:
    with structlog.contextvars.bound_contextvars(token=CANARY):
        log.info("bound")


LEAKS = {
    "event": lambda log: log.info(f"unlocked with {CANARY}"),
    "value": lambda log: log.info("unlock", passphrase=CANARY),
    "key": lambda log: log.info("unlock", **{CANARY: 1}),
    "nested": lambda log: log.info("call", headers=[{"authorization": (f"Bearer {CANARY}",)}]),
    "bytes": lambda log: log.info("read", raw=CANARY.encode()),
    "hex": lambda log: log.info("sign", key=KEY.hex()),
    "upper hex": lambda log: log.info("sign", key=KEY.hex().upper()),
    "base64": lambda log: log.info("sign", key=base64.b64encode(KEY).decode()),
    "repr": lambda log: log.info("sign", key=Holder()),
    "exception": lambda log: log.info("sign", error=ValueError(CANARY)),
    "traceback": _say_traceback,
    "context": _bind,
    "stdlib": lambda _log: logging.getLogger("other").info("sent %s", CANARY),
    "stdlib extra": lambda _log: logging.getLogger("other").info("sent", extra={"auth": {"t": CANARY}}),
}


@pytest.mark.parametrize("way", LEAKS)
def test_a_registered_secret_never_reaches_the_log(stream: io.StringIO, way: str) -> None:
    LEAKS[way](structlog.get_logger())
    text = stream.getvalue()
    assert REDACTED in text
    for form in (CANARY, KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode().rstrip("=")):
        assert form not in text


@pytest.mark.parametrize("way", LEAKS)
def test_an_unregistered_secret_reaches_the_log_in_each_of_these_ways(way: str) -> None:
    out = io.StringIO()
    configure_logging(out, Redactor(), level="debug")
    LEAKS[way](structlog.get_logger())
    forms = (CANARY, KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode().rstrip("="))
    assert any(form in out.getvalue() for form in forms)


def test_each_event_is_one_json_line_when_the_output_is_not_a_terminal() -> None:
    out = io.StringIO()
    configure_logging(out, Redactor())
    with structlog.contextvars.bound_contextvars(payment_id="pay_1"):
        structlog.get_logger().info("payment.submitted", units="5000000", note="two\nlines")
    structlog.get_logger().debug("not.shown")
    logging.getLogger("other").warning("from a library")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "payment.submitted",
        "level": "info",
        "payment_id": "pay_1",
        "units": "5000000",
        "note": "two\nlines",
    }
    assert (second["event"], second["level"]) == ("from a library", "warning")


def test_requests_of_the_http_client_are_not_logged_at_info() -> None:
    out = io.StringIO()
    configure_logging(out, Redactor(), level="info")
    for name in ("httpx", "httpcore.connection"):
        logging.getLogger(name).info("HTTP Request: GET http://127.0.0.1/payments/status/inv")
        logging.getLogger(name).warning("odd")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["odd", "odd"]


def test_repeated_lines_of_a_library_are_counted_instead_of_written() -> None:
    """As asyncio does many times a second without free descriptors. The next line counts what was left out."""
    out = io.StringIO()
    configure_logging(out, Redactor())
    library = logging.getLogger("asyncio")

    def say(at_s: float, text: str) -> None:
        record = library.makeRecord("asyncio", logging.ERROR, "f", 1, text, (), None)
        record.created = at_s
        library.handle(record)

    for n in range(1000):
        say(1_000 + n / 1000, f"socket.accept() out of system resource\nsocket: <fd={n}>")
    say(1_001, "another")
    say(1_100, "socket.accept() out of system resource\nsocket: <fd=7>")
    say(900, "socket.accept() out of system resource\nsocket: <fd=8>")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"].splitlines()[0], line.get("left_out")) for line in lines] == [
        ("socket.accept() out of system resource", None),
        ("another", None),
        ("socket.accept() out of system resource", 999),
        ("socket.accept() out of system resource", None),
    ]


def test_a_secret_that_contains_another_is_redacted_as_a_whole() -> None:
    redactor = Redactor()
    redactor.register("abcdefgh")
    redactor.register("abcdefgh-and-more")
    assert redactor.text("x abcdefgh-and-more y") == f"x {REDACTED} y"


def test_the_redactor_hides_its_secrets_and_refuses_short_ones() -> None:
    redactor = Redactor()
    redactor.register(CANARY)
    assert CANARY not in repr(redactor)
    with pytest.raises(ValueError, match="8 characters"):
        redactor.register("short")


@pytest.mark.parametrize("colours", [False, True])
def test_a_log_that_cannot_be_written_does_not_stop_the_program(
    colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full disk or a reader that is gone, a payment goes on after each line."""
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        monkeypatch.setattr(full, "isatty", lambda: colours)
        configure_logging(full, Redactor())
        structlog.get_logger().info("payment.sign", payment="pay_1")
        logging.getLogger("uvicorn").warning("somebody else's line")
        with suppress(OSError):  # the rest of the buffer
            full.close()


@pytest.mark.parametrize("opened", [os.pipe, os.openpty], ids=["a pipe", "a terminal"])
def test_a_stalled_log_reader_blocks_nothing_and_learns_how_many_lines_it_missed(
    opened: Callable[[], tuple[int, int]],
) -> None:
    """Lines of all sizes, more than any buffer holds; a truncated line does not spoil the next."""
    reader, writer = opened()
    said = [f"{number}: {'x' * (number * 353 % 20_000)}." for number in range(400)]
    with open(reader, "rb", buffering=0) as heard, open(writer, "w", encoding="utf-8", buffering=1) as stream:  # noqa: PTH123
        configure_logging(stream, Redactor())
        structlog.configure(processors=[lambda _logger, _level, event: event["event"]])
        log = structlog.get_logger()
        for line in said:
            log.info(line)
        heard_lines = _rest_of(heard)
        log.info("at last")
        heard_lines += _rest_of(heard)
    whole = [line for line in heard_lines if line in said]
    missed = [
        re.search(r"log\.lost.*lines\W+([0-9]+)", re.sub("\x1b\\[[0-9]*m", "", line)) for line in heard_lines
    ]
    assert whole == [line for line in said if line in whole]
    told, lost = sum(int(found[1]) for found in missed if found), len(said) - len(whole)
    assert told >= lost > 0, "a terminal may miss only the end of a truncated line"
    assert told == lost or opened is os.openpty
    assert "at last" in heard_lines


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log waits for its reader however busy the machine is."""
    monkeypatch.setattr("payagent.log.READER_PATIENCE_S", 120.0)


@pytest.mark.usefixtures("_patient")
def test_a_terminal_that_is_read_shows_long_lines_in_full() -> None:
    """Such as a traceback: a terminal takes such a line in parts."""
    shown, terminal = os.openpty()
    said = [f"{number}: {'x' * 200_000}." for number in range(5)]
    with (
        ThreadPoolExecutor() as threads,
        open(shown, "rb", buffering=0) as screen,  # noqa: PTH123
        open(terminal, "w", encoding="utf-8", buffering=1) as stream,  # noqa: PTH123
    ):
        configure_logging(stream, Redactor())
        structlog.configure(processors=[lambda _logger, _level, event: event["event"]])
        seen = threads.submit(_lines, screen, len(said))
        for line in said:
            structlog.get_logger().info(line)
        assert seen.result() == said


def test_a_slow_log_reader_does_not_hold_the_program_up_until_it_has_read_everything() -> None:
    """It reads a page at a time, slower than lines are written."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, resource.getpagesize())
    over, pages = threading.Event(), []

    def drip() -> None:
        while not over.wait(0.2):
            pages.append(os.read(reader, resource.getpagesize()))

    with ThreadPoolExecutor() as threads, open(writer, "w", encoding="utf-8", buffering=1) as stream:  # noqa: PTH123
        configure_logging(stream, Redactor())
        threads.submit(drip)
        for _ in range(400):  # more than 290 pages
            structlog.get_logger().info("told", text="x" * 3_000)
        over.set()
    os.close(reader)
    assert len(pages) < 200


def test_lines_lost_to_a_full_disk_are_counted_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        configure_logging(stream, Redactor())
        log = structlog.get_logger()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
        try:
            for size in (10, 9_000, 20, 30):
                log.info("told", text="x" * size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log.info("told", text="after")
    whole, cut, after, lost = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(whole)["text"], cut.count("}"), json.loads(after)["text"]) == ("x" * 10, 0, "after")
    assert (json.loads(lost)["event"], json.loads(lost)["lines"]) == ("log.lost", 3)


@pytest.mark.usefixtures("_patient")
def test_log_lines_of_several_threads_are_not_mixed() -> None:
    """Our lines and a library's, longer than a pipe takes at once."""
    reader, writer = os.pipe()
    with (
        ThreadPoolExecutor() as threads,
        open(reader, encoding="utf-8") as heard,  # noqa: PTH123
        open(writer, "w", encoding="utf-8", buffering=1) as stream,  # noqa: PTH123
    ):
        configure_logging(stream, Redactor())
        lines = threads.submit(heard.readlines)
        ours, library = structlog.get_logger(), logging.getLogger("library")
        says = (lambda n: ours.info(f"{n}", text="x" * 9_000), lambda n: library.warning(f"{n} {'y' * 9_000}"))
        for told in [threads.submit(lambda say=say: [say(n) for n in range(200)]) for say in says]:
            told.result()
        stream.close()
        levels = [json.loads(line)["level"] for line in lines.result()]
    assert (levels.count("info"), levels.count("warning")) == (200, 200)


def _rest_of(heard: io.RawIOBase) -> list[str]:
    """The lines that can be read now."""
    rest = b""
    while select.select([heard], [], [], 0.2)[0]:
        rest += heard.read(65_536) or b""
    return rest.decode().splitlines()


def _lines(heard: io.RawIOBase, count: int) -> list[str]:
    """So many lines, when they are there."""
    text = b""
    while text.count(b"\n") < count:
        text += heard.read(65_536) or b""
    return text.decode().splitlines()
