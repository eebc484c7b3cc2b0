"""`verify`: checks every row of the ledger in one pass over each table, and yields findings as it goes.

Never: stops at the first finding; asks anything but the file; reports as clean a fault that only the chain can
show (a deposit and its UTxO, both changed alike).
"""

from collections.abc import Iterator

from payagent.audit.event_tables import check_event_tables
from payagent.audit.finding import AuditFinding, Head, Progress, each_differing, each_of, to_the_end
from payagent.audit.payment_shares import shared_out
from payagent.audit.prepaid import check_prepaid
from payagent.audit.seals import PROGRESS_EVERY, check_seals
from payagent.audit.signed_bytes import Owner, of_all_accounts
from payagent.core import ledger
from payagent.core.ledger import EXTERNAL, HELD, WALLET, general_account, wallet_account
from payagent.store.audit import books, recount
from payagent.store.db.schema import changed_views, lacking_migrations, missing_guards
from payagent.store.db.unit import Connection
from payagent.store.rows import about, journal
from payagent.store.rows.journal import EntryRow

_OF_NO_PAYMENT = (
    "deposit",
    "deposit_reversed",
    "use",
    "use_reversed",
    "external_spend",
    "external_spend_reversed",
)

VerifyResult = AuditFinding | Progress | Head


def verify(conn: Connection, owner: Owner, noted: Head | None = None) -> Iterator[VerifyResult]:
    """Findings, progress and the newest seal. `conn` must be in one read transaction.

    `noted` is a newest seal from an earlier run: only it can reveal that the end of the chain was cut off.
    """
    yield from _guards(conn)
    if lacking_migrations(conn):
        return  # the other checks read tables and columns that it may lack
    from payagent.audit.channels import check_channels  # not when the daemon starts: it may have no channels

    owner = of_all_accounts(owner, about.account_addresses(conn))
    with shared_out(conn, owner) as payments:
        for table, check in (
            ("seals", check_seals(conn, noted)),
            ("sqlite_master", _references(conn)),
            ("entries", _entries(conn)),
            ("balances", _balances(conn)),
            ("prepaid_moves", check_prepaid(conn)),
            ("channels", check_channels(conn)),
            ("utxos", _utxos(conn)),
            ("entries", _external_spends(conn)),
            ("limits", check_limits(conn)),
            ("apps", check_event_tables(conn)),
            ("homes", _fleet(conn)),
            ("payments", payments),
        ):
            yield from to_the_end(table, check)


def _guards(conn: Connection) -> Iterator[AuditFinding]:
    if lacking := lacking_migrations(conn):
        message = (
            "the ledger is of an older payagent: use that version, or start this one on it, which migrates it"
        )
        yield AuditFinding("_sqlite_migrations", ", ".join(lacking), message)
    for names, what in (
        (missing_guards(conn), "this guard trigger is missing or altered"),
        (books.other_triggers(conn), "a trigger that payagent did not create: it may change what is written"),
        (changed_views(conn), "this view is missing or altered"),
    ):
        yield from each_of("sqlite_master", names, "{}", what)


def _references(conn: Connection) -> Iterator[VerifyResult]:
    for place, table in enumerate(books.REFERRING, 1):
        yield from each_of(table, books.broken_references(conn, table), "{}", "it refers to a row that {1} lacks")
        yield Progress("tables", place)


def _entries(conn: Connection) -> Iterator[VerifyResult]:
    """Check that entries without a payment balance, and that deposits match their UTxOs.

    Entries of payments are checked with their payments.
    """
    count = 0
    for entry in books.entries_of_no_payment(conn):
        yield from _entry(conn, entry)
        count += 1
        if count % PROGRESS_EVERY == 0:
            yield Progress("entries", count)
    yield from each_of("entries", books.unposted(conn), "{}", "it has no postings")
    yield from each_of("entries", books.unmoved(conn), "{0}", "it books {1} moves of a prepaid balance, not one")
    yield from each_of("intents", books.unpaid_ends(conn), "{}", "it ended, and it has no payment")
    yield Progress("entries", count)


def _entry(conn: Connection, entry: EntryRow) -> Iterator[AuditFinding]:
    sums = ledger.add({asset: units} for _, asset, units in entry.postings)
    for asset, units in sums.items():
        if units:
            yield AuditFinding("entries", str(entry.id), f"{asset} is out of balance by {units}")
    if entry.kind not in _OF_NO_PAYMENT:
        yield AuditFinding("entries", str(entry.id), f"a {entry.kind} without a payment")
    elif entry.kind in ("deposit", "deposit_reversed"):
        yield from _deposit(conn, entry)


def _deposit(conn: Connection, entry: EntryRow) -> Iterator[AuditFinding]:
    sign = 1 if entry.kind == "deposit" else -1
    lines = {(account, asset): sign * units for account, asset, units in entry.postings}
    utxo, number, was_taken_back = books.deposited(conn, entry.ref or "")
    booked = (account for account, _ in lines if general_account(account) == WALLET)
    wallet = min(booked, default=WALLET) if number is None else wallet_account(number)
    arrived = {asset: units for (account, asset), units in lines.items() if account == wallet}
    contrary = {(EXTERNAL, asset): -units for asset, units in arrived.items()}
    if lines != {(wallet, asset): units for asset, units in arrived.items()} | contrary:
        yield AuditFinding(
            "entries", str(entry.id), f"a {entry.kind} must move units between wallet and external only"
        )
    if utxo is not None and utxo != arrived:
        yield AuditFinding("entries", str(entry.id), f"{arrived} arrived in {entry.ref}, the UTxO holds {utxo}")
    if utxo is None and not was_taken_back:
        yield AuditFinding("utxos", str(entry.ref), f"entry {entry.id} books it, and it is missing")


