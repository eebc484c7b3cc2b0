"""api: the daemon's HTTP face, for apps, operators and auditors.

May import: core, dialects, secret_file, agent, audit, store, what chain has to read (for a reconciliation alone),
FastAPI, uvicorn, h11. Never: the wallet or the devnet; submits; decides about a payment; lets a secret, or an
error that is not of the problem table, into an answer.

`app` puts it together, `doors` are where it listens, `connections` bounds who may ask, `turnstile` how much;
`guard` stands before every call, `access` knows who asks, `reading` makes values of bodies and `views` bodies of
values, `schemas` describes both in /openapi.json, `problems` writes refusals; the others have the calls, by what
they are about.
"""
