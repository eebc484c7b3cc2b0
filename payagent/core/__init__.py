"""core: what a payment is, as values, tables and functions from values to values.

May import: the standard library and other modules of this room.
Never: I/O, a clock, randomness, a third-party package, another room.
"""
