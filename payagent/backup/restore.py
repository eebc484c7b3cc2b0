"""Restores a wallet from a backup into a data folder that has none.

The restored ledger does not know what was signed after the backup. The agent signs nothing until all of that has
landed or expired. For this, the restore is recorded in the ledger before a daemon can start on it. If no provider
could be asked, the local clock is unconfirmed, and the wait begins when the agent has confirmed it.

Never: starts anything; takes a missing answer of the chain for an answer.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.base.ports import Ports
from payagent.agent.chain_sync.recovery import note_behind
from payagent.api.http.tokens import hash_token, new_token
from payagent.audit.finding import Head
from payagent.backup.archive import KEYSTORE, LEDGER, Manifest, invalid, unpack
from payagent.backup.staging import put, workshop, writing
from payagent.backup.verify import Tell, checked
from payagent.chain.open import opened, require_found
from payagent.chain.provider import ChainUtxo
from payagent.core.aggregate import UtxoRow
from payagent.core.bounds import SCOPES
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.doctor.chain import usable_tip
from payagent.init import (
    APP_NAME,
    make_private_folder,
    require_none,
    undone_on_failure,
    write_new,
)
from payagent.secret_file import read_secret_file, sync_folder
from payagent.settings.config_file import TOKEN_FILE
from payagent.settings.schema import ProviderSettings, Settings
from payagent.store.audit.copy import Contents
from payagent.store.db.opening import DatabaseError, bring_up_to_date, open_read_only
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import apps, attempts_and_utxos, writes
from payagent.wallet.keystore import Header


@dataclass(frozen=True, slots=True)
class UtxoTotals:
    """A number of UTxOs, and the units they hold per asset."""

    count: int
    units: dict[str, int]


@dataclass(frozen=True, slots=True)
class Differences:
    """`gone`: UTxOs the ledger could spend and the chain lacks. `unknown`: UTxOs only the chain has."""

    gone: UtxoTotals
    unknown: UtxoTotals


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore.

    `differences` is a reason where no provider could be asked. `app` is the name of a new app with a new token, or
    None.
    """

    data_dir: Path
    manifest: Manifest
    restored_at_ms: int
    differences: Differences | str
    app: str | None

    @property
    def signs_at_ms(self) -> int | None:
        """When signing may begin. None if the wait starts only when the daemon has confirmed its clock."""
        return None if isinstance(self.differences, str) else self.restored_at_ms + QUIET_MS


async def restore(settings: Settings, source: Path, ports: Ports, tell: Tell = lambda _text: None) -> Restored:
    """Put everything in place, or nothing. The ledger comes last, because no daemon starts without it.

    Raises `file_invalid`, `write_failed`, `clock_skew`, `config_invalid` for a backup of another wallet
    than the config's, `already_exists` or `ledger_newer`.
    """
    data_dir = settings.data_dir
    if settings.store.url is not None:
        raise Refused(
            "config_invalid",
            "a backup is restored into a file: restore it without store.url, then `payagent store copy --to URL`",
        )
    with undone_on_failure() as undo:
        make_private_folder(data_dir, undo)
        require_none(data_dir)
        with writing(), workshop(data_dir / ".restoring") as folder:
            tell("unpacking the backup")
            manifest = unpack(source, folder)
            _bring_up_to_date(folder)
            header, contents, head = checked(folder, tell)
            _require_same(manifest, header, contents, head, settings)
            tell("asking the chain")
            listed = await _ask(settings, header.address, ports.clock.now_ms)
            differences = listed if isinstance(listed, str) else _differences(folder, listed)
            restored_at_ms = ports.clock.now_ms()
            app = (
                None if _has_token(data_dir, folder, restored_at_ms) else f"{APP_NAME} {iso_time(restored_at_ms)}"
            )
            _record(folder, manifest, restored_at_ms, app, ports, is_clock_right=not isinstance(listed, str))
            for name in (KEYSTORE, *([TOKEN_FILE] if app else []), LEDGER):
                put(folder / name, data_dir / name)
                undo.append((data_dir / name).unlink)
            sync_folder(data_dir)
    return Restored(data_dir, manifest, restored_at_ms, differences, app)


def _bring_up_to_date(folder: Path) -> None:
    """Migrate the ledger as its first start would, so that it is checked against the current rules and views."""
    try:
        bring_up_to_date(folder / LEDGER)
    except DatabaseError as error:
        raise invalid(f"{LEDGER} cannot be read: {error}") from None


