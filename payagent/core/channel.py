"""The state machines of a channel and of the calls that it pays, as tables.

`EFFECTS` has a row for each event of a channel that a state takes. `apply` looks it up and returns the channel
afterwards, with the entries, counts and alerts to write. `CALLS` is the table of a call.

Amounts are in units of the channel's asset. While it is open, claimed <= signed <= capacity and count <= signed.
`signed` never falls, so what the merchant can take is always counted already.

Never: signs; sends; SQL; reads anything but its arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, ClassVar

from payagent.core import ledger
from payagent.core.changes import Book, Change, Clear, Note, Raise
from payagent.core.money import format_amount
from payagent.core.problems import Refused


class ChannelPhase(StrEnum):
    """The state of a channel."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    ENDED = "ended"
    VOID = "void"


PHASES_IN_WORDS = {
    ChannelPhase.OPENING: "its opening is not confirmed yet; it pays no calls",
    ChannelPhase.OPEN: "it pays calls",
    ChannelPhase.CLOSING: "it pays no calls; what is left returns once the withdraw delay is over",
    ChannelPhase.ENDED: "what was left is back in the wallet",
    ChannelPhase.VOID: "it was never opened: nothing was locked, and no voucher can be claimed",
}
"""What each state means for the money, for people to read."""

LIVE = (ChannelPhase.OPENING, ChannelPhase.OPEN)
"""States of which a merchant has one channel at most."""

LOCKED = (*LIVE, ChannelPhase.CLOSING)
"""States in which the channel holds money, or may come to hold it."""


class ChannelEvent(StrEnum):
    """An event of the channel machine."""

    OPENED = "opened"  # its opening is confirmed, and its datum was read
    OPENING_LOST = "opening_lost"  # a rollback took the opening; the same bytes are sent again
    OPENING_VOID = "opening_void"  # another transaction spent the opening's nonce UTxO
    PROMISE = "promise"  # a voucher for this amount is about to be signed
    SERVE = "serve"  # the merchant stated a charge
    CORRECT = "correct"  # the merchant showed its count and our own voucher
    MOVE = "move"  # the channel is at another output, or shows another amount, with the same constants
    ADD = "add"  # more was locked and is confirmed, or a rollback took it
    CLOSE = "close"  # a person closes it, or payagent does
    END = "end"  # what was left is back, and that is confirmed
    END_LOST = "end_lost"  # a rollback took it


class ChannelBooks(Enum):
    """The entry that moves units between the channel's account and the merchant's."""

    USE = "use"  # what the highest voucher adds is spent at the merchant
    UNUSE = "unuse"  # what was promised and can never be claimed is not spent after all
    USE_AGAIN = "use again"  # the last `unuse`, the other way round


class ChannelAlert(Enum):
    """The alert that is raised or cleared."""

    IF_OVERCLAIMED = "may raise channel_disputed"  # if more was claimed than was ever signed
    IF_TROUBLED = "may raise channel_closing"  # if payagent closes it, and not a person
    CLEAR = "clear"  # its alert ends; channel_disputed is raised if more was claimed than was ever signed


@dataclass(frozen=True, slots=True)
class ChannelEffect:
    """One row: the next state (None if it stays), and what the event does in each column."""

    next: ChannelPhase | None = None
    books: ChannelBooks | None = None
    alert: ChannelAlert | None = None


_SAME = ChannelEffect()
_MOVED = ChannelEffect(alert=ChannelAlert.IF_OVERCLAIMED)
_USED = ChannelEffect(books=ChannelBooks.USE)
_NOTHING_LOCKED = ChannelEffect(ChannelPhase.VOID, ChannelBooks.UNUSE, ChannelAlert.CLEAR)

