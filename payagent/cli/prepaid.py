"""`payagent prepaid`: shows prepaid balances at merchants, and manages top-ups.

Never: counts anything (the daemon does).
"""

import time
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from payagent.cli.options import (
    AMOUNT_HELP,
    Connect,
    asset_option,
    example,
    group_of,
    page_options,
    path_of,
    read_amounts,
    show_amount,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import DRY_RUN_OK, PENDING, approval_rows, show_prepaid
from payagent.cli.terminal import Field, Terminal, as_shown
from payagent.core.money import LOVELACE, counted
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import name_of

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

BODY_BYTES_MAX = 128 * 1024
QUIET_S = 5
"""How often a silent wait checks whether a payment needs an approval."""


@group_of("payagent prepaid", "payagent prepaid list --json", alone="list")
def prepaid() -> None:
    """Show and top up prepaid balances. Without a subcommand: list them."""


@prepaid.command("list", epilog=example("payagent prepaid list --json"))
@page_options
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect, limit: int, cursor: str | None) -> None:
    """List the balance at each merchant, and the top-ups.

    It shows what is bought, used and left. A payment counts as bought when it is confirmed. Requests through
    payagent's proxy count as used. The last columns compare what is left with the merchant's report. Manual and
    automatic top-ups are listed newest first.
    """
    client = connect()
    answer = client.get("/v1/prepaid") | client.get("/v1/prepaid/topups", limit=limit, cursor=cursor)

    def human() -> None:
        terminal.table(answer["prepaid"], _BALANCES)
        if answer["topups"]:
            terminal.line("\nTop-ups:")
            terminal.table(answer["topups"], _TOPUPS)
        terminal.say_more(answer)

    terminal.give(answer, human)


def _merchant(one: dict[str, Any]) -> str:
    return str(one["merchant"] or one["origin"])


def _reported_balance(one: dict[str, Any]) -> str:
    """The reported balance in the merchant's unit, or as it came; empty without a report."""
    report = one["merchant_says"]
    if report is None:
        return ""
    if not report["understood"]:
        return "not understood"
    return _number(report, report["remaining"]) if report["unit"] else str(report["remaining"] or "")


def _number(one: dict[str, Any], units: str | None) -> str:
    if units is None:
        return ""
    return counted(units, "call") if one["unit"] == CALLS else show_amount(one["unit"], units)


def _count(name: str, key: str = "", drop: int | None = None) -> Field:
    return Field(name, lambda one: _number(one, one[key or name]), is_right=True, drop=drop)


_BALANCES = (
    Field("merchant", _merchant),
    Field("partner", drop=2),
    _count("bought"),
    _count("used", drop=4),
    _count("left"),
    _count("coming", drop=1),
    _count("unexplained", drop=0),
    Field("merchant says", _reported_balance, is_right=True),
    Field("difference", is_right=True, drop=3),
)
_TOPUPS = (
    Field("top-up", "id", is_whole=True),
    Field("merchant", _merchant, drop=2),
    Field("trigger", drop=0),
    Field("state", is_whole=True),
    _count("ordered", "units"),
    _count("bought"),
    Field("reason", lambda one: one.get("reason", {}).get("code"), is_whole=True, drop=1),
)


@prepaid.command(
    epilog=example(
        'payagent prepaid topup t --amount "50 ADA" --dry-run',
        'payagent prepaid topup t --amount "50 ADA" --key march',
        'payagent prepaid topup t --amount "50 ADA" --path /chat --data-file call.json',
    )
)
@click.argument("merchant", metavar="MERCHANT")
@click.option("--amount", required=True, metavar="AMOUNT", help=AMOUNT_HELP)
@asset_option
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key is the same top-up.")
@click.option("--path", metavar="PATH", help="Buy with a request to this path, instead of the configured one.")
@click.option("--method", default="POST", show_default=True, metavar="NAME", help="Method of that request.")
@click.option("--data-file", type=click.File("rb"), metavar="FILE|-", help="File with the body of that request.")
@click.option("--dry-run", is_flag=True, help="Show the price without paying. Exit code 10 if it may be paid.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is done. Exit code 8 if not done.")
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
    data_file: BinaryIO | None,
    dry_run: bool,
    wait: bool,
) -> int:
    """Top up a prepaid balance.

    It pays the merchant's 402s until AMOUNT is reached, not counting fees. The last batch may exceed AMOUNT. The
    top-up continues if this command ends. All limits apply. MERCHANT is a name from [merchants], or an origin.
    """
    body: dict[str, object] = {"merchant": merchant}
    if path is not None:
        body["request"] = {"method": method, "path": path, "body": _text(data_file)}
    elif data_file is not None:
        raise click.UsageError("--data-file is the body of a request: name its path with --path")
    client = connect()
    name, amounts = read_amounts(asset, {"units": amount}, client.settings.limits.tokens)
    body |= {"asset": name} | amounts
    if dry_run:
        return _plan(terminal, client.post("/v1/prepaid/topups", body | {"dry_run": True}))
    answer = client.post("/v1/prepaid/topups", body, key)
    if wait:
        answer = _until_ended(terminal, client, answer)
    return _outcome(terminal, answer)