def _balances(conn: Connection) -> Iterator[AuditFinding]:
    """Check that each account's balance is the sum of its postings."""
    stored = {(account, asset): units for account, asset, units in journal.turnover(conn, journal.EVERYTHING)}
    summed = {(account, asset): units for account, asset, units in journal.added_up(conn)}
    for account, asset in sorted(stored.keys() | summed.keys()):
        stored_units, summed_units = stored.get((account, asset)), summed.get((account, asset))
        if stored_units != summed_units:
            yield AuditFinding(
                "balances", f"{account} {asset}", f"it is {stored_units}; the postings add up to {summed_units}"
            )


def _utxos(conn: Connection) -> Iterator[VerifyResult]:
    """Check that wallet + held is the total of the UTxOs that are booked and not spent by a booked transaction."""
    ours: dict[str, int] = {}
    count = 0
    for utxo in books.utxo_counts(conn):
        for asset, units in utxo.value.items():
            ours[asset] = ours.get(asset, 0) + utxo.times * units
        if utxo.is_unbooked:
            yield AuditFinding("utxos", utxo.ref, "a deposit without an entry")
        if utxo.is_spent_by_nothing:
            yield AuditFinding("utxos", utxo.ref, "the transaction recorded as its spender does not spend it")
        if utxo.is_made_by_nothing:
            yield AuditFinding("utxos", utxo.ref, "it is not a deposit, and no transaction of ours makes it")
        if utxo.can_never_be:
            yield AuditFinding("utxos", utxo.ref, "it is pending, and nothing can make it any more")
        count += 1
        if count % PROGRESS_EVERY == 0:
            yield Progress("utxos", count)
    booked = ledger.add(
        {asset: units}
        for account, asset, units in journal.balances(conn)
        if general_account(account) in (WALLET, HELD)
    )
    for asset in sorted(ours.keys() | booked.keys()):
        if ours.get(asset, 0) != booked.get(asset, 0):
            message = f"the entries say {booked.get(asset, 0)} are ours; the UTxOs add up to {ours.get(asset, 0)}"
            yield AuditFinding("utxos", asset, message)
    yield Progress("utxos", count)


def check_limits(conn: Connection) -> Iterator[AuditFinding]:
    """Check what counts against limits: each hold, and the stored counters against the holds.

    Not whether a limit was exceeded: the events record which limits were in force.
    """
    for read, table, row, what in (
        (
            recount.miscounted_holds,
            "holds",
            "{0} {1}",
            "{2} of its units count against limits, {3} should",
        ),
        (recount.misdated_holds, "holds", "{} {}", "it does not count from the time when its payment ended"),
        (recount.holds_with_clock_back, "holds", "{} {}", "the limits' clock went back before it was counted"),
        (
            recount.wrong_counters,
            "limit_counters",
            "{} {} {} {} {}",
            "it differs from what the holds, promises and uses count",
        ),
        (
            recount.unreleased_approval_holds,
            "holds",
            "{} {}",
            "it was not released when the approval was decided",
        ),
        (recount.approvals_without_hold, "holds", "{}", "it waited for a person, and nothing was held for it"),
        (recount.wrong_shares, "prepaid_shares", "{} {} {}", "it differs from the app's payments and uses"),
    ):
        yield from each_of(table, read(conn), row, what)


def _fleet(conn: Connection) -> Iterator[AuditFinding]:
    """Check that homes, and the ends of requests to the holder of an account, follow from the events."""
    yield from each_differing("homes", books.homes(conn), "its account is {}, by the events {}")
    yield from each_differing("admission_requests", books.request_ends(conn), "it ended {}, by the events {}")


def _external_spends(conn: Connection) -> Iterator[AuditFinding]:
    """Check that each observation of an external spend, and each loss of one, is booked once, with its UTxOs'
    value.
    """
    entries = list(books.external_spend_entries(conn))
    block_observations = list(books.external_spend_sums(conn))
    for (number, tx_id, is_on_chain, account, units), (entry, kind, ref) in zip(
        block_observations, entries, strict=False
    ):
        book = ledger.external_spend if is_on_chain else ledger.external_spend_reversed
        expected = book(units, account)
        lines = sorted(journal.postings(conn, entry))
        if (kind, ref) != (expected.kind, tx_id) or lines != sorted(
            (p.account, p.asset, p.units) for p in expected.postings
        ):
            yield AuditFinding("entries", str(entry), f"it does not book external spend {number}")
    for number, tx_id, *_ in block_observations[len(entries) :]:
        yield AuditFinding("external_spends", str(number), f"nothing is booked for {tx_id}")
    for entry, *_ in entries[len(block_observations) :]:
        yield AuditFinding("entries", str(entry), "no external spend was recorded for it")
    for number in books.unseen_voids(conn):
        yield AuditFinding(
            "events", str(number), "no transaction was seen in that block that makes the payment void"
        )
