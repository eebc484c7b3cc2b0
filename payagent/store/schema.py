"""The tables of ledger.db, and what SQL itself guarantees about them.

The constraints are the last line of the exactly-once rules: they hold whatever the Python above them does.
At most one live payment per intent and one per invoice ever; an anchor belongs to one payment and never
changes; every attempt spends its payment's anchor; a coin is reserved once; entries balance per asset;
what is history (attempts, journal, postings, events, sightings, submissions) is append-only.

Units are INTEGER (2^63-1 at most), times are milliseconds since 1970 UTC.
"""

import sqlite3

from sqlite_utils import Database, Migrations

migrations = Migrations("payagent")

APPEND_ONLY = {
    "attempts": "tx_id",
    "events": "seq",
    "journal": "id",
    "postings": "seq",
    "sightings": "seq",
    "submissions": "seq",
}
"""History, by table and its key."""

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

-- terms_hash never changes: the same id with other terms is refused, not stored over.
CREATE TABLE invoices (
  seq INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  invoice_id TEXT NOT NULL,
  intent_id TEXT NOT NULL REFERENCES intents(id),
  dialect TEXT NOT NULL,
  terms_hash TEXT NOT NULL,
  outputs TEXT NOT NULL,
  batch_target INTEGER,
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
CREATE UNIQUE INDEX payments_one_per_intent ON payments(intent_id)
  WHERE state NOT IN ('rejected', 'denied', 'void');
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

-- Signed bytes, before they leave. `inputs` is a list of refs between spaces; the anchor is among them.
CREATE TABLE attempts (
  tx_id TEXT PRIMARY KEY,
  payment_id TEXT NOT NULL,
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
CREATE TRIGGER journal_balances BEFORE INSERT ON journal
  WHEN NOT EXISTS (SELECT 1 FROM postings WHERE entry = NEW.id)
    OR EXISTS (SELECT 1 FROM postings WHERE entry = NEW.id GROUP BY asset HAVING SUM(units) <> 0)
  BEGIN SELECT RAISE(ABORT, 'the entry does not balance'); END;
CREATE TRIGGER postings_sealed BEFORE INSERT ON postings
  WHEN EXISTS (SELECT 1 FROM journal WHERE id = NEW.entry)
  BEGIN SELECT RAISE(ABORT, 'the entry is sealed'); END;

-- Everything that happened to a payment, in order.
CREATE TABLE events (
  seq INTEGER PRIMARY KEY,
  payment_id TEXT NOT NULL REFERENCES payments(id),
  event TEXT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_payment ON events(payment_id);

CREATE TRIGGER payments_identity
  BEFORE UPDATE OF id, kind, app_id, intent_id, invoice, outputs, created_at_ms ON payments
  BEGIN SELECT RAISE(ABORT, 'what a payment is for never changes'); END;
CREATE TRIGGER payments_anchor BEFORE UPDATE OF anchor ON payments WHEN OLD.anchor IS NOT NULL
  BEGIN SELECT RAISE(ABORT, 'an anchor never changes'); END;
CREATE TRIGGER payments_stay BEFORE DELETE ON payments
  BEGIN SELECT RAISE(ABORT, 'payments are never deleted'); END;
CREATE TRIGGER invoices_fixed BEFORE UPDATE ON invoices
  BEGIN SELECT RAISE(ABORT, 'an invoice never changes'); END;
"""


def _append_only(table: str, key: str) -> str:
    """Triggers against UPDATE, DELETE and REPLACE (whose delete fires no trigger on a plain connection)."""
    stop = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;\n"
    present = f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})"  # noqa: S608  names of ours
    return "\n".join(
        f"CREATE TRIGGER {table}_no_{name} BEFORE {event} ON {table} {when} {stop}"
        for name, event, when in (
            ("update", "UPDATE", ""),
            ("delete", "DELETE", ""),
            ("replace", "INSERT", present),
        )
    )


@migrations()
def m001_first_tables(db: Database) -> None:
    for statement in _statements(_TABLES + "".join(_append_only(*item) for item in APPEND_ONLY.items())):
        db.execute(statement)


def _statements(script: str) -> list[str]:
    """Split at semicolons that end a line outside of a trigger's body (executescript would commit)."""
    statements, current = [], ""
    for line in script.splitlines():
        current += line + "\n"
        inside = "CREATE TRIGGER" in current and "END;" not in current
        if line.rstrip().endswith(";") and not inside:
            statements.append(current)
            current = ""
    return statements


def missing_guards(conn: sqlite3.Connection) -> list[str]:
    """The names of triggers that ought to be there and are not (`table.transform()` drops them)."""
    expected = [f"{table}_no_{verb}" for table in APPEND_ONLY for verb in ("update", "delete", "replace")]
    expected += ["journal_balances", "postings_sealed", "payments_identity", "payments_anchor", "payments_stay"]
    expected.append("invoices_fixed")
    present = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
    return [name for name in expected if name not in present]
