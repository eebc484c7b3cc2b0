"""`payagent wallet`, `pause` and `resume`: shows the wallet, sends and splits funds, stops and allows signing.

Never: builds a transaction (the daemon does); shows a passphrase.
"""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from payagent.cli.options import (
    AMOUNT_HELP,
    ASSET,
    LOVELACE_AND_TOKENS,
    Connect,
    amount,
    ask_passphrase,
    asset_option,
    config_option,
    example,
    group_of,
    output_options,
    pass_terminal,
    read_amounts,
    say_unsigned,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import in_words
from payagent.cli.terminal import Field, ProblemError, Terminal
from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.money import LOVELACE, Tokens, parse_ada
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

NOTHING_TO_SEND = ("not_enough_funds", "asset_not_allowed")
"""What an account refuses that is empty, or has only tokens that may not leave."""

key_option = click.option("--key", metavar="TEXT", help="Idempotency key: the same key is the same transfer.")


@group_of("payagent wallet", "payagent wallet address", alone="show")
def wallet() -> None:
    """Show and manage the wallet. Without a subcommand: show balances."""


@wallet.command(epilog=example("payagent wallet show --json"))
@talks_to_daemon
def show(terminal: Terminal, connect: Connect) -> None:
    """Show balances: available, held and total."""
    answer = connect().get("/v1/wallet")
    terminal.give(answer, lambda: _show_wallet(terminal, answer))


def _show_wallet(terminal: Terminal, answer: dict[str, Any]) -> None:
    terminal.pairs([("network", answer["network"]), ("address", answer["address"])])
    if answer["assets"] is None:
        terminal.say("To see balances, use a token with the scope read or operate.")
    else:
        terminal.line()
        terminal.table(answer["assets"], (ASSET, amount("available"), amount("held"), amount("total")))
    if accounts := answer.get("accounts"):
        terminal.line()
        holder = Field("held by", lambda row: row["holder"] or "nobody")
        terminal.table(accounts, (Field("account"), holder, Field("address")))
    if (problem := answer["chain"]["problem"]) is not None:
        terminal.say(f"Nothing can be spent now: {problem}")


@wallet.command(epilog=example("payagent wallet address --human", "payagent wallet address --qr"))
@click.option("--qr", is_flag=True, help="Draw the address as a QR code too, for a phone's wallet.")
@talks_to_daemon
def address(terminal: Terminal, connect: Connect, qr: bool) -> None:
    """Show the wallet's address, to send money to."""
    answer = connect().get("/v1/wallet")

    def human() -> None:
        terminal.line(answer["address"])
        if qr:
            terminal.write(_qr(answer["address"]))

    terminal.give({"network": answer["network"], "address": answer["address"]}, human)


def _qr(text: str) -> str:
    """A QR code in characters of half a square each."""
    import segno

    drawn = io.StringIO()
    segno.make(text, error="m", micro=False).terminal(drawn, compact=True)
    return drawn.getvalue()


@wallet.command(epilog=example("payagent wallet utxos"))
@talks_to_daemon
def utxos(terminal: Terminal, connect: Connect) -> None:
    """List the UTxOs, and what each is reserved for."""
    fields = (
        Field("utxo", "ref"),
        *LOVELACE_AND_TOKENS,
        Field("state", is_whole=True),
        Field("reserved for", "reserved_for", is_whole=True),
    )
    terminal.give_list(connect().get("/v1/wallet/utxos"), "utxos", fields)


@wallet.command(epilog=example('payagent wallet split --count 20 --each "10 ADA"'))
@click.option("--count", type=click.IntRange(1, SPLIT_COUNT_MAX), required=True, help="Number of UTxOs to make.")
@key_option
@click.option("--each", required=True, metavar="AMOUNT", help='Amount of each, such as "10 ADA".')
@talks_to_daemon
def split(terminal: Terminal, connect: Connect, count: int, each: str, key: str | None) -> None:
    """Split funds into equal UTxOs, one per open payment."""
    body = {"count": count, "lovelace": str(parse_ada(each))}
    _show_transfer(terminal, connect().post("/v1/wallet/split", body, key))


@wallet.command(
    epilog=example(
        'payagent wallet send addr1q... --amount "25 ADA"',
        "payagent wallet send addr1q... --asset 0123...cdef.7455534454 --amount 1000000 --yes",
        "payagent wallet send addr1q... --all --yes",
    )
)
@click.argument("to", metavar="ADDRESS")
@click.option("--amount", metavar="AMOUNT", help=AMOUNT_HELP)
@asset_option
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Send everything that is available and may leave. In a fleet: one transfer for each account.",
)
@click.option("--yes", is_flag=True, help="Send without asking. Required with --all, and in scripts.")
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
    """Send funds to an address.

    Only limits.per_transaction and limits.signed_per_day apply. On a terminal it asks first, unless --yes is
    given.

    Without --key each run is a new transfer. If an error leaves open whether the transfer was made, check
    `payagent payments list` before you run it again.

    In a fleet one account sends an amount. --all sends from one account after the other, in a payment for each.
    An account with nothing to send is left out.
    """
    if everything == (amount is not None) or (everything and asset is not None):
        raise click.UsageError("use --amount AMOUNT (for a token with --asset), or --all")
    client = connect()
    body = _transfer(to, amount, asset, client.settings.limits.tokens)
    if not yes:
        if everything or not terminal.can_ask:
            why = "--all empties the wallet" if everything else "there is no terminal to ask"
            raise click.UsageError(f"{why}: nothing was sent; add --yes to send")
        click.confirm(f"Send {amount}{'' if asset is None else ' of ' + asset} to {to}?", abort=True, err=True)
    accounts = client.get("/v1/wallet").get("accounts") if everything else None
    if accounts is None:
        _show_transfer(terminal, client.post("/v1/wallet/send", body, key))
    else:
        _send_accounts(terminal, client, body, [one["account"] for one in accounts], key)


