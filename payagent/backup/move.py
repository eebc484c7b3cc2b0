"""Moves the ledger from the file of one daemon to PostgreSQL, or back.

Tokens and apps are in the ledger. A signer's record stays with its key, and the ledger is compared with it.
Never: changes the ledger that it moves; moves one that a daemon uses.
"""

from contextlib import closing
from pathlib import Path

from payagent.audit.finding import Head
from payagent.backup.archive import KEYSTORE, LEDGER
from payagent.backup.create import copy_wallet
from payagent.backup.staging import put, workshop, writing
from payagent.backup.verify import Tell, checked
from payagent.core.problems import Refused
from payagent.secret_file import sync_folder
from payagent.settings.loading import store_password
from payagent.settings.paths import host_of
from payagent.settings.schema import Settings
from payagent.store.audit.copy import Contents
from payagent.store.db.daemon_file import DAEMON_FILE, DaemonFile
from payagent.store.db.engine import copy_to_database, migrate_database, read_fleet_store
from payagent.store.db.lease import LOCK_FILE, lease
from payagent.store.db.opening import bring_up_to_date, open_read_only
from payagent.store.db.signer_record import SignerFile, is_forgotten, lacks, last_signed, signer_file
from payagent.store.rows import fleet, onchain, payments

_NAMED = 5
"""A refusal names at most so many payments."""

Moved = tuple[Contents, Head]
"""What was moved, and its newest seal."""


def move_to_database(settings: Settings, url: str, tell: Tell) -> Moved:
    """Copy ledger.db into an empty database. The ledger is checked first, as for a backup.

    Refused: `already_running`, `already_exists/ledger`, `ledger_behind`, `file_invalid`, and as `back_up`.
    """
    with (
        lease(settings.data_dir, (LEDGER, KEYSTORE)),
        writing(),
        workshop(settings.data_dir / ".moving") as folder,
    ):
        moved = _staged(settings, folder, tell)
        tell("writing to the database")
        noted, own_file = _noted(settings, folder), DaemonFile(settings.data_dir / DAEMON_FILE)
        host = host_of(settings, own_file.own_id(settings.data_dir / LOCK_FILE))
        copy_to_database(folder / LEDGER, url, store_password(settings), host, noted, settings.data_dir)
    return moved


def move_to_file(settings: Settings, target: Path, tell: Tell) -> Moved:
    """Copy the ledger in the database of the config into a new file.

    Refused: `already_running` if a daemon of the fleet is alive or came up meanwhile; `wrong_state` if payments of
    other accounts than the first are open; `already_exists/file`, `ledger_behind`, `file_invalid`, and as
    `back_up`.
    """
    for path in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if path.exists() or path.is_symlink():  # a log of another ledger would be read into this one
            raise Refused("already_exists/file", f"{path} exists already")
    before = _last_commit(settings)
    with writing(), workshop(target.with_name(f".{target.name}.partial")) as folder:
        moved = _staged(settings, folder, tell)
        _noted(settings, folder)
        if _last_commit(settings) != before:
            raise Refused("already_running", "a daemon wrote to the database meanwhile, so nothing was copied")
        put(folder / LEDGER, target)
        sync_folder(target.parent)
    return moved


def make_tables(url: str, daemon_role: str | None = None) -> bool:
    """Make or migrate the tables, as the role of the URL (`store.db.engine.migrate_database`)."""
    return migrate_database(url, daemon_role)


def _staged(settings: Settings, folder: Path, tell: Tell) -> Moved:
    """A copy of the ledger in today's form and of the keystore's file in a folder, checked."""
    copy_wallet(settings, folder, tell)
    bring_up_to_date(folder / LEDGER)
    _, found, head = checked(folder, tell)
    return found, head


def _noted(settings: Settings, folder: Path) -> dict[int, int]:
    """For each account of which this host has the signer's record: the attempt in it.

    Refused: `ledger_behind` if the ledger lacks that attempt and no daemon has waited for it.
    """
    noted = {}
    with closing(open_read_only(folder / LEDGER)) as conn:
        for account in range(settings.wallet.accounts):
            path = settings.data_dir / signer_file(account)
            signed = SignerFile(path).read()
            if signed is None:
                continue
            if not lacks(conn, signed, account):
                noted[account] = signed.attempts
                continue
            if is_forgotten(conn, signed, account) or onchain.is_behind(conn, account):
                raise Refused("ledger_behind", f"{path} names the transaction {signed.tx_id}; the ledger lacks it")
            last = last_signed(conn, account)
            noted[account] = 0 if last is None else last.attempts
    return noted


def _last_commit(settings: Settings) -> object:
    """The number of the last commit to a database that can be moved to a file.

    Refused: `already_running` if a daemon of the fleet is alive; `wrong_state` if payments of other accounts than
    the first are open.
    """
    readers = read_fleet_store(settings.store.url or "", settings.data_dir, store_password(settings))
    with closing(readers.conn) as conn:
        if living := [one.host for one in fleet.living_daemons(conn, fleet.database_ms(conn, 0))]:
            raise Refused("already_running", f"these daemons use the database: {', '.join(living)}")
        if unsettled := payments.open_in_other_accounts(conn):
            names = ", ".join(unsettled[:_NAMED])
            raise Refused(
                "wrong_state",
                f"{len(unsettled)} of the payments of other accounts than the first are not settled: {names}. A "
                "daemon on a file would never settle them. Start the fleet, and copy the ledger once they are",
            )
        return conn.execute("PRAGMA data_version").fetchone()
