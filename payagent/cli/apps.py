"""`payagent app`: manages the programs that may request payments, and their tokens.

Never: shows a token twice (the daemon stores only its hash).
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from payagent.cli.limits import limit_options
from payagent.cli.options import (
    ASSET_HELP,
    Connect,
    example,
    group_of,
    moment,
    path_of,
    read_amounts,
    read_asset,
    show_asset,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Terminal
from payagent.core.bounds import SCOPES
from payagent.core.money import LOVELACE

_SPAN = re.compile(r"([1-9][0-9]{0,4})([hd])", re.ASCII)
_HOURS = {"h": 1, "d": 24}

_EXPIRES = "When the token expires: 90d, 12h or a UTC time such as 2026-12-31T00:00:00Z. Default: never."


def _moment(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """Turn a duration from now into a time. Any other text is a time, which the daemon reads."""
    span = _SPAN.fullmatch(text or "")
    if span is None:
        return text
    return (datetime.now(UTC) + timedelta(hours=int(span[1]) * _HOURS[span[2]])).isoformat(timespec="seconds")


@group_of(
    "payagent app",
    'payagent app add bot --merchant t --per-payment "1 ADA" --per-day "5 ADA" --expires 90d',
    "payagent app revoke bot",
    alone="list",
)
def app() -> None:
    """Manage the apps that may pay. Without a subcommand: list them."""


@app.command("list", epilog=example("payagent app list --json"))
@talks_to_daemon
def list_(terminal: Terminal, connect: Connect) -> None:
    """List all apps, revoked ones too, oldest first."""
    fields = (
        Field("name", is_whole=True),
        Field("scopes", lambda row: " ".join(row["scopes"])),
        Field("merchants", lambda row: "any" if row["merchants"] is None else " ".join(row["merchants"]), drop=1),
        Field("assets", _assets, drop=0),
        Field("token", _token_state, is_whole=True),
        moment("expires (UTC)", "expires_at"),
    )
    terminal.give_list(connect().get("/v1/apps"), "apps", fields)


def _assets(row: dict[str, Any]) -> str:
    return "any" if row["assets"] is None else " ".join(map(show_asset, row["assets"]))


def _token_state(row: dict[str, Any]) -> str:
    if row["active"]:
        return "valid"
    if row["token_made_at"] is None:
        return "none"
    return "expired" if row["revoked_at"] is None else "revoked"


@app.command(
    epilog=example(
        'payagent app add bot --per-payment "1 ADA" --per-day "5 ADA" --per-month "60 ADA" --total "200 ADA"',
        "payagent app add bot --merchant t --expires 90d",
        "payagent app add auditor --scope read",
    )
)
@click.argument("name", metavar="NAME")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the app may do. Repeatable. Default: pay.",
)
@click.option(
    "--merchant", "merchants", multiple=True, metavar="NAME", help="Allow only this merchant. Repeatable."
)
@click.option(
    "--asset", "assets", multiple=True, metavar="ASSET", help=f"Allow only this asset: {ASSET_HELP} Repeatable."
)
@limit_options
@click.option("--expires", "expires_at", callback=_moment, metavar="TIME", help=_EXPIRES)
@talks_to_daemon
def add(
    terminal: Terminal,
    connect: Connect,
    name: str,
    scopes: tuple[str, ...],
    merchants: tuple[str, ...],
    assets: tuple[str, ...],
    expires_at: str | None,
    **amounts: str | None,
) -> None:
    """Add an app and show its token once.

    AMOUNTs are ADA, such as "5 ADA". If the only --asset is a token, they are amounts of it: "5 USDM" with its
    name in the config, or a number of its smallest units. The app's limits apply in addition to those of the
    wallet and of the merchants.

    A payment in a token also spends ADA: the min-ADA of each output, and the fee. The wallet's ADA limits cover
    it. `payagent limits set --app NAME` gives the app its own ADA limit.
    """
    client = connect()
    tokens = client.settings.limits.tokens
    names = [read_asset(asset, tokens) for asset in assets]
    _, limits = read_amounts(names[0] if len(names) == 1 else LOVELACE, amounts, tokens)
    body = {
        "scopes": list(scopes),
        "merchants": list(merchants),
        "assets": names,
        "limits": limits,
        "expires_at": expires_at,
    }
    answer = client.post("/v1/apps", {"name": name} | {key: value for key, value in body.items() if value})
    _show_token(terminal, answer)
    if names and LOVELACE not in names:
        fix = f'payagent limits set --app {name} --per-day "2 ADA"'
        terminal.say(f"Only the wallet's limits apply to the ADA that its payments spend. To limit it: {fix}")


@app.command(epilog=example("payagent app rotate-token bot", "payagent app rotate-token bot --expires 90d"))
@click.argument("name", metavar="NAME")
@click.option("--expires", "expires_at", callback=_moment, metavar="TIME", help=_EXPIRES)
@talks_to_daemon
def rotate_token(terminal: Terminal, connect: Connect, name: str, expires_at: str | None) -> None:
    """Issue a new token and revoke the old one.

    The token is shown once. A revoked app gets access again. If the app is the one whose token this command uses,
    the new token replaces the old one in the token file. If the command is interrupted, run it again.
    """
    path = path_of("/v1/apps", name, "rotate-token")
    body: dict[str, object] = {} if expires_at is None else {"expires_at": expires_at}
    client = connect()
    client.finish_renewal()
    apps = client.get("/v1/apps")
    (own,) = (row for row in apps["apps"] if row["id"] == apps["caller"])
    renew = client.renew_own_token if name in (own["name"], own["id"]) else client.post
    answer = renew(path, body)
    _show_token(terminal, answer)


@app.command(epilog=example("payagent app revoke bot"))
@click.argument("name", metavar="NAME")
@talks_to_daemon
def revoke(terminal: Terminal, connect: Connect, name: str) -> None:
    """Revoke an app's token at once. Its open payments continue."""
    answer = connect().post(path_of("/v1/apps", name, "revoke"), {})
    terminal.give(answer, lambda: terminal.line(f"{answer['name']} is revoked"))


def _show_token(terminal: Terminal, answer: dict[str, Any]) -> None:
    stored = f"written to {answer['token_file']}" if "token_file" in answer else None
    terminal.give(answer, lambda: terminal.pairs([("app", answer["name"]), ("token", stored or answer["token"])]))
    if stored is None and not terminal.is_json:
        terminal.say("Save the token now: payagent stores only its hash and cannot show it again.")
