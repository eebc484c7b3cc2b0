"""The command tree: the root group, and the commands `serve`, `devnet`, `demo` and `completion`.

Never: imports a command's module before the command runs.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click._textwrap import TextWrapper

from payagent.cli import COMPLETE
from payagent.cli.options import config_option, example, output_options, pass_terminal
from payagent.cli.terminal import Terminal
from payagent.core.version import VERSION

COMMANDS = {
    "app": ("apps", "Manage the apps that may pay."),
    "backup": ("backup", "Write ledger and keystore to one new FILE."),
    "channels": ("channels", "Pay small calls by channels."),
    "dashboard": ("dashboard", "Print a link that opens the dashboard once."),
    "doctor": ("doctor", "Check everything that a payment needs."),
    "fetch": ("fetch", "Send an HTTP request, and pay if it costs money."),
    "init": ("init", "Create a wallet, a config and a first token."),
    "ledger": ("ledger", "Show the double-entry ledger."),
    "limits": ("limits", "Show and set spending limits."),
    "log": ("log", "Show who changed what, and which requests were refused."),
    "mcp": ("mcp", "Let AI agents pay by MCP."),
    "merchants": ("merchants", "Manage the merchants that may be paid."),
    "notifications": ("notifications", "Show and test the targets of notifications."),
    "pause": ("wallet", "Stop all signing until `payagent resume`."),
    "pay": ("pay", "Pay a saved 402 and print the headers for the retry."),
    "payments": ("payments", "List, show, approve and cancel payments."),
    "prepaid": ("prepaid", "Show and top up prepaid balances."),
    "proxy": ("proxy", "Serve one merchant on a local port, and pay for it."),
    "restore": ("backup", "Restore a wallet from a backup."),
    "resume": ("wallet", "Allow signing again."),
    "status": ("status", "Show whether payagent pays, and what needs you."),
    "store": ("backup", "Move the ledger between a file and PostgreSQL."),
    "wallet": ("wallet", "Show and manage the wallet."),
}
"""The module of each command in `payagent.cli`, and its summary. The module is imported when the command runs."""


GROUPS = {
    "Set up and run": "init serve doctor status demo devnet",
    "Pay": "fetch pay proxy mcp payments prepaid channels wallet",
    "Set rules": "merchants limits app pause resume notifications dashboard",
    "Keep books": "ledger log backup restore store",
    "In your shell": "completion",
}
"""The commands as `payagent --help` groups them."""
_MEANT = {
    "help": "payagent --help",
    "balance": "payagent wallet",
    "cancel": "payagent payments resolve ID",
}
"""What to use in place of commands that there are not."""
TextWrapper.wordsep_re = TextWrapper.wordsep_simple_re  # click would break --per-day after a hyphen


class _Root(click.Group):
    """The root group. Its help needs no command's module."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module = import_module(f"payagent.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] in _MEANT:
            raise click.UsageError(f"No such command {args[0]!r}. Use `{_MEANT[args[0]]}`.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, names in GROUPS.items():
            rows = [(name.ljust(width), self.commands[name].get_short_help_str(100)) for name in names.split()]
            with formatter.section(title):
                formatter.write_dl(rows)


EXIT_CODES = """\b
Exit codes:
  0 ok                                    6 refused by a limit or the policy
  1 a bug                                 7 not enough funds
  2 usage or configuration                8 still pending
  3 payment void, rejected or expired     10 dry run ok
  4 chain, merchant or daemon unreachable
  5 locked or unauthorised                130 interrupted, 141 stdout closed early"""


@click.group(
    cls=_Root,
    commands={name: click.Command(name, short_help=summary) for name, (_, summary) in COMMANDS.items()},
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
    from payagent.daemon.serve import serve as run_daemon
    from payagent.log import Redactor, configure_logging
    from payagent.settings.config_file import config_paths, find_config
    from payagent.settings.loading import load_settings

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
            looked_for=config_paths(config, os.environ),
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
@output_options
@pass_terminal
def devnet(terminal: Terminal, block_time: int, listen: str) -> None:
    """Run a small Cardano network and a merchant locally.

    A faucet gives out its worthless money. It runs until Ctrl-C and stores nothing.

    Control it with POST and JSON: /devnet/faucet {"address", "lovelace", "assets"}, /devnet/blocks {"count"},
    /devnet/rollback {"depth"}, /devnet/faults {"on", "kind", "count"} or {"clear": true}. GET /devnet/state shows
    its state. Blocks made on request take no time: slots follow the clock.

    Change the merchant with POST /merchant/settings {"price", "asset", "splits", "split_mode", "batch", "timeout",
    "confirmations", "dialect", "channel"}. GET /merchant/state shows its state. The dialect is t-backend, flux,
    x402-v1, x402-v2 or x402-channel.

    {"dialect": "x402-channel"} makes the merchant also sell by channel (scheme batch-settlement): GET and POST
    /channel/..., for "price". Other paths keep their dialect. "channel" in GET /merchant/state has its
    provider_key, script_hash, settings and counts. Set "channel": {"withdraw_delay": SECONDS} for its delay,
    {"claim": "sub"} to claim from open channels once, {"claim": "settle"} from closed ones, and {"mood": NAME} to
    make it misbehave. The mood null ends that.
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
            ("merchant", places["merchant"]),
            *([("mcp", places["mcp"])] if "mcp" in places else []),
            ("control", places["control"]),
        ]
    )
    terminal.line(
        "\nSend money from the faucet to your wallet:\n"
        f"  curl -s {places['control']}/faucet -H 'content-type: application/json' \\\n"
        '    -d \'{"address": "\'"$(payagent wallet address --human)"\'", "lovelace": "500000000"}\'\n'
        f'Get an invoice:\n  curl -s {places["merchant"]}/chat -d \'{{"message": "hello"}}\''
    )


@payagent.command(epilog=example("payagent demo", "payagent demo --fleet", "payagent demo --channels"))
@click.option("--fleet", is_flag=True, help="Show three daemons on one PostgreSQL. One is killed while it pays.")
@click.option("--channels", is_flag=True, help="Show 100 calls of 0.001 ADA, paid by a channel.")
@click.option("--provider", metavar="KIND", help="Read the chain from this kind of provider, such as koios.")
@click.option("--keystore", type=click.Choice(["softhsm"]), help="Keep the key in an HSM: SoftHSM2, in software.")
@pass_terminal
def demo(terminal: Terminal, fleet: bool, channels: bool, provider: str | None, keystore: str | None) -> int:
    """Show payments on a devnet and verify every step.

    It starts a network, a merchant, the daemon and a client on free loopback ports, with real HTTP between them.
    With --fleet it starts a PostgreSQL server too, and three daemons. It takes about 15 seconds, with --fleet 30.
    With --channels a channel pays 100 calls, in about 20 seconds. It leaves nothing behind. Exit code 0 only
    if every step was verified.
    """
    from payagent.demo import DemoFailed, run_demo
    from payagent.demo.fleet import missing, run_fleet_demo

    if fleet + channels + (keystore is not None) > 1:
        raise click.UsageError("--fleet, --channels and --keystore are demos of their own: choose one")
    if fleet and (lacks := missing(os.environ)) is not None:
        raise click.UsageError(lacks)
    run = run_fleet_demo if fleet else partial(run_demo, in_hsm=keystore is not None, by_channel=channels)
    try:
        run(terminal.line, terminal.waiting, os.environ, provider)
    except DemoFailed as failed:
        terminal.say(f"The demo failed: {failed}")
        return 1
    return 0


@payagent.command(
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
