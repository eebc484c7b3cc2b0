"""`payagent payments`: what was paid, is being paid or was refused, and how each came to be as it is.

May import: click, core, cli. Never: changes a payment.
"""
