"""The booked amounts of a transaction, and the transactions that the ledger records as on chain.

Never: writes; judges whether a transaction is on chain.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from payagent.core.aggregate import AttemptKind, ExternalSpendRow
from payagent.core.ledger import HELD, WALLET, add, general_account
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import BY_A_BLOCK, IN_NO_BLOCK, SIGNED_UNPOSTED, State
from payagent.store.db.sql import exists, find_all, find_one, number, sql_list
from payagent.store.rows import journal, payments

_EXTERNAL_SPENDS_ON_CHAIN = (
    "SELECT tx_id, is_on_chain, inputs, spent, block_hash, block_height, block_slot, account "
    "FROM external_spends f WHERE f.account = ? AND is_on_chain = 1 AND seq = (SELECT MAX(seq) "
    "FROM external_spends g WHERE g.tx_id = f.tx_id AND g.account = f.account)"
)

Units = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class OwnTx:
    """An attempt, and its payment as it is now. `stands`: this is the payment's current attempt.

    `hold`: what it takes from the wallet; below zero if it brings back what a channel held.
    `booked`: what the entries moved in the accounts wallet and held.
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
    """A row that records a transaction as on chain, with its payment's state and what is booked for it.

    `height` is that of its block, 0 for a deposit. `is_missing`: the provider's list lacks a UTxO that the
    transaction made, and the ledger has set it aside.
    """

    table: str
    row: str
    tx_id: str
    state: State | None
    booked: Units
    height: int
    is_missing: bool = False


def external_spends_on_chain(
    conn: sqlite3.Connection, from_height: int = 0, account: int = 0
) -> list[ExternalSpendRow]:
    """An account's external spends that were last seen on chain, in blocks from this height on; oldest first."""
    return find_all(
        conn,
        _external_spend,
        f"{_EXTERNAL_SPENDS_ON_CHAIN} AND block_height >= ? ORDER BY seq",
        (account, from_height),
    )


def external_spend_named(
    conn: sqlite3.Connection, tx_ids: Collection[str], account: int = 0
) -> list[ExternalSpendRow]:
    """An account's external spends on chain among these transactions, looked up one by one.

    The history may be long.
    """
    return [
        spend
        for tx_id in sorted(tx_ids)
        for spend in find_all(
            conn, _external_spend, f"{_EXTERNAL_SPENDS_ON_CHAIN} AND f.tx_id = ?", (account, tx_id)
        )
    ]


def external_spends_of(conn: sqlite3.Connection, refs: Iterable[str], account: int = 0) -> list[ExternalSpendRow]:
    """External spends on chain that spent any of these UTxOs of an account."""
    cursors = [
        conn.execute("SELECT spent_by FROM utxos WHERE ref = ? AND state = 'spent'", (ref,)) for ref in refs
    ]
    return external_spend_named(conn, {row[0] for rows in cursors for row in rows}, account)


def external_spends_settled(conn: sqlite3.Connection, account: int = 0) -> int:
    """The height up to which an account's external spends were read in blocks beyond any rollback; -1 if none was
    yet.
    """
    _, detail, _ = last_of_wallet(conn, "external_spend_settled", account)
    return int(json.loads(detail).get("height", -1))


def is_external_spend_on_chain(conn: sqlite3.Connection, tx_id: str, account: int = 0) -> bool:
    """Whether this transaction is an external spend of the account that was last seen on chain."""
    return bool(
        number(
            conn,
            "SELECT is_on_chain FROM external_spends WHERE tx_id = ? AND account = ? ORDER BY seq DESC LIMIT 1",
            (tx_id, account),
        )
    )


def was_external_spend(conn: sqlite3.Connection, tx_id: str) -> bool:
    """Whether this transaction was ever seen as an external spend, on chain or rolled back since."""
    return exists(conn, "SELECT 1 FROM external_spends WHERE tx_id = ?", (tx_id,))


def is_ours(conn: sqlite3.Connection, tx_id: str) -> bool:
    return exists(conn, "SELECT 1 FROM attempts WHERE tx_id = ?", (tx_id,))


def known_since_ms(conn: sqlite3.Connection, refs: Iterable[str]) -> int:
    """When the first of these UTxOs was first known to be on chain; 0 if that is not recorded."""
    first = (
        "SELECT COALESCE((SELECT MIN(at_ms) FROM entries WHERE kind = 'deposit' AND ref = ?1), "
        "(SELECT MIN(at_ms) FROM block_observations WHERE tx_id = substr(?1, 1, 64)))"
    )
    return min((number(conn, first, (ref,)) for ref in refs), default=0)


