"""`payagent pay`: pays a saved 402, waits, and prints the headers for the retry.

Never: reads an invoice (the daemon does); repairs a 402, which goes to the daemon unchanged; pays twice: the same
402, or the same --key, is the same payment.
"""

import json
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from payagent.cli.options import (
    AMOUNT_HELP,
    ASSET,
    Connect,
    amount,
    example,
    show_amount,
    show_asset,
    show_units,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Json, ProblemError, Terminal, as_shown
from payagent.core import strict_json
from payagent.core.money import LOVELACE, counted, parse_bound
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, State
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

VOID, PENDING, DRY_RUN_OK = 3, 8, 10
FILE_BYTES_MAX = 128 * 1024

_ENVELOPE = {"status", "headers", "body"}
_STATUS_LINE = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_ENDED = frozenset(str(state) for state in ENDED_WITHOUT_PAYING)
_NOT_WORTH_WAITING = _ENDED | {str(State.AWAITING_APPROVAL)}
UNSEEN_MAX_S = 30
"""How long the command waits for a chain that the daemon cannot read. The daemon keeps trying."""

Bound = tuple[int, str | None]
"""--max as (units, asset); the asset is None for units of the invoice's token."""

RequestText = Callable[[tuple[int, str] | None], str]
"""Makes the request to the daemon with a --max, or with none."""

FIND_ONLY = 1, LOVELACE
"""A --max that pays nothing, in any asset, and still finds an existing payment."""

_BARE_FIX = (
    "FILE was read as a body without headers. If the terms are in the headers (x402), save it with `curl -i`, "
    'pass {"status", "headers", "body"}, or use `payagent fetch`.'
)

max_option = click.option("--max", "most", metavar="AMOUNT", help=f"The most to pay: {AMOUNT_HELP}")


@click.command(
    epilog=example(
        "curl -s https://api.example.com/chat -d @call.json -o invoice.json",
        "payagent pay invoice.json --merchant t --dry-run",
        "payagent pay invoice.json --merchant t --human > headers",
        "curl -s https://api.example.com/chat -d @call.json -H @headers",
    )
)
@click.argument("file", type=click.File("rb"), metavar="FILE|-")
@click.option("--merchant", metavar="NAME", help="Sender of the 402: a name from [merchants].")
@click.option("--origin", metavar="ORIGIN", help="Sender of the 402: scheme, host and port.")
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key is the same payment, for ever.")
@max_option
@click.option("--dry-run", is_flag=True, help="Show the price without paying. Exit code 10 if it may be paid.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the merchant can accept the proof. Exit code 8.")
@talks_to_daemon
def pay(
    terminal: Terminal,
    connect: Connect,
    file: BinaryIO,
    merchant: str | None,
    origin: str | None,
    key: str | None,
    most: str | None,
    dry_run: bool,
    no_wait: bool,
) -> int:
    """Pay a saved 402 and print the headers for the retry.

    FILE is the body of the 402, the answer as `curl -i` prints it, or an object {"status", "headers", "body"}.
    Without --merchant and --origin it is assumed to be from the only merchant. If the invoice expires after a
    number of seconds, they count from now, so pay it soon.

    The headers are printed as a JSON object, or as lines with --human. The command waits until the merchant should
    accept the retry (its `ready` setting). It exits with 8 if the chain cannot be read. If it is interrupted, the
    payment continues, and the same command finds it. Without --token-file it pays as the app whose token is in
    $PAYAGENT_TOKEN, or else as the operator.
    """
    response, is_bare = _saved(_read(file))
    client = connect(pays=True)
    with _explaining(is_bare):
        bound = None if most is None else parse_bound(most, client.settings.limits.tokens)
        request = partial(_request, _origin(terminal, client, merchant, origin), response)
        if dry_run:
            return _dry_run(terminal, client, request, bound)
        payment = _order(client, request, bound, key)
        if not no_wait:
            payment = _wait(terminal, client, payment)
        return _outcome(terminal, payment)


def _read(file: BinaryIO) -> bytes:
    """Read the file, up to the size of a 402. An empty file is a usage error and not the merchant's."""
    raw = file.read(FILE_BYTES_MAX)
    if not raw:
        raise click.BadParameter("empty: no 402 was saved", param_hint="FILE")
    return raw


def _saved(raw: bytes) -> tuple[str, bool]:
    """The `response` for the daemon as JSON text, and whether the file was treated as a bare body.

    Anything that has no other form is treated as a bare body. The daemon says what is wrong with it.
    """
    if _STATUS_LINE.match(raw):
        return json.dumps(_of_http(raw)), False
    try:
        value = strict_json.loads(raw, max_bytes=FILE_BYTES_MAX - 1)
    except Refused:
        value = None
    if isinstance(value, dict) and "body" in value and value.keys() <= _ENVELOPE:
        return raw.decode(), False
    return json.dumps({"status": 402, "body_base64": b64encode(raw).decode()}), True


def _of_http(raw: bytes) -> dict[str, object]:
    """The 402 in `curl -i` output. Skips earlier answers: a proxy's, 100 Continue, a redirect."""
    while True:
        head, *rest = _EMPTY_LINE.split(raw, maxsplit=1)
        body = rest[0] if rest else b""
        status_line, *lines = head.splitlines()
        status = int(status_line.split()[1])
        if status == 402 or not _STATUS_LINE.match(body):
            break
        raw = body
    pairs = [line.decode("latin-1").partition(":") for line in lines]
    headers = [[name.strip(), value.strip()] for name, _, value in pairs]
    return {"status": status, "headers": headers, "body_base64": b64encode(body).decode()}


def _request(origin: str, response: str, most: tuple[int, str] | None) -> str:
    """The request body as text. The 402 is passed on unchanged, so that the daemon sees its faults."""
    bound = "" if most is None else f', "max_total": "{most[0]}", "max_total_asset": "{most[1]}"'
    return f'{{"origin": {json.dumps(origin)}, "response": {response}{bound}}}'


def _origin(terminal: Terminal, client: "OperatorClient", merchant: str | None, origin: str | None) -> str:
    """The origin that sent the 402: from a flag, else the only merchant. What the file claims does not count."""
    if merchant is not None and origin is not None:
        raise click.UsageError("use either --merchant or --origin")
    if origin is not None:
        return origin
    origins = {row["name"]: str(row["origin"]) for row in client.get("/v1/merchants")["merchants"]}
    if merchant is None:
        if len(origins) != 1:
            raise click.UsageError("name the sender of the 402: --merchant NAME or --origin ORIGIN")
        ((merchant, only),) = origins.items()
        terminal.say(f"Assuming that the 402 is from the only merchant, {merchant} ({only}).")
    if merchant not in origins:
        names = f"the merchants are {', '.join(origins)}" if origins else "there is none yet"
        fix = f"Name one of them, or allow it with `payagent merchants add {quote(merchant)} --origin ORIGIN`."
        raise Refused("merchant_not_allowed", f"there is no merchant {merchant!r}; {names}", fix=fix)
    return origins[merchant]


@contextmanager
def _explaining(is_bare: bool) -> Iterator[None]:
    """If a body without headers is not understood, say how to save the headers too."""
    try:
        yield
    except ProblemError as error:
        if not is_bare or (error.problem["code"], error.problem.get("reason")) != ("invoice_invalid", "body"):
            raise
        raise ProblemError(error.problem | {"fix": _BARE_FIX}) from None


def _order(client: "OperatorClient", request: RequestText, bound: Bound | None, key: str | None) -> dict[str, Any]:
    """Pay within --max. A quote first tells the invoice's asset, in which --max must be.

    An invoice that is already paid cannot be quoted. Its payment is found all the same.
    """
    quote_error: ProblemError | None = None
    most = None if bound is None else FIND_ONLY
    if bound is not None:
        try:
            most = same_unit(client.post_text("/v1/quotes", request(None)), bound)
        except ProblemError as error:
            quote_error = error
    try:
        return client.post_text("/v1/payments", request(most), key)
    except ProblemError as error:
        raise error_to_show(quote_error, error) from None


def error_to_show(quote_error: ProblemError | None, payment_error: ProblemError) -> ProblemError:
    """The error to show: why there was no quote, if the payment was then refused only by the zero --max."""
    is_zero_max = payment_error.problem.get("limit") == "max_total"
    return quote_error if quote_error is not None and is_zero_max else payment_error


def same_unit(quote: Mapping[str, Any], bound: Bound) -> tuple[int, str]:
    """The units and asset of --max, if it is in the quote's asset.

    The asset is passed on, because the 402 that is paid may differ from the quoted one.
    """
    units, named = bound
    asset = str(quote["outputs"][0]["asset"])
    if named not in ((asset,) if asset == LOVELACE else (asset, None)):
        form = '"5 ADA"' if asset == LOVELACE else f'"120 units", in units of {show_asset(asset)}'
        raise Refused("amount_invalid", f"for this invoice, write --max as {form}")
    return units, asset


def _dry_run(terminal: Terminal, client: "OperatorClient", request: RequestText, bound: Bound | None) -> int:
    quote = client.post_text("/v1/quotes", request(None))
    if bound is not None:
        quote = client.post_text("/v1/quotes", request(same_unit(quote, bound)))
    terminal.give(quote, lambda: show_quote(terminal, quote))
    if quote.get("within_limits"):
        return DRY_RUN_OK
    return terminal.complain(as_shown(quote.get("refusal") or {"code": "limit_exceeded"}))


def show_quote(terminal: Terminal, quote: Json) -> None:
    """Show outputs, fee and total for people."""
    show_outputs(terminal, quote)
    terminal.pairs([("fee", show_units(LOVELACE, str(quote["fee"])))])
    spend: Any = quote.get("spend", {})
    for asset, units in spend.items():
        terminal.pairs([("total", show_amount(asset, units))])
    terminal.pairs(approval_rows(quote))


def show_prepaid(terminal: Terminal, quote: Json) -> None:
    """Show for people what a request would use of a prepaid balance."""
    unit, units = str(quote["unit"]), quote["units"]
    if units is None:
        used = "an unknown part: this request has no known price yet"
    else:
        is_call = unit == CALLS
        used = (
            counted(str(units), "prepaid call") if is_call else f"{show_amount(unit, str(units))} of the balance"
        )
    terminal.pairs([("prepaid", "the balance serves this request; nothing is paid"), ("uses", used)])


def approval_rows(quote: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Why it would need an approval; empty if it would not."""
    return [("needs approval", str(reason["detail"])) for reason in quote.get("approval", ())]


def show_outputs(terminal: Terminal, source: Mapping[str, Any]) -> None:
    """The outputs of a payment or a quote, as a table."""
    fields = (Field("role", is_whole=True), amount("units"), ASSET, Field("address"))
    terminal.table(source["outputs"], fields)


def _wait(terminal: Terminal, client: "OperatorClient", payment: dict[str, Any]) -> dict[str, Any]:
    """Wait until it is ready, has ended, needs an approval, or the chain cannot be read."""
    from payagent.cli.daemon_client import WAIT_S

    continues = f"The payment continues: `payagent payments show {payment['id']}`."
    started_s = chain_read_s = time.monotonic()
    poll_s = 1 if terminal.stderr.isatty() else WAIT_S
    with terminal.waiting() as progress:
        while not payment["ready"] and payment["state"] not in _NOT_WORTH_WAITING:
            progress(f"{in_words(payment['state'])}, {time.monotonic() - started_s:.0f} s")
            try:
                problem = _chain_problem(client)
                if problem is None:
                    chain_read_s = time.monotonic()
                elif time.monotonic() - chain_read_s >= UNSEEN_MAX_S:
                    terminal.say(f"The chain cannot be read: {problem}. {continues}")
                    break
                payment = client.get(f"/v1/payments/{payment['id']}", wait=poll_s)
            except KeyboardInterrupt:
                terminal.say(continues)
                raise
    return payment


def _chain_problem(client: "OperatorClient") -> str | None:
    """Why the daemon cannot read the chain, from /readyz; None if it can."""
    answer = client.readiness()
    return str(answer["checks"]["chain"]) if answer["code"] == "chain_not_ready" else None


def in_words(state: object) -> str:
    """A state for people."""
    return str(state).replace("_", " ")


def _outcome(terminal: Terminal, payment: dict[str, Any]) -> int:
    """The headers on stdout, everything else on stderr."""
    tx = payment.get("tx_hash") or "none"
    terminal.say(f"payment {payment['id']} is {in_words(payment['state'])}, transaction {tx}")
    if payment["state"] in _ENDED:
        if reason := payment.get("reason"):
            terminal.complain(as_shown(reason))
        return VOID
    if payment["state"] == State.AWAITING_APPROVAL:
        detail = f"{payment['id']} waits for an approval"
        terminal.complain(as_shown({"code": "awaiting_approval", "detail": detail, "payment": payment["id"]}))
        return PENDING
    headers = payment.get("headers") or {}

    def human() -> None:
        for name, value in headers.items():
            terminal.line(f"{name}: {value}")

    if headers:
        terminal.give(headers, human)
    return 0 if payment["ready"] else PENDING
