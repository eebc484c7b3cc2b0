"""Options and helpers that several commands share.

May import: click, core, cli.terminal, cli.daemon_client; settings and payagent.init in functions.
Never: knows a command.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from payagent.cli.terminal import Terminal
from payagent.core.bounds import LIST_LIMIT_MAX
from payagent.core.money import LOVELACE, format_ada
from payagent.core.problems import EXIT_INVOICE, Refused

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
Connect = Callable[[], "OperatorClient"]
"""Opens the way to the daemon, with the settings of the config that was named."""

pass_terminal = click.make_pass_decorator(Terminal)


def _force(is_json: bool) -> Callable[[click.Context, click.Parameter, bool], None]:
    def remember(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        if given:
            context.ensure_object(Terminal).forced_json = is_json

    return remember


def output_options(command: F) -> F:
    """--json and --human: for a program, or for people, whatever stdout is."""
    for name, is_json, text in (
        ("--human", False, "Show it for people, also in a pipe."),
        ("--json", True, "Show it as JSON, also on a terminal."),
    ):
        option = click.option(
            name, is_flag=True, expose_value=False, is_eager=True, callback=_force(is_json), help=text
        )
        command = option(command)
    return command


def config_option(command: F) -> F:
    """--config, handed on as `config`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The config file. Default: $PAYAGENT_CONFIG, ~/.config/payagent/config.toml, "
        "/etc/payagent/config.toml.",
    )(command)


def token_file_option(command: F) -> F:
    """--token-file, handed on as `token_file`."""
    return click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A 0600 file with the token to use. Default: operator.token in the data dir.",
    )(command)


def _daemon_options(command: F) -> F:
    """What every command takes that talks to the daemon: --config, --token-file, --json, --human."""
    return output_options(config_option(token_file_option(command)))


def talks_to_daemon(command: Callable[..., R]) -> Callable[..., R]:
    """Makes a command take what leads to the daemon; it is called with the terminal and the way there."""

    @wraps(command)
    def with_link(config: Path | None, token_file: Path | None, **given: Any) -> R:
        terminal = click.get_current_context().ensure_object(Terminal)
        return command(terminal, lambda: _link(config, token_file), **given)

    return _daemon_options(with_link)


def _link(config: Path | None, token_file: Path | None) -> "OperatorClient":
    from payagent.cli.daemon_client import OperatorClient
    from payagent.settings.loading import load_settings

    return OperatorClient(load_settings(config, os.environ), token_file)


def group_of(*examples: str, alone: str) -> Callable[[Callable[[], None]], click.Group]:
    """A group of commands that talk to the daemon. Called alone it runs one of them; its options hold for all."""

    def make(named: Callable[[], None]) -> click.Group:
        @wraps(named)
        def pass_on(**given: Any) -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is None:
                context.invoke(group.commands[alone], **given)
            else:
                told = {name: value for name, value in given.items() if value is not None}
                context.default_map = {context.invoked_subcommand: told}

        settled = click.group(invoke_without_command=True, epilog=example(*examples))
        group: click.Group = settled(_daemon_options(pass_on))
        return group

    return make


def page_options(command: F) -> F:
    """--limit and --cursor, of every list that comes in pages."""
    cursor = click.option("--cursor", metavar="TEXT", help="Where the page before ended.")
    bound = click.IntRange(1, LIST_LIMIT_MAX)
    return click.option("--limit", type=bound, default=20, show_default=True, help="How many.")(cursor(command))


def say_more(terminal: Terminal, answer: Mapping[str, Any]) -> None:
    """How to see the next page, when there is one."""
    if answer.get("cursor"):
        terminal.say(f"More: --cursor {answer['cursor']}")


def example(*lines: str) -> str:
    """The example at the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def typed() -> Iterator[None]:
    """Within it, what a merchant would be told of its invoice was typed here: usage, and nobody else's fault."""
    try:
        yield
    except Refused as refused:
        if refused.problem.exit_code != EXIT_INVOICE:
            raise
        raise click.UsageError(refused.detail) from None


def show_units(asset: str, units: str | int | None) -> str:
    """An amount for people: ADA in ADA, a token in its units."""
    if units is None:
        return ""
    return format_ada(int(units)) if asset == LOVELACE else f"{units} units"


def show_amount(asset: str, units: str | int) -> str:
    """An amount outside a table of assets: a token with its name."""
    return show_units(asset, units) if asset == LOVELACE else f"{units} of {show_asset(asset)}"


def show_asset(asset: str) -> str:
    """An asset for people: ADA, or policy and name with a dot between."""
    return "ADA" if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}"


def ask_passphrase() -> str:
    """A new passphrase, typed twice, and asked for again while it is too short."""
    from payagent.init import require_long

    while True:
        passphrase = str(
            click.prompt(
                "Passphrase for the keystore", hide_input=True, confirmation_prompt="The same again", err=True
            )
        )
        try:
            require_long(passphrase)
        except Refused as refused:
            click.echo(f"{refused.problem.title}: {refused.detail}.", err=True)
        else:
            return passphrase
