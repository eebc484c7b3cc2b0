"""`payagent status`: one screen that tells whether payagent pays, and what needs a person.

Never: changes anything.
"""

import time
from typing import TYPE_CHECKING, Any

import click

from payagent.cli.options import (
    UNNAMED_ASSET,
    Connect,
    amount,
    example,
    of_limit,
    show_amount,
    show_time,
    show_units,
    talks_to_daemon,
)
from payagent.cli.payments import show_payments
from payagent.cli.terminal import Field, Terminal
from payagent.core.bounds import LIST_LIMIT_MAX
from payagent.core.ledger import in_channels
from payagent.core.money import LOVELACE
from payagent.core.network import how_to_fund
from payagent.core.operator_log import whose
from payagent.core.payment.machine import State
from payagent.core.policy import Window
from payagent.core.problems import PROBLEMS
from payagent.core.timestamps import iso_time

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

DAY_MS = 86_400_000


@click.command(epilog=example("payagent status --json"))
@talks_to_daemon
def status(terminal: Terminal, connect: Connect) -> None:
    """Show whether payagent pays, and what needs you.

    It shows the daemon, the balance, the last 24 hours' spending, payments that wait for approval, and alerts. An
    app without a limit per day is listed once its payments are confirmed. A token with the scope read is enough.
    The exit code is 0 whenever the daemon answers, ready or not.
    """
    client = connect()
    readiness = client.readiness()
    wallet = client.get("/v1/wallet")
    waiting = client.get("/v1/payments", state=str(State.AWAITING_APPROVAL), limit=LIST_LIMIT_MAX)
    since = iso_time(time.time_ns() // 1_000_000 - DAY_MS)
    answer: dict[str, Any] = {
        **{key: readiness[key] for key in ("ready", "code", "network", "checks", "providers")},
        **{key: wallet[key] for key in ("address", "assets", "chain")},
        **{key: wallet[key] for key in ("accounts", "daemons") if key in wallet},
        **client.get("/v1/limits"),
        "spend_by_app": client.get("/v1/ledger/spend", by="app", since=since)["spend"],
        "in_channels": in_channels(client.get("/v1/ledger/balance")["balances"]),
        "awaiting_approval": waiting["payments"],
        **client.get("/v1/alerts"),
    }
    terminal.give(answer, lambda: _show(terminal, answer, client))


def _show(terminal: Terminal, answer: dict[str, Any], client: "OperatorClient") -> None:
    is_empty = all(row["total"] == "0" for row in answer["assets"])
    if answer["ready"]:
        terminal.marked(
            "ready", "ok", ", but the wallet is empty" if is_empty else f": payagent pays on {answer['network']}"
        )
    else:
        terminal.marked("not ready", "error", f": payagent does not pay on {answer['network']} now")
    providers = [("provider", f"{name}: {why}") for name, why in answer["providers"].items() if why != "ok"]
    told = ""
    for name, why in (*answer["checks"].items(), *providers):
        if why != "ok" and why not in told:
            terminal.marked(f"  {name}", "error", f": {why}")
            told += f"{why}\n"
    if (row := PROBLEMS.get(answer["code"])) is not None:
        terminal.line(f"  next: {row.fix}")
    terminal.pairs(
        [
            ("address", answer["address"]),
            *(("balance", _balance(row)) for row in answer["assets"]),
            *(
                ("in channels", f"{show_units(row['asset'], row['units'])} unspent at {row['origin']}")
                for row in answer["in_channels"]
            ),
            ("newest block", str(answer["chain"]["tip_height"] or "not read yet")),
            *(_account(row) for row in answer.get("accounts", ())),
            *(_daemon(row) for row in answer.get("daemons", ())),
        ]
    )
    if is_empty:
        how = how_to_fund(answer["network"], client.settings.chain.providers[0].base_url, answer["address"])
        terminal.line(f"\nThe wallet is empty, so nothing can be paid. {how}")
    terminal.line("\nSpent in the last 24 hours:")
    terminal.table(_spent(answer), _SPENT)
    if answer["awaiting_approval"]:
        terminal.line("\nWaiting for `payagent payments approve ID`, or deny ID:")
        show_payments(terminal, answer["awaiting_approval"])
    terminal.line("\nAlerts:" if answer["alerts"] else "\nNo alerts.")
    for row in answer["alerts"]:
        terminal.marked(
            row["kind"],
            "warning",
            f" since {show_time(row['at'])} UTC: {row['facts'].get('detail', row['subject'])}",
        )


def _account(row: dict[str, Any]) -> tuple[str, str]:
    return f"account {row['account']}", f"held by {row['holder']}" if row["holder"] else "held by no daemon"


def _daemon(row: dict[str, Any]) -> tuple[str, str]:
    state = "renewed its leases" if row["living"] else "gone: it renewed its leases"
    return f"daemon {row['host']}", f"{state} {row['lag_s']} s ago"


_SPENT = (
    Field("whose", lambda row: whose(row["app"], row["merchant"])),
    UNNAMED_ASSET,
    *of_limit("spent", drop=0),
    *of_limit("left", drop=1),
    amount("limit", "most"),
)


def _spent(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What each limit per day counted, and what each app without one paid, fees included. ADA comes first."""
    days = [row for row in answer["limits"] if row["limit"] == Window.DAY]
    limited = {(row["app"], row["asset"]) for row in days if row["merchant"] is None}
    others = [
        {"app": row["app"], "merchant": None, "asset": row["asset"], "spent": units, "left": None, "most": None}
        for row in answer["spend_by_app"]
        if (row["app"], row["asset"]) not in limited and (units := int(row["total"]) - int(row["sent"]))
    ]
    return sorted(days + others, key=lambda row: row["asset"] != LOVELACE)


def _balance(row: dict[str, str]) -> str:
    asset = row["asset"]
    available, held = (show_units(asset, row[part]) for part in ("available", "held"))
    return f"{show_amount(asset, row['total'])} ({available} available, {held} held)"
