"""Makes a backup: the current ledger, the keystore, and a manifest that identifies them.

Never: changes the files that it copies.
"""

from pathlib import Path

from payagent.backup.archive import KEYSTORE, LEDGER, VERSION, Manifest, measure, pack
from payagent.backup.staging import put, workshop, writing
from payagent.backup.verify import Tell, checked
from payagent.core.problems import Refused
from payagent.secret_file import sync_folder
from payagent.settings.loading import store_password
from payagent.settings.schema import Settings
from payagent.store.audit.copy import copy_ledger
from payagent.store.db.engine import copy_to_file
from payagent.store.db.opening import require_ledger
from payagent.wallet.keystore import read_header


def copy_of_ledger(settings: Settings, target: Path) -> None:
    """Write a consistent snapshot of the ledger into a new file, also while daemons run.

    Refused: `ledger_missing`, `tables_missing`, `ledger_newer`, `ledger_tampered`, `store_failed`,
    `write_failed/backup`.
    """
    target.touch(mode=0o600)
    if settings.store.url is not None:
        copy_to_file(settings.store.url, target, store_password(settings), settings.data_dir)
        return
    ledger = settings.data_dir / LEDGER
    require_ledger(ledger)
    copy_ledger(ledger, target)


def copy_wallet(settings: Settings, folder: Path, tell: Tell) -> None:
    """Copy ledger and keystore into a folder. Refused: as `copy_of_ledger`."""
    tell("copying the ledger")
    (folder / KEYSTORE).touch(mode=0o600)
    (folder / KEYSTORE).write_bytes((settings.data_dir / KEYSTORE).read_bytes())
    copy_of_ledger(settings, folder / LEDGER)


def back_up(settings: Settings, target: Path, now_ms: int, tell: Tell = lambda _text: None) -> Manifest:
    """Write a complete backup file, or none. A running daemon's later changes are not in it.

    Raises `file_invalid` when the ledger fails verification (no restore would accept it), `write_failed`,
    `already_exists`, `keystore_invalid`, `ledger_missing`, `ledger_newer` or `store_failed`.
    """
    read_header(settings.data_dir / KEYSTORE)
    with writing(), workshop(target.with_name(f".{target.name}.partial")) as folder:
        if target.exists() or target.is_symlink():
            raise Refused("already_exists/file", f"{target} exists already")
        copy_wallet(settings, folder, tell)
        header, contents, head = checked(folder, tell)
        manifest = Manifest(
            version=VERSION,
            network=header.network.name,
            address=header.address,
            made_at_ms=now_ms,
            head=str(head),
            payments=contents.payments,
            open_payments=contents.open_payments,
            keystore=measure(folder / KEYSTORE),
            ledger=measure(folder / LEDGER),
        )
        pack(folder, manifest, folder / "backup.tar")
        put(folder / "backup.tar", target)
        sync_folder(target.parent)
    return manifest
