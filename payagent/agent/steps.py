"""C3 to C7: what happens inside each later commit of a payment, on the writer's thread.

Every step reads the payment inside its transaction and goes through the transition table, so a step that
was decided on an older reading changes nothing.
May import: core, chain.source, wallet, store, agent.purse. Never: waits; decides whether a step is due.
"""

from payagent.agent.purse import put, take
from payagent.chain.source import SubmitAnswer, SubmitKind, TxSeen
from payagent.core import ledger
from payagent.core.ledger import Entry, Posting
from payagent.core.payment import POSTED, Event, State
from payagent.core.problem import Refused
from payagent.store import queries, records
from payagent.store.queries import CoinRow, PaymentRow
from payagent.store.writer import Unit
from payagent.wallet.coins import Coins
from payagent.wallet.plan import Plan


def row_of(unit: Unit, payment_id: str) -> PaymentRow:
    row = queries.payment(unit.conn, payment_id)
    if row is None:
        raise Refused("not_found", f"there is no payment {payment_id}")
    return row


def record_attempt(unit: Unit, payment_id: str, plan: Plan, cbor: bytes, own: bytes, now_ms: int) -> None:
    """C3: the signed bytes are durable, and the coins that they make for us are known, though not there yet."""
    row = row_of(unit, payment_id)
    records.add_attempt(
        unit,
        tx_id=plan.tx_id,
        payment_id=payment_id,
        anchor=plan.anchor.ref,
        invoice_seq=row.invoice,
        inputs=[coin.ref for coin in plan.inputs],
        cbor=cbor,
        fee_lovelace=plan.fee_lovelace,
        ttl_slot=plan.ttl_slot,
        now_ms=now_ms,
    )
    for index, output in enumerate(plan.outputs):
        if output.address == own:
            ref = f"{plan.tx_id}#{index}"
            records.add_coin(
                unit,
                CoinRow(ref, plan.tx_id, index, output.lovelace, dict(output.assets), "change", "pending", None),
            )
    records.move_payment(unit, payment_id, Event.SIGN, now_ms, {"tx_id": plan.tx_id}, tx_id=plan.tx_id)


def reject_unsigned(unit: Unit, payment_id: str, coins: Coins, refusal: Refused, now_ms: int) -> None:
    """A reserved payment cannot be signed any more: its hold and its coins go back, nothing was ever signed."""
    hold = queries.hold(unit.conn, payment_id)
    records.move_payment(unit, payment_id, Event.REJECT, now_ms, reason_code=refusal.code, reason=refusal.detail)
    records.release_hold(unit, payment_id, now_ms)
    records.write_entry(unit, ledger.release(hold), now_ms, payment_id=payment_id)
    reserved = queries.coins_reserved_for(unit.conn, payment_id)
    records.unreserve(unit, payment_id)
    for coin in reserved:
        if coin.state == "free":
            put(unit, coins, coin)


def record_leave(unit: Unit, payment_id: str, tx_id: str, provider: str, now_ms: int) -> None:
    """C4: the bytes are about to be sent; from here on the outcome is unknown until the chain shows it."""
    records.add_submission(unit, tx_id, provider, now_ms)
    if row_of(unit, payment_id).state is State.SIGNED:
        records.move_payment(unit, payment_id, Event.LEAVE, now_ms)


def record_answer(unit: Unit, payment_id: str, answer: SubmitAnswer, provider: str, now_ms: int) -> None:
    """What the provider said to a submission: kept for people, and for `ready`; it moves no state."""
    row = row_of(unit, payment_id)
    event = "provider_accepted" if answer.kind is SubmitKind.ACCEPTED else "provider_answered"
    detail = {"provider": provider, "kind": answer.kind, "detail": answer.detail[:500]}
    records.note(unit, payment_id, event, row.state, now_ms, detail)


