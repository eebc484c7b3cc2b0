"""`payagent ledger` and `payagent limits`: what the books say, and what may still be spent.

May import: click, core, cli. Never: computes a balance (the daemon does).
"""

from pathlib import Path
from typing import Any

import click

from payagent.cli.options import (
    daemon_options,
    example,
    group_defaults,
    link_to,
    pass_terminal,
    show_asset,
    show_units,
)
from payagent.cli.terminal import Terminal


@click.group(invoke_without_command=True, epilog=example("payagent ledger", "payagent ledger entries --limit 5"))
@daemon_options
@click.pass_context
def ledger(context: click.Context, config: Path | None, token_file: Path | None) -> None:
    """Show the double-entry ledger. Alone: the balance of every account."""
    if group_defaults(context, config, token_file):
        context.invoke(balance, config=config, token_file=token_file)


@ledger.command(epilog=example("payagent ledger entries --payment pay_0123456789abcdef01234567"))
@click.option("--payment", metavar="ID", help="Only the entries of this payment.")
@click.option("--account", metavar="NAME", help="Only entries that touch this account, such as fees.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many.")
@click.option("--cursor", metavar="TEXT", help="Where the page before ended.")
@daemon_options
@pass_terminal
def entries(
    terminal: Terminal,
    payment: str | None,
    account: str | None,
    limit: int,
    cursor: str | None,
    config: Path | None,
    token_file: Path | None,
) -> None:
    """Journal entries with their postings, newest first. Debits are positive."""
    with link_to(config, token_file) as link:
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
    if answer.get("cursor"):
        terminal.say(f"More: --cursor {answer['cursor']}")


@ledger.command(epilog=example("payagent ledger balance --json"))
@daemon_options
@pass_terminal
def balance(terminal: Terminal, config: Path | None, token_file: Path | None) -> None:
    """The balance of every account. Over all accounts each asset sums to zero."""
    with link_to(config, token_file) as link:
        answer = link.get("/v1/ledger/balance")

    def human() -> None:
        rows = [
            (row["account"], show_asset(row["asset"]), show_units(row["asset"], row["units"]))
            for row in answer["balances"]
        ]
        terminal.table(("account", "asset", "units"), rows, right=("units",))

    terminal.give(answer, human)


@click.group(invoke_without_command=True, epilog=example("payagent limits"))
@daemon_options
@click.pass_context
def limits(context: click.Context, config: Path | None, token_file: Path | None) -> None:
    """Show what may be spent."""
    if group_defaults(context, config, token_file):
        context.invoke(show, config=config, token_file=token_file)


@limits.command(epilog=example("payagent limits show --json"))
@daemon_options
@pass_terminal
def show(terminal: Terminal, config: Path | None, token_file: Path | None) -> None:
    """Each asset's limits, and what the last 24 hours left of them."""
    with link_to(config, token_file) as link:
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
