"""The tables and views of ledger.db, as SQL. `TABLES` is frozen: `schema.MIGRATIONS` has what changes them.

The constraints are the last defence of the exactly-once rules; they hold whatever the Python code does.
An intent has at most one live payment. An invoice has at most one payment ever, whichever attempt was signed for
it. A nonce UTxO belongs to one payment, and every attempt of the payment spends it. A UTxO is reserved once.
Triggers enforce what constraints cannot express (store.db.triggers).

Units are INTEGER (at most 2^63-1). Times are milliseconds since 1970 UTC.

Never: reads or writes a row.
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

-- Bearer tokens. Only the hash is stored. An app has one valid token; issuing another revokes it.
CREATE TABLE tokens (
  hash TEXT PRIMARY KEY,
  app_id TEXT NOT NULL REFERENCES apps(id),
  created_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER,
  revoked_at_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX tokens_good ON tokens(app_id) WHERE revoked_at_ms IS NULL;
CREATE INDEX tokens_by_app ON tokens(app_id);

-- One purchase that an app wants. A derived key may be used again once the delivery is accepted (ended_at_ms).
CREATE TABLE intents (
  id TEXT PRIMARY KEY,
  app_id TEXT NOT NULL REFERENCES apps(id),
  idempotency_key TEXT NOT NULL,
  is_key_derived INTEGER NOT NULL CHECK (is_key_derived IN (0, 1)),
  fingerprint TEXT NOT NULL,
  origin TEXT NOT NULL,
  request TEXT,
  request_id TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL,
  ended_at_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX intents_live ON intents(app_id, idempotency_key) WHERE ended_at_ms IS NULL;

-- terms_hash never changes: the same id with other terms is refused. merchant_submits: the merchant submits the
-- transaction, and payagent does not. echo: the part of the 402 that its dialect repeats in the proof.
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
  merchant_submits INTEGER NOT NULL CHECK (merchant_submits IN (0, 1)),
  echo TEXT,
  commitment TEXT,
  received_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER,
  response_402 TEXT NOT NULL,
  UNIQUE (origin, invoice_id)
) STRICT;

-- What an intent became; without an invoice, a transfer. invoice_seq: the invoice that the current attempt
-- pays; first_invoice_seq: the one that it was admitted with, whose outputs are `outputs`. pool_id: the prepaid
-- balance that it raises once it is confirmed; topup_id: the top-up that it belongs to. void_tx_id: the
-- transaction of another payment that rules out this one's nonce UTxO. origin: its invoice's, so that an index
-- finds a merchant's payments in order. code, reason and detail: why it was refused or is void; reason: which
-- case of the code, if it has cases. account: the wallet's account that pays (see accounts); so in other tables.
CREATE TABLE payments (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('invoice', 'send', 'split', 'sweep')),
  app_id TEXT NOT NULL REFERENCES apps(id),
  intent_id TEXT NOT NULL REFERENCES intents(id),
  first_invoice_seq INTEGER REFERENCES invoices(seq),
  invoice_seq INTEGER REFERENCES invoices(seq),
  origin TEXT,
  outputs TEXT NOT NULL,
  state TEXT NOT NULL,
  delivery TEXT NOT NULL,
  pool_id INTEGER REFERENCES prepaid_pools(id),
  topup_id TEXT REFERENCES topups(id),
  nonce_utxo TEXT,
  ttl_slot INTEGER,
  tx_id TEXT,
  void_tx_id TEXT,
  block_hash TEXT,
  block_height INTEGER,
  block_slot INTEGER,
  merchant_status TEXT,
  code TEXT,
  reason TEXT,
  detail TEXT,
  created_at_ms INTEGER NOT NULL,
  updated_at_ms INTEGER NOT NULL,
  account INTEGER NOT NULL DEFAULT 0,
  CHECK ((kind = 'invoice') = (invoice_seq IS NOT NULL)),
  CHECK ((first_invoice_seq IS NULL) = (invoice_seq IS NULL)),
  CHECK ((nonce_utxo IS NULL) = (state IN ('received', 'awaiting_approval', 'rejected', 'denied'))
         OR (state = 'rejected' AND nonce_utxo IS NOT NULL)),
  UNIQUE (id, nonce_utxo)
) STRICT;
CREATE UNIQUE INDEX payments_one_per_invoice ON payments(invoice_seq) WHERE state NOT IN ('rejected', 'denied');
-- what was signed for a payment that is void by its time limits can land on no chain: its nonce UTxO may be
-- another's
CREATE UNIQUE INDEX payments_one_per_nonce_utxo ON payments(nonce_utxo)
  WHERE state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back';
CREATE INDEX payments_by_state ON payments(state);
CREATE INDEX payments_by_app ON payments(app_id, seq);
CREATE INDEX payments_by_origin ON payments(origin, seq) WHERE origin IS NOT NULL;
CREATE INDEX payments_by_time ON payments(created_at_ms);
CREATE INDEX payments_by_intent ON payments(intent_id);
CREATE INDEX payments_of_topup ON payments(topup_id) WHERE topup_id IS NOT NULL;
CREATE INDEX payments_buying ON payments(pool_id)
  WHERE delivery IN ('not_presented', 'presented') AND state NOT IN ('rejected', 'denied', 'void', 'cancelling');
CREATE INDEX payments_presented ON payments(created_at_ms) WHERE delivery = 'presented';
CREATE INDEX payments_denied ON payments(updated_at_ms) WHERE code = 'approval_denied' AND reason = 'person';
CREATE INDEX payments_rolled_back ON payments(code) WHERE code = 'deposit_rolled_back';
CREATE INDEX payments_paying ON payments(pool_id, seq)
  WHERE pool_id IS NOT NULL AND state NOT IN ('rejected', 'denied', 'void', 'cancelling');
CREATE INDEX payments_pending ON payments(pool_id)
  WHERE state IN ('reserved', 'signed', 'in_flight', 'replacing', 'in_block');

-- Units held for a payment, fee and min-ADA included. stage: `approval` while a decision is pending (no UTxO is
-- reserved, nothing is posted), `payment` from the decision on. counted_units: the part that counts against
-- limits, all until the hold is released; NULL for a transfer, which no limit binds. counted_at_ms: the limits'
-- clock when the hold was placed. counted_from_ms: from when on it counts; NULL while it is open and counts in
-- every window (store.rows.limit_counters).
CREATE TABLE holds (
  payment_id TEXT NOT NULL REFERENCES payments(id),
  stage TEXT NOT NULL CHECK (stage IN ('approval', 'payment')),
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units > 0),
  at_ms INTEGER NOT NULL,
  released_at_ms INTEGER,
  counted_units INTEGER CHECK (counted_units >= 0),
  counted_at_ms INTEGER NOT NULL,
  counted_from_ms INTEGER,
  PRIMARY KEY (payment_id, stage, asset)
) STRICT;

-- A request for approval of a payment; the payment's events tell the decision. terms_hash: its invoice's.
-- reasons and plan: JSON, why approval is needed and the transaction as planned. expires_at_ms: when, on the
-- limits' clock, it is denied unless somebody has decided.
CREATE TABLE approvals (
  payment_id TEXT PRIMARY KEY REFERENCES payments(id),
  terms_hash TEXT NOT NULL,
  reasons TEXT NOT NULL,
  plan TEXT NOT NULL,
  max_total INTEGER,
  asked_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER NOT NULL
) STRICT;

-- What the holds of a scope (kind = 'paid') or an app's uses (kind = 'used') count in a span of time, summed
-- here so that no read sums them up: units_high * 2^32 + units_low. app and merchant (an origin): '' is any.
-- span_ms = 0: the span that never ends.
CREATE TABLE limit_counters (
  app TEXT NOT NULL,
  merchant TEXT NOT NULL,
  asset TEXT NOT NULL,
  span_ms INTEGER NOT NULL,
  start_ms INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('paid', 'used')),
  units_high INTEGER NOT NULL,
  units_low INTEGER NOT NULL CHECK (units_low BETWEEN 0 AND 4294967295),
  PRIMARY KEY (app, merchant, asset, span_ms, start_ms, kind)
) STRICT, WITHOUT ROWID;

-- Limits that were set at run time: each overrides the config file's of the same scope, asset and window.
CREATE TABLE limits (
  app TEXT NOT NULL,
  merchant TEXT NOT NULL,
  asset TEXT NOT NULL,
  window TEXT NOT NULL
    CHECK (window IN ('per_payment', 'per_hour', 'per_day', 'per_week', 'per_month', 'total')),
  most_units INTEGER NOT NULL CHECK (most_units >= 0),
  PRIMARY KEY (app, merchant, asset, window)
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
CREATE TABLE address_pins (
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
CREATE TABLE unserved_streaks (
  origin TEXT PRIMARY KEY,
  count INTEGER NOT NULL CHECK (count >= 0),
  stopped_at_ms INTEGER
) STRICT, WITHOUT ROWID;

-- What a merchant's answers taught about when it accepts a proof (core.retry_schedule.MerchantReadiness).
CREATE TABLE readiness (
  origin TEXT PRIMARY KEY,
  accepted_depth INTEGER CHECK (accepted_depth >= 0),
  refused_early INTEGER NOT NULL CHECK (refused_early IN (0, 1))
) STRICT, WITHOUT ROWID;

-- Signed bytes, before they leave. `inputs` is a list of refs between spaces; the nonce UTxO is among them. A
-- cancel pays nobody but the wallet itself.
CREATE TABLE attempts (
  tx_id TEXT PRIMARY KEY,
  payment_id TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('pay', 'cancel')),
  nonce_utxo TEXT NOT NULL,
  invoice_seq INTEGER REFERENCES invoices(seq),
  inputs TEXT NOT NULL,
  cbor BLOB NOT NULL,
  fee_lovelace INTEGER NOT NULL CHECK (fee_lovelace > 0),
  ttl_slot INTEGER NOT NULL,
  signed_at_ms INTEGER NOT NULL,
  account INTEGER NOT NULL DEFAULT 0,
  FOREIGN KEY (payment_id, nonce_utxo) REFERENCES payments(id, nonce_utxo),
  CHECK (instr(' ' || inputs || ' ', ' ' || nonce_utxo || ' ') > 0)
) STRICT;
CREATE INDEX attempts_by_payment ON attempts(payment_id);
CREATE INDEX attempts_by_invoice ON attempts(invoice_seq) WHERE invoice_seq IS NOT NULL;

-- C4: the bytes were about to go to a provider. Whatever answered, or nothing, comes later as an event.
CREATE TABLE submissions (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL REFERENCES attempts(tx_id),
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX submissions_by_tx ON submissions(tx_id, at_ms);

-- C5: a provider showed an attempt in a block.
CREATE TABLE block_observations (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL REFERENCES attempts(tx_id),
  block_hash TEXT NOT NULL,
  block_height INTEGER NOT NULL,
  block_slot INTEGER NOT NULL,
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX block_observations_by_tx ON block_observations(tx_id);

-- Our own view of our UTxOs. pending: change of an attempt that is in no block; locked: holds a datum or a
-- script and is never spent; missing: the provider's complete list lacks it and nothing of ours spent it;
-- rolled_back: providers repeatedly denied its transaction, its deposit was reversed, and a payment reserves it.
CREATE TABLE utxos (
  ref TEXT PRIMARY KEY,
  tx_id TEXT NOT NULL,
  output_index INTEGER NOT NULL,
  lovelace INTEGER NOT NULL CHECK (lovelace > 0),
  assets TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('deposit', 'change')),
  state TEXT NOT NULL CHECK (state IN ('pending', 'available', 'locked', 'spent', 'missing', 'rolled_back')),
  spent_by TEXT,
  account INTEGER NOT NULL DEFAULT 0,
  CHECK ((state = 'spent') = (spent_by IS NOT NULL))
) STRICT;
CREATE INDEX utxos_by_state ON utxos(state);
CREATE INDEX utxos_by_tx ON utxos(tx_id);

-- A transaction that spends UTxOs of ours and is no attempt, when it was seen in a block (is_on_chain = 1) or
-- when that block was rolled back (0). `inputs`: our UTxOs among its inputs, between spaces. `spent`: their
-- value per asset, as JSON: a UTxO that turns out never to have existed is deleted, and its entries stay.
CREATE TABLE external_spends (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL,
  is_on_chain INTEGER NOT NULL CHECK (is_on_chain IN (0, 1)),
  inputs TEXT NOT NULL,
  spent TEXT NOT NULL,
  block_hash TEXT NOT NULL,
  block_height INTEGER NOT NULL,
  block_slot INTEGER NOT NULL,
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL,
  account INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX external_spends_by_tx ON external_spends(tx_id);

CREATE TABLE reservations (
  ref TEXT PRIMARY KEY REFERENCES utxos(ref),
  payment_id TEXT NOT NULL REFERENCES payments(id)
) STRICT;
CREATE INDEX reservations_by_payment ON reservations(payment_id);

-- Double entry. The postings of an entry come first and its row here seals them: it is refused unless they sum to
-- zero per asset, and a sealed entry takes no more postings.
CREATE TABLE entries (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL
    CHECK (kind IN ('deposit', 'deposit_reversed', 'reserve', 'post', 'post_reversed', 'release', 'use',
                    'use_reversed', 'external_spend', 'external_spend_reversed')),
  payment_id TEXT REFERENCES payments(id),
  pool_id INTEGER REFERENCES prepaid_pools(id),
  ref TEXT,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_by_payment ON entries(payment_id);
CREATE INDEX entries_of_deposits ON entries(ref)
  WHERE kind IN ('deposit', 'deposit_reversed', 'external_spend', 'external_spend_reversed');
CREATE TABLE postings (
  seq INTEGER PRIMARY KEY,
  entry_id INTEGER NOT NULL REFERENCES entries(id) DEFERRABLE INITIALLY DEFERRED,
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units <> 0)
) STRICT;
CREATE INDEX postings_by_account ON postings(account, asset, units);
CREATE INDEX postings_by_entry ON postings(entry_id);

-- The sum of an account's postings, kept so that no read adds them up: units_high * 2^32 + units_low.
CREATE TABLE balances (
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  units_high INTEGER NOT NULL,
  units_low INTEGER NOT NULL CHECK (units_low BETWEEN 0 AND 4294967295),
  PRIMARY KEY (account, asset)
) STRICT;

-- Everything that happened, in order, to a payment or (without one) to the wallet as a whole. Each row's hash
-- covers the one before (store.rows.events.event_hash).
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
  account INTEGER NOT NULL DEFAULT 0,
  UNIQUE (origin, partner, wallet)
) STRICT;

-- What changed of a pool, in `unit` (calls, or an asset): bought by a payment, used by a call, or taken back when
-- a payment lost its block. A call with a key of its own counts once.
CREATE TABLE prepaid_moves (
  seq INTEGER PRIMARY KEY,
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('buy', 'use', 'take_back')),
  bought INTEGER NOT NULL,
  used INTEGER NOT NULL,
  unexplained INTEGER NOT NULL,
  payment_id TEXT REFERENCES payments(id),
  app_id TEXT REFERENCES apps(id),
  call TEXT,
  call_key TEXT,
  entry_id INTEGER REFERENCES entries(id),
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX prepaid_moves_by_pool ON prepaid_moves(pool_id, seq);
CREATE INDEX prepaid_moves_by_payment ON prepaid_moves(payment_id);
CREATE INDEX prepaid_moves_by_entry ON prepaid_moves(entry_id);
CREATE UNIQUE INDEX prepaid_moves_once ON prepaid_moves(app_id, call_key) WHERE call_key IS NOT NULL;

-- What the moves come to, and what was paid for it and is used up, per asset (core.prepaid).
CREATE TABLE prepaid_totals (
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  bought INTEGER NOT NULL CHECK (bought >= used),
  used INTEGER NOT NULL CHECK (used >= 0),
  unexplained INTEGER NOT NULL CHECK (unexplained = 0 OR (unexplained > 0 AND bought = used)),
  PRIMARY KEY (pool_id, unit)
) STRICT;
CREATE TABLE prepaid_costs (
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  unit TEXT NOT NULL,
  asset TEXT NOT NULL,
  bought INTEGER NOT NULL CHECK (bought >= used),
  used INTEGER NOT NULL CHECK (used >= 0),
  PRIMARY KEY (pool_id, unit, asset)
) STRICT;

-- A call of an app that used `count` of `unit` (calls, or an asset) of a pool, what that cost, and what of it
-- counts against the app's own limits; counted_at_ms: the limits' clock then. A use that was none is taken back by
-- rows of its number with all units below zero. A row that uses nothing counts what earlier ones did not: what
-- covered them was a payment of the app that came to nothing (store.rows.prepaid_uses).
CREATE TABLE prepaid_uses (
  seq INTEGER PRIMARY KEY,
  call INTEGER NOT NULL,
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  unit TEXT NOT NULL,
  count INTEGER NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL CHECK (units <> 0 OR counted_units > 0),
  counted_units INTEGER NOT NULL,
  counted_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX prepaid_uses_by_call ON prepaid_uses(call);
CREATE INDEX prepaid_uses_by_pool ON prepaid_uses(pool_id, call);

-- What an app's payments for a pool count against limits, what its uses of the pool cost, and what of that counts.
CREATE TABLE prepaid_shares (
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  asset TEXT NOT NULL,
  paid INTEGER NOT NULL,
  used INTEGER NOT NULL,
  counted INTEGER NOT NULL,
  PRIMARY KEY (pool_id, app_id, asset)
) STRICT, WITHOUT ROWID;

-- What a merchant said of a pool, as it said it. It never changes what we count.
CREATE TABLE merchant_reports (
  seq INTEGER PRIMARY KEY,
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
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
CREATE INDEX merchant_reports_by_pool ON merchant_reports(pool_id, seq);

-- Calls that have answered 402, with what was last asked for them. Of the path without its query.
CREATE TABLE request_prices (
  origin TEXT NOT NULL,
  method TEXT NOT NULL,
  path TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL,
  PRIMARY KEY (origin, method, path)
) STRICT;

-- An order to raise a pool by `units` of `unit` (calls, or an asset that is paid). request: the call whose 402
-- sells it, as JSON; is_call: an ordinary one, which uses one of what it buys. clock_ms and ended_clock_ms: the
-- limits' clock when it was ordered and when it ended. stop_code: nothing more is bought for it, and it ends for
-- this code once its last payment is delivered. reason and stop_reason: as in payments.
CREATE TABLE topups (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  key TEXT NOT NULL,
  trigger TEXT NOT NULL CHECK (trigger IN ('manual', 'auto')),
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
CREATE UNIQUE INDEX topups_open ON topups(pool_id) WHERE ended_at_ms IS NULL;
CREATE INDEX topups_by_pool ON topups(pool_id, trigger, seq);
CREATE INDEX topups_ended ON topups(pool_id, ended_at_ms);
CREATE INDEX topups_open_by_app ON topups(app_id) WHERE ended_at_ms IS NULL;

-- What somebody is to be told. subject: what it is about, so that it is raised and cleared once.
CREATE TABLE alerts (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  body TEXT NOT NULL,
  at_ms INTEGER NOT NULL) STRICT;
CREATE INDEX alerts_by_subject ON alerts(subject, seq);

-- The last event that the deliveries of a target of notifications were made of.
CREATE TABLE notification_cursors (
  target TEXT PRIMARY KEY,
  event_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- An event that a target is told. id: what the receiver knows it by, the same for each try. tries: failed ones
-- since from_ms, when it was first due or replayed. next_try_at_ms: NULL once it is delivered, or given up.
CREATE TABLE notification_deliveries (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  target TEXT NOT NULL,
  event_seq INTEGER NOT NULL REFERENCES events(seq),
  type TEXT NOT NULL,
  from_ms INTEGER NOT NULL,
  tries INTEGER NOT NULL DEFAULT 0,
  next_try_at_ms INTEGER,
  delivered_at_ms INTEGER,
  last_problem TEXT
) STRICT;
CREATE INDEX notification_deliveries_by_target ON notification_deliveries(target, seq);
CREATE INDEX notification_deliveries_waiting
  ON notification_deliveries(target, type = 'approval.asked', next_try_at_ms) WHERE next_try_at_ms IS NOT NULL;

-- A message with buttons in a paired chat, which puts an approval before a person. id: what its buttons bring
-- back. terms_hash: of the terms that it shows. message_id: the service's; NULL until it has the message.
-- closed_at_ms: when the message said what was decided.
CREATE TABLE approval_messages (
  id TEXT PRIMARY KEY,
  target TEXT NOT NULL,
  chat_id INTEGER NOT NULL,
  payment_id TEXT NOT NULL REFERENCES payments(id),
  terms_hash TEXT NOT NULL,
  text TEXT NOT NULL,
  message_id INTEGER,
  closed_at_ms INTEGER
) STRICT;
CREATE INDEX approval_messages_open ON approval_messages(target) WHERE closed_at_ms IS NULL;

-- What one job added to the tables of record. what: JSON, a table to its first and last new row; marks: four bytes
-- for each of these rows; hash: of all that, of what never changes of them, and of the hash before
-- (store.db.seals).
CREATE TABLE seals (
  seq INTEGER PRIMARY KEY,
  what TEXT NOT NULL,
  marks BLOB NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;

-- The tables from here on are for a fleet, several daemons on one ledger. A daemon alone leaves them empty.

-- Each commit locks this row first. It has the ends of both chains, and what the last commit saw of the database.
-- system: the identifier of the database server for which the ledger was made.
-- schema: the newest migration of the tables.
CREATE TABLE gate (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  event_seq INTEGER NOT NULL,
  event_hash TEXT NOT NULL,
  seal_seq INTEGER NOT NULL,
  seal_hash TEXT NOT NULL,
  timeline INTEGER NOT NULL,
  schema TEXT NOT NULL,
  system TEXT NOT NULL DEFAULT ''
) STRICT;

-- The daemons of a fleet. id: random, new with each start. schema: the newest migration that it knows.
CREATE TABLE daemons (
  id TEXT PRIMARY KEY,
  host TEXT NOT NULL,
  url TEXT NOT NULL,
  config_hash TEXT NOT NULL,
  version TEXT NOT NULL,
  schema TEXT NOT NULL,
  seen_at_ms INTEGER NOT NULL
) STRICT;

-- The accounts of the wallet, counted from 0: that of keystore.account and those that follow. holder: the daemon
-- that may spend from it. epoch: how often it changed hands. until_ms: from then on another daemon may take it.
-- noted: the last of its attempts that its holder's signer record has.
CREATE TABLE accounts (
  account INTEGER PRIMARY KEY,
  address TEXT NOT NULL UNIQUE,
  holder TEXT,
  epoch INTEGER NOT NULL DEFAULT 0,
  until_ms INTEGER NOT NULL DEFAULT 0,
  noted INTEGER NOT NULL DEFAULT 0,
  last_signer TEXT,
  proven_timeline INTEGER
) STRICT;

-- The account that buys prepaid balance at a merchant: the one that bought first, or that an operator chose.
CREATE TABLE homes (
  origin TEXT NOT NULL,
  partner TEXT NOT NULL,
  account INTEGER NOT NULL,
  PRIMARY KEY (origin, partner)
) STRICT;

-- What a daemon asks the holder of an account to do, and how that ended. request and outcome: JSON.
CREATE TABLE admission_requests (
  id TEXT PRIMARY KEY,
  account INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('pay', 'approve', 'deny', 'cancel', 'transfer', 'topup')),
  asked_by TEXT NOT NULL,
  request TEXT NOT NULL,
  ends_at_ms INTEGER NOT NULL,
  ended_at_ms INTEGER,
  outcome TEXT
) STRICT;
CREATE INDEX admission_requests_open ON admission_requests(account) WHERE ended_at_ms IS NULL;
"""

