"""C3 to C7: the commits of a payment after its admission, on the writer's thread.

In order: `record_attempt` (C3), `record_submit` (C4), `record_seen` and `record_block_lost` (C5),
`record_confirmed` (C6), `record_settled` and `record_void` (C7). Each reads the payment inside its transaction and
goes through the transition table, so a step that was decided on outdated data changes nothing.

Never: waits; decides whether a step is due.
"""

from payagent.agent.base import merchant_trust, prepaid
from payagent.agent.base.free_utxos import FreeUtxoIndex
from payagent.agent.base.merchant_trust import RulesOf
from payagent.agent.commits.replacement import can_land, lacking_inputs
from payagent.chain.provider import SubmitAnswer, SubmitKind
from payagent.core.aggregate import (
    AttemptKind,
    AttemptRow,
    ExternalSpendRow,
    LoadedPayment,
    OutputRow,
    PaymentRow,
    TxSeen,
    UtxoRow,
)
from payagent.core.payment.apply import SIGNER_SUBJECT, apply
from payagent.core.payment.events import (
    BlockLost,
    Cancel,
    CancelBlockLost,
    Confirm,
    ExternalSpendBlockLost,
    Reject,
    RivalBlockLost,
    SeenInBlock,
    Settle,
    Sign,
    SignHandedOver,
    Submit,
    VoidByCancel,
    VoidByExternalSpend,
    VoidByRival,
    VoidByTime,
)
from payagent.core.payment.machine import Delivery, Event, State, effect_of
from payagent.core.problems import Refused
from payagent.core.utxo import UtxoEvent, after
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import clear_alert, raise_alert, write
from payagent.store.load import load, load_row
from payagent.store.rows import attempts_and_utxos, limit_counters, pauses, writes
from payagent.wallet.tx_plan import TxPlan
from payagent.wallet.utxo_index import UtxoIndex


def row_of(unit: Unit, payment_id: str) -> PaymentRow:
    return load_row(unit.conn, payment_id)


def record_attempt(unit: Unit, payment_id: str, plan: TxPlan, cbor: bytes, own: bytes, now_ms: int) -> None:
    """C3: store the signed bytes, and the attempt's change as pending UTxOs.

    If the merchant submits, the bytes leave with the answer that follows this commit, so it is C4 too. Refused:
    `wrong_state` if the payment no longer waits for this plan; `paused` if an operator paused first.
    """
    pauses.require_running(unit.conn)
    payment = load(unit.conn, payment_id)
    effect_of(payment.row.state, Event.SIGN)
    if not _is_planned_for(unit, payment, plan):
        raise Refused("wrong_state", "the payment now waits for another transaction")
    signed = SignHandedOver if payment.row.invoice.merchant_submits else Sign
    write(unit, apply(payment, signed(*_signed(payment.row, "pay", plan, cbor, own))), now_ms)


def _is_planned_for(unit: Unit, payment: LoadedPayment, plan: TxPlan) -> bool:
    """Whether the plan has the inputs, TTL and outputs that were decided for the payment."""
    row = payment.row
    if row.state is State.REPLACING:
        chosen = set(attempts_and_utxos.replacement_inputs(unit.conn, row.id))
    else:
        chosen = {own.row.ref for own in payment.reserved}
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
    utxos: UtxoIndex,
    now_ms: int,
    by: str | None = None,
) -> None:
    """C3 of a cancel: store its bytes and make it the payment's current attempt.

    `by`: the app that ordered it. Refused: `wrong_state` if the current attempt has changed since the
    decision; `paused`.
    """
    pauses.require_running(unit.conn)
    payment = load(unit.conn, decided.id)
    row = payment.row
    if (row.attempt.tx_id, row.invoice.seq) != (decided.attempt.tx_id, decided.invoice.seq):
        raise Refused("wrong_state", "the payment has a newer attempt than the one to cancel")
    inputs = lacking_inputs(payment, plan, utxos)
    cancel = Cancel(*_signed(row, "cancel", plan, cbor, own), inputs, why, by)
    write(unit, apply(payment, cancel), now_ms, FreeUtxoIndex(utxos))


def _signed(
    row: PaymentRow, kind: AttemptKind, plan: TxPlan, cbor: bytes, own: bytes
) -> tuple[AttemptRow, tuple[UtxoRow, ...]]:
    """The attempt of a signed plan, and the UTxOs that it makes for us."""
    inputs = tuple(utxo.ref for utxo in plan.inputs)
    attempt = AttemptRow(
        *(plan.tx_id, row.id, kind, plan.nonce_utxo.ref, row.invoice.seq, inputs),
        *(cbor, plan.fee_lovelace, plan.ttl_slot, row.account),
    )
    made = tuple(
        UtxoRow(
            *(f"{plan.tx_id}#{index}", plan.tx_id, index, output.lovelace, dict(output.assets)),
            *("change", str(after(None, UtxoEvent.MADE).to), None, row.account),
        )
        for index, output in enumerate(plan.outputs)
        if output.address == own
    )
    return attempt, made


def reject_unsigned(
    unit: Unit, payment_id: str, utxos: UtxoIndex, refusal: Refused, now_ms: int, by: str | None = None
) -> None:
    """Reject a reserved payment for which nothing was ever signed: release its hold and its UTxOs.

    `by`: the app that ordered it.
    """
    rejected = Reject(refusal, refusal.limit_record | ({} if by is None else {"by": by}))
    write(unit, apply(load(unit.conn, payment_id), rejected), now_ms, FreeUtxoIndex(utxos))


