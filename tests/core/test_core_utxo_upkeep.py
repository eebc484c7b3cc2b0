"""Which coins are split or gathered: by what was wanted, what there is, and what may be spent on it."""

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
    def test_of_no_past_there_is_none(self) -> None:
        assert demand_of([], [], is_quiet=True) == Demand(is_quiet=True)

    def test_at_once_is_what_begins_within_a_minute_of_each_other(self) -> None:
        begun = [
            RecentPayment(at_ms, ADA) for at_ms in (0, AT_ONCE_MS - 1, AT_ONCE_MS, AT_ONCE_MS + 1, 5 * AT_ONCE_MS)
        ]
        assert demand_of(begun, [], is_quiet=False).at_once == 3

    def test_what_was_refused_for_lack_of_a_utxo_counts_and_has_no_price(self) -> None:
        begun = [RecentPayment(0, 3 * ADA), RecentPayment(1, None), RecentPayment(2, None, merchant_submits=True)]
        demand = demand_of(begun, [], is_quiet=False)
        assert (demand.at_once, demand.merchant_submits_at_once, demand.typical_lovelace) == (3, 1, 3 * ADA)

    def test_what_is_handed_over_and_found_utxos_wants_no_more(self) -> None:
        begun = [RecentPayment(0, ADA, merchant_submits=True), RecentPayment(1, ADA, merchant_submits=True)]
        assert demand_of(begun, [], is_quiet=False).merchant_submits_at_once == 0
        assert (
            demand_of(
                [*begun, RecentPayment(2, None, merchant_submits=True)], [], is_quiet=False
            ).merchant_submits_at_once
            == 3
        )

    def test_the_typical_one_is_the_lower_median(self) -> None:
        begun = [RecentPayment(0, lovelace) for lovelace in (9, 1, 4, 2)]
        demand = demand_of(begun, [], is_quiet=False)
        assert (demand.typical_lovelace, demand.largest_lovelace) == (2, 9)

    def test_those_who_wait_say_what_is_typical(self) -> None:
        demand = demand_of([RecentPayment(0, 9 * ADA)], [2 * ADA, 3 * ADA, 3 * ADA], is_quiet=False)
        assert (demand.waiting, demand.typical_lovelace, demand.largest_lovelace) == (3, 3 * ADA, 9 * ADA)


