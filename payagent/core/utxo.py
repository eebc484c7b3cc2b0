"""The UTxO state machine, as one table: what each event does to a UTxO of ours, the journal and the free set.

The free set is the UTxOs that coin selection may use: available and not reserved.

Never: concludes anything from an absence.
"""

from dataclasses import dataclass
from enum import StrEnum

from payagent.core.problems import Refused


class UtxoState(StrEnum):
    PENDING = "pending"  # the transaction that makes it is in no block, or is a cancel of a payment not void yet
    AVAILABLE = "available"  # that transaction is in a block, and if it is a cancel, its payment is void
    LOCKED = "locked"  # payagent never spends it, because it holds a datum or a script
    MISSING = "missing"  # a complete list of our UTxOs lacks it, which proves nothing
    SPENT = "spent"  # by an attempt of ours, or by a transaction outside payagent
    ROLLED_BACK = "rolled_back"  # a reserved deposit whose transaction the providers repeatedly deny


class UtxoEvent(StrEnum):
    MADE = "made"  # an attempt of ours that makes it was signed
    LISTED = "listed"  # a complete list of our UTxOs has it
    LISTED_LOCKED = "listed_locked"  # the same, with a datum, a script, or something unreadable
    UNLISTED = "unlisted"  # a complete list lacks it
    DENIED = "denied"  # the providers repeatedly deny the transaction that deposited it
    DENIED_RESERVED = "denied_reserved"  # the same, while a payment has reserved it
    LANDED = "landed"  # its maker's payment takes `seen_in_block`, or by its cancel `void_by_cancel`
    UNMADE = "unmade"  # its maker's payment takes `block_lost` or `cancel_block_lost`
    SPENT = "spent"  # the payment whose attempt spends it takes `seen_in_block`, or by its cancel `void_by_cancel`
    UNSPENT = "unspent"  # that attempt lost its block; the UTxO's own maker is in one
    UNSPENT_UNMADE = "unspent_unmade"  # that attempt lost its block, and so did the UTxO's maker
    SPENT_BY_OTHER = "spent_by_other"  # by a transaction outside payagent
    OTHER_LOST = "other_lost"  # that transaction lost its block; the UTxO's own maker is in one
    OTHER_LOST_UNMADE = "other_lost_unmade"  # that transaction lost its block, and so did the UTxO's maker
    RELEASED = "released"  # the reservation ends
    RELEASED_NEVER = "released_never"  # the same, and what would make it can never land
    ORPHANED = "orphaned"  # its maker can never land, and nothing has reserved it


class Books(StrEnum):
    """What the journal gets."""

    NOTHING = "nothing"
    DEPOSIT = "deposit"
    REVERSED = "deposit_reversed"


class FreeSet(StrEnum):
    """What happens to the free set. PUT only if no payment has reserved the UTxO, TAKE only if it is there."""

    KEEP = "keep"
    PUT = "put"
    TAKE = "take"


@dataclass(frozen=True, slots=True)
class UtxoMove:
    """A cell of the table."""

    to: UtxoState | None  # the state afterwards; None: the row is deleted, because it never existed
    books: Books = Books.NOTHING
    free: FreeSet = FreeSet.KEEP


_PENDING, _AVAILABLE, _LOCKED, _MISSING, _SPENT, _ROLLED_BACK = UtxoState
_FORGET = UtxoMove(None)


def _all(move: UtxoMove, *states: UtxoState) -> dict[UtxoState | None, UtxoMove]:
    return dict.fromkeys(states or tuple(UtxoState), move)


