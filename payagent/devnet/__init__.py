"""The embedded devnet: a small honest Cardano and a strict merchant, for laptops and tests.

What is pure stays pure: `ledger`, `rules`, `decode` and `cbor` have no I/O, no clock and no randomness; they
import the standard library and PyNaCl (to verify signatures) and nothing else of payagent, least of all the
wallet or pycardano, so that a mistake of the payer cannot hide behind the same mistake of its judge. What
speaks HTTP stands beside them and imports them.

May import: PyNaCl; and but for the ledger core (addresses, money and networks, which are not payagent's to
choose), Starlette, uvicorn. Never: dialects, the wallet or settings; touches a real network.
"""
