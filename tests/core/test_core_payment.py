"""The state machines of payment and delivery: their tables, and what must never be possible."""

import itertools
import re
from pathlib import Path

import pytest

from payagent.core.payment.machine import (
    AWAITING_SIGNATURE,
    CANCELLABLE,
    DELIVERIES,
    DELIVERIES_IN_WORDS,
    EFFECTS,
    ENDED_WITHOUT_PAYING,
    NEVER_SIGNED,
    ON_CHAIN,
    POSTED,
    SIGNED_UNPOSTED,
    STATES_IN_WORDS,
    WITHOUT_PROOF,
    Delivery,
    DeliveryEvent,
    Event,
    State,
    deliver,
    delivery_event,
    effect_of,
    next_state,
)
from payagent.core.problems import Refused

NEXT = {pair: row.next for pair, row in EFFECTS.items() if row.next is not None}
VOIDS = frozenset(event for event in Event if event.stored == "void")
PAGE = (Path(__file__).parents[2] / "docs/reference/payment-machine.md").read_text()
SIGNED_ONCE = set(State).difference(NEVER_SIGNED) - {State.RECEIVED, State.AWAITING_APPROVAL, State.RESERVED}


def reachable(start: State, without: frozenset[Event] = frozenset()) -> set[State]:
    """Every state reachable from `start` without the given events."""
    found, todo = {start}, [start]
    while todo:
        here = todo.pop()
        for (state, event), after in NEXT.items():
            if state is here and event not in without and after not in found:
                found.add(after)
                todo.append(after)
    return found


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_and_event_follows_the_table_or_is_refused(state: State, event: Event) -> None:
    if (state, event) in EFFECTS:
        assert effect_of(state, event) is EFFECTS[state, event]
    else:
        with pytest.raises(Refused, match="wrong_state"):
            effect_of(state, event)


def test_the_record_leads_where_the_table_does() -> None:
    """By the names of events in the ledger, where a handover is two events and `settle` of a void one is none."""
    for (state, event), row in EFFECTS.items():
        if row.through is not None:
            assert next_state(state, event.stored) is row.through
            assert next_state(row.through, "submit") is row.next
        elif row.next is not None:
            assert next_state(state, event.stored) is row.next
    assert next_state(State.VOID, "settle") is next_state(State.IN_FLIGHT, "submit") is None


def test_every_state_is_reached_from_received() -> None:
    assert reachable(State.RECEIVED) == set(State)


def test_a_signed_payment_is_never_rejected_or_denied() -> None:
    for state in SIGNED_ONCE:
        assert not reachable(state).intersection(NEVER_SIGNED)


def test_only_a_void_event_ends_a_signed_payment_without_paying() -> None:
    for state in SIGNED_ONCE - {State.VOID}:
        assert not reachable(state, without=VOIDS).intersection(ENDED_WITHOUT_PAYING)


def test_settled_rejected_and_denied_are_the_only_final_states() -> None:
    ends = {state for state in State if not any(before is state for before, _ in NEXT)}
    assert ends == {State.SETTLED, State.REJECTED, State.DENIED}


def test_a_rollback_reopens_confirmed_and_void_but_not_settled() -> None:
    assert next_state(State.CONFIRMED, "block_lost") is State.IN_FLIGHT
    assert next_state(State.VOID, "block_lost") is State.CANCELLING
    assert next_state(State.SETTLED, "block_lost") is None


def test_no_payment_is_signed_before_its_funds_are_reserved() -> None:
    before_sign = {state for state, event in EFFECTS if event.stored == "sign"}
    assert before_sign == {State.RESERVED, State.REPLACING}
    assert State.SIGNED not in reachable(State.RECEIVED, without=frozenset({Event.RESERVE, Event.APPROVE}))


@pytest.mark.parametrize(("delivery", "event"), list(itertools.product(Delivery, DeliveryEvent)))
def test_every_delivery_state_handles_every_delivery_event(delivery: Delivery, event: DeliveryEvent) -> None:
    assert deliver(delivery, event) is DELIVERIES[delivery, event]


def test_an_accepted_delivery_stays_accepted() -> None:
    assert {after for (before, _), after in DELIVERIES.items() if before is Delivery.ACCEPTED} == {
        Delivery.ACCEPTED
    }


