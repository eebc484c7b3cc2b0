"""Which offer of a 402 is paid. It is chosen before the lookup, and again in each commit.

Never: writes; reserves.
"""

from dataclasses import replace
from enum import IntEnum

from payagent.agent.base.requests import PaymentIntent
from payagent.agent.commits.reservation import Reservation
from payagent.agent.commits.rules import PaymentRules
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit


class OfferOutcome(IntEnum):
    """What would become of an offer, best first."""

    NOW = 0
    SOON = 1
    """It can be paid once pending change is available."""
    NEEDS_APPROVAL = 2
    REFUSED = 3


def choose_offer(reservation: Reservation, unit: Unit, intent: PaymentIntent, now_ms: int) -> PaymentIntent:
    """The intent with the first offer that is within limits, payable now and needs no approval.

    If there is none: the first that is payable once change confirms, then the first that needs an approval,
    then the first.
    """
    chosen, best = intent.offers[0], OfferOutcome.REFUSED
    for offer in intent.offers if len(intent.offers) > 1 else ():
        outcome = _outcome_of(reservation, unit, offer, intent, now_ms)
        if outcome < best:
            chosen, best = offer, outcome
        if best is OfferOutcome.NOW:
            break
    if not chosen.has_own_id:
        chosen = replace(chosen, invoice_id=f"{chosen.invoice_id}-{intent.ids.payment}")
    return replace(intent, invoice=chosen)


def _outcome_of(
    reservation: Reservation, unit: Unit, offer: Invoice, intent: PaymentIntent, now_ms: int
) -> OfferOutcome:
    """The outcome of an offer by its full cost now, with the fee and the min-ADA beside a token."""
    candidate, rules = replace(intent, invoice=offer), reservation.rules
    try:
        plan, _ = reservation.decide(unit, candidate, None, offer.expires_at_ms, now_ms)
        reasons = rules.reasons(unit.conn, candidate, offer, plan.spend)
    except Refused as refusal:
        if refusal.code != "funds_pending":
            return OfferOutcome.REFUSED
        is_let_through = _is_let_through(rules, unit.conn, offer, intent, now_ms)
        return OfferOutcome.SOON if is_let_through else OfferOutcome.NEEDS_APPROVAL
    return OfferOutcome.NEEDS_APPROVAL if reasons else OfferOutcome.NOW


def wants_utxos(rules: PaymentRules, conn: Connection, intent: PaymentIntent, now_ms: int) -> bool:
    """Whether admission would reserve UTxOs now, neither refusing nor requesting an approval."""
    return any(_is_let_through(rules, conn, offer, intent, now_ms) for offer in intent.offers)


def _is_let_through(
    rules: PaymentRules, conn: Connection, offer: Invoice, intent: PaymentIntent, now_ms: int
) -> bool:
    """Whether limits and merchant rules allow the offer's own amount without an approval."""
    spend = {offer.asset: offer.total_units}
    try:
        rules.require_within_limits(conn, intent, spend, offer.asset, now_ms)
        return not rules.reasons(conn, intent, offer, spend)
    except Refused:
        return False
