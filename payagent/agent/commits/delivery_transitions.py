"""The commits of a payment's delivery, on the writer's thread.

Money and delivery are two state machines. These commits change the delivery only, and no money.
Never: waits; changes a payment's state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from payagent.agent.base import merchant_trust, prepaid
from payagent.agent.base.merchant_trust import RulesOf
from payagent.agent.commits.payment_transitions import row_of
from payagent.core.aggregate import PaymentRow
from payagent.core.changes import EndIntent, Note, SetColumn
from payagent.core.payment.apply import unserved_subject
from payagent.core.payment.machine import (
    WITHOUT_PROOF,
    Delivery,
    DeliveryEvent,
    State,
    deliver,
    delivery_event,
    is_served,
)
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import RetryAnswer, RetryVerdict, is_refusal
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, write
from payagent.store.rows import events, payments, writes

SERVING_PATIENCE_MS = 3_600_000
"""How long a merchant has to serve a confirmed payment, and how long an invoice without an end stays open."""

PRESENTED_AGAIN = (RetryVerdict.PENDING, RetryVerdict.INVOICED, RetryVerdict.UNCLEAR)
USED_UP_PATIENCE = 12
"""How often a proof is presented again that a facilitator calls used up: it may be settling that very proof. The
retries take about 90 s, enough for a settlement to get into a block."""


@dataclass(frozen=True, slots=True)
class Presented:
    """How a proof was presented: the depth of its transaction, and whether `ready = "auto"` chose that.

    `is_early`: chosen by "auto", and before `confirm_depth`. A refusal of an early proof is never final.
    """

    depth: int
    by_auto: bool
    is_early: bool


def record_delivery(
    unit: Unit, payment_id: str, http_status: int, rules: RulesOf, clock_ms: int, now_ms: int
) -> bool:
    """Record the status of a retry. Once served, a derived intent ends. `clock_ms`: the limits' clock.

    Returns whether this is the first time that it counts as served.
    """
    row = row_of(unit, payment_id)
    event = delivery_event(http_status, row.state, _is_over(row, clock_ms))
    _deliver(unit, row, event, {"status": http_status}, rules, now_ms)
    return event is DeliveryEvent.ACCEPT and row.delivery is not Delivery.ACCEPTED


def record_unanswered(unit: Unit, payment_id: str, why: str, rules: RulesOf, now_ms: int) -> None:
    """Record, once, that a proof was presented and got no answer. It counts as presented."""
    row = row_of(unit, payment_id)
    if row.delivery is Delivery.NOT_PRESENTED:
        _deliver(unit, row, DeliveryEvent.PRESENT, {"unanswered": why}, rules, now_ms)


def record_answer_to_retry(
    unit: Unit,
    payment_id: str,
    answer: RetryAnswer,
    http_status: int,
    presented: Presented,
    rules: RulesOf,
    clock_ms: int,
    now_ms: int,
) -> float | None:
    """Record a merchant's answer to a retry. `clock_ms`: the limits' clock.

    In a flood of answers only repeated ones are left out. Returns seconds until the same proof is presented
    again; None: never.
    """
    row = row_of(unit, payment_id)
    event = DeliveryEvent.PRESENT
    if not is_served(http_status) and not presented.is_early:
        # a success may just mean "later": the delivery ends once the client has the answer
        event = delivery_event(http_status, row.state, _is_over(row, clock_ms))
    before = events.answers_to_retries(unit.conn, payment_id)
    verdicts = [*before, answer.verdict]
    if answer.verdict not in before or _is_on_record(unit, row, event, "merchant_answered", now_ms):
        detail = {"status": http_status, "said": answer.verdict, "reason": answer.reason, "delivery": event}
        detail["depth"] = presented.depth
        notes = [Note(payment_id, "merchant_answered", row.state, detail)]
        if (
            row.invoice.merchant_submits
            and row.state is State.IN_FLIGHT
            and set(verdicts) == {RetryVerdict.REFUSED}
        ):
            notes.append(Note(payment_id, "merchant_refused", row.state))
        _write(unit, row, event, notes, rules, now_ms)
    if presented.by_auto and answer.verdict is RetryVerdict.SERVED:
        merchant_trust.learn_accepted(unit, row, presented.depth, now_ms)
    has_served = RetryVerdict.SERVED in before or row.delivery is Delivery.ACCEPTED
    is_early = presented.is_early and not has_served
    is_refused_early = is_early and is_refusal(row.invoice.dialect or "", answer, http_status)
    if is_refused_early:
        merchant_trust.learn_refused_early(unit, row, presented.depth, answer.reason, now_ms)
    if event is DeliveryEvent.GIVE_UP or row.state in WITHOUT_PROOF:
        return None
    return again_after_s(1) if is_refused_early else _again_after_s(row, answer, verdicts)


def _again_after_s(row: PaymentRow, answer: RetryAnswer, verdicts: Sequence[str]) -> float | None:
    """Seconds until the proof is presented again after this answer, the last of `verdicts`; None: never."""
    may_settle = row.invoice.merchant_submits and row.delivery is not Delivery.ACCEPTED
    is_settling = (
        answer.verdict is RetryVerdict.USED_UP
        and may_settle
        and verdicts.count(RetryVerdict.USED_UP) <= USED_UP_PATIENCE
    )
    if answer.verdict not in PRESENTED_AGAIN and not is_settling:
        return None
    return answer.retry_after_s or again_after_s(len(verdicts))


def record_used_up(unit: Unit, payment_id: str, rules: RulesOf, now_ms: int) -> None:
    """Count a used up proof as accepted: only we presented it, so the purchase is ours."""
    _deliver(unit, row_of(unit, payment_id), DeliveryEvent.ACCEPT, {"said": RetryVerdict.USED_UP}, rules, now_ms)


def serving_ended_ms(clock_ms: int) -> int:
    """Payments confirmed before this time and not served yet are overdue, by the limits' clock.

    A merchant has an hour from the confirmation. The invoice's end does not count: it says until when to pay. A
    near end would blame a merchant that serves a minute later. A distant one would let a merchant that never
    serves collect payments until then.
    """
    return clock_ms - SERVING_PATIENCE_MS


def give_up_unserved(unit: Unit, payment_id: str, clock_ms: int, rules: RulesOf, now_ms: int) -> None:
    """Mark an overdue payment as paid-not-served, and count it against its merchant, once.

    A proof that is served later undoes this. A payment does not count if no proof of it is known to have
    been presented. Nor does one that was served to a client that hung up.
    """
    if payments.unserved(unit.conn, serving_ended_ms(clock_ms), payment_id):
        detail = {"unserved_ms": SERVING_PATIENCE_MS}
        _deliver(unit, row_of(unit, payment_id), DeliveryEvent.GIVE_UP, detail, rules, now_ms)


def acknowledge_unserved(unit: Unit, payment_id: str, by_app: str, now_ms: int) -> None:
    """End the alert of a payment that was not served: an operator has dealt with it. The delivery stays.

    Refused: `wrong_state` if the payment is not marked as paid and not served.
    """
    row = row_of(unit, payment_id)
    if row.delivery is not Delivery.PAID_NOT_SERVED:
        raise Refused("wrong_state", f"{row.id} is not marked as paid and not served")
    facts = {"payment": row.id, "merchant": row.invoice.origin or "", "by": by_app}
    ended = {"detail": f"an operator dealt with {row.id}", **facts}
    if clear_alert(unit, unserved_subject(row.id), ended, now_ms):
        writes.note(unit, row.id, "unserved_acknowledged", row.state, now_ms, {"by": by_app})
        writes.note(unit, None, "unserved_acknowledged", None, now_ms, facts)  # for the log of changes


def _deliver(
    unit: Unit, row: PaymentRow, event: DeliveryEvent, detail: Mapping[str, object], rules: RulesOf, now_ms: int
) -> None:
    name = f"delivery_{event}"
    if _is_on_record(unit, row, event, name, now_ms):
        _write(unit, row, event, (Note(row.id, name, row.state, detail),), rules, now_ms)
        if event is DeliveryEvent.ACCEPT:
            write(unit, (EndIntent(row.intent.id), *prepaid.first_use(unit.conn, row)), now_ms)


def _write(
    unit: Unit, row: PaymentRow, event: DeliveryEvent, notes: Iterable[Note], rules: RulesOf, now_ms: int
) -> None:
    """The delivery, the merchant's streak, the alert, and the events that say why."""
    now = deliver(row.delivery, event)
    streak = merchant_trust.streak_changes(unit.conn, rules(row.invoice.origin), row, now, now_ms)
    alert = merchant_trust.unserved_alert(unit.conn, row, now)
    write(unit, (SetColumn(row.id, "delivery", now), *streak, *alert, *notes), now_ms)


def _is_on_record(unit: Unit, row: PaymentRow, event: DeliveryEvent, name: str, now_ms: int) -> bool:
    """Whether to record this: always if it changes the delivery, or else while there is room for repeats."""
    return deliver(row.delivery, event) is not row.delivery or events.has_room(unit.conn, row.id, name, now_ms)


def _is_over(row: PaymentRow, clock_ms: int) -> bool:
    """Whether the invoice has expired by the limits' clock, which only blocks advance."""
    return clock_ms > (row.invoice.expires_at_ms or row.created_at_ms + SERVING_PATIENCE_MS)
