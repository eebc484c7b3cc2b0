"""`payagent prepaid`: shows prepaid balances at merchants, and manages top-ups.

May import: click, core, cli.
Never: counts anything (the daemon does).
"""

import time
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from payagent.cli.options import (
    Connect,
    example,
    group_of,
    page_options,
    say_more,
    show_amount,
    show_units,
    talks_to_daemon,
    typed,
)
from payagent.cli.pay import DRY_RUN_OK, PENDING, asks_first, show_prepaid
from payagent.cli.terminal import Terminal, as_shown
from payagent.core.money import LOVELACE, parse_ada, parse_asset, parse_units
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import name_of

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

BODY_BYTES_MAX = 128 * 1024
QUIET_S = 5
"""How long a wait that shows nothing may miss that a person is asked."""


@group_of("payagent prepaid", "payagent prepaid list --json", alone="list")
def prepaid() -> None:
    """Show and raise what was bought ahead at merchants. Alone: the list."""


@prepaid.command("list", epilog=example("payagent prepaid list --json"))
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect) -> None:
    """What is bought, used and left, as we count it, and what the merchant says is left.

    A payment counts as bought when it is confirmed. Calls count as used when they go through payagent's proxy.
    """
    with connect() as link:
        answer = link.get("/v1/prepaid")
    terminal.give(answer, lambda: _show(terminal, answer["prepaid"]))


def _show(terminal: Terminal, holdings: list[dict[str, Any]]) -> None:
    numbers = ("bought", "used", "left", "coming", "unexplained")
    rows = []
    for one in holdings:
        told = one["merchant_says"]
        says = "" if told is None else _says(told)
        name = one["merchant"] or one["origin"]
        counts = (_number(one, one[part]) for part in numbers)
        rows.append((name, one["partner"] or "", *counts, says, one["difference"] or ""))
    last = ("merchant says", "difference")
    terminal.table(("merchant", "partner", *numbers, *last), rows, right=(*numbers, *last))


def _says(told: dict[str, Any]) -> str:
    """In the merchant's own unit; a number without one is as it came."""
    if not told["understood"]:
        return "not understood"
    return _number(told, told["remaining"]) if told["unit"] else str(told["remaining"] or "")


def _number(one: dict[str, Any], units: str | None) -> str:
    if units is None:
        return ""
    return f"{units} calls" if one["unit"] == CALLS else show_amount(one["unit"], units)


@prepaid.command(
    epilog=example(
        'payagent prepaid topup t --amount "50 ADA" --dry-run',
        'payagent prepaid topup t --amount "50 ADA" --key march',
        'payagent prepaid topup t --amount "50 ADA" --path /chat --data call.json',
    )
)
@click.argument("merchant", metavar="MERCHANT")
@click.option("--amount", required=True, metavar="AMOUNT", help='"50 ADA", or the units of a token as digits.')
@click.option("--asset", metavar="ASSET", help="Policy id and asset name in hex. Default: ADA.")
@click.option("--key", metavar="TEXT", help="Names the order: given again, it is the same one.")
@click.option(
    "--path", metavar="PATH", help="An ordinary call whose 402 sells a batch, in place of the configured one."
)
@click.option("--method", default="POST", show_default=True, metavar="NAME", help="The method of that call.")
@click.option("--data", type=click.File("rb"), metavar="FILE|-", help="The body of that call, JSON as it is sent.")
@click.option("--dry-run", is_flag=True, help="Only say what it would take; exit code 10 when it may be paid.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is done; exit code 8 without.")
@talks_to_daemon
def topup(
    terminal: Terminal,
    connect: Connect,
    merchant: str,
    amount: str,
    asset: str | None,
    key: str | None,
    path: str | None,
    method: str,
    data: BinaryIO | None,
    dry_run: bool,
    wait: bool,
) -> int:
    """Raise the balance at a merchant: pay 402s of its top-up request until AMOUNT is paid, fees not counted.

    The last batch may reach beyond AMOUNT. The order is durable: it goes on without this command, and the limits
    hold for it. MERCHANT is a name from [merchants], or its origin.
    """
    with typed():
        name = LOVELACE if asset is None else parse_asset(asset)
        units = parse_ada(amount) if name == LOVELACE else parse_units(amount, "--amount")
    body: dict[str, object] = {"merchant": merchant, "units": str(units), "asset": name}
    if path is not None:
        body["request"] = {"method": method, "path": path, "body": _text(data)}
    elif data is not None:
        raise click.UsageError("--data is the body of a call: name it with --path")
    with connect() as link:
        if dry_run:
            return _plan(terminal, link.post("/v1/prepaid/topups", body | {"dry_run": True}))
        order = link.post("/v1/prepaid/topups", body, key)
        if wait:
            order = _until_ended(terminal, link, order)
    return _outcome(terminal, order)


