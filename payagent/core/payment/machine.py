"""The payment and delivery state machines, as tables.

`EFFECTS` has a row for each event of a payment that a state takes: the next state, and what the event does in each
column. `events` has the facts of each event, and `apply` makes the row's changes. Money and delivery are separate:
a delivery problem presents the same proof again and never makes a payment. Depths count the block that
holds the transaction as 1.

Never: depends on its driver (an app, a job or a simulator).
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from payagent.core.problems import Refused


class State(StrEnum):
    """The state of the money.

    `in_flight` covers submitting, seen in a mempool, and unknown, because the agent does the same in all three.
    """

    RECEIVED = "received"
    AWAITING_APPROVAL = "awaiting_approval"
    RESERVED = "reserved"
    SIGNED = "signed"
    IN_FLIGHT = "in_flight"
    IN_BLOCK = "in_block"
    CONFIRMED = "confirmed"
    SETTLED = "settled"
    REPLACING = "replacing"
    CANCELLING = "cancelling"
    VOID = "void"
    REJECTED = "rejected"
    DENIED = "denied"


STATES_IN_WORDS = {
    State.RECEIVED: "received, not decided yet",
    State.AWAITING_APPROVAL: "waits for approval",
    State.RESERVED: "admitted: the money is reserved, nothing is signed yet",
    State.SIGNED: "signed and stored, about to be submitted",
    State.IN_FLIGHT: "submitted: the money stays held until the payment is confirmed",
    State.IN_BLOCK: "in a block that is not deep enough yet",
    State.CONFIRMED: "confirmed on the chain and posted in the ledger",
    State.SETTLED: "final: no rollback reaches it any more",
    State.REPLACING: "being replaced by an attempt that spends the same input; only one can be on the chain",
    State.CANCELLING: "being cancelled: its UTxOs return to the wallet",
    State.VOID: "void: nothing was paid, and nothing is held any more; only a lost block could open it again",
    State.REJECTED: "rejected. Nothing was signed",
    State.DENIED: "denied. Nothing was signed",
}
"""What each state means for the money, for people to read."""


class Event(StrEnum):
    """An event of the payment machine. Only positive evidence is an event; a missing answer is not."""

    RESERVE = "reserve"  # admitted without an approval, and everything it needs is reserved
    REQUEST_APPROVAL = "request_approval"  # a person has to approve it first
    # a person approved it, and it was decided anew; in the same commit, the approval's hold was released before
    APPROVE = "approve"
    DENY = "deny"  # a person denied it, or nobody approved it in time
    REJECT = "reject"  # refused, and nothing was ever signed
    SIGN = "sign"  # an attempt that pays was signed; payagent submits it
    SIGN_HANDED_OVER = "sign_handed_over"  # an attempt that pays was signed; the merchant submits it
    SUBMIT = "submit"  # the current attempt's bytes are about to be sent to one provider
    SEEN_IN_BLOCK = "seen_in_block"  # an attempt that pays is in a block, at any depth
    BLOCK_LOST = "block_lost"  # the attempt that pays lost its block
    CONFIRM = "confirm"  # the attempt that pays is `confirm_depth` deep
    SETTLE = "settle"  # what ended the payment is `settle_depth` deep: no rollback reaches it any more
    # no attempt can land any more before its time limit: the next one spends the same nonce UTxO
    REPLACE = "replace"
    CANCEL = "cancel"  # a cancel was signed
    VOID_BY_CANCEL = "void_by_cancel"  # its own cancel is `void_depth` deep
    VOID_BY_RIVAL = "void_by_rival"  # its rival is `void_depth` deep
    VOID_BY_EXTERNAL_SPEND = "void_by_external_spend"  # an external spend of its nonce UTxO is `void_depth` deep
    # a rollback took the deposit that its nonce UTxO is or descends from; a block past the time limits of all its
    # attempts is `settle_depth` deep; and the providers repeatedly deny each attempt
    VOID_BY_TIME = "void_by_time"
    CANCEL_BLOCK_LOST = "cancel_block_lost"  # the cancel that made it void lost its block
    RIVAL_BLOCK_LOST = "rival_block_lost"  # the rival that made it void lost its block
    EXTERNAL_SPEND_BLOCK_LOST = "external_spend_block_lost"  # the external spend that made it void lost its block

    @property
    def stored(self) -> str:
        """Its name in the ledger, where several may share one. `sign_handed_over` stores `sign`, then `submit`."""
        return _STORED.get(self, self.value)


_VOIDS = (Event.VOID_BY_CANCEL, Event.VOID_BY_RIVAL, Event.VOID_BY_EXTERNAL_SPEND, Event.VOID_BY_TIME)
_STORED = {
    Event.APPROVE: "reserve",
    Event.SIGN_HANDED_OVER: "sign",
    **dict.fromkeys(_VOIDS, "void"),
    Event.CANCEL_BLOCK_LOST: "block_lost",
    Event.RIVAL_BLOCK_LOST: "block_lost",
    Event.EXTERNAL_SPEND_BLOCK_LOST: "block_lost",
}


class RecordEffect(Enum):
    """What is stored beside the state."""

    APPROVAL = "approval"  # the request for an approval: its reasons, the planned transaction, and when it ends
    ATTEMPT = "attempt"  # the signed attempt, unless it is stored already
    SUBMISSION = "submission"  # the provider that the bytes are sent to; before a first one, the state moves too
    BLOCK = "block"  # the block, and the provider that showed the transaction in it


class Journal(Enum):
    """The entry for the hold."""

    RESERVE = "reserve"  # what the transaction takes, from `wallet` to `held`
    # what it spent and its fee, from `held` to the merchant or prepaid account and `fees`; the rest to `wallet`
    POST = "post"
    RELEASE = "release"  # all of the hold, from `held` to `wallet`
    RELEASE_LESS_FEE = "release less fee"  # the cancel's fee, from `held` to `fees`; the rest to `wallet`
    REVERSE = "reverse"  # the last `post` or `release`, the other way round: all of the hold is in `held` again


class HoldMove(Enum):
    """The hold, and what it counts against limits."""

    PLACE = "place"  # the units are held, and count in every window of the limits
    # the most that it may cost is held while a person decides, and counts in every window
    PLACE_APPROVAL = "place the approval's"
    COUNT_FROM_BLOCK = "count from the block's time"  # what was held counts in the windows of its block's time
    RELEASE = "release"  # it ends, and counts nowhere
    RELEASE_LESS_FEE = "release less fee"  # it ends; the cancel's fee counts in the windows of its block's time
    RELEASE_APPROVAL = "release the approval's"  # the hold of the request for an approval ends, and counts nowhere
    RENEW = "renew"  # it is open again, and counts in every window


class Inputs(Enum):
    """The UTxOs that the payment's transaction spends, and its reservations."""

    RESERVE = "reserved"  # what the transaction spends is reserved for the payment, unless it is already
    # they are spent by the attempt in the block; if an external spend had taken one, that lost its block and is
    # undone first
    SPEND = "spent"
    UNSPEND = "unspent"  # they are unspent, and stay reserved; pending, if their own maker is in no block
    RELEASE = "released"  # the payment reserves nothing any more; what is unspent may be selected again


