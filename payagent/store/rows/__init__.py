"""The rows of the ledger: one module for each kind of row."""
