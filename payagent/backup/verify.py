"""Checks that a ledger and a keystore belong together and that the ledger passes verification.

Never: writes.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from payagent.audit.finding import AuditFinding, Head, Progress
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.backup.archive import KEYSTORE, LEDGER, invalid
from payagent.core.address import parse_address
from payagent.core.money import counted
from payagent.core.problems import Refused
from payagent.store.audit.copy import Contents, contents
from payagent.store.db.opening import DatabaseError, open_read_only
from payagent.store.db.tables import GENESIS
from payagent.store.db.unit import Connection
from payagent.wallet.keystore import Header, read_header

Tell = Callable[[str], None]


def checked(folder: Path, tell: Tell) -> tuple[Header, Contents, Head]:
    """The keystore's header, the ledger's contents, and its newest seal.

    Raises `file_invalid` when ledger and keystore do not belong together, or when the ledger fails verification.
    """
    try:
        header = read_header(folder / KEYSTORE)
    except Refused as refused:
        raise invalid(f"{KEYSTORE}: {refused.detail.rpartition(': ')[2]}") from None
    try:
        with closing(open_read_only(folder / LEDGER)) as conn:
            summary = contents(conn)
            if summary.network not in (None, header.network.name) or summary.address not in (None, header.address):
                raise invalid("ledger and keystore belong to different wallets")
            owner = Owner(parse_address(header.address, header.network), header.network)
            head = _verified(conn, owner, tell)
    except DatabaseError as error:
        raise invalid(f"{LEDGER} cannot be read: {error}") from None
    return header, summary, head


def _verified(conn: Connection, owner: Owner, tell: Tell) -> Head:
    findings, head = [], Head(0, GENESIS)
    for result in verify(conn, owner):
        match result:
            case AuditFinding():
                findings.append(result)
            case Progress():
                tell(f"checked {result.rows} {result.table}")
            case Head():
                head = result
    if findings:
        first = findings[0]
        raise invalid(
            f"{counted(len(findings), 'finding')} in its ledger, the first in {first.table} {first.row}: "
            f"{first.what}"
        )
    return head
