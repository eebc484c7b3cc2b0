"""Triggers that guard existing rows: which rows may change, and how.

A nonce UTxO never changes. Entries balance per asset. History (attempts, invoices, entries, postings, events,
block observations, submissions) is append-only, and events are chained by their hashes. In the other tables of
record, only the columns that may change do. Each commit seals the rows that it adds (store.db.seals).

Each guard holds on any connection, also with foreign keys and recursive triggers off, as in the sqlite3 shell.
With recursive triggers off, REPLACE skips delete triggers, so guards check inserts too.

Never: reads or writes a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from payagent.store.db.tables import GENESIS


@dataclass(frozen=True, slots=True)
class Guard:
    """A rule: a change `on` a table, such as "INSERT ON events", is refused with `message` if `when` holds."""

    name: str
    on: str
    when: str
    message: str


@dataclass(frozen=True, slots=True)
class Trigger:
    """The trigger of one kind of change to one table. It asks the guards in order, and the first one refuses."""

    on: str
    guards: tuple[Guard, ...]

    @property
    def name(self) -> str:
        change, _, table = self.on.partition(" ON ")
        return f"{table}_{change.lower()}"

    @property
    def sql(self) -> str:
        when = " OR ".join(f"({guard.when})" for guard in self.guards)
        cases = " ".join(f"WHEN {guard.when} THEN RAISE(ABORT, '{guard.message}')" for guard in self.guards)
        return f"CREATE TRIGGER {self.name} BEFORE {self.on} WHEN {when} BEGIN SELECT CASE {cases} END; END;"


_NOT_ENDED = "{0}ended_at_ms IS NULL"
_NOT_REFUSED = "{0}state NOT IN ('rejected', 'denied')"
_NOT_FREED = _NOT_REFUSED + " AND {0}code IS NOT 'deposit_rolled_back'"
_NOT_OVER = "{0}state NOT IN ('rejected', 'denied', 'void')"


@dataclass(frozen=True, slots=True)
class Key:
    """Columns that are unique in a table, among the rows that match `live` (an SQL condition; {0} is the row's
    prefix).
    """

    columns: tuple[str, ...]
    live: str | None = None

    def taken(self, table: str, *but: str) -> str:
        """SQL: whether a row that also matches all of `but` has the key of the NEW row."""
        terms = [f"{column} = NEW.{column}" for column in self.columns]
        if self.live:
            terms += [self.live.format(""), self.live.format("NEW.")]
        return f"EXISTS (SELECT 1 FROM {table} WHERE {' AND '.join((*terms, *but))})"  # noqa: S608  our own names

    def can_collide(self, fixed: tuple[str, ...]) -> bool:
        """Whether an update that leaves the `fixed` columns alone can give a row another row's key."""
        return self.live in (_NOT_REFUSED, _NOT_FREED) or not set(self.columns) <= set(fixed)


@dataclass(frozen=True, slots=True)
class RecordTable:
    """A table whose rows stay. `fixed` columns never change (None: no column does); `once` columns change only
    from NULL.
    """

    keys: tuple[Key, ...]
    fixed: tuple[str, ...] | None = None
    once: tuple[str, ...] = ()


