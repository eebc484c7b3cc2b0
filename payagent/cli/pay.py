"""`payagent pay`: pays a saved 402, waits, and prints the headers for the retry.

May import: click, core, cli.
Never: reads an invoice (the daemon does); pays twice: the same 402, or the same --key, is the same payment.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from payagent.cli.options import Connect, example, show_amount, show_asset, show_units, talks_to_daemon, typed
from payagent.cli.saved_402 import FILE_BYTES_MAX, read_saved
from payagent.cli.terminal import Json, ProblemError, Terminal, as_shown
from payagent.core.money import LOVELACE, parse_ada, parse_units
from payagent.core.payment import ENDED_WITHOUT_PAYING, State
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

VOID, PENDING, DRY_RUN_OK = 3, 8, 10
_ENDED = frozenset(str(state) for state in ENDED_WITHOUT_PAYING)
_NOT_WORTH_WAITING = _ENDED | {str(State.AWAITING_APPROVAL)}
_TOKEN_TEXT = re.compile(r"([0-9]{1,19}) units", re.ASCII)
UNSEEN_MAX_S = 30
"""So long the command waits for a chain that nobody sees; the daemon goes on trying."""

FOUND_ALONE = 1, LOVELACE
"""A bound that lets a payment be found which is there already, and pays nothing, in no asset."""

_BARE_FIX = (
    "FILE was taken for the body alone. Where the terms stand in the headers (x402), save it with `curl -i`, give "
    '{"status", "headers", "body"}, or make the call with `payagent fetch`.'
)


@click.command(
    epilog=example(
        "curl -s https://api.example.com/chat -d @call.json -o invoice.json",
        "payagent pay invoice.json --merchant t --dry-run",
        "payagent pay invoice.json --merchant t --human > headers",
        "curl -s https://api.example.com/chat -d @call.json -H @headers",
    )
)
@click.argument("file", type=click.File("rb"), metavar="FILE|-")
@click.option("--merchant", metavar="NAME", help="Who sent the 402: a name from [merchants].")
@click.option("--origin", metavar="ORIGIN", help="Who sent it, by scheme, host and port.")
@click.option("--key", metavar="TEXT", help="Names the purchase; used again, it is the same payment for ever.")
@click.option("--max", "most", metavar="AMOUNT", help='At most this: "5 ADA", or "120 units" of a token.')
@click.option("--dry-run", is_flag=True, help="Only say what it would take; exit code 10 when it may be paid.")
@click.option("--no-wait", is_flag=True, help="Do not wait until the merchant can accept it; exit code 8 then.")
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

    FILE is the body of the 402 as received, the answer as `curl -i` shows it, or an object {"status", "headers",
    "body"}. Who sent it need not be said where only one merchant may be paid: it is taken for that one's. Where it
    says in how many seconds it ends, they are counted from now: pay it soon.

    The headers come as a JSON object, or as lines for people. It waits until the merchant can be expected to
    accept the retry, as the merchant's `ready` setting says, and while the chain can be seen: else the exit code
    is 8. Interrupted too, the payment goes on, and the same command finds it.
    """
    response, is_bare = read_saved(_read(file))
    bound = None if most is None else parse_most(most)
    with connect() as link, _explaining(is_bare):
        asked = _Request(_origin(terminal, link, merchant, origin), response)
        if dry_run:
            return _dry_run(terminal, link, asked, bound)
        payment = _order(link, asked, bound, key)
        if not no_wait:
            payment = _wait(terminal, link, payment)
        return _outcome(terminal, payment)


def _read(file: BinaryIO) -> bytes:
    """The file, as far as a 402 can reach. Nothing at all is a slip of the caller's, not of the merchant's."""
    raw = file.read(FILE_BYTES_MAX)
    if not raw:
        raise click.BadParameter("it is empty: no 402 was saved", param_hint="FILE")
    return raw


class _Request:
    """The call's body as text. The 402 goes on as it came: a reader that repairs it would hide its faults."""

    def __init__(self, origin: str, response: str) -> None:
        self.origin = origin
        self._response = response

    def text(self, most: tuple[int, str] | None) -> str:
        bound = "" if most is None else f', "max_total": "{most[0]}", "max_total_asset": "{most[1]}"'
        return f'{{"origin": {json.dumps(self.origin)}, "response": {self._response}{bound}}}'


def _origin(terminal: Terminal, link: "OperatorClient", merchant: str | None, origin: str | None) -> str:
    """Whose 402 it is: as a flag says, else the only merchant there is, which is told. A file says it of itself
    as it likes.
    """
    if merchant is not None and origin is not None:
        raise click.UsageError("give either --merchant or --origin")
    if origin is not None:
        return origin
    known = {row["name"]: str(row["origin"]) for row in link.get("/v1/merchants")["merchants"]}
    if merchant is None:
        if len(known) != 1:
            raise click.UsageError("say who sent the 402: --merchant NAME or --origin ORIGIN")
        ((merchant, only),) = known.items()
        terminal.say(f"The 402 is taken for one of {merchant} ({only}), the only merchant.")
    if merchant not in known:
        names = f"there is {', '.join(known)}" if known else "there is none yet"
        raise Refused("merchant_not_allowed", f"there is no merchant {merchant!r}; {names}")
    return known[merchant]


@contextmanager
def _explaining(is_bare: bool) -> Iterator[None]:
    """Within it, a body without its headers that is no invoice is not blamed on the merchant alone."""
    try:
        yield
    except ProblemError as error:
        if not is_bare or (error.problem["code"], error.problem.get("reason")) != ("invoice_invalid", "body"):
            raise
        raise ProblemError(error.problem | {"fix": _BARE_FIX}) from None


