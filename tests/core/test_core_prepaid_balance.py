"""Prepaid balances: units bought, used and taken back in any order."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from payagent.core.ledger import use as book
from payagent.core.prepaid_balance import Cost, PrepaidBalance, average, buy, take_back, use


@dataclass
class Plain:
    """A simple model: what was bought, and how many units were served."""

    lots: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    served: int = 0


lot = st.tuples(
    st.integers(1, 200),
    st.dictionaries(st.sampled_from(["lovelace", "token"]), st.integers(1, 10**12), min_size=1),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("buy"), lot), st.tuples(st.just("use"), st.integers(1, 50)), st.just(("take_back", 0))
    ),
    max_size=40,
)


@given(steps)
def test_the_balance_is_bought_minus_used_and_never_negative(taken: list[tuple[str, object]]) -> None:
    balance, plain = PrepaidBalance(), Plain()
    for kind, what in taken:
        if kind == "buy":
            plain.lots.append(what)  # type: ignore[arg-type]
            balance = buy(balance, *plain.lots[-1])
        elif kind == "use":
            plain.served += what  # type: ignore[operator]
            balance = use(balance, what)  # type: ignore[arg-type]
        elif plain.lots:
            balance = take_back(balance, *plain.lots.pop(len(plain.lots) // 2))
        bought = sum(count for count, _ in plain.lots)
        assert (balance.bought, balance.used) == (bought, min(bought, plain.served))
        assert balance.unexplained == plain.served - balance.used
        assert balance.left == balance.bought - balance.used >= 0
        for asset, cost in balance.costs.items():
            assert cost.bought == sum(paid.get(asset, 0) for _, paid in plain.lots)
            assert 0 <= cost.used <= cost.bought
            assert balance.left or cost.used == cost.bought, "all units are used, so all of the cost must be"


@given(st.integers(1, 500), st.integers(0, 10**12))
def test_the_cost_of_a_batch_is_spread_evenly_over_its_calls(count: int, price: int) -> None:
    balance = buy(PrepaidBalance(), count, {"lovelace": price} if price else {})
    shares = []
    for _ in range(count):
        after = use(balance, 1)
        shares.append(after.costs.get("lovelace", Cost()).used - balance.costs.get("lovelace", Cost()).used)
        balance = after
    assert sum(shares) == price
    assert max(shares) - min(shares) <= 1


def test_a_balance_lost_in_a_rollback_returns_with_the_block() -> None:
    bought = use(buy(PrepaidBalance(), 100, {"lovelace": 10_000_000}), 40)
    lost = take_back(bought, 100, {"lovelace": 10_000_000})
    assert (lost.bought, lost.used, lost.unexplained, lost.left) == (0, 0, 40, 0)
    assert lost.costs["lovelace"] == Cost(0, 0)
    assert buy(lost, 100, {"lovelace": 10_000_000}) == bought


def test_a_balance_in_ada_is_used_up_by_the_cost_of_each_call() -> None:
    balance = use(buy(PrepaidBalance(), 5_000_000, {"lovelace": 5_000_000}), 1_500_000)
    assert balance.costs["lovelace"] == Cost(5_000_000, 1_500_000)
    over = use(balance, 4_000_000)
    assert (over.left, over.unexplained) == (0, 500_000)


def test_used_prepaid_units_are_booked_from_prepaid_to_merchant() -> None:
    assert book("https://m.example", {"lovelace": 0}) is None
    entry = book("https://m.example", {"lovelace": 7})
    assert entry is not None
    assert {(p.account, p.units) for p in entry.postings} == {
        ("prepaid:https://m.example", -7),
        ("merchant:https://m.example", 7),
    }
    assert entry.kind == "use"
    back = book("https://m.example", {"lovelace": -7})
    assert back is not None
    assert back.kind == "use_reversed"


def test_a_use_costs_the_average_of_what_is_left_or_of_all_when_nothing_is_left() -> None:
    balance = buy(PrepaidBalance(), 100, {"lovelace": 1_000, "token": 50})
    assert average(balance, 3) == {"lovelace": 30, "token": 1}
    assert average(use(balance, 100), 3) == {"lovelace": 30, "token": 1}
    assert average(PrepaidBalance(), 3) == {}
