"""A fleet's own rows: its daemons, who holds which account, the home of each merchant, and requests to holders.

Leases go by the database's clock. In a file they go by the caller's.

Never: decides which accounts a daemon should hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from payagent.store.db.fence import LEASE_MS as LEASE_MS
from payagent.store.db.schema import newest_migration
from payagent.store.db.sql import exists, find_all, find_one, number
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import writes

RENEW_EVERY_S = 3
"""A daemon renews its leases this often. It may miss two renewals."""

RETURN_MS = 600_000
"""A daemon that was not seen for so long is forgotten: it is not expected to return."""

RequestKind = Literal["pay", "approve", "deny", "cancel", "transfer", "topup"]


@dataclass(frozen=True, slots=True)
class DaemonRow:
    """A daemon. `id`: new with each start. `host`: as `own_id` reads it. `seen_at_ms`: when it last renewed.

    `config_hash`: of each section of the settings that all daemons share, as JSON.
    """

    id: str
    host: str
    url: str
    config_hash: str
    version: str
    seen_at_ms: int


@dataclass(frozen=True, slots=True)
class AccountRow:
    """An account of the wallet and its lease. From `until_ms` on another daemon may take it."""

    account: int
    address: str
    holder: str | None
    until_ms: int
    last_signer: str | None
    proven_timeline: int | None


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """What a daemon asks the holder of an account to do until `ends_at_ms`. `request`, `outcome`: JSON."""

    id: str
    account: int
    kind: RequestKind
    asked_by: str
    request: str
    ends_at_ms: int
    outcome: str | None = None


def database_ms(conn: Connection, now_ms: int) -> int:
    """The time by the database's clock; a file has none and takes the caller's."""
    clock = getattr(conn, "clock_ms", None)
    return now_ms if clock is None else int(clock())


# --- daemons


def own_id(host: str) -> str:
    """What a host is known by, whatever its name: the id in its data folder, the part after "#"."""
    return host.rpartition("#")[2]


def register_daemon(unit: Unit, one: DaemonRow) -> None:
    """Add a daemon of this payagent, as seen now. Its `seen_at_ms` counts only in a file."""
    unit.conn.execute(
        "INSERT INTO daemons(id, host, url, config_hash, version, schema, seen_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.id, one.host, one.url, one.config_hash, one.version),
            *(newest_migration(), database_ms(unit.conn, one.seen_at_ms)),
        ),
    )


def set_config_hash(unit: Unit, daemon_id: str, config_hash: str) -> None:
    unit.conn.execute("UPDATE daemons SET config_hash = ? WHERE id = ?", (config_hash, daemon_id))


def forget_daemon(unit: Unit, daemon_id: str) -> None:
    """Remove a daemon that was last seen long ago, or that another one of its host has followed."""
    unit.conn.execute("DELETE FROM daemons WHERE id = ?", (daemon_id,))


def forget_host(unit: Unit, host: str) -> None:
    """Remove the daemon that stops on a host, and those that died there before it."""
    unit.conn.execute("DELETE FROM daemons WHERE host = ?", (host,))


def all_daemons(conn: Connection) -> list[DaemonRow]:
    """Every daemon that registered and was not forgotten, those that died included; in the order of their ids."""
    return find_all(
        conn, DaemonRow, "SELECT id, host, url, config_hash, version, seen_at_ms FROM daemons ORDER BY id"
    )


def is_living(one: DaemonRow, now_ms: int) -> bool:
    """Whether a daemon renewed within a lease. `now_ms`: as `database_ms` says."""
    return now_ms < one.seen_at_ms + LEASE_MS


def may_return(one: DaemonRow, now_ms: int) -> bool:
    """Whether a daemon was seen so lately that it may go on, or start again. `now_ms`: as `database_ms` says."""
    return now_ms < one.seen_at_ms + RETURN_MS


def living_daemons(conn: Connection, now_ms: int) -> list[DaemonRow]:
    """The daemons that renewed within a lease. `now_ms`: as `database_ms` says."""
    return [one for one in all_daemons(conn) if is_living(one, now_ms)]


# --- accounts


def add_account(unit: Unit, account: int, address: str) -> None:
    """Add an account of the wallet, held by nobody; one that is there stays as it is."""
    unit.conn.execute(
        "INSERT INTO accounts(account, address) VALUES (?, ?) ON CONFLICT DO NOTHING", (account, address)
    )


def all_accounts(conn: Connection) -> list[AccountRow]:
    return find_all(
        conn,
        AccountRow,
        "SELECT account, address, holder, until_ms, last_signer, proven_timeline FROM accounts ORDER BY account",
    )


def unproven_accounts(conn: Connection) -> list[AccountRow]:
    """The accounts for which nothing may be signed since the last failover, or that never signed."""
    timeline = find_one(conn, int, "SELECT timeline FROM gate WHERE one = 1")
    return [row for row in all_accounts(conn) if timeline is None or row.proven_timeline != timeline]


def take_accounts(unit: Unit, holder: str, wanted: Sequence[int], now_ms: int) -> dict[int, int]:
    """Take those of the wanted accounts that are free, whose lease is over, or that the daemon held before.

    Returns the new epoch of each. The job then calls `Seat.hold` with them.
    """
    now_ms = database_ms(unit.conn, now_ms)
    rows = unit.conn.execute(
        "UPDATE accounts SET holder = ?1, epoch = epoch + 1, until_ms = ?2 "  # noqa: S608  our own names
        f"WHERE (holder IS NULL OR holder = ?1 OR until_ms < ?3) AND account IN ({_numbers(wanted)}) "
        "RETURNING account, epoch",
        (holder, now_ms + LEASE_MS, now_ms),
    )
    taken = dict(sorted(rows.fetchall()))
    for account, epoch in taken.items():
        detail = {"account": str(account), "epoch": str(epoch), "holder": holder}
        writes.note(unit, None, "account_taken", None, now_ms, detail)
    return taken


def _numbers(accounts: Sequence[int]) -> str:
    return ", ".join(str(int(one)) for one in accounts) or "NULL"


def renew(unit: Unit, holder: str, held: Sequence[int], now_ms: int) -> None:
    """Renew a daemon's leases of the accounts that it holds, also one that is over: nobody has taken it meanwhile.

    An account that only its row calls the daemon's is left to whoever takes it: the daemon must read it anew.
    """
    now_ms = database_ms(unit.conn, now_ms)
    unit.conn.execute(
        f"UPDATE accounts SET until_ms = ? WHERE holder = ? AND account IN ({_numbers(held)})",  # noqa: S608
        (now_ms + LEASE_MS, holder),
    )
    unit.conn.execute("UPDATE daemons SET seen_at_ms = ? WHERE id = ?", (now_ms, holder))


def give_back(unit: Unit, holder: str, account: int) -> None:
    """Let any daemon take the account. The job then calls `Seat.let_go`. Sign nothing of it meanwhile."""
    unit.conn.execute(
        "UPDATE accounts SET holder = NULL, until_ms = 0 WHERE account = ? AND holder = ?", (account, holder)
    )


def database_of(conn: Connection) -> dict[str, str]:
    """The database's server and its timeline, as the gate has them."""
    system, timeline = conn.execute("SELECT system, timeline FROM gate WHERE one = 1").fetchone()
    return {"system": str(system), "timeline": str(timeline)}


