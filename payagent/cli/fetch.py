"""`payagent fetch`: makes one HTTP request, pays if it costs money, and writes the response body to stdout
unchanged.

Never: sends anything to an origin that is not configured; follows a redirect; decides whether to pay (the daemon
does).
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from payagent.cli.options import Connect, example, show_amount, talks_to_daemon
from payagent.cli.pay import (
    DRY_RUN_OK,
    FIND_ONLY,
    PENDING,
    VOID,
    Bound,
    error_to_show,
    in_words,
    max_option,
    same_unit,
    show_prepaid,
    show_quote,
)
from payagent.cli.terminal import Json, ProblemError, Terminal, as_shown, describe
from payagent.core.cost_headers import (
    COST_HEADER,
    DRY_RUN_HEADER,
    MAX_COST_HEADER,
    PAYMENT_HEADER,
    STATE_HEADER,
    read_cost,
)
from payagent.core.money import parse_bound
from payagent.core.origin import not_configured, parse_origin
from payagent.core.payment.machine import WITHOUT_PROOF
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT

if TYPE_CHECKING:
    import httpx

    from payagent.cli.daemon_client import OperatorClient
    from payagent.client.steps import AskDaemon, DaemonReply

NOT_SERVED = 4
_AGAIN = frozenset((408, 425, 429, *range(500, 600)))
"""Statuses after which the same proof is presented again."""


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_FRAMING = ("content-length", "transfer-encoding", "connection", "host")


@click.command(
    epilog=example(
        "payagent fetch https://api.example.com/premium",
        """payagent fetch https://api.example.com/chat -d '{"message": "hello"}' --max "5 ADA" --dry-run""",
        "payagent fetch https://api.example.com/images/edit --data-file call.json -o answer.json",
    )
)
@click.argument("url", metavar="URL")
@click.option("-X", "--request", "method", metavar="METHOD", help="Method. Default: GET, or POST with a body.")
@click.option("-H", "--header", "headers", metavar="'NAME: VALUE'", multiple=True, help="Header. Repeatable.")
@click.option("-d", "--data", metavar="TEXT", help="Body to send unchanged. JSON is sent as application/json.")
@click.option("--data-file", type=click.File("rb"), metavar="FILE|-", help="File with the body to send.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="FILE",
    help="Write the response body to this file.",
)
@max_option
@click.option("--dry-run", is_flag=True, help="Show the price without paying. Exit code 10 if it may be paid.")
@talks_to_daemon
def fetch(
    terminal: Terminal,
    connect: Connect,
    url: str,
    method: str | None,
    headers: Sequence[str],
    data: str | None,
    data_file: BinaryIO | None,
    output: Path | None,
    most: str | None,
    dry_run: bool,
) -> int:
    """Send an HTTP request, and pay if it costs money.

    When the merchant answers 402, it pays and retries with the proof. The response body goes to stdout unchanged.
    The exit code is 0 for a 2xx answer, 4 for another one, and 8 if the request was paid but is not served yet.
    `payagent --help` lists the others. After exit code 8, the same command presents the same proof and pays
    nothing. A 402 after the payment ends as the error `paid_not_served`, with exit code 8. Redirects are not
    followed. Without --token-file it pays as the app whose token is in $PAYAGENT_TOKEN, or else as the operator.
    """
    request = _read_request(url, method, headers, data, data_file)
    if output is not None and not output.exists() and not os.access(output.parent, os.W_OK):
        raise click.BadParameter(f"{output.parent} is not a writable directory", param_hint="-o")
    client = connect(pays=True)
    bound = None if most is None else parse_bound(most, client.settings.limits.tokens)
    _require_merchant(client, request.origin)
    fetcher = _Fetcher(terminal, client, request, output)
    return fetcher.run(dry_run) if bound is None else fetcher.run_within(bound, dry_run)


@dataclass(frozen=True, slots=True)
class _Request:
    """The request, as the user asked for it."""

    method: str
    url: str
    origin: str
    headers: Mapping[str, str] | list[tuple[str, str]]
    content: bytes | None


