"""doctor: looks at what payagent needs, from outside, and says what is wrong and how to mend it.

`files` looks at what is there, `choices` at what was chosen and could be safer, `chain` at the providers.
May import: core, secretfile, settings, wallet.keystore, store (read-only), chain, webhook, agent.chainview,
api.tls. Never: writes; opens the keystore (its public header is enough); moves money; shows a secret.
"""
