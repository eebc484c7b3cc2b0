"""Raises an alert when something runs low, clears it when it recovers, and logs every alert.

An alert is a row and an event in one commit, then a log line. `operator.notifier` tells the event to the targets.
The newest alert about a subject tells whether it is raised, so a restart repeats nothing. Start with
`AlertMonitor.run_once`.

Never: moves money.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.log import log
from payagent.agent.base.prepaid import left as prepaid_left
from payagent.agent.context import AgentContext
from payagent.core.ledger import WALLET, general_account
from payagent.core.money import LOVELACE, format_ada
from payagent.core.prepaid_balance import CALLS
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts, attempts_and_utxos, journal, prepaid


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


async def note_check(context: AgentContext, command: str, found: int) -> None:
    """Raise an alert if a check of the whole ledger found something, clear it after a clean one.

    `command`: what repeats the check.
    """
    subject = f"books:{command}"
    if alerts.is_raised(context.conn, subject) == (found > 0):
        return

    def job(unit: Unit, now_ms: int) -> None:
        if found:
            detail = f"`{command}` found {found} differences. Run it again to see them"
            raise_alert(unit, "books_wrong", subject, {"detail": detail, "found": str(found)}, now_ms)
        else:
            clear_alert(unit, subject, {"detail": f"`{command}` found nothing"}, now_ms)

    await context.write_at("alert", job)


class AlertMonitor:
    """Watches levels and logs alerts. One `run_once` at a time."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._last_logged = alerts.last_seq(context.conn)

    async def run_once(self) -> None:
        """Raise and clear alerts, and log the new ones from anywhere."""
        now_ms = self._context.ports.clock.now_ms()
        if any(_crossings(self._context.conn, self._levels(self._context.conn, now_ms))):
            await self._context.write("alert", lambda unit: self._decide(unit, now_ms))
        for alert in alerts.after(self._context.conn, self._last_logged):
            event = "alert.cleared" if alert.kind == alerts.CLEARED else "alert.raised"
            log.warning(event, alert=alert.id, kind=alert.kind, subject=alert.subject, **alert.facts)
            self._last_logged = alert.seq

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
    left = sum(
        units
        for account, asset, units in journal.balances(conn)
        if (general_account(account), asset) == (WALLET, LOVELACE)
    )
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
        detail = f"prepaid calls left at {pool.origin}: {left}; merchants.{name}.prepaid_alert_below is {mark}"
        facts = {"detail": detail, "unit": CALLS, "left": str(left), "below": str(mark)}
        facts |= {"merchant": pool.origin, "partner": pool.partner, "wallet": pool.wallet}
        yield Level("prepaid_low", f"prepaid:{pool.id}", left, mark, facts)
