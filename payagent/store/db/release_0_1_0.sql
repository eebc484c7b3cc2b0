-- The schema of ledger.db in payagent 0.1.0, as sqlite_master has it. Frozen: ledgers of that release exist.
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;
CREATE TABLE boot (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  epoch TEXT NOT NULL
) STRICT;
CREATE TABLE apps (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  scopes TEXT NOT NULL,
  merchants TEXT,
  assets TEXT,
  created_at_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
  hash TEXT PRIMARY KEY,
  app_id TEXT NOT NULL REFERENCES apps(id),
  created_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER,
  revoked_at_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX tokens_good ON tokens(app_id) WHERE revoked_at_ms IS NULL;
CREATE INDEX tokens_by_app ON tokens(app_id);
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
  CHECK ((kind = 'invoice') = (invoice_seq IS NOT NULL)),
  CHECK ((first_invoice_seq IS NULL) = (invoice_seq IS NULL)),
  CHECK ((nonce_utxo IS NULL) = (state IN ('received', 'awaiting_approval', 'rejected', 'denied'))
         OR (state = 'rejected' AND nonce_utxo IS NOT NULL)),
  UNIQUE (id, nonce_utxo)
) STRICT;
CREATE UNIQUE INDEX payments_one_per_invoice ON payments(invoice_seq) WHERE state NOT IN ('rejected', 'denied');
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
CREATE TABLE approvals (
  payment_id TEXT PRIMARY KEY REFERENCES payments(id),
  terms_hash TEXT NOT NULL,
  reasons TEXT NOT NULL,
  plan TEXT NOT NULL,
  max_total INTEGER,
  asked_at_ms INTEGER NOT NULL,
  expires_at_ms INTEGER NOT NULL
) STRICT;
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
CREATE TABLE limits (
  app TEXT NOT NULL,
  merchant TEXT NOT NULL,
  asset TEXT NOT NULL,
  window TEXT NOT NULL
    CHECK (window IN ('per_payment', 'per_hour', 'per_day', 'per_week', 'per_month', 'total')),
  most_units INTEGER NOT NULL CHECK (most_units >= 0),
  PRIMARY KEY (app, merchant, asset, window)
) STRICT, WITHOUT ROWID;
CREATE TABLE merchants (
  name TEXT PRIMARY KEY,
  origin TEXT NOT NULL UNIQUE,
  settings TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE address_pins (
  origin TEXT NOT NULL,
  role TEXT NOT NULL CHECK (role IN ('pay_to', 'split')),
  address TEXT NOT NULL,
  PRIMARY KEY (origin, role, address)
) STRICT, WITHOUT ROWID;
CREATE TABLE agreed_prices (
  origin TEXT NOT NULL,
  method TEXT NOT NULL,
  path TEXT NOT NULL,
  asset TEXT NOT NULL,
  calls INTEGER NOT NULL CHECK (calls > 0),
  units INTEGER NOT NULL CHECK (units > 0),
  PRIMARY KEY (origin, method, path, asset, calls)
) STRICT, WITHOUT ROWID;
CREATE TABLE unserved_streaks (
  origin TEXT PRIMARY KEY,
  count INTEGER NOT NULL CHECK (count >= 0),
  stopped_at_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE readiness (
  origin TEXT PRIMARY KEY,
  accepted_depth INTEGER CHECK (accepted_depth >= 0),
  refused_early INTEGER NOT NULL CHECK (refused_early IN (0, 1))
) STRICT, WITHOUT ROWID;
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
  FOREIGN KEY (payment_id, nonce_utxo) REFERENCES payments(id, nonce_utxo),
  CHECK (instr(' ' || inputs || ' ', ' ' || nonce_utxo || ' ') > 0)
) STRICT;
CREATE INDEX attempts_by_payment ON attempts(payment_id);
CREATE INDEX attempts_by_invoice ON attempts(invoice_seq) WHERE invoice_seq IS NOT NULL;
CREATE TABLE submissions (
  seq INTEGER PRIMARY KEY,
  tx_id TEXT NOT NULL REFERENCES attempts(tx_id),
  provider TEXT NOT NULL,
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX submissions_by_tx ON submissions(tx_id, at_ms);
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
CREATE TABLE utxos (
  ref TEXT PRIMARY KEY,
  tx_id TEXT NOT NULL,
  output_index INTEGER NOT NULL,
  lovelace INTEGER NOT NULL CHECK (lovelace > 0),
  assets TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('deposit', 'change')),
  state TEXT NOT NULL CHECK (state IN ('pending', 'available', 'locked', 'spent', 'missing', 'rolled_back')),
  spent_by TEXT,
  CHECK ((state = 'spent') = (spent_by IS NOT NULL))
) STRICT;
CREATE INDEX utxos_by_state ON utxos(state);
CREATE INDEX utxos_by_tx ON utxos(tx_id);
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
  at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX external_spends_by_tx ON external_spends(tx_id);
CREATE TABLE reservations (
  ref TEXT PRIMARY KEY REFERENCES utxos(ref),
  payment_id TEXT NOT NULL REFERENCES payments(id)
) STRICT;
CREATE INDEX reservations_by_payment ON reservations(payment_id);
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
CREATE TABLE balances (
  account TEXT NOT NULL,
  asset TEXT NOT NULL,
  units_high INTEGER NOT NULL,
  units_low INTEGER NOT NULL CHECK (units_low BETWEEN 0 AND 4294967295),
  PRIMARY KEY (account, asset)
) STRICT;
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
CREATE TABLE prepaid_pools (
  id INTEGER PRIMARY KEY,
  origin TEXT NOT NULL,
  partner TEXT NOT NULL,
  wallet TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL,
  UNIQUE (origin, partner, wallet)
) STRICT;
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
CREATE TABLE prepaid_shares (
  pool_id INTEGER NOT NULL REFERENCES prepaid_pools(id),
  app_id TEXT NOT NULL REFERENCES apps(id),
  asset TEXT NOT NULL,
  paid INTEGER NOT NULL,
  used INTEGER NOT NULL,
  counted INTEGER NOT NULL,
  PRIMARY KEY (pool_id, app_id, asset)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE request_prices (
  origin TEXT NOT NULL,
  method TEXT NOT NULL,
  path TEXT NOT NULL,
  asset TEXT NOT NULL,
  units INTEGER NOT NULL,
  PRIMARY KEY (origin, method, path)
) STRICT;
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
CREATE TABLE seals (
  seq INTEGER PRIMARY KEY,
  what TEXT NOT NULL,
  marks BLOB NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;
CREATE VIEW v_payments AS
SELECT p.id AS payment, p.kind AS kind, p.state AS state, p.delivery AS delivery, v.origin AS merchant,
       a.name AS app, v.invoice_id AS invoice_id, p.asset AS asset, p.units AS units,
       IIF(p.asset = 'lovelace', printf('%s%d.%06d', IIF(p.units < 0, '-', ''), abs(p.units / 1000000), abs(p.units % 1000000)), NULL) AS ada, t.fee_lovelace AS fee_lovelace, p.tx_id AS tx_id,
       p.block_height AS block_height, strftime('%Y-%m-%dT%H:%M:%S', p.created_at_ms / 1000, 'unixepoch') || printf('.%03dZ', p.created_at_ms % 1000) AS created_at,
       strftime('%Y-%m-%dT%H:%M:%S', p.updated_at_ms / 1000, 'unixepoch') || printf('.%03dZ', p.updated_at_ms % 1000) AS updated_at, p.code AS code, p.reason AS reason
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
LEFT JOIN invoices v ON v.seq = p.invoice_seq
LEFT JOIN attempts t ON t.tx_id = p.tx_id;
CREATE VIEW v_spend AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', j.at_ms / 1000, 'unixepoch') || printf('.%03dZ', j.at_ms % 1000) AS at, strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch') AS day,
       j.id AS entry, j.kind AS kind, j.payment_id AS payment, v.origin AS merchant, a.name AS app,
       q.account AS account, q.asset AS asset, q.units AS units, IIF(q.asset = 'lovelace', printf('%s%d.%06d', IIF(q.units < 0, '-', ''), abs(q.units / 1000000), abs(q.units % 1000000)), NULL) AS ada
FROM entries j JOIN postings q ON q.entry_id = j.id AND j.kind IN ('post', 'post_reversed', 'release') AND q.account NOT IN ('wallet', 'held')
JOIN payments p ON p.id = j.payment_id
JOIN apps a ON a.id = p.app_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq;
CREATE VIEW v_refusals AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', p.created_at_ms / 1000, 'unixepoch') || printf('.%03dZ', p.created_at_ms % 1000) AS at, p.id AS payment, a.name AS app, v.origin AS merchant,
       i.request AS request, p.code AS code, p.reason AS reason, p.detail AS detail
FROM payments p
JOIN apps a ON a.id = p.app_id
JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq
WHERE p.state IN ('rejected', 'denied')
UNION ALL
SELECT strftime('%Y-%m-%dT%H:%M:%S', e.at_ms / 1000, 'unixepoch') || printf('.%03dZ', e.at_ms % 1000), NULL, a.name, e.detail ->> '$.origin', e.detail ->> '$.request',
       e.detail ->> '$.code', e.detail ->> '$.reason', e.detail ->> '$.detail'
FROM events e
LEFT JOIN apps a ON a.id = e.detail ->> '$.app'
WHERE e.payment_id IS NULL AND e.event = 'refused';
CREATE VIEW v_prepaid AS
SELECT o.origin AS merchant, o.partner AS partner, o.wallet AS wallet, c.unit AS unit, c.bought AS bought,
       c.used AS used, c.bought - c.used AS left, c.unexplained AS unexplained, k.asset AS paid_in,
       k.bought AS paid_units, k.used AS used_units, k.bought - k.used AS left_units,
       IIF(k.asset = 'lovelace', printf('%s%d.%06d', IIF((k.bought - k.used) < 0, '-', ''), abs((k.bought - k.used) / 1000000), abs((k.bought - k.used) % 1000000)), NULL) AS left_ada,
       IIF(COALESCE(s.unit, 'calls') = c.unit, s.remaining, NULL) AS merchant_says,
       strftime('%Y-%m-%dT%H:%M:%S', s.at_ms / 1000, 'unixepoch') || printf('.%03dZ', s.at_ms % 1000) AS merchant_said_at
FROM prepaid_totals c
JOIN prepaid_pools o ON o.id = c.pool_id
LEFT JOIN prepaid_costs k ON k.pool_id = c.pool_id AND k.unit = c.unit
LEFT JOIN merchant_reports s
  ON s.seq = (SELECT MAX(seq) FROM merchant_reports WHERE pool_id = c.pool_id);
CREATE TRIGGER payments_one_per_intent BEFORE INSERT ON payments WHEN EXISTS (SELECT 1 FROM payments WHERE intent_id = NEW.intent_id AND state NOT IN ('rejected', 'denied', 'void') AND NEW.state NOT IN ('rejected', 'denied', 'void')) BEGIN SELECT RAISE(ABORT, 'the intent has a payment'); END;
CREATE TRIGGER payments_invoice_unsigned BEFORE INSERT ON payments WHEN NEW.state NOT IN ('rejected', 'denied') AND EXISTS (SELECT 1 FROM attempts WHERE invoice_seq = NEW.invoice_seq AND payment_id <> NEW.id) BEGIN SELECT RAISE(ABORT, 'another payment was signed for the invoice'); END;
CREATE TRIGGER payments_invoice_not_signed BEFORE UPDATE ON payments WHEN NEW.state NOT IN ('rejected', 'denied') AND EXISTS (SELECT 1 FROM attempts WHERE invoice_seq = NEW.invoice_seq AND payment_id <> NEW.id) BEGIN SELECT RAISE(ABORT, 'another payment was signed for the invoice'); END;
CREATE TRIGGER payments_invoice_follows BEFORE UPDATE ON payments WHEN NEW.invoice_seq IS NOT OLD.invoice_seq AND (NEW.state NOT IN ('replacing', 'in_block') OR NOT EXISTS (SELECT 1 FROM invoices WHERE seq = NEW.invoice_seq AND origin = NEW.origin)) BEGIN SELECT RAISE(ABORT, 'a payment goes by another invoice when it is replaced or found in a block, by one of its origin'); END;
CREATE TRIGGER payments_of_the_origin BEFORE INSERT ON payments WHEN NEW.origin IS NOT (SELECT origin FROM invoices WHERE seq = NEW.invoice_seq) BEGIN SELECT RAISE(ABORT, 'a payment has the origin of its invoice'); END;
CREATE TRIGGER attempts_of_the_invoice BEFORE INSERT ON attempts WHEN EXISTS (SELECT 1 FROM payments WHERE id = NEW.payment_id AND invoice_seq IS NOT NEW.invoice_seq) BEGIN SELECT RAISE(ABORT, 'an attempt is signed for the invoice that its payment goes by'); END;
CREATE TRIGGER payments_asked BEFORE UPDATE ON payments WHEN NEW.state = 'awaiting_approval' AND NOT EXISTS (SELECT 1 FROM approvals WHERE payment_id = NEW.id) BEGIN SELECT RAISE(ABORT, 'nobody was asked about the payment'); END;
CREATE TRIGGER payments_refused_for_good BEFORE UPDATE ON payments WHEN OLD.state IN ('rejected', 'denied') AND NEW.state IS NOT OLD.state BEGIN SELECT RAISE(ABORT, 'what was refused stays refused'); END;
CREATE TRIGGER entries_balance BEFORE INSERT ON entries WHEN NOT EXISTS (SELECT 1 FROM postings WHERE entry_id = NEW.id) OR EXISTS (SELECT 1 FROM postings WHERE entry_id = NEW.id GROUP BY asset HAVING (SUM(units & 4294967295) & 4294967295) <> 0 OR SUM(units >> 32) + (SUM(units & 4294967295) >> 32) <> 0) BEGIN SELECT RAISE(ABORT, 'the entry does not balance'); END;
CREATE TRIGGER postings_sealed BEFORE INSERT ON postings WHEN EXISTS (SELECT 1 FROM entries WHERE id = NEW.entry_id) BEGIN SELECT RAISE(ABORT, 'the entry is sealed'); END;
CREATE TRIGGER topups_end_once BEFORE UPDATE ON topups WHEN OLD.ended_at_ms IS NOT NULL BEGIN SELECT RAISE(ABORT, 'a top-up ends once'); END;
CREATE TRIGGER events_chained BEFORE INSERT ON events WHEN NEW.prev_hash IS NOT COALESCE((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '0000000000000000000000000000000000000000000000000000000000000000') OR NEW.seq IS NOT COALESCE((SELECT MAX(seq) FROM events), 0) + 1 BEGIN SELECT RAISE(ABORT, 'the event does not follow the last one'); END;
CREATE TRIGGER seals_chained BEFORE INSERT ON seals WHEN NEW.seq IS NOT COALESCE((SELECT MAX(seq) FROM seals), 0) + 1 BEGIN SELECT RAISE(ABORT, 'the seal does not follow the last one'); END;
CREATE TRIGGER approvals_no_delete BEFORE DELETE ON approvals WHEN 1 BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER approvals_no_replace BEFORE INSERT ON approvals WHEN EXISTS (SELECT 1 FROM approvals WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM approvals WHERE payment_id = NEW.payment_id) BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER approvals_no_update BEFORE UPDATE ON approvals WHEN 1 BEGIN SELECT RAISE(ABORT, 'approvals is append-only'); END;
CREATE TRIGGER attempts_no_delete BEFORE DELETE ON attempts WHEN 1 BEGIN SELECT RAISE(ABORT, 'attempts is append-only'); END;
CREATE TRIGGER attempts_no_replace BEFORE INSERT ON attempts WHEN EXISTS (SELECT 1 FROM attempts WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM attempts WHERE tx_id = NEW.tx_id) BEGIN SELECT RAISE(ABORT, 'attempts is append-only'); END;
CREATE TRIGGER attempts_no_update BEFORE UPDATE ON attempts WHEN 1 BEGIN SELECT RAISE(ABORT, 'attempts is append-only'); END;
CREATE TRIGGER block_observations_no_delete BEFORE DELETE ON block_observations WHEN 1 BEGIN SELECT RAISE(ABORT, 'block_observations is append-only'); END;
CREATE TRIGGER block_observations_no_replace BEFORE INSERT ON block_observations WHEN EXISTS (SELECT 1 FROM block_observations WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'block_observations is append-only'); END;
CREATE TRIGGER block_observations_no_update BEFORE UPDATE ON block_observations WHEN 1 BEGIN SELECT RAISE(ABORT, 'block_observations is append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events WHEN 1 BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER events_no_replace BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER events_no_update BEFORE UPDATE ON events WHEN 1 BEGIN SELECT RAISE(ABORT, 'events is append-only'); END;
CREATE TRIGGER external_spends_no_delete BEFORE DELETE ON external_spends WHEN 1 BEGIN SELECT RAISE(ABORT, 'external_spends is append-only'); END;
CREATE TRIGGER external_spends_no_replace BEFORE INSERT ON external_spends WHEN EXISTS (SELECT 1 FROM external_spends WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'external_spends is append-only'); END;
CREATE TRIGGER external_spends_no_update BEFORE UPDATE ON external_spends WHEN 1 BEGIN SELECT RAISE(ABORT, 'external_spends is append-only'); END;
CREATE TRIGGER invoices_no_delete BEFORE DELETE ON invoices WHEN 1 BEGIN SELECT RAISE(ABORT, 'invoices is append-only'); END;
CREATE TRIGGER invoices_no_replace BEFORE INSERT ON invoices WHEN EXISTS (SELECT 1 FROM invoices WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM invoices WHERE origin = NEW.origin AND invoice_id = NEW.invoice_id) BEGIN SELECT RAISE(ABORT, 'invoices is append-only'); END;
CREATE TRIGGER invoices_no_update BEFORE UPDATE ON invoices WHEN 1 BEGIN SELECT RAISE(ABORT, 'invoices is append-only'); END;
CREATE TRIGGER merchant_reports_no_delete BEFORE DELETE ON merchant_reports WHEN 1 BEGIN SELECT RAISE(ABORT, 'merchant_reports is append-only'); END;
CREATE TRIGGER merchant_reports_no_replace BEFORE INSERT ON merchant_reports WHEN EXISTS (SELECT 1 FROM merchant_reports WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'merchant_reports is append-only'); END;
CREATE TRIGGER merchant_reports_no_update BEFORE UPDATE ON merchant_reports WHEN 1 BEGIN SELECT RAISE(ABORT, 'merchant_reports is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries WHEN 1 BEGIN SELECT RAISE(ABORT, 'entries is append-only'); END;
CREATE TRIGGER entries_no_replace BEFORE INSERT ON entries WHEN EXISTS (SELECT 1 FROM entries WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'entries is append-only'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries WHEN 1 BEGIN SELECT RAISE(ABORT, 'entries is append-only'); END;
CREATE TRIGGER prepaid_moves_no_delete BEFORE DELETE ON prepaid_moves WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_moves is append-only'); END;
CREATE TRIGGER prepaid_moves_no_replace BEFORE INSERT ON prepaid_moves WHEN EXISTS (SELECT 1 FROM prepaid_moves WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM prepaid_moves WHERE app_id = NEW.app_id AND call_key = NEW.call_key AND call_key IS NOT NULL AND NEW.call_key IS NOT NULL) BEGIN SELECT RAISE(ABORT, 'prepaid_moves is append-only'); END;
CREATE TRIGGER prepaid_moves_no_update BEFORE UPDATE ON prepaid_moves WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_moves is append-only'); END;
CREATE TRIGGER prepaid_pools_no_delete BEFORE DELETE ON prepaid_pools WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_pools is append-only'); END;
CREATE TRIGGER prepaid_pools_no_replace BEFORE INSERT ON prepaid_pools WHEN EXISTS (SELECT 1 FROM prepaid_pools WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM prepaid_pools WHERE origin = NEW.origin AND partner = NEW.partner AND wallet = NEW.wallet) BEGIN SELECT RAISE(ABORT, 'prepaid_pools is append-only'); END;
CREATE TRIGGER prepaid_pools_no_update BEFORE UPDATE ON prepaid_pools WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_pools is append-only'); END;
CREATE TRIGGER prepaid_uses_no_delete BEFORE DELETE ON prepaid_uses WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_uses is append-only'); END;
CREATE TRIGGER prepaid_uses_no_replace BEFORE INSERT ON prepaid_uses WHEN EXISTS (SELECT 1 FROM prepaid_uses WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'prepaid_uses is append-only'); END;
CREATE TRIGGER prepaid_uses_no_update BEFORE UPDATE ON prepaid_uses WHEN 1 BEGIN SELECT RAISE(ABORT, 'prepaid_uses is append-only'); END;
CREATE TRIGGER postings_no_delete BEFORE DELETE ON postings WHEN 1 BEGIN SELECT RAISE(ABORT, 'postings is append-only'); END;
CREATE TRIGGER postings_no_replace BEFORE INSERT ON postings WHEN EXISTS (SELECT 1 FROM postings WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'postings is append-only'); END;
CREATE TRIGGER postings_no_update BEFORE UPDATE ON postings WHEN 1 BEGIN SELECT RAISE(ABORT, 'postings is append-only'); END;
CREATE TRIGGER submissions_no_delete BEFORE DELETE ON submissions WHEN 1 BEGIN SELECT RAISE(ABORT, 'submissions is append-only'); END;
CREATE TRIGGER submissions_no_replace BEFORE INSERT ON submissions WHEN EXISTS (SELECT 1 FROM submissions WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'submissions is append-only'); END;
CREATE TRIGGER submissions_no_update BEFORE UPDATE ON submissions WHEN 1 BEGIN SELECT RAISE(ABORT, 'submissions is append-only'); END;
CREATE TRIGGER apps_no_delete BEFORE DELETE ON apps WHEN 1 BEGIN SELECT RAISE(ABORT, 'apps is append-only'); END;
CREATE TRIGGER apps_no_replace BEFORE INSERT ON apps WHEN EXISTS (SELECT 1 FROM apps WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM apps WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM apps WHERE name = NEW.name) BEGIN SELECT RAISE(ABORT, 'apps is append-only'); END;
CREATE TRIGGER apps_no_update BEFORE UPDATE ON apps WHEN 1 BEGIN SELECT RAISE(ABORT, 'apps is append-only'); END;
CREATE TRIGGER tokens_no_delete BEFORE DELETE ON tokens WHEN 1 BEGIN SELECT RAISE(ABORT, 'tokens are never deleted'); END;
CREATE TRIGGER tokens_no_replace BEFORE INSERT ON tokens WHEN EXISTS (SELECT 1 FROM tokens WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM tokens WHERE hash = NEW.hash) OR EXISTS (SELECT 1 FROM tokens WHERE app_id = NEW.app_id AND revoked_at_ms IS NULL AND NEW.revoked_at_ms IS NULL) BEGIN SELECT RAISE(ABORT, 'tokens has such a row'); END;
CREATE TRIGGER tokens_fixed BEFORE UPDATE ON tokens WHEN NEW.rowid IS NOT OLD.rowid OR NEW.hash IS NOT OLD.hash OR NEW.app_id IS NOT OLD.app_id OR NEW.created_at_ms IS NOT OLD.created_at_ms OR NEW.expires_at_ms IS NOT OLD.expires_at_ms BEGIN SELECT RAISE(ABORT, 'what tokens are about never changes'); END;
CREATE TRIGGER tokens_revoked_at_ms_once BEFORE UPDATE ON tokens WHEN OLD.revoked_at_ms IS NOT NULL AND NEW.revoked_at_ms IS NOT OLD.revoked_at_ms BEGIN SELECT RAISE(ABORT, 'revoked_at_ms of tokens is set once'); END;
CREATE TRIGGER meta_no_delete BEFORE DELETE ON meta WHEN 1 BEGIN SELECT RAISE(ABORT, 'meta is append-only'); END;
CREATE TRIGGER meta_no_replace BEFORE INSERT ON meta WHEN EXISTS (SELECT 1 FROM meta WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM meta WHERE key = NEW.key) BEGIN SELECT RAISE(ABORT, 'meta is append-only'); END;
CREATE TRIGGER meta_no_update BEFORE UPDATE ON meta WHEN 1 BEGIN SELECT RAISE(ABORT, 'meta is append-only'); END;
CREATE TRIGGER seals_no_delete BEFORE DELETE ON seals WHEN 1 BEGIN SELECT RAISE(ABORT, 'seals is append-only'); END;
CREATE TRIGGER seals_no_replace BEFORE INSERT ON seals WHEN EXISTS (SELECT 1 FROM seals WHERE rowid = NEW.rowid) BEGIN SELECT RAISE(ABORT, 'seals is append-only'); END;
CREATE TRIGGER seals_no_update BEFORE UPDATE ON seals WHEN 1 BEGIN SELECT RAISE(ABORT, 'seals is append-only'); END;
CREATE TRIGGER intents_no_delete BEFORE DELETE ON intents WHEN 1 BEGIN SELECT RAISE(ABORT, 'intents are never deleted'); END;
CREATE TRIGGER intents_no_replace BEFORE INSERT ON intents WHEN EXISTS (SELECT 1 FROM intents WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM intents WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM intents WHERE app_id = NEW.app_id AND idempotency_key = NEW.idempotency_key AND ended_at_ms IS NULL AND NEW.ended_at_ms IS NULL) BEGIN SELECT RAISE(ABORT, 'intents has such a row'); END;
CREATE TRIGGER intents_fixed BEFORE UPDATE ON intents WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.app_id IS NOT OLD.app_id OR NEW.idempotency_key IS NOT OLD.idempotency_key OR NEW.is_key_derived IS NOT OLD.is_key_derived OR NEW.fingerprint IS NOT OLD.fingerprint OR NEW.origin IS NOT OLD.origin OR NEW.request IS NOT OLD.request OR NEW.request_id IS NOT OLD.request_id OR NEW.created_at_ms IS NOT OLD.created_at_ms BEGIN SELECT RAISE(ABORT, 'what intents are about never changes'); END;
CREATE TRIGGER intents_ended_at_ms_once BEFORE UPDATE ON intents WHEN OLD.ended_at_ms IS NOT NULL AND NEW.ended_at_ms IS NOT OLD.ended_at_ms BEGIN SELECT RAISE(ABORT, 'ended_at_ms of intents is set once'); END;
CREATE TRIGGER topups_no_delete BEFORE DELETE ON topups WHEN 1 BEGIN SELECT RAISE(ABORT, 'topups are never deleted'); END;
CREATE TRIGGER topups_no_replace BEFORE INSERT ON topups WHEN EXISTS (SELECT 1 FROM topups WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM topups WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM topups WHERE app_id = NEW.app_id AND key = NEW.key) OR EXISTS (SELECT 1 FROM topups WHERE pool_id = NEW.pool_id AND ended_at_ms IS NULL AND NEW.ended_at_ms IS NULL) BEGIN SELECT RAISE(ABORT, 'topups has such a row'); END;
CREATE TRIGGER topups_fixed BEFORE UPDATE ON topups WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.pool_id IS NOT OLD.pool_id OR NEW.app_id IS NOT OLD.app_id OR NEW.key IS NOT OLD.key OR NEW.trigger IS NOT OLD.trigger OR NEW.unit IS NOT OLD.unit OR NEW.units IS NOT OLD.units OR NEW.request IS NOT OLD.request OR NEW.is_call IS NOT OLD.is_call OR NEW.created_at_ms IS NOT OLD.created_at_ms OR NEW.clock_ms IS NOT OLD.clock_ms BEGIN SELECT RAISE(ABORT, 'what topups are about never changes'); END;
CREATE TRIGGER topups_stop_code_once BEFORE UPDATE ON topups WHEN OLD.stop_code IS NOT NULL AND NEW.stop_code IS NOT OLD.stop_code BEGIN SELECT RAISE(ABORT, 'stop_code of topups is set once'); END;
CREATE TRIGGER topups_stop_reason_once BEFORE UPDATE ON topups WHEN OLD.stop_reason IS NOT NULL AND NEW.stop_reason IS NOT OLD.stop_reason BEGIN SELECT RAISE(ABORT, 'stop_reason of topups is set once'); END;
CREATE TRIGGER topups_stop_detail_once BEFORE UPDATE ON topups WHEN OLD.stop_detail IS NOT NULL AND NEW.stop_detail IS NOT OLD.stop_detail BEGIN SELECT RAISE(ABORT, 'stop_detail of topups is set once'); END;
CREATE TRIGGER topups_ended_at_ms_once BEFORE UPDATE ON topups WHEN OLD.ended_at_ms IS NOT NULL AND NEW.ended_at_ms IS NOT OLD.ended_at_ms BEGIN SELECT RAISE(ABORT, 'ended_at_ms of topups is set once'); END;
CREATE TRIGGER topups_ended_clock_ms_once BEFORE UPDATE ON topups WHEN OLD.ended_clock_ms IS NOT NULL AND NEW.ended_clock_ms IS NOT OLD.ended_clock_ms BEGIN SELECT RAISE(ABORT, 'ended_clock_ms of topups is set once'); END;
CREATE TRIGGER topups_code_once BEFORE UPDATE ON topups WHEN OLD.code IS NOT NULL AND NEW.code IS NOT OLD.code BEGIN SELECT RAISE(ABORT, 'code of topups is set once'); END;
CREATE TRIGGER topups_reason_once BEFORE UPDATE ON topups WHEN OLD.reason IS NOT NULL AND NEW.reason IS NOT OLD.reason BEGIN SELECT RAISE(ABORT, 'reason of topups is set once'); END;
CREATE TRIGGER topups_detail_once BEFORE UPDATE ON topups WHEN OLD.detail IS NOT NULL AND NEW.detail IS NOT OLD.detail BEGIN SELECT RAISE(ABORT, 'detail of topups is set once'); END;
CREATE TRIGGER alerts_no_delete BEFORE DELETE ON alerts WHEN 1 BEGIN SELECT RAISE(ABORT, 'alerts are never deleted'); END;
CREATE TRIGGER alerts_no_replace BEFORE INSERT ON alerts WHEN EXISTS (SELECT 1 FROM alerts WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM alerts WHERE id = NEW.id) BEGIN SELECT RAISE(ABORT, 'alerts has such a row'); END;
CREATE TRIGGER alerts_fixed BEFORE UPDATE ON alerts WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.kind IS NOT OLD.kind OR NEW.subject IS NOT OLD.subject OR NEW.body IS NOT OLD.body OR NEW.at_ms IS NOT OLD.at_ms BEGIN SELECT RAISE(ABORT, 'what alerts are about never changes'); END;
CREATE TRIGGER alerts_delivered_at_ms_once BEFORE UPDATE ON alerts WHEN OLD.delivered_at_ms IS NOT NULL AND NEW.delivered_at_ms IS NOT OLD.delivered_at_ms BEGIN SELECT RAISE(ABORT, 'delivered_at_ms of alerts is set once'); END;
CREATE TRIGGER holds_no_delete BEFORE DELETE ON holds WHEN 1 BEGIN SELECT RAISE(ABORT, 'holds are never deleted'); END;
CREATE TRIGGER holds_no_replace BEFORE INSERT ON holds WHEN EXISTS (SELECT 1 FROM holds WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM holds WHERE payment_id = NEW.payment_id AND stage = NEW.stage AND asset = NEW.asset) BEGIN SELECT RAISE(ABORT, 'holds has such a row'); END;
CREATE TRIGGER holds_fixed BEFORE UPDATE ON holds WHEN NEW.rowid IS NOT OLD.rowid OR NEW.payment_id IS NOT OLD.payment_id OR NEW.stage IS NOT OLD.stage OR NEW.asset IS NOT OLD.asset OR NEW.units IS NOT OLD.units OR NEW.at_ms IS NOT OLD.at_ms OR NEW.counted_at_ms IS NOT OLD.counted_at_ms BEGIN SELECT RAISE(ABORT, 'what holds are about never changes'); END;
CREATE TRIGGER payments_no_delete BEFORE DELETE ON payments WHEN 1 BEGIN SELECT RAISE(ABORT, 'payments are never deleted'); END;
CREATE TRIGGER payments_no_replace BEFORE INSERT ON payments WHEN EXISTS (SELECT 1 FROM payments WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM payments WHERE id = NEW.id) OR EXISTS (SELECT 1 FROM payments WHERE invoice_seq = NEW.invoice_seq AND state NOT IN ('rejected', 'denied') AND NEW.state NOT IN ('rejected', 'denied')) OR EXISTS (SELECT 1 FROM payments WHERE nonce_utxo = NEW.nonce_utxo AND state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back' AND NEW.state NOT IN ('rejected', 'denied') AND NEW.code IS NOT 'deposit_rolled_back') BEGIN SELECT RAISE(ABORT, 'payments has such a row'); END;
CREATE TRIGGER payments_fixed BEFORE UPDATE ON payments WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.kind IS NOT OLD.kind OR NEW.app_id IS NOT OLD.app_id OR NEW.intent_id IS NOT OLD.intent_id OR NEW.first_invoice_seq IS NOT OLD.first_invoice_seq OR NEW.origin IS NOT OLD.origin OR NEW.outputs IS NOT OLD.outputs OR NEW.pool_id IS NOT OLD.pool_id OR NEW.topup_id IS NOT OLD.topup_id OR NEW.created_at_ms IS NOT OLD.created_at_ms BEGIN SELECT RAISE(ABORT, 'what payments are about never changes'); END;
CREATE TRIGGER payments_nonce_utxo_once BEFORE UPDATE ON payments WHEN OLD.nonce_utxo IS NOT NULL AND NEW.nonce_utxo IS NOT OLD.nonce_utxo BEGIN SELECT RAISE(ABORT, 'nonce_utxo of payments is set once'); END;
CREATE TRIGGER payments_no_overwrite BEFORE UPDATE ON payments WHEN EXISTS (SELECT 1 FROM payments WHERE invoice_seq = NEW.invoice_seq AND state NOT IN ('rejected', 'denied') AND NEW.state NOT IN ('rejected', 'denied') AND rowid <> OLD.rowid) OR EXISTS (SELECT 1 FROM payments WHERE nonce_utxo = NEW.nonce_utxo AND state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back' AND NEW.state NOT IN ('rejected', 'denied') AND NEW.code IS NOT 'deposit_rolled_back' AND rowid <> OLD.rowid) BEGIN SELECT RAISE(ABORT, 'payments has such a row'); END;
