"""The chain room: what payagent asks a chain provider, and what it makes of the answers.

`source` is the port that everyone codes against, `history` reads an address's past through it, `classify` reads
answers to a submission (pure), and `blockfrost` is the adapter over HTTP. May import: core. Never: decides what a
payment becomes, keeps state between calls, or reads a missing answer as "not there".
"""
