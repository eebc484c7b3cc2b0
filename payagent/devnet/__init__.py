"""The embedded devnet: a small Cardano chain and a strict merchant, for laptops and tests.

Start at `server`, which runs it, and `ledger`, which is the chain. `ledger`, `rules`, `decode` and `cbor` are
pure: no I/O, no clock, no randomness. They import the standard library and PyNaCl (to verify signatures) only.
They do not import the wallet or pycardano, so that the devnet cannot repeat a mistake of the payer. The HTTP
modules build on them.

Never: imports dialects, the wallet or settings; touches a real network.
"""
