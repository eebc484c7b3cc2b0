"""doctor: checks what payagent needs, and says what is wrong and how to fix it.

`files` checks that everything exists and is private, `advice` suggests safer settings, and `chain` checks the
providers.

May import: core, secret_file, settings, wallet.keystore, store (read-only), chain, outbound, agent.base,
api.http.
Never: writes; opens the keystore (its public header is enough); moves money; shows a secret.
"""