IS_OURS = "(q.account LIKE 'wallet%' OR q.account LIKE 'held%')"
"""SQL: the postings q of the wallet and of what is held, of any account (core.ledger)."""

IS_SPEND = (
    f"(j.kind IN ('post', 'post_reversed', 'release') AND NOT {IS_OURS} AND q.account NOT LIKE 'channel:%' "
    "OR j.kind IN ('use', 'use_reversed') AND j.pool_id IS NULL AND q.account LIKE 'merchant:%')"
)
"""SQL: the postings q of entries j that show value leaving the wallet, or returning after a rollback.

What a channel locks is spent when a voucher promises it.
"""

CHANNEL_OF_ENTRY = "LEFT JOIN channels k ON k.id = j.ref AND j.payment_id IS NULL"
"""SQL: the channel k of an entry j that books a promise; such an entry has no payment."""

APP_OF_PROMISE = (
    "(SELECT n.app_id FROM channel_calls n WHERE n.channel_id = k.id AND n.created_at_ms = j.at_ms "
    "AND n.promised > 0 LIMIT 1)"
)
"""SQL: the app whose call made a promise: the call and its entry are of one commit."""


def _ada(asset: str, units: str) -> str:
    """SQL: lovelace as ADA with six decimals, by integer arithmetic; NULL for a token."""
    number = f"printf('%s%d.%06d', IIF({units} < 0, '-', ''), abs({units} / 1000000), abs({units} % 1000000))"
    return f"IIF({asset} = 'lovelace', {number}, NULL)"


