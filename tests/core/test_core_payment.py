"""The payment machine and the delivery machine: the tables themselves, and what must never be possible."""

import itertools

import pytest

from payagent.core.payment import (
    DELIVERIES,
    ENDED_WITHOUT_PAYING,
    NEVER_SIGNED,
    TRANSITIONS,
    Delivery,
    DeliveryEvent,
    Event,
    State,
    deliver,
    delivery_event,
    mermaid,
    move,
)
from payagent.core.problem import Refused

SIGNED_ONCE = set(State) - NEVER_SIGNED - {State.RECEIVED, State.AWAITING_APPROVAL, State.RESERVED}


def reachable(start: State, without: frozenset[Event] = frozenset()) -> set[State]:
    """Every state that can follow, by any events but those."""
    found, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for (state, event), after in TRANSITIONS.items():
            if state is here and event not in without and after not in found:
                found.add(after)
                todo.append(after)
    return found


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_moves_by_the_table_or_is_refused(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert move(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(Refused, match="illegal_transition"):
            move(state, event)


def test_every_state_is_reached_from_received() -> None:
    assert reachable(State.RECEIVED) == set(State)


def test_what_was_signed_is_never_rejected_or_denied() -> None:
    for state in SIGNED_ONCE:
        assert not reachable(state) & NEVER_SIGNED


def test_only_positive_evidence_ends_a_signed_payment_without_paying() -> None:
    for state in SIGNED_ONCE - {State.VOID}:
        assert not reachable(state, without=frozenset({Event.VOID})) & ENDED_WITHOUT_PAYING


def test_settled_rejected_and_denied_are_the_ends() -> None:
    ends = {state for state in State if not any(row[0] is state for row in TRANSITIONS)}
    assert ends == {State.SETTLED, State.REJECTED, State.DENIED}


def test_a_lost_block_reopens_confirmed_and_void_but_not_settled() -> None:
    assert move(State.CONFIRMED, Event.BLOCK_LOST) is State.IN_FLIGHT
    assert move(State.VOID, Event.BLOCK_LOST) is State.CANCELLING
    with pytest.raises(Refused):
        move(State.SETTLED, Event.BLOCK_LOST)


def test_nothing_is_signed_before_a_hold() -> None:
    before_sign = {state for (state, event) in TRANSITIONS if event is Event.SIGN}
    assert before_sign == {State.RESERVED, State.REPLACING}
    assert State.SIGNED not in reachable(State.RECEIVED, without=frozenset({Event.HOLD}))


@pytest.mark.parametrize(("delivery", "event"), list(itertools.product(Delivery, DeliveryEvent)))
def test_delivery_knows_every_event(delivery: Delivery, event: DeliveryEvent) -> None:
    assert deliver(delivery, event) is DELIVERIES[delivery, event]


def test_what_was_accepted_stays_accepted() -> None:
    assert {after for (before, _), after in DELIVERIES.items() if before is Delivery.ACCEPTED} == {
        Delivery.ACCEPTED
    }


@pytest.mark.parametrize(
    ("http_status", "state", "over", "event"),
    [
        (200, State.IN_FLIGHT, False, DeliveryEvent.ACCEPT),
        (204, State.CONFIRMED, True, DeliveryEvent.ACCEPT),
        (402, State.IN_FLIGHT, False, DeliveryEvent.PRESENT),
        (402, State.CONFIRMED, False, DeliveryEvent.PRESENT),
        (402, State.IN_FLIGHT, True, DeliveryEvent.PRESENT),
        (402, State.CONFIRMED, True, DeliveryEvent.GIVE_UP),
        (500, State.SETTLED, True, DeliveryEvent.GIVE_UP),
        (307, State.CONFIRMED, False, DeliveryEvent.PRESENT),
    ],
)
def test_a_retrys_status_means(http_status: int, state: State, over: bool, event: DeliveryEvent) -> None:
    assert delivery_event(http_status, state, over) is event


def test_the_diagram_has_every_row() -> None:
    drawn = mermaid()
    assert all(f"{state} --> {after}: {event}" in drawn for (state, event), after in TRANSITIONS.items())
