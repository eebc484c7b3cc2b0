"""What `payagent init` asks at a terminal. Each answer is checked at once, and asked for again if it is not valid.

Never: writes anything; asks for a secret.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from payagent.cli.terminal import Terminal
from payagent.core.bounds import APP_NAME_PATTERN
from payagent.core.money import parse_ada
from payagent.core.network import NETWORKS
from payagent.core.origin import T_BACKEND
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.init import FirstApp

T = TypeVar("T")
_PRESETS = ("t-backend", "x402", "none")


def ask_network(terminal: Terminal) -> str:
    terminal.say(
        "preprod and preview are public test networks. A devnet runs on this machine.\n"
        "On mainnet the money is real."
    )
    return str(click.prompt("Network", type=click.Choice(list(NETWORKS)), err=True))


def ask_chain_url(terminal: Terminal, network: str) -> str:
    from payagent.init import PROVIDER

    where = "`payagent devnet` prints its URL." if network == "devnet" else "The default is Blockfrost itself."
    terminal.say(f"\npayagent reads the chain from a server with Blockfrost's API.\n{where}")
    return _ask("Base URL of the Blockfrost API", PROVIDER.parse_url, PROVIDER.urls[network])


def ask_project_id_file(terminal: Terminal, chain_url: str, folder: Path) -> Path | None:
    """Ask for the file with the project id, if the provider needs one."""
    from payagent.init import PROVIDER
    from payagent.secret_file import read_secret_file

    if not PROVIDER.needs_secret(chain_url):
        return None

    def parse(text: str) -> Path:
        path = Path(text).expanduser().absolute()
        read_secret_file(path)
        return path

    default = folder / "blockfrost-project-id"
    terminal.say(
        "\nBlockfrost answers only with a project id. Get one for this network at\n"
        "https://blockfrost.io. Save it in a file that only you can read: start this\n"
        "command in another terminal, paste the id, and press Enter and Ctrl-D:\n"
        f"  install -D -m 600 /dev/stdin {default}"
    )
    return _ask("File with the project id", parse, str(default))


def ask_merchant(terminal: Terminal, network: str) -> tuple[dict[str, str], dict[str, str]]:
    """Ask for one merchant. Return origins and partners, both by the merchant's name."""
    from payagent.settings.loading import read_merchant

    terminal.say(
        "\npayagent pays only merchants that you name. You can add others later.\n"
        "t-backend is Flux Point's T Backend. x402 is any server that speaks x402."
    )
    preset = click.prompt("Merchant that may be paid", type=click.Choice(_PRESETS), err=True)
    if preset == "none":
        return {}, {}
    is_t_backend = preset == "t-backend"

    def origin_of(text: str) -> str:
        return read_merchant("t", {"origin": text}, network).origin

    def partner_of(text: str) -> str | None:
        return read_merchant("t", {"origin": origin, "partner": text}, network).partner if text else None

    def name_of(text: str) -> str:
        read_merchant(text, {"origin": origin}, network)
        return text

    known = T_BACKEND if is_t_backend and network != "devnet" else None
    origin = _ask("Its origin, such as https://api.example.com", origin_of, known)
    name = _ask("A short name for it", name_of, "t" if is_t_backend else "x402")
    partner = (
        _ask("Your partner name there, sent as X-Partner (empty: none)", partner_of, "") if is_t_backend else None
    )
    return {name: origin}, {} if partner is None else {name: partner}


def ask_app(terminal: Terminal) -> "FirstApp":
    from payagent.init import APP_NAME, FirstApp

    def name_of(text: str) -> str:
        if text == APP_NAME or not re.fullmatch(APP_NAME_PATTERN, text):
            raise ValueError(f"use ASCII letters, digits and ._- for the name, and not {APP_NAME!r}")
        return text

    terminal.say(
        "\nEach program that pays gets a token with a limit of its own, so that a mistake\n"
        "costs no more than that."
    )
    name = _ask("Name of the first program", name_of, "agent")
    return FirstApp(name, _ask("The most it may spend in 24 hours", parse_ada, "5 ADA"))


def _ask(question: str, parse: Callable[[str], T], default: str | None) -> T:
    """Ask until the answer can be parsed."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except Refused as refused:
            raise click.UsageError(refused.detail) from None
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    return click.prompt(question, default=default, show_default=bool(default), value_proc=parsed, err=True)
