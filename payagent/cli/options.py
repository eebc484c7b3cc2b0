"""Options and helpers that the commands share.

May import: click, core, cli.terminal, cli.link; settings inside a function. Never: knows a command.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from payagent.cli.terminal import Terminal
from payagent.core.money import LOVELACE, format_ada

if TYPE_CHECKING:
    from payagent.cli.link import Link
    from payagent.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

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


def daemon_options(command: F) -> F:
    """What every command takes that talks to the daemon: --config, --token-file, --json, --human."""
    token = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A 0600 file with the token to use. Default: operator.token in the data dir.",
    )
    return output_options(config_option(token(command)))


def settings_of(config: Path | None) -> "Settings":
    """The settings, as the daemon reads them."""
    from payagent.settings import load_settings

    return load_settings(config, os.environ)


def link_to(config: Path | None, token_file: Path | None) -> "Link":
    """The way to the daemon of this config."""
    from payagent.cli.link import Link

    return Link(settings_of(config), token_file)


def group_defaults(context: click.Context, config: Path | None, token_file: Path | None) -> bool:
    """Whether a group was called alone; if not, what it was given holds for its command too."""
    if context.invoked_subcommand is None:
        return True
    given = {"config": config, "token_file": token_file}
    context.default_map = {
        context.invoked_subcommand: {name: value for name, value in given.items() if value is not None}
    }
    return False


def example(*lines: str) -> str:
    """The example at the end of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def show_units(asset: str, units: str | int | None) -> str:
    """An amount for people: ADA in ADA, a token in its units."""
    if units is None:
        return ""
    return format_ada(int(units)) if asset == LOVELACE else f"{units} units"


def show_asset(asset: str) -> str:
    """An asset for people: ADA, or policy and name with a dot between."""
    return "ADA" if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}"
