ALTER TABLE utxos ADD COLUMN account INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payments ADD COLUMN account INTEGER NOT NULL DEFAULT 0;
ALTER TABLE attempts ADD COLUMN account INTEGER NOT NULL DEFAULT 0;
ALTER TABLE external_spends ADD COLUMN account INTEGER NOT NULL DEFAULT 0;
ALTER TABLE prepaid_pools ADD COLUMN account INTEGER NOT NULL DEFAULT 0;
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
CREATE TABLE daemons (
  id TEXT PRIMARY KEY,
  host TEXT NOT NULL,
  url TEXT NOT NULL,
  config_hash TEXT NOT NULL,
  version TEXT NOT NULL,
  schema TEXT NOT NULL,
  seen_at_ms INTEGER NOT NULL
) STRICT;
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
CREATE TABLE homes (
  origin TEXT NOT NULL,
  partner TEXT NOT NULL,
  account INTEGER NOT NULL,
  PRIMARY KEY (origin, partner)
) STRICT;
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
DROP VIEW v_spend;
CREATE VIEW v_spend AS
SELECT strftime('%Y-%m-%dT%H:%M:%S', j.at_ms / 1000, 'unixepoch') || printf('.%03dZ', j.at_ms % 1000) AS at, strftime('%Y-%m-%d', j.at_ms / 1000, 'unixepoch') AS day,
       j.id AS entry, j.kind AS kind, j.payment_id AS payment, v.origin AS merchant, a.name AS app,
       q.account AS account, q.asset AS asset, q.units AS units, IIF(q.asset = 'lovelace', printf('%s%d.%06d', IIF(q.units < 0, '-', ''), abs(q.units / 1000000), abs(q.units % 1000000)), NULL) AS ada
