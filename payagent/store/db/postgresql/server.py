"""What must hold of a server before a daemon of a fleet commits to it. All of it is refused as `config_invalid`.

Never: changes the ledger but for the gate's `system`.
"""

from collections.abc import Mapping
from typing import Any

from payagent.core.problems import Refused
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.signer_record import SignerRecord, lacks

IS_SYNCHRONOUS = (
    "current_setting('synchronous_standby_names') <> '' "
    "AND current_setting('synchronous_commit') IN ('on', 'remote_apply')"
)
"""Whether a commit waits for a standby."""


def require_direct(conn: PostgresqlConnection) -> None:
    if not conn.is_direct:
        raise Refused(
            "config_invalid",
            "store.url leads to a pooler, such as pgbouncer, which lends sessions of the server. Nothing was "
            "changed. Name the server itself: a daemon needs a session of its own",
        )


def require_synchronous(conn: PostgresqlConnection) -> None:
    asked = "SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit')"
    names, commit, is_synchronous = conn.execute(f"{asked}, {IS_SYNCHRONOUS}").fetchone() or ("", "", False)
    if not is_synchronous:
        raise Refused(
            "config_invalid",
            f"store.synchronous is true, but on the server synchronous_standby_names is '{names}' and "
            f"synchronous_commit is {commit}. A failover could lose payments, so nothing was changed. Name the "
            "standbys, such as 'ANY 1 (a, b)', and set synchronous_commit = on",
        )


def require_own_ledger(conn: Any, system: str, records: Mapping[int, SignerRecord]) -> bool:
    """Refuse a ledger of another server, and one that lacks what this host signed on another server.

    False for a ledger not yet used on any server: `claim` it.
    """
    (made_for,) = conn.execute("SELECT system FROM gate").fetchone()
    if made_for not in ("", system):
        raise Refused(
            "config_invalid",
            f"the ledger belongs to the database server {made_for}, this is {system}: somebody copied it. Nothing "
            "was changed. Use the other server, or move the ledger with `payagent store copy`",
        )
    for account, record in records.items():
        signed = record.read()
        mark = None if signed is None else signed.database
        if mark is not None and mark.system != system and lacks(conn, signed, account):
            raise Refused(
                "config_invalid",
                f"this host signed for account {account} on the database server {mark.system}. This is {system}, "
                "and its ledger lacks that. It may pay twice, so nothing was changed. Use the other server",
            )
    return bool(made_for)


def claim(conn: Any, system: str) -> None:
    """Make the ledger that of this server."""
    conn.execute("UPDATE gate SET system = ? WHERE system = ''", (system,))


def require_newest_timeline(timeline: int, known: int, system: str, records: Mapping[int, SignerRecord]) -> None:
    """Refuse a server that others have left behind by a failover. `known`: what this daemon saw before."""
    marks = [signed.database for record in records.values() if (signed := record.read()) is not None]
    newest = max([known, *(one.timeline for one in marks if one is not None and one.system == system)])
    if timeline < newest:
        raise Refused(
            "config_invalid",
            f"the database is on timeline {timeline}, and this host used timeline {newest}: it is an old primary. "
            "Nothing was changed. Stop that server, and use the new primary",
        )
