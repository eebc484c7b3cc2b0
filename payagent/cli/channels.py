"""`payagent channels`: shows channels, and opens, raises, closes and recovers them.

Never: builds a transaction, or follows one (the daemon does).
"""

from typing import Any

import click

from payagent.cli.options import (
    Connect,
    amount,
    example,
    group_of,
    moment,
    page_options,
    path_of,
    show_amount,
    show_time,
    show_units,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Terminal
from payagent.cli.wallet import key_option
from payagent.core.channel import PHASES_IN_WORDS
from payagent.core.money import LOVELACE, parse_ada

_CHANNELS = (
    Field("channel", "id", is_whole=True),
    Field("merchant"),
    Field("state", is_whole=True),
    amount("locked"),
    amount("signed", drop=1),
    amount("claimed", drop=2),
    amount("most lost", "most_lost"),
    moment("returns", "returns_at", drop=3),
)
_PAYMENTS = (
    Field("payment", is_whole=True),
    Field("for", "step"),
    amount("amount", "units"),
    Field("state", lambda row: row["state"].replace("_", " ")),
)


@group_of("payagent channels", "payagent channels open data", alone="list")
def channels() -> None:
    """Pay small calls by channels. Without a subcommand: list them."""


@channels.command("list", epilog=example("payagent channels list --json"))
@page_options
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect, limit: int, cursor: str | None) -> None:
    """List channels, newest first.

    `most lost` is what the merchant may still take. From `returns` on, the rest comes back to the wallet.
    """
    terminal.give_list(connect().get("/v1/channels", limit=limit, cursor=cursor), "channels", _CHANNELS)


@channels.command(epilog=example("payagent channels show ID"))
@click.argument("channel_id", metavar="ID")
@talks_to_daemon
def show(terminal: Terminal, connect: Connect, channel_id: str) -> None:
    """Show a channel, its own payments and its newest calls."""
    _give(terminal, connect().get(path_of("/v1/channels", channel_id)))


@channels.command(
    "open", epilog=example("payagent channels open data", 'payagent channels open data --amount "5 ADA"')
)
@click.argument("merchant", metavar="MERCHANT")
@click.option("--amount", "locked", metavar="AMOUNT", help='Amount, such as "5 ADA". Default: channel.deposit.')
@key_option
@talks_to_daemon
def open_(terminal: Terminal, connect: Connect, merchant: str, locked: str | None, key: str | None) -> None:
    """Lock money in a channel at a merchant.

    Make a call to the merchant first, so that payagent knows its offer. On a terminal it asks first.
    MERCHANT is a name from [merchants], or an origin.
    """
    body = {"merchant": merchant} | ({} if locked is None else {"amount": str(parse_ada(locked))})
    client = connect()
    for name, one in client.settings.merchants.items():
        if merchant in (name, one.origin):
            shown = show_amount(LOVELACE, body.get("amount", one.channel.deposit_lovelace))
            _ask(
                terminal,
                f"This locks {shown} at {name}, and pays a fee. You can lose all of it: nobody has audited the "
                "validator that holds it. If that works, the merchant takes no more than payagent signs. "
                "The rest returns after `payagent channels close`, once the merchant's withdraw delay is over "
                f"({one.channel.withdraw_delay_max} s at most).",
                f"Lock {shown} at {name}?",
            )
    _give(terminal, client.post("/v1/channels", body, key))


@channels.command(epilog=example('payagent channels add ID --amount "5 ADA"'))
@click.argument("channel_id", metavar="ID")
@click.option("--amount", "locked", required=True, metavar="AMOUNT", help='Amount, such as "5 ADA".')
@key_option
@talks_to_daemon
def add(terminal: Terminal, connect: Connect, channel_id: str, locked: str, key: str | None) -> None:
    """Lock more in a channel.

    It returns with the rest.
    """
    units = parse_ada(locked)
    _ask(
        terminal,
        "This costs a fee of about 0.34 ADA. You can lose all that is locked.",
        f"Lock {show_amount(LOVELACE, units)} more?",
    )
    _give(terminal, connect().post(path_of("/v1/channels", channel_id, "add"), {"amount": str(units)}, key))


@channels.command(epilog=example("payagent channels close ID"))
@click.argument("channel_id", metavar="ID")
@key_option
@talks_to_daemon
def close(terminal: Terminal, connect: Connect, channel_id: str, key: str | None) -> None:
    """Close a channel.

    What is left returns once the merchant's withdraw delay is over.
    """
    _ask(
        terminal,
        "It pays no more calls, and cannot be opened again. To close it and to take back the rest costs about "
        "0.7 ADA in fees.",
        "Close the channel?",
    )
    _give(terminal, connect().post(path_of("/v1/channels", channel_id, "close"), {}, key))


@channels.command(epilog=example("payagent channels recover"))
@talks_to_daemon
def recover(terminal: Terminal, connect: Connect) -> None:
    """Find channels on the chain that the ledger lacks.

    They are this wallet's, and the ledger was lost. They pay no calls: close them.
    """
    terminal.give_list(connect().post("/v1/channels/recover", {}), "channels", _CHANNELS)


def _ask(terminal: Terminal, meaning: str, question: str) -> None:
    """Say what an order means for the money. On a terminal, ask."""
    terminal.say(meaning)
    if terminal.can_ask:
        click.confirm(question, abort=True, err=True)


def _give(terminal: Terminal, channel: dict[str, Any]) -> None:
    asset, names = channel["asset"], ("locked", "signed", "count", "claimed", "capacity", "most_lost")
    payments = [{**one, "asset": asset} for one in (*channel["steps"], *channel.get("calls", ()))]

    def human() -> None:
        terminal.facts(
            [
                *((name, channel[name]) for name in ("id", "merchant", "problem")),
                ("state", f"{channel['state']}: {PHASES_IN_WORDS[channel['state']]}"),
                *((name.replace("_", " "), show_units(asset, channel[name])) for name in names),
                ("returns", show_time(channel["returns_at"] or "")),
            ]
        )
        terminal.line()
        terminal.table(payments, _PAYMENTS)

    terminal.give(channel, human)
