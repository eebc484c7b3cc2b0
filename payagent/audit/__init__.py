"""audit: checks that the ledger is whole and agrees with the chain, and writes statements and exports of it.

Start reading at `verify` and `reconcile`.
Never: writes; repairs; asks the chain or a merchant (the caller passes in their answers); holds more than one
payment or entry in memory.
"""
