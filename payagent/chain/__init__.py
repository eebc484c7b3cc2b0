"""The chain room: what payagent asks a chain provider, and what it makes of the answers.

`source` is the port that everyone codes against, and `history` reads an address's past through it. `blockfrost` is
the adapter over HTTP: `transport` makes its calls, `answers` reads what they bring, and `classify` what a
submission brings (both pure). `guard` keeps to what a provider bears (`quota`), `member` watches whether what it
says goes together, `panel` decides who is heard, and `view` is what these say together (`agree`, `disputes`).
May import: core. Never: decides what a payment becomes, or reads a missing answer as "not there".
"""
