"""agent: reload, decide, do one step. The only room that pays: it brings wallet, chain and store together.

May import: core, dialects, settings, wallet, chain, merchants, webhook, store. Never: the API, the CLI, a
scheduler, the devnet; a clock, randomness or a process exit but through `ports`; a byte of a signed transaction to
anyone before its attempt is durable.

The commit points (docs/exactly-once.md) and the job that makes each:

  C1 + C2  admit    intent, invoice, decision, hold, anchor and coins, together
  C3       sign     the attempt: bytes, tx id, fee, TTL, inputs
  C4       leave    the bytes are about to be sent (again)
  C5       observe  an attempt was seen in a block, or its block is lost
  C6       confirm  the spend is posted in the ledger
  C7       settle   its coins need no watch any more

`agent` has the doors (pay, quote, send, split, ...), `admission` what happens inside C1 + C2 (`rulebook`: what
may be paid; `planner`: of which coins; `holding`: both and the hold; `questions`: what a person is asked), `steps`
what happens inside C3 to C7, `watch` the sweeps that look and send again, `view` how a payment is shown, `floods`
how many of an app's refusals go on record.
"""
