"""Raises an alert when something runs low, clears it when it recovers, and sends alerts to the webhook.

An alert is a row and an event in one commit, then a log line and a webhook request. The newest alert about a
subject tells whether it is raised, so a restart repeats nothing. Start with `AlertMonitor.run_once`.

May import: core, store, outbound.webhook, the rest of agent. Never: moves money; counts an alert as delivered
without a 2xx answer; shows a secret.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import structlog

from payagent.agent.base.alert_records import clear_alert, raise_alert
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import left as prepaid_left
from payagent.agent.context import AgentContext
from payagent.agent.operator.approval_links import WAYS, ApprovalLinks
from payagent.core.ledger import WALLET
from payagent.core.money import LOVELACE, format_ada
from payagent.core.prepaid_balance import CALLS
from payagent.core.timestamps import iso_time
from payagent.outbound.webhook import Webhook
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import alerts, approvals, attempts_and_utxos, journal, prepaid
from payagent.store.rows.alerts import AlertRow

RETRY_AFTER_MS = (5_000, 30_000, 120_000, 600_000, 3_600_000)
RETRY_EVERY_MS = 21_600_000
RETRY_FOR_MS = 259_200_000
"""How long delivery of an alert is retried: after three days it is no longer news."""

log = structlog.get_logger("payagent.agent")


@dataclass(frozen=True, slots=True)
class Level:
    """How much is left of something with a mark. `kind`: the alert to raise when that is below the mark."""

    kind: str
    subject: str
    left: int
    mark: int
    facts: Mapping[str, str]


def crossing(left: int, mark: int, is_raised: bool) -> bool | None:
    """True: raise the alert. False: clear it. None: no change. Exactly at the mark is not low."""
    is_low = left < mark
    return None if is_low == is_raised else is_low


def retry_at_ms(at_ms: int, tries: int, now_ms: int) -> int | None:
    """When to send an alert raised at `at_ms` again, after this many failed tries; None if never."""
    again_ms = now_ms + wait_ms(tries)
    return again_ms if again_ms < at_ms + RETRY_FOR_MS else None


def wait_ms(tries: int) -> int:
    """The wait after this many failed tries."""
    waits_ms = (0, *RETRY_AFTER_MS)
    return waits_ms[tries] if tries < len(waits_ms) else RETRY_EVERY_MS


def is_due(alert: AlertRow, now_ms: int) -> bool:
    """Whether to send now. True also before the wait began: a clock set back must not delay the alert."""
    due_ms = alert.next_try_at_ms
    return due_ms is not None and not due_ms - wait_ms(alert.tries) <= now_ms < due_ms


def payload(alert: AlertRow, config: AgentConfig, links: Mapping[str, str]) -> bytes:
    """The webhook body: the same bytes each time. `links` are stored nowhere."""
    body = {
        "id": alert.id,
        "kind": alert.kind,
        "subject": alert.subject,
        "at": iso_time(alert.at_ms),
        "network": config.network.name,
        "address": config.own.text,
        **alert.facts,
        **links,
    }
    return json.dumps(body, separators=(",", ":")).encode()


class AlertMonitor:
    """Watches levels and delivers alerts. One `run_once` at a time."""

    def __init__(self, context: AgentContext, webhook: Webhook | None, links: ApprovalLinks | None = None) -> None:
        self._context = context
        self._webhook = webhook
        self._links = links
        self._last_logged = alerts.last_seq(context.conn)

    async def run_once(self) -> None:
        """Raise and clear alerts, log the new ones from anywhere, and send those that are due."""
        now_ms = self._context.ports.clock.now_ms()
        if any(_crossings(self._context.conn, self._levels(self._context.conn, now_ms))):
            await self._context.write("alert", lambda unit: self._decide(unit, now_ms))
        for alert in alerts.after(self._context.conn, self._last_logged):
            event = "alert.cleared" if alert.kind == alerts.CLEARED else "alert.raised"
            log.warning(event, alert=alert.id, kind=alert.kind, subject=alert.subject, **alert.facts)
            self._last_logged = alert.seq
        if self._webhook is not None:
            await self._send(self._webhook)

    def _levels(self, conn: Connection, now_ms: int) -> Iterator[Level]:
        """All levels. The wallet's are included once its UTxOs were read."""
        is_wallet_known = self._context.chain.tip is not None
        return chain(
            _wallet(conn, self._context.config) if is_wallet_known else (),
            _prepaid(conn, self._context.config, now_ms),
        )

    def _decide(self, unit: Unit, now_ms: int) -> None:
        for level, is_low in list(_crossings(unit.conn, self._levels(unit.conn, now_ms))):
            if is_low:
                raise_alert(unit, level.kind, level.subject, level.facts, now_ms)
            else:
                clear_alert(unit, level.subject, level.facts, now_ms)

    async def _send(self, webhook: Webhook) -> None:
        """Send in order and stop at the first failure.

        The receiver is probably down then, and a shutdown waits for us.
        """
        clock = self._context.ports.clock
        now_ms = clock.now_ms()
        waiting = alerts.waiting(self._context.conn, now_ms - RETRY_FOR_MS)
        for alert in [alert for alert in waiting if is_due(alert, now_ms)]:
            body = payload(alert, self._context.config, self._links_of(alert))
            problem = await webhook.deliver(alert.id, clock.now_ms(), body)
            if problem is not None:
                await self._note_missed(alert, problem)
                return
            await self._note_delivered(alert.seq)

    def _links_of(self, alert: AlertRow) -> dict[str, str]:
        """The links that decide an approval, while it is open."""
        payment_id = alert.facts.get("payment", "")
        approval = approvals.of_payment(self._context.conn, payment_id)
        is_open = approval is not None and approvals.decided(self._context.conn, payment_id) is None
        if self._links is None or approval is None or not is_open or alert.kind != "approval_needed":
            return {}
        return {f"{way}_url": self._links.url(approval, way) for way in WAYS}

    async def _note_delivered(self, seq: int) -> None:
        now_ms = self._context.ports.clock.now_ms()
        await self._context.write("alert", lambda unit: alerts.set_delivered(unit, seq, now_ms))

    async def _note_missed(self, alert: AlertRow, problem: str) -> None:
        again_at_ms = retry_at_ms(alert.at_ms, alert.tries + 1, self._context.ports.clock.now_ms())
        again_at = None if again_at_ms is None else iso_time(again_at_ms)
        log.warning("alert.not_delivered", alert=alert.id, why=problem, again_at=again_at)
        await self._context.write("alert", lambda unit: alerts.set_missed(unit, alert.seq, again_at_ms))


