"""audit: what an auditor asks of the books: are they whole, and what do they say, in the formats of accounting.

May import: core, store, wallet.decode, PyNaCl. Never: writes; repairs; asks the chain or a merchant; holds more
than one payment or entry in memory.
"""
