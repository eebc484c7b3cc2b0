"""`payagent limits`: shows what may still be spent, and sets limits while the daemon runs.

Never: decides (the daemon does).
"""

import click

from payagent.cli.options import (
    UNNAMED_ASSET,
    Connect,
    F,
    amount,
    asset_option,
    example,
    group_of,
    moment,
    of_limit,
    read_amounts,
    show_units,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Terminal
from payagent.core.operator_log import whose
from payagent.core.policy import Window

OF_CONFIG = "config"
"""Instead of an amount: revert to the config file."""

_HELP = {
    Window.PAYMENT: "Per payment, including fee and min-ADA.",
    Window.HOUR: "Per hour.",
    Window.DAY: "Per 24 hours.",
    Window.WEEK: "Per 7 days.",
    Window.MONTH: "Per 30 days.",
    Window.TOTAL: "In total, ever.",
}


def limit_options(command: F) -> F:
    """--per-payment, --per-hour and so on, passed on by the names of the windows."""
    for window in reversed(Window):
        command = click.option(
            f"--{window.replace('_', '-')}", window.value, metavar="AMOUNT", help=_HELP[window]
        )(command)
    return command


_FIELDS = (
    Field("whose", lambda row: whose(row["app"], row["merchant"])),
    UNNAMED_ASSET,
    Field("limit", lambda row: row["limit"].replace("_", " "), is_whole=True),
    amount("most"),
    *of_limit("spent", drop=1),
    *of_limit("left", drop=3),
    moment("frees (UTC)", "frees_at", drop=2),
    Field("set by", "set_by", is_whole=True, drop=0),
)


@group_of("payagent limits", "payagent limits show --json", 'payagent limits set --per-day "50 ADA"', alone="show")
def limits() -> None:
    """Show and set spending limits. Without a subcommand: show."""


@limits.command(epilog=example("payagent limits show --json"))
@talks_to_daemon
def show(terminal: Terminal, connect: Connect) -> None:
    """Show each limit, what is spent, and what is left.

    `frees` is when the oldest payment in the window stops counting.
    """
    terminal.give_list(connect().get("/v1/limits"), "limits", _FIELDS)


@limits.command(
    "set",
    epilog=example(
        'payagent limits set --per-payment "10 ADA" --per-day "50 ADA"',
        'payagent limits set --merchant t --per-hour "5 ADA"',
        'payagent limits set --app bot --per-day "2 ADA" --total "100 ADA"',
        'payagent limits set --per-day "0 ADA"',
        "payagent limits set --per-day config",
    ),
)
@click.option("--app", metavar="NAME", help="Limit one app. Default: all apps together.")
@click.option("--merchant", metavar="NAME", help="Limit one merchant. Default: all merchants together.")
@asset_option
@limit_options
@talks_to_daemon
def set_(
    terminal: Terminal,
    connect: Connect,
    app: str | None,
    merchant: str | None,
    asset: str | None,
    **texts: str | None,
) -> None:
    """Set limits at run time.

    They override the config file at once and survive restarts. An AMOUNT is "5 ADA", "5000000 lovelace", or "5
    USDM" with a token's name in the config. With --asset it may be a number of smallest units. 0 stops spending.
    Pass `config` instead of an amount to revert to the config file. A token can be spent only if [[limits.assets]]
    of the config has it, and if it has a limit over time or in total for all apps together. Every limit that
    applies to a payment holds. A refusal names the tightest.
    """
    if all(text is None for text in texts.values()):
        raise click.UsageError("name a limit, such as --per-day")
    reverted = {window: None for window, text in texts.items() if text == OF_CONFIG}
    amounts = {window: text for window, text in texts.items() if window not in reverted}
    body = {key: value for key, value in (("app", app), ("merchant", merchant)) if value is not None}
    client = connect()
    name, units_by_window = read_amounts(asset, amounts, client.settings.limits.tokens)
    limits: dict[str, str | None] = units_by_window | reverted
    terminal.give_list(client.post("/v1/limits", body | {"asset": name, "limits": limits}), "limits", _FIELDS)
    for window, units in limits.items():
        if units is None:
            continue
        lower_limit = client.settings.limits.signed_less(Window(window), name, int(units))
        if lower_limit is not None:
            key, most = lower_limit
            terminal.say(
                f"{window} is above the signer's limit: {key} is {show_units(name, most)}. "
                "Raise that in the config file too, and restart the daemon."
            )
