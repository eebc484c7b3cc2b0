"""`payagent notifications`: shows the targets of notifications and what they were sent, and pairs chats.

Never: sends anything (the daemon does).
"""

from typing import Any

import click

from payagent.cli.options import (
    Connect,
    example,
    group_of,
    page_options,
    path_of,
    show_time,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Terminal

NOT_TAKEN = 4


@group_of("payagent notifications", "payagent notifications test ops", alone="list")
def notifications() -> None:
    """Show and test the targets of notifications. Without a subcommand: list them."""


@notifications.command("list", epilog=example("payagent notifications list --json"))
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect) -> None:
    """List the targets, and what waits for each.

    They are the tables [[notifications]] of the config. Without a filter, a webhook is told everything, and the
    others are told decisions and trouble.
    """
    fields = (
        Field("target", "name", is_whole=True),
        Field("kind", _kind, drop=1),
        Field("wants", _filter),
        Field("waiting", is_right=True),
        Field("last delivered", lambda one: show_time(one["last_delivered_at"] or "")),
        Field("last problem", "last_problem", drop=0),
    )
    terminal.give_list(connect().get("/v1/notifications"), "notifications", fields)


def _kind(target: dict[str, Any]) -> str:
    """The kind; for Telegram also how many chats are paired."""
    if target["chats"] is None:
        return str(target["kind"])
    return f"{target['kind']} ({target['chats']} chats)" if target["chats"] else f"{target['kind']} (not paired)"


def _filter(target: dict[str, Any]) -> str:
    parts = (f"{name}: {', '.join(target[name])}" for name in ("events", "merchants", "apps") if target[name])
    return "; ".join(parts) or ("all" if target["kind"] == "webhook" else "decisions and trouble")


@notifications.command(
    epilog=example("payagent notifications log", "payagent notifications log --target ops --state given_up")
)
@click.option("--target", metavar="NAME", help="Only what this target was sent.")
@click.option(
    "--state", type=click.Choice(("waiting", "delivered", "given_up")), help="Only deliveries in this state."
)
@page_options
@talks_to_daemon
def log(
    terminal: Terminal, connect: Connect, target: str | None, state: str | None, limit: int, cursor: str | None
) -> None:
    """List what the targets were sent, newest first."""
    answer = connect().get("/v1/notifications/deliveries", target=target, state=state, limit=limit, cursor=cursor)
    fields = (
        Field("at", lambda one: show_time(one["at"]), drop=2),
        Field("id", is_whole=True),
        Field("target"),
        Field("type", is_whole=True),
        Field("state", is_whole=True),
        Field("payment", drop=0),
        Field("problem", "last_problem", drop=1),
    )
    terminal.give_list(answer, "deliveries", fields)


@notifications.command(epilog=example("payagent notifications replay ntf_3f9ad5b1c0e2476d8a91be07"))
@click.argument("delivery_id", metavar="ID")
@talks_to_daemon
def replay(terminal: Terminal, connect: Connect, delivery_id: str) -> None:
    """Send a delivery again.

    It is retried for a day like a new one, under the same id. ID is what `payagent notifications log` shows.
    """
    answer = connect().post(path_of("/v1/notifications", "deliveries", delivery_id, "replay"), {})
    terminal.give(answer, lambda: terminal.line(f"{answer['id']} is sent to {answer['target']} again."))


@notifications.command(epilog=example("payagent notifications test ops"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def test(terminal: Terminal, connect: Connect, name: str) -> int:
    """Send a test to a target, whatever its filter. Exit code 4 if the target does not take it."""
    answer = connect().post(path_of("/v1/notifications", name, "test"), {})
    problem = answer["problem"]
    taken = f"{name} took the test."
    terminal.give(answer, lambda: terminal.line(taken if problem is None else f"Not taken: {problem}."))
    return 0 if problem is None else NOT_TAKEN


@notifications.command(epilog=example("payagent notifications pair phone"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def pair(terminal: Terminal, connect: Connect, name: str) -> None:
    """Print a code that pairs a Telegram chat.

    Send it to the bot within ten minutes. That chat is then told the target's notifications, and your presses on
    its buttons decide. An earlier code is void.
    """
    answer = connect().post(path_of("/v1/notifications", name, "pair"), {})

    def human() -> None:
        terminal.line(answer["code"])
        terminal.say(f"Send this code to the bot of {name} before {show_time(answer['expires_at'])} UTC.")

    terminal.give(answer, human)


@notifications.command(epilog=example("payagent notifications paired phone"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def paired(terminal: Terminal, connect: Connect, name: str) -> None:
    """List the chats that are paired with a Telegram target."""
    _show_chats(terminal, connect().get(path_of("/v1/notifications", name, "chats")))


@notifications.command(
    epilog=example("payagent notifications unpair phone 123456789"),
    context_settings={"ignore_unknown_options": True},
)
@click.argument("name", metavar="NAME")
@click.argument("chat", metavar="CHAT", type=int)
@talks_to_daemon
def unpair(terminal: Terminal, connect: Connect, name: str, chat: int) -> None:
    """Unpair a Telegram chat.

    It applies at once: the chat is told nothing more, and its buttons decide nothing. CHAT is what
    `payagent notifications paired` shows.
    """
    _show_chats(terminal, connect().post(path_of("/v1/notifications", name, "unpair"), {"chat": chat}))


def _show_chats(terminal: Terminal, answer: dict[str, Any]) -> None:
    paired_at = Field("paired (UTC)", lambda one: show_time(one["paired_at"]))
    terminal.give_list(answer, "chats", (Field("chat"), Field("user"), paired_at))
