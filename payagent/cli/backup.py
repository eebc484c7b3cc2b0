"""`payagent backup`, `restore` and `store`: the ledger in a file, back from it, and moved to PostgreSQL and back.

Never: asks for a passphrase; changes the ledger that it copies.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from payagent.cli.options import config_option, example, output_options, pass_terminal, show_amount
from payagent.cli.terminal import Json, Terminal
from payagent.core.money import counted
from payagent.core.timestamps import iso_time

if TYPE_CHECKING:
    from payagent.backup.archive import Manifest
    from payagent.backup.restore import Differences, Restored, UtxoTotals

_FILE = click.Path(path_type=Path)


@click.command(epilog=example('payagent backup "payagent-$(date +%Y%m%d-%H%M%S).tar"'))
@click.argument("file", type=_FILE)
@config_option
@output_options
@pass_terminal
def backup(terminal: Terminal, file: Path, config: Path | None) -> None:
    """Write ledger and keystore to one new FILE.

    The daemon may run and pay meanwhile. The ledger is checked as by `payagent ledger verify`. The keystore in
    FILE stays encrypted. FILE does not hold the passphrase, the config file and operator.token: save them too.
    """
    from payagent.backup.create import back_up
    from payagent.settings.loading import load_settings

    settings = load_settings(config, os.environ)
    path = file.absolute()
    with terminal.waiting() as tell:
        manifest = back_up(settings, path, time.time_ns() // 1_000_000, tell)
    data: Json = {"file": str(path), **_facts(manifest)}
    terminal.give_pairs(data, {"made_at": "made at", "open_payments": "not settled"})
    terminal.say(
        "Not in the backup: the keystore's passphrase, the config file, operator.token; keys and PIN of an HSM."
    )


@click.command(epilog=example("payagent restore payagent-20261101-120000.tar --config ~/payagent/config.toml"))
@click.argument("file", type=_FILE)
@config_option
@output_options
@pass_terminal
def restore(terminal: Terminal, file: Path, config: Path | None) -> None:
    """Restore a wallet from a backup.

    The config's data_dir must not hold a wallet. First stop the original daemon for good. The ledger is checked
    and compared with the chain. It does not know what was signed after the backup, so the daemon signs nothing for
    37 minutes. By then all of that is on the chain or expired.
    """
    import asyncio

    from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
    from payagent.backup.restore import restore as put_back
    from payagent.settings.loading import load_settings

    settings = load_settings(config, os.environ)
    terminal.tokens = lambda: settings.limits.tokens
    ports = Ports(SystemClock(), SystemRandomness())
    with terminal.waiting() as tell:
        restored = asyncio.run(put_back(settings, file, ports, tell))
    terminal.give(_as_json(restored), lambda: _show(terminal, restored))


def _facts(manifest: "Manifest") -> Json:
    return {
        "network": manifest.network,
        "address": manifest.address,
        "made_at": iso_time(manifest.made_at_ms),
        "head": manifest.head,
        "payments": manifest.payments,
        "open_payments": manifest.open_payments,
    }


def _as_json(restored: "Restored") -> Json:
    differences = restored.differences
    chain: Json = (
        {"checked": False, "problem": differences}
        if isinstance(differences, str)
        else {"checked": True, "gone": _utxos(differences.gone), "unknown": _utxos(differences.unknown)}
    )
    return {
        "data_dir": str(restored.data_dir),
        **_facts(restored.manifest),
        "restored_at": iso_time(restored.restored_at_ms),
        "signs_at": None if restored.signs_at_ms is None else iso_time(restored.signs_at_ms),
        "new_app": restored.app,
        "chain": chain,
    }


def _utxos(utxos: "UtxoTotals") -> Json:
    return {"utxos": utxos.count, "units": {asset: str(units) for asset, units in utxos.units.items()}}


def _show(terminal: Terminal, restored: "Restored") -> None:
    manifest = restored.manifest
    terminal.line(
        f"Restored the wallet {manifest.address} of {iso_time(manifest.made_at_ms)} into {restored.data_dir}.\n"
        f"{counted(manifest.payments, 'payment')}, {manifest.open_payments} of them not settled."
    )
    if restored.app is not None:
        terminal.line(f"operator.token is new, for the new app {restored.app!r}. Earlier tokens stay valid.")
    for line in _comparison(restored.differences):
        terminal.line(line)
    wait = (
        "for 37 minutes after the daemon has checked this machine's clock against the chain"
        if restored.signs_at_ms is None
        else f"before {iso_time(restored.signs_at_ms)}"
    )
    terminal.line(
        f"The daemon signs nothing {wait}. Meanwhile find out what was bought since the backup: an app that "
        "requests it again pays again."
    )


def _comparison(differences: "Differences | str") -> Iterator[str]:
    if isinstance(differences, str):
        yield f"Not compared with the chain: {differences}. The daemon compares when it starts."
        return
    gone, unknown = differences.gone, differences.unknown
    if gone.count:
        yield (
            f"{gone.count} UTxOs of the ledger are not on the chain: {_amounts(gone)}. They "
            "were spent after the backup, by payments that the ledger does not know. They are not spent again."
        )
    if unknown.count:
        yield (
            f"{unknown.count} UTxOs on the chain are not in the ledger: {_amounts(unknown)}. They are "
            "change of such payments, or new deposits. The daemon records them as deposits."
        )
    if not gone.count and not unknown.count:
        yield "The chain and the ledger have the same UTxOs."


def _amounts(utxos: "UtxoTotals") -> str:
    """Amounts for people, a token with its name."""
    return ", ".join(show_amount(asset, units) for asset, units in utxos.units.items())


@click.group(
    epilog=example("payagent store copy --to 'postgresql://owner@db.example/payagent?sslmode=verify-full'")
)
def store() -> None:
    """Move the ledger between a file and PostgreSQL."""


@store.command(
    epilog=example(
        "payagent store copy --to 'postgresql://owner@db.example/payagent?sslmode=verify-full'",
        "payagent store copy --to /var/lib/payagent/ledger.db",
    )
)
@click.option("--to", required=True, metavar="URL|FILE", help="Empty database, or new file.")
@config_option
@output_options
@pass_terminal
def copy(terminal: Terminal, to: str, config: Path | None) -> None:
    """Copy the ledger to PostgreSQL, or from there to a file.

    Stop every daemon of the wallet first. The ledger is checked as by `payagent ledger verify`. Apps, tokens and
    seals stay valid. Each host keeps its signer.json. The old ledger stays as it is. Move it away: a daemon that
    starts on it may pay twice.

    The URL's role must own the tables, or be allowed to make them. Its password is in the file of
    store.password_file, or where PostgreSQL's own programs look: PGPASSFILE or ~/.pgpass.
    """
    from payagent.backup.move import move_to_database, move_to_file
    from payagent.settings.loading import load_settings, read_store_url

    settings = load_settings(config, os.environ)
    is_url = to.startswith("postgresql://")
    if is_url != (settings.store.url is None):
        place = "PostgreSQL (store.url), so give a new file" if is_url else "a file, so give a postgresql:// URL"
        raise click.BadParameter(f"the ledger of this config is on {place}", param_hint="--to")
    with terminal.waiting() as tell:
        if is_url:
            contents, head = move_to_database(settings, read_store_url(to), tell)
        else:
            contents, head = move_to_file(settings, Path(to).absolute(), tell)
    data: Json = {
        "to": to,
        "head": str(head),
        "payments": contents.payments,
        "open_payments": contents.open_payments,
    }
    terminal.give_pairs(data, {"open_payments": "not settled"})
    terminal.say("The old ledger is unchanged. Move it away before you start a daemon on the copy.")


@store.command(
    epilog=example(
        "payagent store migrate --daemon-role payagent \\",
        "  --url 'postgresql://owner@db.example/payagent?sslmode=verify-full'",
    )
)
@click.option("--url", required=True, metavar="URL", help="The database, with the role that shall own the tables.")
@click.option("--daemon-role", metavar="NAME", help="Let this role do what a daemon does, and no more.")
@output_options
@pass_terminal
def migrate(terminal: Terminal, url: str, daemon_role: str | None) -> None:
    """Make the tables in a database, or update them.

    Run it as a role that the daemons do not use: an owner can switch off the triggers that guard the ledger. Its
    password is where PostgreSQL's own programs look: PGPASSFILE or ~/.pgpass.

    Daemons may run meanwhile. While one is of a payagent that does not know a change, nothing is changed.
    """
    from payagent.backup.move import make_tables
    from payagent.settings.loading import read_store_url

    made = make_tables(read_store_url(url), daemon_role)
    said = "made the tables, or brought them up to date" if made else "the tables are up to date"
    terminal.give({"made": made}, lambda: terminal.line(said))
