"""wallet: keys, UTxOs and transactions.

Start with `transaction`, which selects, builds, signs and checks. `new_keystore` makes a keystore, `keystore`
opens it, `keys` derives one address and a `Signer` from its words, and `utxo_index` holds the available UTxOs.
`cbor_write` writes the bytes and `tx_decode` reads them again. Neither imports the other, so each exposes the
other's mistakes.

Never: the network, a clock, a database; a key in a repr, a log, an error or a pickle.
"""
