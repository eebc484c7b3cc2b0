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
