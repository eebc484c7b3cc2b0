"""`payagent merchants`: shows and changes the merchants that may be paid, while the daemon runs.

Never: decides (the daemon does).
"""

from typing import Any

import click

from payagent.cli.options import ASSET, Connect, F, amount, example, group_of, path_of, talks_to_daemon
from payagent.cli.terminal import Field, Terminal
from payagent.core.money import counted
from payagent.core.origin import is_t_backend

_FIELDS = (
    Field("name", is_whole=True),
    Field("origin"),
    Field("ready", lambda row: _ready(row)),
    Field("set by", "set_by", is_whole=True),
)
_SET_BY = {"config": "config", "daemon": "first use or pin"}


@group_of(
    "payagent merchants",
    "payagent merchants show t",
    "payagent merchants add shop --origin https://api.example.com",
    alone="list",
)
def merchants() -> None:
    """Manage the merchants that may be paid. Without a subcommand: list them."""


@merchants.command("list", epilog=example("payagent merchants list --json"))
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect) -> None:
    """List all merchants that may be paid."""
    terminal.give_list(connect().get("/v1/merchants"), "merchants", _FIELDS)


@merchants.command(
    epilog=example("payagent merchants add shop --origin https://api.example.com --partner me --ready submitted")
)
@click.argument("name", metavar="NAME")
@click.option("--origin", required=True, metavar="ORIGIN", help="Scheme, host and port of the merchant.")
@click.option(
    "resource_origins",
    "--resource-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Another origin that its x402 invoices name. Repeatable.",
)
@click.option("--partner", metavar="TEXT", help="X-Partner header of requests.")
@click.option("--proof", type=click.Choice(["tx_hash", "signed_cbor"]), help="Proof that the retry carries.")
@click.option(
    "--ready",
    type=click.Choice(["auto", "signed", "submitted", "confirmed"]),
    help="State in which to send the retry. Default: auto.",
)
@click.option(
    "--split-mode",
    type=click.Choice(["additional", "inclusive", "outputs"]),
    help="How to read a split without a mode.",
)
@click.option("--timeout-s", type=click.IntRange(1, 600), metavar="SECONDS", help="Timeout for its answers.")
@talks_to_daemon
def add(terminal: Terminal, connect: Connect, name: str, **options: Any) -> None:
    """Allow payments to a merchant.

    It applies at once and survives restarts. Missing options have the defaults of the config file; for the T
    Backend --split-mode is "additional". API keys, top-ups and private networks need a table in the config file.
    The name and the origin must be new.
    """
    body = {key: value for key, value in options.items() if value not in (None, ())} | {"name": name}
    is_mode_added = "split_mode" not in body and is_t_backend(options["origin"])
    if is_mode_added:
        body["split_mode"] = "additional"
    terminal.give_list(connect().post("/v1/merchants", body), "merchants", _FIELDS)
    if is_mode_added:
        terminal.say(
            'split_mode = "additional": if a 402 states no mode, its revenue share is paid on top of the amount, '
            "not out of it. To change that, remove the merchant and add it with --split-mode."
        )


@merchants.command(epilog=example("payagent merchants remove shop"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def remove(terminal: Terminal, connect: Connect, name: str) -> None:
    """Remove a merchant that was added at run time. Open payments continue."""
    terminal.give_list(connect().post(path_of("/v1/merchants", name, "remove"), {}), "merchants", _FIELDS)


@merchants.command(epilog=example("payagent merchants show t"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def show(terminal: Terminal, connect: Connect, name: str) -> None:
    """Show addresses, prices and unserved payments."""
    answer = connect().get(path_of("/v1/merchants", name))
    terminal.give(answer, lambda: _show(terminal, answer))


def _one_address(command: F) -> F:
    """NAME, ADDRESS and --split."""
    command = click.option("--split", is_flag=True, help="An address for shares. Default: for the price.")(command)
    command = click.argument("address", metavar="ADDRESS")(command)
    return click.argument("name", metavar="NAME")(command)


@merchants.command(
    epilog=example("payagent merchants pin t addr_test1...", "payagent merchants pin t addr_test1... --split")
)
@_one_address
@talks_to_daemon
def pin(terminal: Terminal, connect: Connect, name: str, address: str, split: bool) -> None:
    """Allow payments to an address of a merchant.

    First confirm the address with the merchant, and not through its 402.
    """
    _change(terminal, connect, path_of("/v1/merchants", name, "pins"), _order(address, split))


@merchants.command(epilog=example("payagent merchants unpin t addr_test1..."))
@_one_address
@talks_to_daemon
def unpin(terminal: Terminal, connect: Connect, name: str, address: str, split: bool) -> None:
    """Remove an address of a merchant. The last one cannot be removed."""
    _change(terminal, connect, path_of("/v1/merchants", name, "unpin"), _order(address, split))


@merchants.command(epilog=example("payagent merchants resume t"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def resume(terminal: Terminal, connect: Connect, name: str) -> None:
    """Resume payments to a merchant that did not serve."""
    _change(terminal, connect, path_of("/v1/merchants", name, "resume"), {})


def _order(address: str, split: bool) -> dict[str, str]:
    return {"role": "split" if split else "pay_to", "address": address}


def _change(terminal: Terminal, connect: Connect, path: str, body: dict[str, str]) -> None:
    answer = connect().post(path, body)
    terminal.give(answer, lambda: _show(terminal, answer))


def _show(terminal: Terminal, row: dict[str, Any]) -> None:
    stopped = "" if row["stopped_at"] is None else f"; payments stopped at {row['stopped_at']}"
    terminal.pairs(
        [
            ("merchant", row["name"]),
            ("origin", row["origin"]),
            ("ready", _ready(row)),
            ("not served", f"{counted(row['unserved_streak'], 'payment')} in a row{stopped}"),
            ("in flight", f"{counted(row['in_flight'], 'payment')}{_most(row['payments_in_flight_max'])}"),
            (
                "price rise",
                "any" if row["price_rise_percent_max"] is None else f"{row['price_rise_percent_max']} % at most",
            ),
            (
                "addresses",
                {"first_use": "pinned at first use", "config": "from the config", "off": "any"}[row["pin"]],
            ),
        ]
    )
    if row["addresses"]:
        terminal.line()
        set_by = Field("set by", lambda one: _SET_BY[one["set_by"]], is_whole=True)
        terminal.table(row["addresses"], (Field("role", is_whole=True), Field("address"), set_by))
    if row["prices"]:
        terminal.line()
        request = Field("request", lambda one: f"{one['method']} {one['path']}")
        calls = Field("calls", is_right=True)
        terminal.table(row["prices"], (request, ASSET, calls, amount("agreed price", "units")))


def _ready(row: dict[str, Any]) -> str:
    """When a proof is presented to the merchant: the setting, and what "auto" learned."""
    depth = row["accepted_depth"]
    if row["ready"] != "auto":
        return str(row["ready"])
    if row["refused_early"]:
        return "auto: confirmed, since it refused an early proof"
    if depth is None:
        return "auto: in the first block"
    return f"auto: {depth} {'block' if depth == 1 else 'blocks'} deep, as accepted before"


def _most(units: int | None) -> str:
    return "" if units is None else f", {units} at most"
