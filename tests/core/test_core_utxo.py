"""Every pair of the UTxO table, and the rules that hold for all of it."""

import pytest

from payagent.core.problems import Refused
from payagent.core.utxo import TABLE, Books, FreeSet, UtxoEvent, UtxoState, after

STATES: tuple[UtxoState | None, ...] = (None, *UtxoState)
WORDS = {
    # event: the state after it, by the state before: unknown, then in the order of UtxoState. "!" cannot occur.
    "made": "pending ! ! ! ! ! !",
    "listed": "available+d pending available locked available+ spent available+d",
    "listed_locked": "locked-d pending available locked locked spent locked-d",
    "unlisted": "! pending missing- missing missing spent rolled_back",
    "denied": "! ! ! ! forget-r ! !",
    "denied_reserved": "! ! ! ! rolled_back-r ! !",
    "landed": "! available+ available locked missing spent rolled_back",
    "unmade": "! pending pending- pending pending spent pending",
    "spent": "! spent spent spent spent spent spent-d",
    "unspent": "! available available available available available available",
    "unspent_unmade": "! pending pending pending pending pending pending",
    "spent_by_other": "spent-d spent spent- spent spent ! spent-d",
    "other_lost": "! ! ! ! ! missing !",
    "other_lost_unmade": "! ! ! ! ! pending !",
    "released": "! pending available+ locked missing spent forget",
    "released_never": "! forget ! ! ! ! !",
    "orphaned": "! forget forget forget forget forget forget",
}
"""A plus: into the free set. A minus: out of it. d: a deposit is booked; r: it is reversed."""

PAIRS = [
    (state, event, word)
    for event in UtxoEvent
    for state, word in zip(STATES, WORDS[event].split(" "), strict=True)
]


@pytest.mark.parametrize(("state", "event", "word"), PAIRS)
def test_each_pair_does_what_the_table_in_words_says(state: UtxoState | None, event: UtxoEvent, word: str) -> None:
    if word == "!":
        with pytest.raises(Refused) as caught:
            after(state, event)
        assert caught.value.code == "wrong_state"
        return
    name = word.rstrip("+-dr") if word not in ("unlisted",) else word
    cell = after(state, event)
    assert cell.to == (None if name == "forget" else UtxoState(word.split("+")[0].split("-")[0]))
    booked = {"d": Books.DEPOSIT, "r": Books.REVERSED}.get(word[-1] if word[-2:-1] in "+-" else "", Books.NOTHING)
    assert cell.books is booked
    if "+" in word:
        assert cell.free is FreeSet.PUT
    elif word.endswith("-"):
        assert cell.free is FreeSet.TAKE
    else:
        assert cell.free is FreeSet.KEEP


def test_the_free_set_gains_only_what_becomes_available_and_loses_what_stops_to_be() -> None:
    for event, row in TABLE.items():
        for state, cell in row.items():
            if cell.free is FreeSet.PUT:
                assert cell.to is UtxoState.AVAILABLE, (event, state)
            if cell.free is FreeSet.TAKE:
                assert (state, cell.to is UtxoState.AVAILABLE) == (UtxoState.AVAILABLE, False), (event, state)


def test_a_deposit_is_booked_when_it_enters_the_wallet_and_reversed_when_it_leaves() -> None:
    """Rolled back and unknown UTxOs are not in the journal's wallet; all others are."""
    outside = (None, UtxoState.ROLLED_BACK)
    for event, row in TABLE.items():
        for state, cell in row.items():
            if cell.books is Books.DEPOSIT:
                assert state in outside, (event, state)
                assert cell.to not in outside, (event, state)
            if cell.books is Books.REVERSED:
                assert state not in outside, (event, state)
                assert cell.to in outside, (event, state)
