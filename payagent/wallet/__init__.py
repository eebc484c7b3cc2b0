"""wallet: keys, coins and transactions; the only home of pycardano, which is used to derive keys and nothing else.

`keystore` keeps the recovery words on disk, `keys` turns them into one address and a `Signer`, `coins` indexes
what may be spent, `transaction` selects, builds, signs and checks. `cbor` writes the bytes and `decode` reads
them again; neither imports the other, so that a mistake of one is seen by the other.
May import: core, cryptography, PyNaCl, mnemonic, pycardano (in `keys` alone, when a key is derived).
Never: the network, a clock, a database; a key in a repr, a log, an error or a pickle.
"""
