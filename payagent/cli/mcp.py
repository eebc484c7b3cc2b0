"""`payagent mcp`: lets AI agents pay, by the Model Context Protocol.

May import: click, core, cli; payagent.mcp inside a function.
Never: pays (the daemon does); writes anything but the protocol to stdout while it serves stdio.
"""

import click

from payagent.cli.mcp_install import install, uninstall
from payagent.cli.options import example


class _Group(click.Group):
    """`payagent mcp --listen X` is `payagent mcp serve --listen X`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Group,
    epilog=example("payagent mcp --token-file agent.token", "payagent mcp --listen 127.0.0.1:8403"),
)
def mcp() -> None:
    """Let AI agents pay by MCP. Without a subcommand: serve."""


@mcp.command(epilog=example("payagent mcp serve --token-file agent.token"))
def serve() -> None:
    """Serve the wallet to an agent."""


mcp.add_command(install)
mcp.add_command(uninstall)
