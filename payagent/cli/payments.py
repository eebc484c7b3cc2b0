"""`payagent payments`: lists payments, and shows the state and history of each.

May import: click, core, cli.
Never: decides what may be done to a payment (the daemon does).
"""

import json
from typing import Any

import click

from payagent.cli.options import (
    Connect,
    example,
    group_of,
    page_options,
    say_more,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import in_words, show_outputs
from payagent.cli.terminal import Terminal
from payagent.core.money import LOVELACE
from payagent.core.payment import STATES_IN_WORDS, State
from payagent.core.timestamps import iso_time

DELIVERIES_IN_WORDS = {
    "not_presented": "the retry was not reported yet",
    "presented": "the proof was presented and not accepted yet",
    "accepted": "the call was served",
    "paid_not_served": "paid, and the merchant did not serve: present the same proof again, or ask the merchant",
}
EVENTS_IN_WORDS = {
    "reserve": "within the limits: money held, UTxOs reserved",
    "request_approval": "waits for an approval: it counts against the limits, and nothing is signed",
    "deny": "denied",
    "reject": "rejected",
    "sign": "signed, and durable",
    "submit": "about to be sent for the first time",
    "provider_accepted": "a provider took the transaction",
    "provider_answered": "a provider answered, which decides nothing",
    "seen_in_block": "in a block",
    "block_lost": "the block was lost in a rollback: money held again, the same bytes go out again",
    "replace": "no block took it in its time: another attempt on the same anchor",
    "cancel": "being cancelled: its coins go back to the wallet",
    "void": "void: what keeps it from ever landing is deep in the chain",
    "anchor_gone": "a rollback took the deposit that it spends: it can neither land nor be cancelled without it",
    "deposit_restored": "the deposit that it spends is back",
    "time_over": "a block is past all its time limits: once no rollback reaches that, it is void",
    "confirm": "confirmed: the spend is posted",
    "settle": "final",
    "invoiced_again": "the merchant sent another invoice for it, which was not paid then",
    "retry_answered": "the merchant says",
    "decision_refused": "a person's decision could not be carried out",
    "delivery_present": "the proof was presented and not accepted",
    "delivery_accept": "the call was served",
    "delivery_give_up": "paid, and the merchant does not serve",
}


@group_of("payagent payments", "payagent payments list --state void", alone="list")
def payments() -> None:
    """List payments, show one, decide on one that waits for a person. Alone: the newest."""


@payments.command("list", epilog=example("payagent payments list --state confirmed --limit 5"))
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only payments in this state.")
@click.option("--origin", metavar="ORIGIN", help="Only payments to this merchant's origin.")
@click.option("--app", metavar="NAME", help="Only payments of this app: its name or id.")
@click.option("--since", metavar="TIME", help="From this time on, such as 2026-11-01T00:00:00Z.")
@page_options
@talks_to_daemon
def list_payments(
    terminal: Terminal,
    connect: Connect,
    limit: int,
    cursor: str | None,
    **chosen: str | None,
) -> None:
    """Payments, newest first."""
    with connect() as link:
        answer = link.get("/v1/payments", **chosen, limit=limit, cursor=cursor)
    terminal.give(answer, lambda: _show_list(terminal, answer))


def _show_list(terminal: Terminal, answer: dict[str, Any]) -> None:
    rows = [
        (
            row["id"],
            row["created_at"][:19].replace("T", " "),
            row["state"],
            row["delivery"] if row["kind"] == "invoice" else row["kind"],
            _sum_of(row),
            row["origin"] or "",
        )
        for row in answer["payments"]
    ]
    terminal.table(("payment", "created (UTC)", "state", "delivery", "pays", "to"), rows, right=("pays",))
    say_more(terminal, answer)
    if answer["awaiting_approval"]:
        count = answer["awaiting_approval"]
        waiting = "1 payment waits" if count == 1 else f"{count} payments wait"
        terminal.say(
            f"{waiting} for a person: `payagent payments list --state awaiting_approval`, then show ID, "
            "approve ID or deny ID."
        )


def _sum_of(row: dict[str, Any]) -> str:
    """What the outputs sum to, per asset."""
    sums: dict[str, int] = {}
    for output in row["outputs"]:
        sums[output["asset"]] = sums.get(output["asset"], 0) + int(output["units"])
    return ", ".join(show_units(asset, units) for asset, units in sums.items())


@payments.command(
    epilog=example(
        "payagent payments show pay_0123456789abcdef01234567",
        "payagent payments show pay_0123456789abcdef01234567 --receipt > receipt.json",
    )
)
@click.argument("payment_id", metavar="ID")
@click.option(
    "--receipt", is_flag=True, help="Everything that is recorded of it, as one JSON file for an auditor."
)
@talks_to_daemon
def show(terminal: Terminal, connect: Connect, payment_id: str, receipt: bool) -> None:
    """One payment: outputs, proof, and its history in words.

    A receipt is checked by `payagent ledger verify --receipt`, without a daemon and without this wallet's files.
    """
    path = f"/v1/payments/{_in_path(payment_id)}"
    if receipt:
        with connect() as link:
            terminal.line(json.dumps(link.get(f"{path}/receipt"), indent=2))
        return
    with connect() as link:
        payment = link.get(path)
    terminal.give(payment, lambda: _show_one(terminal, payment))


@payments.command(epilog=example("payagent payments resolve pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def resolve(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Take a payment's coins back now, whatever it waits for.

    What nothing was signed for is rejected. Else a transaction to the wallet itself competes for its anchor with
    what was signed: at most one of them can ever be on the chain, and the payment's money stays held until the
    chain shows which. Refused when the payment is in a block or has ended, and when the deposit that it spends is
    on no chain any more.
    """
    with connect() as link:
        payment = link.post(f"/v1/payments/{_in_path(payment_id)}/resolve", {})
    terminal.give(payment, lambda: terminal.pairs(_resolved(payment)))


@payments.command(epilog=example("payagent payments approve pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def approve(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """Let a payment go on that waits for a person.

    A terminal shows the transaction and asks once more. Everything is decided anew then: limits, funds and time.
    What is refused stays open until its time is over.
    """
    with connect() as link:
        if terminal.can_ask:
            _show_one(terminal, link.get(f"/v1/payments/{_in_path(payment_id)}"))
            click.confirm("Approve it?", abort=True, err=True)
        payment = link.post(f"/v1/payments/{_in_path(payment_id)}/approve", {})
    terminal.give(payment, lambda: terminal.pairs(_resolved(payment)))


@payments.command(epilog=example("payagent payments deny pay_0123456789abcdef01234567"))
@click.argument("payment_id", metavar="ID")
@talks_to_daemon
def deny(terminal: Terminal, connect: Connect, payment_id: str) -> None:
    """End a payment that waits for a person. Nothing was signed.

    For as long as it could have waited, the same call of the same app is refused without asking again.
    """
    with connect() as link:
        payment = link.post(f"/v1/payments/{_in_path(payment_id)}/deny", {})
    terminal.give(payment, lambda: terminal.pairs(_resolved(payment)))


def _resolved(payment: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("payment", payment["id"]),
        ("money", STATES_IN_WORDS.get(payment["state"], in_words(payment["state"]))),
        ("transaction", payment["tx_hash"]),
        ("reason", (payment.get("reason") or {}).get("detail")),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _in_path(payment_id: str) -> str:
    if not payment_id.isascii() or not payment_id.replace("_", "").isalnum():
        raise click.BadParameter("an id looks like pay_0123456789abcdef01234567", param_hint="ID")
    return payment_id


def _show_one(terminal: Terminal, payment: dict[str, Any]) -> None:
    rows = [
        ("payment", payment["id"]),
        ("to", payment["origin"] or f"({payment['kind']})"),
        ("app", payment["app"]),
        ("invoice", payment["invoice_id"]),
        ("transaction", payment["tx_hash"]),
        ("fee", show_units(LOVELACE, payment["fee"])),
        ("block", _block(payment)),
        ("money", STATES_IN_WORDS.get(payment["state"], in_words(payment["state"]))),
        ("delivery", _delivery(payment)),
        ("reason", (payment.get("reason") or {}).get("detail")),
        ("merchant says", payment.get("merchant_status")),
    ]
    terminal.pairs([(name, str(value)) for name, value in rows if value])
    terminal.line()
    show_outputs(terminal, payment)
    if approval := payment.get("approval"):
        _show_approval(terminal, approval)
    terminal.line("History (UTC):")
    for happening in payment["history"]:
        terminal.line(f"  {happening['at'][:19].replace('T', ' ')}  {_told(happening)}")


def _show_approval(terminal: Terminal, approval: dict[str, Any]) -> None:
    """What is asked, for the person who decides."""
    plan, history = approval["transaction"], approval.get("history")
    rows = [
        *(("asked because", reason["detail"]) for reason in approval["reasons"]),
        ("app", approval.get("app")),
        ("call", approval.get("request")),
        ("calls that it buys", approval["calls"]),
        *(("takes at most", show_units(asset, units)) for asset, units in approval["at_most"].items()),
        ("decided" if approval["decision"] else "ends", approval["decision"] or approval["ends_at"]),
        ("decided by", approval.get("by")),
        ("merchant", history and f"{history['paid']} paid before, the last {history['last_at'] or 'never'}"),
        *(
            (f"left {_limit_name(one)}", show_units(one["asset"], one["left"]))
            for one in approval.get("limits", [])
        ),
    ]
    terminal.pairs([(name, str(value)) for name, value in rows if value])
    terminal.line("The transaction as it would have been when it was asked:")
    outputs = [
        (output["role"], show_units(LOVELACE, output["lovelace"]), str(len(output["assets"])), output["address"])
        for output in plan["outputs"]
    ]
    terminal.table(("role", "ADA", "tokens", "address"), outputs, right=("ADA", "tokens"))
    terminal.pairs([("fee", show_units(LOVELACE, plan["fee"])), ("bytes", str(plan["size"]))])


def _limit_name(limit: dict[str, Any]) -> str:
    of = " ".join(limit[part] for part in ("app", "merchant") if limit.get(part))
    return f"{in_words(limit['limit'])}{' of ' + of if of else ''}"


def _delivery(payment: dict[str, Any]) -> str | None:
    if payment["kind"] != "invoice" or payment["state"] in ("rejected", "denied"):
        return None
    return DELIVERIES_IN_WORDS.get(payment["delivery"], in_words(payment["delivery"]))


def _block(payment: dict[str, Any]) -> str | None:
    block = payment.get("block")
    return f"{block['height']} ({block['hash']})" if block else None


def _told(happening: dict[str, Any]) -> str:
    """One line of the history: what happened, and what is known beside it."""
    words = EVENTS_IN_WORDS.get(happening["event"], in_words(happening["event"]))
    known = {key: value for key, value in happening["detail"].items() if value is not None}
    beside = ", ".join(_fact(key, value) for key, value in known.items())
    return f"{words} ({beside})" if beside else words


def _fact(name: str, value: Any) -> str:
    """What is known beside an event: moments as times, and of each limit what it left then."""
    if name == "counts_from_ms":
        return f"counts from {iso_time(value)}"
    if name == "limits":
        return "; ".join(map(_left, value))
    return f"{in_words(name)} {_in_line(value)}"


def _left(limit: dict[str, Any]) -> str:
    """What was asked, of what a limit left; an app is not told that of a limit which it shares."""
    asked, left = (show_units(limit["asset"], limit[part]) for part in ("asked", "left"))
    return f"{asked} of {left} left {_limit_name(limit)}" if left else f"{asked} {_limit_name(limit)}"


def _in_line(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(_in_line(one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{in_words(key)} {_in_line(one)}" for key, one in value.items())
    return str(value)
