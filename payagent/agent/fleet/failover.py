"""Which accounts may sign when the ledger may have lost commits: the database failed over, or was put back.

Any daemon that was seen in the last ten minutes of the ledger may have taken any account after that, and signed,
even if it stood still at the end. So an account may sign when the host of each of them has compared its signer's
records with the ledger. A record that the ledger lacks freezes all accounts, and so does a host that does not come
back in time. Each account then waits for the quiet time and reads the chain (agent.chain_sync.recovery).
A ledger that lacks what a running daemon saw freezes them too. All functions run inside the gate. Start at
`check_records`.

Never: lets an account sign that is frozen.
"""

import json

import structlog

from payagent.agent.chain_sync.recovery import note_behind
from payagent.store.db.fence import Seat
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import fleet, onchain, writes

AWAITED_MS = 60_000
"""How long the awaited hosts have to come back."""

log = structlog.get_logger("payagent.fleet")


def note_awaited(unit: Unit, now_ms: int) -> None:
    """Note whose records are awaited, in the first commit on another server or timeline.

    After a move by `payagent store copy`, they are also those of the last signers on other hosts.
    Call it before any daemon is forgotten or renews. `now_ms`: as `store.rows.fleet.database_ms` says.
    """
    database = fleet.database_of(unit.conn)
    if database.items() <= _awaited(unit.conn)[1].items():
        return
    daemons = fleet.all_daemons(unit.conn)
    end_ms = max((one.seen_at_ms for one in daemons), default=0)
    hosts = {one.host for one in daemons if fleet.may_return(one, end_ms)}
    rows = fleet.all_accounts(unit.conn)
    hosts |= {row.last_signer for row in rows if row.last_signer is not None and row.proven_timeline is None}
    writes.note(unit, None, "records_awaited", None, now_ms, {**database, "hosts": sorted(hosts)})


def check_records(unit: Unit, seat: Seat, now_ms: int) -> None:
    """Compare what this host signed and saw with the ledger, in the first commit over each connection.

    What the ledger lacks freezes all accounts, and this host begins each of its own anew.
    """
    note_awaited(unit, now_ms)
    forgotten = tuple(seat.compare(unit))
    for account, signed in forgotten:
        _freeze(unit, now_ms, signed.tx_id)
        log.warning("ledger.behind", account=account, signed=signed.tx_id)
    behind, _, _ = onchain.last_of_wallet(unit.conn, "ledger_behind")
    has_seen_more = seat.has_seen_more(unit)
    if forgotten or has_seen_more:
        seat.begin_anew()
    if not forgotten and has_seen_more and behind <= seat.behind_seq:
        _freeze(unit, now_ms)
        log.warning("ledger.behind", last_event=seat.last_event[0])
    if fleet.own_id(seat.host) in map(fleet.own_id, _missing(unit.conn)):
        writes.note(unit, None, "records_compared", None, now_ms, {"host": seat.host})


def _freeze(unit: Unit, now_ms: int, signed: str | None = None) -> None:
    note_behind(unit, signed, now_ms)
    fleet.unprove_all(unit)


def prove(unit: Unit, seat: Seat, now_ms: int) -> bool:
    """Let those accounts sign that may, after `check_records`. True if there are any new ones."""
    conn = unit.conn
    if not (unproven := fleet.unproven_accounts(conn)):
        return False
    behind, _, _ = onchain.last_of_wallet(conn, "ledger_behind")
    awaited, _, at_ms = _awaited(conn)
    if behind < awaited and not seat.is_synchronous and (missing := _missing(conn)):
        if now_ms >= at_ms + AWAITED_MS:
            _freeze(unit, now_ms)
            log.warning("ledger.behind", missing=sorted(missing))
        return False
    proven = [
        row
        for row in unproven
        if row.holder is not None and onchain.last_of_wallet(conn, "caught_up", row.account)[0] >= behind
    ]
    for row in proven:
        fleet.prove(unit, row.holder or "", row.account)
        log.warning("fleet.account_proven", account=row.account)
    return bool(proven)


def _awaited(conn: Connection) -> tuple[int, dict[str, list[str]], int]:
    seq, detail, at_ms = onchain.last_of_wallet(conn, "records_awaited")
    return seq, json.loads(detail), at_ms


def _missing(conn: Connection) -> set[str]:
    """The hosts that have not compared their records yet."""
    awaited, detail, _ = _awaited(conn)
    compared = {fleet.own_id(host) for host in fleet.hosts_compared(conn, awaited)}
    return {host for host in detail["hosts"] if fleet.own_id(host) not in compared}
