"""daemon: connects all rooms, and runs until it is stopped.

Start with `serve.serve`: it takes the lease of the data folder, unlocks the key in a process of its own, and
answers requests. `compose` puts together what pays, and holds the order of start and stop. `secrets` reads the
files that the settings name. `stop` has what ends a daemon.

Never: decides about a payment.
"""
