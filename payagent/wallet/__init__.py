"""wallet: keys, coins and transactions; the only home of pycardano, which has a look at each new wallet.

`creation` makes a keystore, `keystore` opens it, `keys` turns its words into one address and a `Signer`, `coins`
indexes what may be spent, `transaction` selects, builds, signs and checks. `cbor` writes the bytes and `decode`
reads them again; neither imports the other, so that a mistake of one is seen by the other.
May import: core, cryptography, PyNaCl, mnemonic, pycardano (in `creation` alone, when a wallet is made).
Never: the network, a clock, a database; a key in a repr, a log, an error or a pickle.
"""
