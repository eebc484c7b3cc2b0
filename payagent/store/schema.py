"""The tables of ledger.db, and what SQL itself guarantees about them.

The constraints are the last line of the exactly-once rules: they hold whatever the Python above them does.
No payment is opened for an intent that has a live one, and there is one per invoice ever, whichever of its
attempts was signed for it; an anchor belongs to one payment and never changes; every attempt spends its payment's
anchor; a coin is reserved once; entries balance per asset; what is history (attempts, invoices, journal, postings,
events, sightings, submissions) is append-only, its events chained by their hashes; of the other rows that stay,
only what may change does. What a job adds to them is sealed (store.seals).

A guard is a trigger. Each holds on any connection, also one with foreign keys and recursive triggers off, as
the sqlite3 shell has: REPLACE then deletes a row without a trigger, so that a guard looks at what is inserted.
Units are INTEGER (2^63-1 at most), times are milliseconds since 1970 UTC.

May import: sqlite-utils, the standard library. Never: reads or writes a row.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache

from sqlite_utils import Database, Migrations

migrations = Migrations("payagent")

GENESIS = "0" * 64
"""What stands for the hash before the first event."""

_TABLES = """
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

-- Which start of the daemon writes this file: the last one. A row of its own that is no part of the record.
CREATE TABLE boot (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  epoch TEXT NOT NULL
) STRICT;

-- A client of payagent, and what it may do. merchants (origins) and assets: the only ones that it may pay, between
-- spaces; NULL: it is bound by what binds the wallet.
CREATE TABLE apps (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  merchants TEXT,
  assets TEXT,
  created_at_ms INTEGER NOT NULL
) STRICT;

-- What an app shows to be let in; only its hash is kept. One at a time is good: the next one ends it.
CREATE TABLE tokens (
  hash TEXT PRIMARY KEY,
  app_id TEXT NOT NULL REFERENCES apps(id),
  created_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER,
  revoked_at_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX tokens_good ON tokens(app_id) WHERE revoked_at_ms IS NULL;
CREATE INDEX tokens_by_app ON tokens(app_id);

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

-- What an intent became; or, without an invoice, a self-transfer of the operator's. invoice: the one that counts
-- now, of the attempt that does; first_invoice: the one that it was admitted with, and outputs are its. pool: the
-- prepaid balance that it raises once it is confirmed; topup: the order that it is a part of. void_by: the
-- transaction of another payment without which its anchor would be there. origin: its invoice's, so that those of
-- a merchant are found in order.
CREATE TABLE payments (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('invoice', 'send', 'split', 'sweep')),
  app_id TEXT NOT NULL REFERENCES apps(id),
  intent_id TEXT NOT NULL REFERENCES intents(id),
  first_invoice INTEGER REFERENCES invoices(seq),
  invoice INTEGER REFERENCES invoices(seq),
  origin TEXT,
  outputs TEXT NOT NULL,
  state TEXT NOT NULL,
  delivery TEXT NOT NULL,
  pool INTEGER REFERENCES prepaid_pools(id),
  topup TEXT REFERENCES topups(id),
  anchor TEXT,
  ttl_slot INTEGER,
  tx_id TEXT,
  void_by TEXT,
  block_hash TEXT,
  block_height INTEGER,
  block_slot INTEGER,
  merchant_status TEXT,
  reason_code TEXT,
  reason TEXT,
  created_at_ms INTEGER NOT NULL,
  changed_at_ms INTEGER NOT NULL,
  CHECK ((kind = 'invoice') = (invoice IS NOT NULL)),
  CHECK ((first_invoice IS NULL) = (invoice IS NULL)),
  CHECK ((anchor IS NULL) = (state IN ('received', 'awaiting_approval', 'rejected', 'denied'))
         OR (state = 'rejected' AND anchor IS NOT NULL)),
  UNIQUE (id, anchor)
) STRICT;
CREATE UNIQUE INDEX payments_one_per_invoice ON payments(invoice) WHERE state NOT IN ('rejected', 'denied');
-- what was signed for a payment that is void by its time limits can land on no chain: its anchor may be another's
CREATE UNIQUE INDEX payments_one_per_anchor ON payments(anchor)
  WHERE state NOT IN ('rejected', 'denied') AND reason_code IS NOT 'anchor_gone';