class TestASplitForThoseWhoWait:
    def test_one_large_utxo_becomes_as_many_as_a_split_makes(self) -> None:
        change = utxo(9_998 * ADA, DEEP, in_block=False)
        split = decide(replace(TWO_ADA, waiting=999), [change], [], BUDGET)
        assert split == Split("c#0", UTXOS_MAX, KEPT_LOVELACE + DEEP * (2 * ADA + FEE_LOVELACE))

    def test_few_who_wait_get_one_utxo_each(self) -> None:
        split = decide(replace(TWO_ADA, waiting=20), [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 20

    def test_what_can_be_chained_is_not_split(self) -> None:
        assert decide(replace(TWO_ADA, waiting=DEEP), [utxo(9_998 * ADA, DEEP)], [], BUDGET) is None

    def test_enough_utxos_are_not_split(self) -> None:
        utxos = [utxo(40 * ADA, ref=f"c#{index}") for index in range(3)]
        assert decide(replace(TWO_ADA, waiting=27), utxos, [], BUDGET) is None

    def test_the_utxo_that_gains_most_is_split(self) -> None:
        utxos = [utxo(500 * ADA, 3, ref="deep"), utxo(400 * ADA, 9, ref="shallow"), utxo(9 * ADA, 9, ref="small")]
        split = decide(replace(TWO_ADA, waiting=500), utxos, [], BUDGET)
        assert isinstance(split, Split)
        assert split.ref == "shallow"

    def test_a_utxo_at_the_end_of_the_depth_gains_nothing(self) -> None:
        assert decide(replace(TWO_ADA, waiting=50), [utxo(9_998 * ADA, 1)], [], BUDGET) is None
        assert decide(replace(TWO_ADA, waiting=50), [utxo(9_998 * ADA, 0)], [], BUDGET) is None

    def test_a_wallet_that_its_payments_use_up_gains_nothing(self) -> None:
        assert decide(replace(TWO_ADA, waiting=50), [utxo(20 * ADA)], [], BUDGET) is None

    def test_each_new_utxo_holds_several_payments(self) -> None:
        split = decide(replace(TWO_ADA, waiting=50), [utxo(60 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 7
        assert split.each_lovelace >= KEPT_LOVELACE + 3 * (2 * ADA + FEE_LOVELACE)
        assert split.count * split.each_lovelace < 60 * ADA

    def test_each_new_utxo_holds_the_largest_where_there_is_enough(self) -> None:
        demand = replace(TWO_ADA, waiting=20, largest_lovelace=90 * ADA)
        split = decide(demand, [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.each_lovelace == KEPT_LOVELACE + 90 * ADA + FEE_LOVELACE

    def test_the_fee_bounds_how_many(self) -> None:
        demand, utxos = replace(TWO_ADA, waiting=999), [utxo(9_998 * ADA)]
        split = decide(demand, utxos, [], replace(BUDGET, left_lovelace=400_000))
        assert isinstance(split, Split)
        assert 70 < split.count < 80
        assert decide(demand, utxos, [], replace(BUDGET, left_lovelace=170_000)) is None
        assert decide(demand, utxos, [], replace(BUDGET, left_lovelace=0)) is None

    def test_what_lies_under_tokens_stays_with_them(self) -> None:
        mixed = utxo(KEPT_LOVELACE + 3 * ASSET_LOVELACE + ADA, assets="abc")
        assert decide(replace(TWO_ADA, waiting=5), [mixed], [], BUDGET) is None
        assert room(replace(TWO_ADA, waiting=5), [mixed]) == 0


class TestASplitForLater:
    def test_without_a_past_there_is_none(self) -> None:
        assert decide(Demand(), [utxo(9_998 * ADA)], [], BUDGET) is None
        assert decide(Demand(at_once=50), [utxo(9_998 * ADA)], [], BUDGET) is None

    def test_a_burst_that_was_seen_leads_to_as_many_utxos(self) -> None:
        split = decide(replace(TWO_ADA, at_once=40), [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 40

    def test_what_a_utxo_can_carry_is_not_split(self) -> None:
        assert decide(replace(TWO_ADA, at_once=DEEP + 1), [utxo(9_998 * ADA)], [], BUDGET) is None

    def test_many_utxos_that_are_deep_already_are_as_good_as_new_with_the_next_block(self) -> None:
        utxos = [utxo(20 * ADA, index % 2, in_block=False, ref=f"c#{index}") for index in range(75)]
        assert decide(replace(TWO_ADA, at_once=900), utxos, [], BUDGET) is None
        large = utxo(9_998 * ADA, 7, in_block=False, ref="large")
        assert isinstance(decide(replace(TWO_ADA, at_once=900), [*utxos[1:40], large], [], BUDGET), Split)

    def test_what_is_handed_over_takes_a_utxo_each(self) -> None:
        demand = replace(TWO_ADA, at_once=2, merchant_submits_at_once=2)
        split = decide(demand, [utxo(9_998 * ADA)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 2
        assert decide(demand, [utxo(20 * ADA), utxo(20 * ADA, 0, ref="to come")], [], BUDGET) is None

    def test_without_chaining_too(self) -> None:
        split = decide(replace(TWO_ADA, at_once=4), [utxo(9_998 * ADA, 1)], [], BUDGET)
        assert isinstance(split, Split)
        assert split.count == 4


class TestGathering:
    def test_dust_becomes_one_utxo_in_quiet_times(self) -> None:
        found = dust(GATHERED_LEAST)
        assert decide(QUIET, [], found, BUDGET) == Gather(tuple(one.ref for one in found))
        assert decide(Demand(), [], found, BUDGET) is None

    def test_few_are_left_alone(self) -> None:
        assert decide(QUIET, [], dust(GATHERED_LEAST - 1), BUDGET) is None

    def test_so_many_fit(self) -> None:
        gathered = decide(QUIET, [], dust(GATHERED_MOST + 50), BUDGET)
        assert isinstance(gathered, Gather)
        assert len(gathered.refs) == GATHERED_MOST

    def test_a_utxo_that_can_pay_is_no_dust(self) -> None:
        assert decide(QUIET, [], dust(GATHERED_LEAST, 2 * ADA), BUDGET) is None

    def test_utxos_that_hold_tokens_may_hold_more(self) -> None:
        assert isinstance(decide(QUIET, [], dust(GATHERED_LEAST, 2 * ADA, assets="a"), BUDGET), Gather)

    def test_many_assets_fill_a_transaction(self) -> None:
        found = [
            Held(f"{number:064x}#0", 1_400_000, 0, frozenset({f"{number}", f"{number}b"})) for number in range(150)
        ]
        gathered = decide(QUIET, [], found, BUDGET)
        assert isinstance(gathered, Gather)
        assert 70 < len(gathered.refs) < 80

    def test_what_frees_little_is_left_alone(self) -> None:
        found = [Held(f"{number:064x}#0", 1_300_000, 0, frozenset(map(str, range(4)))) for number in range(60)]
        assert isinstance(decide(QUIET, [], found, BUDGET), Gather)
        apart = [replace(one, assets=frozenset(f"{one.ref} {n}" for n in range(4))) for one in found[:55]]
        assert decide(QUIET, [], apart, BUDGET) is None

    def test_the_fee_is_bounded(self) -> None:
        found = dust(GATHERED_LEAST)
        assert decide(QUIET, [], found, replace(BUDGET, left_lovelace=250_000)) is None

    @pytest.mark.parametrize("waiting", [0, 50])
    def test_a_split_comes_first(self, waiting: int) -> None:
        demand = replace(TWO_ADA, is_quiet=True, at_once=50, waiting=waiting)
        assert isinstance(decide(demand, [utxo(9_998 * ADA)], dust(90), BUDGET), Split)
