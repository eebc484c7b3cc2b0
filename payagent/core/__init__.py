"""core: the pure payment logic: values, state tables and functions without side effects.

Start with `payment` (the state machines), `invoice` and `policy` (the spending limits).

May import: the standard library and other modules of this room.
Never: I/O, a clock, randomness, a third-party package, another room.
"""
