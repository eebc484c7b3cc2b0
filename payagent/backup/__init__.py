"""backup: saves ledger and keystore in one file, and restores a wallet from it.

Start at `create.back_up`, which works with or without a running daemon, and `restore.restore`, which needs an
empty data folder. The keystore in the backup stays encrypted. Passphrase, config and tokens are not in it.

Never: opens the keystore; overwrites a file; trusts a file's own claims; moves money.
"""
