"""`payagent backup` and `payagent restore`: write ledger and keystore to one file, and restore them.

May import: click, core, cli; payagent.backup, settings and agent.base inside functions.
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
from payagent.core.timestamps import iso_time

if TYPE_CHECKING:
    from payagent.backup.archive import Manifest
    from payagent.backup.compare_chain import Differences, UtxoTotals
    from payagent.backup.restore import Restored

_FILE = click.Path(path_type=Path)


@click.command(epilog=example('payagent backup "payagent-$(date +%Y%m%d-%H%M%S).tar"'))
@click.argument("file", type=_FILE)
@config_option
@output_options
@pass_terminal
def backup(terminal: Terminal, file: Path, config: Path | None) -> None:
    """Write ledger and keystore into one new FILE.

    The daemon may run and pay meanwhile. The books are checked, as `payagent ledger verify` does. The keystore in
    FILE is encrypted; its passphrase, the config file and operator.token are not in FILE: keep them elsewhere.
    """
    from payagent.backup.create import back_up
    from payagent.settings.loading import load_settings

    settings = load_settings(config, os.environ)
    path = file.absolute()
    with terminal.waiting() as tell:
        made = back_up(settings, path, time.time_ns() // 1_000_000, tell)
    data: Json = {"file": str(path), **_facts(made)}
    called = {"made_at": "made at", "open_payments": "not final yet"}
    terminal.give(data, lambda: terminal.pairs([(called.get(name, name), str(data[name])) for name in data]))
    terminal.say("Not in it: the keystore's passphrase, the config file, operator.token.")


@click.command(epilog=example("payagent restore payagent-20261101-120000.tar --config ~/payagent/config.toml"))
@click.argument("file", type=_FILE)
@config_option
@output_options
@pass_terminal
def restore(terminal: Terminal, file: Path, config: Path | None) -> None:
    """Make a wallet of a backup again, in the config's data_dir, which must hold none.

    The file and its books are checked, and its coins compared with the chain. First stop the payagent that the
    backup was made of, for good. What it signed after the backup is unknown to the restored ledger: the daemon
    signs nothing for 37 minutes, until all of that has landed or run out.
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


def _facts(made: "Manifest") -> Json:
    return {
        "network": made.network,
        "address": made.address,
        "made_at": iso_time(made.made_at_ms),
        "head": made.head,
        "payments": made.payments,
        "open_payments": made.open_payments,
    }


def _as_json(restored: "Restored") -> Json:
    found = restored.differences
    chain: Json = {"checked": False, "problem": found}
    if not isinstance(found, str):
        chain = {"checked": True, "gone": _utxos(found.gone), "unknown": _utxos(found.unknown)}
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
    made = restored.manifest
    terminal.line(f"{restored.data_dir} is the wallet of {iso_time(made.made_at_ms)} again: {made.address}")
    terminal.line(f"{made.payments} payments, {made.open_payments} of them not final yet.")
    if restored.app is not None:
        terminal.line(f"operator.token is new, of the app {restored.app!r}. Earlier tokens are good as before.")
    for line in _compared(restored.differences):
        terminal.line(line)
    quiet = "for 37 minutes after the daemon has seen that this machine's clock agrees with the chain's"
    if restored.signs_at_ms is not None:
        quiet = f"before {iso_time(restored.signs_at_ms)}"
    terminal.line(
        f"Nothing is signed {quiet}. Find out until then what was bought since the backup: who asks for it again "
        "would pay again."
    )


def _compared(found: "Differences | str") -> Iterator[str]:
    if isinstance(found, str):
        yield f"It was not compared with the chain; the daemon does that when it starts. {found}"
        return
    if found.gone.count:
        yield (
            f"{found.gone.count} coins of the ledger are not on the chain any more: {_said(found.gone)}. They "
            "were spent after the backup, by payments that are not in the books, and are not spent again."
        )
    if found.unknown.count:
        yield (
            f"{found.unknown.count} coins on the chain are not in the ledger: {_said(found.unknown)}. They are "
            "change of such payments, or came in since; the daemon books them as deposits."
        )
    if not found.gone.count and not found.unknown.count:
        yield "The chain has the coins that the ledger has: none was spent since, and none has come."


def _said(utxos: "UtxoTotals") -> str:
    """Amounts for people, a token with its name."""
    return ", ".join(show_amount(asset, units) for asset, units in utxos.units.items())
