"""Merchant rules: check an invoice against what payagent knows about its merchant.

Limits bound how much is spent. These rules check whom it is paid to and for what: pinned addresses, price rises,
the unserved streak, and payments in flight. Each rule is a row of GUARDS. The agent reads the facts in the write
transaction that places the hold.

Never: reads a clock or a database; compares only a part of an address.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from payagent.core.aggregate import AgreedPriceRow
from payagent.core.findings import Finding
from payagent.core.invoice import Role
from payagent.core.money import format_amount


class Pin(NamedTuple):
    """An address that may be paid in a role. The address is the full text, stake part included."""

    role: Role
    address: str


Pins = frozenset[Pin]


class InvoiceClaim(NamedTuple):
    """What an invoice claims: addresses to pay, units of one asset, number of calls."""

    pins: tuple[Pin, ...]
    asset: str
    units: int
    calls: int


@dataclass(frozen=True, slots=True)
class MerchantRules:
    """The operator's settings for a merchant. None or False turns a rule off."""

    first_use: bool = False  # the first payment pins the merchant's addresses
    from_file: Pins = frozenset()  # addresses pinned in the config file; if there are any, payments pin no others
    price_rise_percent_max: int | None = None  # the allowed rise over an agreed price
    stop_after_unserved: int | None = None  # stop paying after this many unserved payments in a row
    payments_in_flight_max: int | None = None  # the most payments in flight at once


@dataclass(frozen=True, slots=True)
class MerchantFacts:
    """What payagent knows about a merchant.

    `pins`: addresses pinned outside the config file.
    `agreed`: every price agreed to for this call; empty if it was never paid.
    """

    pins: Pins = frozenset()
    agreed: Sequence[AgreedPriceRow] = ()
    is_stopped: bool = False
    in_flight: int = 0


class Moment(StrEnum):
    """What is being decided: a new payment, another invoice for a lost one, or the same terms again."""

    PAYMENT = "payment"
    NEXT_INVOICE = "next_invoice"
    SAME_TERMS = "same_terms"


class MerchantRule(NamedTuple):
    """One rule: the code of its finding, whether an approval can override it, and when it applies.

    `find` returns the detail of the finding, or None if the rule passes.
    """

    code: str
    asks: bool
    moments: tuple[Moment, ...]
    find: Callable[[InvoiceClaim, MerchantRules, MerchantFacts], str | None]


def claim_of(outputs: Iterable[tuple[Role, str, str, int]], calls: int) -> InvoiceClaim:
    """Build the claim from outputs given as (role, address, asset, units), all of one asset."""
    paid = tuple(outputs)
    pins = tuple(Pin(output[0], output[1]) for output in paid)
    return InvoiceClaim(pins, paid[0][2], sum(output[3] for output in paid), calls)


def first_pins(claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts) -> tuple[Pin, ...]:
    """Return the addresses to pin if this is the merchant's first payment; empty otherwise."""
    is_first = rules.first_use and not rules.from_file and not facts.pins
    return claim.pins if is_first else ()


def _stopped(_claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts) -> str | None:
    if rules.stop_after_unserved is None or not facts.is_stopped:
        return None
    return "payagent buys nothing more from this merchant: it took money and did not serve"


def _over_in_flight_limit(_claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts) -> str | None:
    if rules.payments_in_flight_max is None or facts.in_flight < rules.payments_in_flight_max:
        return None
    return f"payments to this merchant in flight: {facts.in_flight}; at most {rules.payments_in_flight_max} may be"


def _not_pinned(claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts) -> str | None:
    pinned = rules.from_file | facts.pins
    new = [pin for pin in claim.pins if pin not in pinned]
    if not (rules.from_file or rules.first_use) or not pinned or not new:
        return None
    return f"it pays {_pins_text(new)}; pinned for this merchant are {_pins_text(sorted(pinned))}"


def _pins_text(pins: Iterable[Pin]) -> str:
    return ", ".join(f"{pin.role} {pin.address}" for pin in pins)


def _price_changed(claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts) -> str | None:
    """Compare both the whole price and the price per call, because the merchant states the number of calls.

    A price in an asset that has no agreed price is always a finding.
    """
    percent = rules.price_rise_percent_max
    if percent is None or not facts.agreed:
        return None
    prices = [price for price in facts.agreed if price.asset == claim.asset]
    if not prices:
        return f"it asks for {_cost(claim)}; the agreed price is in another asset: {_costs(facts.agreed)}"
    factor, units_x100 = 100 + percent, 100 * claim.units
    is_total_within = any(units_x100 <= factor * price.units for price in prices)
    is_call_within = any(units_x100 * price.calls <= factor * price.units * claim.calls for price in prices)
    if is_total_within and is_call_within:
        return None
    return f"it asks for {_cost(claim)}, over {percent} % more than the agreed price: {_costs(prices)}"


def _costs(prices: Iterable[AgreedPriceRow]) -> str:
    return ", ".join(map(_cost, prices))


def _cost(price: InvoiceClaim | AgreedPriceRow) -> str:
    return f"{format_amount(price.asset, price.units)} for {price.calls} {'call' if price.calls == 1 else 'calls'}"


_ANY = tuple(Moment)
_NEW_TERMS = (Moment.PAYMENT, Moment.NEXT_INVOICE)

GUARDS = (
    MerchantRule("merchant_stopped", False, _ANY, _stopped),
    MerchantRule("merchant_in_flight_limit", False, (Moment.PAYMENT,), _over_in_flight_limit),
    MerchantRule("address_not_pinned", True, _NEW_TERMS, _not_pinned),
    MerchantRule("price_changed", True, _NEW_TERMS, _price_changed),
)
"""All rules. Rules that no approval can override come first."""


def check(
    claim: InvoiceClaim, rules: MerchantRules, facts: MerchantFacts, moment: Moment = Moment.PAYMENT
) -> tuple[Finding, ...]:
    """Return the findings of all rules that apply at `moment`."""
    return tuple(
        Finding(guard.code, detail, guard.asks)
        for guard in GUARDS
        if moment in guard.moments and (detail := guard.find(claim, rules, facts)) is not None
    )


def must_stop(rules: MerchantRules, unserved_streak: int) -> bool:
    """Whether the unserved streak has reached `stop_after_unserved`, so the merchant must not be paid any more."""
    return rules.stop_after_unserved is not None and unserved_streak >= rules.stop_after_unserved