def record_not_signed(unit: Unit, payment_id: str, utxos: UtxoIndex, refusal: Refused, now_ms: int) -> None:
    """Record that the signer refused, with one alert. The hold is released only if nothing was ever signed."""
    row = row_of(unit, payment_id)
    if row.state is State.RESERVED:
        reject_unsigned(unit, payment_id, utxos, refusal, now_ms)
    facts = {
        "detail": f"the signer refused a transaction ({refusal.name}): {refusal.detail}",
        "payment": payment_id,
    }
    raise_alert(unit, "signer_refused", SIGNER_SUBJECT, facts, now_ms)


def record_submit(unit: Unit, payment_id: str, tx_id: str, provider: str, now_ms: int) -> bool:
    """C4: the bytes are about to be sent. From here on only the chain shows the outcome.

    Returns False if another attempt is current by now: then do not send.
    """
    row = row_of(unit, payment_id)
    if row.attempt.tx_id != tx_id:
        return False
    write(unit, apply(LoadedPayment(row), Submit(tx_id, provider)), now_ms)
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
    """C5: an attempt is in a block. Its inputs are spent and its change is available, unless a child spent it."""
    payment = load(unit.conn, payment_id, landed=seen.tx_id)
    write(unit, apply(payment, SeenInBlock(seen, provider)), now_ms, FreeUtxoIndex(utxos))


def record_void(
    unit: Unit, payment_id: str, seen: TxSeen, landed_ms: int, utxos: UtxoIndex, provider: str, now_ms: int
) -> None:
    """C7 of a cancel: it is deep enough in the chain that no paying attempt can land. The hold is released.

    `seen` may also be another payment's transaction that keeps the nonce UTxO from ever existing. Then no fee is
    due. The UTxOs stay reserved until no rollback reaches that block.
    """
    payment = load(unit.conn, payment_id, landed=seen.tx_id)
    owed = prepaid.owed(unit.conn, payment)
    from_ms = limit_counters.clock_ms(unit.conn, landed_ms)
    void = (
        VoidByRival(seen, owed, from_ms)
        if payment.attempt(seen.tx_id) is None
        else VoidByCancel(seen, owed, from_ms, provider)
    )
    write(unit, apply(payment, void), now_ms, FreeUtxoIndex(utxos))


def record_time_over(unit: Unit, payment_id: str, block: TxSeen, utxos: UtxoIndex, now_ms: int) -> None:
    """C7 by TTL: the nonce UTxO was rolled back, and a block that no rollback reaches is past every TTL.

    No attempt is on the chain. The hold and the payment's unspent UTxOs are released. Nothing happens if an
    attempt was signed since the decision, or the nonce UTxO is back.
    """
    payment = load(unit.conn, payment_id)
    if not attempts_and_utxos.is_rolled_back(unit.conn, payment.row.nonce_utxo) or any(
        one.ttl_slot > block.block_slot for one in payment.attempts
    ):
        return
    void = VoidByTime(block, prepaid.owed(unit.conn, payment))
    write(unit, apply(payment, void), now_ms, FreeUtxoIndex(utxos))


def record_overtaken(
    unit: Unit, payment_id: str, row: ExternalSpendRow, why: Refused, utxos: UtxoIndex, now_ms: int
) -> None:
    """C7 by an external spend of the nonce UTxO: no attempt can land, so the hold is released."""
    payment = load(unit.conn, payment_id)
    block = TxSeen(row.tx_id, row.block_hash, row.block_height, row.block_slot)
    void = VoidByExternalSpend(block, prepaid.owed(unit.conn, payment), why)
    write(unit, apply(payment, void), now_ms, FreeUtxoIndex(utxos))


def record_block_lost(
    unit: Unit, payment_id: str, utxos: UtxoIndex, now_ms: int, denied_by: str | None = None
) -> None:
    """C5: the payment's block is gone, and the same bytes are in flight again.

    `denied_by`: a provider that has the block but not the transaction in it. Then an alert is raised.

    Postings, and the release by a cancel, are reversed into the hold. Inputs are unspent and stay reserved:
    available if the transaction that made them is in a block, or else pending. Change is pending, except what a
    child in a block has spent: the child's own recheck finds whether it lost its block too.
    """
    payment = load(unit.conn, payment_id)
    row = payment.row
    lost: CancelBlockLost = CancelBlockLost(denied_by)
    if row.state is not State.VOID:
        lost = BlockLost(denied_by, prepaid.balance_of(unit.conn, payment))
    elif row.void_tx_id is not None:
        lost = RivalBlockLost(denied_by)
    elif payment.attempt(row.attempt.tx_id) is None:
        lost = ExternalSpendBlockLost(denied_by)
    write(unit, apply(payment, lost), now_ms, FreeUtxoIndex(utxos))


def record_confirmed(unit: Unit, payment_id: str, depth: int, rules: RulesOf, landed_ms: int, now_ms: int) -> None:
    """C6: post the spend from the hold to its account, with the fee apart. The rest of the hold is released.

    `landed_ms`: when it starts to count against limits (`ChainView.landed_ms`).
    """
    payment = load(unit.conn, payment_id)
    from_ms = limit_counters.clock_ms(unit.conn, landed_ms)
    price = merchant_trust.price_to_agree(unit.conn, rules(payment.row.invoice.origin), payment.row)
    confirmed = Confirm(depth, from_ms, prepaid.balance_of(unit.conn, payment), price)
    write(unit, apply(payment, confirmed), now_ms)


def record_settled(unit: Unit, payment_id: str, depth: int, utxos: UtxoIndex, now_ms: int) -> None:
    """C7: no rollback reaches the payment's block any more, so its reservations end. A void payment stays void.

    A reserved UTxO that no transaction spent becomes available. The change of its other attempts can never exist
    and is deleted. So are pending inputs that another transaction has ruled out.
    """
    write(unit, apply(load(unit.conn, payment_id), Settle(depth)), now_ms, FreeUtxoIndex(utxos))
