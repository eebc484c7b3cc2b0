"""What `payagent init` asks at a terminal. Each answer is checked at once, and asked for again if it is not valid.

Never: writes anything.
"""

import re
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from payagent.cli.terminal import Terminal
from payagent.core.bounds import APP_NAME_PATTERN
from payagent.core.money import parse_ada
from payagent.core.network import NETWORKS
from payagent.core.origin import T_BACKEND, origin_part, short_name
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.init import FirstApp

T = TypeVar("T")
WHAT_COMES = (
    "This makes a wallet, a config and a first app.\nNothing is written before the last answer. Ctrl-C stops it.\n"
)
_WORDS_ARE = (
    "The 24 recovery words of this wallet. Anyone who has them can take the money.\n"
    "Write them down now: they are not shown again. You will be asked for two of them."
)
_SHOW_OTHER_SCREEN, _CLEAR, _SHOW_SCREEN = "\x1b[?1049h", "\x1b[H\x1b[2J", "\x1b[?1049l"
"""Of xterm. What the other screen shows does not stay in the terminal's history."""


def ask_network(terminal: Terminal) -> str:
    terminal.say(
        "preprod and preview are public test networks. A devnet runs on this machine.\n"
        "On mainnet the money is real."
    )
    return str(click.prompt("Network", type=click.Choice(list(NETWORKS)), err=True))


def ask_providers(terminal: Terminal, network: str) -> tuple[str, ...]:
    """Ask for a chain provider and, if the money may be real, for a second one. Each is a kind or a base URL."""
    from payagent.init import named_providers, offered

    def parse(text: str) -> str:
        if text != "none":
            named_providers([text], network)
        return text

    kinds, first = offered(network)
    terminal.say(
        f"\npayagent reads the chain from one or more providers. A kind is {kinds}.\n"
        "The base URL of a server with Blockfrost's API is accepted too."
    )
    if network == "devnet":
        terminal.say("`payagent devnet` prints its URL.")
        return (_ask("Chain provider", parse, first),)
    first = _ask("Chain provider", parse, first)
    terminal.say("\nA single provider can mislead payagent. Two of different operators are better.")
    second = _ask("Second provider", parse, "none")
    return (first,) if second == "none" else (first, second)


def ask_project_id(terminal: Terminal, file: Path) -> dict[Path, str]:
    """Ask for a provider's project id, without echo. Returns it by its file; nothing if that has one already."""
    if file.exists():
        terminal.say(f"\nThe project id is in {file}.")
        return {}
    terminal.say(
        "\nBlockfrost answers only with a project id. Get one for this network at\n"
        f"https://blockfrost.io. It is saved in a file that only you can read:\n  {file}"
    )
    return {
        file: str(click.prompt("Project id (not shown while you paste it)", hide_input=True, err=True)).strip()
    }


def ask_merchant(terminal: Terminal, network: str) -> tuple[dict[str, str], dict[str, str]]:
    """Ask for one merchant. Return origins and partners, both by the merchant's name."""
    from payagent.settings.loading import read_merchant

    terminal.say(
        "\npayagent pays only merchants that you name. You can add others later.\n"
        "t-backend is Flux Point's T Backend."
    )

    def origin_of(text: str) -> str:
        url = T_BACKEND if text == "t-backend" else origin_part(text)
        return "" if text == "none" else read_merchant("t", {"origin": url}, network).origin

    def partner_of(text: str) -> str | None:
        return read_merchant("t", {"origin": origin, "partner": text}, network).partner if text else None

    def name_of(text: str) -> str:
        read_merchant(text, {"origin": origin}, network)
        return text

    origin = _ask("Merchant that may be paid: its URL, t-backend or none", origin_of, None)
    if not origin:
        return {}, {}
    name = _ask("A short name for it", name_of, short_name(origin))
    takes_partner = network == "devnet" or origin == T_BACKEND
    partner = takes_partner and _ask("Your partner name there, sent as X-Partner (empty: none)", partner_of, "")
    return {name: origin}, {name: partner} if partner else {}


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


def show_words(terminal: Terminal, words: str) -> None:
    """Show new recovery words on the terminal's other screen, until two of them are given back."""
    from random import SystemRandom

    by_number = list(enumerate(words.split(), 1))
    lines = (
        "".join(f"{n:>4} {word:<10}" for n, word in by_number[start : start + 4]) for start in range(0, 24, 4)
    )
    shown = f"{_WORDS_ARE}\n\n" + "\n".join(lines)
    terminal.stderr.write(_SHOW_OTHER_SCREEN)
    try:
        for reason in chain(("",), repeat("That was not the word. Look again.\n\n")):
            terminal.stderr.write(_CLEAR)
            terminal.say(reason + shown)
            click.prompt("Press Enter when you have written them down", "", show_default=False, err=True)
            terminal.stderr.write(_CLEAR)
            asked = sorted(SystemRandom().sample(by_number, 2))
            if all(click.prompt(f"Word {number}", err=True).strip() == word for number, word in asked):
                return
    finally:
        terminal.stderr.write(_SHOW_SCREEN)


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
