"""Facts that payagent learns about a merchant: pinned addresses, agreed prices, unserved streak, readiness.

Runs on the writer's thread. The first payment to a merchant, or an approval, pins its addresses. A confirmed
payment sets the price of a request. Each delivery updates the unserved streak and when to present a proof.

Never: decides (core.merchant_rules does); learns from a refused payment.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from payagent.core.aggregate import AgreedPriceRow, PaymentRow
from payagent.core.changes import AgreePrice, Change, Clear, Note, PinAddress, Raise, SetStreak
from payagent.core.invoice import Invoice, calls_of
from payagent.core.merchant_rules import (
    InvoiceClaim,
    MerchantFacts,
    MerchantRules,
    Pin,
    claim_of,
    first_pins,
    must_stop,
)
from payagent.core.money import counted
from payagent.core.payment.apply import raise_unserved, unserved_subject
from payagent.core.payment.machine import Delivery
from payagent.core.problems import Refused
from payagent.core.retry_schedule import MerchantReadiness
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import clear_alert, raise_alert, write
from payagent.store.rows import approvals, events, intents, journal, merchants, topups, writes
from payagent.store.rows.merchants import UnservedStreak

RulesOf = Callable[[str | None], MerchantRules]
"""The merchant rules of an origin."""


def claim_of_invoice(invoice: Invoice) -> InvoiceClaim:
    outputs = ((output.role, output.address.text, output.asset, output.units) for output in invoice.outputs)
    return claim_of(outputs, invoice.calls)


def claim_of_payment(row: PaymentRow) -> InvoiceClaim:
    """The claim of the payment's current invoice."""
    outputs = ((output.role, output.address, output.asset, output.units) for output in row.outputs)
    return claim_of(outputs, calls_of(row.invoice.batch_target))


def facts_of(
    conn: Connection, rules: MerchantRules, origin: str, request: str | None, is_measured: bool = True
) -> MerchantFacts:
    """The facts that the merchant rules need. `request`: as in the intent; None skips the price check."""
    agreed: Sequence[AgreedPriceRow] = ()
    if rules.price_rise_percent_max is not None and request is not None and is_measured:
        agreed = merchants.agreed(conn, origin, *priced_call(request))
    return MerchantFacts(
        merchants.pins(conn, origin) if rules.first_use or rules.from_file else frozenset(),
        agreed,
        rules.stop_after_unserved is not None
        and merchants.unserved_streak(conn, origin).stopped_at_ms is not None,
        0 if rules.payments_in_flight_max is None else merchants.in_flight(conn, origin),
    )


def priced_call(request: str) -> tuple[str, str]:
    """(method, path without query) of an intent's request."""
    method, path = request.split(" ")[:2]
    return method, path.partition("?")[0]


def first_addresses(
    conn: Connection, rules: MerchantRules, origin: str, claim: InvoiceClaim, payment_id: str
) -> Iterator[PinAddress]:
    """The addresses to pin by the first payment to a merchant."""
    if rules.first_use:
        for one in first_pins(claim, rules, MerchantFacts(merchants.pins(conn, origin))):
            yield PinAddress(origin, one, {"why": "first_use", "payment": payment_id})


def price_to_agree(conn: Connection, rules: MerchantRules, row: PaymentRow) -> AgreedPriceRow | None:
    """The price to agree on as a payment is confirmed; None if the request has an agreed price in any asset.

    A higher price that the rules accept does not replace the agreed one; otherwise prices could creep up.
    """
    price = None if rules.price_rise_percent_max is None else _price_of(conn, row)
    if price is None or row.invoice.origin is None:
        return None
    return None if merchants.agreed(conn, row.invoice.origin, price.method, price.path) else price


def allowed(
    conn: Connection, rules: MerchantRules, row: PaymentRow, by: Mapping[str, object]
) -> Iterator[PinAddress | AgreePrice]:
    """What an approved payment lets the merchant do: the addresses to pin, and the price to agree on.

    The price only counts if none was agreed before or the approval showed that it had risen. Approving an
    amount alone does not say that the request is worth it.
    """
    if row.invoice.origin is None:
        return
    source = {"payment": row.id, **by}
    if rules.first_use or rules.from_file:
        pinned = rules.from_file | merchants.pins(conn, row.invoice.origin)
        for one in claim_of_payment(row).pins:
            if one not in pinned:
                yield PinAddress(row.invoice.origin, one, {"why": "allowed", **source})
    price = None if rules.price_rise_percent_max is None else _price_of(conn, row)
    if price is None:
        return
    agreed = merchants.agreed(conn, row.invoice.origin, price.method, price.path)
    same = (one.units for one in agreed if (one.asset, one.calls) == (price.asset, price.calls))
    if not agreed or (_showed_price_rise(conn, row.id) and price.units > max(same, default=0)):
        yield AgreePrice(row.invoice.origin, price, source)


def _showed_price_rise(conn: Connection, payment_id: str) -> bool:
    approval = approvals.of_payment(conn, payment_id)
    return approval is not None and any(reason.code == "price_changed" for reason in approval.reasons)


def _price_of(conn: Connection, row: PaymentRow) -> AgreedPriceRow | None:
    """The price of a payment's request; None without a request, or for a top-up that an operator ordered."""
    topup = None if row.prepaid.topup_id is None else topups.find(conn, row.prepaid.topup_id)
    request = intents.request_of(conn, row.intent.id)
    if request is None or (topup is not None and topup.trigger != "auto"):
        return None
    claim = claim_of_payment(row)
    return AgreedPriceRow(*priced_call(request), claim.asset, claim.calls, claim.units)


