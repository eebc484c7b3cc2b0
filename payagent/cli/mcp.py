"""`payagent mcp`: lets AI agents pay, by the Model Context Protocol.

Never: pays (the daemon does); writes anything but the protocol to stdout while it serves stdio.
"""

import gc
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from payagent.cli.mcp_install import install, uninstall
from payagent.cli.options import example, output_options, pass_terminal
from payagent.cli.terminal import Terminal

if TYPE_CHECKING:
    from payagent.mcp.daemon import AppClient


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


def import_extra(module: str) -> Any:
    """Import a module of payagent.mcp, and the official SDK with it. Refuse to go on without the optional extra.

    All that the import makes stays. Looking for garbage in it took a tenth of the time until agents see the tools.
    """
    if find_spec("mcp") is None:
        raise click.UsageError("this command needs an extra: pip install 'CHECKOUT[mcp]', with payagent's folder")
    gc.disable()
    imported = import_module(f"payagent.mcp.{module}")
    gc.freeze()
    gc.enable()
    return imported


def _daemon(token_file: Path | None) -> "AppClient":
    from payagent.mcp.daemon import AppClient
    from payagent.secret_file import read_header_secret

    token = None if token_file is None else read_header_secret(token_file)
    try:
        return AppClient(token, os.environ)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the app's token (mode 0600). Default: $PAYAGENT_TOKEN.",
)


@mcp.command(epilog=example("payagent mcp serve --token-file agent.token"))
@click.option("--listen", metavar="HOST:PORT", help="Serve HTTP at /mcp on this loopback address. Default: stdio.")
@token_option
@output_options
@pass_terminal
def serve(terminal: Terminal, listen: str | None, token_file: Path | None) -> None:
    """Serve the wallet to an agent, on stdio or on HTTP.

    The agent spends within the limits of the app whose token it gets. The daemon is at $PAYAGENT_URL, a URL or the
    path of its socket (default: http://127.0.0.1:8402). With --listen, any program on this machine can spend
    within these limits while it runs.
    """
    server = import_extra("server")
    daemon = _daemon(token_file)
    if listen is None:
        server.serve_stdio(daemon)
        return
    from payagent.api.http.server import listen_tcp
    from payagent.settings.field_types import require_loopback

    require_loopback(listen, "--listen")
    with listen_tcp(listen, "--listen") as listener:
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}/mcp" if ":" in host else f"http://{host}:{port}/mcp"
        terminal.give({"mcp": url}, lambda: terminal.say(f"{url} serves agents"))
        server.serve_http(daemon, listener)


@mcp.command(epilog=example("payagent mcp proxy https://tools.example.com/mcp --token-file agent.token"))
@click.argument("url")
@token_option
def proxy(url: str, token_file: Path | None) -> None:
    """Serve a paid MCP server on stdio, and pay its calls.

    Tools, resources and prompts that ask for x402 payment are paid by the daemon, within the limits of the app
    whose token it gets. The server's origin must be in [merchants].
    """
    import asyncio

    asyncio.run(import_extra("paid_proxy").serve_proxy(url, _daemon(token_file)))


mcp.add_command(install)
mcp.add_command(uninstall)
