"""C3 to C7: what happens inside each later commit of a payment, on the writer's thread.

Every step reads the payment inside its transaction and goes through the transition table, so a step that
was decided on an older reading changes nothing.
May import: core, chain.source, wallet, store, agent.purse. Never: waits; decides whether a step is due.
"""

from collections.abc import Mapping

from payagent.agent import prepaid
from payagent.agent.purse import put, take
from payagent.chain.source import SubmitAnswer, SubmitKind, TxSeen
from payagent.core import ledger
from payagent.core.ledger import Entry, Posting
from payagent.core.payment import (
    POSTED,
    WITHOUT_PROOF,
    Delivery,
    DeliveryEvent,
    Event,
    State,
    deliver,
    delivery_event,
)
from payagent.core.problem import Refused
from payagent.dialects import Answer, Said
from payagent.store import queries, records
from payagent.store.queries import AttemptKind, CoinRow, PaymentRow
from payagent.store.writer import Unit
from payagent.wallet.coins import Coins
from payagent.wallet.plan import Plan

SERVING_PATIENCE_MS = 3_600_000
"""When an invoice without an end counts as over."""

SHOWN_AGAIN = (Said.PENDING, Said.INVOICED, Said.UNCLEAR)
AGAIN_FIRST_S, AGAIN_MAX_S = 0.5, 10.0
USED_UP_PATIENCE = 5
"""A facilitator calls a transaction a duplicate also while it settles that very one: shown again so often."""


def row_of(unit: Unit, payment_id: str) -> PaymentRow:
    row = queries.payment(unit.conn, payment_id)
    if row is None:
        raise Refused("not_found", f"there is no payment {payment_id}")
    return row


def record_attempt(unit: Unit, payment_id: str, plan: Plan, cbor: bytes, own: bytes, now_ms: int) -> None:
    """C3: the signed bytes are durable, and the coins that they make for us are known, though not there yet.

    What is handed over leaves with the answer that this commit allows, so it is C4 too: in flight from here on.
    """
    row = row_of(unit, payment_id)
    _add_attempt(unit, row, "pay", plan, cbor, own, now_ms)
    records.move_payment(unit, payment_id, Event.SIGN, now_ms, tx_id=plan.tx_id)
    if row.handed_over:
        records.move_payment(unit, payment_id, Event.LEAVE, now_ms, {"to": "merchant"})


def record_cancel(
    unit: Unit, payment_id: str, plan: Plan, cbor: bytes, own: bytes, why: Refused, now_ms: int
) -> None:
    """C3 of a cancel: the bytes that take the payment's coins back are durable, and stand for the payment now."""
    row = row_of(unit, payment_id)
    _add_attempt(unit, row, "cancel", plan, cbor, own, now_ms)
    records.move_payment(
        unit,
        payment_id,
        Event.CANCEL,
        now_ms,
        tx_id=plan.tx_id,
        reason_code=why.code,
        reason=why.detail,
    )


