"""doctor: looks at what payagent needs, from outside, and says what is wrong and how to mend it.

`files` looks at what is there, `choices` at what was chosen and could be safer, `chain` at the providers.
May import: core, secret_file, settings, wallet.keystore, store (read-only), chain, outbound.webhook, agent.base,
api.http. Never: writes; opens the keystore (its public header is enough); moves money; shows a secret.
"""
