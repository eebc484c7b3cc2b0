"""The tables of ledger.db, and what SQL itself guarantees about them.

The constraints are the last line of the exactly-once rules: they hold whatever the Python above them does.
No payment is opened for an intent that has a live one, and there is one per invoice ever; an anchor belongs to
one payment and never changes; every attempt spends its payment's anchor; a coin is reserved once; entries balance
per asset; what is history (attempts, invoices, journal, postings, events, sightings, submissions) is append-only,
its events chained by their hashes; of the other rows that stay, only what may change does.

A guard is a trigger. Each holds on any connection, also one with foreign keys and recursive triggers off, as
the sqlite3 shell has: REPLACE then deletes a row without a trigger, so that a guard looks at what is inserted.
Units are INTEGER (2^63-1 at most), times are milliseconds since 1970 UTC.

May import: sqlite-utils, the standard library. Never: reads or writes a row.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlite_utils import Database, Migrations

migrations = Migrations("payagent")

GENESIS = "0" * 64
"""What stands for the hash before the first event."""

_TABLES = """
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

-- A client of payagent. Only the hash of its token is kept.
CREATE TABLE apps (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  token_hash TEXT NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL
) STRICT;

-- One purchase that an app wants. A derived key is free again once its delivery is accepted (ended_at_ms).
CREATE TABLE intents (
  id TEXT PRIMARY KEY,
  app_id TEXT NOT NULL REFERENCES apps(id),
  key TEXT NOT NULL,
  derived INTEGER NOT NULL CHECK (derived IN (0, 1)),
  fingerprint TEXT NOT NULL,
  origin TEXT NOT NULL,
  request TEXT,
  request_id TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL,
  ended_at_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX intents_live ON intents(app_id, key) WHERE ended_at_ms IS NULL;

-- terms_hash never changes: the same id with other terms is refused, not stored over. handed_over: the merchant
-- broadcasts, and payagent does not. echo: what of the 402 its dialect repeats in the proof.
CREATE TABLE invoices (
  seq INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  invoice_id TEXT NOT NULL,
  intent_id TEXT NOT NULL REFERENCES intents(id),
  dialect TEXT NOT NULL,
  terms_hash TEXT NOT NULL,
  outputs TEXT NOT NULL,
  batch_target INTEGER,
  proof TEXT NOT NULL CHECK (proof IN ('tx_hash', 'signed_cbor')),
  handed_over INTEGER NOT NULL CHECK (handed_over IN (0, 1)),
  echo TEXT,
  commitment TEXT,
  received_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER,
  response TEXT NOT NULL,
  UNIQUE (origin, invoice_id)
) STRICT;

-- What an intent became; or, without intent and invoice, a self-transfer of the operator's.
CREATE TABLE payments (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('invoice', 'send', 'split', 'sweep')),
  app_id TEXT NOT NULL REFERENCES apps(id),
  intent_id TEXT NOT NULL REFERENCES intents(id),
  invoice INTEGER REFERENCES invoices(seq),
  outputs TEXT NOT NULL,
  state TEXT NOT NULL,
  delivery TEXT NOT NULL,
  anchor TEXT,
  ttl_slot INTEGER,
  tx_id TEXT,
  block_hash TEXT,
  block_height INTEGER,
  block_slot INTEGER,
  merchant_status TEXT,
  reason_code TEXT,
  reason TEXT,
  created_at_ms INTEGER NOT NULL,
  changed_at_ms INTEGER NOT NULL,
  CHECK ((kind = 'invoice') = (invoice IS NOT NULL)),
  CHECK ((anchor IS NULL) = (state IN ('received', 'awaiting_approval', 'rejected', 'denied'))
         OR (state = 'rejected' AND anchor IS NOT NULL)),
  UNIQUE (id, anchor)
) STRICT;
CREATE UNIQUE INDEX payments_one_per_invoice ON payments(invoice) WHERE state NOT IN ('rejected', 'denied');
CREATE UNIQUE INDEX payments_one_per_anchor ON payments(anchor) WHERE state NOT IN ('rejected', 'denied');
CREATE INDEX payments_by_state ON payments(state);
CREATE INDEX payments_by_app ON payments(app_id, seq);
CREATE INDEX payments_by_intent ON payments(intent_id);

