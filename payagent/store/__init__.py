"""store: the ledger database. One writer thread owns the one writing connection; readers are read-only.

Every function that reads takes a connection: a reader's, or a job's own. Rows become frozen values in this room
and nowhere else.
May import: core, secret_file, sqlite3, sqlite-utils (migrations). Never: decides; asks a clock, the chain or a
merchant; opens a transaction that is not BEGIN IMMEDIATE; updates or deletes a row of the journal.

Where what is changed:

  tables     the tables and views, as SQL
  triggers   what guards their rows
  schema     how a ledger gets them, and how an older one becomes one of today
  opening    the file: connections to it, and what of a file is refused
  unit       the open transaction, which every job gets
  committer  one commit of several jobs (`lease`, `room`, `seals`, `signer`: what it minds)
  writer     the thread that commits, and the queue before it
  readers    read-only connections, and a copy in one file
  records    what is written, as the steps that a job is made of
  intents    what was asked for: intents, and the invoices for them
  payments   payments as they stand, and what is held for them
  queries    their attempts, and the coins that these spend and make
  onchain    the transactions that count as being on the chain; those of somebody else
  journal    the books: entries, balances, what was spent
  events     what happened, in order
  about      the ledger as a whole
  spending   what counts against limits (`uses`: calls that a prepaid balance serves)
  cases      what an audit reads of payments (`receipts`: of one); the rest of it `books` row by row
  counted    what counts against limits, counted anew

Each kind of row beside these has a module of its own name (apps, approvals, alerts, topups, ...).
"""
