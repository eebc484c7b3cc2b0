"""C3 to C7: the commits of a payment after its admission, on the writer's thread.

In order: `record_attempt` (C3), `record_submit` (C4), `record_seen` and `record_block_lost` (C5),
`record_confirmed` (C6), `record_settled` and `record_void` (C7). Each reads the payment inside its transaction and
goes through the transition table, so a step that was decided on outdated data changes nothing.

May import: core, chain.provider, wallet, store, agent.base, agent.commits. Never: waits; decides whether a step is
due.
"""

from dataclasses import replace

from payagent.agent.base import merchant_trust, prepaid
from payagent.agent.base.alert_records import clear_alert, raise_again, raise_alert
from payagent.agent.base.free_utxos import make_available, make_unavailable
from payagent.agent.base.merchant_trust import RulesOf
from payagent.agent.commits.replacement import can_land
from payagent.agent.commits.utxo_sync import is_back
from payagent.chain.provider import SubmitAnswer, SubmitKind, TxSeen
from payagent.core import ledger
from payagent.core.ledger import Entry, Posting
from payagent.core.money import LOVELACE
from payagent.core.payment import POSTED, Delivery, Event, State, move
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import attempts_and_utxos, journal, limit_counters, onchain, pauses, payments, writes
from payagent.store.rows.attempts_and_utxos import AttemptKind, AttemptRow, UtxoRow
from payagent.store.rows.onchain import ExternalSpendRow
from payagent.store.rows.payments import OutputRow, PaymentRow
from payagent.wallet.tx_plan import TxPlan
from payagent.wallet.utxo_index import UtxoIndex

NOT_SIGNED_SUBJECT = "signer"


def row_of(unit: Unit, payment_id: str) -> PaymentRow:
    row = payments.payment(unit.conn, payment_id)
    if row is None:
        raise Refused("not_found", f"there is no payment {payment_id}")
    return row


def record_attempt(unit: Unit, payment_id: str, plan: TxPlan, cbor: bytes, own: bytes, now_ms: int) -> None:
    """C3: store the signed bytes, and the attempt's change as pending UTxOs.

    If the merchant submits, the bytes leave with the answer that follows this commit, so it is C4 too. Refused:
    `wrong_state` if the payment no longer waits for this plan; `paused` if an operator paused first.
    """
    pauses.require_running(unit.conn)
    row = row_of(unit, payment_id)
    move(row.state, Event.SIGN)
    if not _is_planned_for(unit, row, plan):
        raise Refused("wrong_state", "the payment now waits for another transaction")
    _add_attempt(unit, row, "pay", plan, cbor, own, now_ms)
    writes.move_payment(unit, payment_id, Event.SIGN, now_ms, tx_id=plan.tx_id)
    clear_alert(unit, NOT_SIGNED_SUBJECT, {"detail": "the signer signs payments"}, now_ms)
    if row.invoice.merchant_submits:
        writes.move_payment(unit, payment_id, Event.SUBMIT, now_ms, {"to": "merchant"})


def _is_planned_for(unit: Unit, row: PaymentRow, plan: TxPlan) -> bool:
    """Whether the plan has the inputs, TTL and outputs that were decided for the payment."""
    if row.state is State.REPLACING:
        chosen = set(attempts_and_utxos.replacement_inputs(unit.conn, row.id))
    else:
        chosen = {utxo.ref for utxo in attempts_and_utxos.utxos_reserved_for(unit.conn, row.id)}
    outputs = tuple(OutputRow(one.role, one.address.text, one.asset, one.units) for one in plan.asked)
    return (
        (plan.nonce_utxo.ref, plan.ttl_slot) == (row.nonce_utxo, row.attempt.ttl_slot)
        and {utxo.ref for utxo in plan.inputs} == chosen
        and (outputs == row.outputs or row.kind == "sweep")
    )