CREATE INDEX payments_by_state ON payments(state);
CREATE INDEX payments_by_app ON payments(app_id, seq);
CREATE INDEX payments_by_origin ON payments(origin, seq) WHERE origin IS NOT NULL;
CREATE INDEX payments_by_time ON payments(created_at_ms);
CREATE INDEX payments_by_intent ON payments(intent_id);
CREATE INDEX payments_of_topup ON payments(topup) WHERE topup IS NOT NULL;
CREATE INDEX payments_buying ON payments(pool)
  WHERE delivery IN ('not_presented', 'presented') AND state NOT IN ('rejected', 'denied', 'void', 'cancelling');
CREATE INDEX payments_shown ON payments(created_at_ms) WHERE delivery = 'presented';
CREATE INDEX payments_denied ON payments(changed_at_ms) WHERE reason_code = 'approval_denied';
CREATE INDEX payments_anchor_gone ON payments(reason_code) WHERE reason_code = 'anchor_gone';
CREATE INDEX payments_by_pool ON payments(pool, seq) WHERE pool IS NOT NULL;
CREATE INDEX payments_coming ON payments(pool)
  WHERE state IN ('reserved', 'signed', 'in_flight', 'replacing', 'in_block');

-- Units reserved for a payment, fee and riding ADA included. stage: `ask` while a person is to decide (no coins
-- are set aside, nothing is booked), `pay` from the decision on. counted_units: what of them counts against
-- limits, all until they are released; NULL of a self-transfer, which no limit binds. counted_at_ms: the limits'
-- clock when they were placed; counted_from_ms: from when on they count, NULL while they are open and count in
-- every window (store.spending).
CREATE TABLE holds (
  payment_id TEXT NOT NULL REFERENCES payments(id),
  stage TEXT NOT NULL CHECK (stage IN ('ask', 'pay')),
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units > 0),
  at_ms INTEGER NOT NULL,
  released_at_ms INTEGER,
  counted_units INTEGER CHECK (counted_units >= 0),
  counted_at_ms INTEGER NOT NULL,
  counted_from_ms INTEGER,
  PRIMARY KEY (payment_id, stage, asset)
) STRICT;

-- What a person was asked about a payment; what was decided, its events tell. terms_hash: what is decided on, its
-- invoice's. reasons and plan: JSON, why it was asked and the transaction as it would have been. ends_at_ms: when,
-- on the limits' clock, it is denied if nobody has decided.
CREATE TABLE approvals (
  payment_id TEXT PRIMARY KEY REFERENCES payments(id),
  terms_hash TEXT NOT NULL,
  reasons TEXT NOT NULL,
  plan TEXT NOT NULL,
  max_total INTEGER,
  asked_at_ms INTEGER NOT NULL,
  ends_at_ms INTEGER NOT NULL
) STRICT;

-- What the holds of a scope count in a span of time, or (what = 'used') what the uses of an app do, kept with them
-- so that nobody need add them up: high * 2^32 + low units. app and merchant (an origin): '' is any. span_ms = 0:
-- the one that never ends.
CREATE TABLE spent (
  app TEXT NOT NULL,
  merchant TEXT NOT NULL,
  asset TEXT NOT NULL,
  span_ms INTEGER NOT NULL,
  start_ms INTEGER NOT NULL,
  what TEXT NOT NULL CHECK (what IN ('paid', 'used')),
  high INTEGER NOT NULL,
  low INTEGER NOT NULL CHECK (low BETWEEN 0 AND 4294967295),
  PRIMARY KEY (app, merchant, asset, span_ms, start_ms, what)
) STRICT, WITHOUT ROWID;

