"""signer: holds the wallet's key in a separate process, which decodes and checks each body before it signs.

Start with `process`, the program that runs there. `policy` checks bodies, `hardening` drops privileges first, and
`spend_window` bounds the outflow in 24 hours. `client` is the daemon's side: it has `Signatures`, so a key in a
KMS could replace it. The two processes talk over a socket pair that no other process holds.

Never: pycardano, the network, a database, the settings; a key, a recovery word or a passphrase on the socket.
"""
