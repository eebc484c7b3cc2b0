"""Upkeep: which UTxOs are split or gathered, by demand, by the wallet's UTxOs and by the fee budget."""

from dataclasses import replace

import pytest

from payagent.core.utxo_upkeep import (
    ASSET_LOVELACE,
    AT_ONCE_MS,
    FEE_LOVELACE,
    GATHERED_LEAST,
    GATHERED_MOST,
    KEPT_LOVELACE,
    UTXOS_MAX,
    Budget,
    Demand,
    Gather,
    Held,
    RecentPayment,
    Split,
    decide,
    demand_of,
    room,
)

ADA = 1_000_000
DEEP = 8
BUDGET = Budget(left_lovelace=2 * ADA, base_lovelace=155_381, byte_lovelace=44)
TWO_ADA = Demand(typical_lovelace=2 * ADA, largest_lovelace=2 * ADA)
QUIET = Demand(is_quiet=True)


def utxo(
    lovelace: int, left: int = DEEP + 1, *, assets: str = "", in_block: bool = True, ref: str = "c#0"
) -> Held:
    return Held(ref, lovelace, left, frozenset(assets), in_block)


def dust(count: int, lovelace: int = 1_500_000, assets: str = "") -> list[Held]:
    return [utxo(lovelace, 0, assets=assets, ref=f"{number:064x}#0") for number in range(count)]


class TestDemand:
    def test_without_recent_payments_there_is_no_demand(self) -> None:
        assert demand_of([], [], is_quiet=True) == Demand(is_quiet=True)

    def test_payments_that_begin_within_a_minute_count_as_simultaneous(self) -> None:
        begun = [
            RecentPayment(at_ms, ADA) for at_ms in (0, AT_ONCE_MS - 1, AT_ONCE_MS, AT_ONCE_MS + 1, 5 * AT_ONCE_MS)
        ]
        assert demand_of(begun, [], is_quiet=False).at_once == 3

    def test_payments_refused_for_lack_of_a_utxo_count_as_demand_without_a_price(self) -> None:
        begun = [RecentPayment(0, 3 * ADA), RecentPayment(1, None), RecentPayment(2, None, merchant_submits=True)]
        demand = demand_of(begun, [], is_quiet=False)
        assert (demand.at_once, demand.merchant_submits_at_once, demand.typical_lovelace) == (3, 1, 3 * ADA)

    def test_merchant_submitted_payments_that_found_utxos_need_no_more(self) -> None:
        begun = [RecentPayment(0, ADA, merchant_submits=True), RecentPayment(1, ADA, merchant_submits=True)]
        assert demand_of(begun, [], is_quiet=False).merchant_submits_at_once == 0
        assert (
            demand_of(
                [*begun, RecentPayment(2, None, merchant_submits=True)], [], is_quiet=False
            ).merchant_submits_at_once
            == 3
        )

    def test_the_typical_payment_is_the_lower_median(self) -> None:
        begun = [RecentPayment(0, lovelace) for lovelace in (9, 1, 4, 2)]
        demand = demand_of(begun, [], is_quiet=False)
        assert (demand.typical_lovelace, demand.largest_lovelace) == (2, 9)

    def test_waiting_payments_decide_the_typical_amount(self) -> None:
        demand = demand_of([RecentPayment(0, 9 * ADA)], [2 * ADA, 3 * ADA, 3 * ADA], is_quiet=False)
        assert (demand.waiting, demand.typical_lovelace, demand.largest_lovelace) == (3, 3 * ADA, 9 * ADA)


