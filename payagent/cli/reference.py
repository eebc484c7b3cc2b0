"""Generates docs/reference/cli.md from the command's own help, so that page and program agree.

May import: click, cli.
Never: imports anything slow.
"""

from collections.abc import Iterator

import click

from payagent.cli.main import payagent

WIDTH = 100
HEAD = """\
# The command

Made by `scripts/docs` from the help of `payagent` and its commands. An error is one block on stderr, or one JSON
object where the answer is JSON: `code` and what it means are in [problems.md](problems.md).
"""


def walk(command: click.Command = payagent, path: str = "payagent") -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that call it, groups before what is in them."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], f"{path} {name}")


def help_of(path: str, command: click.Command) -> str:
    """The help, as `--help` prints it at a width of 100."""
    context = click.Context(
        command,
        info_name=path,
        terminal_width=WIDTH,
        help_option_names=payagent.context_settings["help_option_names"],
    )
    text = command.get_help(context)
    return "\n".join(line.rstrip() for line in text.splitlines())


def reference() -> str:
    """The whole page."""
    parts = [HEAD, "".join(f"- [{path}](#{path.replace(' ', '-')})\n" for path, _ in walk())]
    for path, command in walk():
        parts.append(f"## {path}\n\n```text\n{help_of(path, command)}\n```\n")
    return "\n".join(parts)