def record_cancel(
    unit: Unit,
    decided: PaymentRow,
    plan: TxPlan,
    cbor: bytes,
    own: bytes,
    why: Refused,
    now_ms: int,
    by: str | None = None,
) -> None:
    """C3 of a cancel: store its bytes and make it the payment's current attempt.

    `by`: the app that ordered it. Refused: `wrong_state` if the current attempt has changed since the
    decision; `paused`.
    """
    pauses.require_running(unit.conn)
    row = row_of(unit, decided.id)
    if (row.attempt.tx_id, row.invoice.seq) != (decided.attempt.tx_id, decided.invoice.seq):
        raise Refused("wrong_state", "the payment has a newer attempt than the one to cancel")
    # a fork may remove the payment's block within the second of its cancel: then that cancel is submitted again
    if all(one.tx_id != plan.tx_id for one in attempts_and_utxos.attempts(unit.conn, row.id)):
        _add_attempt(unit, row, "cancel", plan, cbor, own, now_ms)
    writes.move_payment(
        unit,
        row.id,
        Event.CANCEL,
        now_ms,
        None if by is None else {"by": by},
        tx_id=plan.tx_id,
        **why.record,
    )


def _add_attempt(
    unit: Unit, row: PaymentRow, kind: AttemptKind, plan: TxPlan, cbor: bytes, own: bytes, now_ms: int
) -> None:
    writes.add_attempt(
        unit,
        tx_id=plan.tx_id,
        payment_id=row.id,
        kind=kind,
        nonce_utxo=plan.nonce_utxo.ref,
        invoice_seq=row.invoice.seq,
        inputs=[utxo.ref for utxo in plan.inputs],
        cbor=cbor,
        fee_lovelace=plan.fee_lovelace,
        ttl_slot=plan.ttl_slot,
        now_ms=now_ms,
    )
    for index, output in enumerate(plan.outputs):
        if output.address == own:
            ref = f"{plan.tx_id}#{index}"
            writes.add_utxo(
                unit,
                UtxoRow(ref, plan.tx_id, index, output.lovelace, dict(output.assets), "change", "pending", None),
            )


def reject_unsigned(
    unit: Unit, payment_id: str, utxos: UtxoIndex, refusal: Refused, now_ms: int, by: str | None = None
) -> None:
    """Reject a reserved payment for which nothing was ever signed: release its hold and its UTxOs.

    `by`: the app that ordered it.
    """
    hold = payments.hold(unit.conn, payment_id)
    detail = refusal.limit_record | ({} if by is None else {"by": by})
    writes.move_payment(unit, payment_id, Event.REJECT, now_ms, detail, **refusal.record)
    writes.release_hold(unit, payment_id, now_ms)
    writes.write_entry(unit, ledger.release(hold), now_ms, payment_id=payment_id)
    _unreserve(unit, payment_id, utxos)


def record_not_signed(unit: Unit, payment_id: str, utxos: UtxoIndex, refusal: Refused, now_ms: int) -> None:
    """Record that the signer refused, with one alert. The hold is released only if nothing was ever signed."""
    row = row_of(unit, payment_id)
    if row.state is State.RESERVED:
        reject_unsigned(unit, payment_id, utxos, refusal, now_ms)
    facts = {
        "detail": f"the signer refused a transaction ({refusal.name}): {refusal.detail}",
        "payment": payment_id,
    }
    raise_alert(unit, "signer_refused", NOT_SIGNED_SUBJECT, facts, now_ms)


def _unreserve(unit: Unit, payment_id: str, utxos: UtxoIndex) -> None:
    """Release a payment's UTxOs. One that is still unspent becomes available.

    A rolled back deposit is deleted; if it returns, it counts as a new one. So is the pending change of a payment
    that cannot land any more.
    """
    reserved = attempts_and_utxos.utxos_reserved_for(unit.conn, payment_id)
    writes.unreserve(unit, payment_id)
    for utxo in reserved:
        if utxo.state == "available":
            make_available(unit, utxos, utxo)
        elif utxo.state == "rolled_back" or (
            utxo.state == "pending" and attempts_and_utxos.is_never_made(unit.conn, utxo.tx_id)
        ):
            writes.forget_utxo(unit, utxo.ref)