@prepaid.command(epilog=example("payagent prepaid cancel top_67c671345eba578301e7d279"))
@click.argument("order", metavar="ORDER")
@talks_to_daemon
def cancel(terminal: Terminal, connect: Connect, order: str) -> int:
    """Buy nothing more for a top-up. What it bought stays.

    A payment that is under way is still shown to the merchant: the top-up is `stopping` until it took that, and
    the exit code is 8. ORDER is its id, as `payagent prepaid topups` has it.
    """
    from urllib.parse import quote

    with connect() as link:
        ended = link.post(f"/v1/prepaid/topups/{quote(order, safe='')}/cancel", {})
    _give(terminal, ended)
    return PENDING if ended["state"] == "stopping" else 0


@prepaid.command(epilog=example("payagent prepaid topups --json"))
@page_options
@talks_to_daemon
def topups(terminal: Terminal, connect: Connect, limit: int, cursor: str | None) -> None:
    """Top-ups, newest first: those that were ordered, and those of a balance that was low."""
    with connect() as link:
        answer = link.get("/v1/prepaid/topups", limit=limit, cursor=cursor)

    def human() -> None:
        rows = [
            (
                one["id"],
                one["merchant"] or one["origin"],
                one["cause"],
                one["state"],
                _number(one, one["units"]),
                _number(one, one["bought"]),
                one.get("reason", {}).get("code", ""),
            )
            for one in answer["topups"]
        ]
        columns = ("top-up", "merchant", "cause", "state", "ordered", "bought", "reason")
        terminal.table(columns, rows, right=("ordered", "bought"))
        say_more(terminal, answer)

    terminal.give(answer, human)


def _text(data: BinaryIO | None) -> str:
    raw = b"" if data is None else data.read(BODY_BYTES_MAX + 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise click.BadParameter("it is not UTF-8 text", param_hint="--data") from None
    if len(raw) > BODY_BYTES_MAX:
        raise click.BadParameter(f"it has more than {BODY_BYTES_MAX} bytes", param_hint="--data")
    return text


def _plan(terminal: Terminal, plan: dict[str, Any]) -> int:
    """What it would take, and the limit that stands against it."""

    def human() -> None:
        if plan["prepaid"]:
            show_prepaid(terminal, plan)
            return
        price, spend = plan["price"], plan["spend"]
        asset = price["asset"]
        terminal.pairs(
            [
                ("payments", f"{plan['count']} of {show_amount(asset, price['units'])}"),
                ("total", show_amount(asset, plan["total"])),
                ("calls", plan["calls"] or "not said"),
                ("fees, about", show_units(LOVELACE, plan["fees"])),
                ("in all, about", ", ".join(show_amount(name, units) for name, units in spend.items())),
                *asks_first(plan),
                *([("waits for", f"the top-up {plan['under_way']}")] if plan["under_way"] else []),
            ]
        )

    terminal.give(plan, human)
    if plan["within_limits"]:
        return DRY_RUN_OK
    problem = as_shown(plan["refusal"])
    terminal.complain(problem)
    return int(str(problem["exit_code"]))


def _until_ended(terminal: Terminal, link: "OperatorClient", order: dict[str, Any]) -> dict[str, Any]:
    started_s, asked = time.monotonic(), set[str]()
    patience_s = 1 if terminal.stderr.isatty() else QUIET_S
    with terminal.waiting() as progress:
        while order["state"] in ("open", "stopping"):
            progress(f"{_number(order, order['bought'])} bought, {time.monotonic() - started_s:.0f} s")
            try:
                order = link.get(f"/v1/prepaid/topups/{order['id']}", wait=patience_s)
                _tell_of_questions(terminal, link, order, asked)
            except KeyboardInterrupt:
                terminal.say("The top-up goes on: `payagent prepaid topups`.")
                raise
    return order


def _tell_of_questions(terminal: Terminal, link: "OperatorClient", order: dict[str, Any], asked: set[str]) -> None:
    """Once of each payment that waits for a person: the order waits too, and its limits and time run on."""
    for payment_id in order["payments"][-1:]:
        if payment_id not in asked and link.get(f"/v1/payments/{payment_id}")["state"] == "awaiting_approval":
            asked.add(payment_id)
            terminal.say(f"{payment_id} waits for a person: payagent payments approve {payment_id}, or deny it.")


def _give(terminal: Terminal, order: dict[str, Any]) -> str:
    """Show an order; what it paid, in words."""
    paid = ", ".join(show_amount(asset, units) for asset, units in order["paid"].items()) or "nothing"

    def human() -> None:
        terminal.pairs(
            [
                ("top-up", order["id"]),
                ("state", order["state"]),
                ("paid", paid),
                *([("payments", ", ".join(order["payments"]))] if order["payments"] else []),
            ]
        )

    terminal.give(order, human)
    return paid


def _outcome(terminal: Terminal, order: dict[str, Any]) -> int:
    """How it stands, and why it ended before it was done."""
    paid = _give(terminal, order)
    if order["state"] in ("open", "stopping"):
        return PENDING
    if order["state"] == "done":
        if reason := order.get("reason"):
            terminal.say(f"It ended early: {reason['detail']} ({name_of(reason['code'], reason['reason'])}).")
        return 0
    problem = as_shown(order["reason"]) | {"money": f"It paid {paid}; nothing more is paid for it."}
    terminal.complain(problem)
    return int(str(problem["exit_code"]))
