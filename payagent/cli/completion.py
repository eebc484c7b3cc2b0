"""`payagent completion`: prints the script by which a shell completes commands and options.

Never: changes a shell's files.
"""

import click

from payagent.cli import COMPLETE
from payagent.cli.options import example, pass_terminal
from payagent.cli.terminal import Terminal


@click.command(
    epilog=example(
        "payagent completion bash >> ~/.bashrc",
        "payagent completion zsh >> ~/.zshrc",
        "payagent completion fish > ~/.config/fish/completions/payagent.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_terminal
def completion(terminal: Terminal, shell: str) -> None:
    """Print the completion script for your shell.

    Save it where your shell reads it at its start, and open a new shell. Then the Tab key completes commands,
    options and their values.
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    if script is not None:
        root = click.get_current_context().find_root().command
        terminal.write(script(root, {}, "payagent", COMPLETE).source())
