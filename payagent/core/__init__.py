"""core: the pure payment logic: values, state tables and functions without side effects.

Start with `payment` (the state machines), `invoice` and `policy` (the spending limits).

Never: I/O, a clock, randomness, a third-party package, another room.
"""
