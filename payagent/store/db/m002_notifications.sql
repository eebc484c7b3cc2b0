DROP TRIGGER alerts_delivered_at_ms_once;
DROP INDEX alerts_waiting;
ALTER TABLE alerts DROP COLUMN tries;
ALTER TABLE alerts DROP COLUMN next_try_at_ms;
ALTER TABLE alerts DROP COLUMN delivered_at_ms;
CREATE TABLE notification_cursors (
  target TEXT PRIMARY KEY,
  event_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
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