class TestSplitForWaitingPayments:
    def test_one_large_utxo_is_split_into_the_maximum_number(self) -> None:
        change = utxo(9_998 * ADA, DEEP, in_block=False)
        split = decide(replace(TWO_ADA, waiting=999), [change], [], BUDGET)
        assert split == Split("c#0", UTXOS_MAX, KEPT_LOVELACE + DEEP * (2 * ADA + FEE_LOVELACE))

    def test_a_few_waiting_payments_get_one_utxo_each(self) -> None:
        split = decide(replace(TWO_ADA, waiting=20), [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 20

    def test_a_utxo_whose_change_can_be_chained_is_not_split(self) -> None:
        assert decide(replace(TWO_ADA, waiting=DEEP), [utxo(9_998 * ADA, DEEP)], [], BUDGET) is None

    def test_a_wallet_with_enough_utxos_is_not_split(self) -> None:
        utxos = [utxo(40 * ADA, ref=f"c#{index}") for index in range(3)]
        assert decide(replace(TWO_ADA, waiting=27), utxos, [], BUDGET) is None

    def test_the_utxo_that_gains_most_is_split(self) -> None:
        utxos = [utxo(500 * ADA, 3, ref="deep"), utxo(400 * ADA, 9, ref="shallow"), utxo(9 * ADA, 9, ref="small")]
        split = decide(replace(TWO_ADA, waiting=500), utxos, [], BUDGET)
        assert isinstance(split, Split)
        assert split.ref == "shallow"

    def test_a_utxo_with_no_unconfirmed_ancestors_left_is_not_split(self) -> None:
        assert decide(replace(TWO_ADA, waiting=50), [utxo(9_998 * ADA, 1)], [], BUDGET) is None
        assert decide(replace(TWO_ADA, waiting=50), [utxo(9_998 * ADA, 0)], [], BUDGET) is None

    def test_a_wallet_its_payments_will_use_up_is_not_split(self) -> None:
        assert decide(replace(TWO_ADA, waiting=50), [utxo(20 * ADA)], [], BUDGET) is None

    def test_each_new_utxo_holds_several_payments(self) -> None:
        split = decide(replace(TWO_ADA, waiting=50), [utxo(60 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 7
        assert split.each_lovelace >= KEPT_LOVELACE + 3 * (2 * ADA + FEE_LOVELACE)
        assert split.count * split.each_lovelace < 60 * ADA

    def test_each_new_utxo_holds_the_largest_payment_when_funds_allow(self) -> None:
        demand = replace(TWO_ADA, waiting=20, largest_lovelace=90 * ADA)
        split = decide(demand, [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.each_lovelace == KEPT_LOVELACE + 90 * ADA + FEE_LOVELACE

    def test_the_fee_budget_limits_the_number_of_new_utxos(self) -> None:
        demand, utxos = replace(TWO_ADA, waiting=999), [utxo(9_998 * ADA)]
        split = decide(demand, utxos, [], replace(BUDGET, left_lovelace=400_000))
        assert isinstance(split, Split)
        assert 70 < split.count < 80
        assert decide(demand, utxos, [], replace(BUDGET, left_lovelace=170_000)) is None
        assert decide(demand, utxos, [], replace(BUDGET, left_lovelace=0)) is None

    def test_ada_that_tokens_need_is_not_split_off(self) -> None:
        mixed = utxo(KEPT_LOVELACE + 3 * ASSET_LOVELACE + ADA, assets="abc")
        assert decide(replace(TWO_ADA, waiting=5), [mixed], [], BUDGET) is None
        assert room(replace(TWO_ADA, waiting=5), [mixed]) == 0


class TestSplitInAdvance:
    def test_nothing_is_split_without_recent_payments(self) -> None:
        assert decide(Demand(), [utxo(9_998 * ADA)], [], BUDGET) is None
        assert decide(Demand(at_once=50), [utxo(9_998 * ADA)], [], BUDGET) is None

    def test_a_recent_burst_leads_to_as_many_utxos(self) -> None:
        split = decide(replace(TWO_ADA, at_once=40), [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 40

    def test_nothing_is_split_when_one_utxo_can_carry_the_burst(self) -> None:
        assert decide(replace(TWO_ADA, at_once=DEEP + 1), [utxo(9_998 * ADA)], [], BUDGET) is None

    def test_utxos_that_the_next_block_frees_are_not_split(self) -> None:
        utxos = [utxo(20 * ADA, index % 2, in_block=False, ref=f"c#{index}") for index in range(75)]
        assert decide(replace(TWO_ADA, at_once=900), utxos, [], BUDGET) is None
        large = utxo(9_998 * ADA, 7, in_block=False, ref="large")
        assert isinstance(decide(replace(TWO_ADA, at_once=900), [*utxos[1:40], large], [], BUDGET), Split)

    def test_each_merchant_submitted_payment_needs_its_own_utxo(self) -> None:
        demand = replace(TWO_ADA, at_once=2, merchant_submits_at_once=2)
        split = decide(demand, [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 2
        assert decide(demand, [utxo(20 * ADA), utxo(20 * ADA, 0, ref="to come")], [], BUDGET) is None

    def test_every_payment_needs_its_own_utxo_without_chaining(self) -> None:
        split = decide(replace(TWO_ADA, at_once=4), [utxo(9_998 * ADA, 1)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 4


class TestGatherDust:
    def test_dust_is_gathered_into_one_utxo_when_the_wallet_is_quiet(self) -> None:
        found = dust(GATHERED_LEAST)
        assert decide(QUIET, [], found, BUDGET) == Gather(tuple(one.ref for one in found))
        assert decide(Demand(), [], found, BUDGET) is None

    def test_too_few_dust_utxos_are_left_alone(self) -> None:
        assert decide(QUIET, [], dust(GATHERED_LEAST - 1), BUDGET) is None

    def test_one_transaction_gathers_a_limited_number_of_utxos(self) -> None:
        gathered = decide(QUIET, [], dust(GATHERED_MOST + 50), BUDGET)
        assert isinstance(gathered, Gather)
        assert len(gathered.refs) == GATHERED_MOST

    def test_a_utxo_that_can_pay_is_not_dust(self) -> None:
        assert decide(QUIET, [], dust(GATHERED_LEAST, 2 * ADA), BUDGET) is None

    def test_a_utxo_with_tokens_counts_as_dust_with_more_ada(self) -> None:
        assert isinstance(decide(QUIET, [], dust(GATHERED_LEAST, 2 * ADA, assets="a"), BUDGET), Gather)

    def test_many_assets_reduce_how_many_utxos_are_gathered(self) -> None:
        found = [
            Held(f"{number:064x}#0", 1_400_000, 0, frozenset({f"{number}", f"{number}b"})) for number in range(150)
        ]
        gathered = decide(QUIET, [], found, BUDGET)
        assert isinstance(gathered, Gather)
        assert 70 < len(gathered.refs) < 80

    def test_dust_is_not_gathered_when_little_ada_would_be_freed(self) -> None:
        found = [Held(f"{number:064x}#0", 1_300_000, 0, frozenset(map(str, range(4)))) for number in range(60)]
        assert isinstance(decide(QUIET, [], found, BUDGET), Gather)
        apart = [replace(one, assets=frozenset(f"{one.ref} {n}" for n in range(4))) for one in found[:55]]
        assert decide(QUIET, [], apart, BUDGET) is None

    def test_dust_is_not_gathered_when_the_fee_exceeds_the_budget(self) -> None:
        found = dust(GATHERED_LEAST)
        assert decide(QUIET, [], found, replace(BUDGET, left_lovelace=250_000)) is None

    @pytest.mark.parametrize("waiting", [0, 50])
    def test_a_split_comes_first(self, waiting: int) -> None:
        demand = replace(TWO_ADA, is_quiet=True, at_once=50, waiting=waiting)
        assert isinstance(decide(demand, [utxo(9_998 * ADA)], dust(90), BUDGET), Split)