def _iso_time(ms: str) -> str:
    """SQL: a time as RFC 3339 in UTC."""
    return f"strftime('%Y-%m-%dT%H:%M:%S', {ms} / 1000, 'unixepoch') || printf('.%03dZ', {ms} % 1000)"


CHANNEL_TABLES = """
-- A channel at a merchant (core.channel.Channel). id: its tag. Amounts are in units of its asset.
CREATE TABLE channels (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  origin TEXT NOT NULL,
  account INTEGER NOT NULL,
  asset TEXT NOT NULL,
  provider TEXT NOT NULL,
  script_hash TEXT NOT NULL,
  iou_key TEXT NOT NULL,
  close_period_ms INTEGER NOT NULL,
  pay_to TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL,
  phase TEXT NOT NULL,
  ref TEXT,
  deposited INTEGER NOT NULL CHECK (deposited >= 0),
  capacity INTEGER NOT NULL CHECK (capacity >= 0),
  signed INTEGER NOT NULL CHECK (signed >= 0),
  voucher TEXT,
  voucher_amount INTEGER NOT NULL,
  count INTEGER NOT NULL CHECK (count >= 0),
  claimed INTEGER NOT NULL CHECK (claimed >= 0),
  returned INTEGER NOT NULL,
  elapse_at_ms INTEGER,
  is_settled INTEGER NOT NULL,
  is_count_known INTEGER NOT NULL,
  is_used INTEGER NOT NULL,
  problem TEXT,
  updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX channels_live ON channels(origin) WHERE phase IN ('opening', 'open');
CREATE INDEX channels_locked ON channels(phase) WHERE phase IN ('opening', 'open', 'closing');

-- A payment of kind 'send' that opens, raises, closes or ends a channel. units: what it locks.
CREATE TABLE channel_steps (
  seq INTEGER PRIMARY KEY,
  payment_id TEXT NOT NULL UNIQUE REFERENCES payments(id),
  channel_id TEXT NOT NULL,
  step TEXT NOT NULL CHECK (step IN ('open', 'add', 'close', 'end', 'elapse')),
  units INTEGER NOT NULL,
  is_booked INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX channel_steps_by_channel ON channel_steps(channel_id);

-- A call that a channel pays (core.channel.ChannelCall). Its id is a payment's, but it has no transaction.
CREATE TABLE channel_calls (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  channel_id TEXT NOT NULL REFERENCES channels(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  intent_id TEXT NOT NULL REFERENCES intents(id),
  channel_ref TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0),
  price INTEGER NOT NULL CHECK (price > 0),
  promised INTEGER NOT NULL CHECK (promised >= 0),
  counted_at_ms INTEGER NOT NULL,
  echo TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('promised', 'served', 'paid_not_served', 'void')),
  charged INTEGER CHECK (charged >= 0),
  created_at_ms INTEGER NOT NULL,
  updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX channel_calls_of_intent ON channel_calls(intent_id) WHERE state <> 'void';
CREATE UNIQUE INDEX channel_calls_unanswered ON channel_calls(channel_id) WHERE state = 'promised';
CREATE INDEX channel_calls_by_channel ON channel_calls(channel_id, seq);
CREATE INDEX channel_calls_by_time ON channel_calls(channel_id, created_at_ms);
CREATE INDEX entries_of_channels ON entries(ref) WHERE kind IN ('use', 'use_reversed');
"""

