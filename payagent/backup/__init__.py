"""backup: ledger and keystore together in one file, and a wallet made of such a file again.

`take.back_up` makes the file beside a running daemon or without one; `restore.restore` puts it in an empty data
folder. The keystore in it is encrypted; passphrase, config and tokens are not in it.

May import: core, secret_file, settings, store, wallet.keystore, chain, audit, agent, api.http, init. Never: opens
the keystore; overwrites a file; believes what a file says of itself; moves money.
"""
