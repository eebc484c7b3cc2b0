"""The agent decides on payments and carries them out. It is the only room that pays.

Start at `agent.Agent.pay` and follow the calls below. Every step reloads the payment, decides and commits once, so
resuming after a crash is the same code as the first run.

Never: imports the API, the CLI, the scheduler or the devnet; uses a clock, randomness or a process exit except
through `base.ports`; lets a signed byte leave the process before its attempt is durable.

Commit points (exactly-once.md), each one write transaction, with the job that makes it:

  C1 + C2  admit         intent, invoice, decision, hold, nonce UTxO and reserved UTxOs, together
  C2       replace, admit  the next attempt of a payment: its invoice, inputs and TTL
  C3       sign, cancel  the attempt: bytes, tx id, fee, TTL, inputs
  C4       submit        the bytes are about to be sent to one provider (again)
  C5       observe       an attempt is in a block, or its block is lost
  C6       confirm       the spend is posted in the ledger
  C7       settle, void  no rollback reaches the block; or nothing of the payment can land, and its hold ends

Calls on a payment, in their legal order. `core.payment.machine.EFFECTS` has every row; a commit out of order
raises `Refused` and changes nothing. Functions without a module are in `commits.payment_transitions`.

  1. admit    `UtxoPool.enqueue` runs `pay.admission.Admission.admit`: `pay.offers` chooses the offer, `pay.lookup`
              answers whether the intent has a payment. Always first, once per intent: a repeated call finds the
              payment. Next: sign (reserved); approve or deny (awaiting approval); none (rejected).
     approve  `Decisions.approve` runs `commits.approvals.ApprovalRules.approve`, which decides anew. Next: sign.
     deny     `Decisions.deny` runs `ApprovalRules.deny`; after the timeout `Decisions.deny_what_is_over` runs
              `ApprovalRules.deny_when_over`.
     reject   `PaymentLifecycle.resume` and `resolve` run `reject_unsigned`; so does `record_not_signed` when the
              signer refuses, and `overtake` after an external spend. Legal only while nothing was ever signed.
  2. sign     `PaymentSigner.sign` runs `record_attempt`. Legal after admit, approve or replace. Next: submit.
  3. submit   `TxSubmitter.submit` runs `record_submit` (job `submit`), then sends. Legal after sign, and may be
              repeated with the same bytes. If the merchant submits, C3 is C4 too, and payagent submits only after
              the transaction was seen in a block.
  4. observe  `chain_sync.confirmations.Confirmations` runs `record_seen`. Legal as soon as an attempt is signed.
              `record_block_lost` undoes it, up to settle. Next: confirm.
  5. confirm  `Confirmations` runs `record_confirmed`, `confirm_depth` blocks deep. Legal after observe only.
  6. settle   `Confirmations` runs `record_settled`, `settle_depth` blocks deep. Legal after confirm; the end. On
              a void payment it ends the reservations.

  replace     `PaymentLifecycle.renew` runs `commits.replacement.Replacement.replace`; for a new invoice of the
              intent, `Admission.admit` runs `Replacement.take_invoice`. Legal once the TTL of every attempt that
              pays has passed and none is in a block. Next: sign, with the same nonce UTxO.
  cancel      `PaymentLifecycle.cancel`, `renew`, `resume` and `resolve` run `record_cancel`. Legal once something
              was signed and is in no block. Next: submit; then void, or observe if the attempt that pays won.
  void        `record_void` when a cancel, or another payment's transaction, ruled out the nonce UTxO, `void_depth`
              deep; `chain_sync.external_spends.overtake` when an external spend did; `record_time_over` when a
              rollback took the nonce UTxO and all TTLs have passed for good. Opens again by `record_block_lost`.

Delivery is a second state machine that moves no money: `payments.deliveries`, `commits.delivery_transitions`.

Sub-packages, each importing only from those above it:

  base        shared by all parts
    ports            clock, randomness, writer, signer: the simulator replaces them
    config           `AgentConfig`: the settings that decisions depend on, built from file and ledger
    prepaid          prepaid balances inside a commit
    requests         values that callers send, the answers, and what one commit decides on
    merchant_trust   pinned addresses, agreed prices and the unserved streak of a merchant
    chain_view       the chain as last read: may we sign, and with which TTL
    metrics          what the daemon counts since its start
    change_notifier  wakes callers that wait for a payment or a block
    free_utxos       changes the available UTxOs in memory, undone with the commit
    payment_view     the headers of a retry
    call_views       calls that channels pay, seen as payments
  commits     inside one write transaction, on the writer's thread
    rules                 limits, caps and merchant rules
    tx_planner            which UTxOs pay, and the transaction that results
    reservation           decides, places the hold, reserves the UTxOs
    replacement           the next attempt of a lost payment
    approvals             requests an approval, records the decision or the timeout
    payment_transitions   C3 to C7
    delivery_transitions  commits of a delivery
    utxo_sync             our UTxOs against a provider's list
  pay         whether an intent gets a payment, inside the commit C1 + C2
    offers     which offer of the 402 is paid
    lookup     has the intent a payment? The one answer, inside a commit and before it
    admission  C1 + C2: admits, decides, holds
  context     `AgentContext`: ledger, config, available UTxOs, chain view and clock, for every part
  payments    one payment on the event loop
    intake         reads a 402 into a `PaymentIntent`, records refusals within bounds
    sign           claims a payment, gets the signature, C3
    submit         C4, then the bytes to every believed provider
    lifecycle      resumes, replaces, cancels
    decisions      approvals and denials
    deliveries     a merchant's answers to the proof
    prepaid_calls  requests that a prepaid balance serves, counted against their app's limits
  utxos       UTxOs ready for payments
    pool       hands a payment to admission, once there is a UTxO for it
    queue      payments that wait for a UTxO
    upkeep     splits and gathers UTxOs when worth the fee
    transfers  the operator's transfers: send, send all, split
  channels    off unless configured
    calls  promises calls, signs their vouchers, takes merchants' answers
  agent       `Agent`: builds the parts; pays and quotes
  chain_sync  one pass over the chain
    sync                  `ChainSync`: the order of a pass
    providers             which providers are believed
    open_payments         the payments and UTxOs that a pass reads, and how many it works on at once
    confirmations         in a block, deep enough, lost, void
    utxo_list             the provider's list of our UTxOs against ours
    external_spends       another wallet spent our UTxO: freeze
    rolled_back_deposits  a rollback took a deposit
    recovery              the ledger is older than the signer's record
    repeated_reads        repeats a read while one provider stands alone
    follow_up             submits again, signs what was admitted, replaces and cancels
    merchant_polling      asks merchants for payment status and balances
  topups      payments that raise a prepaid balance
    runner      `TopupRunner`: one step of each open top-up
    orders      the top-up inside a commit, and top-ups that the settings start
  fleet       the accounts that this daemon holds, as one
    fleet       `Fleet`: which agent serves a request
    shared      `SharedFleet`: one of several daemons on one ledger
    leases      takes accounts, renews their leases and gives some back
    routing     which account serves a request
    holder      what a daemon asks of the one that holds an account
    failover    which accounts may sign when the ledger may lack commits
  operator    changes that an operator makes at run time
    apps, merchants, limits, pause  one module each
    alerts                          thresholds, and the log of alerts
    telegram                        pairs chats, and takes decisions on approvals from them
    notifier                        tells each target what happened
    approval_links                  signed links that approve or deny
    config_reload                   the config file again, on SIGHUP
"""
