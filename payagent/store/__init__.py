"""store: the ledger database. One writer thread owns the only writing connection; readers are read-only.

Every function that reads takes a connection: a reader's, or a job's own. Only this room turns rows into values.
Never: decides; asks a clock, the chain or a merchant; opens a transaction that is not BEGIN IMMEDIATE; updates or
deletes an entry.

Where to look:

  db/          the file and its schema, and the thread that writes
    tables     the tables and views, as SQL
    triggers   the SQL guards on their rows
    schema     the migrations, which build a ledger, and the checks of the result
    opening    opens the file, or refuses it
    unit       one job's part of the open transaction
    ceiling_file  how far vouchers may go, beside the keystore
    committer  commits several jobs at once (uses `seals`, `signer_record`)
    fence      what a commit of a fleet's daemon asks first: the gate, and which accounts it holds
    writer     the thread that commits, and its queue
    readers    read-only connections, and a copy in one file
    engine     opens a writer and readers, on a file or on PostgreSQL
    sql        reads of rows as values, sums past 64 bits, pieces of SQL
    postgresql/  the same on PostgreSQL: connection, schema, seals, committer
  rows/        one module for each kind of row
    writes     the write steps that jobs are made of
    intents    intents, and the invoices for them
    payments   payments as they are now, and their holds
    attempts_and_utxos  attempts, and the UTxOs that they spend and make
    onchain    transactions that count as on chain, ours and external
    journal    double entry: entries, balances, spend
    events     the hash-chained event log
    about      the ledger as a whole
    fleet      daemons, accounts and their holders, requests to a holder
    limit_counters  what counts against limits (`prepaid_uses`: requests that a prepaid balance pays for)
  audit/       reads of the whole ledger, for the room `audit`
    payment_records  everything recorded about payments (`receipts`: about one payment)
    books      the other tables, row by row
    recount    recomputes what counts against limits

The other modules in `rows` are named after their rows: apps, approvals, alerts, topups, ...
"""
