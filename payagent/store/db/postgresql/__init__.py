"""PostgreSQL below the store: a connection that runs the store's SQL texts, and the schema of `tables` there.

Needs the extra `postgresql`. Start at `connection`.
Never: imported where the ledger is a file.
"""