def record_seen(unit: Unit, payment_id: str, seen: TxSeen, coins: Coins, provider: str, now_ms: int) -> None:
    """C5: the attempt is in a block. Its inputs are spent; its change is there, unless a child spent it."""
    records.add_sighting(unit, seen.tx_id, seen.block_hash, seen.block_height, seen.slot, provider, now_ms)
    records.move_payment(
        unit,
        payment_id,
        Event.SEEN_IN_BLOCK,
        now_ms,
        {"block": seen.block_hash, "height": seen.block_height},
        tx_id=seen.tx_id,
        block_hash=seen.block_hash,
        block_height=seen.block_height,
        block_slot=seen.slot,
    )
    for ref in _inputs(unit, payment_id, seen.tx_id):
        records.spend_coin(unit, ref, seen.tx_id)
    for row in queries.coins_of_tx(unit.conn, seen.tx_id):
        if row.state == "pending":
            records.set_coin_state(unit, row.ref, "free")
            if row.reserved_for is None:
                put(unit, coins, row)


def record_block_lost(unit: Unit, payment_id: str, coins: Coins, now_ms: int) -> None:
    """C5: the block is on no chain that the provider knows. The same bytes are in flight again.

    What was posted is reversed into the hold. Inputs are unspent (and still reserved): there if what made them
    is in a block, else pending. Change is pending, but for what a child that is in a block has spent: whether
    the child lost its block too is for its own recheck to find.
    """
    row = row_of(unit, payment_id)
    if row.state in POSTED and (posted := queries.last_posting(unit.conn, payment_id)):
        lines = tuple(Posting(*line) for line in posted.postings)
        records.write_entry(unit, ledger.reverse(Entry("post", lines)), now_ms, payment_id=payment_id)
    records.move_payment(unit, payment_id, Event.BLOCK_LOST, now_ms, {"block": row.block_hash})
    for ref in _inputs(unit, payment_id, row.tx_id):
        records.set_coin_state(unit, ref, "free" if queries.is_made(unit.conn, ref) else "pending")
    for coin in queries.coins_of_tx(unit.conn, row.tx_id or ""):
        if coin.state != "spent":
            if coin.ref in coins:
                take(unit, coins, coin.ref)
            records.set_coin_state(unit, coin.ref, "pending")


def _inputs(unit: Unit, payment_id: str, tx_id: str | None) -> tuple[str, ...]:
    attempts = queries.attempts(unit.conn, payment_id)
    return next((attempt.inputs for attempt in attempts if attempt.tx_id == tx_id), ())


def record_confirmed(unit: Unit, payment_id: str, depth: int, now_ms: int) -> None:
    """C6: the spend is posted: from the hold to where it went, the fee apart."""
    row = row_of(unit, payment_id)
    hold = queries.hold(unit.conn, payment_id)
    fee_lovelace = row.fee_lovelace or 0
    spent = {asset: units - (fee_lovelace if asset == "lovelace" else 0) for asset, units in hold.items()}
    spent = {asset: units for asset, units in spent.items() if units}
    records.write_entry(
        unit, ledger.post(hold, spent, fee_lovelace, account_of(row)), now_ms, payment_id=payment_id, ref=row.tx_id
    )
    records.move_payment(unit, payment_id, Event.CONFIRM, now_ms, {"depth": depth})


def account_of(row: PaymentRow) -> str:
    """Where a payment's money goes: the merchant, what it owes us in calls, or out of the wallet."""
    if row.origin is None:
        return ledger.EXTERNAL
    if row.batch_target is not None and row.batch_target > 1:
        return ledger.prepaid_account(row.origin)
    return ledger.merchant_account(row.origin)


def record_settled(unit: Unit, payment_id: str, depth: int, now_ms: int) -> None:
    """C7: no rollback reaches the block any more; its reservations have no purpose left."""
    records.move_payment(unit, payment_id, Event.SETTLE, now_ms, {"depth": depth})
    records.unreserve(unit, payment_id)
