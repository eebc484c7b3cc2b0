"""audit: what an auditor asks of the books: are they whole, do they agree with the chain, and what do they say.

May import: core, dialects, store, chain's values, wallet.tx_decode, PyNaCl. Never: writes; repairs; asks the chain
or a merchant (whoever asks for an audit hands it their answers); holds more than one payment or entry in memory.
"""
