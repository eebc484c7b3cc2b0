"""Options and helpers that several commands share.

Never: knows a command.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from payagent.cli.terminal import Field, Terminal
from payagent.core.bounds import LIST_LIMIT_MAX
from payagent.core.ledger import Kind
from payagent.core.money import (
    LOVELACE,
    NO_TOKENS,
    Tokens,
    name_and_decimals,
    parse_amount,
    parse_amount_of,
    parse_asset,
    round_of_limit,
    show_number,
)
from payagent.core.money import show_amount as show_amount_of
from payagent.core.payment.machine import State
from payagent.core.problems import EXIT_INVOICE, Refused

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Connect = Callable[..., "OperatorClient"]
"""Returns a client of the daemon that the chosen config names. `pays`: as the app of $PAYAGENT_TOKEN, if any."""

AMOUNT_HELP = '"5 ADA", "5000000 lovelace", or of a token "5 USDM" or "120 units".'
ASSET_HELP = "ADA, a token's name in the config, or policy id and name in hex."

pass_terminal = click.make_pass_decorator(Terminal)


def _force(is_json: bool, context: click.Context, _parameter: click.Parameter, is_set: bool) -> None:
    if is_set:
        context.ensure_object(Terminal).forced_json = is_json


def output_options(command: F) -> F:
    """--json and --human: choose the output format, whatever stdout is."""
    for name, is_json, text in (
        ("--human", False, "Human-readable output even when piped."),
        ("--json", True, "JSON output even on a terminal."),
    ):
        option = click.option(
            name, is_flag=True, expose_value=False, is_eager=True, callback=partial(_force, is_json), help=text
        )
        command = option(command)
    return command


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Config file. Default: $PAYAGENT_CONFIG, ~/.config/payagent/config.toml, /etc/payagent/config.toml.",
)
asset_option = click.option("--asset", metavar="ASSET", help=f"{ASSET_HELP} Default: that of the amount.")
token_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Token file (mode 0600). Default: operator.token in the data dir.",
)


def _daemon_options(command: F) -> F:
    """The options of every command that calls the daemon: --config, --token-file, --json, --human."""
    return output_options(config_option(token_file_option(command)))


def talks_to_daemon(command: Callable[..., R]) -> Callable[..., R]:
    """Add the daemon options to a command, and call it with the terminal and a function that connects."""

    @wraps(command)
    def with_client(config: Path | None, token_file: Path | None, **arguments: Any) -> R:
        terminal = click.get_current_context().ensure_object(Terminal)
        terminal.tokens = cache(lambda: _tokens_of(config))
        return command(terminal, lambda pays=False: _connect(config, token_file, pays), **arguments)

    return _daemon_options(with_client)


def _connect(config: Path | None, token_file: Path | None, pays: bool) -> "OperatorClient":
    from payagent.cli.daemon_client import OperatorClient
    from payagent.settings.config_file import TOKEN_VARIABLE, DaemonPaths, find_daemon

    paths = find_daemon(config, os.environ)
    if paths is None:
        from payagent.settings.loading import load_settings

        settings = load_settings(config, os.environ)
        paths = DaemonPaths(settings.api.socket, settings.data_dir)
    return OperatorClient(
        paths, token_file, config, os.environ.get(TOKEN_VARIABLE) if pays and token_file is None else None
    )


def _tokens_of(config: Path | None) -> Tokens:
    """The tokens that the config names; none if it cannot be read, since amounts can be shown in units too."""
    from payagent.settings.loading import load_settings

    try:
        return load_settings(config, os.environ).limits.tokens
    except Refused:
        return NO_TOKENS


def group_of(*examples: str, alone: str) -> Callable[[Callable[[], None]], click.Group]:
    """A group of commands that call the daemon. Without a subcommand it runs `alone`. Its options apply to all."""

    def make(function: Callable[[], None]) -> click.Group:
        @wraps(function)
        def pass_on(**options: Any) -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is None:
                context.invoke(group.commands[alone], **options)
            else:
                defaults = {name: value for name, value in options.items() if value is not None}
                context.default_map = {context.invoked_subcommand: defaults}

        as_group = click.group(invoke_without_command=True, epilog=example(*examples))
        group: click.Group = as_group(_daemon_options(pass_on))
        return group

    return make


def page_options(command: F) -> F:
    """--limit and --cursor of a paged list."""
    cursor = click.option("--cursor", metavar="TEXT", help="Continue after the previous page.")
    bound = click.IntRange(1, LIST_LIMIT_MAX)
    return click.option("--limit", type=bound, default=20, show_default=True, help="Rows per page.")(
        cursor(command)
    )


_FILTERS = (
    ("--since", {"metavar": "TIME"}, "Only from this time on, such as 2026-11-01 or 2026-11-01T12:00:00Z."),
    ("--until", {"metavar": "TIME"}, "Only before this time."),
    ("--merchant", {"metavar": "NAME"}, "Only payments to this merchant, by name or origin."),
    ("--app", {"metavar": "NAME"}, "Only payments of this app, by name or id."),
    ("--asset", {"metavar": "ASSET"}, "Only this asset: lovelace, or policy id and name in hex."),
    ("--kind", {"type": click.Choice(get_args(Kind))}, "Only entries of this kind."),
    (
        "--state",
        {"type": click.Choice([str(state) for state in State])},
        "Only payments in this state.",
    ),
    (
        "--text",
        {"metavar": "TEXT"},
        "Only entries that contain this in their kind, ref, account or payment.",
    ),
)


def filter_options(*names: str) -> Callable[[F], F]:
    """These filters, passed on by name; without names, all filters of ledger entries."""

    def add(command: F) -> F:
        for name, more, text in reversed(_FILTERS):
            if name in names or not names:
                command = click.option(name, help=text, **more)(command)
        return command

    return add


def example(*lines: str) -> str:
    """The example at the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def read_asset(text: str, tokens: Tokens) -> str:
    """An asset that the user typed: ADA, a token's name in the config, or policy and name in hex.

    Any other text is a usage error, since no merchant sent it.
    """
    try:
        return tokens[text][0] if text in tokens else parse_asset(text)
    except Refused as refused:
        if refused.problem.exit_code != EXIT_INVOICE:
            raise
        raise click.UsageError(refused.detail) from None