EFFECTS: Mapping[tuple[ChannelPhase, ChannelEvent], ChannelEffect] = {
    (ChannelPhase.OPENING, ChannelEvent.OPENED): ChannelEffect(
        ChannelPhase.OPEN, ChannelBooks.USE, ChannelAlert.IF_OVERCLAIMED
    ),
    (ChannelPhase.OPENING, ChannelEvent.OPENING_VOID): _NOTHING_LOCKED,
    (ChannelPhase.OPENING, ChannelEvent.SERVE): _SAME,
    (ChannelPhase.OPENING, ChannelEvent.ADD): _SAME,
    (ChannelPhase.OPEN, ChannelEvent.OPENING_LOST): ChannelEffect(ChannelPhase.OPENING),
    (ChannelPhase.OPEN, ChannelEvent.PROMISE): _USED,
    (ChannelPhase.OPEN, ChannelEvent.SERVE): _SAME,
    (ChannelPhase.OPEN, ChannelEvent.CORRECT): _USED,
    (ChannelPhase.OPEN, ChannelEvent.MOVE): _MOVED,
    (ChannelPhase.OPEN, ChannelEvent.ADD): _SAME,
    (ChannelPhase.OPEN, ChannelEvent.CLOSE): ChannelEffect(ChannelPhase.CLOSING, alert=ChannelAlert.IF_TROUBLED),
    # a rollback may take the opening with the transaction that closed the channel
    (ChannelPhase.CLOSING, ChannelEvent.OPENING_LOST): _SAME,
    (ChannelPhase.CLOSING, ChannelEvent.OPENED): ChannelEffect(
        books=ChannelBooks.USE, alert=ChannelAlert.IF_OVERCLAIMED
    ),
    (ChannelPhase.CLOSING, ChannelEvent.OPENING_VOID): _NOTHING_LOCKED,
    (ChannelPhase.CLOSING, ChannelEvent.SERVE): _SAME,
    (ChannelPhase.CLOSING, ChannelEvent.MOVE): _MOVED,
    (ChannelPhase.CLOSING, ChannelEvent.ADD): _SAME,
    (ChannelPhase.CLOSING, ChannelEvent.END): ChannelEffect(
        ChannelPhase.ENDED, ChannelBooks.UNUSE, ChannelAlert.CLEAR
    ),
    (ChannelPhase.ENDED, ChannelEvent.END_LOST): ChannelEffect(
        ChannelPhase.CLOSING, ChannelBooks.USE_AGAIN, ChannelAlert.IF_TROUBLED
    ),
    # a deep rollback may undo what spent the opening's nonce UTxO; the merchant may have another channel by now
    (ChannelPhase.VOID, ChannelEvent.OPENED): ChannelEffect(
        ChannelPhase.CLOSING, ChannelBooks.USE_AGAIN, ChannelAlert.IF_OVERCLAIMED
    ),
}
"""What each event does, by the state before it. A pair that is not here changes nothing: `apply` refuses it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel as the ledger has it. `id` is its tag in hex, and `asset` as in an invoice.

    `ref`: its output as last seen, "txid#index"; None before it was seen. `deposited`: what was locked in it in
    all, the reserve included. `capacity`: the most that vouchers may promise. `signed`: the highest promise.
    `voucher`: the signature in hex of the last voucher that was answered, which was for `voucher_amount`.
    `count`: what the merchant charged in all. `claimed`: what it took on the chain. `returned`: what came back.
    `elapse_at_ms`: from when what is left may be taken back; None before the chain shows it closed.
    `is_settled`: the merchant has taken its last, so what is left may be taken back now.
    `is_count_known`: False after an unanswered call or a start; the next voucher then asks for the count.
    `is_used`: any call was ever answered. `problem`: why payagent closed it. `pay_to`: the offer's address.
    """

    id: str
    origin: str
    account: int
    asset: str
    provider: str
    script_hash: str
    iou_key: str
    close_period_ms: int
    pay_to: str
    created_at_ms: int
    phase: ChannelPhase
    ref: str | None = None
    deposited: int = 0
    capacity: int = 0
    signed: int = 0
    voucher: str | None = None
    voucher_amount: int = 0
    count: int = 0
    claimed: int = 0
    returned: int = 0
    elapse_at_ms: int | None = None
    is_settled: bool = False
    is_count_known: bool = True
    is_used: bool = False
    problem: str | None = None
    updated_at_ms: int = 0

    @property
    def room(self) -> int:
        """How much more the merchant may charge."""
        return max(self.capacity - self.count, 0)

    @property
    def most_lost(self) -> int:
        """What the merchant may still take of what is locked."""
        return max(self.signed - self.claimed, 0) if self.phase in LOCKED else 0

    @property
    def locked(self) -> int:
        """What it holds now: what was locked in it, less what the merchant took."""
        return max(self.deposited - self.claimed, 0) if self.phase in LOCKED else 0


@dataclass(frozen=True, slots=True)
class Position:
    """The channel's output on the chain. `claimed`: None once the merchant has settled: its datum says nothing."""

    ref: str
    capacity: int
    claimed: int | None
    elapse_at_ms: int | None