def record_submit(unit: Unit, payment_id: str, tx_id: str, provider: str, now_ms: int) -> bool:
    """C4: the bytes are about to be sent. From here on only the chain shows the outcome.

    Returns False if another attempt is current by now: then do not send.
    """
    row = row_of(unit, payment_id)
    if row.attempt.tx_id != tx_id:
        return False
    writes.add_submission(unit, tx_id, provider, now_ms)
    if row.state is State.SIGNED:
        writes.move_payment(unit, payment_id, Event.SUBMIT, now_ms)
    return True


def record_answer(
    unit: Unit, payment_id: str, tx_id: str, answer: SubmitAnswer, provider: str, now_ms: int
) -> None:
    """Record a provider's answer to a submission, for the operator and for `ready`. It changes no state.

    An answer that the bytes can never be valid means our bug or the provider's lie, and raises an alert
    (exactly-once.md R10). So does an unclassified refusal, unless the provider accepted these bytes before.
    """
    row = row_of(unit, payment_id)
    event = "provider_accepted" if answer.kind is SubmitKind.ACCEPTED else "provider_answered"
    detail = {"provider": provider, "kind": answer.kind, "detail": answer.detail[:500], "tx_id": tx_id}
    writes.note(unit, payment_id, event, row.state, now_ms, detail)
    if answer.kind is SubmitKind.NEVER:
        alert = f"{provider} says that the transaction of {payment_id} can never be valid: {answer.detail[:300]}"
        facts = {"detail": alert, "payment": payment_id, "tx_hash": tx_id, "provider": provider}
        raise_alert(unit, "never_valid", f"never:{payment_id}", facts, now_ms)
    elif answer.kind is SubmitKind.CLIENT:
        if not attempts_and_utxos.was_answered(unit.conn, payment_id, tx_id, SubmitKind.ACCEPTED, provider):
            alert = (
                f"{provider} refused the transaction of {payment_id}: {answer.detail[:300]}. Its money stays held "
                "and the transaction is sent again. Check the provider's base_url and its own log"
            )
            facts = {"detail": alert, "payment": payment_id, "tx_hash": tx_id, "provider": provider}
            raise_alert(unit, "submission_refused", f"refused:{provider}", facts, now_ms)
    elif answer.kind is SubmitKind.ACCEPTED:
        clear_alert(unit, f"refused:{provider}", {"detail": f"{provider} takes submissions"}, now_ms)


def may_broadcast(row: PaymentRow) -> bool:
    """Whether payagent may submit: if the merchant submits, only after the transaction was in a block."""
    return not row.invoice.merchant_submits or row.attempt.seen_in_block or row.state is State.CANCELLING


def reason_to_cancel(conn: Connection, row: PaymentRow, slot: int) -> Refused | None:
    """Why the payment has to be cancelled now; None if it does not.

    If the merchant submits, an attempt is cancelled once its TTL has passed. So is one that the merchant refused,
    unless something shows that it was submitted anyway. A cancel is repeated once its own TTL has passed, or if
    one of its inputs can never exist. An attempt that payagent submitted is replaced if possible
    (`Admission.replace`).
    """
    is_over = slot >= (row.attempt.ttl_slot or 0)
    if row.state is State.CANCELLING and (
        is_over or not can_land(conn, attempts_and_utxos.attempts(conn, row.id)[-1])
    ):
        return Refused(row.problem.name or "payment_void/not_broadcast", row.problem.detail or "")
    if row.state is not State.IN_FLIGHT or not row.invoice.merchant_submits:
        return None
    if row.refused and not row.attempt.seen_in_block and row.delivery is not Delivery.ACCEPTED:
        return Refused(
            "payment_void/merchant_refused", "the merchant refused the transaction without submitting it"
        )
    if is_over:
        return Refused(
            "payment_void/not_broadcast",
            "the merchant got the transaction and did not submit it before its time limit",
        )
    return None