def _add_attempt(
    unit: Unit, row: PaymentRow, kind: AttemptKind, plan: Plan, cbor: bytes, own: bytes, now_ms: int
) -> None:
    records.add_attempt(
        unit,
        tx_id=plan.tx_id,
        payment_id=row.id,
        kind=kind,
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


def may_broadcast(row: PaymentRow) -> bool:
    """Whether payagent sends the transaction itself: what was handed over only after it was in a block."""
    return not row.handed_over or row.seen_in_block or row.state is State.CANCELLING


def reason_to_cancel(row: PaymentRow, slot: int) -> Refused | None:
    """Why the payment's coins are to be taken back now; None when they are not.

    An attempt that was handed over is when the merchant refused it, and nothing shows that it broadcast it all
    the same, or when its TTL has passed; so is a cancel whose own TTL has passed.
    """
    is_over = slot >= (row.ttl_slot or 0)
    if row.state is State.CANCELLING and is_over:
        return Refused(row.reason_code or "handed_over_expired", row.reason or "")
    if row.state is not State.IN_FLIGHT or not row.handed_over:
        return None
    if row.refused and not row.seen_in_block and row.delivery is not Delivery.ACCEPTED:
        return Refused("merchant_refused", "the merchant refused the transaction before it broadcast it")
    if is_over:
        return Refused("handed_over_expired", "the transaction was handed over, and its TTL passed")
    return None


def record_delivery(unit: Unit, payment_id: str, http_status: int, now_ms: int) -> None:
    """Note what a retry got. A derived intent ends when its call was served."""
    row = row_of(unit, payment_id)
    _deliver(
        unit, row, delivery_event(http_status, row.state, _is_over(row, now_ms)), {"status": http_status}, now_ms
    )


def record_used_up(unit: Unit, payment_id: str, now_ms: int) -> None:
    """A proof that only we have shown is used up: what it bought is ours."""
    _deliver(unit, row_of(unit, payment_id), DeliveryEvent.ACCEPT, {"said": Said.USED_UP}, now_ms)


def _deliver(unit: Unit, row: PaymentRow, event: DeliveryEvent, detail: Mapping[str, object], now_ms: int) -> None:
    records.set_delivery(unit, row.id, deliver(row.delivery, event), now_ms)
    records.note(unit, row.id, f"delivery_{event}", row.state, now_ms, detail)
    if event is DeliveryEvent.ACCEPT:
        records.end_intent(unit, row.intent_id, now_ms)
        prepaid.first_used(unit, row, now_ms)


def record_answer_to_retry(
    unit: Unit, payment_id: str, answer: Answer, http_status: int, now_ms: int
) -> float | None:
    """Note what a merchant answered to a retry; returns in how many seconds the same proof is shown again."""
    row = row_of(unit, payment_id)
    event = DeliveryEvent.PRESENT
    if not 200 <= http_status < 300:  # that is an end only when the client has it, or it may just mean "later"
        event = delivery_event(http_status, row.state, _is_over(row, now_ms))
    records.set_delivery(unit, payment_id, deliver(row.delivery, event), now_ms)
    detail = {"status": http_status, "said": answer.said, "reason": answer.reason, "delivery": event}
    records.note(unit, payment_id, "merchant_answered", row.state, now_ms, detail)
    said = queries.answers_to_retries(unit.conn, payment_id)
    if row.handed_over and row.state is State.IN_FLIGHT and set(said) == {Said.REFUSED}:
        records.note(unit, payment_id, "merchant_refused", row.state, now_ms)
    is_settling = answer.said is Said.USED_UP and row.handed_over and said.count(Said.USED_UP) <= USED_UP_PATIENCE
    if not (answer.said in SHOWN_AGAIN or is_settling):
        return None
    if event is DeliveryEvent.GIVE_UP or row.state in WITHOUT_PROOF:
        return None
    return answer.retry_after_s or min(AGAIN_FIRST_S * 2 ** min(len(said) - 1, 10), AGAIN_MAX_S)


def _is_over(row: PaymentRow, now_ms: int) -> bool:
    return now_ms > (row.expires_at_ms or row.created_at_ms + SERVING_PATIENCE_MS)


def record_seen(unit: Unit, payment_id: str, seen: TxSeen, coins: Coins, provider: str, now_ms: int) -> None:
    """C5: the attempt is in a block. Its inputs are spent; its change is there, unless a child spent it."""
    records.add_sighting(unit, seen.tx_id, seen.block_hash, seen.block_height, seen.slot, provider, now_ms)
    _move_into_block(unit, payment_id, Event.SEEN_IN_BLOCK, seen, now_ms)
    _take_effect(unit, payment_id, seen, coins)


def record_void(unit: Unit, payment_id: str, seen: TxSeen, coins: Coins, provider: str, now_ms: int) -> None:
    """C7 of a cancel: it is in a block, deep enough, so no attempt that pays can be. The hold comes back.

    The coins stay reserved until no rollback reaches that block any more.
    """
    records.add_sighting(unit, seen.tx_id, seen.block_hash, seen.block_height, seen.slot, provider, now_ms)
    _move_into_block(unit, payment_id, Event.VOID, seen, now_ms)
    records.release_hold(unit, payment_id, now_ms)
    fee_lovelace = row_of(unit, payment_id).fee_lovelace or 0
    entry = ledger.release(queries.hold(unit.conn, payment_id), fee_lovelace)
    records.write_entry(unit, entry, now_ms, payment_id=payment_id, ref=seen.tx_id)
    _take_effect(unit, payment_id, seen, coins)


def _move_into_block(unit: Unit, payment_id: str, event: Event, seen: TxSeen, now_ms: int) -> None:
    records.move_payment(
        unit,
        payment_id,
        event,
        now_ms,
        tx_id=seen.tx_id,
        block_hash=seen.block_hash,
        block_height=seen.block_height,
        block_slot=seen.slot,
        **({"reason_code": None, "reason": None} if event is Event.SEEN_IN_BLOCK else {}),
    )


def _take_effect(unit: Unit, payment_id: str, seen: TxSeen, coins: Coins) -> None:
    for ref in _inputs(unit, payment_id, seen.tx_id):
        records.spend_coin(unit, ref, seen.tx_id)
    for row in queries.coins_of_tx(unit.conn, seen.tx_id):
        if row.state == "pending":
            records.set_coin_state(unit, row.ref, "free")
            if row.reserved_for is None:
                put(unit, coins, row)


def record_block_lost(unit: Unit, payment_id: str, coins: Coins, now_ms: int) -> None:
    """C5: the block is on no chain that the provider knows. The same bytes are in flight again.

    What was posted, or released by a cancel, is reversed into the hold. Inputs are unspent (and still reserved):
    there if what made them is in a block, else pending. Change is pending, but for what a child that is in a
    block has spent: whether the child lost its block too is for its own recheck to find.
    """
    row = row_of(unit, payment_id)
    if row.state in POSTED | {State.VOID} and (posted := queries.last_posting(unit.conn, payment_id)):
        lines = tuple(Posting(*line) for line in posted.postings)
        records.write_entry(unit, ledger.reverse(Entry("post", lines)), now_ms, payment_id=payment_id)
        prepaid.taken_back(unit, row, posted.postings, now_ms)
        records.renew_hold(unit, payment_id)
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
    account = ledger.spending_account(row.origin, row.pool is not None)
    records.write_entry(
        unit, ledger.post(hold, spent, fee_lovelace, account), now_ms, payment_id=payment_id, ref=row.tx_id
    )
    records.move_payment(unit, payment_id, Event.CONFIRM, now_ms, {"depth": depth})
    prepaid.bought(unit, row, spent, now_ms)


def record_settled(unit: Unit, payment_id: str, depth: int, now_ms: int) -> None:
    """C7: no rollback reaches the block any more; its reservations have no purpose left.

    Neither has the change of its other attempts, which can never be. A void payment just stays void.
    """
    row = row_of(unit, payment_id)
    if row.state is not State.VOID:
        records.move_payment(unit, payment_id, Event.SETTLE, now_ms, {"depth": depth})
    records.unreserve(unit, payment_id)
    for attempt in queries.attempts(unit.conn, payment_id):
        if attempt.tx_id != row.tx_id:
            for coin in queries.coins_of_tx(unit.conn, attempt.tx_id):
                if coin.reserved_for is None:
                    records.forget_coin(unit, coin.ref)