@pytest.mark.parametrize(
    ("http_status", "state", "over", "event"),
    [
        (200, State.IN_FLIGHT, False, DeliveryEvent.ACCEPT),
        (204, State.CONFIRMED, True, DeliveryEvent.ACCEPT),
        (299, State.CONFIRMED, True, DeliveryEvent.ACCEPT),
        (199, State.CONFIRMED, True, DeliveryEvent.GIVE_UP),
        (300, State.CONFIRMED, True, DeliveryEvent.GIVE_UP),
        (402, State.IN_FLIGHT, False, DeliveryEvent.PRESENT),
        (402, State.CONFIRMED, False, DeliveryEvent.PRESENT),
        (402, State.IN_FLIGHT, True, DeliveryEvent.PRESENT),
        (402, State.CONFIRMED, True, DeliveryEvent.GIVE_UP),
        (500, State.SETTLED, True, DeliveryEvent.GIVE_UP),
        (304, State.IN_FLIGHT, False, DeliveryEvent.ACCEPT),
        (307, State.CONFIRMED, False, DeliveryEvent.PRESENT),
    ],
)
def test_the_http_status_of_a_retry_decides_the_delivery_event(
    http_status: int, state: State, over: bool, event: DeliveryEvent
) -> None:
    assert delivery_event(http_status, state, over) is event


def test_the_diagram_shows_every_transition() -> None:
    drawn = PAGE.partition("```mermaid\nstateDiagram-v2\n    [*] --> received\n")[2].partition("```")[0]
    rows = {pair: after for pair, after in NEXT.items() if EFFECTS[pair].through is None}
    lines = {f"    {state} --> {after}: {event.stored}" for (state, event), after in rows.items()}
    assert sorted(drawn.splitlines()) == sorted(lines)


COLUMNS = ("record", "journal", "hold", "inputs", "outputs", "prepaid", "merchant", "alert")


def test_the_table_matches_the_reference_page() -> None:
    """Row by row and cell by cell, so a change of a row is a change of the page that people review."""
    money = PAGE.partition("\n## Money\n")[2].partition("\n## ")[0]
    shown = [line.strip("| ").split(" | ") for line in money.splitlines() if line.startswith("|")][2:]
    rows = []
    for (state, event), effect in EFFECTS.items():
        cells = [getattr(effect, column) for column in COLUMNS]
        rows.append([state, event, effect.next or "-", *("-" if one is None else one.value for one in cells)])
    assert shown == rows


def test_events_are_stored_as_the_reference_page_says() -> None:
    events = PAGE.partition("\n## Events\n")[2].partition("\n## ")[0]
    stored = dict(re.findall(r"^\| (\w+) \| (\w+) \| .+ \|$", events, re.MULTILINE))
    assert stored == {str(event): event.stored for event in Event}


def test_the_delivery_table_matches_the_reference_page() -> None:
    """Row by row, with the names used in the ledger and the API."""
    delivery = PAGE.rpartition("## Delivery")[2]
    row = re.compile(r"^\| (\w+) \| (\w+) \| (\w+) \|$", re.MULTILINE)
    rows = [(before.value, event.value, after.value) for (before, event), after in DELIVERIES.items()]
    assert rows == row.findall(delivery)[1:]


def test_each_state_has_the_words_of_the_reference_page() -> None:
    for names, words, section in (
        (State, STATES_IN_WORDS, PAGE.rpartition("## Delivery")[0]),
        (Delivery, DELIVERIES_IN_WORDS, PAGE.rpartition("## Delivery")[2]),
    ):
        table = section.partition("in words |")[2].partition("\n\n")[0]
        rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", table, re.MULTILINE))
        assert rows == {name.value: words[name] for name in names}


def test_state_and_delivery_names_are_those_clients_know() -> None:
    money = "received awaiting_approval reserved signed in_flight in_block confirmed settled replacing cancelling"
    assert [*State] == [*money.split(), "void", "rejected", "denied"]
    assert [*Delivery] == ["not_presented", "presented", "accepted", "paid_not_served"]


def test_groups_of_states_have_the_expected_members() -> None:
    assert {State.REJECTED, State.DENIED} == set(NEVER_SIGNED)
    assert {State.RESERVED, State.REPLACING} == set(AWAITING_SIGNATURE)
    assert {State.VOID, State.REJECTED, State.DENIED} == set(ENDED_WITHOUT_PAYING)
    assert {State.CANCELLING, State.VOID, State.REJECTED, State.DENIED} == set(WITHOUT_PROOF)
    assert {State.IN_BLOCK, State.CONFIRMED, State.SETTLED} == set(ON_CHAIN)
    assert {State.CONFIRMED, State.SETTLED} == set(POSTED)
    unsigned = {State.RECEIVED, State.AWAITING_APPROVAL, State.RESERVED, *NEVER_SIGNED}
    assert set(State) - unsigned - {*POSTED, State.VOID} == set(SIGNED_UNPOSTED)
    assert {State.RESERVED, *SIGNED_UNPOSTED} - {State.IN_BLOCK, State.CANCELLING} == set(CANCELLABLE)


def test_a_refused_event_names_the_state_and_the_event() -> None:
    with pytest.raises(Refused, match="a payment that is settled cannot take void_by_time"):
        effect_of(State.SETTLED, Event.VOID_BY_TIME)
