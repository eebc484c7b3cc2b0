"""store: the ledger database. One writer thread owns the one writing connection; readers are read-only.

May import: core, secretfile, sqlite3, sqlite-utils (migrations). Never: decides; asks a clock, the chain or a
merchant; opens a transaction that is not BEGIN IMMEDIATE; updates or deletes a row of the journal.
"""