def _require_same(manifest: Manifest, header: Header, contents: Contents, head: Head, settings: Settings) -> None:
    """Check that the manifest describes these members, and that they belong to the configured wallet."""
    found = (header.network.name, header.address, str(head), contents.payments, contents.open_payments)
    stated = (manifest.network, manifest.address, manifest.head, manifest.payments, manifest.open_payments)
    if found != stated:
        raise invalid("its manifest belongs to another ledger or keystore")
    for key, of_backup, of_config in (
        ("network", header.network.name, settings.network),
        ("keystore.account", header.account, settings.keystore.account),
    ):
        if of_backup != of_config:
            raise Refused("config_invalid", f"the backup's {key} is {of_backup}, the config's is {of_config}")


def _has_token(data_dir: Path, folder: Path, now_ms: int) -> bool:
    """Whether the data folder already has an operator token that the ledger knows."""
    path = data_dir / TOKEN_FILE
    if not path.exists():
        return False
    with closing(open_read_only(folder / LEDGER)) as conn:
        if apps.by_token(conn, hash_token(read_secret_file(path)), now_ms) is None:
            raise Refused("already_exists/file", f"{path} exists already, and the backup does not know its token")
    return True


def _record(
    folder: Path, manifest: Manifest, restored_at_ms: int, app: str | None, ports: Ports, *, is_clock_right: bool
) -> None:
    """Record the restore in the ledger. If the operator has no token left, add an app with a new one."""
    token = new_token(ports.randomness)
    facts = {
        "restored_at_ms": restored_at_ms,
        "is_clock_right": is_clock_right,
        "made_at_ms": manifest.made_at_ms,
        "head": manifest.head,
    }

    def job(unit: Unit) -> None:
        writes.put_meta(unit, f"restored:{restored_at_ms}", json.dumps(facts, separators=(",", ":")))
        if not is_clock_right:
            note_behind(unit, None, restored_at_ms)
        if app is not None:
            apps.add_with_token(unit, ports.new_id("app"), app, hash_token(token), SCOPES, restored_at_ms)

    writer = Writer(folder / LEDGER)
    try:
        writer.submit("restore", job).result()
    finally:
        writer.close()
    if app is not None:
        write_new(folder / TOKEN_FILE, token + "\n", [])


async def _ask(settings: Settings, address: str, now_ms: Callable[[], int]) -> tuple[ChainUtxo, ...] | str:
    """Ask the providers in order for the UTxOs of an address. Returns the first good list, or why there is none.

    Raises `clock_skew` when no provider gave a list and one has another time than ours. With a wrong clock, no one
    could tell when it is safe to sign again.
    """
    reasons: list[str] = []
    skewed: Refused | None = None
    for provider in settings.chain.providers:
        try:
            return await _utxos_by(provider, settings.network, address, now_ms)
        except Refused as refused:
            if refused.code == "clock_skew":
                skewed = refused
            reasons.append(f"{provider.base_url}: {refused.detail}")
    if skewed is not None:
        raise skewed
    return "; ".join(reasons)


def _differences(folder: Path, listed: Iterable[ChainUtxo]) -> Differences:
    """Compare the ledger's UTxOs with a provider's list.

    UTxOs reserved for a payment are left to the daemon, which resolves the payment.
    """
    utxos = {utxo.ref: utxo for utxo in listed}
    with closing(open_read_only(folder / LEDGER)) as conn:
        ready = [
            row
            for row in attempts_and_utxos.utxos(conn)
            if row.state in ("available", "locked") and row.reserved_for is None
        ]
        unknown = [utxo for ref, utxo in utxos.items() if attempts_and_utxos.utxo(conn, ref) is None]
    gone = [row for row in ready if row.ref not in utxos]
    return Differences(_sum(gone), _sum(unknown))


def _sum(utxos: Sequence[UtxoRow] | Sequence[ChainUtxo]) -> UtxoTotals:
    return UtxoTotals(len(utxos), add({LOVELACE: utxo.lovelace, **utxo.assets} for utxo in utxos))


async def _utxos_by(
    settings: ProviderSettings, network: str, address: str, now_ms: Callable[[], int]
) -> tuple[ChainUtxo, ...]:
    async with opened("provider", settings, network) as provider:
        await usable_tip(provider, network, now_ms)
        return require_found("UTxOs", await provider.utxos(address))
