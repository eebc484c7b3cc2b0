"""Merchant rules: pinned addresses, price rises, unserved payments and payments in flight (B4, B5, D6, K1, K4)."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.aggregate import AgreedPriceRow
from payagent.core.merchant_rules import (
    GUARDS,
    InvoiceClaim,
    MerchantFacts,
    MerchantRules,
    Moment,
    Pin,
    check,
    claim_of,
    first_pins,
    must_stop,
)
from payagent.core.problems import PROBLEMS

TOKEN = "ab" * 28 + "55534454"
SHOP, PARTNER, THIEF = (Pin("pay_to", "addr_shop"), Pin("split", "addr_partner"), Pin("split", "addr_thief"))
PINNED = MerchantRules(first_use=True)


def asks(*pins: Pin, units: int = 100, asset: str = "lovelace", calls: int = 1) -> InvoiceClaim:
    return InvoiceClaim(pins or (SHOP,), asset, units, calls)


def codes(
    claim: InvoiceClaim, rules: MerchantRules, known: MerchantFacts, moment: Moment = Moment.PAYMENT
) -> list[str]:
    return [finding.code for finding in check(claim, rules, known, moment)]


def test_an_invoice_claim_has_the_addresses_and_the_total_of_the_outputs() -> None:
    outputs = [("pay_to", "addr_shop", TOKEN, 5), ("split", "addr_partner", TOKEN, 2)]
    assert claim_of(outputs, 4) == InvoiceClaim((SHOP, PARTNER), TOKEN, 7, 4)


def test_every_merchant_rule_has_an_entry_in_the_problem_table() -> None:
    assert {guard.code for guard in GUARDS} <= PROBLEMS.keys()


def test_a_merchant_without_rules_is_not_checked() -> None:
    known = MerchantFacts(frozenset({SHOP}), (agreed(1),), is_stopped=True, in_flight=10**6)
    assert codes(asks(THIEF, units=10**9), MerchantRules(), known) == []


class TestPins:
    def test_the_addresses_of_the_first_payment_are_pinned(self) -> None:
        claim = asks(SHOP, PARTNER)
        assert codes(claim, PINNED, MerchantFacts()) == []
        assert first_pins(claim, PINNED, MerchantFacts()) == (SHOP, PARTNER)
        known = MerchantFacts(frozenset(first_pins(claim, PINNED, MerchantFacts())))
        assert codes(claim, PINNED, known) == []
        assert first_pins(asks(THIEF), PINNED, known) == ()

    @pytest.mark.parametrize("pins", [(THIEF,), (SHOP, THIEF), (SHOP, PARTNER, THIEF)])
    def test_an_address_that_is_not_pinned_needs_approval(self, pins: tuple[Pin, ...]) -> None:
        (finding,) = check(asks(*pins), PINNED, MerchantFacts(frozenset({SHOP, PARTNER})))
        assert (finding.code, finding.asks) == ("address_not_pinned", True)
        assert "pays split addr_thief; pinned for this merchant are pay_to addr_shop, split addr_partner" in (
            finding.detail
        )

    def test_a_pinned_split_address_may_not_receive_the_price(self) -> None:
        """An address is pinned in its role: one that may get a share may not get the price."""
        known = MerchantFacts(frozenset({SHOP, PARTNER}))
        assert codes(asks(Pin("pay_to", PARTNER.address)), PINNED, known) == ["address_not_pinned"]

    def test_a_payment_to_a_subset_of_the_pinned_addresses_needs_no_approval(self) -> None:
        assert codes(asks(SHOP), PINNED, MerchantFacts(frozenset({SHOP, PARTNER}))) == []

    def test_addresses_in_the_config_turn_off_pinning_on_first_use(self) -> None:
        rules = MerchantRules(first_use=True, from_file=frozenset({SHOP}))
        assert codes(asks(SHOP), rules, MerchantFacts()) == []
        assert codes(asks(SHOP, PARTNER), rules, MerchantFacts()) == ["address_not_pinned"]
        assert first_pins(asks(SHOP, PARTNER), rules, MerchantFacts()) == ()
        assert codes(asks(SHOP, PARTNER), rules, MerchantFacts(frozenset({PARTNER}))) == []

    def test_nothing_is_pinned_while_pinning_is_off(self) -> None:
        assert first_pins(asks(SHOP), MerchantRules(), MerchantFacts()) == ()
        assert codes(asks(THIEF), MerchantRules(), MerchantFacts(frozenset({SHOP}))) == []


def agreed(units: int, calls: int = 1, asset: str = "lovelace") -> AgreedPriceRow:
    return AgreedPriceRow("GET", "/chat", asset, calls, units)


class TestPriceRise:
    @pytest.mark.parametrize(
        ("agreed_units", "percent", "units", "asks_somebody"),
        [
            (100, 25, 125, False),
            (100, 25, 126, True),
            (100, 25, 1, False),
            (1, 25, 1, False),
            (1, 25, 2, True),
            (3, 33, 3, False),
            (3, 33, 4, True),
            (100, 0, 100, False),
            (100, 0, 101, True),
            (10**18, 25, 1_250_000_000_000_000_000, False),
            (10**18, 25, 1_250_000_000_000_000_001, True),
            (None, 25, 10**18, False),
            (100, None, 10**18, False),
        ],
    )
    def test_a_price_rise_above_the_limit_needs_approval_and_one_at_the_limit_does_not(
        self, agreed_units: int | None, percent: int | None, units: int, asks_somebody: bool
    ) -> None:
        known = MerchantFacts(agreed=() if agreed_units is None else (agreed(agreed_units),))
        found = check(asks(units=units), MerchantRules(price_rise_percent_max=percent), known)
        assert [(one.code, one.asks) for one in found] == [("price_changed", True)] * asks_somebody

    @pytest.mark.parametrize(
        ("prices", "units", "calls", "asks_somebody"),
        [
            ([(100, 4)], 125, 4, False),
            ([(100, 4)], 126, 4, True),
            ([(100, 4)], 100, 3, True),
            ([(100, 4)], 93, 3, False),
            ([(100, 4)], 94, 3, True),
            ([(100, 4)], 31, 1, False),
            ([(100, 4)], 32, 1, True),
            ([(100, 4)], 125, 10**9, False),
            ([(100, 4)], 126, 10**9, True),
            ([(100, 1)], 200, 2, True),
            ([(100, 4), (40, 1)], 100, 4, False),
            ([(100, 4), (40, 1)], 50, 1, False),
            ([(100, 4), (40, 1)], 51, 1, True),
            ([(100, 4), (40, 1)], 126, 4, True),
        ],
    )
    def test_a_batch_price_is_compared_in_total_and_per_call(
        self, prices: list[tuple[int, int]], units: int, calls: int, asks_somebody: bool
    ) -> None:
        known = MerchantFacts(agreed=tuple(agreed(*price) for price in prices))
        found = check(asks(units=units, calls=calls), MerchantRules(price_rise_percent_max=25), known)
        assert [one.code for one in found] == ["price_changed"] * asks_somebody

    @pytest.mark.parametrize(
        ("asset", "told"),
        [
            (
                "lovelace",
                "it asks for 9.77 ADA for 4 calls, over 25 % more than the agreed price: 2 ADA for 1 call",
            ),
            (
                TOKEN,
                f"it asks for 9770000 units of {TOKEN} for 4 calls, over 25 % more than the agreed price: "
                f"2000000 units of {TOKEN} for 1 call",
            ),
        ],
    )
    def test_the_finding_shows_the_new_price_and_the_agreed_one(self, asset: str, told: str) -> None:
        known = MerchantFacts(agreed=(agreed(2_000_000, asset=asset),))
        (found,) = check(
            asks(units=9_770_000, asset=asset, calls=4), MerchantRules(price_rise_percent_max=25), known
        )
        assert found.detail == told

    def test_a_price_in_a_new_asset_needs_approval(self) -> None:
        rules, prices = MerchantRules(price_rise_percent_max=25), (agreed(2_000_000), agreed(3, 2, "cd" * 28))
        (found,) = check(asks(units=1, asset=TOKEN), rules, MerchantFacts(agreed=prices))
        assert (found.code, found.asks) == ("price_changed", True)
        assert found.detail == (
            f"it asks for 1 units of {TOKEN} for 1 call; the agreed price is in another asset: "
            f"2 ADA for 1 call, 3 units of {'cd' * 28} for 2 calls"
        )
        assert (
            check(asks(units=1, asset=TOKEN), rules, MerchantFacts(agreed=(*prices, agreed(1, asset=TOKEN)))) == ()
        )

    @given(*[st.integers(1, 2**63 - 1)] * 2, *[st.integers(1, 10**9)] * 2, st.integers(0, 10_000))
    def test_no_rounding_lets_a_higher_price_through(
        self, known_units: int, units: int, known_calls: int, calls: int, percent: int
    ) -> None:
        known = MerchantFacts(agreed=(agreed(known_units, known_calls),))
        found = check(asks(units=units, calls=calls), MerchantRules(price_rise_percent_max=percent), known)
        most = Fraction(100 + percent, 100)
        is_more = units > known_units * most
        assert bool(found) == (is_more or Fraction(units, calls) > Fraction(known_units, known_calls) * most)


class TestStoppedMerchant:
    @pytest.mark.parametrize(("unserved_streak", "stops"), [(0, False), (2, False), (3, True), (4, True)])
    def test_a_merchant_is_stopped_after_the_configured_unserved_streak(
        self, unserved_streak: int, stops: bool
    ) -> None:
        assert must_stop(MerchantRules(stop_after_unserved=3), unserved_streak) is stops
        assert not must_stop(MerchantRules(), unserved_streak)

    @pytest.mark.parametrize("moment", Moment)
    def test_nothing_is_signed_for_a_stopped_merchant_at_any_moment(self, moment: Moment) -> None:
        (found,) = check(asks(), MerchantRules(stop_after_unserved=3), MerchantFacts(is_stopped=True), moment)
        assert (found.code, found.asks) == ("merchant_stopped", False)
        assert codes(asks(), MerchantRules(stop_after_unserved=3), MerchantFacts(), moment) == []


class TestPaymentsInFlight:
    @pytest.mark.parametrize(("in_flight", "expected"), [(0, []), (9, []), (10, ["merchant_in_flight_limit"])])
    def test_a_payment_above_the_in_flight_limit_is_refused(self, in_flight: int, expected: list[str]) -> None:
        assert (
            codes(asks(), MerchantRules(payments_in_flight_max=10), MerchantFacts(in_flight=in_flight)) == expected
        )
        assert codes(asks(), MerchantRules(), MerchantFacts(in_flight=in_flight)) == []

    @pytest.mark.parametrize("moment", [Moment.NEXT_INVOICE, Moment.SAME_TERMS])
    def test_a_payment_in_flight_does_not_count_against_itself(self, moment: Moment) -> None:
        assert codes(asks(), MerchantRules(payments_in_flight_max=1), MerchantFacts(in_flight=1), moment) == []


def test_terms_that_were_already_agreed_to_are_not_checked_again() -> None:
    known = MerchantFacts(frozenset({SHOP}), (agreed(1),))
    rules = MerchantRules(first_use=True, price_rise_percent_max=0)
    assert codes(asks(THIEF), rules, known, Moment.NEXT_INVOICE) == ["address_not_pinned", "price_changed"]
    assert codes(asks(THIEF), rules, known, Moment.SAME_TERMS) == []


PINS = st.sets(
    st.builds(Pin, st.sampled_from(["pay_to", "split"]), st.sampled_from("abcd")), min_size=1, max_size=6
)


@given(PINS, st.frozensets(st.sampled_from([Pin("pay_to", "a"), Pin("split", "b")])), PINS, st.booleans())
def test_only_pinned_or_first_addresses_are_paid_without_approval(
    paid: set[Pin], from_file: frozenset[Pin], had: set[Pin], is_first: bool
) -> None:
    """Whatever came before, an address paid without approval is pinned or from the first payment."""
    rules, known = (
        MerchantRules(first_use=True, from_file=from_file),
        MerchantFacts(frozenset() if is_first else frozenset(had)),
    )
    claim = asks(*sorted(paid))
    may_be_paid = from_file | known.pins | set(first_pins(claim, rules, known))
    assert bool(check(claim, rules, known)) == (not paid <= may_be_paid)