def read_amounts(asset: str | None, texts: Mapping[str, str | None], tokens: Tokens) -> tuple[str, dict[str, str]]:
    """The asset of the given amounts, and the amounts in its units.

    The asset is that of --asset, else the one that an amount names, else ADA.
    """
    given = {name: text for name, text in texts.items() if text is not None}
    if asset is None:
        named = (parse_amount(text, tokens)[1] for text in given.values())
        asset = next(filter(None, named), LOVELACE)
    else:
        asset = read_asset(asset, tokens)
    return asset, {name: str(parse_amount_of(asset, text, tokens)) for name, text in given.items()}


def show_units(asset: str, units: str | int | None) -> str:
    """An amount for people: with its unit, in the decimals of the config, or in units if that does not name it."""
    if units is None:
        return ""
    tokens = _tokens_for(asset)
    is_named = asset == LOVELACE or any(asset == of for of, _ in tokens.values())
    return show_amount_of(asset, int(units), tokens) if is_named else f"{show_number(int(units), 0)} units"


def show_left(asset: str, units: str) -> str:
    """What a limit leaves, rounded, with the exact amount beside."""
    short, exact = (show_units(asset, n) for n in (round_of_limit(units, asset, _tokens_for(asset)), units))
    return exact if short == exact else f"{short} ({exact} exactly)"


def show_amount(asset: str, units: str | int) -> str:
    """An amount with its asset's name, for text outside a table."""
    return show_amount_of(asset, int(units), _tokens_for(asset))


def show_asset(asset: str) -> str:
    """An asset for people: ADA, a token's name in the config, or POLICY.NAME in hex."""
    return name_and_decimals(asset, _tokens_for(asset))[0]


def _tokens_for(asset: str) -> Tokens:
    """The tokens of the config that the running command uses. It is read only to show a token."""
    context = click.get_current_context(silent=True)
    return NO_TOKENS if asset == LOVELACE or context is None else context.ensure_object(Terminal).tokens()


def show_time(text: str) -> str:
    """A time of the API for people, to the second and in UTC."""
    return text[:19].replace("T", " ")


def amount(name: str, key: str = "", drop: int | None = None) -> Field:
    """A column of amounts of each row's asset."""
    return Field(name, lambda row: show_units(row["asset"], row[key or name]), is_right=True, drop=drop)


def of_limit(name: str, drop: int) -> tuple[Field, Field]:
    """Columns of what each row's limit counts: "spent" or "left", rounded, and the exact amounts of those."""

    def short(row: Any) -> str:
        units = row[name]
        if None not in (units, row["most"]):
            tokens, other = _tokens_for(row["asset"]), row["left" if name == "spent" else "spent"]
            units = round_of_limit(units, row["asset"], tokens, is_spent=name == "spent", beside=other or 0)
        return show_units(row["asset"], units)

    def exact(row: Any) -> str:
        shown = show_units(row["asset"], row[name])
        return "" if shown == short(row) else shown

    return Field(name, short, is_right=True), Field(f"{name} exactly", exact, is_right=True, drop=drop)


def moment(name: str, key: str, drop: int | None = None) -> Field:
    """A column of times, empty where there is none."""
    return Field(name, lambda row: show_time(row[key] or ""), is_whole=True, drop=drop)


LOVELACE_AND_TOKENS = (
    Field("ADA", lambda row: show_units(LOVELACE, row["lovelace"]), is_right=True),
    Field("tokens", lambda row: len(row["assets"]), is_right=True),
)
ASSET = Field("asset", lambda row: show_asset(row["asset"]))
UNNAMED_ASSET = Field(
    "asset", lambda row: show_asset(row["asset"]) if show_units(row["asset"], 0) == "0 units" else "", drop=9
)
"""The asset of rows whose amounts do not name it."""


def path_of(route: str, *parts: str) -> str:
    """A path of the API with these parts, each of which may be any text."""
    from urllib.parse import quote

    return "/".join((route, *(quote(part, safe="") for part in parts)))


def say_unsigned(terminal: Terminal, reasons: Iterable[str]) -> None:
    for reason in reasons:
        terminal.say(f"Still not signing: {reason}")


def ask_passphrase() -> str:
    """Ask for a new passphrase, typed twice, until it is long enough."""
    from payagent.init import PASSPHRASE_LENGTH_MIN

    click.echo(
        f"\nThe passphrase has at least {PASSPHRASE_LENGTH_MIN} characters. It encrypts the wallet's key on this\n"
        "machine, and the daemon needs it at each start. If you lose it, only the 24\n"
        "recovery words give access to the money.",
        err=True,
    )
    while True:
        passphrase = click.prompt("Passphrase for the keystore", "", hide_input=True, show_default=False, err=True)
        if len(passphrase) < PASSPHRASE_LENGTH_MIN:
            click.echo(f"It must have at least {PASSPHRASE_LENGTH_MIN} characters.", err=True)
        elif passphrase != click.prompt("Repeat it", "", hide_input=True, show_default=False, err=True):
            click.echo("The two are not the same.", err=True)
        else:
            return str(passphrase)