def streak_changes(
    conn: Connection, rules: MerchantRules, row: PaymentRow, now: Delivery, now_ms: int
) -> Iterator[Change]:
    """What a delivery does to the merchant's unserved streak, with an event for each change.

    At `stop_after_unserved` the merchant is stopped until an operator resumes it, and one alert is raised.
    """
    origin = row.invoice.origin
    if rules.stop_after_unserved is None or origin is None or now is row.delivery:
        return
    streak = merchants.unserved_streak(conn, origin)
    count = {Delivery.ACCEPTED: 0, Delivery.PAID_NOT_SERVED: streak.count + 1}.get(now, streak.count)
    if count == streak.count:
        return
    stops = streak.stopped_at_ms is None and must_stop(rules, count)
    yield SetStreak(origin, count, now_ms if stops else streak.stopped_at_ms)
    facts = {"merchant": origin, "payment": row.id, "app": row.app_id, "unserved_streak": str(count)}
    yield Note(None, "merchant_stopped" if stops else "unserved_counted", None, facts)
    if stops:
        detail = (
            f"{origin} took {counted(count, 'payment')} in a row and did not serve: "
            "payagent pays it no more until an operator resumes it"
        )
        yield Raise("merchant_stopped", _subject(origin), {"detail": detail, **facts})


def unserved_alert(conn: Connection, row: PaymentRow, now: Delivery) -> Iterator[Change]:
    """A payment that is not served needs a person, until it is served after all or an operator acknowledges it."""
    if now is Delivery.PAID_NOT_SERVED and row.delivery is not now:
        yield raise_unserved(row, journal.left_wallet(conn, row.id))
    elif row.delivery is Delivery.PAID_NOT_SERVED and now is Delivery.ACCEPTED:
        detail = f"{row.invoice.origin} served {row.id} late"
        yield Clear(unserved_subject(row.id), {"detail": detail, "payment": row.id})


def learn_accepted(unit: Unit, row: PaymentRow, depth: int, now_ms: int) -> None:
    """The merchant accepted a proof at this depth: present the next one first at that depth."""
    if row.invoice.origin is None:
        return
    before = merchants.readiness(unit.conn, row.invoice.origin)
    after = before.after_accepted(depth, events.last_pending_depth(unit.conn, row.id))
    if after != before:
        merchants.set_readiness(unit, row.invoice.origin, after)
        detail = {"merchant": row.invoice.origin, "payment": row.id, "depth": after.accepted_depth}
        writes.note(unit, None, "accepted_depth_learned", None, now_ms, detail)


def learn_refused_early(unit: Unit, row: PaymentRow, depth: int, why: str, now_ms: int) -> None:
    """The merchant refused a proof before `confirm_depth`: present none to it earlier from now on."""
    if row.invoice.origin is None:
        return
    readiness = merchants.readiness(unit.conn, row.invoice.origin)
    if not readiness.refused_early:
        merchants.set_readiness(unit, row.invoice.origin, replace(readiness, refused_early=True))
        detail = {"merchant": row.invoice.origin, "payment": row.id, "depth": depth, "why": why}
        writes.note(unit, None, "proof_refused_early", None, now_ms, detail)


def resume(unit: Unit, origin: str, by_app: str, now_ms: int) -> None:
    """Resume a merchant: it may be paid again, and its streak, readiness and alerts start anew."""
    if merchants.unserved_streak(unit.conn, origin) != UnservedStreak():
        merchants.set_unserved_streak(unit, origin, UnservedStreak())
        writes.note(unit, None, "merchant_resumed", None, now_ms, {"merchant": origin, "by": by_app})
    if merchants.readiness(unit.conn, origin) != MerchantReadiness():
        merchants.set_readiness(unit, origin, MerchantReadiness())
        writes.note(unit, None, "readiness_reset", None, now_ms, {"merchant": origin, "by": by_app})
    facts = {"detail": f"an operator resumed {origin}", "merchant": origin}
    for subject in (_subject(origin), _terms_subject(origin)):
        clear_alert(unit, subject, facts, now_ms)


def warn_of_terms(unit: Unit, origin: str, detail: str, now_ms: int) -> None:
    """Raise an alert, once: an invoice came again with other terms, by a merchant's error or tampering."""
    facts = {"detail": f"{origin}: {detail}", "merchant": origin}
    raise_alert(unit, "terms_changed", _terms_subject(origin), facts, now_ms)


def pin(unit: Unit, origin: str, new_pin: Pin, by_app: str, now_ms: int) -> None:
    """Pin an address at which a merchant may be paid."""
    if new_pin not in merchants.pins(unit.conn, origin):
        write(unit, (PinAddress(origin, new_pin, {"why": "operator", "by": by_app}),), now_ms)


def unpin(unit: Unit, rules: MerchantRules, origin: str, old_pin: Pin, by_app: str, now_ms: int) -> None:
    """Unpin an address. Refused: `not_found`; `last_pinned_address`: the next payment would pin any address."""
    if rules.first_use and not rules.from_file and merchants.pins(unit.conn, origin) == {old_pin}:
        raise Refused("last_pinned_address", f"{old_pin.address} is the only address pinned for {origin}")
    if not merchants.drop_pin(unit, origin, old_pin):
        raise Refused("not_found", f"{old_pin.address} is not a pinned {old_pin.role} address")
    detail = {"merchant": origin, "role": old_pin.role, "address": old_pin.address, "by": by_app}
    writes.note(unit, None, "address_unpinned", None, now_ms, detail)


def _subject(origin: str) -> str:
    return f"merchant:{origin}"


def _terms_subject(origin: str) -> str:
    return f"terms:{origin}"