class ChannelMove:
    """An event of a channel, with its facts."""

    __slots__ = ()
    event: ClassVar[ChannelEvent]

    def sets(self, channel: Channel) -> dict[str, Any]:
        """Return the columns that it changes. Refused if it cannot be true."""
        return {}


@dataclass(frozen=True, slots=True)
class Moved(ChannelMove):
    event = ChannelEvent.MOVE
    position: Position

    def sets(self, channel: Channel) -> dict[str, Any]:
        at = self.position
        claimed = channel.claimed if at.claimed is None else at.claimed
        return {
            "ref": at.ref,
            "capacity": at.capacity,
            "claimed": claimed,
            "count": max(channel.count, claimed),
            "elapse_at_ms": at.elapse_at_ms,
            "is_settled": at.claimed is None,
        }


@dataclass(frozen=True, slots=True)
class Opened(Moved):
    """`ceiling`: the most that was ever promised, if this ledger is older and may have forgotten it; else 0."""

    event = ChannelEvent.OPENED
    deposited: int
    ceiling: int = 0

    def sets(self, channel: Channel) -> dict[str, Any]:
        return Moved.sets(self, channel) | {
            "deposited": channel.deposited or self.deposited,  # an addition may have been seen first
            "signed": max(channel.signed, min(self.ceiling, self.position.capacity)),
            "is_count_known": channel.is_count_known and not self.ceiling,
        }


@dataclass(frozen=True, slots=True)
class OpeningLost(ChannelMove):
    event = ChannelEvent.OPENING_LOST


@dataclass(frozen=True, slots=True)
class OpeningVoid(ChannelMove):
    event = ChannelEvent.OPENING_VOID

    def sets(self, channel: Channel) -> dict[str, Any]:
        return {"deposited": 0, "capacity": 0, "claimed": 0}


@dataclass(frozen=True, slots=True)
class Promise(ChannelMove):
    """A voucher for `amount` in all. `is_forgotten`: an older ledger lacks it, and may lack an addition too."""

    event = ChannelEvent.PROMISE
    amount: int
    is_forgotten: bool = False

    def sets(self, channel: Channel) -> dict[str, Any]:
        if not self.is_forgotten and not channel.count <= self.amount <= channel.capacity:
            raise Refused("channel_full", f"a voucher for {self.amount} is not within {channel.capacity}")
        return {"signed": max(channel.signed, self.amount)}


@dataclass(frozen=True, slots=True)
class Served(ChannelMove):
    """`voucher`: the signature in hex of the voucher for `amount`, which the merchant answered.

    The count never passes `amount`: the chain may have shown this charge before its answer came.
    """

    event = ChannelEvent.SERVE
    charged: int
    voucher: str
    amount: int

    def sets(self, channel: Channel) -> dict[str, Any]:
        count = max(channel.count, min(channel.count + self.charged, self.amount))
        return {"count": count, **_answered(self.voucher, self.amount)}


@dataclass(frozen=True, slots=True)
class Corrected(ChannelMove):
    """The merchant's `count`, and our own voucher, which it showed."""

    event = ChannelEvent.CORRECT
    count: int
    voucher: str
    amount: int

    def sets(self, channel: Channel) -> dict[str, Any]:
        if not channel.claimed <= self.count <= self.amount:
            raise Refused(
                "channel_disputed", f"a count of {self.count} is not within our voucher of {self.amount}"
            )
        signed = max(channel.signed, self.amount)
        return {"count": self.count, "signed": signed, **_answered(self.voucher, self.amount)}


def _answered(voucher: str, amount: int) -> dict[str, Any]:
    return {"voucher": voucher, "voucher_amount": amount, "is_used": True, "is_count_known": True}


@dataclass(frozen=True, slots=True)
class Added(ChannelMove):
    """`units`: below zero if a rollback took them."""

    event = ChannelEvent.ADD
    units: int

    def sets(self, channel: Channel) -> dict[str, Any]:
        return {"deposited": channel.deposited + self.units}


@dataclass(frozen=True, slots=True)
class Close(ChannelMove):
    """`why`: None if a person closes it."""

    event = ChannelEvent.CLOSE
    why: str | None

    def sets(self, channel: Channel) -> dict[str, Any]:
        return {"problem": self.why}