def _send_accounts(
    terminal: Terminal, client: "OperatorClient", body: Mapping[str, object], accounts: list[int], key: str | None
) -> None:
    """Send all of each account. Refused only if none has anything to send, or for another reason."""
    empty = []
    for account in accounts:
        own_key = None if key is None else f"{key}/{account}"
        try:
            payment = client.post("/v1/wallet/send", {**body, "account": account}, own_key)
        except ProblemError as problem:
            if problem.problem.get("code") not in NOTHING_TO_SEND:
                raise
            empty.append(problem)
            terminal.say(f"Account {account}: {problem.problem.get('detail')}.")
        else:
            _show_transfer(terminal, payment)
    if len(empty) == len(accounts):
        raise empty[0]


@wallet.command(epilog=example("payagent wallet unfreeze", "payagent wallet unfreeze --reviewed 0123...cdef"))
@click.option("--reviewed", multiple=True, metavar="TX", help="A transaction that you reviewed. Repeatable.")
@talks_to_daemon
def unfreeze(terminal: Terminal, connect: Connect, reviewed: tuple[str, ...]) -> None:
    """Allow signing again after an external spend.

    First find out who else has the wallet's recovery words, and stop them. The command shows the transactions that
    froze the wallet. It is refused if others have appeared meanwhile. In scripts, name the ones that you reviewed
    with --reviewed.
    """
    client = connect()
    frozen_by = client.get("/v1/wallet")["frozen_by"] or []
    for tx in frozen_by:
        terminal.say(f"Transaction {tx} spent UTxOs of this wallet.")
    if terminal.can_ask:
        click.confirm("Is payagent the only program that signs with this wallet now?", abort=True, err=True)
    answer = client.post("/v1/wallet/unfreeze", {"seen": list(reviewed or frozen_by)})
    reasons = client.unsigned_because()
    text = f"Unfrozen{'' if reasons else ': payagent signs again'}. It was frozen by {', '.join(answer['txs'])}."
    terminal.give(answer, lambda: terminal.line(text if answer["txs"] else "Nothing was frozen."))
    say_unsigned(terminal, reasons)