FROM entries j JOIN postings q ON q.entry_id = j.id AND j.kind IN ('post', 'post_reversed', 'release') AND NOT (q.account LIKE 'wallet%' OR q.account LIKE 'held%')
JOIN payments p ON p.id = j.payment_id
JOIN apps a ON a.id = p.app_id
LEFT JOIN invoices v ON v.seq = p.invoice_seq;
DROP TRIGGER payments_update;
CREATE TRIGGER admission_requests_delete BEFORE DELETE ON admission_requests WHEN (1) BEGIN SELECT CASE WHEN 1 THEN RAISE(ABORT, 'admission_requests are never deleted') END; END;
CREATE TRIGGER admission_requests_insert BEFORE INSERT ON admission_requests WHEN (EXISTS (SELECT 1 FROM admission_requests WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM admission_requests WHERE id = NEW.id)) BEGIN SELECT CASE WHEN EXISTS (SELECT 1 FROM admission_requests WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM admission_requests WHERE id = NEW.id) THEN RAISE(ABORT, 'admission_requests has such a row') END; END;
CREATE TRIGGER admission_requests_update BEFORE UPDATE ON admission_requests WHEN (OLD.outcome IS NOT NULL AND NEW.outcome IS NOT OLD.outcome) OR (OLD.ended_at_ms IS NOT NULL AND NEW.ended_at_ms IS NOT OLD.ended_at_ms) OR (NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.account IS NOT OLD.account OR NEW.kind IS NOT OLD.kind OR NEW.asked_by IS NOT OLD.asked_by OR NEW.request IS NOT OLD.request OR NEW.ends_at_ms IS NOT OLD.ends_at_ms) BEGIN SELECT CASE WHEN OLD.outcome IS NOT NULL AND NEW.outcome IS NOT OLD.outcome THEN RAISE(ABORT, 'outcome of admission_requests is set once') WHEN OLD.ended_at_ms IS NOT NULL AND NEW.ended_at_ms IS NOT OLD.ended_at_ms THEN RAISE(ABORT, 'ended_at_ms of admission_requests is set once') WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.account IS NOT OLD.account OR NEW.kind IS NOT OLD.kind OR NEW.asked_by IS NOT OLD.asked_by OR NEW.request IS NOT OLD.request OR NEW.ends_at_ms IS NOT OLD.ends_at_ms THEN RAISE(ABORT, 'what admission_requests are about never changes') END; END;
CREATE TRIGGER homes_delete BEFORE DELETE ON homes WHEN (1) BEGIN SELECT CASE WHEN 1 THEN RAISE(ABORT, 'homes are never deleted') END; END;
CREATE TRIGGER homes_insert BEFORE INSERT ON homes WHEN (EXISTS (SELECT 1 FROM homes WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM homes WHERE origin = NEW.origin AND partner = NEW.partner)) BEGIN SELECT CASE WHEN EXISTS (SELECT 1 FROM homes WHERE rowid = NEW.rowid) OR EXISTS (SELECT 1 FROM homes WHERE origin = NEW.origin AND partner = NEW.partner) THEN RAISE(ABORT, 'homes has such a row') END; END;
CREATE TRIGGER homes_update BEFORE UPDATE ON homes WHEN (NEW.rowid IS NOT OLD.rowid OR NEW.origin IS NOT OLD.origin OR NEW.partner IS NOT OLD.partner) BEGIN SELECT CASE WHEN NEW.rowid IS NOT OLD.rowid OR NEW.origin IS NOT OLD.origin OR NEW.partner IS NOT OLD.partner THEN RAISE(ABORT, 'what homes are about never changes') END; END;
CREATE TRIGGER payments_update BEFORE UPDATE ON payments WHEN (EXISTS (SELECT 1 FROM payments WHERE invoice_seq = NEW.invoice_seq AND state NOT IN ('rejected', 'denied') AND NEW.state NOT IN ('rejected', 'denied') AND rowid <> OLD.rowid) OR EXISTS (SELECT 1 FROM payments WHERE nonce_utxo = NEW.nonce_utxo AND state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back' AND NEW.state NOT IN ('rejected', 'denied') AND NEW.code IS NOT 'deposit_rolled_back' AND rowid <> OLD.rowid)) OR (OLD.nonce_utxo IS NOT NULL AND NEW.nonce_utxo IS NOT OLD.nonce_utxo) OR (NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.kind IS NOT OLD.kind OR NEW.app_id IS NOT OLD.app_id OR NEW.intent_id IS NOT OLD.intent_id OR NEW.first_invoice_seq IS NOT OLD.first_invoice_seq OR NEW.origin IS NOT OLD.origin OR NEW.outputs IS NOT OLD.outputs OR NEW.pool_id IS NOT OLD.pool_id OR NEW.topup_id IS NOT OLD.topup_id OR NEW.created_at_ms IS NOT OLD.created_at_ms OR NEW.account IS NOT OLD.account) OR (OLD.state IN ('rejected', 'denied') AND NEW.state IS NOT OLD.state) OR (NEW.state = 'awaiting_approval' AND NOT EXISTS (SELECT 1 FROM approvals WHERE payment_id = NEW.id)) OR (NEW.invoice_seq IS NOT OLD.invoice_seq AND (NEW.state NOT IN ('replacing', 'in_block') OR NOT EXISTS (SELECT 1 FROM invoices WHERE seq = NEW.invoice_seq AND origin = NEW.origin))) OR (NEW.state NOT IN ('rejected', 'denied') AND EXISTS (SELECT 1 FROM attempts WHERE invoice_seq = NEW.invoice_seq AND payment_id <> NEW.id)) BEGIN SELECT CASE WHEN EXISTS (SELECT 1 FROM payments WHERE invoice_seq = NEW.invoice_seq AND state NOT IN ('rejected', 'denied') AND NEW.state NOT IN ('rejected', 'denied') AND rowid <> OLD.rowid) OR EXISTS (SELECT 1 FROM payments WHERE nonce_utxo = NEW.nonce_utxo AND state NOT IN ('rejected', 'denied') AND code IS NOT 'deposit_rolled_back' AND NEW.state NOT IN ('rejected', 'denied') AND NEW.code IS NOT 'deposit_rolled_back' AND rowid <> OLD.rowid) THEN RAISE(ABORT, 'payments has such a row') WHEN OLD.nonce_utxo IS NOT NULL AND NEW.nonce_utxo IS NOT OLD.nonce_utxo THEN RAISE(ABORT, 'nonce_utxo of payments is set once') WHEN NEW.rowid IS NOT OLD.rowid OR NEW.id IS NOT OLD.id OR NEW.kind IS NOT OLD.kind OR NEW.app_id IS NOT OLD.app_id OR NEW.intent_id IS NOT OLD.intent_id OR NEW.first_invoice_seq IS NOT OLD.first_invoice_seq OR NEW.origin IS NOT OLD.origin OR NEW.outputs IS NOT OLD.outputs OR NEW.pool_id IS NOT OLD.pool_id OR NEW.topup_id IS NOT OLD.topup_id OR NEW.created_at_ms IS NOT OLD.created_at_ms OR NEW.account IS NOT OLD.account THEN RAISE(ABORT, 'what payments are about never changes') WHEN OLD.state IN ('rejected', 'denied') AND NEW.state IS NOT OLD.state THEN RAISE(ABORT, 'what was refused stays refused') WHEN NEW.state = 'awaiting_approval' AND NOT EXISTS (SELECT 1 FROM approvals WHERE payment_id = NEW.id) THEN RAISE(ABORT, 'nobody was asked about the payment') WHEN NEW.invoice_seq IS NOT OLD.invoice_seq AND (NEW.state NOT IN ('replacing', 'in_block') OR NOT EXISTS (SELECT 1 FROM invoices WHERE seq = NEW.invoice_seq AND origin = NEW.origin)) THEN RAISE(ABORT, 'a payment goes by another invoice when it is replaced or found in a block, by one of its origin') WHEN NEW.state NOT IN ('rejected', 'denied') AND EXISTS (SELECT 1 FROM attempts WHERE invoice_seq = NEW.invoice_seq AND payment_id <> NEW.id) THEN RAISE(ABORT, 'another payment was signed for the invoice') END; END;
