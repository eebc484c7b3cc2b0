"""`payagent ledger` and `payagent limits`: what the books say, and what may still be spent.

May import: click, core, cli. Never: computes a balance (the daemon does).
"""

from typing import Any

import click

from payagent.cli.options import (
    Connect,
    example,
    group_of,
    page_options,
    say_more,
    show_asset,
    show_units,
    talks_to_daemon,
)
from payagent.cli.terminal import Terminal


@group_of("payagent ledger", "payagent ledger entries --limit 5", alone="balance")
def ledger() -> None:
    """Show the double-entry ledger. Alone: the balance of every account."""


@ledger.command(epilog=example("payagent ledger entries --payment pay_0123456789abcdef01234567"))
@click.option("--payment", metavar="ID", help="Only the entries of this payment.")
@click.option("--account", metavar="NAME", help="Only entries that touch this account, such as fees.")
@page_options
@talks_to_daemon
def entries(
    terminal: Terminal,
    connect: Connect,
    payment: str | None,
    account: str | None,
    limit: int,
    cursor: str | None,
) -> None:
    """Journal entries with their postings, newest first. Debits are positive."""
    with connect() as link:
        answer = link.get("/v1/ledger/entries", payment=payment, account=account, limit=limit, cursor=cursor)
    terminal.give(answer, lambda: _show_entries(terminal, answer))


def _show_entries(terminal: Terminal, answer: dict[str, Any]) -> None:
    rows = []
    for entry in answer["entries"]:
        head = (str(entry["id"]), entry["at"], entry["kind"], entry["payment"] or "")
        for posting in entry["postings"]:
            amount = show_units(posting["asset"], posting["units"])
            rows.append((*head, posting["account"], show_asset(posting["asset"]), amount))
            head = ("", "", "", "")
    columns = ("entry", "at", "kind", "payment", "account", "asset", "units")
    terminal.table(columns, rows, right=("entry", "units"))
    say_more(terminal, answer)


@ledger.command(epilog=example("payagent ledger balance --json"))
@talks_to_daemon
def balance(terminal: Terminal, connect: Connect) -> None:
    """The balance of every account. Over all accounts each asset sums to zero."""
    with connect() as link:
        answer = link.get("/v1/ledger/balance")

    def human() -> None:
        rows = [
            (row["account"], show_asset(row["asset"]), show_units(row["asset"], row["units"]))
            for row in answer["balances"]
        ]
        terminal.table(("account", "asset", "units"), rows, right=("units",))

    terminal.give(answer, human)


@group_of("payagent limits", alone="show")
def limits() -> None:
    """Show what may be spent."""


@limits.command(epilog=example("payagent limits show --json"))
@talks_to_daemon
def show(terminal: Terminal, connect: Connect) -> None:
    """Each asset's limits, and what the last 24 hours left of them."""
    with connect() as link:
        answer = link.get("/v1/limits")
    parts = ("per_payment", "per_day", "spent_day", "left_day")
    columns = ("per payment", "per day", "spent", "left")

    def human() -> None:
        rows = [
            (show_asset(row["asset"]), *(show_units(row["asset"], row[part]) for part in parts))
            for row in answer["limits"]
        ]
        terminal.table(("asset", *columns), rows, right=columns)

    terminal.give(answer, human)