def _crossings(conn: Connection, levels: Iterator[Level]) -> Iterator[tuple[Level, bool]]:
    """The levels whose alert is to be raised (True) or cleared (False)."""
    for level in levels:
        is_low = crossing(level.left, level.mark, alerts.is_raised(conn, level.subject))
        if is_low is not None:
            yield level, is_low


def _wallet(conn: Connection, config: AgentConfig) -> Iterator[Level]:
    """Our ADA that is not held for a payment, less UTxOs that cannot be spent.

    Pending change counts. Without it the amount would fall with every payment and recover with its block, and
    raise an alert each time.
    """
    mark = config.wallet_below_lovelace
    if mark is None:
        return
    left = sum(units for account, asset, units in journal.balances(conn) if (account, asset) == (WALLET, LOVELACE))
    left -= sum(
        utxo.lovelace
        for utxo in attempts_and_utxos.utxos(conn)
        if utxo.state in ("locked", "missing") and utxo.reserved_for is None
    )
    detail = (
        f"{format_ada(left)} in the wallet are not held for payments; alerts.wallet_below is {format_ada(mark)}"
    )
    facts = {"detail": detail, "unit": LOVELACE, "left": str(left), "below": str(mark)}
    yield Level("wallet_low", "wallet", left, mark, facts)


def _prepaid(conn: Connection, config: AgentConfig, now_ms: int) -> Iterator[Level]:
    """The calls left or under way, by our count or the merchant's, for each pool at a merchant with a mark."""
    merchants = [merchant for merchant in config.merchants.values() if merchant.prepaid_alert_below]
    marks = {merchant.origin: (merchant.name, merchant.prepaid_alert_below) for merchant in merchants}
    for holding in prepaid.holdings(conn) if marks else ():
        pool = holding.pool
        name, mark = marks.get(pool.origin, ("", None))
        if holding.unit != CALLS or mark is None:
            continue
        left = prepaid_left(conn, pool, CALLS, now_ms)
        detail = f"{left} prepaid calls are left at {pool.origin}; merchants.{name}.prepaid_alert_below is {mark}"
        facts = {"detail": detail, "unit": CALLS, "left": str(left), "below": str(mark)}
        facts |= {"merchant": pool.origin, "partner": pool.partner, "wallet": pool.wallet}
        yield Level("prepaid_low", f"prepaid:{pool.id}", left, mark, facts)