def overtaken(conn: sqlite3.Connection, account: int = 0) -> list[tuple[str, str]]:
    """(payment of an account, external spend) if the spend took its nonce UTxO, or any UTxO of a payment only
    reserved.
    """
    return conn.execute(
        "SELECT p.id, MIN(c.spent_by) FROM reservations r JOIN payments p ON p.id = r.payment_id JOIN utxos c ON "  # noqa: S608
        "c.ref = r.ref JOIN external_spends f ON f.tx_id = c.spent_by WHERE p.account = ? AND (p.state = "
        f"'reserved' OR (p.state IN {sql_list(*IN_NO_BLOCK)} AND r.ref = p.nonce_utxo)) "
        "GROUP BY p.seq ORDER BY p.seq",
        (account,),
    ).fetchall()


def last_of_wallet(conn: sqlite3.Connection, event: str, account: int | None = None) -> tuple[int, str, int]:
    """(seq, detail, at_ms) of the wallet's last event of this name, about this account if one is given.

    (0, "{}", 0) if there is none. An event about an account has its number (`about_account`).
    """
    row = conn.execute(
        "SELECT seq, detail, at_ms FROM events WHERE payment_id IS NULL AND event = ?1 "
        "AND (CAST(?2 AS TEXT) IS NULL OR COALESCE(detail ->> 'account', '0') = ?2) ORDER BY seq DESC LIMIT 1",
        (event, None if account is None else str(account)),
    ).fetchone()
    return row or (0, "{}", 0)


def is_behind(conn: sqlite3.Connection, account: int) -> bool:
    """Whether the ledger was found to be behind and has not caught up with the account since."""
    behind, _, _ = last_of_wallet(conn, "ledger_behind")
    return behind > last_of_wallet(conn, "caught_up", account)[0]


def about_account(account: int) -> dict[str, str]:
    """The part of an event's detail that says which account it is about; nothing for the first."""
    return {"account": str(account)} if account else {}


def last_event_ms(conn: sqlite3.Connection) -> int:
    """The time of the newest event; 0 if there is none."""
    return number(conn, "SELECT at_ms FROM events ORDER BY seq DESC LIMIT 1")


def last_slot(conn: sqlite3.Connection, account: int = 0) -> int | None:
    """The slot of the block in which a spend of an account's UTxOs was last seen; None if there is none."""
    return find_one(
        conn,
        int,
        "SELECT MAX(block_slot) FROM (SELECT * FROM (SELECT block_slot FROM block_observations s CROSS JOIN "
        "attempts a ON a.tx_id = s.tx_id AND a.account = ?1 ORDER BY s.seq DESC LIMIT 1) o UNION ALL "
        "SELECT * FROM (SELECT block_slot FROM external_spends WHERE account = ?1 ORDER BY seq DESC LIMIT 1) e) "
        "newest",
        (account,),
    )


def frozen_by(conn: sqlite3.Connection) -> tuple[str, ...]:
    """External spends of any account since an operator last unfroze the wallet, oldest first."""
    spends = find_all(
        conn,
        json.loads,
        "SELECT detail FROM events WHERE payment_id IS NULL AND event = 'external_spend' AND seq > ? ORDER BY seq",
        (last_of_wallet(conn, "unfrozen")[0],),
    )
    return tuple(str(spend["tx_id"]) for spend in spends)


def own_tx(conn: sqlite3.Connection, tx_id: str) -> OwnTx | None:
    row = conn.execute(
        "SELECT p.id, p.state, a.kind, p.tx_id IS NOT DISTINCT FROM a.tx_id, a.fee_lovelace FROM attempts a "
        "JOIN payments p ON p.id = a.payment_id WHERE a.tx_id = ?",
        (tx_id,),
    ).fetchone()
    if row is None:
        return None
    payment_id, state, kind, stands, fee_lovelace = row
    booked = booked_payment(conn, payment_id).get(tx_id, {})
    hold = add((payments.hold(conn, payment_id), {LOVELACE: -returned_by(conn, payment_id)}))
    return OwnTx(payment_id, State(state), kind, bool(stands), hold, fee_lovelace, booked)


def returned_by(conn: sqlite3.Connection, payment_id: str) -> int:
    """What a payment brings back of what a channel held; 0 for any other one."""
    return number(
        conn,
        "SELECT COALESCE(SUM(units), 0) FROM channel_steps WHERE payment_id = ? AND step IN ('end', 'elapse')",
        (payment_id,),
    )