class Outputs(Enum):
    """The change that the payment's transactions make."""

    MAKE = "made"  # it is pending
    LAND = "landed"  # that of the attempt in the block is available, unless a later transaction has spent it
    UNMAKE = "unmade"  # that of the attempt that lost its block is pending again, unless something has spent it
    # the change of the attempts that did not land can never exist and is deleted, unless a payment reserves it.
    # After a rival or an external spend, none of the payment's attempts landed
    FORGET_OTHERS = "others' forgotten"
    # the change of all attempts can never exist and is deleted, unless a payment reserves it
    FORGET_ALL = "forgotten"


class PrepaidEffect(Enum):
    """The prepaid balance that the payment raises."""

    BUY = "bought"  # it grows by what was bought, and first covers unexplained uses
    TAKE_BACK = "taken back"  # it shrinks by what was bought; uses beyond the rest are unexplained
    NOT_BOUGHT = "not bought"  # what was on its way to it does not come; uses that counted on it count no longer


class MerchantEffect(Enum):
    """What the merchant rules learn: the addresses that are pinned, and the agreed price."""

    PIN = "pinned"  # the first payment to a merchant pins its addresses, if `first_use` is on
    # its addresses are pinned; its price is agreed if none was, or if the request showed that it had risen
    ALLOW = "pinned, agreed"
    AGREE = "agreed"  # its price is agreed if the request has none