_ROW = Key(("rowid",))
KEPT = {
    "approvals": RecordTable((_ROW, Key(("payment_id",)))),
    "attempts": RecordTable((_ROW, Key(("tx_id",)))),
    "block_observations": RecordTable((_ROW,)),
    "events": RecordTable((_ROW,)),
    "external_spends": RecordTable((_ROW,)),
    "invoices": RecordTable((_ROW, Key(("origin", "invoice_id")))),
    "merchant_reports": RecordTable((_ROW,)),
    "entries": RecordTable((_ROW,)),
    "prepaid_moves": RecordTable((_ROW, Key(("app_id", "call_key"), "{0}call_key IS NOT NULL"))),
    "prepaid_pools": RecordTable((_ROW, Key(("origin", "partner", "wallet")))),
    "prepaid_uses": RecordTable((_ROW,)),
    "postings": RecordTable((_ROW,)),
    "submissions": RecordTable((_ROW,)),
    "apps": RecordTable((_ROW, Key(("id",)), Key(("name",)))),
    "tokens": RecordTable(
        (_ROW, Key(("hash",)), Key(("app_id",), "{0}revoked_at_ms IS NULL")),
        fixed=("rowid", "hash", "app_id", "created_at_ms", "expires_at_ms"),
        once=("revoked_at_ms",),
    ),
    "meta": RecordTable((_ROW, Key(("key",)))),
    "seals": RecordTable((_ROW,)),
    "intents": RecordTable(
        (_ROW, Key(("id",)), Key(("app_id", "idempotency_key"), _NOT_ENDED)),
        fixed=(
            "rowid",
            "id",
            "app_id",
            "idempotency_key",
            "is_key_derived",
            "fingerprint",
            "origin",
            "request",
            "request_id",
            "created_at_ms",
        ),
        once=("ended_at_ms",),
    ),
    "topups": RecordTable(
        (_ROW, Key(("id",)), Key(("app_id", "key")), Key(("pool_id",), _NOT_ENDED)),
        fixed=(
            "rowid",
            "id",
            "pool_id",
            "app_id",
            "key",
            "trigger",
            "unit",
            "units",
            "request",
            "is_call",
            "created_at_ms",
            "clock_ms",
        ),
        once=(
            "stop_code",
            "stop_reason",
            "stop_detail",
            "ended_at_ms",
            "ended_clock_ms",
            "code",
            "reason",
            "detail",
        ),
    ),
    "homes": RecordTable((_ROW, Key(("origin", "partner"))), fixed=("rowid", "origin", "partner")),
    "admission_requests": RecordTable(
        (_ROW, Key(("id",))),
        fixed=("rowid", "id", "account", "kind", "asked_by", "request", "ends_at_ms"),
        once=("ended_at_ms", "outcome"),
    ),
    "alerts": RecordTable(
        (_ROW, Key(("id",))),
        fixed=("rowid", "id", "kind", "subject", "body", "at_ms"),
    ),
    "holds": RecordTable(
        (_ROW, Key(("payment_id", "stage", "asset"))),
        fixed=("rowid", "payment_id", "stage", "asset", "units", "at_ms", "counted_at_ms"),
    ),
    "payments": RecordTable(
        (
            _ROW,
            Key(("id",)),
            Key(("invoice_seq",), _NOT_REFUSED),
            Key(("nonce_utxo",), _NOT_FREED),
        ),
        fixed=(
            "rowid",
            "id",
            "kind",
            "app_id",
            "intent_id",
            "first_invoice_seq",
            "origin",
            "outputs",
            "pool_id",
            "topup_id",
            "created_at_ms",
            "account",
        ),
        once=("nonce_utxo",),
    ),
}
"""Every table whose rows are never deleted or replaced, and the columns that may change."""

