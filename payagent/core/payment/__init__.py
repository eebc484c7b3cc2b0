"""The payment machine: `machine` is its table, `events` the facts of each event, `apply` the changes it makes.

Start with `machine`. A step loads a payment, builds one of the events and writes what `apply` returns.
"""
