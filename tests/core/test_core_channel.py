"""The state machine of a channel: its table, what each row does to the money, and what must never be possible."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.changes import Book, Change, Clear, Note, Raise
from payagent.core.channel import (
    CALLS,
    EFFECTS,
    LIVE,
    LOCKED,
    PHASES_IN_WORDS,
    Added,
    CallEvent,
    CallState,
    Channel,
    ChannelEvent,
    ChannelMove,
    ChannelPhase,
    Close,
    Corrected,
    Ended,
    EndLost,
    Moved,
    Opened,
    OpeningLost,
    OpeningVoid,
    Position,
    Promise,
    Served,
    apply,
)
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused

PAGE = (Path(__file__).parents[2] / "docs/reference/channel-machine.md").read_text()
ORIGIN = "https://data.example"
LOCKED_IN, MERCHANT = f"channel:{ORIGIN}", f"merchant:{ORIGIN}"
NEW = Channel(
    *("aa" * 32, ORIGIN, 0, LOVELACE, "bb" * 28, "cc" * 28, "dd" * 32, 900_000, "addr_test1", 1),
    ChannelPhase.OPENING,
)
DEPOSITED, RESERVE = 5_000, 1_000
AT = Position("11" * 32 + "#0", DEPOSITED - RESERVE, 0, None)
USED = replace(
    NEW, phase=ChannelPhase.OPEN, deposited=DEPOSITED, capacity=AT.capacity, signed=900, count=700, claimed=400
)
"""It promised 900 units. The merchant counted 700 of them, and took 400."""

MOVES: dict[ChannelEvent, ChannelMove] = {
    ChannelEvent.OPENED: Opened(AT, DEPOSITED),
    ChannelEvent.OPENING_LOST: OpeningLost(),
    ChannelEvent.OPENING_VOID: OpeningVoid(),
    ChannelEvent.PROMISE: Promise(1_000),
    ChannelEvent.SERVE: Served(150, "5a", 900),
    ChannelEvent.CORRECT: Corrected(500, "5a", 950),
    ChannelEvent.MOVE: Moved(replace(AT, claimed=800)),
    ChannelEvent.ADD: Added(2_000),
    ChannelEvent.CLOSE: Close(None),
    ChannelEvent.END: Ended(DEPOSITED - 600),
    ChannelEvent.END_LOST: EndLost(),
}
"""An example of each event, for `USED`."""

P = ChannelPhase
ROWS: dict[tuple[ChannelPhase, ChannelEvent], tuple[ChannelPhase, int, int, int]] = {
    (P.OPENING, ChannelEvent.OPENED): (P.OPEN, 900, 700, 0),
    (P.OPENING, ChannelEvent.OPENING_VOID): (P.VOID, 900, 700, -900),
    (P.OPENING, ChannelEvent.SERVE): (P.OPENING, 900, 850, 0),
    (P.OPENING, ChannelEvent.ADD): (P.OPENING, 900, 700, 0),
    (P.OPEN, ChannelEvent.OPENING_LOST): (P.OPENING, 900, 700, 0),
    (P.OPEN, ChannelEvent.PROMISE): (P.OPEN, 1_000, 700, 100),
    (P.OPEN, ChannelEvent.SERVE): (P.OPEN, 900, 850, 0),
    (P.OPEN, ChannelEvent.CORRECT): (P.OPEN, 950, 500, 50),
    (P.OPEN, ChannelEvent.MOVE): (P.OPEN, 900, 800, 0),
    (P.OPEN, ChannelEvent.ADD): (P.OPEN, 900, 700, 0),
    (P.OPEN, ChannelEvent.CLOSE): (P.CLOSING, 900, 700, 0),
    (P.CLOSING, ChannelEvent.OPENING_LOST): (P.CLOSING, 900, 700, 0),
    (P.CLOSING, ChannelEvent.OPENED): (P.CLOSING, 900, 700, 0),
    (P.CLOSING, ChannelEvent.OPENING_VOID): (P.VOID, 900, 700, -900),
    (P.CLOSING, ChannelEvent.SERVE): (P.CLOSING, 900, 850, 0),
    (P.CLOSING, ChannelEvent.MOVE): (P.CLOSING, 900, 800, 0),
    (P.CLOSING, ChannelEvent.ADD): (P.CLOSING, 900, 700, 0),
    (P.CLOSING, ChannelEvent.END): (P.ENDED, 900, 700, -300),
    (P.ENDED, ChannelEvent.END_LOST): (P.CLOSING, 900, 700, 500),
    (P.VOID, ChannelEvent.OPENED): (P.CLOSING, 900, 700, 500),
}
"""Each row for `USED`: the state, what is signed, the count, and the units that are spent at the merchant."""


def spent(changes: Iterable[Change]) -> int:
    """Units that the entries among the changes move from the channel's account to the merchant's."""
    units = 0
    for change in changes:
        if isinstance(change, Book):
            assert change.ref == NEW.id, "the entry names the channel"
            lines = {line.account: line.units for line in change.entry.postings}
            assert lines == {LOCKED_IN: -lines[MERCHANT], MERCHANT: lines[MERCHANT]}
            units += lines[MERCHANT]
    return units


def alerts(changes: Iterable[Change]) -> list[str]:
    return [one.kind if isinstance(one, Raise) else "cleared" for one in changes if isinstance(one, Raise | Clear)]


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(ChannelPhase, ChannelEvent)))
def test_every_event_of_every_state_does_what_the_books_say_or_is_refused(
    phase: ChannelPhase, event: ChannelEvent
) -> None:
    before = replace(USED, phase=phase)
    if (phase, event) not in ROWS:
        with pytest.raises(Refused, match="wrong_state"):
            apply(before, MOVES[event], 7)
        return
    after, changes = apply(before, MOVES[event], 7)
    assert (after.phase, after.signed, after.count, spent(changes)) == ROWS[phase, event]
    assert after.updated_at_ms == 7
    (note,) = (change for change in changes if isinstance(change, Note))
    assert (note.payment_id, note.event) == (None, f"channel_{event}")
    facts = {"channel": NEW.id, "merchant": ORIGIN, "signed": str(after.signed), "count": str(after.count)}
    assert note.detail == facts


def test_the_table_and_its_page_have_the_same_rows() -> None:
    assert EFFECTS.keys() == ROWS.keys()
    table = PAGE.partition("| state | event | next | books | alert |")[2].partition("\n\n")[0]
    shown = {tuple(line.split(" | ")[:2]) for line in table.replace("| ", "", 1).splitlines()[2:]}
    assert {(phase.removeprefix("| "), event) for phase, event in shown} == set(EFFECTS)


def test_every_state_is_reached_and_a_rollback_may_leave_each() -> None:
    found, todo = {P.OPENING}, [P.OPENING]
    while todo:
        here = todo.pop()
        for (phase, _), row in EFFECTS.items():
            if phase is here and row.next is not None and row.next not in found:
                found.add(row.next)
                todo.append(row.next)
    assert found == set(ChannelPhase) == set(PHASES_IN_WORDS)
    assert {before for before, _ in EFFECTS} == set(P)
    assert {phase for phase, event in EFFECTS if event is ChannelEvent.PROMISE} == {P.OPEN}
    assert set(ChannelPhase) - set(LOCKED) == {P.ENDED, P.VOID}
    assert set(LIVE) == {P.OPENING, P.OPEN}


@pytest.mark.parametrize("amount", [699, AT.capacity + 1])
def test_a_voucher_is_neither_below_the_count_nor_above_the_capacity(amount: int) -> None:
    with pytest.raises(Refused, match="channel_full"):
        apply(USED, Promise(amount), 7)


@pytest.mark.parametrize("count", [399, 901])
def test_a_count_that_our_voucher_does_not_cover_is_refused(count: int) -> None:
    with pytest.raises(Refused, match="channel_disputed"):
        apply(USED, Corrected(count, "5a", 900), 7)


def test_a_voucher_within_the_promise_spends_nothing_more() -> None:
    after, changes = apply(USED, Promise(800), 7)
    assert (after.signed, [one for one in changes if isinstance(one, Book)]) == (900, [])


def test_a_charge_that_the_chain_showed_before_its_answer_is_counted_once() -> None:
    """The merchant charges 200 for the voucher of 900, and claims it before payagent reads the answer."""
    seen, _ = apply(USED, Moved(replace(AT, claimed=900)), 7)
    assert apply(seen, Served(200, "5a", 900), 8)[0].count == 900


@pytest.mark.parametrize(("charged", "count"), [(-5, 700), (0, 700), (200, 900), (5_000, 900)])
def test_a_charge_never_raises_the_count_above_its_voucher(charged: int, count: int) -> None:
    after, _ = apply(USED, Served(charged, "5a", 900), 7)
    assert (after.count, after.voucher, after.voucher_amount) == (count, "5a", 900)
    assert after.is_used
    assert after.is_count_known


def test_a_merchant_that_claims_more_than_was_signed_is_disputed() -> None:
    closing = replace(USED, phase=P.CLOSING)
    for before, move in ((USED, Moved(replace(AT, claimed=901))), (closing, Ended(DEPOSITED - 901))):
        _, changes = apply(before, move, 7)
        assert alerts(changes) == ["channel_disputed"]
    _, changes = apply(closing, Ended(DEPOSITED - 901), 7)
    assert spent(changes) == 1, "what it took beyond the promise is spent too"


def test_a_channel_that_payagent_closes_has_an_alert_until_its_end() -> None:
    assert alerts(apply(USED, Close(None), 7)[1]) == []
    closing, changes = apply(USED, Close("it does not answer"), 7)
    assert alerts(changes) == ["channel_closing"]
    ended, changes = apply(closing, Ended(DEPOSITED - 600), 8)
    assert alerts(changes) == ["cleared"]
    assert alerts(apply(ended, EndLost(), 9)[1]) == ["channel_closing"]


def test_a_void_opening_leaves_nothing_spent_whatever_the_lost_blocks_showed() -> None:
    """A rollback takes the opening with a claim that followed it."""
    lost, _ = apply(USED, OpeningLost(), 7)
    void, changes = apply(lost, OpeningVoid(), 8)
    assert spent(changes) == -900
    assert (void.deposited, void.capacity, void.claimed, void.most_lost) == (0, 0, 0, 0)


def test_an_opening_that_lands_after_all_gets_its_money_back() -> None:
    """A deep rollback undoes what spent the nonce UTxO, and the opening takes its place."""
    void, _ = apply(apply(USED, OpeningLost(), 7)[0], OpeningVoid(), 8)
    closing, changes = apply(void, Opened(AT, DEPOSITED), 9)
    assert (closing.phase, closing.deposited, closing.most_lost) == (P.CLOSING, DEPOSITED, 900)
    assert spent(changes) == 900


@pytest.mark.parametrize(("ceiling", "signed"), [(3_000, 3_000), (DEPOSITED, AT.capacity), (0, 0)])
def test_an_older_ledger_promises_the_ceiling_once_its_opening_is_confirmed(ceiling: int, signed: int) -> None:
    opened, changes = apply(NEW, Opened(AT, DEPOSITED, ceiling), 7)
    assert (opened.signed, opened.is_count_known, spent(changes)) == (signed, ceiling == 0, signed)


def test_an_older_ledger_takes_a_promise_that_an_addition_covered_which_it_lacks() -> None:
    assert apply(USED, Promise(DEPOSITED, is_forgotten=True), 7)[0].signed == DEPOSITED
    with pytest.raises(Refused, match="channel_full"):
        apply(USED, Promise(DEPOSITED), 7)


def test_an_addition_that_is_seen_before_its_opening_is_not_lost() -> None:
    """A rollback takes both, and both land again."""
    lost, _ = apply(USED, OpeningLost(), 7)
    added, _ = apply(lost, Added(2_000), 8)
    assert apply(added, Opened(AT, DEPOSITED), 9)[0].deposited == DEPOSITED + 2_000


def test_a_settled_output_says_nothing_of_what_was_claimed() -> None:
    after, _ = apply(replace(USED, phase=P.CLOSING), Moved(Position("22" * 32 + "#0", 100, None, None)), 7)
    assert (after.claimed, after.is_settled, after.ref) == (400, True, "22" * 32 + "#0")


UNITS = st.integers(0, DEPOSITED)
ANY_MOVE = st.one_of(
    st.builds(Opened, st.just(AT), st.just(DEPOSITED)),
    st.just(OpeningLost()),
    st.just(OpeningVoid()),
    st.builds(Promise, UNITS),
    st.builds(Served, st.integers(-10, DEPOSITED), st.just("5a"), UNITS),
    st.builds(Corrected, UNITS, st.just("5a"), UNITS),
    st.builds(lambda claimed: Moved(replace(AT, claimed=claimed)), UNITS),
    st.builds(Close, st.sampled_from([None, "it is gone"])),
    st.builds(Ended, UNITS),
    st.just(EndLost()),
)


def is_honest(channel: Channel, move: ChannelMove) -> bool:
    """Whether a merchant and a chain that keep the rules can cause it: they show only what was promised."""
    if isinstance(move, Served | Corrected):
        return move.amount <= channel.signed
    if isinstance(move, Ended):
        return channel.claimed <= DEPOSITED - move.returned <= channel.signed
    return not isinstance(move, Moved) or (move.position.claimed or 0) <= channel.signed


@given(moves=st.lists(ANY_MOVE, max_size=40), only_honest=st.booleans())
def test_whatever_happens_the_promise_holds_and_the_books_agree(
    moves: list[ChannelMove], only_honest: bool
) -> None:
    channel, used, is_posted, returned = NEW, 0, False, 0
    for at_ms, move in enumerate(moves):
        before = channel
        if only_honest and not is_honest(channel, move):
            continue
        if isinstance(move, Ended) and not is_posted:  # the chain shows no end without its opening
            continue
        try:
            channel, changes = apply(channel, move, at_ms)
        except Refused:
            assert channel == before
            continue
        used += spent(changes)
        # what the steps' own payments post
        if isinstance(move, Opened | OpeningLost | OpeningVoid):
            is_posted = isinstance(move, Opened)
        returned = move.returned if isinstance(move, Ended) else 0 if isinstance(move, EndLost) else returned
        locked = DEPOSITED * is_posted - returned - used
        assert channel.signed >= before.signed
        if isinstance(move, Promise):
            assert move.amount <= channel.capacity
        if channel.phase in (P.ENDED, P.VOID):
            assert locked == 0
        else:
            assert used == channel.signed
            assert locked == DEPOSITED * is_posted - channel.signed
        if only_honest:
            assert channel.claimed <= channel.signed
            assert channel.count <= channel.signed
        if isinstance(move, EndLost):
            assert (channel.phase, channel.returned) == (P.CLOSING, 0)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(CallState, CallEvent)))
def test_a_call_that_paid_stays_paid(state: CallState, event: CallEvent) -> None:
    after = CALLS.get((state, event))
    if state is CallState.PROMISED:
        assert after not in (None, CallState.PROMISED)
    elif (state, event) == (CallState.PAID_NOT_SERVED, CallEvent.SERVE):
        assert after is CallState.SERVED
    else:
        assert after is None


def test_what_may_still_be_lost_and_charged() -> None:
    assert (USED.room, USED.most_lost) == (AT.capacity - 700, 500)
    assert replace(USED, claimed=950).most_lost == replace(USED, count=AT.capacity + 1).room == 0