# For people who read the file (ledger-views.md explains each column); our code reads none of them. Output totals
# are summed in halves, since those of a refused invoice are unbounded: NULL if no column can hold the sum.
VIEWS = f"""
CREATE VIEW v_payments AS
SELECT p.id AS payment, p.kind AS kind, p.state AS state, p.delivery AS delivery,
       COALESCE(v.origin, NULLIF(i.origin, '')) AS merchant,
       a.name AS app, v.invoice_id AS invoice_id, p.asset AS asset, p.units AS units,
       {_ada("p.asset", "p.units")} AS ada, t.fee_lovelace AS fee_lovelace, p.tx_id AS tx_id,
       p.block_height AS block_height, {_iso_time("p.created_at_ms")} AS created_at,
       {_iso_time("p.updated_at_ms")} AS updated_at, p.code AS code, p.reason AS reason
FROM (
  SELECT *, json_extract(owed, '$[0].asset') AS asset, (
    SELECT IIF(high + (low >> 32) < 2147483648, (high << 32) + low, NULL) FROM (
      SELECT COALESCE(SUM(asked >> 32), 0) AS high, COALESCE(SUM(asked & 4294967295), 0) AS low FROM (
        SELECT CAST(json_extract(value, '$.units') AS INTEGER) AS asked FROM json_each(owed)
        WHERE json_extract(value, '$.role') <> 'change'
          AND json_extract(value, '$.asset') = json_extract(owed, '$[0].asset')))) AS units
  FROM (SELECT q.*, COALESCE(w.outputs, q.outputs) AS owed FROM payments q
        LEFT JOIN invoices w ON w.seq = q.invoice_seq)) p
JOIN apps a ON a.id = p.app_id
LEFT JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq
LEFT JOIN attempts t ON t.tx_id = p.tx_id;

CREATE VIEW v_spend AS
SELECT {_iso_time("j.at_ms")} AS at, strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch') AS day,
       j.id AS entry, j.kind AS kind, j.payment_id AS payment,
       COALESCE(v.origin, k.origin, NULLIF(i.origin, '')) AS merchant, a.name AS app,
       q.account AS account, q.asset AS asset, q.units AS units, {_ada("q.asset", "q.units")} AS ada
FROM entries j JOIN postings q ON q.entry_id = j.id AND {IS_SPEND}
{CHANNEL_OF_ENTRY}
LEFT JOIN payments p ON p.id = j.payment_id
LEFT JOIN apps a ON a.id = COALESCE(p.app_id, {APP_OF_PROMISE})
LEFT JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq;

CREATE VIEW v_refusals AS
SELECT {_iso_time("p.created_at_ms")} AS at, p.id AS payment, a.name AS app, v.origin AS merchant,
       i.request AS request, p.code AS code, p.reason AS reason, p.detail AS detail
FROM payments p
JOIN apps a ON a.id = p.app_id
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq
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
FROM prepaid_totals c
JOIN prepaid_pools o ON o.id = c.pool_id
LEFT JOIN prepaid_costs k ON k.pool_id = c.pool_id AND k.unit = c.unit
LEFT JOIN merchant_reports s
  ON s.seq = (SELECT MAX(seq) FROM merchant_reports WHERE pool_id = c.pool_id);

CREATE VIEW v_channels AS
SELECT id AS channel, origin AS merchant, phase AS state, asset, deposited, capacity, signed, count, claimed,
       returned, {_ada("asset", "signed")} AS signed_ada, {_iso_time("elapse_at_ms")} AS elapse_at,
       {_iso_time("created_at_ms")} AS created_at, {_iso_time("updated_at_ms")} AS updated_at, problem
FROM channels;

CREATE VIEW v_channel_calls AS
SELECT {_iso_time("n.created_at_ms")} AS at, n.id AS call, n.channel_id AS channel, k.origin AS merchant,
       a.name AS app, i.request AS request, n.state AS state, k.asset AS asset, n.price AS price,
       n.promised AS promised, n.charged AS charged, {_ada("k.asset", "n.charged")} AS charged_ada
FROM channel_calls n
JOIN channels k ON k.id = n.channel_id
JOIN apps a ON a.id = n.app_id
JOIN intents i ON i.id = n.intent_id;
"""  # noqa: S608  our own names