@dataclass(frozen=True, slots=True)
class Ended(ChannelMove):
    event = ChannelEvent.END
    returned: int

    def sets(self, channel: Channel) -> dict[str, Any]:
        locked = max(channel.deposited, self.returned)  # an older ledger may have forgotten an addition
        return {"deposited": locked, "returned": self.returned, "claimed": locked - self.returned, "capacity": 0}


@dataclass(frozen=True, slots=True)
class EndLost(ChannelMove):
    event = ChannelEvent.END_LOST

    def sets(self, channel: Channel) -> dict[str, Any]:
        return {"returned": 0}


def apply(channel: Channel, move: ChannelMove, now_ms: int) -> tuple[Channel, tuple[Change, ...]]:
    """Return the channel after an event, and the changes besides it, in order.

    Refused: `wrong_state` if the state does not take the event; `channel_full`, `channel_disputed`.
    """
    effect = EFFECTS.get((channel.phase, move.event))
    if effect is None:
        raise Refused("wrong_state", f"a channel that is {channel.phase} cannot take {move.event}")
    after = replace(channel, phase=effect.next or channel.phase, updated_at_ms=now_ms, **move.sets(channel))
    spent = {
        None: 0,
        ChannelBooks.USE: after.signed - channel.signed,
        ChannelBooks.UNUSE: after.claimed - after.signed - max(after.deposited - channel.deposited, 0),
        ChannelBooks.USE_AGAIN: after.signed - channel.claimed,
    }[effect.books]
    entry = ledger.use_channel(after.origin, {after.asset: spent})
    booked = () if entry is None else (Book(entry, ref=after.id),)
    detail = {
        "channel": after.id,
        "merchant": after.origin,
        "signed": str(after.signed),
        "count": str(after.count),
    }
    return after, (*booked, Note(None, f"channel_{move.event}", None, detail), *_alerts(after, effect.alert))


def _alerts(channel: Channel, alert: ChannelAlert | None) -> tuple[Change, ...]:
    subject = f"channel:{channel.id}"
    facts = {"channel": channel.id, "merchant": channel.origin}
    if alert in (ChannelAlert.IF_OVERCLAIMED, ChannelAlert.CLEAR) and channel.claimed > channel.signed:
        claimed, signed = (format_amount(channel.asset, units) for units in (channel.claimed, channel.signed))
        detail = f"{channel.origin} claimed {claimed} from its channel, and payagent has signed {signed}"
        return (Raise("channel_disputed", subject, {"detail": detail, **facts}),)
    if alert is ChannelAlert.IF_TROUBLED and channel.problem is not None:
        detail = f"payagent closes the channel at {channel.origin}: {channel.problem}"
        return (Raise("channel_closing", subject, {"detail": detail, **facts}),)
    if alert is ChannelAlert.CLEAR:
        return (Clear(subject, {"detail": f"the channel at {channel.origin} has ended"}),)
    return ()


class CallState(StrEnum):
    """The state of a call that a channel pays."""

    PROMISED = "promised"  # its voucher may have left; no answer counts yet
    SERVED = "served"  # the merchant served it
    PAID_NOT_SERVED = "paid_not_served"  # the merchant counted it and did not serve it
    VOID = "void"  # the merchant's count excludes it, so it paid nothing


class CallEvent(StrEnum):
    """An event of a call."""

    SERVE = "serve"  # the merchant served it
    COUNT = "count"  # the merchant's count includes it, and no answer served it
    EXCLUDE = "exclude"  # the merchant's count excludes it


CALLS: Mapping[tuple[CallState, CallEvent], CallState] = {
    (CallState.PROMISED, CallEvent.SERVE): CallState.SERVED,
    (CallState.PROMISED, CallEvent.COUNT): CallState.PAID_NOT_SERVED,
    (CallState.PROMISED, CallEvent.EXCLUDE): CallState.VOID,
    (CallState.PAID_NOT_SERVED, CallEvent.SERVE): CallState.SERVED,
}
"""The next state of a call. A pair that is not here changes nothing."""


@dataclass(frozen=True, slots=True)
class ChannelCall:
    """A call that a channel pays. `amount`: of its voucher. `price`: the most that it costs.

    `promised`: what the voucher added to the highest promise. `charged`: None before the merchant's answer.
    `echo`: the offer's. `headers` are made of it, and the same bytes each time.
    """

    seq: int
    id: str
    channel: str
    app_id: str
    intent_id: str
    channel_ref: str
    amount: int
    price: int
    promised: int
    echo: str
    state: CallState
    charged: int | None
    created_at_ms: int
    updated_at_ms: int
