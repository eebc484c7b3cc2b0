"""api: the daemon's HTTP API, for apps, operators and auditors.

Start at `app`, which builds the application. `http` has the server, listeners, limits and middleware. `models` has
one model for each request and response body: it parses, writes and documents it. `routes` has one module per group
of paths; its `auth` checks tokens and scopes.

Never: imports the wallet or the devnet; submits; decides about a payment; puts a secret, or an error outside the
problem table, into an answer.
"""
