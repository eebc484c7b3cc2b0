"""Targets of notifications, and what they were sent. May import: core, agent, store.rows, pydantic. Never: I/O."""

from typing import Literal, Self

from pydantic import BaseModel

from payagent.agent.operator.notifier import Notifier
from payagent.agent.operator.telegram import TelegramTarget
from payagent.api.models.base import Time
from payagent.store.rows.notifications import DeliveryRow, TargetState


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


class NotificationDelivery(BaseModel):
    """An event that a target was told, or is to be told.

    `event`: its number in the event stream. `at`: when it was first due, or replayed. `tries`: failed ones since
    then.
    """

    id: str
    target: str
    type: str
    event: int
    payment: str | None
    state: Literal["waiting", "delivered", "given_up"]
    at: Time
    tries: int
    next_try_at: Time | None
    delivered_at: Time | None
    last_problem: str | None

    @classmethod
    def of(cls, row: DeliveryRow) -> Self:
        return cls(
            id=row.id,
            target=row.target,
            type=row.type,
            event=row.event_seq,
            payment=row.payment_id,
            state=row.state,
            at=row.from_ms,
            tries=row.tries,
            next_try_at=row.next_try_at_ms,
            delivered_at=row.delivered_at_ms,
            last_problem=row.last_problem,
        )


class NotificationDeliveries(BaseModel):
    deliveries: list[NotificationDelivery]
    cursor: str | None


class NotificationTest(BaseModel):
    """`problem`: why the target did not take the test; null if it did."""

    id: str
    problem: str | None
