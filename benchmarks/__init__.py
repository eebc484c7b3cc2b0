"""What things cost, measured side by side in one run: payagent, and whoever else does the same work.

Run by `scripts/bench`. Each part is a module with `measure(options) -> Part`: figures, ratios, bounds and plots,
and nothing about how they are shown, which is `report`'s. May import: payagent, tests/ledger_check as the judge of
transactions. Never: asserts a time (CI counts instead, tests/counts), or talks to anything but loopback.
"""
