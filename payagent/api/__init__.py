"""api: the daemon's HTTP face, for apps, operators and auditors.

May import: core, dialects, agent, store, FastAPI, uvicorn. Never: wallet, chain or the devnet; decides about a
payment; lets a secret, or an error that is not of the problem table, into an answer.

`app` puts it together, `connections` bounds who may ask, `turnstile` how much; `guard` stands before every call,
`access` knows who asks, `reading` makes values of bodies and `views` bodies of values, `schemas` describes both in
/openapi.json, `problems` writes refusals; `payments`, `wallet`, `ledger` and `health` have the calls.
"""
