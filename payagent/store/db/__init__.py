"""The ledger file: its schema, how it is opened, its one writer thread and its readers."""