def parse_most(text: str) -> tuple[bool, int]:
    """A bound: (is it in ADA, its units)."""
    if match := _TOKEN_TEXT.fullmatch(text):
        with typed():
            return False, parse_units(match[1], "--max")
    return True, parse_ada(text)


def _order(
    link: "OperatorClient", asked: _Request, bound: tuple[bool, int] | None, key: str | None
) -> dict[str, Any]:
    """Have it paid, within a bound in units of the invoice's asset, which a quote tells: ADA is no token's unit.

    What is paid already cannot be quoted, and can be found.
    """
    why: ProblemError | None = None
    most = None if bound is None else FOUND_ALONE
    if bound is not None:
        try:
            most = same_unit(link.post_text("/v1/quotes", asked.text(None)), bound)
        except ProblemError as error:
            why = error
    try:
        return link.post_text("/v1/payments", asked.text(most), key)
    except ProblemError as error:
        raise rather(why, error) from None


def rather(unpriced: ProblemError | None, refused: ProblemError) -> ProblemError:
    """What kept a call from being priced, where nothing but the bound that it was made with is told of it."""
    return unpriced if unpriced is not None and refused.problem.get("limit") == "max_total" else refused


def same_unit(quote: Mapping[str, Any], bound: tuple[bool, int]) -> tuple[int, str]:
    """The bound's units and their asset, when it is one of the asset that a quote is in.

    What is paid then may be another 402 than what was quoted, or another of its offers: so it is said of what.
    """
    in_ada, units = bound
    asset = str(quote["outputs"][0]["asset"])
    if in_ada != (asset == LOVELACE):
        wanted = '"5 ADA"' if asset == LOVELACE else f'"120 units", which are of {show_asset(asset)}'
        raise Refused("amount_invalid", f"this invoice takes a --max such as {wanted}")
    return units, asset


def _dry_run(terminal: Terminal, link: "OperatorClient", asked: _Request, bound: tuple[bool, int] | None) -> int:
    quote = link.post_text("/v1/quotes", asked.text(None))
    if bound is not None:
        quote = link.post_text("/v1/quotes", asked.text(same_unit(quote, bound)))
    terminal.give(quote, lambda: show_quote(terminal, quote))
    if quote.get("within_limits"):
        return DRY_RUN_OK
    problem = as_shown(quote.get("refusal") or {"code": "limit_exceeded"})
    terminal.complain(problem)
    return int(str(problem["exit_code"]))


def show_quote(terminal: Terminal, quote: Json) -> None:
    """Outputs, fee and total, for people."""
    show_outputs(terminal, quote)
    terminal.pairs([("fee", show_units(LOVELACE, str(quote["fee"])))])
    spend: Any = quote.get("spend", {})
    for asset, units in spend.items():
        terminal.pairs([("in all", f"{show_units(asset, units)}{'' if asset == LOVELACE else ' ' + asset}")])
    terminal.pairs(asks_first(quote))


def show_prepaid(terminal: Terminal, quote: Json) -> None:
    """What a call would use of a prepaid balance, for people."""
    unit, units = str(quote["unit"]), quote["units"]
    if units is None:
        used = "an unknown part, since the call never cost anything yet"
    else:
        used = f"{units} prepaid call" if unit == CALLS else f"{show_amount(unit, str(units))} of the balance"
    terminal.pairs([("prepaid", "the balance serves this call; nothing is paid"), ("uses", used)])


def asks_first(quote: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Why a person would be asked before it is paid; nothing where nobody would."""
    return [("asks a person", str(reason["detail"])) for reason in quote.get("approval", ())]


def show_outputs(terminal: Terminal, source: Mapping[str, Any]) -> None:
    """The outputs of a payment or a quote, as a table."""
    rows = [
        (
            output["role"],
            show_units(output["asset"], output["units"]),
            show_asset(output["asset"]),
            output["address"],
        )
        for output in source["outputs"]
    ]
    terminal.table(("role", "units", "asset", "address"), rows, right=("units",))


def _wait(terminal: Terminal, link: "OperatorClient", payment: dict[str, Any]) -> dict[str, Any]:
    """Until it is ready, or has ended, or a person must decide, or nobody can see the chain."""
    from payagent.cli.daemon_client import WAIT_S

    goes_on = f"The payment goes on: `payagent payments show {payment['id']}`."
    started_s = seen_s = time.monotonic()
    patience_s = 1 if terminal.stderr.isatty() else WAIT_S
    with terminal.waiting() as progress:
        while not payment["ready"] and payment["state"] not in _NOT_WORTH_WAITING:
            progress(f"{in_words(payment['state'])}, {time.monotonic() - started_s:.0f} s")
            try:
                why = _unseen_because(link)
                if why is None:
                    seen_s = time.monotonic()
                elif time.monotonic() - seen_s >= UNSEEN_MAX_S:
                    terminal.say(f"The chain cannot be seen: {why}. {goes_on}")
                    break
                payment = link.get(f"/v1/payments/{payment['id']}", wait=patience_s)
            except KeyboardInterrupt:
                terminal.say(goes_on)
                raise
    return payment


def _unseen_because(link: "OperatorClient") -> str | None:
    """Why the daemon does not see the chain now, as /readyz tells it; None while it does, whatever else keeps it
    from signing.
    """
    told = link.readiness()
    return str(told["checks"]["chain"]) if told["code"] == "chain_not_ready" else None


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
        detail = f"{payment['id']} waits for approval"
        terminal.complain(as_shown({"code": "awaiting_approval", "detail": detail, "payment": payment["id"]}))
        return PENDING
    headers = payment.get("headers") or {}

    def human() -> None:
        for name, value in headers.items():
            terminal.line(f"{name}: {value}")

    if headers:
        terminal.give(headers, human)
    return 0 if payment["ready"] else PENDING