-- Limits that were set at run time: each stands over the config file's of the same scope, asset and kind.
CREATE TABLE limits (
  app TEXT NOT NULL,
  merchant TEXT NOT NULL,
  asset TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('per_payment', 'per_hour', 'per_day', 'per_week', 'per_month', 'total')),
  most_units INTEGER NOT NULL CHECK (most_units >= 0),
  PRIMARY KEY (app, merchant, asset, kind)
) STRICT, WITHOUT ROWID;

-- Merchants that were added at run time: each stands over the config file's of the same name or origin. settings:
-- JSON, as in the merchant's table of the file.
CREATE TABLE merchants (
  name TEXT PRIMARY KEY,
  origin TEXT NOT NULL UNIQUE,
  settings TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The addresses that a merchant may be paid at without anybody being asked: what it was paid at first, and what
-- was allowed since. The text of all their bytes.
CREATE TABLE pins (
  origin TEXT NOT NULL,
  role TEXT NOT NULL CHECK (role IN ('pay_to', 'split')),
  address TEXT NOT NULL,
  PRIMARY KEY (origin, role, address)
) STRICT, WITHOUT ROWID;

-- What is agreed to for a call, by which its later prices are measured: what it cost when it was first paid, or
-- what a person allowed since, for so many calls at once. Of the path without its query.
CREATE TABLE agreed_prices (
  origin TEXT NOT NULL,
  method TEXT NOT NULL,
  path TEXT NOT NULL,
  asset TEXT NOT NULL,
  calls INTEGER NOT NULL CHECK (calls > 0),
  units INTEGER NOT NULL CHECK (units > 0),
  PRIMARY KEY (origin, method, path, asset, calls)
) STRICT, WITHOUT ROWID;

-- How many payments in a row a merchant took and did not serve; stopped_at_ms: since when nothing is bought there.
CREATE TABLE strikes (
  origin TEXT PRIMARY KEY,
  count INTEGER NOT NULL CHECK (count >= 0),
  stopped_at_ms INTEGER
) STRICT, WITHOUT ROWID;

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
CREATE INDEX attempts_by_invoice ON attempts(invoice) WHERE invoice IS NOT NULL;

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
-- script and is never spent; missing: the provider's complete list lacks it and nothing of ours spent it;
-- vanished: what made it was denied time and again, its deposit was taken back, and a payment has it still.
CREATE TABLE coins (
  ref TEXT PRIMARY KEY,
  tx_id TEXT NOT NULL,
  output_index INTEGER NOT NULL,
  lovelace INTEGER NOT NULL CHECK (lovelace > 0),
  assets TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('deposit', 'change')),
  state TEXT NOT NULL CHECK (state IN ('pending', 'free', 'locked', 'spent', 'missing', 'vanished')),
  spent_by TEXT,
  CHECK ((state = 'spent') = (spent_by IS NOT NULL))
) STRICT;
CREATE INDEX coins_by_state ON coins(state);
CREATE INDEX coins_by_tx ON coins(tx_id);