def booked_payment(conn: sqlite3.Connection, payment_id: str) -> dict[str | None, Units]:
    """What each transaction of a payment moved, by the entries. A reversal belongs to the entry before it."""
    rows = conn.execute(
        "SELECT j.id, j.kind, j.ref, q.account, q.asset, q.units FROM entries j JOIN postings q ON q.entry_id = "
        "j.id WHERE j.payment_id = ? ORDER BY j.id",
        (payment_id,),
    )
    moved_by_tx: dict[str | None, Units] = {}
    last: str | None = None
    for (_, kind, ref), lines in groupby(rows, key=lambda row: row[:3]):
        moved = _ours(line[3:] for line in lines)
        if moved:
            last = last if kind == "post_reversed" else ref
            moved_by_tx[last] = clean(add((moved_by_tx.get(last, {}), moved)))
    return moved_by_tx


def booked_others(conn: sqlite3.Connection, tx_id: str) -> Units:
    """Net units that an external transaction moved, by the entries: deposits, external spends and reversals."""
    rows = conn.execute(
        "SELECT q.account, q.asset, q.units FROM entries j JOIN postings q ON q.entry_id = j.id "
        "WHERE j.kind IN ('deposit', 'deposit_reversed', 'external_spend', 'external_spend_reversed') AND "
        "j.ref >= ? AND j.ref < ?",
        (tx_id, f"{tx_id}$"),
    )
    return _ours(rows)


def unlisted(conn: sqlite3.Connection, listed: Collection[str], since_slot: int, since_ms: int) -> Iterator[Claim]:
    """Claims of transactions that are not in `listed`: payments in blocks from a slot on, and deposits since a
    time.
    """
    rows = conn.execute(
        "SELECT id, COALESCE(tx_id, ''), state, COALESCE(block_height, 0) FROM payments "  # noqa: S608  our own names
        f"WHERE state IN {sql_list(*BY_A_BLOCK)} AND block_slot >= ? AND void_tx_id IS NULL AND tx_id IS NOT NULL "
        "ORDER BY seq",
        (since_slot,),
    )
    for payment_id, tx_id, state, height in rows:
        if tx_id not in listed:
            booked = booked_payment(conn, payment_id).get(tx_id, {})
            yield Claim("payments", payment_id, tx_id, State(state), booked, height)
    deposits = conn.execute(
        "SELECT MIN(id), substr(ref, 1, 64) FROM entries WHERE kind IN ('deposit', 'external_spend') AND at_ms "
        ">= ? GROUP BY 2",
        (since_ms,),
    )
    for entry, tx_id in deposits:
        if tx_id not in listed and (booked := booked_others(conn, tx_id)):
            yield Claim("entries", str(entry), tx_id, None, booked, *_standing_of(conn, tx_id))


def _standing_of(conn: sqlite3.Connection, tx_id: str) -> tuple[int, bool]:
    """The block height of an external spend (0 if none), and whether a UTxO that it made is missing."""
    height, missing = conn.execute(
        "SELECT (SELECT COALESCE(MAX(block_height), 0) FROM external_spends WHERE tx_id = ?1), "
        "(SELECT COUNT(*) FROM utxos WHERE tx_id = ?1 AND state = 'missing')",
        (tx_id,),
    ).fetchone()
    return int(height), bool(missing)


def under_way_since_ms(conn: sqlite3.Connection) -> int | None:
    """When the oldest payment was created whose attempts may be on chain without being booked."""
    return find_one(
        conn,
        int,
        f"SELECT MIN(created_at_ms) FROM payments WHERE state IN {sql_list(*SIGNED_UNPOSTED)}",  # noqa: S608
    )


def owned(conn: sqlite3.Connection) -> Units:
    """Balance of wallet plus held of all accounts, per asset."""
    return _ours(journal.balances(conn))


def clean(units: Units) -> dict[str, int]:
    """Without assets of zero units."""
    return {asset: n for asset, n in units.items() if n}


def _external_spend(tx_id: str, is_on_chain: int, inputs: str, spent: str, *block: Any) -> ExternalSpendRow:
    return ExternalSpendRow(tx_id, bool(is_on_chain), tuple(inputs.split(" ")), json.loads(spent), *block)


def _ours(lines: Iterable[tuple[str, str, int]]) -> dict[str, int]:
    return clean(add({asset: units} for name, asset, units in lines if general_account(name) in (WALLET, HELD)))
