"""`payagent merchants`: shows and changes the merchants that may be paid, while the daemon runs.

May import: click, core, cli.
Never: decides (the daemon does).
"""

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import click

from payagent.cli.options import Connect, example, group_of, show_asset, show_units, talks_to_daemon
from payagent.cli.terminal import Terminal
from payagent.core.origin import is_t_backend

F = TypeVar("F", bound=Callable[..., Any])


@group_of(
    "payagent merchants",
    "payagent merchants show t",
    "payagent merchants add shop --origin https://api.example.com",
    alone="list",
)
def merchants() -> None:
    """Who may be paid, at which addresses, and at what prices. Alone: the list."""


@merchants.command("list", epilog=example("payagent merchants list --json"))
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect) -> None:
    """Every merchant that may be paid, of the config file or added at run time."""
    with connect() as link:
        answer = link.get("/v1/merchants")
    _give_list(terminal, answer)


def _give_list(terminal: Terminal, answer: dict[str, Any]) -> None:
    def human() -> None:
        rows = [(row["name"], row["origin"], _ready(row), row["set_by"]) for row in answer["merchants"]]
        terminal.table(("name", "origin", "ready", "set by"), rows)

    terminal.give(answer, human)


@merchants.command(
    epilog=example("payagent merchants add shop --origin https://api.example.com --partner me --ready submitted")
)
@click.argument("name", metavar="NAME")
@click.option("--origin", required=True, metavar="ORIGIN", help="Scheme, host and port.")
@click.option(
    "--known-as",
    multiple=True,
    metavar="ORIGIN",
    help="By which its x402 names itself. May be repeated.",
)
@click.option("--partner", metavar="TEXT", help="X-Partner of the calls.")
@click.option("--proof", type=click.Choice(["tx_hash", "signed_cbor"]), help="What the retry carries.")
@click.option(
    "--ready",
    type=click.Choice(["auto", "signed", "submitted", "confirmed"]),
    help="When the retry is worth sending. Default: auto.",
)
@click.option(
    "--split-mode",
    type=click.Choice(["additional", "inclusive", "outputs"]),
    help="How a split without a mode is read.",
)
@click.option("--timeout-s", type=click.IntRange(1, 600), metavar="SECONDS", help="For its answers.")
@talks_to_daemon
def add(terminal: Terminal, connect: Connect, name: str, **given: Any) -> None:
    """Let a merchant be paid: at once, and for good.

    What is not given is as in the config file's defaults. At the T Backend --split-mode is "additional".
    Keys, top-ups and a private network take a table in the config file. One that is there already, by name or by
    origin, is not added.
    """
    body = {key: value for key, value in given.items() if value not in (None, ())} | {"name": name}
    is_mode_added = "split_mode" not in body and is_t_backend(given["origin"])
    if is_mode_added:
        body["split_mode"] = "additional"
    with connect() as link:
        answer = link.post("/v1/merchants", body)
    _give_list(terminal, answer)
    if is_mode_added:
        terminal.say(
            'split_mode = "additional": a revenue share in a 402 that states no mode is paid on top of the '
            "amount, not out of it. For another mode remove the merchant, and add it with --split-mode."
        )


@merchants.command(epilog=example("payagent merchants remove shop"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def remove(terminal: Terminal, connect: Connect, name: str) -> None:
    """Pay a merchant no more that was added at run time. What is under way goes on."""
    with connect() as link:
        answer = link.post(f"{_path(name)}/remove", {})
    _give_list(terminal, answer)


@merchants.command(epilog=example("payagent merchants show t"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def show(terminal: Terminal, connect: Connect, name: str) -> None:
    """What is known of a merchant.

    The addresses that it may be paid at, prices that were agreed to, how many payments in a row it did not serve.
    """
    with connect() as link:
        answer = link.get(_path(name))
    terminal.give(answer, lambda: _show(terminal, answer))


def _one_address(command: F) -> F:
    """NAME, ADDRESS and --split."""
    command = click.option("--split", is_flag=True, help="It gets a share. Default: it is paid the price.")(
        command
    )
    command = click.argument("address", metavar="ADDRESS")(command)
    return click.argument("name", metavar="NAME")(command)


@merchants.command(
    epilog=example("payagent merchants pin t addr_test1...", "payagent merchants pin t addr_test1... --split")
)
@_one_address
@talks_to_daemon
def pin(terminal: Terminal, connect: Connect, name: str, address: str, split: bool) -> None:
    """Let a merchant be paid at an address, from now on.

    Ask the merchant first, by another way than its 402, whether the address is its own.
    """
    _change(terminal, connect, f"{_path(name)}/pins", _order(address, split))


@merchants.command(epilog=example("payagent merchants unpin t addr_test1..."))
@_one_address
@talks_to_daemon
def unpin(terminal: Terminal, connect: Connect, name: str, address: str, split: bool) -> None:
    """Forget an address of a merchant. Of several; the only one stays, until another one is pinned."""
    _change(terminal, connect, f"{_path(name)}/unpin", _order(address, split))


@merchants.command(epilog=example("payagent merchants resume t"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def resume(terminal: Terminal, connect: Connect, name: str) -> None:
    """Let a merchant be paid again that was stopped because it did not serve."""
    _change(terminal, connect, f"{_path(name)}/resume", {})


def _path(name: str) -> str:
    return f"/v1/merchants/{quote(name, safe='')}"


def _order(address: str, split: bool) -> dict[str, str]:
    return {"role": "split" if split else "pay_to", "address": address}


def _change(terminal: Terminal, connect: Connect, path: str, body: dict[str, str]) -> None:
    with connect() as link:
        answer = link.post(path, body)
    terminal.give(answer, lambda: _show(terminal, answer))


def _show(terminal: Terminal, row: dict[str, Any]) -> None:
    stopped = "" if row["stopped_at"] is None else f"; nothing is bought from it since {row['stopped_at']}"
    terminal.pairs(
        [
            ("merchant", row["name"]),
            ("origin", row["origin"]),
            ("proof shown", _ready(row)),
            ("not served", f"{row['strikes']} payments in a row{stopped}"),
            ("on their way", f"{row['in_flight']} payments{_most(row['in_flight_max'])}"),
            ("price drift", "any" if row["drift_percent"] is None else f"{row['drift_percent']} % at most"),
            ("addresses", {"first_use": "as first used", "config": "of the config", "off": "any"}[row["pin"]]),
        ]
    )
    if row["addresses"]:
        terminal.line()
        since = {"config": "config", "daemon": "learnt or pinned"}
        rows = [(one["role"], one["address"], since[one["set_by"]]) for one in row["addresses"]]
        terminal.table(("role", "address", "known from"), rows)
    if row["prices"]:
        terminal.line()
        terminal.table(
            ("call", "asset", "calls", "agreed price"),
            [
                (
                    f"{one['method']} {one['path']}",
                    show_asset(one["asset"]),
                    str(one["calls"]),
                    show_units(one["asset"], one["units"]),
                )
                for one in row["prices"]
            ],
            right=("calls", "agreed price"),
        )


def _ready(row: dict[str, Any]) -> str:
    """When the merchant is shown a proof: its setting, and what "auto" learned."""
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
