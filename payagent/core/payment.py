"""The payment and delivery state machines, as transition tables.

Each state change is a row of TRANSITIONS or DELIVERIES; the agent makes no other. Money and delivery are separate:
a delivery problem presents the same proof again and never makes a payment (rule 6). Depths count the block that
holds the transaction as 1.

May import: the standard library, core.problems.
Never: depends on its driver (an app, a job or a simulator).
"""

from enum import StrEnum

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
    State.RESERVED: "admitted: the money is held, nothing is signed yet",
    State.SIGNED: "signed and stored, about to be submitted",
    State.IN_FLIGHT: "submitted: the money stays held until a block shows the transaction",
    State.IN_BLOCK: "in a block that is not deep enough yet",
    State.CONFIRMED: "confirmed on the chain and posted in the ledger",
    State.SETTLED: "final: no rollback reaches it any more",
    State.REPLACING: "being replaced by an attempt that spends the same nonce UTxO; only one can be on the chain",
    State.CANCELLING: "being cancelled: its UTxOs return to the wallet",
    State.VOID: "void: it can never be on the chain, the money is available again",
    State.REJECTED: "rejected; nothing was signed",
    State.DENIED: "denied, or not approved in time; nothing was signed",
}
"""What each state means for the money, for people to read."""


class Event(StrEnum):
    """An event of the payment machine. Only positive evidence is an event; a missing answer is not (rule 4)."""

    RESERVE = "reserve"  # the policy allows it; hold, nonce UTxO and reserved UTxOs are durable
    REQUEST_APPROVAL = "request_approval"  # the policy requires an approval
    DENY = "deny"
    REJECT = "reject"  # refused, and nothing was ever signed
    SIGN = "sign"  # a signed attempt is durable
    SUBMIT = "submit"  # its bytes are about to be sent for the first time
    SEEN_IN_BLOCK = "seen_in_block"
    BLOCK_LOST = "block_lost"  # rolled back: the block is no longer on the provider's chain
    CONFIRM = "confirm"  # confirm_depth reached
    SETTLE = "settle"  # settle_depth reached
    REPLACE = "replace"  # no attempt can land before its TTL any more: make a new one with the same nonce UTxO
    CANCEL = "cancel"  # a transaction that sends the nonce UTxO back to the wallet is durable
    VOID = "void"  # another transaction spent the nonce UTxO void_depth deep, or nothing can land any more


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.RECEIVED, Event.RESERVE): State.RESERVED,
    (State.RECEIVED, Event.REQUEST_APPROVAL): State.AWAITING_APPROVAL,
    (State.RECEIVED, Event.REJECT): State.REJECTED,
    (State.AWAITING_APPROVAL, Event.RESERVE): State.RESERVED,
    (State.AWAITING_APPROVAL, Event.DENY): State.DENIED,
    (State.RESERVED, Event.SIGN): State.SIGNED,
    (State.RESERVED, Event.REJECT): State.REJECTED,
    (State.SIGNED, Event.SUBMIT): State.IN_FLIGHT,
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
"""Final states in which nothing was ever signed: the intent and the invoice may be used again."""

UNSIGNED = frozenset({State.RESERVED, State.REPLACING})
"""States whose next attempt and its UTxOs are decided but not signed yet."""

ENDED_WITHOUT_PAYING = NEVER_SIGNED | {State.VOID}
WITHOUT_PROOF = ENDED_WITHOUT_PAYING | {State.CANCELLING}
"""States without a proof that a merchant could accept."""

ON_CHAIN = frozenset({State.IN_BLOCK, State.CONFIRMED, State.SETTLED})
POSTED = frozenset({State.CONFIRMED, State.SETTLED})
"""States whose spend is posted in the ledger. In earlier states it is held."""


def move(state: State, event: Event) -> State:
    """Return the state after an event. Raise `wrong_state` if the table has no such row."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise Refused("wrong_state", f"a payment that is {state} cannot take {event}") from None


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


def mermaid() -> str:
    """Render the payment machine as a Mermaid state diagram for the documentation."""
    rows = [f"    {state} --> {TRANSITIONS[state, event]}: {event}" for state, event in TRANSITIONS]
    return "\n".join(["stateDiagram-v2", "    [*] --> received", *rows])