def record_seen(unit: Unit, payment_id: str, seen: TxSeen, utxos: UtxoIndex, provider: str, now_ms: int) -> None:
    """C5: an attempt is in a block. Its inputs are spent and its change is available, unless a child spent it.

    That attempt, and the invoice it was signed for, become the payment's current ones.
    """
    writes.add_block_observation(unit, seen.tx_id, seen.block_hash, seen.block_height, seen.slot, provider, now_ms)
    row, attempt = row_of(unit, payment_id), _attempt(unit, payment_id, seen.tx_id)
    invoice = {} if attempt.invoice_seq == row.invoice.seq else {"invoice_seq": attempt.invoice_seq}
    writes.move_payment(
        unit,
        payment_id,
        Event.SEEN_IN_BLOCK,
        now_ms,
        None,
        tx_id=seen.tx_id,
        block_hash=seen.block_hash,
        block_height=seen.block_height,
        block_slot=seen.slot,
        code=None,
        reason=None,
        detail=None,
        **invoice,
    )
    _take_effect(unit, payment_id, seen, utxos, provider, now_ms)


def record_void(
    unit: Unit, payment_id: str, seen: TxSeen, landed_ms: int, utxos: UtxoIndex, provider: str, now_ms: int
) -> None:
    """C7 of a cancel: it is deep enough in the chain that no paying attempt can land. The hold is released.

    `seen` may also be another payment's transaction that keeps the nonce UTxO from ever existing. Then no fee is
    due. The UTxOs stay reserved until no rollback reaches that block.
    """
    own = [
        attempt for attempt in attempts_and_utxos.attempts(unit.conn, payment_id) if attempt.tx_id == seen.tx_id
    ]
    if own:
        writes.add_block_observation(
            unit, seen.tx_id, seen.block_hash, seen.block_height, seen.slot, provider, now_ms
        )
    block = {"block_hash": seen.block_hash, "block_height": seen.block_height, "block_slot": seen.slot}
    columns = {"tx_id": seen.tx_id} if own else _ORPHANED | {"void_tx_id": seen.tx_id}
    from_ms = limit_counters.clock_ms(unit.conn, landed_ms)
    writes.move_payment(unit, payment_id, Event.VOID, now_ms, {"counts_from_ms": from_ms}, **columns, **block)
    fee_lovelace = own[0].fee_lovelace if own else 0
    prepaid.not_bought(unit, row_of(unit, payment_id))
    writes.release_hold(unit, payment_id, now_ms, fee_lovelace, from_ms)
    entry = ledger.release(payments.hold(unit.conn, payment_id), fee_lovelace)
    writes.write_entry(unit, entry, now_ms, payment_id=payment_id, ref=seen.tx_id)
    if own:
        _take_effect(unit, payment_id, seen, utxos, provider, now_ms)


_ORPHANED: dict[str, object] = {
    "tx_id": None,
    "code": "payment_void",
    "reason": "parent_replaced",
    "detail": "the payment whose change it spends was replaced by another transaction",
}


def record_time_over(unit: Unit, payment_id: str, block: TxSeen, utxos: UtxoIndex, now_ms: int) -> None:
    """C7 by TTL: the nonce UTxO was rolled back, and a block that no rollback reaches is past every TTL.

    No attempt is on the chain. The hold and the payment's unspent UTxOs are released. Nothing happens if an
    attempt was signed since the decision, or the nonce UTxO is back.
    """
    row, attempts = row_of(unit, payment_id), attempts_and_utxos.attempts(unit.conn, payment_id)
    if not attempts_and_utxos.is_rolled_back(unit.conn, row.nonce_utxo) or any(
        one.ttl_slot > block.slot for one in attempts
    ):
        return
    writes.move_payment(
        unit,
        payment_id,
        Event.VOID,
        now_ms,
        {"time_over": True},
        tx_id=None,
        block_hash=block.block_hash,
        block_height=block.block_height,
        block_slot=block.slot,
        code="deposit_rolled_back",
        reason=None,
        detail="a rollback took the deposit that it spends, and its transactions can no longer land",
    )
    prepaid.not_bought(unit, row)
    writes.release_hold(unit, payment_id, now_ms)
    writes.write_entry(unit, ledger.release(payments.hold(unit.conn, payment_id)), now_ms, payment_id=payment_id)
    _unreserve(unit, payment_id, utxos)
    for attempt in attempts:
        _forget_change(unit, attempt.tx_id)


