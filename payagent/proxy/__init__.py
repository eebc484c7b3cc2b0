"""proxy: any HTTP client pays by changing its base URL.

May import: core, dialects, outbound.egress, agent, store, what api has for tokens, problems and servers, h11,
Starlette's types. Never: FastAPI, a request object of a framework, a redirect that is followed, a decision about a
payment.

A call comes in at `door` (the daemon's) or `bare` (the port of `payagent proxy`); `attend` has it carried out and
its errors told. `errand` reads whose it is and where it goes; a `trip` is one under way. `first` makes the call,
`clerk` pays a 402 and makes the call again with the proof, `steps` takes to its end what was begun though a client
hangs up, and `flights` keeps identical calls to one payment at a time. `headers` says what passes, `intake` is the
client's side with its body kept for a replay, `upstream` the merchant's, `demand` what its answer says, `reply`
what the client gets.
"""