-- A transaction that spends coins of ours and is no attempt, when it was seen in a block (there = 1), or when that
-- block was lost (0). `inputs` are the coins of ours among its inputs, between spaces; `spent`, as JSON, what they
-- held per asset: a coin that turns out to never have been is forgotten, and what was booked of it is not.
CREATE TABLE foreign_sightings (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL,
  there INTEGER NOT NULL CHECK (there IN (0, 1)),
  inputs TEXT NOT NULL,
  spent TEXT NOT NULL,
  block_hash TEXT NOT NULL,
  block_height INTEGER NOT NULL,
  block_slot INTEGER NOT NULL,
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX foreign_sightings_by_tx ON foreign_sightings(tx_id);

CREATE TABLE reservations (
  ref TEXT PRIMARY KEY REFERENCES coins(ref),
  payment_id TEXT NOT NULL REFERENCES payments(id)
) STRICT;
CREATE INDEX reservations_by_payment ON reservations(payment_id);

-- Double entry. The postings of an entry come first and its journal row seals them: it is refused unless
-- they sum to zero per asset, and a sealed entry takes no more postings.
CREATE TABLE journal (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL
    CHECK (kind IN ('deposit', 'undeposit', 'reserve', 'post', 'reverse', 'release', 'use', 'unuse', 'foreign',
                    'unforeign')),
  payment_id TEXT REFERENCES payments(id),
  pool INTEGER REFERENCES prepaid_pools(id),
  ref TEXT,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX journal_by_payment ON journal(payment_id);
CREATE INDEX journal_of_deposits ON journal(ref) WHERE kind IN ('deposit', 'undeposit', 'foreign', 'unforeign');
CREATE TABLE postings (
  seq INTEGER PRIMARY KEY,
  entry INTEGER NOT NULL REFERENCES journal(id) DEFERRABLE INITIALLY DEFERRED,
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units <> 0)
) STRICT;
CREATE INDEX postings_by_account ON postings(account, asset, units);
CREATE INDEX postings_by_entry ON postings(entry);

-- What the postings of an account come to, kept with them so that nobody need add them up: high * 2^32 + low.
CREATE TABLE balances (
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  high INTEGER NOT NULL,
  low INTEGER NOT NULL CHECK (low BETWEEN 0 AND 4294967295),
  PRIMARY KEY (account, asset)
) STRICT;

-- Everything that happened, in order, to a payment or (without one) to the wallet as a whole. Each row's hash
-- covers the one before (events.event_hash).
CREATE TABLE events (
  seq INTEGER PRIMARY KEY,
  payment_id TEXT REFERENCES payments(id),
  event TEXT NOT NULL,
  state TEXT,
  detail TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  prev_hash TEXT NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;
CREATE INDEX events_by_payment ON events(payment_id);
CREATE INDEX events_of_the_wallet ON events(event, seq) WHERE payment_id IS NULL;

-- Whose prepaid balance it is at a merchant; partner is '' where the calls name none.
CREATE TABLE prepaid_pools (
  id INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  partner TEXT NOT NULL,
  wallet TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL,
  UNIQUE (origin, partner, wallet)
) STRICT;

-- What changed of a pool, in `unit` (calls, or an asset): bought by a payment, used by a call, or taken back when
-- a payment lost its block. A call with a key of its own counts once.
CREATE TABLE prepaid_moves (
  seq INTEGER PRIMARY KEY,
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('buy', 'use', 'take_back')),
  bought INTEGER NOT NULL,
  used INTEGER NOT NULL,
  unexplained INTEGER NOT NULL,
  payment_id TEXT REFERENCES payments(id),
  app_id TEXT REFERENCES apps(id),
  call TEXT,
  call_key TEXT,
  entry INTEGER REFERENCES journal(id),
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX prepaid_moves_by_pool ON prepaid_moves(pool, seq);
CREATE INDEX prepaid_moves_by_payment ON prepaid_moves(payment_id);
CREATE INDEX prepaid_moves_by_entry ON prepaid_moves(entry);
CREATE UNIQUE INDEX prepaid_moves_once ON prepaid_moves(app_id, call_key) WHERE call_key IS NOT NULL;

-- What the moves come to, and what was paid for it and is used up, per asset (core.prepaid).
CREATE TABLE prepaid_counts (
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  bought INTEGER NOT NULL CHECK (bought >= used),
  used INTEGER NOT NULL CHECK (used >= 0),
  unexplained INTEGER NOT NULL CHECK (unexplained = 0 OR (unexplained > 0 AND bought = used)),
  PRIMARY KEY (pool, unit)
) STRICT;
CREATE TABLE prepaid_costs (
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  asset TEXT NOT NULL,
  bought INTEGER NOT NULL CHECK (bought >= used),
  used INTEGER NOT NULL CHECK (used >= 0),
  PRIMARY KEY (pool, unit, asset)
) STRICT;

-- A call of an app that used `count` of `unit` (calls, or an asset) of a pool, what that cost, and what of it
-- counts against the app's own limits; counted_at_ms: the limits' clock then. A use that was none is taken back by
-- rows of its number with all units below zero. A row that uses nothing counts what earlier ones did not: what
-- covered them was a payment of the app that came to nothing (store.uses).
CREATE TABLE uses (
  seq INTEGER PRIMARY KEY,
  call INTEGER NOT NULL,
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  unit TEXT NOT NULL,
  count INTEGER NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units <> 0 OR counted_units > 0),
  counted_units INTEGER NOT NULL,
  counted_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX uses_by_call ON uses(call);
CREATE INDEX uses_by_pool ON uses(pool, call);

-- What an app's payments for a pool count against limits, what its uses of the pool cost, and what of that counts.
CREATE TABLE prepaid_shares (
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  asset TEXT NOT NULL,
  paid INTEGER NOT NULL,
  used INTEGER NOT NULL,
  counted INTEGER NOT NULL,
  PRIMARY KEY (pool, app_id, asset)
) STRICT, WITHOUT ROWID;

-- What a merchant said of a pool, as it said it. It never changes what we count.
CREATE TABLE prepaid_observations (
  seq INTEGER PRIMARY KEY,
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  source TEXT NOT NULL CHECK (source IN ('balance', 'credits')),
  http_status INTEGER NOT NULL,
  body TEXT NOT NULL,
  remaining INTEGER,
  total INTEGER,
  used INTEGER,
  unit TEXT,
  expires_at_ms INTEGER,
  why_not_understood TEXT,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX prepaid_observations_by_pool ON prepaid_observations(pool, seq);

-- Calls that have answered 402, with what was last asked for them. Of the path without its query.
CREATE TABLE priced_calls (
  origin TEXT NOT NULL,
  method TEXT NOT NULL,
  path TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL,
  PRIMARY KEY (origin, method, path)
) STRICT;

-- An order to raise a pool by `units` of `unit` (calls, or an asset that is paid). request: the call whose 402
-- sells it, as JSON; is_call: an ordinary one, which uses one of what it buys. clock_ms and ended_clock_ms: the
-- limits' clock when it was ordered and when it ended. stop_code: nothing more is bought for it, and it ends, for
-- this, once its last payment is delivered.
CREATE TABLE topups (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  pool INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  key TEXT NOT NULL,
  cause TEXT NOT NULL CHECK (cause IN ('order', 'auto')),
  unit TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units > 0),
  request TEXT NOT NULL,
  is_call INTEGER NOT NULL CHECK (is_call IN (0, 1)),
  created_at_ms INTEGER NOT NULL,
  clock_ms INTEGER NOT NULL,
  stop_code TEXT,
  stop_reason TEXT,
  ended_at_ms INTEGER,
  ended_clock_ms INTEGER,
  reason_code TEXT,
  reason TEXT,
  UNIQUE (app_id, key)
) STRICT;
CREATE UNIQUE INDEX topups_open ON topups(pool) WHERE ended_at_ms IS NULL;
CREATE INDEX topups_by_pool ON topups(pool, cause, seq);
CREATE INDEX topups_ended ON topups(pool, ended_at_ms);
CREATE INDEX topups_open_by_app ON topups(app_id) WHERE ended_at_ms IS NULL;

-- What somebody is to be told, and whether the webhook has it. subject: what it is about, so that it is raised and
-- cleared once.
CREATE TABLE alerts (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  body TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0,
  next_try_at_ms INTEGER,
  delivered_at_ms INTEGER
) STRICT;
CREATE INDEX alerts_by_subject ON alerts(subject, seq);
CREATE INDEX alerts_waiting ON alerts(next_try_at_ms) WHERE next_try_at_ms IS NOT NULL;

-- What one job added to the tables of record. what: JSON, a table to its first and last new row; marks: four bytes
-- for each of these rows; hash: of all that, of what never changes of them, and of the hash before (store.seals).
CREATE TABLE seals (
  seq INTEGER PRIMARY KEY,
  what TEXT NOT NULL,
  marks BLOB NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;
"""


IS_SPEND = "j.kind IN ('post', 'reverse', 'release') AND q.account NOT IN ('wallet', 'held')"
"""Which postings q of entries j tell of what left the wallet, or came back to it with a lost block."""


def _ada(asset: str, units: str) -> str:
    """SQL: lovelace as ADA with all decimals, from integers alone; NULL of a token."""
    number = f"printf('%s%d.%06d', IIF({units} < 0, '-', ''), abs({units} / 1000000), abs({units} % 1000000))"
    return f"IIF({asset} = 'lovelace', {number}, NULL)"


def _iso_time(ms: str) -> str:
    """SQL: a time as RFC 3339 in UTC."""
    return f"strftime('%Y-%m-%dT%H:%M:%S', {ms} / 1000, 'unixepoch') || printf('.%03dZ', {ms} % 1000)"


# For people who read the file (docs/auditors.md tells of each column); nothing of ours reads them. What outputs
# come to is summed in halves, since those of a refused invoice may be any: NULL when no column can hold it.
_VIEWS = f"""
CREATE VIEW v_payments AS
SELECT p.id AS payment, p.kind AS kind, p.state AS state, p.delivery AS delivery, v.origin AS merchant,
       a.name AS app, v.invoice_id AS invoice_id, p.asset AS asset, p.units AS units,
       {_ada("p.asset", "p.units")} AS ada, t.fee_lovelace AS fee_lovelace, p.tx_id AS tx_id,
       p.block_height AS block_height, {_iso_time("p.created_at_ms")} AS created_at,
       {_iso_time("p.changed_at_ms")} AS changed_at, p.reason_code AS reason_code
FROM (
  SELECT *, json_extract(owed, '$[0].asset') AS asset, (
    SELECT IIF(high + (low >> 32) < 2147483648, (high << 32) + low, NULL) FROM (
      SELECT COALESCE(SUM(asked >> 32), 0) AS high, COALESCE(SUM(asked & 4294967295), 0) AS low FROM (
        SELECT CAST(json_extract(value, '$.units') AS INTEGER) AS asked FROM json_each(owed)
        WHERE json_extract(value, '$.role') <> 'change'
          AND json_extract(value, '$.asset') = json_extract(owed, '$[0].asset')))) AS units
  FROM (SELECT q.*, COALESCE(w.outputs, q.outputs) AS owed FROM payments q
        LEFT JOIN invoices w ON w.seq = q.invoice)) p
JOIN apps a ON a.id = p.app_id
LEFT JOIN invoices v ON v.seq = p.invoice
LEFT JOIN attempts t ON t.tx_id = p.tx_id;

CREATE VIEW v_spend AS
SELECT {_iso_time("j.at_ms")} AS at, strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch') AS day,
       j.id AS entry, j.kind AS kind, j.payment_id AS payment, v.origin AS merchant, a.name AS app,
       q.account AS account, q.asset AS asset, q.units AS units, {_ada("q.asset", "q.units")} AS ada
FROM journal j JOIN postings q ON q.entry = j.id AND {IS_SPEND}
JOIN payments p ON p.id = j.payment_id
JOIN apps a ON a.id = p.app_id
LEFT JOIN invoices v ON v.seq = p.invoice;

CREATE VIEW v_refusals AS
SELECT {_iso_time("p.created_at_ms")} AS at, p.id AS payment, a.name AS app, v.origin AS merchant,
       i.request AS request, p.reason_code AS code, p.reason AS reason
FROM payments p
JOIN apps a ON a.id = p.app_id
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice
WHERE p.state IN ('rejected', 'denied')
UNION ALL
SELECT {_iso_time("e.at_ms")}, NULL, a.name, e.detail ->> '$.origin', e.detail ->> '$.request',
       e.detail ->> '$.code', e.detail ->> '$.detail'
FROM events e
LEFT JOIN apps a ON a.id = e.detail ->> '$.app'
WHERE e.payment_id IS NULL AND e.event = 'refused';

CREATE VIEW v_prepaid AS
SELECT o.origin AS merchant, o.partner AS partner, o.wallet AS wallet, c.unit AS unit, c.bought AS bought,
       c.used AS used, c.bought - c.used AS left, c.unexplained AS unexplained, k.asset AS paid_in,
       k.bought AS paid_units, k.used AS used_units, k.bought - k.used AS left_units,
       {_ada("k.asset", "(k.bought - k.used)")} AS left_ada, s.remaining AS merchant_says,
       {_iso_time("s.at_ms")} AS merchant_said_at
FROM prepaid_counts c
JOIN prepaid_pools o ON o.id = c.pool
LEFT JOIN prepaid_costs k ON k.pool = c.pool AND k.unit = c.unit
LEFT JOIN prepaid_observations s
  ON s.seq = (SELECT MAX(seq) FROM prepaid_observations WHERE pool = c.pool);
"""  # noqa: S608  names of ours


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
_NOT_FREED = _NOT_REFUSED + " AND {0}reason_code IS NOT 'anchor_gone'"
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
        return self.live in (_NOT_REFUSED, _NOT_FREED) or not set(self.columns) <= set(fixed)


@dataclass(frozen=True, slots=True)
class Kept:
    """A table whose rows stay. `fixed` columns never change (None: nothing does), `once` ones only from NULL."""

    keys: tuple[Key, ...]
    fixed: tuple[str, ...] | None = None
    once: tuple[str, ...] = ()


_ROW = Key(("rowid",))

KEPT = {
    "approvals": Kept((_ROW, Key(("payment_id",)))),
    "attempts": Kept((_ROW, Key(("tx_id",)))),
    "events": Kept((_ROW,)),
    "invoices": Kept((_ROW, Key(("origin", "invoice_id")))),
    "journal": Kept((_ROW,)),
    "prepaid_moves": Kept((_ROW, Key(("app_id", "call_key"), "{0}call_key IS NOT NULL"))),
    "prepaid_observations": Kept((_ROW,)),
    "prepaid_pools": Kept((_ROW, Key(("origin", "partner", "wallet")))),
    "postings": Kept((_ROW,)),
    "foreign_sightings": Kept((_ROW,)),
    "sightings": Kept((_ROW,)),
    "uses": Kept((_ROW,)),
    "submissions": Kept((_ROW,)),
    "apps": Kept((_ROW, Key(("id",)), Key(("name",)))),
    "tokens": Kept(
        (_ROW, Key(("hash",)), Key(("app_id",), "{0}revoked_at_ms IS NULL")),
        fixed=("rowid", "hash", "app_id", "created_at_ms", "expires_at_ms"),
        once=("revoked_at_ms",),
    ),
    "meta": Kept((_ROW, Key(("key",)))),
    "seals": Kept((_ROW,)),
    "intents": Kept(
        (_ROW, Key(("id",)), Key(("app_id", "key"), _NOT_ENDED)),
        fixed=(
            "rowid",
            "id",
            "app_id",
            "key",
            "derived",
            "fingerprint",
            "origin",
            "request",
            "request_id",
            "created_at_ms",
        ),
        once=("ended_at_ms",),
    ),
    "topups": Kept(
        (_ROW, Key(("id",)), Key(("app_id", "key")), Key(("pool",), _NOT_ENDED)),
        fixed=(
            "rowid",
            "id",
            "pool",
            "app_id",
            "key",
            "cause",
            "unit",
            "units",
            "request",
            "is_call",
            "created_at_ms",
            "clock_ms",
        ),
        once=("stop_code", "stop_reason", "ended_at_ms", "ended_clock_ms", "reason_code", "reason"),
    ),
    "alerts": Kept(
        (_ROW, Key(("id",))),
        fixed=("rowid", "id", "kind", "subject", "body", "at_ms"),
        once=("delivered_at_ms",),
    ),
    "holds": Kept(
        (_ROW, Key(("payment_id", "stage", "asset"))),
        fixed=("rowid", "payment_id", "stage", "asset", "units", "at_ms", "counted_at_ms"),
    ),
    "payments": Kept(
        (
            _ROW,
            Key(("id",)),
            Key(("invoice",), _NOT_REFUSED),
            Key(("anchor",), _NOT_FREED),
        ),
        fixed=(
            "rowid",
            "id",
            "kind",
            "app_id",
            "intent_id",
            "first_invoice",
            "origin",
            "outputs",
            "pool",
            "topup",
            "created_at_ms",
        ),
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
    # an invoice that any attempt was signed for is its payment's for ever, whichever one the payment goes by now
    *(
        Guard(
            f"payments_invoice_{name}",
            f"{event} ON payments",
            f"{_NOT_REFUSED.format('NEW.')} AND EXISTS "  # noqa: S608  names of ours
            "(SELECT 1 FROM attempts WHERE invoice = NEW.invoice AND payment_id <> NEW.id)",
            "another payment was signed for the invoice",
        )
        for name, event in (("unsigned", "INSERT"), ("not_signed", "UPDATE"))
    ),
    Guard(
        "payments_invoice_follows",
        "UPDATE ON payments",
        # it may have come first for another intent: while nobody has paid it, it is free for who has it
        "NEW.invoice IS NOT OLD.invoice AND (NEW.state NOT IN ('replacing', 'in_block') OR NOT EXISTS "
        "(SELECT 1 FROM invoices WHERE seq = NEW.invoice AND origin = NEW.origin))",
        "a payment goes by another invoice when it is replaced or found in a block, by one of its origin",
    ),
    Guard(
        "payments_of_the_origin",
        "INSERT ON payments",
        "NEW.origin IS NOT (SELECT origin FROM invoices WHERE seq = NEW.invoice)",
        "a payment has the origin of its invoice",
    ),
    Guard(
        "attempts_of_the_invoice",
        "INSERT ON attempts",
        "EXISTS (SELECT 1 FROM payments WHERE id = NEW.payment_id AND invoice IS NOT NEW.invoice)",
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
        "topups_end_once",
        "UPDATE ON topups",
        "OLD.ended_at_ms IS NOT NULL",
        "a top-up ends once",
    ),
    Guard(
        "events_chained",
        "INSERT ON events",
        "NEW.prev_hash IS NOT "  # noqa: S608  names of ours
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
    for statement in (*_statements(_TABLES), *_statements(_VIEWS), *(guard.sql for guard in GUARDS)):
        db.execute(statement)


@migrations()
def m002_a_payment_follows_an_invoice_of_its_origin(db: Database) -> None:
    """Before, it had to be one that first came for the same intent. New ledgers have the rule from the start."""
    for guard in GUARDS:
        if guard.name == "payments_invoice_follows":
            db.execute(f"DROP TRIGGER {guard.name}")
            db.execute(guard.sql)


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


def changed_views(conn: sqlite3.Connection) -> list[str]:
    """The names of views that are not there as they were made: people would read something else by them."""
    present = dict(conn.execute(_VIEWS_MADE).fetchall())
    return [name for name, sql in _views().items() if present.get(name) != sql]


_VIEWS_MADE = "SELECT name, sql FROM sqlite_master WHERE type = 'view'"


@cache
def _views() -> Mapping[str, str]:
    """Those of a new ledger."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        migrations.apply(Database(empty))
        return dict(empty.execute(_VIEWS_MADE).fetchall())


def newer_migrations(conn: sqlite3.Connection) -> list[str]:
    """The names of changes that a newer payagent made to this database, whose rules are not known here."""
    return [one.name for one in migrations.applied(Database(conn)) if one.name not in _known_migrations()]


@cache
def _known_migrations() -> frozenset[str]:
    with closing(sqlite3.connect(":memory:")) as empty:
        return frozenset(migration.name for migration in migrations.pending(Database(empty)))