class AlertEffect(Enum):
    """The alert that is raised or cleared."""

    RAISE_APPROVAL = "raise approval_needed"  # a payment waits for a person
    CLEAR_APPROVAL = "clear approval_needed"  # it waits no longer
    CLEAR_SIGNER = "clear signer_refused"  # the signer signs again, if it had refused
    # only if the block is still on the chain, and the providers deny at three tips, a minute apart, that it holds
    # the transaction: the provider that showed it there lied. A rollback, or another block, raises nothing
    RAISE_REOPENED = "may raise payment_reopened"
    CLEAR_UNSERVED = "clear paid_not_served"  # if it was raised: nothing was paid, so nothing is owed
    RAISE_UNSERVED = "may raise paid_not_served"  # only if the merchant was recorded as not serving it already


@dataclass(frozen=True, slots=True)
class Effect:
    """One row: the next state, and what the event does in each column, or None.

    `next`: None if the state stays and no event is stored. `through`: the state in between, if it stores two.
    """

    next: State | None
    through: State | None = None
    record: RecordEffect | None = None
    hold: HoldMove | None = None
    journal: Journal | None = None
    prepaid: PrepaidEffect | None = None
    inputs: Inputs | None = None
    outputs: Outputs | None = None
    merchant: MerchantEffect | None = None
    alert: AlertEffect | None = None


# sets of states, in the order in which SQL lists them: indexes of store.db.tables have some
NEVER_SIGNED = (State.REJECTED, State.DENIED)
"""Final states in which nothing was ever signed: the intent and the invoice may be used again."""

AWAITING_SIGNATURE = (State.RESERVED, State.REPLACING)
"""States whose next attempt and its UTxOs are decided but not signed yet."""

CANCELLABLE = (State.RESERVED, State.SIGNED, State.IN_FLIGHT, State.REPLACING)
"""States in which an operator can still cancel: no attempt is known to be in a block, and no cancel is signed."""