TABLE: dict[UtxoEvent, dict[UtxoState | None, UtxoMove]] = {
    UtxoEvent.MADE: {None: UtxoMove(_PENDING)},
    UtxoEvent.LISTED: {
        None: UtxoMove(_AVAILABLE, Books.DEPOSIT, FreeSet.PUT),
        _PENDING: UtxoMove(_PENDING),
        _AVAILABLE: UtxoMove(_AVAILABLE),
        _LOCKED: UtxoMove(_LOCKED),
        _MISSING: UtxoMove(_AVAILABLE, free=FreeSet.PUT),
        _SPENT: UtxoMove(_SPENT),
        _ROLLED_BACK: UtxoMove(_AVAILABLE, Books.DEPOSIT, FreeSet.PUT),
    },
    UtxoEvent.LISTED_LOCKED: {
        None: UtxoMove(_LOCKED, Books.DEPOSIT),
        _PENDING: UtxoMove(_PENDING),
        _AVAILABLE: UtxoMove(_AVAILABLE),
        _LOCKED: UtxoMove(_LOCKED),
        _MISSING: UtxoMove(_LOCKED),
        _SPENT: UtxoMove(_SPENT),
        _ROLLED_BACK: UtxoMove(_LOCKED, Books.DEPOSIT),
    },
    UtxoEvent.UNLISTED: {
        _PENDING: UtxoMove(_PENDING),
        _AVAILABLE: UtxoMove(_MISSING, free=FreeSet.TAKE),
        _LOCKED: UtxoMove(_MISSING),
        _MISSING: UtxoMove(_MISSING),
        _SPENT: UtxoMove(_SPENT),
        _ROLLED_BACK: UtxoMove(_ROLLED_BACK),
    },
    UtxoEvent.DENIED: {_MISSING: UtxoMove(None, Books.REVERSED)},
    UtxoEvent.DENIED_RESERVED: {_MISSING: UtxoMove(_ROLLED_BACK, Books.REVERSED)},
    UtxoEvent.LANDED: {
        _PENDING: UtxoMove(_AVAILABLE, free=FreeSet.PUT),
        _AVAILABLE: UtxoMove(_AVAILABLE),
        _LOCKED: UtxoMove(_LOCKED),
        _MISSING: UtxoMove(_MISSING),
        _SPENT: UtxoMove(_SPENT),
        _ROLLED_BACK: UtxoMove(_ROLLED_BACK),
    },
    UtxoEvent.UNMADE: {
        **_all(UtxoMove(_PENDING), _PENDING, _LOCKED, _MISSING, _ROLLED_BACK),
        _AVAILABLE: UtxoMove(_PENDING, free=FreeSet.TAKE),
        _SPENT: UtxoMove(_SPENT),
    },
    UtxoEvent.SPENT: {
        **_all(UtxoMove(_SPENT), _PENDING, _AVAILABLE, _LOCKED, _MISSING, _SPENT),
        _ROLLED_BACK: UtxoMove(_SPENT, Books.DEPOSIT),
    },
    UtxoEvent.UNSPENT: _all(UtxoMove(_AVAILABLE)),
    UtxoEvent.UNSPENT_UNMADE: _all(UtxoMove(_PENDING)),
    UtxoEvent.SPENT_BY_OTHER: {
        None: UtxoMove(_SPENT, Books.DEPOSIT),
        **_all(UtxoMove(_SPENT), _PENDING, _LOCKED, _MISSING),
        _AVAILABLE: UtxoMove(_SPENT, free=FreeSet.TAKE),
        _ROLLED_BACK: UtxoMove(_SPENT, Books.DEPOSIT),
    },
    UtxoEvent.OTHER_LOST: {_SPENT: UtxoMove(_MISSING)},
    UtxoEvent.OTHER_LOST_UNMADE: {_SPENT: UtxoMove(_PENDING)},
    UtxoEvent.RELEASED: {
        _PENDING: UtxoMove(_PENDING),
        _AVAILABLE: UtxoMove(_AVAILABLE, free=FreeSet.PUT),
        _LOCKED: UtxoMove(_LOCKED),
        _MISSING: UtxoMove(_MISSING),
        _SPENT: UtxoMove(_SPENT),
        _ROLLED_BACK: _FORGET,
    },
    UtxoEvent.RELEASED_NEVER: {_PENDING: _FORGET},
    UtxoEvent.ORPHANED: _all(_FORGET),
}
"""What each event does, by the state before it. None: we have no such UTxO yet. A pair that is not here cannot
occur: `after` refuses it."""


def after(state: UtxoState | None, event: UtxoEvent) -> UtxoMove:
    """The cell of the table. Raises `wrong_state` for a pair that cannot occur."""
    move = TABLE[event].get(state)
    if move is None:
        raise Refused("wrong_state", f"a UTxO that is {state or 'unknown'} cannot take {event}")
    return move
