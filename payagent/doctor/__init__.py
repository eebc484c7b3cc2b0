"""doctor: checks what payagent needs, and says what is wrong and how to fix it.

`files` checks that everything exists and is private, `advice` suggests safer settings, and `chain` checks the
providers.

Never: writes; opens the keystore (its public header is enough); moves money; shows a secret.
"""