def lose_external_spend(unit: Unit, row: ExternalSpendRow, provider: str, now_ms: int) -> None:
    """An external spend lost its block: the UTxOs that it spent are ours again, available once listed.

    Those that an attempt of ours in another block has spent since stay spent.
    """
    writes.add_external_spend(unit, replace(row, is_on_chain=False), provider, now_ms)
    writes.write_entry(unit, ledger.external_spend_reversed(row.spent), now_ms, ref=row.tx_id)
    for ref in row.inputs:
        if onchain.is_spent_by(unit.conn, ref, row.tx_id):
            writes.set_utxo_state(
                unit, ref, "missing" if attempts_and_utxos.is_made(unit.conn, ref) else "pending"
            )
    writes.note(
        unit, None, "external_spend_lost", None, now_ms, {"tx_id": row.tx_id, "block_hash": row.block_hash}
    )


def _take_effect(unit: Unit, payment_id: str, seen: TxSeen, utxos: UtxoIndex, provider: str, now_ms: int) -> None:
    """Apply an attempt in a block to our UTxOs. An external spend of its inputs cannot be on the same chain."""
    inputs = _attempt(unit, payment_id, seen.tx_id).inputs
    for external_spend in onchain.external_spends_of(unit.conn, inputs):
        lose_external_spend(unit, external_spend, provider, now_ms)
    for ref in inputs:
        is_back(unit, ref, now_ms)
        writes.spend_utxo(unit, ref, seen.tx_id)
    for row in attempts_and_utxos.utxos_of_tx(unit.conn, seen.tx_id):
        if row.state == "pending":
            writes.set_utxo_state(unit, row.ref, "available")
            if row.reserved_for is None:
                make_available(unit, utxos, row)


def record_block_lost(
    unit: Unit, payment_id: str, utxos: UtxoIndex, now_ms: int, denied_by: str | None = None
) -> None:
    """C5: the payment's block is gone, and the same bytes are in flight again.

    `denied_by`: a provider that has the block but not the transaction in it. Then an alert is raised.

    Postings, and the release by a cancel, are reversed into the hold. Inputs are unspent and stay reserved:
    available if the transaction that made them is in a block, or else pending. Change is pending, except what a
    child in a block has spent: the child's own recheck finds whether it lost its block too.
    """
    row = row_of(unit, payment_id)
    if row.state in POSTED | {State.VOID} and (posted := journal.last_posting(unit.conn, payment_id)):
        lines = tuple(Posting(*line) for line in posted.postings)
        writes.write_entry(unit, ledger.post_reversed(Entry("post", lines)), now_ms, payment_id=payment_id)
        prepaid.taken_back(unit, row, posted.postings, now_ms)
        writes.renew_hold(unit, payment_id)
    # another payment's transaction may have made it void: then no attempt of this one was in that block
    attempts = {attempt.tx_id: attempt for attempt in attempts_and_utxos.attempts(unit.conn, payment_id)}
    lost = attempts.get(row.attempt.tx_id or "")
    columns: dict[str, object] = {} if lost is not None else {"tx_id": next(reversed(attempts))}
    if row.void_tx_id is not None:
        columns["void_tx_id"] = None
    writes.move_payment(unit, payment_id, Event.BLOCK_LOST, now_ms, {"block": row.block.hash}, **columns)
    if denied_by is not None:
        _alert_reopened(unit, row, denied_by, now_ms)
    for ref in () if lost is None else lost.inputs:
        writes.set_utxo_state(unit, ref, "available" if attempts_and_utxos.is_made(unit.conn, ref) else "pending")
    for utxo in attempts_and_utxos.utxos_of_tx(unit.conn, row.attempt.tx_id or ""):
        if utxo.state != "spent" and utxo.source == "change":
            if utxo.ref in utxos:
                make_unavailable(unit, utxos, utxo.ref)
            writes.set_utxo_state(unit, utxo.ref, "pending")