-- Units reserved for a payment, fee and riding ADA included. They count against limits until released.
CREATE TABLE holds (
  payment_id TEXT NOT NULL REFERENCES payments(id),
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units > 0),
  at_ms INTEGER NOT NULL,
  released_at_ms INTEGER,
  PRIMARY KEY (payment_id, asset)
) STRICT;
CREATE INDEX holds_counted ON holds(asset, at_ms, units) WHERE released_at_ms IS NULL;

-- Signed bytes, before they leave. `inputs` is a list of refs between spaces; the anchor is among them. A cancel
-- pays nobody but the wallet itself.
CREATE TABLE attempts (
  tx_id TEXT PRIMARY KEY,
  payment_id TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('pay', 'cancel')),
  anchor TEXT NOT NULL,
  invoice INTEGER REFERENCES invoices(seq),
  inputs TEXT NOT NULL,
  cbor BLOB NOT NULL,
  fee_lovelace INTEGER NOT NULL CHECK (fee_lovelace > 0),
  ttl_slot INTEGER NOT NULL,
  signed_at_ms INTEGER NOT NULL,
  FOREIGN KEY (payment_id, anchor) REFERENCES payments(id, anchor),
  CHECK (instr(' ' || inputs || ' ', ' ' || anchor || ' ') > 0)
) STRICT;
CREATE INDEX attempts_by_payment ON attempts(payment_id);

-- C4: the bytes were about to go to a provider. Whatever answered, or nothing, comes later as an event.
CREATE TABLE submissions (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL REFERENCES attempts(tx_id),
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX submissions_by_tx ON submissions(tx_id, at_ms);

-- C5: a provider showed an attempt in a block.
CREATE TABLE sightings (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL REFERENCES attempts(tx_id),
  block_hash TEXT NOT NULL,
  block_height INTEGER NOT NULL,
  block_slot INTEGER NOT NULL,
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX sightings_by_tx ON sightings(tx_id);

-- Our own view of our UTxOs. pending: change of an attempt that is in no block; locked: holds a datum or a
-- script and is never spent; missing: the provider's complete list lacks it and nothing of ours spent it.
CREATE TABLE coins (
  ref TEXT PRIMARY KEY,
  tx_id TEXT NOT NULL,
  output_index INTEGER NOT NULL,
  lovelace INTEGER NOT NULL CHECK (lovelace > 0),
  assets TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('deposit', 'change')),
  state TEXT NOT NULL CHECK (state IN ('pending', 'free', 'locked', 'spent', 'missing')),
  spent_by TEXT,
  CHECK ((state = 'spent') = (spent_by IS NOT NULL))
) STRICT;
CREATE INDEX coins_by_state ON coins(state);
CREATE INDEX coins_by_tx ON coins(tx_id);

CREATE TABLE reservations (
  ref TEXT PRIMARY KEY REFERENCES coins(ref),
  payment_id TEXT NOT NULL REFERENCES payments(id)
) STRICT;
CREATE INDEX reservations_by_payment ON reservations(payment_id);

-- Double entry. The postings of an entry come first and its journal row seals them: it is refused unless
-- they sum to zero per asset, and a sealed entry takes no more postings.
CREATE TABLE journal (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('deposit', 'undeposit', 'reserve', 'post', 'reverse', 'release')),
  payment_id TEXT REFERENCES payments(id),
  ref TEXT,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX journal_by_payment ON journal(payment_id);
CREATE TABLE postings (
  seq INTEGER PRIMARY KEY,
  entry INTEGER NOT NULL REFERENCES journal(id) DEFERRABLE INITIALLY DEFERRED,
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units <> 0)
) STRICT;
CREATE INDEX postings_by_account ON postings(account, asset, units);
CREATE INDEX postings_by_entry ON postings(entry);

