"""agent: reload, decide, do one step. The only room that pays: it brings wallet, chain and store together.

May import: core, dialects, settings, wallet, chain, outbound, outbound.webhook, store. Never: the API, the CLI, a
scheduler, the devnet; a clock, randomness or a process exit but through `ports`; a byte of a signed transaction to
anyone before its attempt is durable.

The commit points (docs/exactly-once.md) and the job that makes each:

  C1 + C2  admit    intent, invoice, decision, hold, anchor and coins, together
  C3       sign     the attempt: bytes, tx id, fee, TTL, inputs
  C4       leave    the bytes are about to be sent (again)
  C5       observe  an attempt was seen in a block, or its block is lost
  C6       confirm  the spend is posted in the ledger
  C7       settle   its coins need no watch any more

Where what is changed:

  agent          pay and quote; puts together the parts below, which all work at one `desk` (ledger, terms, coins,
                 chain, clock)
  reception      a 402 is read into a purchase (`asks`, `orders`); what is refused is on record (`floods`)
  admission      what happens inside C1 + C2 (`rulebook`: what may be paid; `planner`: of which coins; `holding`:
                 both and the hold; `questions`: what a person is asked)
  stock          a coin for each payment: the `line` of those that wait, and `upkeep`
  signing        who is on the way to a signature, the signature, C3
  sending        C4, and the bytes
  carrying       from admitted to signed, after a crash too; replaced, cancelled, resolved
  decisions      a person approves or denies
  deliveries     what merchants answer to a proof, or never do
  prepaid_calls  calls that a prepaid balance serves
  topup          an order to raise a prepaid balance, step by step (`topup_orders`: what it comes to, and what
                 happens to it inside a commit; `topup_auto`: the orders that nobody gives)
  transfers      what the operator moves: send, sweep, split
  steps          what happens inside C3 to C7 (`delivery_steps`: inside the commits of a delivery)
  watch          a look at the chain: when it is whole, and in which order its parts have their turn
  hearing        which providers are believed in a look, and who is told of the others
  sightings      what the chain shows of our payments: in a block, deep enough, lost, void
  stocktaking    the list of our coins: deposits, and what is missing from it (`foreign`: somebody else spent it;
                 `vanished`: its deposit is gone)
  due            what is sent again, and what is carried on, after a look
  turns          how many payments are acted on at once, and who goes first
  inquiries      what merchants are asked: of open invoices, and of prepaid balances
  view           how a payment is shown
"""