@prepaid.command(epilog=example("payagent prepaid cancel top_67c671345eba578301e7d279"))
@click.argument("topup_id", metavar="ID")
@talks_to_daemon
def cancel(terminal: Terminal, connect: Connect, topup_id: str) -> int:
    """Cancel a top-up. What it bought stays.

    The proof of an open payment is still presented. Until the merchant accepts it, the top-up is `stopping` and
    the exit code is 8. ID is what `payagent prepaid list` shows.
    """
    ended = connect().post(path_of("/v1/prepaid/topups", topup_id, "cancel"), {})
    _give(terminal, ended)
    return PENDING if ended["state"] == "stopping" else 0


def _text(file: BinaryIO | None) -> str:
    raw = b"" if file is None else file.read(BODY_BYTES_MAX + 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise click.BadParameter("not UTF-8 text", param_hint="--data-file") from None
    if len(raw) > BODY_BYTES_MAX:
        raise click.BadParameter(f"larger than {BODY_BYTES_MAX} bytes", param_hint="--data-file")
    return text


def _plan(terminal: Terminal, plan: dict[str, Any]) -> int:
    """Show what it would cost, and the limit that refuses it."""

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
                ("calls", plan["calls"] or "unknown"),
                ("fees, about", show_units(LOVELACE, plan["fees"])),
                ("spend, about", ", ".join(show_amount(name, units) for name, units in spend.items())),
                *approval_rows(plan),
                *([("waits for", f"the top-up {plan['under_way']}")] if plan["under_way"] else []),
            ]
        )

    terminal.give(plan, human)
    if plan["within_limits"]:
        return DRY_RUN_OK
    return terminal.complain(as_shown(plan["refusal"]))


def _until_ended(terminal: Terminal, client: "OperatorClient", topup: dict[str, Any]) -> dict[str, Any]:
    started_s, reported = time.monotonic(), set[str]()
    poll_s = 1 if terminal.stderr.isatty() else QUIET_S
    with terminal.waiting() as progress:
        while topup["state"] in ("open", "stopping"):
            progress(f"{_number(topup, topup['bought'])} bought, {time.monotonic() - started_s:.0f} s")
            try:
                topup = client.get(f"/v1/prepaid/topups/{topup['id']}", wait=poll_s)
                _report_approvals(terminal, client, topup, reported)
            except KeyboardInterrupt:
                terminal.say("The top-up continues: `payagent prepaid list`.")
                raise
    return topup


def _report_approvals(
    terminal: Terminal, client: "OperatorClient", topup: dict[str, Any], reported: set[str]
) -> None:
    """Report each payment that waits for approval, once. The top-up waits too, and its time limit goes on."""
    for payment_id in topup["payments"][-1:]:
        if payment_id not in reported and client.get(f"/v1/payments/{payment_id}")["state"] == "awaiting_approval":
            reported.add(payment_id)
            terminal.say(f"{payment_id} waits for approval: payagent payments approve {payment_id}, or deny it.")


def _give(terminal: Terminal, topup: dict[str, Any]) -> str:
    """Show a top-up. Returns what it paid, as text."""
    paid = ", ".join(show_amount(asset, units) for asset, units in topup["paid"].items()) or "nothing"
    payments = ", ".join(topup["payments"])
    facts = (("top-up", topup["id"]), ("state", topup["state"]), ("paid", paid), ("payments", payments))
    terminal.give(topup, lambda: terminal.facts(facts))
    return paid


def _outcome(terminal: Terminal, topup: dict[str, Any]) -> int:
    """Show the result, and why it ended early."""
    paid = _give(terminal, topup)
    if topup["state"] in ("open", "stopping"):
        return PENDING
    if topup["state"] == "done":
        if reason := topup.get("reason"):
            terminal.say(f"It ended early: {reason['detail']} ({name_of(reason['code'], reason['reason'])}).")
        return 0
    return terminal.complain(as_shown(topup["reason"]) | {"money": f"It paid {paid} and will pay nothing more."})