def _read_request(
    url: str, method: str | None, headers: Sequence[str], data: str | None, data_file: BinaryIO | None
) -> _Request:
    import httpx

    if data is not None and data_file is not None:
        raise click.UsageError("use either -d or --data-file")
    if data is not None and data.startswith("@"):
        raise click.UsageError(f"-d sends the text unchanged; to send a file, use --data-file {data[1:]}")
    if method is not None and not _TOKEN.fullmatch(method):
        raise click.BadParameter("an HTTP method is one word", param_hint="-X")
    content = data_file.read() if data_file is not None else None if data is None else os.fsencode(data)
    pairs = [_read_header(header) for header in headers]
    # the body is written as it arrives, so ask for no compression
    defaults = {"accept-encoding": "identity", "user-agent": USER_AGENT}
    if content is not None:
        defaults["content-type"] = _content_type(content)
    names = {name.lower() for name, _ in pairs}
    try:
        parts = httpx.URL(url)
        origin = parse_origin(f"{parts.scheme}://{parts.netloc.decode('ascii')}")
    except (httpx.InvalidURL, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    return _Request(
        method=method or ("GET" if content is None else "POST"),
        url=url,
        origin=origin,
        headers=[*pairs, *((name, value) for name, value in defaults.items() if name not in names)],
        content=content,
    )


def _read_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()) or not (text.isascii() and text.isprintable()):
        raise click.BadParameter("write 'Name: value' in ASCII", param_hint="-H")
    if name.strip().lower() in _FRAMING:
        raise click.BadParameter(f"{name.strip()} is set from the URL and the body", param_hint="-H")
    return name.strip(), value.strip()


def _content_type(content: bytes) -> str:
    try:
        json.loads(content)
    except ValueError:
        return "application/x-www-form-urlencoded"
    return "application/json"


def _require_merchant(client: "OperatorClient", origin: str) -> None:
    """Refuse an origin that is not configured, before anything is sent to it."""
    if origin not in {row["origin"] for row in client.get("/v1/merchants")["merchants"]}:
        raise not_configured(origin)


@dataclass(slots=True)
class _Watcher:
    """Forwards the client's requests to the daemon over its socket, and shows progress."""

    client: "OperatorClient"
    is_seen: bool
    progress: Callable[[str], None] = lambda _text: None
    started_s: float = field(default_factory=time.monotonic)
    payment_id: str | None = None

    def ask(self, ask: "AskDaemon") -> "DaemonReply":
        from payagent.client import PayAgentError
        from payagent.client.steps import DaemonReply

        wait_s = min(ask.wait_s, 1) if self.is_seen else ask.wait_s
        try:
            if ask.body is None:
                body = self.client.get(ask.path, wait=wait_s or None)
            else:
                body = self.client.post(ask.path, ask.body, ask.key)
        except ProblemError as error:
            if error.problem["code"] == "batch_in_progress":
                self._show("another request buys the batch")
            return DaemonReply(int(str(error.problem["status"])), error.problem)
        except Refused as refused:
            raise PayAgentError(describe(refused)) from None
        if "state" in body:
            self.payment_id = body["id"]
            self._show(in_words(body["state"]))
        return DaemonReply(200, body)

    def _show(self, status: str) -> None:
        self.progress(f"{status}, {time.monotonic() - self.started_s:.0f} s")

    def close(self) -> None:
        """Do nothing: the caller owns the link."""