-- Everything that happened to a payment, in order. Each row's hash covers the one before (queries.event_hash).
CREATE TABLE events (
  seq INTEGER PRIMARY KEY,
  payment_id TEXT NOT NULL REFERENCES payments(id),
  event TEXT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  prev_hash TEXT NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;
CREATE INDEX events_by_payment ON events(payment_id);
"""


@dataclass(frozen=True, slots=True)
class Guard:
    """A trigger that refuses, with `message`, what its `when` describes."""

    name: str
    on: str
    when: str
    message: str

    @property
    def sql(self) -> str:
        return (
            f"CREATE TRIGGER {self.name} BEFORE {self.on} WHEN {self.when} "
            f"BEGIN SELECT RAISE(ABORT, '{self.message}'); END;"
        )


_NOT_ENDED = "{0}ended_at_ms IS NULL"
_NOT_REFUSED = "{0}state NOT IN ('rejected', 'denied')"
_NOT_OVER = "{0}state NOT IN ('rejected', 'denied', 'void')"


@dataclass(frozen=True, slots=True)
class Key:
    """What is unique in a table, among the rows that `live` (with {0} before its columns) describes."""

    columns: tuple[str, ...]
    live: str | None = None

    def taken(self, table: str, *but: str) -> str:
        """SQL: whether a row, for which all of `but` holds, has the key of the NEW row."""
        terms = [f"{column} = NEW.{column}" for column in self.columns]
        if self.live:
            terms += [self.live.format(""), self.live.format("NEW.")]
        return f"EXISTS (SELECT 1 FROM {table} WHERE {' AND '.join((*terms, *but))})"  # noqa: S608  names of ours

    def can_collide(self, fixed: tuple[str, ...]) -> bool:
        """Whether an update can give a row the key of another one, when `fixed` columns do not change."""
        return self.live == _NOT_REFUSED or not set(self.columns) <= set(fixed)


@dataclass(frozen=True, slots=True)
class Kept:
    """A table whose rows stay. `fixed` columns never change (None: nothing does), `once` ones only from NULL."""

    keys: tuple[Key, ...]
    fixed: tuple[str, ...] | None = None
    once: tuple[str, ...] = ()


_ROW = Key(("rowid",))

KEPT = {
    "attempts": Kept((_ROW, Key(("tx_id",)))),
    "events": Kept((_ROW,)),
    "invoices": Kept((_ROW, Key(("origin", "invoice_id")))),
    "journal": Kept((_ROW,)),
    "postings": Kept((_ROW,)),
    "sightings": Kept((_ROW,)),
    "submissions": Kept((_ROW,)),
    "apps": Kept((_ROW, Key(("id",)), Key(("name",)), Key(("token_hash",))), fixed=("rowid", "id")),
    "intents": Kept(
        (_ROW, Key(("id",)), Key(("app_id", "key"), _NOT_ENDED)),
        fixed=(
            *("rowid", "id", "app_id", "key", "derived", "fingerprint"),
            *("origin", "request", "request_id", "created_at_ms"),
        ),
        once=("ended_at_ms",),
    ),
    "holds": Kept(
        (_ROW, Key(("payment_id", "asset"))),
        fixed=("rowid", "payment_id", "asset", "units", "at_ms"),
    ),
    "payments": Kept(
        (
            *(_ROW, Key(("id",))),
            *(Key(("invoice",), _NOT_REFUSED), Key(("anchor",), _NOT_REFUSED)),
        ),
        fixed=("rowid", "id", "kind", "app_id", "intent_id", "invoice", "outputs", "created_at_ms"),
        once=("anchor",),
    ),
}
"""Every table whose rows are never deleted and never replaced, and what of a row may change."""

# SUM() raises when it passes 2^63-1, which two postings of a token can. Summed in two halves it cannot, below
# 2^31 postings: the sum is zero when the low halves carry whole units of 2^32 and the high halves cancel these.
_UNBALANCED = (
    "(SUM(units & 4294967295) & 4294967295) <> 0 OR SUM(units >> 32) + (SUM(units & 4294967295) >> 32) <> 0"
)

_OTHER_GUARDS = (
    # asked when a payment is opened: a rollback may bring a void one back beside the one that came after it
    Guard(
        "payments_one_per_intent",
        "INSERT ON payments",
        Key(("intent_id",), _NOT_OVER).taken("payments"),
        "the intent has a payment",
    ),
    Guard(
        "payments_refused_for_good",
        "UPDATE ON payments",
        "OLD.state IN ('rejected', 'denied') AND NEW.state IS NOT OLD.state",
        "what was refused stays refused",
    ),
    Guard(
        "journal_balances",
        "INSERT ON journal",
        "NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.id) OR EXISTS "  # noqa: S608  names of ours
        f"(SELECT 1 FROM postings WHERE entry = NEW.id GROUP BY asset HAVING {_UNBALANCED})",
        "the entry does not balance",
    ),
    Guard(
        "postings_sealed",
        "INSERT ON postings",
        "EXISTS (SELECT 1 FROM journal WHERE id = NEW.entry)",
        "the entry is sealed",
    ),
    Guard(
        "events_chained",
        "INSERT ON events",
        "NEW.prev_hash IS NOT "  # noqa: S608  names of ours
        f"COALESCE((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}') "
        "OR NEW.seq IS NOT COALESCE((SELECT MAX(seq) FROM events), 0) + 1",
        "the event does not follow the last one",
    ),
)


def _guards_of(table: str, kept: Kept) -> Iterator[Guard]:
    only_grows = f"{table} is append-only" if kept.fixed is None else None
    taken = " OR ".join(key.taken(table) for key in kept.keys)
    yield Guard(f"{table}_no_delete", f"DELETE ON {table}", "1", only_grows or f"{table} are never deleted")
    yield Guard(f"{table}_no_replace", f"INSERT ON {table}", taken, only_grows or f"{table} has such a row")
    if kept.fixed is None:
        yield Guard(f"{table}_no_update", f"UPDATE ON {table}", "1", f"{table} is append-only")
        return
    # no list of columns at the trigger: it would not match an update of the rowid by another of its names
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in kept.fixed)
    yield Guard(f"{table}_fixed", f"UPDATE ON {table}", changed, f"what {table} are about never changes")
    for column in kept.once:
        again = f"OLD.{column} IS NOT NULL AND NEW.{column} IS NOT OLD.{column}"
        yield Guard(f"{table}_{column}_once", f"UPDATE ON {table}", again, f"{column} of {table} is set once")
    if open_keys := [key for key in kept.keys if key.can_collide(kept.fixed)]:
        taken = " OR ".join(key.taken(table, "rowid <> OLD.rowid") for key in open_keys)
        yield Guard(f"{table}_no_overwrite", f"UPDATE ON {table}", taken, f"{table} has such a row")


GUARDS = (*_OTHER_GUARDS, *(guard for table, kept in KEPT.items() for guard in _guards_of(table, kept)))


@migrations()
def m001_first_tables(db: Database) -> None:
    for statement in (*_statements(_TABLES), *(guard.sql for guard in GUARDS)):
        db.execute(statement)


def _statements(script: str) -> Iterable[str]:
    """Split at semicolons that end a line (executescript would commit)."""
    current = ""
    for line in script.splitlines():
        current += line + "\n"
        if line.rstrip().endswith(";"):
            yield current
            current = ""


def missing_guards(conn: sqlite3.Connection) -> list[str]:
    """The names of guards that are not there as they ought to be (`table.transform()` drops them)."""
    present = dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall())
    return [guard.name for guard in GUARDS if present.get(guard.name) != guard.sql.rstrip(";")]
