"""Whole-ledger reads, for the room `audit`."""
