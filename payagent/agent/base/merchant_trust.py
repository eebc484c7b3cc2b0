"""What is known of a merchant, on the writer's thread: read for the guards, and kept as payments go.

What is paid first at a merchant, or allowed by a person, is what is known of it from then on. A payment that was
confirmed says what a call costs; one that was served or not says whether to buy there, and when to show a proof.

May import: core, store, agent.base. Never: decides (core.merchant_rules does); learns from what was refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from payagent.agent.base.alert_records import clear_alert, raise_alert
from payagent.core.invoice import Invoice, calls_of
from payagent.core.merchant_rules import (
    Agreed,
    InvoiceClaim,
    MerchantFacts,
    MerchantRules,
    Pin,
    claim_of,
    first_pins,
    must_stop,
)
from payagent.core.payment import Delivery
from payagent.core.problems import Refused
from payagent.core.retry_schedule import Readiness
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import approvals, events, intents, topups, trust
from payagent.store.rows import writes as records
from payagent.store.rows.payments import PaymentRow
from payagent.store.rows.trust import AgreedPriceRow, UnservedStreak

RulesOf = Callable[[str | None], MerchantRules]
"""What the guards hold a merchant to, by its origin."""


def claim_of_invoice(invoice: Invoice) -> InvoiceClaim:
    outputs = ((output.role, output.address.text, output.asset, output.units) for output in invoice.outputs)
    return claim_of(outputs, invoice.calls)


def claim_of_payment(row: PaymentRow) -> InvoiceClaim:
    """What the invoice claims that the payment goes by now."""
    outputs = ((output.role, output.address, output.asset, output.units) for output in row.outputs)
    return claim_of(outputs, calls_of(row.batch_target))


def known_of(
    conn: Connection, rules: MerchantRules, origin: str, request: str | None, is_measured: bool = True
) -> MerchantFacts:
    """What the merchant's rules need to know. `request`: the call, as an intent has it; None is not measured."""
    agreed: tuple[Agreed, ...] = ()
    if rules.drift_percent is not None and request is not None and is_measured:
        agreed = trust.agreed(conn, origin, *priced_call(request))
    return MerchantFacts(
        trust.pins(conn, origin) if rules.first_use or rules.filed else frozenset(),
        agreed,
        rules.stop_after is not None and trust.unserved_streak(conn, origin).stopped_at_ms is not None,
        0 if rules.in_flight_max is None else trust.in_flight(conn, origin),
    )


def priced_call(request: str) -> tuple[str, str]:
    """(method, path without its query) of an intent's request."""
    method, path = request.split(" ")[:2]
    return method, path.partition("?")[0]


def learn_addresses(
    unit: Unit, rules: MerchantRules, origin: str, claim: InvoiceClaim, payment_id: str, now_ms: int
) -> None:
    """The first payment to a merchant makes its addresses those that may be paid."""
    if rules.first_use:
        new = first_pins(claim, rules, MerchantFacts(trust.pins(unit.conn, origin)))
        _pin(unit, origin, new, {"why": "first_use", "payment": payment_id}, now_ms)


def learn_price(unit: Unit, rules: MerchantRules, row: PaymentRow, now_ms: int) -> None:
    """A confirmed payment says what its call costs, where nothing was agreed to yet, in any asset.

    A price that is let through does not move what later ones are measured by: they would creep.
    """
    price = None if rules.drift_percent is None else _price_of(unit, row)
    if price is None or row.origin is None:
        return
    if not trust.agreed(unit.conn, row.origin, price.method, price.path):
        _agree(unit, row.origin, price, {"payment": row.id}, now_ms)


def allow(unit: Unit, rules: MerchantRules, row: PaymentRow, by: Mapping[str, object], now_ms: int) -> None:
    """A person allowed a payment: its addresses are known, and its price is one that later ones go by.

    Only where nothing was agreed to, or the person was told that it is more: who allows an amount does not say
    that the call is worth it.
    """
    if row.origin is None:
        return
    told = {"payment": row.id, **by}
    if rules.first_use or rules.filed:
        known = rules.filed | trust.pins(unit.conn, row.origin)
        new = [one for one in claim_of_payment(row).pins if one not in known]
        _pin(unit, row.origin, new, {"why": "allowed", **told}, now_ms)
    price = None if rules.drift_percent is None else _price_of(unit, row)
    if price is None:
        return
    agreed = trust.agreed(unit.conn, row.origin, price.method, price.path)
    same = (one.units for one in agreed if (one.asset, one.calls) == (price.asset, price.calls))
    if not agreed or (_was_told_of_drift(unit, row.id) and price.units > max(same, default=0)):
        _agree(unit, row.origin, price, told, now_ms)


def _was_told_of_drift(unit: Unit, payment_id: str) -> bool:
    asked = approvals.of_payment(unit.conn, payment_id)
    return asked is not None and any(reason.code == "price_drifted" for reason in asked.reasons)


def _price_of(unit: Unit, row: PaymentRow) -> AgreedPriceRow | None:
    """What a payment says of its call's price: nothing where no call is known, or an operator ordered it."""
    order = None if row.topup is None else topups.find(unit.conn, row.topup)
    request = intents.request_of(unit.conn, row.intent_id)
    if request is None or (order is not None and order.cause != "auto"):
        return None
    claim = claim_of_payment(row)
    return AgreedPriceRow(*priced_call(request), claim.asset, claim.calls, claim.units)


