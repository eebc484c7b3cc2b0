"""`payagent backup` and `payagent restore`: write ledger and keystore to one file, and restore them.

Never: asks for a passphrase.
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
    terminal.say("Not in the backup: the keystore's passphrase, the config file, operator.token.")


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
    chain: Json = {"checked": False, "problem": differences}
    if not isinstance(differences, str):
        chain = {"checked": True, "gone": _utxos(differences.gone), "unknown": _utxos(differences.unknown)}
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
    made_at = iso_time(manifest.made_at_ms)
    terminal.line(f"Restored the wallet {manifest.address} of {made_at} into {restored.data_dir}.")
    terminal.line(f"{counted(manifest.payments, 'payment')}, {manifest.open_payments} of them not settled.")
    if restored.app is not None:
        terminal.line(f"operator.token is new, for the new app {restored.app!r}. Earlier tokens stay valid.")
    for line in _comparison(restored.differences):
        terminal.line(line)
    wait = "for 37 minutes after the daemon has checked this machine's clock against the chain"
    if restored.signs_at_ms is not None:
        wait = f"before {iso_time(restored.signs_at_ms)}"
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