@wallet.command(epilog=example("payagent wallet change-passphrase --new-passphrase-file ~/new-passphrase"))
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File (0600) with the new passphrase. Default: ask on a terminal.",
)
@config_option
@output_options
@pass_terminal
def change_passphrase(terminal: Terminal, new_passphrase_file: Path | None, config: Path | None) -> None:
    """Change the keystore's passphrase.

    Stop the daemon first. The recovery words and the address stay. The old passphrase is read from where the
    daemon reads it. Older backups still open with the old passphrase: anyone who has both has the wallet.
    """
    from payagent.init import change_passphrase
    from payagent.secret_file import read_secret_file
    from payagent.settings.loading import load_settings
    from payagent.settings.paths import KEYSTORE_FILE, passphrase_file

    settings = load_settings(config, os.environ)
    if new_passphrase_file is None and not terminal.can_ask:
        raise click.UsageError("missing --new-passphrase-file; on a terminal payagent asks for it")
    source = passphrase_file(settings, os.environ, terminal.can_ask)
    old = (
        str(click.prompt("Old passphrase of the keystore", hide_input=True, err=True))
        if source is None
        else read_secret_file(source.path, private=source.private)
    )
    new = ask_passphrase() if new_passphrase_file is None else read_secret_file(new_passphrase_file)
    address = change_passphrase(settings, old, new).address
    keystore = str(settings.data_dir / KEYSTORE_FILE)
    terminal.give_pairs({"keystore": keystore, "address": address})
    if source is not None:
        terminal.say(f"The daemon reads {source.path}: write the new passphrase there before you start it.")


def _transfer(to: str, amount: str | None, asset: str | None, tokens: Tokens) -> Mapping[str, object]:
    """The order to send an amount; without one, to send all."""
    if amount is None:
        return {"address": to, "all": True}
    name, amounts = read_amounts(asset, {"units": amount}, tokens)
    if amounts["units"] == "0":
        raise Refused("amount_invalid", "the amount is zero")
    return {"address": to, "asset": name} | amounts


def _show_transfer(terminal: Terminal, payment: dict[str, Any]) -> None:
    """Show a transfer that is stored and will be submitted."""
    pairs = [
        ("payment", payment["id"]),
        ("state", in_words(payment["state"])),
        ("transaction", payment["tx_hash"] or ""),
        ("fee", show_units(LOVELACE, payment["fee"])),
    ]
    terminal.give(payment, lambda: terminal.pairs(pairs))
    if "left_behind" in payment:
        terminal.say(f"Left behind: {payment['left_behind']['detail']}.")
    terminal.say(f"Follow it with `payagent payments show {payment['id']}`.")


@click.command(epilog=example('payagent pause --reason "the token of bot leaked"'))
@click.option("--reason", default="", metavar="TEXT", help="Reason, recorded and shown in refusals.")
@talks_to_daemon
def pause(terminal: Terminal, connect: Connect, reason: str) -> None:
    """Stop all signing until `payagent resume`.

    When the command returns, payagent signs no payment, replacement, cancel or transfer. What was signed before is
    still submitted and may still get into a block. A restart does not end the pause. If payagent is already
    paused, the earlier pause and its reason stay.
    """
    answer = connect().post("/v1/pause", {"reason": reason} if reason else {})
    why = f": {answer['reason']}" if answer["reason"] else ""
    terminal.give(answer, lambda: terminal.line(f"Paused since {answer['since']} by {answer['by']}{why}"))
    if answer.get("already"):
        note = "; the new reason is only in the daemon's log" if reason else ""
        terminal.say(f"It was already paused by {answer['by']}, and that pause stays{note}.")


@click.command(epilog=example("payagent resume"))
@talks_to_daemon
def resume(terminal: Terminal, connect: Connect) -> None:
    """Allow signing again. Payments that are held and have time left are signed now."""
    client = connect()
    answer = client.post("/v1/resume", {})
    reasons = client.unsigned_because()
    terminal.give(answer, lambda: terminal.line("The pause is over." if reasons else "payagent signs again."))
    say_unsigned(terminal, reasons)
