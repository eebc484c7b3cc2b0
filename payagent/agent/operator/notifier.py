"""Tells the operator's targets what happened: one `Notifier` for each target of the config.

The event of the ledger is the durable record, so telling costs a payment nothing. A run reads the events since the
target's cursor, adds its deliveries and moves the cursor in one commit, and sends what is due. A target that fails
holds up no other. Start with `Notifier.run_once`.

Never: moves money; counts a delivery as taken unless the target says so; stores a link that decides something.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from payagent.agent.base.log import log
from payagent.agent.context import AgentContext
from payagent.agent.operator.approval_links import WAYS, ApprovalLinks
from payagent.core.aggregate import PaymentRow
from payagent.core.money import for_people, format_amount
from payagent.core.notifications import (
    APPROVAL_ASKED,
    LIMIT_REACHED,
    READ_EVENTS,
    TEST,
    LedgerEvent,
    Missed,
    Notification,
    PaymentFacts,
    is_give_up,
    notification_of,
    wants,
)
from payagent.core.payment.machine import State
from payagent.core.timestamps import iso_time
from payagent.settings.schema import NotificationSettings
from payagent.store.db.unit import Unit
from payagent.store.rows import approvals, apps, chats, events, notifications, payments, prepaid, topups
from payagent.store.rows.events import EventRow
from payagent.store.rows.notifications import DeliveryRow

RETRY_AFTER_MS = (5_000, 30_000, 120_000, 600_000, 3_600_000)
RETRY_EVERY_MS = 21_600_000
RETRY_FOR_MS = 86_400_000
"""How long a delivery is retried: after a day it is given up. An operator can replay it."""

ASK_EVERY_MS = 60_000
"""The longest wait for the next try of an open request for approval. It is not given up while it is open."""

SENT_MAX = 100
"""The most deliveries of one run: the next run sends the rest."""

LIMIT_QUIET_MS = 3_600_000
"""A limit that has no room is told once, until an hour has passed without a refusal by it."""


class TargetPort(Protocol):
    """Somewhere that notifications go, such as `outbound.webhook.Webhook`."""

    async def send(self, notification: Notification, links: Mapping[str, str], now_ms: int) -> Missed | None:
        """Send it, within 10 s or so. Returns None if it was taken.

        `links`: `approve_url` and `deny_url` while a payment awaits a decision. They are stored nowhere.
        """

    async def aclose(self) -> None: ...


def retry_at_ms(from_ms: int, wait: int, now_ms: int) -> int | None:
    """When to send a delivery first due at `from_ms` again, after a wait in ms; None if it is a day old.

    The last try is after a day.
    """
    end_ms = min(from_ms, now_ms) + RETRY_FOR_MS
    return min(now_ms + wait, end_ms) if now_ms < end_ms else None


def wait_ms(tries: int) -> int:
    """The wait after this many failed tries."""
    waits_ms = (0, *RETRY_AFTER_MS)
    return waits_ms[tries] if tries < len(waits_ms) else RETRY_EVERY_MS


async def take_targets(context: AgentContext, names: Sequence[str]) -> None:
    """Begin with the targets of the config. A new one is told what happens from now on.

    What waits for one that is no longer in the config is given up, and its chats are unpaired.
    """
    known = notifications.targets(context.conn)
    if known == set(names):
        return

    def job(unit: Unit, now_ms: int) -> None:
        notifications.forget_others(unit, names)
        for gone in sorted(known - set(names)):
            for chat in chats.of_target(unit.conn, gone):
                chats.unpair(unit, gone, chat.chat_id, None, now_ms)
        newest, _ = events.last_event(unit.conn)
        for name in sorted(set(names) - known):
            notifications.set_cursor(unit, name, newest)

    await context.write_at("notify", job)


class Notifier:
    """Tells one target. One `run_once` at a time."""

    def __init__(
        self,
        context: AgentContext,
        settings: NotificationSettings,
        target: TargetPort,
        links: ApprovalLinks | None = None,
    ) -> None:
        self.name = settings.name
        self.kind = settings.kind
        self.wanted = settings.wanted
        self._context = context
        self.target = target
        self._links = links
        self._limit_reached_ms: dict[tuple[str | None, ...], int] = {}

    async def run_once(self) -> None:
        """Add the deliveries of new events, and send those that are due."""
        await self._add_deliveries()
        await self._send_due()

    async def replay(self, delivery_id: str) -> None:
        """Make a delivery due again, as if it were new. The next run sends it."""
        await self._context.write_at(
            "notify", lambda unit, now_ms: notifications.replay(unit, delivery_id, now_ms)
        )

    async def test(self) -> tuple[str, str | None]:
        """Send a notification of the type `test`, once. Returns its id, and why the target did not take it."""
        now_ms = self._context.ports.clock.now_ms()
        text = f"payagent sends notifications to {self.name}."
        notification = Notification(
            self._context.ports.new_id("ntf"), TEST, now_ms, "A test by payagent", text, {}, None, None, None
        )
        missed = await self.target.send(self._as_sent(notification), {}, now_ms)
        return notification.id, None if missed is None else missed.why

    async def _add_deliveries(self) -> None:
        """Add a delivery for each event since the cursor that the target wants, and move the cursor past them."""
        conn = self._context.conn
        cursor, (newest, _) = notifications.cursor(conn, self.name), events.last_event(conn)
        if cursor == newest:
            return
        limit_reached_ms = dict(self._limit_reached_ms)
        told = [
            (found.id, row.seq, found.type)
            for row in notifications.read_events(conn, cursor, newest, READ_EVENTS)
            if (found := self._notification(row)) is not None and self._is_told(found, limit_reached_ms)
        ]

        def job(unit: Unit, now_ms: int) -> None:
            notifications.add(unit, self.name, told, now_ms)
            notifications.set_cursor(unit, self.name, newest)

        await self._context.write_at("notify", job)
        self._limit_reached_ms = limit_reached_ms

    def _is_told(self, notification: Notification, limit_reached_ms: dict[tuple[str | None, ...], int]) -> bool:
        """Whether the target is told. Refusals by a limit come in floods, and the first one tells all.

        `limit_reached_ms`: the last refusal by each limit, to which this one is added.
        """
        if not wants(self.wanted, notification):
            return False
        if notification.type != LIMIT_REACHED:
            return True
        limit = tuple(notification.data.get(name) for name in ("limit", "asset", "scope"))
        before_ms = limit_reached_ms.get(limit)
        limit_reached_ms[limit] = notification.at_ms
        return before_ms is None or not 0 <= notification.at_ms - before_ms < LIMIT_QUIET_MS

    async def _send_due(self) -> None:
        """Send in order and stop at the first failure, which waits for its retry while the next run goes on.

        People are not asked what is decided already.
        """
        conn, clock = self._context.conn, self._context.ports.clock
        for row in notifications.due(conn, self.name, clock.now_ms(), RETRY_EVERY_MS, SENT_MAX):
            if row.type == APPROVAL_ASKED and self.kind != "webhook" and not self._is_open(row.payment_id):
                await self._note_missed(row, Missed("it was decided before it could be sent", then="given_up"))
                continue
            notification = self._notification(notifications.event(conn, row.event_seq))
            if notification is None:
                raise KeyError(f"the event {row.event_seq} is told no more")
            missed = await self.target.send(
                self._as_sent(notification), self._links_of(notification), clock.now_ms()
            )
            if missed is None or missed.then == "delivered":
                await self._note_delivered(row, missed)
                continue
            await self._note_missed(row, missed)
            if missed.then == "waiting":
                return

    def _notification(self, row: EventRow) -> Notification | None:
        """What an event tells, under the id that it has for this target."""
        conn, detail = self._context.conn, json.loads(row.detail)
        payment_id = row.payment_id or detail.get("payment")
        payment = None if payment_id is None else payments.payment(conn, payment_id)
        if is_give_up(row.event, detail) and notifications.was_over_before(conn, str(payment_id), row.seq):
            return None
        origin = detail.get("merchant") or detail.get("origin") or self._origin_of(payment, detail)
        app_id = detail.get("app") or (None if payment is None else payment.app_id)
        app = None if app_id is None else apps.by_id(conn, app_id)
        digest = hashlib.sha256(f"{row.hash}\n{self.name}".encode()).hexdigest()
        event = LedgerEvent(
            f"ntf_{digest[:24]}",
            row.event,
            row.at_ms,
            detail,
            None if payment is None else self._facts(payment),
            self._context.config.merchant_name(origin),
            app_id if app is None else app.name,
        )
        return notification_of(event)

    def _origin_of(self, payment: PaymentRow | None, detail: Mapping[str, object]) -> str | None:
        """The merchant's origin of a payment or of a top-up."""
        conn = self._context.conn
        if payment is not None:
            return payment.invoice.origin
        topup = topups.find(conn, str(detail["topup"])) if "topup" in detail else None
        return None if topup is None else prepaid.pool(conn, topup.pool_id).origin

    def _facts(self, row: PaymentRow) -> PaymentFacts:
        """The payment in words. One that only returns to the wallet, such as a split, pays nothing to anybody."""
        units: dict[str, int] = {}
        for output in row.outputs:
            if output.role != "change":
                units[output.asset] = units.get(output.asset, 0) + output.units
        to = self._context.config.merchant_name(row.invoice.origin)
        return PaymentFacts(
            row.id,
            " and ".join(format_amount(asset, count) for asset, count in units.items()),
            row.outputs[0].address if to is None else to,
            row.attempt.tx_id,
            events.purpose_of(self._context.conn, row.id),
        )

    def _as_sent(self, notification: Notification) -> Notification:
        """With the wallet in its data, and with readable amounts in its texts."""
        config = self._context.config
        wallet = {"network": config.network.name, "address": config.own.text}
        title, text, *lines = (
            for_people(one, config.tokens) for one in (notification.title, notification.text, *notification.lines)
        )
        data = {**wallet, **notification.data}
        return replace(notification, title=title, text=text, lines=tuple(lines), data=data)

    def _links_of(self, notification: Notification) -> dict[str, str]:
        """The links that decide an approval, while it is open."""
        payment_id = notification.payment_id
        if self._links is None or notification.type != APPROVAL_ASKED or not self._is_open(payment_id):
            return {}
        approval = approvals.of_payment(self._context.conn, payment_id or "")
        return {} if approval is None else {f"{way}_url": self._links.url(approval, way) for way in WAYS}

    def _is_open(self, payment_id: str | None) -> bool:
        """Whether a payment still awaits a decision."""
        return self._context.payment(payment_id or "").state is State.AWAITING_APPROVAL

    async def _note_delivered(self, row: DeliveryRow, missed: Missed | None) -> None:
        """`missed`: that a part of the target did not take it."""
        problem = None if missed is None else missed.why
        if problem is not None:
            log.warning(
                "notification.not_delivered", notification=row.id, to=self.name, why=problem, again_at=None
            )
        await self._context.write_at(
            "notify", lambda unit, now_ms: notifications.set_delivered(unit, row, now_ms, problem)
        )

    async def _note_missed(self, row: DeliveryRow, missed: Missed) -> None:
        """Set the next try, at the service's own time if it named one, and give up what is too old."""
        now_ms = self._context.ports.clock.now_ms()
        tries, again_at_ms = row.tries, None
        if missed.then == "waiting":
            tries = row.tries + (missed.wait_s is None)
            again_at_ms = self._again_at_ms(row, missed, tries, now_ms)
        again_at = None if again_at_ms is None else iso_time(again_at_ms)
        log.warning(
            "notification.not_delivered", notification=row.id, to=self.name, why=missed.why, again_at=again_at
        )

        def job(unit: Unit) -> None:
            notifications.set_missed(unit, row, missed.why, again_at_ms, tries, now_ms)
            if missed.then == "waiting":
                notifications.give_up_old(unit, self.name, now_ms - RETRY_FOR_MS)

        await self._context.write("notify", job)

    def _again_at_ms(self, row: DeliveryRow, missed: Missed, tries: int, now_ms: int) -> int | None:
        is_asking = row.type == APPROVAL_ASKED and self._is_open(row.payment_id)
        if missed.wait_s is not None:
            wait = min(math.ceil(missed.wait_s * 1000), RETRY_EVERY_MS)
        else:
            wait = min(wait_ms(tries), ASK_EVERY_MS) if is_asking else wait_ms(tries)
        return now_ms + wait if is_asking else retry_at_ms(row.from_ms, wait, now_ms)
