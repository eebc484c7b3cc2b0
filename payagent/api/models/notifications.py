"""Targets of notifications, what they were sent, and the chats that are paired with them.

Never: I/O.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from payagent.agent.operator.notifier import Notifier
from payagent.agent.operator.telegram import TelegramTarget
from payagent.api.models.base import RequestBody, Shown, Time
from payagent.store.rows.notifications import TargetState


class NotificationTarget(BaseModel):
    """A target of the config. Its filter: events, merchants and apps; an empty list wants all.

    Without events, only a webhook is told of confirmed payments and of complete top-ups.
    `chats`: how many chats are paired; null unless its kind is telegram. `waiting`: deliveries that are not taken
    yet. `last_problem`: why the newest try failed, if it did.
    """

    name: str
    kind: str
    events: list[str]
    merchants: list[str]
    apps: list[str]
    chats: int | None
    waiting: int
    last_delivered_at: Time | None
    last_problem: str | None

    @classmethod
    def of(cls, notifier: Notifier, state: TargetState) -> Self:
        return cls(
            name=notifier.name,
            kind=notifier.kind,
            events=list(notifier.wanted.events),
            merchants=list(notifier.wanted.merchants),
            apps=list(notifier.wanted.apps),
            chats=len(notifier.target.paired()) if isinstance(notifier.target, TelegramTarget) else None,
            waiting=state.waiting,
            last_delivered_at=state.last_delivered_at_ms,
            last_problem=state.last_problem,
        )


class NotificationTargets(BaseModel):
    notifications: list[NotificationTarget]


class NotificationDelivery(Shown):
    """An event that a target was told, or is to be told.

    `event`: its number in the event stream. `at`: when it was first due, or replayed. `tries`: failed ones since
    then.
    """

    id: str
    target: str
    type: str
    event: int = Field(validation_alias="event_seq")
    payment: str | None = Field(validation_alias="payment_id")
    state: Literal["waiting", "delivered", "given_up"]
    at: Time = Field(validation_alias="from_ms")
    tries: int
    next_try_at: Time | None = Field(validation_alias="next_try_at_ms")
    delivered_at: Time | None = Field(validation_alias="delivered_at_ms")
    last_problem: str | None


class NotificationDeliveries(BaseModel):
    deliveries: list[NotificationDelivery]
    cursor: str | None


class NotificationTest(BaseModel):
    """`problem`: why the target did not take the test; null if it did."""

    id: str
    problem: str | None


ChatId = Annotated[
    int, Field(ge=-(2**52), le=2**52, description="As Telegram numbers chats; a group is negative.")
]


class Pairing(BaseModel):
    """A code that pairs one chat, once."""

    code: Annotated[str, Field(description="Send it to the bot in the chat that is to be paired.")]
    expires_at: Time


class Chat(BaseModel):
    """A chat that is told news. `user`: the person who paired it, the only one whose presses on buttons decide."""

    chat: int
    user: int
    paired_at: Time


class Chats(BaseModel):
    chats: list[Chat]


class UnpairChat(RequestBody):
    """Unpair a chat."""

    chat: ChatId
