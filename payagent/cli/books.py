"""`payagent ledger` and `payagent limits`: what the books say, whether they are whole, what may still be spent.

May import: click, core, cli. Never: computes a balance (the daemon does).
"""

from collections.abc import Callable
from typing import Any, TypeVar

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
from payagent.cli.terminal import Terminal, harmless
from payagent.core.payment import State

F = TypeVar("F", bound=Callable[..., Any])

_KINDS = ("deposit", "undeposit", "reserve", "post", "reverse", "release")
_FORMATS = ("csv", "jsonl", "beancount", "hledger")
_CHOSEN = (
    ("--since", {"metavar": "TIME"}, "From this time on, such as 2026-11-01T00:00:00Z."),
    ("--until", {"metavar": "TIME"}, "Before this time."),
    ("--merchant", {"metavar": "NAME"}, "Of payments to this merchant: its name in the config, or its origin."),
    ("--app", {"metavar": "NAME"}, "Of payments of this app: its name or id."),
    ("--asset", {"metavar": "ASSET"}, "Only this asset: lovelace, or policy and name in hex."),
    ("--kind", {"type": click.Choice(_KINDS)}, "Only entries of this kind."),
    (
        "--state",
        {"type": click.Choice([str(state) for state in State])},
        "Of payments that are in this state now.",
    ),
)


def selection_options(command: F) -> F:
    """Which part of the books; handed on by their names."""
    for name, more, text in reversed(_CHOSEN):
        command = click.option(name, help=text, **more)(command)
    return command


@group_of("payagent ledger", "payagent ledger entries --limit 5", alone="balance")
def ledger() -> None:
    """Show the double-entry ledger. Alone: the balance of every account."""


@ledger.command(epilog=example("payagent ledger entries --payment pay_0123456789abcdef01234567"))
@click.option("--payment", metavar="ID", help="Only the entries of this payment.")
@click.option("--account", metavar="NAME", help="Only entries that touch this account, such as fees.")
@selection_options
@page_options
@talks_to_daemon
def entries(
    terminal: Terminal,
    connect: Connect,
    payment: str | None,
    account: str | None,
    limit: int,
    cursor: str | None,
    **chosen: str | None,
) -> None:
    """Journal entries with their postings, newest first. Debits are positive."""
    with connect() as link:
        answer = link.get(
            "/v1/ledger/entries", payment=payment, account=account, limit=limit, cursor=cursor, **chosen
        )
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


@ledger.command(epilog=example("payagent ledger balance --until 2026-11-01T00:00:00Z"))
@selection_options
@talks_to_daemon
def balance(terminal: Terminal, connect: Connect, **chosen: str | None) -> None:
    """The balance of every account. Over all accounts each asset sums to zero."""
    with connect() as link:
        answer = link.get("/v1/ledger/balance", **chosen)

    def human() -> None:
        rows = [
            (row["account"], show_asset(row["asset"]), show_units(row["asset"], row["units"]))
            for row in answer["balances"]
        ]
        terminal.table(("account", "asset", "units"), rows, right=("units",))

    terminal.give(answer, human)


@ledger.command(epilog=example("payagent ledger verify"))
@talks_to_daemon
def verify(terminal: Terminal, connect: Connect) -> int:
    """Check that the books are whole. Exit code 0 only when nothing was found.

    Every row is looked at: the hashes of the events, the entries and their sums, the bytes of every transaction
    against what was to be paid, and the coins against the balances. Each finding names its table and row.
    """
    with connect() as link:
        answer = link.get("/v1/ledger/verify")

    def human() -> None:
        for finding in answer["findings"]:
            terminal.line(f"{finding['table']} {finding['row']}: {finding['what']}")
        checked = ", ".join(f"{count} {table}" for table, count in answer["checked"].items())
        terminal.line(f"{'clean' if answer['clean'] else str(answer['found']) + ' findings'}: {checked}")

    terminal.give(answer, human)
    return 0 if answer["clean"] else 1


@ledger.command(
    epilog=example("payagent ledger export --format beancount --since 2026-11-01T00:00:00Z > november.beancount")
)
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), default="csv", show_default=True, help="How it is written."
)
@selection_options
@talks_to_daemon
def export(terminal: Terminal, connect: Connect, form: str, **chosen: str | None) -> None:
    """Write the books of a period to stdout, oldest first, with their opening and closing balances.

    Amounts are whole units as digits, and ADA as decimals. A token is named by a hash in beancount and hledger.
    """
    with connect() as link:
        for piece in link.stream("/v1/ledger/export", format=form, **chosen):
            terminal.stdout.write(harmless(piece) if terminal.stdout.isatty() else piece)
    terminal.stdout.flush()


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
