"""The command tree: the root group, and the commands `serve`, `devnet` and `demo`.

May import: click, cli, core; daemon, devnet, demo, log and settings inside functions.
Never: imports anything slow at import time.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from payagent.cli.apps import app
from payagent.cli.backup import backup, restore
from payagent.cli.doctor import doctor
from payagent.cli.fetch import fetch
from payagent.cli.init import init
from payagent.cli.ledger import ledger
from payagent.cli.limits import limits
from payagent.cli.merchants import merchants
from payagent.cli.options import config_option, example, output_options, pass_terminal
from payagent.cli.pay import pay
from payagent.cli.payments import payments
from payagent.cli.prepaid import prepaid
from payagent.cli.proxy import proxy
from payagent.cli.terminal import Terminal
from payagent.cli.wallet import pause, resume, wallet
from payagent.core.version import VERSION

EXIT_CODES = """\b
Exit codes:
  0 ok                                    6 refused by a limit or the policy
  1 a bug                                 7 not enough funds
  2 usage or configuration                8 still pending
  3 payment void, rejected or expired     10 dry run ok
  4 chain, merchant or daemon unreachable
  5 locked or unauthorised                130 interrupted, 141 stdout closed early"""


@click.group(
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="payagent")
def payagent() -> None:
    """Pay HTTP 402 on Cardano.

    Data goes to stdout, messages to stderr. Output is a table on a terminal and JSON in a pipe; --json and --human
    choose one.

    \b
    Example:
      payagent init                       create a wallet, a config and a first token
      payagent serve                      run the daemon in the foreground
      payagent pay invoice.json --merchant t
    """


@payagent.command(epilog=example("payagent serve --config ~/.config/payagent/config.toml --listen 127.0.0.1:8402"))
@config_option
@click.option("--listen", metavar="HOST:PORT", help="Listen here instead of on api.listen.")
@click.option("--allow-remote", is_flag=True, help="Allow an address that other machines can reach, with TLS.")
@pass_terminal
def serve(terminal: Terminal, config: Path | None, listen: str | None, allow_remote: bool) -> None:
    """Run the daemon in the foreground.

    It runs until SIGTERM or Ctrl-C and is ready when /readyz answers 200. The log goes to stderr. SIGHUP makes it
    read the config file again. It tells systemd when it listens (config/payagent.service).
    """

    # a SIGHUP during the slow imports waits until the daemon handles it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from payagent.cli.sd_notify import service_manager
    from payagent.daemon import serve as run_daemon
    from payagent.log import Redactor, configure_logging
    from payagent.settings.loading import config_places, find_config, load_settings

    overrides = {} if listen is None else {"api": {"listen": listen}}
    path = find_config(config, os.environ)
    settings = load_settings(path, os.environ, overrides)
    redactor = Redactor()
    configure_logging(sys.stderr, redactor)

    with service_manager(os.environ) as tell_ready:

        def announce(places: Mapping[str, str]) -> None:
            status = f"payagent serves {places['network']} on {places['api']} and {places['socket']}"
            terminal.say(status)
            tell_ready(status)

        run_daemon(
            settings,
            config=path,
            looked_for=config_places(config, os.environ),
            environ=os.environ,
            can_ask=terminal.can_ask,
            announce=announce,
            redactor=redactor,
            allow_remote=allow_remote,
            reread=lambda: load_settings(path, os.environ, overrides),
        )


@payagent.command(epilog=example("payagent devnet --block-time 1 --listen 127.0.0.1:0 --json"))
@click.option(
    "--block-time",
    type=click.IntRange(0, 3600),
    default=1,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between blocks. 0: only POST /devnet/blocks makes one.",
)
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Loopback address of the chain's API; port 0 picks a free port, as the merchant does.",
)
@click.option(
    "--merchants",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    metavar="COUNT",
    help="Number of merchants, each on its own port.",
)
@output_options
@pass_terminal
def devnet(terminal: Terminal, block_time: int, listen: str, merchants: int) -> None:
    """Run a small Cardano network and a merchant locally.

    A faucet gives out its worthless money. It runs until Ctrl-C and stores nothing.

    Control it with POST and JSON: /devnet/faucet {"address", "lovelace", "assets"}, /devnet/blocks {"count"},
    /devnet/rollback {"depth"}, /devnet/faults {"on", "kind", "count"} or {"clear": true}. GET /devnet/state shows
    its state. Change the merchant with POST /merchant/settings {"price", "asset", "splits", "split_mode", "batch",
    "timeout", "confirmations", "dialect"}. GET /merchant/state shows its state.
    """

    import asyncio

    from payagent.devnet.server import serve_devnet

    host, separator, port = listen.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("write a loopback address and port, such as 127.0.0.1:0", param_hint="--listen")

    def announce(places: Mapping[str, object]) -> None:
        if terminal.is_json:
            terminal.line(json.dumps(places))
        else:
            _show_devnet(terminal, places)

    try:
        asyncio.run(
            serve_devnet(
                host=host.removeprefix("[").removesuffix("]"),
                chain_port=int(port),
                block_time_s=block_time,
                merchants=merchants,
                announce=announce,
            )
        )
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise click.BadParameter(f"{listen}: {reason}", param_hint="--listen") from None


def _show_devnet(terminal: Terminal, places: Mapping[str, Any]) -> None:
    terminal.pairs(
        [
            ("network", places["network"]),
            ("chain", places["chain"]),
            *(("merchant", url) for url in places["merchants"]),
            ("control", places["control"]),
        ]
    )
    terminal.line()
    terminal.line("Send money from the faucet to your wallet:")
    terminal.line(f"  curl -s {places['control']}/faucet -H 'content-type: application/json' \\")
    terminal.line('    -d \'{"address": "\'"$(payagent wallet address --human)"\'", "lovelace": "500000000"}\'')
    terminal.line("Get an invoice:")
    terminal.line(f'  curl -s {places["merchant"]}/chat -d \'{{"message": "hello"}}\'')


@payagent.command(epilog=example("payagent demo"))
@pass_terminal
def demo(terminal: Terminal) -> int:
    """Show payments on a devnet and verify every step.

    It starts a network, a merchant, the daemon and a client on free loopback ports, with real HTTP between them.
    It takes about 15 seconds and leaves nothing behind. Exit code 0 only if every step was verified.
    """
    from payagent.demo import DemoFailed, run_demo

    try:
        run_demo(terminal.line, terminal.waiting, os.environ)
    except DemoFailed as failed:
        terminal.say(f"The demo failed: {failed}")
        return 1
    return 0


COMMANDS = (
    init, pay, fetch, proxy, payments, wallet, prepaid, app, limits, pause, resume, merchants, ledger, doctor,
    backup, restore,
)  # fmt: skip

for command in COMMANDS:
    payagent.add_command(command)