def _alert_reopened(unit: Unit, row: PaymentRow, denied_by: str, now_ms: int) -> None:
    detail = (
        f"{row.id} was shown in block {row.block.hash}, and {denied_by} denies that it is there. Its money is "
        "held again and the same transaction is sent again"
    )
    facts = {"detail": detail, "payment": row.id, "tx_hash": row.shown_by, "provider": denied_by}
    raise_again(unit, "payment_reopened", f"reopened:{row.id}", facts, now_ms)


def _attempt(unit: Unit, payment_id: str, tx_id: str | None) -> AttemptRow:
    return next(
        attempt for attempt in attempts_and_utxos.attempts(unit.conn, payment_id) if attempt.tx_id == tx_id
    )


def record_confirmed(unit: Unit, payment_id: str, depth: int, rules: RulesOf, landed_ms: int, now_ms: int) -> None:
    """C6: post the spend from the hold to its account, with the fee apart. The rest of the hold is released.

    `landed_ms`: when it starts to count against limits (`ChainView.landed_ms`).
    """
    row = row_of(unit, payment_id)
    hold = payments.hold(unit.conn, payment_id)
    fee_lovelace = row.attempt.fee_lovelace or 0
    spent = _spent(unit, _attempt(unit, payment_id, row.attempt.tx_id))
    account = ledger.spending_account(row.invoice.origin, row.prepaid.pool_id is not None)
    writes.write_entry(
        unit, ledger.post(hold, spent, fee_lovelace, account), now_ms, payment_id=payment_id, ref=row.attempt.tx_id
    )
    from_ms = limit_counters.clock_ms(unit.conn, landed_ms)
    writes.post_hold(unit, payment_id, from_ms)
    writes.move_payment(unit, payment_id, Event.CONFIRM, now_ms, {"depth": depth, "counts_from_ms": from_ms})
    prepaid.bought(unit, row, spent, now_ms)
    merchant_trust.learn_price(unit, rules(row.invoice.origin), row, now_ms)


def _spent(unit: Unit, attempt: AttemptRow) -> dict[str, int]:
    """The units that an attempt takes from the wallet, without the fee: inputs less change."""
    spent = {LOVELACE: -attempt.fee_lovelace}
    for ref in attempt.inputs:
        if (utxo := attempts_and_utxos.utxo(unit.conn, ref)) is not None:
            spent = ledger.add((spent, {LOVELACE: utxo.lovelace, **utxo.assets}))
    for utxo in attempts_and_utxos.utxos_of_tx(unit.conn, attempt.tx_id):
        for asset, units in ((LOVELACE, utxo.lovelace), *utxo.assets.items()):
            spent[asset] = spent.get(asset, 0) - units
    return {asset: units for asset, units in spent.items() if units}


def record_settled(unit: Unit, payment_id: str, depth: int, utxos: UtxoIndex, now_ms: int) -> None:
    """C7: no rollback reaches the payment's block any more, so its reservations end. A void payment stays void.

    A reserved UTxO that no transaction spent becomes available. The change of its other attempts can never exist
    and is deleted. So are pending inputs that another transaction has ruled out.
    """
    row = row_of(unit, payment_id)
    if row.state is not State.VOID:
        writes.move_payment(unit, payment_id, Event.SETTLE, now_ms, {"depth": depth})
    orphans = [
        utxo.ref
        for utxo in attempts_and_utxos.utxos_reserved_for(unit.conn, payment_id)
        if utxo.state == "pending" and attempts_and_utxos.rival_of(unit.conn, utxo.ref) is not None
    ]
    _unreserve(unit, payment_id, utxos)
    for ref in orphans:
        writes.forget_utxo(unit, ref)
    for attempt in attempts_and_utxos.attempts(unit.conn, payment_id):
        if attempt.tx_id != row.attempt.tx_id:
            _forget_change(unit, attempt.tx_id)


def _forget_change(unit: Unit, tx_id: str) -> None:
    """Delete the change of an attempt that can never land, except what another payment has reserved."""
    for utxo in attempts_and_utxos.utxos_of_tx(unit.conn, tx_id):
        if utxo.reserved_for is None:
            writes.forget_utxo(unit, utxo.ref)