IN_NO_BLOCK = (State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
"""States after the first signature in which no attempt that pays is known to be in a block."""

SIGNED_UNPOSTED = (*IN_NO_BLOCK, State.IN_BLOCK)
"""States after the first signature in which the money is still held."""

ENDED_WITHOUT_PAYING = (*NEVER_SIGNED, State.VOID)
WITHOUT_PROOF = (*ENDED_WITHOUT_PAYING, State.CANCELLING)
"""States without a proof that a merchant could accept."""

POSTED = (State.CONFIRMED, State.SETTLED)
"""States whose spend is posted in the ledger. In earlier states it is held."""

ON_CHAIN = (State.IN_BLOCK, *POSTED)
BY_A_BLOCK = (*ON_CHAIN, State.VOID)
"""States that rest on a transaction in a block."""

_RESERVE = Effect(
    State.RESERVED,
    journal=Journal.RESERVE,
    hold=HoldMove.PLACE,
    inputs=Inputs.RESERVE,
    merchant=MerchantEffect.PIN,
)
_SIGN = Effect(State.SIGNED, record=RecordEffect.ATTEMPT, outputs=Outputs.MAKE, alert=AlertEffect.CLEAR_SIGNER)
_HAND_OVER = replace(_SIGN, next=State.IN_FLIGHT, through=State.SIGNED)
_SEEN = Effect(State.IN_BLOCK, record=RecordEffect.BLOCK, inputs=Inputs.SPEND, outputs=Outputs.LAND)
_BLOCK_LOST = Effect(
    State.IN_FLIGHT, inputs=Inputs.UNSPEND, outputs=Outputs.UNMAKE, alert=AlertEffect.RAISE_REOPENED
)
_REOPEN = Effect(State.CANCELLING, journal=Journal.REVERSE, hold=HoldMove.RENEW, alert=AlertEffect.RAISE_REOPENED)
_SETTLE = Effect(State.SETTLED, inputs=Inputs.RELEASE, outputs=Outputs.FORGET_OTHERS)
_REPLACE = Effect(State.REPLACING, inputs=Inputs.RESERVE)
_CANCEL = Effect(State.CANCELLING, record=RecordEffect.ATTEMPT, inputs=Inputs.RESERVE, outputs=Outputs.MAKE)
_VOID = Effect(
    State.VOID,
    journal=Journal.RELEASE,
    hold=HoldMove.RELEASE,
    prepaid=PrepaidEffect.NOT_BOUGHT,
    alert=AlertEffect.CLEAR_UNSERVED,
)
_VOID_BY_CANCEL = replace(
    _VOID,
    record=RecordEffect.BLOCK,
    journal=Journal.RELEASE_LESS_FEE,
    hold=HoldMove.RELEASE_LESS_FEE,
    inputs=Inputs.SPEND,
    outputs=Outputs.LAND,
)
_VOID_BY_TIME = replace(_VOID, inputs=Inputs.RELEASE, outputs=Outputs.FORGET_ALL)

EFFECTS: dict[tuple[State, Event], Effect] = {
    (State.RECEIVED, Event.RESERVE): _RESERVE,
    (State.RECEIVED, Event.REQUEST_APPROVAL): Effect(
        State.AWAITING_APPROVAL,
        record=RecordEffect.APPROVAL,
        hold=HoldMove.PLACE_APPROVAL,
        alert=AlertEffect.RAISE_APPROVAL,
    ),
    (State.RECEIVED, Event.REJECT): Effect(State.REJECTED),
    (State.AWAITING_APPROVAL, Event.APPROVE): replace(
        _RESERVE, merchant=MerchantEffect.ALLOW, alert=AlertEffect.CLEAR_APPROVAL
    ),
    (State.AWAITING_APPROVAL, Event.DENY): Effect(
        State.DENIED, hold=HoldMove.RELEASE_APPROVAL, alert=AlertEffect.CLEAR_APPROVAL
    ),
    (State.RESERVED, Event.SIGN): _SIGN,
    (State.RESERVED, Event.SIGN_HANDED_OVER): _HAND_OVER,
    (State.REPLACING, Event.SIGN): _SIGN,
    (State.REPLACING, Event.SIGN_HANDED_OVER): _HAND_OVER,
    (State.RESERVED, Event.REJECT): Effect(
        State.REJECTED, journal=Journal.RELEASE, hold=HoldMove.RELEASE, inputs=Inputs.RELEASE
    ),
    (State.SIGNED, Event.SUBMIT): Effect(State.IN_FLIGHT, record=RecordEffect.SUBMISSION),
    **{
        (state, Event.SUBMIT): Effect(None, record=RecordEffect.SUBMISSION)
        for state in (State.IN_FLIGHT, State.CANCELLING, *BY_A_BLOCK)
    },
    **{(state, Event.SEEN_IN_BLOCK): _SEEN for state in IN_NO_BLOCK},
    (State.IN_BLOCK, Event.CONFIRM): Effect(
        State.CONFIRMED,
        journal=Journal.POST,
        hold=HoldMove.COUNT_FROM_BLOCK,
        prepaid=PrepaidEffect.BUY,
        merchant=MerchantEffect.AGREE,
        alert=AlertEffect.RAISE_UNSERVED,
    ),
    (State.CONFIRMED, Event.SETTLE): _SETTLE,
    (State.VOID, Event.SETTLE): replace(_SETTLE, next=None),
    (State.IN_BLOCK, Event.BLOCK_LOST): _BLOCK_LOST,
    (State.CONFIRMED, Event.BLOCK_LOST): replace(
        _BLOCK_LOST, journal=Journal.REVERSE, hold=HoldMove.RENEW, prepaid=PrepaidEffect.TAKE_BACK
    ),
    (State.VOID, Event.CANCEL_BLOCK_LOST): replace(_REOPEN, inputs=Inputs.UNSPEND, outputs=Outputs.UNMAKE),
    (State.VOID, Event.RIVAL_BLOCK_LOST): _REOPEN,
    (State.VOID, Event.EXTERNAL_SPEND_BLOCK_LOST): _REOPEN,
    (State.SIGNED, Event.REPLACE): _REPLACE,
    (State.IN_FLIGHT, Event.REPLACE): _REPLACE,
    **{(state, Event.CANCEL): _CANCEL for state in IN_NO_BLOCK},
    **{
        (state, event): effect
        for state in IN_NO_BLOCK
        for event, effect in zip(_VOIDS, (_VOID_BY_CANCEL, _VOID, _VOID, _VOID_BY_TIME), strict=True)
    },
}
"""What each event does, by the state before it. A pair that is not here changes nothing: `effect_of` refuses it.

An approved payment releases the approval's hold before the limits are asked again (`release_approval_hold`)."""

_NEXT = {
    (state, event.stored): row.next
    for (state, event), row in EFFECTS.items()
    if row.next is not None and row.through is None
}


def effect_of(state: State, event: Event) -> Effect:
    """The row of the table. Raise `wrong_state` if there is none."""
    try:
        return EFFECTS[state, event]
    except KeyError:
        raise Refused("wrong_state", f"a payment that is {state} cannot take {event}") from None


def next_state(state: State, stored: str) -> State | None:
    """The state after an event, by its name in the ledger; None if the state takes no such event."""
    return _NEXT.get((state, stored))


class Delivery(StrEnum):
    """The state of the request that the payment is for."""

    NOT_PRESENTED = "not_presented"
    PRESENTED = "presented"
    ACCEPTED = "accepted"
    PAID_NOT_SERVED = "paid_not_served"


DELIVERIES_IN_WORDS = {
    Delivery.NOT_PRESENTED: "no retry was reported yet",
    Delivery.PRESENTED: "the proof was presented and not accepted yet",
    Delivery.ACCEPTED: "the request was served",
    Delivery.PAID_NOT_SERVED: "paid, but not served: present the same proof again, or ask the merchant",
}
"""What each state of the delivery means, for people to read."""


class DeliveryEvent(StrEnum):
    PRESENT = "present"  # the proof was presented and not accepted (yet)
    ACCEPT = "accept"  # the merchant served the request
    GIVE_UP = "give_up"  # paid on the chain, but the merchant does not serve: needs an operator


DELIVERIES: dict[tuple[Delivery, DeliveryEvent], Delivery] = {
    (Delivery.NOT_PRESENTED, DeliveryEvent.PRESENT): Delivery.PRESENTED,
    (Delivery.NOT_PRESENTED, DeliveryEvent.ACCEPT): Delivery.ACCEPTED,
    (Delivery.NOT_PRESENTED, DeliveryEvent.GIVE_UP): Delivery.PAID_NOT_SERVED,
    (Delivery.PRESENTED, DeliveryEvent.PRESENT): Delivery.PRESENTED,
    (Delivery.PRESENTED, DeliveryEvent.ACCEPT): Delivery.ACCEPTED,
    (Delivery.PRESENTED, DeliveryEvent.GIVE_UP): Delivery.PAID_NOT_SERVED,
    (Delivery.PAID_NOT_SERVED, DeliveryEvent.GIVE_UP): Delivery.PAID_NOT_SERVED,
    (Delivery.PAID_NOT_SERVED, DeliveryEvent.PRESENT): Delivery.PAID_NOT_SERVED,
    (Delivery.PAID_NOT_SERVED, DeliveryEvent.ACCEPT): Delivery.ACCEPTED,
    (Delivery.ACCEPTED, DeliveryEvent.ACCEPT): Delivery.ACCEPTED,
    (Delivery.ACCEPTED, DeliveryEvent.PRESENT): Delivery.ACCEPTED,
    (Delivery.ACCEPTED, DeliveryEvent.GIVE_UP): Delivery.ACCEPTED,
}


def deliver(delivery: Delivery, event: DeliveryEvent) -> Delivery:
    return DELIVERIES[delivery, event]


def is_served(http_status: int) -> bool:
    """Whether the client has what it requested: any 2xx, or 304 because it already has it."""
    return 200 <= http_status < 300 or http_status == 304


def delivery_event(http_status: int, state: State, invoice_over: bool) -> DeliveryEvent:
    """Return the delivery event that a retry's HTTP status stands for.

    A 402 soon after paying is normal (exactly-once.md): the client presents the same proof again. Once the
    payment is confirmed and the invoice has expired, an operator must decide.
    """
    if is_served(http_status):
        return DeliveryEvent.ACCEPT
    if state in POSTED and invoice_over:
        return DeliveryEvent.GIVE_UP
    return DeliveryEvent.PRESENT
