"""The guards: does what a merchant asks fit what is known of that merchant? Pure decisions over plain values.

Limits bound how much is spent; guards look at whom it goes to and what for: at the addresses that the merchant was
paid at before, at what the same call cost before, at whether it served what was paid, at how many payments to it
are under way. A guard is a row of GUARDS. What is known is read inside the write transaction that places the hold.

May import: the standard library, core.invoice, core.money, core.findings. Never: reads a clock or a database;
takes a part of an address for the whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from payagent.core.findings import Finding
from payagent.core.invoice import Role
from payagent.core.money import format_amount


class Pin(NamedTuple):
    """An address that a merchant may be paid at, in that role: the text of all its bytes, stake part and all."""

    role: Role
    address: str


Pins = frozenset[Pin]


class InvoiceClaim(NamedTuple):
    """What a merchant asks for: whom it wants paid, so many units of one asset, for so many calls."""

    pins: tuple[Pin, ...]
    asset: str
    units: int
    calls: int


class Agreed(NamedTuple):
    """A price that was agreed to for a call: so many units of an asset for so many calls at once."""

    asset: str
    units: int
    calls: int


@dataclass(frozen=True, slots=True)
class MerchantRules:
    """What the operator set for a merchant; None and False: that guard does not look.

    `first_use`: what is paid first is what may be paid from then on. `filed`: addresses of the config; where there
    are any, nothing is learnt by use. `drift_percent`: how much above the price that was agreed to one may be.
    `stop_after`: so many payments in a row that it did not serve. `in_flight_max`: payments that are on their way.
    """

    first_use: bool = False
    filed: Pins = frozenset()
    drift_percent: int | None = None
    stop_after: int | None = None
    in_flight_max: int | None = None


@dataclass(frozen=True, slots=True)
class MerchantFacts:
    """What is known of a merchant. `pins` are those beside the config's.

    `agreed`: every price that was agreed to for this call; none of one that was never paid.
    """

    pins: Pins = frozenset()
    agreed: tuple[Agreed, ...] = ()
    is_stopped: bool = False
    in_flight: int = 0


class Moment(StrEnum):
    """What is decided on: a payment; another invoice for one that is lost; the same terms for it once more."""

    PAYMENT = "payment"
    NEXT_INVOICE = "next_invoice"
    SAME_TERMS = "same_terms"


class MerchantRule(NamedTuple):
    """One row: the code of its finding, whether a person may allow it, when it looks, and at what.

    `find` gives what speaks against the claim, in words; None: nothing does.
    """

    code: str
    asks: bool
    moments: tuple[Moment, ...]
    find: Callable[[InvoiceClaim, MerchantRules, MerchantFacts], str | None]


def claim_of(outputs: Iterable[tuple[Role, str, str, int]], calls: int) -> InvoiceClaim:
    """The claim of an invoice's outputs, each as its role, address, asset and units; all are of one asset."""
    paid = tuple(outputs)
    pins = tuple(Pin(output[0], output[1]) for output in paid)
    return InvoiceClaim(pins, paid[0][2], sum(output[3] for output in paid), calls)


def first_pins(claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts) -> tuple[Pin, ...]:
    """The addresses that a payment makes those of its merchant, being the first."""
    is_first = rules.first_use and not rules.filed and not known.pins
    return claim.pins if is_first else ()


def _stopped(_claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts) -> str | None:
    if rules.stop_after is None or not known.is_stopped:
        return None
    return "nothing is bought from this merchant any more: it took money and did not serve"


def _crowded(_claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts) -> str | None:
    if rules.in_flight_max is None or known.in_flight < rules.in_flight_max:
        return None
    return f"{known.in_flight} payments to this merchant are on their way, {rules.in_flight_max} are the most"


def _not_pinned(claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts) -> str | None:
    pinned = rules.filed | known.pins
    new = [pin for pin in claim.pins if pin not in pinned]
    if not (rules.filed or rules.first_use) or not pinned or not new:
        return None
    return f"it pays {_named(new)}; known of this merchant are {_named(sorted(pinned))}"


def _named(pins: Iterable[Pin]) -> str:
    return ", ".join(f"{pin.role} {pin.address}" for pin in pins)


def _drifted(claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts) -> str | None:
    """How many calls it buys is the merchant's word, so that a price is measured by itself and by each call.

    In another asset than those that were agreed to, nothing says what the call may cost.
    """
    percent = rules.drift_percent
    if percent is None or not known.agreed:
        return None
    prices = [one for one in known.agreed if one.asset == claim.asset]
    if not prices:
        return f"it asks {_cost(claim)}; what was agreed to is of another asset: {_costs(known.agreed)}"
    most, asked = 100 + percent, 100 * claim.units
    in_all = any(asked <= most * one.units for one in prices)
    by_call = any(asked * one.calls <= most * one.units * claim.calls for one in prices)
    if in_all and by_call:
        return None
    return f"it asks {_cost(claim)}, over {percent} % more than what was agreed to: {_costs(prices)}"


def _costs(prices: Iterable[Agreed]) -> str:
    return ", ".join(map(_cost, prices))


def _cost(price: InvoiceClaim | Agreed) -> str:
    return f"{format_amount(price.asset, price.units)} for {price.calls} {'call' if price.calls == 1 else 'calls'}"


_ANY = tuple(Moment)
_NEW_TERMS = (Moment.PAYMENT, Moment.NEXT_INVOICE)

GUARDS = (
    MerchantRule("merchant_stopped", False, _ANY, _stopped),
    MerchantRule("merchant_busy", False, (Moment.PAYMENT,), _crowded),
    MerchantRule("address_not_pinned", True, _NEW_TERMS, _not_pinned),
    MerchantRule("price_drifted", True, _NEW_TERMS, _drifted),
)
"""Every guard, those first that ask nobody."""


def look(
    claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts, moment: Moment = Moment.PAYMENT
) -> tuple[Finding, ...]:
    """What speaks against a claim, by what is known of its merchant."""
    return tuple(
        Finding(guard.code, detail, guard.asks)
        for guard in GUARDS
        if moment in guard.moments and (detail := guard.find(claim, rules, known)) is not None
    )


def must_stop(rules: MerchantRules, unserved_streak: int) -> bool:
    """Whether a merchant that left so many payments in a row unserved is not to be paid any more."""
    return rules.stop_after is not None and unserved_streak >= rules.stop_after
