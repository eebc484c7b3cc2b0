"""Reads of the whole ledger, for `audit`."""
