"""`payagent proxy`: serves one merchant on a port of its own, for a client whose base URL must be a bare origin.

Never: pays (the daemon does).
"""

import os
import sys
from functools import partial
from pathlib import Path

import click

from payagent.cli.options import config_option, example, output_options, pass_terminal, token_file_option
from payagent.cli.terminal import Terminal
from payagent.core.origin import not_configured, parse_origin


@click.command(epilog=example("payagent proxy --to https://api.example.com --listen 127.0.0.1:9000"))
@click.option("--to", "url", required=True, metavar="URL", help="Origin of the merchant, as in [merchants].")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Loopback address to listen on; port 0 picks a free port.",
)
@config_option
@token_file_option
@output_options
@pass_terminal
def proxy(terminal: Terminal, url: str, listen: str, config: Path | None, token_file: Path | None) -> None:
    """Serve one merchant on a local port, and pay for it.

    Requests go through the daemon, which pays within the limits. Clients need no token, so any program on this
    machine can spend within the limits while it runs. It runs until SIGTERM or Ctrl-C.
    """
    from payagent.api.http.server import listen_tcp
    from payagent.cli.daemon_client import OperatorClient
    from payagent.log import Redactor, configure_logging
    from payagent.proxy.single_merchant import SingleMerchantApp, serve_bare
    from payagent.secret_file import read_header_secret
    from payagent.settings.config_file import TOKEN_FILE, DaemonPaths
    from payagent.settings.field_types import require_loopback
    from payagent.settings.loading import load_settings

    require_loopback(listen, "--listen")
    settings = load_settings(config, os.environ)
    origin = _origin(url)
    names = [name for name, merchant in settings.merchants.items() if merchant.origin == origin]
    if not names:  # perhaps added at run time
        client = OperatorClient(DaemonPaths(settings.api.socket, settings.data_dir), token_file)
        names = [row["name"] for row in client.get("/v1/merchants")["merchants"] if row["origin"] == origin]
    if not names:
        raise not_configured(origin)
    token = partial(read_header_secret, token_file or settings.data_dir / TOKEN_FILE)
    redactor = Redactor()
    redactor.register(token())
    configure_logging(sys.stderr, redactor)
    timeout_s = settings.proxy.read_timeout_s + settings.proxy.payment_timeout_s
    app = SingleMerchantApp(settings.api.socket, names[0], token, timeout_s)
    with listen_tcp(listen, "--listen") as listener:
        host, port = listener.getsockname()[:2]
        place = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def announce() -> None:
            said = f"{place} serves {origin} and pays for its requests"
            terminal.give({"proxy": place, "to": origin}, lambda: terminal.say(said))

        serve_bare(app, listener, announce)


def _origin(url: str) -> str:
    try:
        return parse_origin(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
