"""Checks prepaid balances against their moves, and the moves against their payments and entries.

Never: asks a merchant; lets a stored total change how it judges.
"""

from collections.abc import Iterator, Mapping

from payagent.audit.finding import AuditFinding, Progress, each_differing
from payagent.core import ledger
from payagent.core.ledger import prepaid_account
from payagent.core.prepaid_balance import Cost, PrepaidBalance, buy, take_back, use
from payagent.store.audit import books
from payagent.store.audit.books import MoveRow
from payagent.store.db.unit import Connection
from payagent.store.rows import journal, prepaid

Balances = dict[tuple[int, str], PrepaidBalance]


def check_prepaid(conn: Connection) -> Iterator[AuditFinding | Progress]:
    """Check that every move follows from those before it, is booked to the unit, and that the moves add up to the
    totals.
    """
    balances: Balances = {}
    origins = {pool.id: pool.origin for pool in prepaid.all_pools(conn)}
    count = 0
    for row in books.prepaid_moves(conn):
        before = balances.get((row.pool_id, row.unit), PrepaidBalance())
        after = _follow(conn, row, before, origins.get(row.pool_id, ""))
        if after is None:
            yield AuditFinding(
                "prepaid_moves", str(row.seq), f"a {row.kind} by payment {row.payment_id}, which bought nothing"
            )
            continue
        yield from _check_move(conn, row, before, after, origins.get(row.pool_id, ""))
        balances[row.pool_id, row.unit] = after
        count += 1
    yield from _check_counts(conn, balances, origins)
    yield from each_differing("topups", books.topup_ends(conn), "it ended as {}; by its event, as {}")
    yield Progress("prepaid_moves", count)


def _follow(conn: Connection, row: MoveRow, before: PrepaidBalance, origin: str) -> PrepaidBalance | None:
    """The balance that must follow a move; None if no payment bought it."""
    if row.kind == "use":
        return use(before, row.used + row.unexplained)
    paid = _paid(conn, row, origin)
    if not paid:
        return None
    return buy(before, row.bought, paid) if row.kind == "buy" else take_back(before, -row.bought, paid)


def _paid(conn: Connection, row: MoveRow, origin: str) -> Mapping[str, int]:
    """The units that the payment's posting put into the prepaid account."""
    lines = journal.postings(conn, books.bought_by(conn, row))
    return {asset: units for account, asset, units in lines if account == prepaid_account(origin)}


def _check_move(
    conn: Connection, row: MoveRow, before: PrepaidBalance, after: PrepaidBalance, origin: str
) -> Iterator[AuditFinding]:
    recorded = (row.bought, row.used, row.unexplained)
    expected = (after.bought - before.bought, after.used - before.used, after.unexplained - before.unexplained)
    if recorded != expected:
        yield AuditFinding(
            "prepaid_moves", str(row.seq), f"it changes the balance by {recorded}; it should by {expected}"
        )
    spent = {asset: cost.used - before.costs.get(asset, Cost()).used for asset, cost in after.costs.items()}
    expected_entry = ledger.use(origin, spent)
    lines = sorted(expected_entry.postings) if expected_entry else []
    if lines != sorted(journal.postings(conn, row.entry_id)) or (expected_entry is None) != (row.entry_id is None):
        yield AuditFinding("prepaid_moves", str(row.seq), f"entry {row.entry_id} does not book what it uses")


def _check_counts(conn: Connection, balances: Balances, origins: Mapping[int, str]) -> Iterator[AuditFinding]:
    for (pool, name), (bought, used, unexplained) in prepaid.counted(conn).items():
        computed = balances.pop((pool, name), PrepaidBalance())
        if (bought, used, unexplained) != (computed.bought, computed.used, computed.unexplained):
            yield AuditFinding("prepaid_totals", f"{pool} {name}", "it differs from the sum of the moves")
        if dict(prepaid.balance(conn, pool, name).costs) != dict(computed.costs):
            yield AuditFinding("prepaid_costs", f"{pool} {name}", "they differ from the sum of the moves")
    for pool, name in balances:
        yield AuditFinding("prepaid_totals", f"{pool} {name}", "missing, although there are moves of it")
    left = {(prepaid_account(origin), asset): units for (origin, asset), units in prepaid.costs_left(conn).items()}
    booked = {
        (account, asset): units
        for account, asset, units in journal.balances(conn)
        if account in {prepaid_account(origin) for origin in origins.values()}
    }
    for account, asset in sorted(left.keys() | booked.keys()):
        if left.get((account, asset), 0) != booked.get((account, asset), 0):
            yield AuditFinding("prepaid_costs", f"{account} {asset}", "its balance in the entries differs")
