"""`verify`: every row of the books, in one pass over each table; tells what it finds as it finds it.

May import: core, store, audit. Never: stops at the first finding; asks anybody but the file; says "clean" of what
only the chain can tell (a deposit and its coin that were changed alike).
"""

from collections.abc import Iterator

from payagent.audit.finding import Finding, Progress
from payagent.audit.payments import check_payment
from payagent.audit.signed import Owner
from payagent.core.ledger import EXTERNAL, HELD, WALLET
from payagent.store import books, queries
from payagent.store.books import Sealed
from payagent.store.schema import GENESIS, missing_guards
from payagent.store.writer import Connection

TOLD_EVERY = 500
"""Rows between two words of how far it is."""

Told = Finding | Progress


def verify(conn: Connection, owner: Owner) -> Iterator[Told]:
    """Everything that is wrong, and how far it is; `conn` is in one read transaction."""
    yield from _guards(conn)
    yield from _numbers(conn)
    yield from _references(conn)
    yield from _events(conn)
    yield from _entries(conn)
    yield from _payments(conn, owner)
    yield from _coins(conn)


def _guards(conn: Connection) -> Iterator[Finding]:
    for name in missing_guards(conn):
        yield Finding("sqlite_master", name, "the trigger that guards a table is not there as it was made")


def _numbers(conn: Connection) -> Iterator[Told]:
    for place, table in enumerate(books.TABLES, 1):
        for first, last in books.gaps(conn, table):
            number = f"{first}" if first == last else f"{first} to {last}"
            yield Finding(table, number, "missing: rows are numbered without gaps")
        yield Progress("tables", place)


def _references(conn: Connection) -> Iterator[Told]:
    for place, table in enumerate(books.TABLES, 1):
        for number, parent in books.broken_references(conn, table):
            yield Finding(table, str(number), f"it refers to a row that {parent} lacks")
        yield Progress("tables", place)


def _events(conn: Connection) -> Iterator[Told]:
    last, count = (0, GENESIS), 0
    for row in queries.event_links(conn):
        if not queries.follows(last, row):
            yield Finding("events", str(row[0]), "its hash does not follow from it and the event before")
        last, count = (row[0], row[7]), count + 1
        if count % TOLD_EVERY == 0:
            yield Progress("events", count)
    yield Progress("events", count)


def _entries(conn: Connection) -> Iterator[Told]:
    """Each entry is sealed, whole, balanced and in its place; deposits are those of the coins."""
    last = 0
    for entry in books.sealed_entries(conn):
        yield from _entry(conn, entry, last)
        last = entry.entry
        if last % TOLD_EVERY == 0:
            yield Progress("journal", last)
    for number in books.unposted(conn):
        yield Finding("journal", str(number), "it has no postings")
    yield Progress("journal", last)


def _entry(conn: Connection, entry: Sealed, last: int) -> Iterator[Finding]:
    name, first = str(entry.entry), entry.postings[0][0]
    if entry.entry != last + 1:
        yield Finding("postings", str(first), f"entry {entry.entry} comes after entry {last}")
    if entry.kind is None:
        yield Finding("postings", str(first), f"no journal row seals entry {entry.entry}")
    sums: dict[str, int] = {}
    for _, _, asset, units in entry.postings:
        sums[asset] = sums.get(asset, 0) + units
    for asset, units in sums.items():
        if units:
            yield Finding("journal", name, f"{asset} is out of balance by {units}")
    is_deposit = entry.kind in ("deposit", "undeposit")
    if entry.kind is not None and (entry.payment_id is None) != is_deposit:
        yield Finding("journal", name, f"a {entry.kind} of payment {entry.payment_id}")
    elif is_deposit:
        yield from _deposit(conn, entry)


def _deposit(conn: Connection, entry: Sealed) -> Iterator[Finding]:
    sign = 1 if entry.kind == "deposit" else -1
    lines = {(account, asset): sign * units for _, account, asset, units in entry.postings}
    arrived = {asset: units for (account, asset), units in lines.items() if account == WALLET}
    contrary = {(EXTERNAL, asset): -units for asset, units in arrived.items()}
    if lines != {(WALLET, asset): units for asset, units in arrived.items()} | contrary:
        yield Finding("journal", str(entry.entry), f"a {entry.kind} moves units between wallet and external")
    coin, was_taken_back = books.deposited(conn, entry.ref or "")
    if coin is not None and coin != arrived:
        yield Finding("journal", str(entry.entry), f"{arrived} arrived in {entry.ref}, the coin holds {coin}")
    if coin is None and not was_taken_back:
        yield Finding("coins", str(entry.ref), f"entry {entry.entry} tells of it, and it is not there")


def _payments(conn: Connection, owner: Owner) -> Iterator[Told]:
    count = 0
    for case in books.cases(conn):
        yield from check_payment(case, owner)
        count += 1
        if count % TOLD_EVERY == 0:
            yield Progress("payments", count)
    yield Progress("payments", count)


def _coins(conn: Connection) -> Iterator[Told]:
    """wallet + held is what the coins come to, counting those that are booked and not yet spent by what is."""
    ours: dict[str, int] = {}
    count = 0
    for coin in books.coin_counts(conn):
        for asset, units in coin.value.items():
            ours[asset] = ours.get(asset, 0) + coin.times * units
        if coin.is_unbooked:
            yield Finding("coins", coin.ref, "a deposit that the journal does not tell of")
        if coin.is_spent_by_nothing:
            yield Finding("coins", coin.ref, "it is spent by a transaction that does not spend it")
        count += 1
        if count % TOLD_EVERY == 0:
            yield Progress("coins", count)
    booked: dict[str, int] = {}
    for account, asset, units in queries.balances(conn):
        if account in (WALLET, HELD):
            booked[asset] = booked.get(asset, 0) + units
    for asset in sorted(ours.keys() | booked.keys()):
        if ours.get(asset, 0) != booked.get(asset, 0):
            what = f"the books say {booked.get(asset, 0)} are ours, the coins come to {ours.get(asset, 0)}"
            yield Finding("coins", asset, what)
    yield Progress("coins", count)