def prove(unit: Unit, holder: str, account: int) -> None:
    """Let an account sign: the ledger has all that was signed for it before the last failover."""
    unit.conn.execute(
        "UPDATE accounts SET proven_timeline = (SELECT timeline FROM gate WHERE one = 1) "
        "WHERE account = ? AND holder = ?",
        (account, holder),
    )


def hosts_compared(conn: Connection, after_seq: int) -> set[str]:
    """The hosts that compared their signer's records with the ledger since an event."""
    hosts = (
        "SELECT detail ->> 'host' FROM events WHERE payment_id IS NULL AND event = 'records_compared' AND seq > ?"
    )
    return set(find_all(conn, str, hosts, (after_seq,)))


def unprove_all(unit: Unit) -> None:
    """Let no account sign, from this commit on, at any daemon."""
    unit.conn.execute("UPDATE accounts SET proven_timeline = NULL")


def is_noted(conn: Connection, attempt: int | None, account: int) -> bool:
    """Whether the signer's record of the account's holder has this attempt, so that any daemon may present it."""
    return exists(conn, "SELECT 1 FROM accounts WHERE account = ? AND noted >= ?", (account, attempt))


def event_seq(conn: Connection) -> int:
    """The number of the last event, for waiting until anything happened; 0 without a fleet."""
    return number(conn, "SELECT event_seq FROM gate WHERE one = 1")


# --- homes


def home_of(conn: Connection, origin: str, partner: str) -> int | None:
    """The account that buys prepaid balance at a merchant; None before the first purchase."""
    return find_one(conn, int, "SELECT account FROM homes WHERE origin = ? AND partner = ?", (origin, partner))


def set_home(unit: Unit, origin: str, partner: str, account: int, now_ms: int) -> None:
    """Make this account the merchant's home, in place of another one too."""
    changed = unit.conn.execute(
        "UPDATE homes SET account = ? WHERE origin = ? AND partner = ?", (account, origin, partner)
    )
    if changed.rowcount == 0:
        unit.conn.execute(
            "INSERT INTO homes(origin, partner, account) VALUES (?, ?, ?)", (origin, partner, account)
        )
    detail = {"origin": origin, "partner": partner, "account": str(account)}
    writes.note(unit, None, "home_set", None, now_ms, detail)


# --- requests to the holder of an account

_REQUEST = "SELECT id, account, kind, asked_by, request, ends_at_ms, outcome FROM admission_requests"


def add_request(unit: Unit, one: AdmissionRequest) -> None:
    """Ask the account's holder. Its `ends_at_ms` goes by `database_ms`."""
    unit.conn.execute(
        "INSERT INTO admission_requests(id, account, kind, asked_by, request, ends_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (one.id, one.account, one.kind, one.asked_by, one.request, one.ends_at_ms),
    )


def open_requests(conn: Connection, accounts: Sequence[int]) -> list[AdmissionRequest]:
    """The requests for these accounts that have not ended, in order."""
    return find_all(
        conn,
        AdmissionRequest,
        f"{_REQUEST} WHERE ended_at_ms IS NULL AND account IN ({_numbers(accounts)}) ORDER BY ends_at_ms, id",
    )


def request_of(conn: Connection, request_id: str) -> AdmissionRequest | None:
    """A request, open or ended; None if there is none."""
    return find_one(conn, AdmissionRequest, f"{_REQUEST} WHERE id = ?", (request_id,))


def end_request(unit: Unit, request_id: str, outcome: str, now_ms: int) -> None:
    """End an open request with its outcome (JSON). One that has ended stays as it is."""
    row = unit.conn.execute(
        "UPDATE admission_requests SET ended_at_ms = ?, outcome = ? WHERE id = ? AND ended_at_ms IS NULL "
        "RETURNING id",
        (now_ms, outcome, request_id),
    ).fetchone()
    if row is not None:
        writes.note(unit, None, "request_ended", None, now_ms, {"request": request_id, "outcome": outcome})
