"""doctor: checks what payagent needs, and says what is wrong and how to fix it.

`files` checks that everything exists and is private, `advice` suggests safer settings, and `chain` checks the
providers.

Never: writes; moves money; shows a secret.
"""
