"""audit: checks that the ledger is whole and agrees with the chain, and writes statements and exports of it.

Start reading at `verify` and `reconcile`.
May import: core, dialects, store, chain's values, wallet.tx_decode, PyNaCl. Never: writes; repairs; asks the chain
or a merchant (the caller passes in their answers); holds more than one payment or entry in memory.
"""
