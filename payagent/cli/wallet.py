"""`payagent wallet`: shows the wallet, sends and splits funds, and changes the passphrase.

May import: click, core, cli; payagent.init, secret_file and settings inside functions.
Never: builds a transaction (the daemon does); shows a passphrase.
"""

import os
from pathlib import Path
from typing import Any

import click

from payagent.cli.options import (
    Connect,
    ask_passphrase,
    config_option,
    example,
    group_of,
    output_options,
    pass_terminal,
    show_asset,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import in_words
from payagent.cli.terminal import Terminal
from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.money import LOVELACE, parse_ada, parse_asset, parse_units
from payagent.core.problems import Refused, own_order

key_option = click.option(
    "--key", metavar="TEXT", help="Names the order: given again, it is the same transfer, and none is made anew."
)


@group_of("payagent wallet", "payagent wallet address", alone="show")
def wallet() -> None:
    """Show the wallet, split it, send from it, change its passphrase. Alone: the balances."""


@wallet.command(epilog=example("payagent wallet show --json"))
@talks_to_daemon
def show(terminal: Terminal, connect: Connect) -> None:
    """Balances per asset: available, held for payments, and their sum."""
    with connect() as link:
        answer = link.get("/v1/wallet")
    terminal.give(answer, lambda: _show_wallet(terminal, answer))


def _show_wallet(terminal: Terminal, answer: dict[str, Any]) -> None:
    terminal.pairs([("network", answer["network"]), ("address", answer["address"])])
    if answer["assets"] is None:
        terminal.say("Balances are shown to a token for read or operate.")
    else:
        terminal.line()
        _show_balances(terminal, answer["assets"])
    if (problem := answer["chain"]["problem"]) is not None:
        terminal.say(f"None of it can be spent now: {problem}")


def _show_balances(terminal: Terminal, assets: list[dict[str, str]]) -> None:
    parts = ("available", "held", "total")
    rows = [(show_asset(row["asset"]), *(show_units(row["asset"], row[part]) for part in parts)) for row in assets]
    terminal.table(("asset", *parts), rows, right=parts)


@wallet.command(epilog=example("payagent wallet address --human"))
@talks_to_daemon
def address(terminal: Terminal, connect: Connect) -> None:
    """The wallet's one address, to send money to."""
    with connect() as link:
        answer = link.get("/v1/wallet")
    terminal.give(
        {"network": answer["network"], "address": answer["address"]}, lambda: terminal.line(answer["address"])
    )


@wallet.command(epilog=example("payagent wallet utxos"))
@talks_to_daemon
def utxos(terminal: Terminal, connect: Connect) -> None:
    """The wallet's coins, one by one, and what each is reserved for."""
    with connect() as link:
        answer = link.get("/v1/wallet/utxos")

    def human() -> None:
        rows = [
            (
                row["ref"],
                show_units(LOVELACE, row["lovelace"]),
                str(len(row["assets"])),
                row["state"],
                row["reserved_for"] or "",
            )
            for row in answer["utxos"]
        ]
        terminal.table(("coin", "ADA", "tokens", "state", "reserved for"), rows, right=("ADA", "tokens"))

    terminal.give(answer, human)


@wallet.command(epilog=example('payagent wallet split --count 20 --each "10 ADA"'))
@click.option("--count", type=click.IntRange(1, SPLIT_COUNT_MAX), required=True, help="How many coins to make.")
@key_option
@click.option("--each", required=True, metavar="AMOUNT", help='What each holds, such as "10 ADA".')
@talks_to_daemon
def split(terminal: Terminal, connect: Connect, count: int, each: str, key: str | None) -> None:
    """Make so many coins of equal size, so that as many payments can be on their way at once."""
    body = {"count": count, "lovelace": str(parse_ada(each))}
    with connect() as link:
        _ordered(terminal, link.post("/v1/wallet/split", body, key))


@wallet.command(
    epilog=example(
        'payagent wallet send addr1q... --amount "25 ADA"',
        "payagent wallet send addr1q... --asset 0123...cdef.7455534454 --amount 1000000 --yes",
        "payagent wallet send addr1q... --all --yes",
    )
)
@click.argument("to", metavar="ADDRESS")
@click.option("--amount", metavar="AMOUNT", help='"25 ADA", or the units of a token as digits.')
@click.option("--asset", metavar="ASSET", help="Policy id and asset name in hex. Default: ADA.")
@click.option("--all", "everything", is_flag=True, help="Everything that is free and may leave.")
@click.option("--yes", is_flag=True, help="Send without asking. Required with --all, and without a terminal.")
@key_option
@talks_to_daemon
def send(
    terminal: Terminal,
    connect: Connect,
    to: str,
    amount: str | None,
    asset: str | None,
    everything: bool,
    yes: bool,
    key: str | None,
) -> None:
    """Send out of the wallet, by your own order.

    Of the limits only limits.per_transaction and limits.signed_per_day apply. A terminal asks once more, unless
    --yes is given.

    Without --key each call is a transfer of its own: after an error that leaves it open whether the order arrived,
    look at `payagent payments list` first.
    """
    body = _transfer(to, amount, asset, everything)
    if not yes:
        if everything or not terminal.can_ask:
            what = "--all empties the wallet" if everything else "there is no terminal to ask"
            raise click.UsageError(f"{what}: nothing was sent; add --yes if it is to be sent")
        click.confirm(f"Send {amount}{'' if asset is None else ' of ' + asset} to {to}?", abort=True, err=True)
    with connect() as link:
        _ordered(terminal, link.post("/v1/wallet/send", body, key))


@wallet.command("thaw", epilog=example("payagent wallet thaw", "payagent wallet thaw --seen 0123...cdef"))
@click.option("--seen", multiple=True, metavar="TX", help="A transaction that you looked at. May be repeated.")
@talks_to_daemon
def unfreeze(terminal: Terminal, connect: Connect, seen: tuple[str, ...]) -> None:
    """Sign again after coins were spent elsewhere. First find out who has the wallet's words, and stop it.

    The transactions that spent them are shown. It is refused where there are others than those, or than the ones
    that --seen names: they may have come while you looked.
    """
    with connect() as link:
        shown = link.get("/v1/wallet")["frozen_by"] or []
    for tx in shown:
        terminal.say(f"Coins of this wallet were spent by {tx}")
    if terminal.can_ask:
        click.confirm("Is payagent the only one that signs with this wallet now?", abort=True, err=True)
    with connect() as link:
        answer = link.post("/v1/wallet/thaw", {"seen": list(seen or shown)})
        still = link.unsigned_because()
    text = f"Thawed{'' if still else ': payagent signs again'}. Frozen by {', '.join(answer['txs'])}."
    terminal.give(answer, lambda: terminal.line(text if answer["txs"] else "Nothing was frozen."))
    for reason in still:
        terminal.say(f"Still not signing: {reason}")


@wallet.command(epilog=example("payagent wallet passphrase --new-passphrase-file ~/new-passphrase"))
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A 0600 file with the new passphrase. Without it a terminal is asked.",
)
@config_option
@output_options
@pass_terminal
def passphrase(terminal: Terminal, new_passphrase_file: Path | None, config: Path | None) -> None:
    """Give the keystore another passphrase, while the daemon is stopped.

    The words and the address stay. Backups that were made before open with the old passphrase for ever: whoever
    has one, and knows it, has the wallet. The old one comes from where the daemon takes it.
    """
    from payagent.init import change_passphrase
    from payagent.secret_file import read_secret_file
    from payagent.settings.loading import load_settings
    from payagent.settings.paths import KEYSTORE_FILE, passphrase_file

    settings = load_settings(config, os.environ)
    if new_passphrase_file is None and not terminal.can_ask:
        raise click.UsageError("missing --new-passphrase-file; on a terminal it would be asked for")
    source = passphrase_file(settings, os.environ, terminal.can_ask)
    old = (
        str(click.prompt("Passphrase of the keystore", hide_input=True, err=True))
        if source is None
        else read_secret_file(source.path, private=source.private)
    )
    new = ask_passphrase() if new_passphrase_file is None else read_secret_file(new_passphrase_file)
    address = change_passphrase(settings, old, new).address
    keystore = str(settings.data_dir / KEYSTORE_FILE)
    terminal.give(
        {"keystore": keystore, "address": address},
        lambda: terminal.pairs([("keystore", keystore), ("address", address)]),
    )
    if source is not None:
        terminal.say(f"The daemon reads {source.path}: put the new passphrase there before you start it.")


def _transfer(to: str, amount: str | None, asset: str | None, everything: bool) -> dict[str, object]:
    if everything == (amount is not None) or (everything and asset is not None):
        raise click.UsageError("say how much: --amount AMOUNT (with --asset for a token), or --all")
    if everything:
        return {"address": to, "all": True}
    with own_order():
        name = LOVELACE if asset is None else parse_asset(asset)
        units = parse_ada(amount) if name == LOVELACE else parse_units(amount, "--amount")
    if units == 0:
        raise Refused("amount_invalid", "the amount is zero")
    return {"address": to, "asset": name, "units": str(units)}


def _ordered(terminal: Terminal, payment: dict[str, Any]) -> None:
    """A transfer is durable and on its way: show it."""

    def human() -> None:
        terminal.pairs(
            [
                ("payment", payment["id"]),
                ("state", in_words(payment["state"])),
                ("transaction", payment["tx_hash"] or ""),
                ("fee", show_units(LOVELACE, payment["fee"])),
            ]
        )

    terminal.give(payment, human)
    if "left_behind" in payment:
        terminal.say(f"Left behind: {payment['left_behind']['detail']}.")
    terminal.say(f"On its way: `payagent payments show {payment['id']}`.")
