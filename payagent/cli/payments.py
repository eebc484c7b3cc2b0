"""`payagent payments`: lists payments, and shows the state and history of each.

Never: decides what may be done to a payment (the daemon does).
"""

import json
from collections.abc import Mapping
from typing import Any

import click

from payagent.cli.options import (
    LOVELACE_AND_TOKENS,
    Connect,
    example,
    filter_options,
    group_of,
    moment,
    page_options,
    show_left,
    show_time,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import in_words, show_outputs
from payagent.cli.table_fit import shorten
from payagent.cli.terminal import Field, Terminal, Tone
from payagent.core.history import decision_in_words, event_in_words, is_unserved
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import DELIVERIES_IN_WORDS, STATES_IN_WORDS, State
from payagent.core.policy import limit_in_words

SHORT_ADDRESS = 13
_TONES: Mapping[str, Tone] = {
    "confirmed": "ok",
    "settled": "ok",
    "awaiting approval": "warning",
    "not served": "error",
    "rejected": "error",
    "denied": "error",
    "void": "error",
}


@group_of("payagent payments", "payagent payments list --state void", alone="list")
def payments() -> None:
    """List, show, approve and cancel payments. Without a subcommand: list the newest."""


@payments.command(
    "list",
    epilog=example(
        "payagent payments list --state confirmed --limit 5",
        "payagent payments list --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z",
    ),
)
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only payments in this state.")
@click.option("--origin", metavar="ORIGIN", help="Only payments to this origin.")
@filter_options("--app", "--since", "--until")
@page_options
@talks_to_daemon
def list_payments(
    terminal: Terminal,
    connect: Connect,
    limit: int,
    cursor: str | None,
    **filters: str | None,
) -> None:
    """List payments, newest first.

    Calls by channel are not among them: `payagent channels show ID` lists a channel's.
    """
    answer = connect().get("/v1/payments", **filters, limit=limit, cursor=cursor)
    terminal.give(answer, lambda: _show_list(terminal, answer))


def _show_list(terminal: Terminal, answer: dict[str, Any]) -> None:
    show_payments(terminal, answer["payments"])
    terminal.say_more(answer)
    if answer["awaiting_approval"]:
        count = answer["awaiting_approval"]
        waiting = "1 payment waits" if count == 1 else f"{count} payments wait"
        terminal.say(
            f"{waiting} for approval: run `payagent payments list --state awaiting_approval`, then show ID, "
            "approve ID or deny ID."
        )


def show_payments(terminal: Terminal, payments: list[dict[str, Any]]) -> None:
    """A table of payments, as listed by the daemon."""
    terminal.table(
        payments,
        (
            Field("payment", "id", is_whole=True),
            Field("app", "app_name", drop=2),
            Field("request", _request),
            Field("amount", _sum_of, is_right=True),
            Field("fee", lambda row: show_units(LOVELACE, row["fee"]), is_right=True, drop=1),
            Field("state", _state, is_whole=True, tone=lambda state: _TONES.get(state.partition(":")[0])),
            moment("created (UTC)", "created_at", drop=0),
        ),
    )


def _request(row: dict[str, Any]) -> str:
    """The request that a payment bought; of a transfer its kind, in parentheses."""
    outputs = row["outputs"]
    if row["kind"] == "split":
        return f"(split in {len(outputs)})"
    if row["kind"] != "invoice":
        return f"({row['kind']}) {shorten(outputs[0]['address'], SHORT_ADDRESS)}"
    return f"{row['merchant'] or row['origin']} {row['request'] or '(saved 402)'}"


def _state(row: dict[str, Any]) -> str:
    """The state, and the code of the reason if there is one."""
    state = "not served" if is_unserved(row) else in_words(row["state"])
    return f"{state}: {row['reason']['code']}" if row.get("reason") else state


def _sum_of(row: dict[str, Any]) -> str:
    """The sum of the outputs, per asset; nothing of a split, which pays ourselves."""
    if row["kind"] == "split":
        return ""
    sums = add({output["asset"]: int(output["units"])} for output in row["outputs"])
    return ", ".join(show_units(asset, units) for asset, units in sums.items())


@payments.command(
    epilog=example(
        "payagent payments show pay_0123456789abcdef01234567",
        "payagent payments show pay_0123456789abcdef01234567 --receipt > receipt.json",
    )
)
@click.argument("payment_id", metavar="ID")
@click.option("--receipt", is_flag=True, help="Print the full record as JSON, for an auditor.")
@talks_to_daemon
def show(terminal: Terminal, connect: Connect, payment_id: str, receipt: bool) -> None:
    """Show a payment: outputs, proof and history.

    `payagent ledger verify --receipt` checks a receipt, without a daemon and without this wallet's files.
    """
    path = f"/v1/payments/{_in_path(payment_id)}"
    if receipt:
        terminal.line(json.dumps(connect().get(f"{path}/receipt"), indent=2))
        return
    payment = connect().get(path)
    terminal.give(payment, lambda: _show_one(terminal, payment))


@payments.command(epilog=example("payagent payments resolve pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def resolve(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Cancel a payment.

    If nothing was signed, the payment is rejected. Otherwise payagent signs a transaction to the wallet itself
    that spends the same nonce UTxO. At most one of the two can ever be on the chain. The money stays held until
    the chain shows which. Refused if the payment is in a block or has ended, or if the deposit that it spends was
    rolled back.
    """
    _give_summary(terminal, connect().post(f"/v1/payments/{_in_path(payment_id)}/resolve", {}))


@payments.command(epilog=example("payagent payments acknowledge pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def acknowledge(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Close a payment that was not served.

    Its alert ends, because you have dealt with it. It stays marked as paid and not served. No money moves.
    """
    _give_summary(terminal, connect().post(f"/v1/payments/{_in_path(payment_id)}/acknowledge", {}))


@payments.command(epilog=example("payagent payments approve pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def approve(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Approve a payment.

    On a terminal it shows the transaction and asks first. Limits, funds and expiry are checked again. If that
    refuses the payment, it keeps waiting until its time is over.
    """
    client = connect()
    if terminal.can_ask:
        _show_one(terminal, client.get(f"/v1/payments/{_in_path(payment_id)}"))
        click.confirm("Approve this payment?", abort=True, err=True)
    _give_summary(terminal, client.post(f"/v1/payments/{_in_path(payment_id)}/approve", {}))


@payments.command(epilog=example("payagent payments deny pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def deny(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Deny a payment. Nothing was signed.

    Until the approval would have timed out, the same request of the same app is refused without asking again.
    """
    _give_summary(terminal, connect().post(f"/v1/payments/{_in_path(payment_id)}/deny", {}))


def _give_summary(terminal: Terminal, payment: dict[str, Any]) -> None:
    facts = [
        ("payment", payment["id"]),
        ("money", _money_in_words(payment)),
        ("transaction", payment["tx_hash"]),
        ("reason", (payment.get("reason") or {}).get("detail")),
    ]
    terminal.give(payment, lambda: terminal.facts(facts))


def _money_in_words(payment: dict[str, Any]) -> str:
    if payment["kind"] == "channel_call":
        return "by voucher: the merchant may claim it from its channel"
    return STATES_IN_WORDS.get(payment["state"], in_words(payment["state"]))


def _in_path(payment_id: str) -> str:
    if not payment_id.isascii() or not payment_id.replace("_", "").isalnum():
        raise click.BadParameter("an id looks like pay_0123456789abcdef01234567", param_hint="ID")
    return payment_id


def _show_one(terminal: Terminal, payment: dict[str, Any]) -> None:
    rows = [
        ("payment", payment["id"]),
        ("to", payment["origin"] or f"({payment['kind']})"),
        ("app", f"{payment['app_name']} ({payment['app']})"),
        ("request", payment["request"]),
        ("purpose", payment["purpose"]),
        ("invoice", payment["invoice_id"]),
        ("transaction", payment["tx_hash"]),
        ("fee", show_units(LOVELACE, payment["fee"])),
        ("block", _block(payment)),
        ("money", _money_in_words(payment)),
        ("delivery", _delivery(payment)),
        ("reason", (payment.get("reason") or {}).get("detail")),
        ("merchant says", payment.get("merchant_status")),
    ]
    terminal.facts(rows)
    terminal.line()
    show_outputs(terminal, payment)
    if approval := payment.get("approval"):
        _show_approval(terminal, approval)
    terminal.line("History (UTC), with --json in full:")
    for event in payment["history"]:
        terminal.line(f"  {show_time(event['at'])}  {event_in_words(event, terminal.tokens())}")


def _show_approval(terminal: Terminal, approval: dict[str, Any]) -> None:
    """Show the request to the person who decides."""
    plan, history = approval["transaction"], approval.get("history")
    rows = [
        *(("needs approval", reason["detail"]) for reason in approval["reasons"]),
        ("app", approval.get("app")),
        ("request", approval.get("request")),
        ("calls bought", approval["calls"]),
        *(("costs at most", show_units(asset, units)) for asset, units in approval["at_most"].items()),
        ("decided", decision_in_words(approval)) if approval["decision"] else ("expires", approval["ends_at"]),
        ("merchant", history and f"{history['paid']} paid before, last {history['last_at'] or 'never'}"),
        *(
            (f"left of {limit_in_words(one)}", show_left(one["asset"], one["left"]))
            for one in approval.get("limits", [])
        ),
    ]
    terminal.facts(rows)
    terminal.line("The transaction as planned when the approval was requested:")
    terminal.table(plan["outputs"], (Field("role", is_whole=True), *LOVELACE_AND_TOKENS, Field("address")))
    terminal.pairs([("fee", show_units(LOVELACE, plan["fee"])), ("bytes", str(plan["size"]))])


def _delivery(payment: dict[str, Any]) -> str | None:
    if payment["kind"] not in ("invoice", "channel_call") or payment["state"] in ("rejected", "denied"):
        return None
    return DELIVERIES_IN_WORDS.get(payment["delivery"], in_words(payment["delivery"]))


def _block(payment: dict[str, Any]) -> str | None:
    block = payment.get("block")
    return f"{block['height']} ({block['hash']})" if block else None
