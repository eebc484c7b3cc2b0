"""signer: the wallet's key in a process of its own, which signs what it has read itself, and nothing else.

`policy` is what it asks of a body, `confine` what it gives up before it serves, `process` the program that runs
there, `handle` the daemon's end of the line: a `Signer` like any other, so that a key in a KMS can take its place.
May import: core, secret_file, wallet.keys, wallet.keystore, wallet.tx_decode. Never: pycardano, the network, a
database, the settings; a key, a word or a passphrase on the line. The line is a pair of sockets, and nobody else
has an end of it.
"""
