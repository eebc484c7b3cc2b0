"""What the books say of a transaction, and which transactions they say are on the chain.

May import: core, store.queries, sqlite3. Never: writes; believes that a transaction is on the chain.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from payagent.core.ledger import HELD, WALLET, add
from payagent.core.payment import ON_CHAIN, State
from payagent.store import queries
from payagent.store.queries import AttemptKind

Units = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OwnTx:
    """An attempt, and its payment as it is now. `stands`: the payment goes by this attempt, and no other.

    `booked` is what the journal says that it moved of wallet and held.
    """

    payment_id: str
    state: State
    kind: AttemptKind
    stands: bool
    hold: Units
    fee_lovelace: int
    booked: Units


@dataclass(frozen=True, slots=True)
class Claim:
    """A row that says that a transaction is on the chain, the state of its payment, and what is booked for it."""

    table: str
    row: str
    tx_id: str
    state: State | None
    booked: Units


def own_tx(conn: sqlite3.Connection, tx_id: str) -> OwnTx | None:
    row = conn.execute(
        "SELECT p.id, p.state, a.kind, p.tx_id IS a.tx_id, a.fee_lovelace FROM attempts a "
        "JOIN payments p ON p.id = a.payment_id WHERE a.tx_id = ?",
        (tx_id,),
    ).fetchone()
    if row is None:
        return None
    payment_id, state, kind, stands, fee_lovelace = row
    booked = booked_payment(conn, payment_id).get(tx_id, {})
    hold = queries.hold(conn, payment_id)
    return OwnTx(payment_id, State(state), kind, bool(stands), hold, fee_lovelace, booked)


def booked_payment(conn: sqlite3.Connection, payment_id: str) -> dict[str | None, Units]:
    """What each transaction of a payment moved, by the journal; what was reversed was that of the entry before."""
    rows = conn.execute(
        "SELECT j.id, j.kind, j.ref, q.account, q.asset, q.units FROM journal j JOIN postings q ON q.entry = j.id "
        "WHERE j.payment_id = ? ORDER BY j.id",
        (payment_id,),
    )
    found: dict[str | None, Units] = {}
    last: str | None = None
    for (_, kind, ref), lines in groupby(rows, key=lambda row: row[:3]):
        moved = _ours(line[3:] for line in lines)
        if moved:
            last = last if kind == "reverse" else ref
            found[last] = clean(add((found.get(last, {}), moved)))
    return found


def booked_deposits(conn: sqlite3.Connection, tx_id: str) -> Units:
    """What arrived in a transaction, by the journal, less what was taken back."""
    rows = conn.execute(
        "SELECT q.account, q.asset, q.units FROM journal j JOIN postings q ON q.entry = j.id "
        "WHERE j.kind IN ('deposit', 'undeposit') AND j.ref >= ? AND j.ref < ?",
        (f"{tx_id}#", f"{tx_id}$"),
    )
    return _ours(rows)


def unlisted(conn: sqlite3.Connection, listed: Collection[str], since_slot: int, since_ms: int) -> Iterator[Claim]:
    """The claims of transactions that are not listed: of payments in blocks from a slot on, of later deposits."""
    states = (*ON_CHAIN, State.VOID)
    rows = conn.execute(
        "SELECT id, COALESCE(tx_id, ''), state FROM payments "
        "WHERE state IN (?, ?, ?, ?) AND block_slot >= ? ORDER BY seq",
        (*states, since_slot),
    )
    for payment_id, tx_id, state in rows:
        if tx_id not in listed:
            booked = booked_payment(conn, payment_id).get(tx_id, {})
            yield Claim("payments", payment_id, tx_id, State(state), booked)
    deposits = conn.execute(
        "SELECT MIN(id), substr(ref, 1, 64) FROM journal WHERE kind = 'deposit' AND at_ms >= ? GROUP BY 2",
        (since_ms,),
    )
    for entry, tx_id in deposits:
        if tx_id not in listed and (booked := booked_deposits(conn, tx_id)):
            yield Claim("journal", str(entry), tx_id, None, booked)


def owned(conn: sqlite3.Connection) -> Units:
    """wallet + held."""
    return _ours(queries.balances(conn))


def clean(units: Units) -> dict[str, int]:
    """Without what is zero."""
    return {asset: n for asset, n in units.items() if n}


def _ours(lines: Iterable[tuple[str, str, int]]) -> dict[str, int]:
    return clean(add({asset: units} for account, asset, units in lines if account in (WALLET, HELD)))