@dataclass(slots=True)
class _Fetcher:
    """Sends the request, writes the answer, and returns the exit code."""

    terminal: Terminal
    client: "OperatorClient"
    request: _Request
    output: Path | None

    def run(self, dry_run: bool) -> int:
        """Send the request without --max."""
        with self._send({DRY_RUN_HEADER: "true"} if dry_run else {}) as (answer, quote):
            return self._give(answer) if quote is None else self._give_quote(quote)

    def run_within(self, bound: Bound, dry_run: bool) -> int:
        """Send the request within --max. A dry run first shows whether the merchant asks for ADA or a token."""
        dry_run_error: ProblemError | None = None
        most = FIND_ONLY
        try:
            with self._send({DRY_RUN_HEADER: "true"}, is_made=not dry_run) as (answer, quote):
                if quote is None:
                    return self._give(answer)
                if quote["prepaid"]:
                    return self._give_quote(quote)
                most = same_unit(quote, bound)
        except ProblemError as error:
            if dry_run:
                raise
            dry_run_error = error
        options = {MAX_COST_HEADER: f"{most[0]} {most[1]}"} | ({DRY_RUN_HEADER: "true"} if dry_run else {})
        try:
            with self._send(options) as (answer, quote):
                return self._give(answer) if quote is None else self._give_quote(quote)
        except ProblemError as error:
            raise error_to_show(dry_run_error, error) from None

    @contextmanager
    def _send(
        self, options: Mapping[str, str], *, is_made: bool = False
    ) -> Iterator[tuple["httpx.Response", Json | None]]:
        """Yield the answer, whose body is still to be read, and the quote of a dry run.

        `is_made`: send the request even in a dry run if a prepaid balance serves it.
        """
        import httpx

        from payagent.client import PayAgentError, PayAgentTransport
        from payagent.client.paid_request import CALL_MARK, QUOTE_MARK

        proxy = self.client.settings.proxy
        watcher = _Watcher(self.client, self.terminal.stderr.isatty())
        transport = PayAgentTransport(
            daemon=watcher, patience_s=proxy.payment_timeout_s, spool_bytes=proxy.body_buffer_bytes_max
        )
        timeout = httpx.Timeout(proxy.read_timeout_s, connect=10.0)
        headers = httpx.Headers([*self.request.headers, *options.items()])
        marks = {CALL_MARK: True} if is_made else {}
        try:
            with httpx.Client(transport=transport, timeout=timeout, trust_env=False) as http:
                http.headers = headers
                request = http.build_request(
                    self.request.method, self.request.url, content=self.request.content, extensions=marks
                )
                with self.terminal.waiting() as watcher.progress:
                    answer = http.send(request, stream=True)
                with closing(answer):
                    yield answer, answer.extensions.get(QUOTE_MARK)
        except PayAgentError as error:
            raise ProblemError(error.problem) from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise _merchant_failure(error, watcher.payment_id) from None
        except KeyboardInterrupt:
            if watcher.payment_id is not None:
                self.terminal.say(f"Payment {watcher.payment_id} continues. Run the same command again.")
            raise

    def _give(self, answer: "httpx.Response") -> int:
        """Write the body as it arrives; then, on stderr, what was paid and any error status."""
        from payagent.client.paid_request import REFUSAL_MARK

        self._write(answer)
        if (refusal := answer.extensions.get(REFUSAL_MARK)) is not None:
            return self.terminal.complain(as_shown(refusal))
        state = answer.headers.get(STATE_HEADER)
        if state is not None:
            payment_id, cost = answer.headers[PAYMENT_HEADER], show_amount(*read_cost(answer.headers[COST_HEADER]))
            self.terminal.say(f"payment {payment_id} is {in_words(state)}, it cost {cost}")
        if answer.is_success:
            return 0
        to = answer.headers.get("Location")
        more = "" if to is None else f"; the redirect to {to} was not followed"
        self.terminal.say(f"the merchant answered {answer.status_code}{more}")
        if state in WITHOUT_PROOF:
            return VOID
        return PENDING if answer.status_code in _AGAIN and state is not None else NOT_SERVED

    def _write(self, answer: "httpx.Response") -> None:
        self.terminal.stdout.flush()
        to = nullcontext(self.terminal.stdout.buffer) if self.output is None else self.output.open("wb")
        chunk = b"\n"
        try:
            with to as sink:
                for chunk in answer.iter_raw():
                    sink.write(chunk)
                    sink.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            payment_id = answer.headers.get(PAYMENT_HEADER)
            context = {} if payment_id is None else {"payment": payment_id}
            raise Refused("write_failed/merchant_answer", f"response body: {error.strerror}", **context) from None
        if self.output is None and not chunk.endswith(b"\n") and self.terminal.is_one_screen:
            self.terminal.say("")  # start the next message on its own line

    def _give_quote(self, quote: dict[str, Any]) -> int:
        show = show_prepaid if quote["prepaid"] else show_quote
        self.terminal.give(quote, lambda: show(self.terminal, quote))
        return DRY_RUN_OK if quote["within_limits"] else self.terminal.complain(as_shown(quote["refusal"]))


def _merchant_failure(error: Exception, payment_id: str | None) -> Refused:
    """The refusal for a failed request to the merchant. If it was paid, a retry presents the same proof."""
    import httpx

    detail = f"{type(error).__name__}: {error}"
    if payment_id is not None:
        return Refused("not_served_yet", f"payment {payment_id} continues; {detail}", payment=payment_id)
    if isinstance(error, httpx.ReadTimeout):
        return Refused("merchant_timeout", detail)
    return Refused("merchant_unreachable", detail)
