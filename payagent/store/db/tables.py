"""The tables and views of ledger.db, as SQL.

The constraints are the last defence of the exactly-once rules; they hold whatever the Python code does.
An intent has at most one live payment. An invoice has at most one payment ever, whichever attempt was signed for
it. A nonce UTxO belongs to one payment, and every attempt of the payment spends it. A UTxO is reserved once.
Triggers enforce what constraints cannot express (store.db.triggers).

Units are INTEGER (at most 2^63-1). Times are milliseconds since 1970 UTC.

May import: nothing. Never: reads or writes a row.
"""

GENESIS = "0" * 64
"""The previous hash of the first event and of the first seal."""

TABLES = """
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
  code TEXT,
  reason TEXT,
  detail TEXT,
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
  WHERE state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back';
CREATE INDEX payments_by_state ON payments(state);
CREATE INDEX payments_by_app ON payments(app_id, seq);
CREATE INDEX payments_by_origin ON payments(origin, seq) WHERE origin IS NOT NULL;
CREATE INDEX payments_by_time ON payments(created_at_ms);
CREATE INDEX payments_by_intent ON payments(intent_id);
CREATE INDEX payments_of_topup ON payments(topup) WHERE topup IS NOT NULL;
CREATE INDEX payments_buying ON payments(pool)
  WHERE delivery IN ('not_presented', 'presented') AND state NOT IN ('rejected', 'denied', 'void', 'cancelling');
CREATE INDEX payments_shown ON payments(created_at_ms) WHERE delivery = 'presented';
CREATE INDEX payments_denied ON payments(changed_at_ms) WHERE code = 'approval_denied' AND reason = 'person';
CREATE INDEX payments_anchor_gone ON payments(code) WHERE code = 'deposit_rolled_back';
CREATE INDEX payments_paying ON payments(pool, seq)
  WHERE pool IS NOT NULL AND state NOT IN ('rejected', 'denied', 'void', 'cancelling');
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

-- What a merchant's answers taught about when it accepts a proof (core.showing.Readiness).
CREATE TABLE readiness (
  origin TEXT PRIMARY KEY,
  accepted_depth INTEGER CHECK (accepted_depth >= 0),
  refused_early INTEGER NOT NULL CHECK (refused_early IN (0, 1))
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
  stop_detail TEXT,
  ended_at_ms INTEGER,
  ended_clock_ms INTEGER,
  code TEXT,
  reason TEXT,
  detail TEXT,
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
"""SQL: the postings q of entries j that show value leaving the wallet, or returning after a rollback."""


def _ada(asset: str, units: str) -> str:
    """SQL: lovelace as ADA with six decimals, by integer arithmetic; NULL for a token."""
    number = f"printf('%s%d.%06d', IIF({units} < 0, '-', ''), abs({units} / 1000000), abs({units} % 1000000))"
    return f"IIF({asset} = 'lovelace', {number}, NULL)"


def _iso_time(ms: str) -> str:
    """SQL: a time as RFC 3339 in UTC."""
    return f"strftime('%Y-%m-%dT%H:%M:%S', {ms} / 1000, 'unixepoch') || printf('.%03dZ', {ms} % 1000)"


# For people who read the file (docs/auditors.md explains each column); our code reads none of them. Output totals
# are summed in halves, since those of a refused invoice are unbounded: NULL if no column can hold the sum.
VIEWS = f"""
CREATE VIEW v_payments AS
SELECT p.id AS payment, p.kind AS kind, p.state AS state, p.delivery AS delivery, v.origin AS merchant,
       a.name AS app, v.invoice_id AS invoice_id, p.asset AS asset, p.units AS units,
       {_ada("p.asset", "p.units")} AS ada, t.fee_lovelace AS fee_lovelace, p.tx_id AS tx_id,
       p.block_height AS block_height, {_iso_time("p.created_at_ms")} AS created_at,
       {_iso_time("p.changed_at_ms")} AS changed_at, p.code AS code, p.reason AS reason
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
       i.request AS request, p.code AS code, p.reason AS reason, p.detail AS detail
FROM payments p
JOIN apps a ON a.id = p.app_id
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice
WHERE p.state IN ('rejected', 'denied')
UNION ALL
SELECT {_iso_time("e.at_ms")}, NULL, a.name, e.detail ->> '$.origin', e.detail ->> '$.request',
       e.detail ->> '$.code', e.detail ->> '$.reason', e.detail ->> '$.detail'
FROM events e
LEFT JOIN apps a ON a.id = e.detail ->> '$.app'
WHERE e.payment_id IS NULL AND e.event = 'refused';

CREATE VIEW v_prepaid AS
SELECT o.origin AS merchant, o.partner AS partner, o.wallet AS wallet, c.unit AS unit, c.bought AS bought,
       c.used AS used, c.bought - c.used AS left, c.unexplained AS unexplained, k.asset AS paid_in,
       k.bought AS paid_units, k.used AS used_units, k.bought - k.used AS left_units,
       {_ada("k.asset", "(k.bought - k.used)")} AS left_ada,
       IIF(COALESCE(s.unit, 'calls') = c.unit, s.remaining, NULL) AS merchant_says,
       {_iso_time("s.at_ms")} AS merchant_said_at
FROM prepaid_counts c
JOIN prepaid_pools o ON o.id = c.pool
LEFT JOIN prepaid_costs k ON k.pool = c.pool AND k.unit = c.unit
LEFT JOIN prepaid_observations s
  ON s.seq = (SELECT MAX(seq) FROM prepaid_observations WHERE pool = c.pool);
"""  # noqa: S608  our own names