# SUM() raises above 2^63-1, which two postings of a token can exceed. The sums of two halves cannot, below 2^31
# postings. The total is zero if the low halves sum to a multiple of 2^32 and the high halves cancel that carry.
UNBALANCED = (
    "(SUM(units & 4294967295) & 4294967295) <> 0 OR SUM(units >> 32) + (SUM(units & 4294967295) >> 32) <> 0"
)
_OTHER_GUARDS = (
    # checked on insert only: a rollback may revive a void payment beside the one that came after it
    Guard(
        "payments_one_per_intent",
        "INSERT ON payments",
        Key(("intent_id",), _NOT_OVER).taken("payments"),
        "the intent has a payment",
    ),
    # an invoice that any attempt was signed for belongs to that payment for good, whichever invoice it pays now
    *(
        Guard(
            f"payments_invoice_{name}",
            f"{event} ON payments",
            f"{_NOT_REFUSED.format('NEW.')} AND EXISTS "  # noqa: S608  our own names
            "(SELECT 1 FROM attempts WHERE invoice_seq = NEW.invoice_seq AND payment_id <> NEW.id)",
            "another payment was signed for the invoice",
        )
        for name, event in (("unsigned", "INSERT"), ("not_signed", "UPDATE"))
    ),
    Guard(
        "payments_invoice_follows",
        "UPDATE ON payments",
        # the invoice may have come first for another intent: until one payment pays it, any payment may
        "NEW.invoice_seq IS NOT OLD.invoice_seq AND (NEW.state NOT IN ('replacing', 'in_block') OR NOT EXISTS "
        "(SELECT 1 FROM invoices WHERE seq = NEW.invoice_seq AND origin = NEW.origin))",
        "a payment goes by another invoice when it is replaced or found in a block, by one of its origin",
    ),
    Guard(
        "payments_of_the_origin",
        "INSERT ON payments",
        "NEW.origin IS NOT (SELECT origin FROM invoices WHERE seq = NEW.invoice_seq)",
        "a payment has the origin of its invoice",
    ),
    Guard(
        "attempts_of_the_invoice",
        "INSERT ON attempts",
        "EXISTS (SELECT 1 FROM payments WHERE id = NEW.payment_id AND invoice_seq IS NOT NEW.invoice_seq)",
        "an attempt is signed for the invoice that its payment goes by",
    ),
    Guard(
        "payments_asked",
        "UPDATE ON payments",
        "NEW.state = 'awaiting_approval' AND NOT EXISTS (SELECT 1 FROM approvals WHERE payment_id = NEW.id)",
        "nobody was asked about the payment",
    ),
    Guard(
        "payments_refused_for_good",
        "UPDATE ON payments",
        "OLD.state IN ('rejected', 'denied') AND NEW.state IS NOT OLD.state",
        "what was refused stays refused",
    ),
    Guard(
        "entries_balance",
        "INSERT ON entries",
        "NOT EXISTS (SELECT 1 FROM postings WHERE entry_id = NEW.id) OR EXISTS "  # noqa: S608  our own names
        f"(SELECT 1 FROM postings WHERE entry_id = NEW.id GROUP BY asset HAVING {UNBALANCED})",
        "the entry does not balance",
    ),
    Guard(
        "postings_sealed",
        "INSERT ON postings",
        "EXISTS (SELECT 1 FROM entries WHERE id = NEW.entry_id)",
        "the entry is sealed",
    ),
    Guard(
        "topups_end_once",
        "UPDATE ON topups",
        "OLD.ended_at_ms IS NOT NULL",
        "a top-up ends once",
    ),
    Guard(
        "events_chained",
        "INSERT ON events",
        "NEW.prev_hash IS NOT "  # noqa: S608  our own names
        f"COALESCE((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}') "
        "OR NEW.seq IS NOT COALESCE((SELECT MAX(seq) FROM events), 0) + 1",
        "the event does not follow the last one",
    ),
    Guard(
        "seals_chained",
        "INSERT ON seals",
        "NEW.seq IS NOT COALESCE((SELECT MAX(seq) FROM seals), 0) + 1",
        "the seal does not follow the last one",
    ),
)


def _guards_of(table: str, record: RecordTable) -> Iterator[Guard]:
    only_grows = f"{table} is append-only" if record.fixed is None else None
    taken = " OR ".join(key.taken(table) for key in record.keys)
    yield Guard(f"{table}_no_delete", f"DELETE ON {table}", "1", only_grows or f"{table} are never deleted")
    yield Guard(f"{table}_no_replace", f"INSERT ON {table}", taken, only_grows or f"{table} has such a row")
    if record.fixed is None:
        yield Guard(f"{table}_no_update", f"UPDATE ON {table}", "1", f"{table} is append-only")
        return
    # no column list on the trigger: it would miss an update of the rowid by one of its aliases
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in record.fixed)
    yield Guard(f"{table}_fixed", f"UPDATE ON {table}", changed, f"what {table} are about never changes")
    for column in record.once:
        again = f"OLD.{column} IS NOT NULL AND NEW.{column} IS NOT OLD.{column}"
        yield Guard(f"{table}_{column}_once", f"UPDATE ON {table}", again, f"{column} of {table} is set once")
    if open_keys := [key for key in record.keys if key.can_collide(record.fixed)]:
        taken = " OR ".join(key.taken(table, "rowid <> OLD.rowid") for key in open_keys)
        yield Guard(f"{table}_no_overwrite", f"UPDATE ON {table}", taken, f"{table} has such a row")


GUARDS = (*_OTHER_GUARDS, *(guard for table, record in KEPT.items() for guard in _guards_of(table, record)))

TRIGGERS = tuple(
    Trigger(on, tuple(guard for guard in reversed(GUARDS) if guard.on == on))
    for on in sorted({guard.on for guard in GUARDS}, key=lambda on: on.split(" ")[::-1])
)
"""One trigger for each kind of change to each table: SQLite starts a program for each trigger and row."""
