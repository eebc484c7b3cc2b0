"""The payment machine and the delivery machine, as tables.

Everything that changes a state is a row here; the agent executes what the rows allow and nothing else.
Money and delivery are two machines: a delivery problem presents the same proof again and never makes a
payment (rule 6). Depths count the block that holds the transaction as 1.

May import: the standard library, core.problems. Never: knows who drives it (an app, a sweep or a simulator).
"""

from enum import StrEnum

from payagent.core.problems import Refused


class State(StrEnum):
    """Where the money stands. `in_flight` covers submitting, seen in a mempool, and unknown: same duties."""

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
    State.RECEIVED: "received, and not decided yet",
    State.AWAITING_APPROVAL: "waits for a person to approve it",
    State.RESERVED: "within the limits; its money is held, nothing is signed yet",
    State.SIGNED: "signed and durable; it is about to be sent",
    State.IN_FLIGHT: "sent; nothing is known until a block shows it, so its money stays held",
    State.IN_BLOCK: "in a block, not yet deep enough to count as confirmed",
    State.CONFIRMED: "confirmed on the chain and posted in the ledger",
    State.SETTLED: "final: no rollback reaches it any more",
    State.REPLACING: "is being sent anew on the same anchor, so that only one can land",
    State.CANCELLING: "is being cancelled: its anchor goes back to the wallet",
    State.VOID: "void: nothing of it can land any more, the money is free again",
    State.REJECTED: "rejected; nothing was signed",
    State.DENIED: "denied, or nobody decided in time; nothing was signed",
}
"""What each means for the money, told to people."""


class Event(StrEnum):
    """What happened. Only positive evidence is an event; that nobody answered is none (rule 4)."""

    HOLD = "hold"  # policy said yes; hold, anchor and coins are durable
    ASK = "ask"  # policy wants a person to decide
    DENY = "deny"
    REJECT = "reject"  # refused, and nothing was ever signed
    SIGN = "sign"  # an attempt is durable
    LEAVE = "leave"  # its bytes are about to leave the process for the first time
    SEEN_IN_BLOCK = "seen_in_block"
    BLOCK_LOST = "block_lost"  # the block is not on the provider's chain any more
    CONFIRM = "confirm"  # confirm_depth reached
    SETTLE = "settle"  # settle_depth reached
    REPLACE = "replace"  # no attempt can land before its TTL any more: a new one on the same anchor
    CANCEL = "cancel"  # a transaction that takes the anchor back to ourselves is durable
    VOID = "void"  # the anchor is spent void_depth deep by another transaction, or all is too late for good


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.RECEIVED, Event.HOLD): State.RESERVED,
    (State.RECEIVED, Event.ASK): State.AWAITING_APPROVAL,
    (State.RECEIVED, Event.REJECT): State.REJECTED,
    (State.AWAITING_APPROVAL, Event.HOLD): State.RESERVED,
    (State.AWAITING_APPROVAL, Event.DENY): State.DENIED,
    (State.AWAITING_APPROVAL, Event.REJECT): State.REJECTED,
    (State.RESERVED, Event.SIGN): State.SIGNED,
    (State.RESERVED, Event.REJECT): State.REJECTED,
    (State.SIGNED, Event.LEAVE): State.IN_FLIGHT,
    (State.SIGNED, Event.SEEN_IN_BLOCK): State.IN_BLOCK,
    (State.SIGNED, Event.REPLACE): State.REPLACING,
    (State.SIGNED, Event.CANCEL): State.CANCELLING,
    (State.SIGNED, Event.VOID): State.VOID,
    (State.IN_FLIGHT, Event.SEEN_IN_BLOCK): State.IN_BLOCK,
    (State.IN_FLIGHT, Event.REPLACE): State.REPLACING,
    (State.IN_FLIGHT, Event.CANCEL): State.CANCELLING,
    (State.IN_FLIGHT, Event.VOID): State.VOID,
    (State.REPLACING, Event.SIGN): State.SIGNED,
    (State.REPLACING, Event.SEEN_IN_BLOCK): State.IN_BLOCK,
    (State.REPLACING, Event.CANCEL): State.CANCELLING,
    (State.REPLACING, Event.VOID): State.VOID,
    (State.CANCELLING, Event.SEEN_IN_BLOCK): State.IN_BLOCK,
    (State.CANCELLING, Event.CANCEL): State.CANCELLING,
    (State.CANCELLING, Event.VOID): State.VOID,
    (State.IN_BLOCK, Event.CONFIRM): State.CONFIRMED,
    (State.IN_BLOCK, Event.BLOCK_LOST): State.IN_FLIGHT,
    (State.CONFIRMED, Event.SETTLE): State.SETTLED,
    (State.CONFIRMED, Event.BLOCK_LOST): State.IN_FLIGHT,
    (State.VOID, Event.BLOCK_LOST): State.CANCELLING,
}

NEVER_SIGNED = frozenset({State.REJECTED, State.DENIED})
"""Ends in which no byte was ever signed: the intent and the invoice are free again."""

UNSIGNED = frozenset({State.RESERVED, State.REPLACING})
"""States whose next attempt is decided, with its coins, and not signed yet."""

ENDED_WITHOUT_PAYING = NEVER_SIGNED | {State.VOID}
WITHOUT_PROOF = ENDED_WITHOUT_PAYING | {State.CANCELLING}
"""States in which there is nothing to show to a merchant."""

ON_CHAIN = frozenset({State.IN_BLOCK, State.CONFIRMED, State.SETTLED})
POSTED = frozenset({State.CONFIRMED, State.SETTLED})
"""States whose spend is posted in the ledger; before them it is held."""


def move(state: State, event: Event) -> State:
    """The state after an event; `illegal_transition` when the table has no such row, and nothing changes."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise Refused("illegal_transition", f"a payment that is {state} cannot take {event}") from None


class Delivery(StrEnum):
    """Where the call stands that the money is for."""

    NOT_PRESENTED = "not_presented"
    PRESENTED = "presented"
    ACCEPTED = "accepted"
    PAID_NOT_SERVED = "paid_not_served"


class DeliveryEvent(StrEnum):
    PRESENT = "present"  # the proof was shown and not (yet) accepted
    ACCEPT = "accept"  # the call was served
    GIVE_UP = "give_up"  # the money is on the chain and the merchant will not serve: needs a person


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
    """Whether a status says that the client has what it called for: a 304, that it has it already."""
    return 200 <= http_status < 300 or http_status == 304


def delivery_event(http_status: int, state: State, invoice_over: bool) -> DeliveryEvent:
    """What a retry's HTTP status means for delivery.

    A 402 after paying is normal while the payment is young (docs/exactly-once.md): the same proof is
    presented again. Once the money is confirmed and the invoice is over, it is a person's matter.
    """
    if is_served(http_status):
        return DeliveryEvent.ACCEPT
    if state in POSTED and invoice_over:
        return DeliveryEvent.GIVE_UP
    return DeliveryEvent.PRESENT


def mermaid() -> str:
    """The payment machine as a Mermaid state diagram, for the documentation."""
    rows = [f"    {state} --> {TRANSITIONS[state, event]}: {event}" for state, event in TRANSITIONS]
    return "\n".join(["stateDiagram-v2", "    [*] --> received", *rows])