def note_delivery(unit: Unit, rules: MerchantRules, row: PaymentRow, now: Delivery, now_ms: int) -> None:
    """Count what a merchant did not serve, in a row. Each change of the count has its event.

    Enough of it, and nothing is bought there until an operator says so; that is told once.
    """
    if rules.stop_after is None or row.origin is None or now is row.delivery:
        return
    had = trust.unserved_streak(unit.conn, row.origin)
    count = {Delivery.ACCEPTED: 0, Delivery.PAID_NOT_SERVED: had.count + 1}.get(now, had.count)
    if count == had.count:
        return
    stops = had.stopped_at_ms is None and must_stop(rules, count)
    trust.set_unserved_streak(unit, row.origin, UnservedStreak(count, now_ms if stops else had.stopped_at_ms))
    facts = {"merchant": row.origin, "payment": row.id, "app": row.app_id, "strikes": str(count)}
    records.note(unit, None, "merchant_stopped" if stops else "strikes_counted", None, now_ms, facts)
    if stops:
        detail = f"{row.origin} took {count} payments in a row and did not serve: nothing more is bought from it"
        raise_alert(unit, "merchant_stopped", _subject(row.origin), {"detail": detail, **facts}, now_ms)


def learn_accepted(unit: Unit, row: PaymentRow, depth: int, now_ms: int) -> None:
    """The merchant accepted the proof while its transaction was so deep: the next one is first shown there."""
    if row.origin is None:
        return
    known = trust.readiness(unit.conn, row.origin)
    now = known.after_accepted(depth, events.last_pending_depth(unit.conn, row.id))
    if now != known:
        trust.set_readiness(unit, row.origin, now)
        told = {"merchant": row.origin, "payment": row.id, "depth": now.accepted_depth}
        records.note(unit, None, "accepted_depth_learned", None, now_ms, told)


def learn_refused_early(unit: Unit, row: PaymentRow, depth: int, why: str, now_ms: int) -> None:
    """The merchant refused a proof before `confirm_depth`: from now on none is shown to it before that."""
    if row.origin is None:
        return
    known = trust.readiness(unit.conn, row.origin)
    if not known.refused_early:
        trust.set_readiness(unit, row.origin, replace(known, refused_early=True))
        told = {"merchant": row.origin, "payment": row.id, "depth": depth, "why": why}
        records.note(unit, None, "proof_refused_early", None, now_ms, told)


def reopen(unit: Unit, origin: str, by_app: str, now_ms: int) -> None:
    """Somebody has looked into a merchant: it may be paid again, and what it does is counted and told anew."""
    if trust.unserved_streak(unit.conn, origin) != UnservedStreak():
        trust.set_unserved_streak(unit, origin, UnservedStreak())
        records.note(unit, None, "merchant_reopened", None, now_ms, {"merchant": origin, "by": by_app})
    if trust.readiness(unit.conn, origin) != Readiness():
        trust.set_readiness(unit, origin, Readiness())
        records.note(unit, None, "readiness_reset", None, now_ms, {"merchant": origin, "by": by_app})
    facts = {"detail": f"an operator has looked into {origin}", "merchant": origin}
    for subject in (_subject(origin), _terms_subject(origin)):
        clear_alert(unit, subject, facts, now_ms)


def warn_of_terms(unit: Unit, origin: str, detail: str, now_ms: int) -> None:
    """An invoice came again with other terms: its merchant errs, or somebody stands between. Told once."""
    facts = {"detail": f"{origin}: {detail}", "merchant": origin}
    raise_alert(unit, "terms_changed", _terms_subject(origin), facts, now_ms)


def pin(unit: Unit, origin: str, wanted: Pin, by_app: str, now_ms: int) -> None:
    """Let a merchant be paid at an address."""
    if wanted not in trust.pins(unit.conn, origin):
        _pin(unit, origin, [wanted], {"why": "operator", "by": by_app}, now_ms)


def unpin(unit: Unit, rules: MerchantRules, origin: str, unwanted: Pin, by_app: str, now_ms: int) -> None:
    """Forget an address. Refused: `not_found`; `last_address`: without one the next payment is the first again."""
    if rules.first_use and not rules.filed and trust.pins(unit.conn, origin) == {unwanted}:
        raise Refused("last_address", f"{origin} may be paid at {unwanted.address} and at no other address")
    if not trust.drop_pin(unit, origin, unwanted):
        raise Refused("not_found", f"{unwanted.address} is no {unwanted.role} address that was learnt or pinned")
    told = {"merchant": origin, "role": unwanted.role, "address": unwanted.address, "by": by_app}
    records.note(unit, None, "address_unpinned", None, now_ms, told)


def _pin(unit: Unit, origin: str, pins: Iterable[Pin], why: Mapping[str, object], now_ms: int) -> None:
    for one in pins:
        trust.add_pins(unit, origin, (one,))
        told = {"merchant": origin, "role": one.role, "address": one.address, **why}
        records.note(unit, None, "address_pinned", None, now_ms, told)


def _agree(unit: Unit, origin: str, price: AgreedPriceRow, why: Mapping[str, object], now_ms: int) -> None:
    trust.agree(unit, origin, price)
    told = {
        "merchant": origin,
        "call": f"{price.method} {price.path}",
        "asset": price.asset,
        "calls": str(price.calls),
        "units": str(price.units),
        **why,
    }
    records.note(unit, None, "price_agreed", None, now_ms, told)


def _subject(origin: str) -> str:
    return f"merchant:{origin}"


def _terms_subject(origin: str) -> str:
    return f"terms:{origin}"
