"""SIGHUP: the config file is read again while the daemon runs; all that it says counts, or nothing of it.

Merchants, limits, thresholds of approvals, the wallet's low mark and its upkeep are taken over. What else has
changed takes a new start, and then nothing is taken.

May import: core, settings, store, agent.context, agent.base, structlog. Never: takes over a part; changes what it
does not record.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace

import structlog

from payagent.agent.base.config import AgentConfig
from payagent.agent.context import AgentContext
from payagent.core.problems import Refused
from payagent.settings.schema import Settings, changes
from payagent.store.db.unit import Unit
from payagent.store.rows import writes as records

_TAKEN = re.compile(
    r"merchants(\..*)?|limits\.(per_(payment|hour|day|week|month)|total|assets)"
    r"|approvals\.(above|timeout_s)|alerts\.wallet_below|wallet\.upkeep_per_day"
)
"""Keys that are taken over; but for what follows of them for others that are not."""

log = structlog.get_logger("payagent.config")


class ConfigReload:
    """`read` reads the file as the start did; `make` is what it comes to for the agent. One at a time."""

    def __init__(
        self,
        context: AgentContext,
        settings: Settings,
        read: Callable[[], Settings],
        make: Callable[[Settings], AgentConfig],
    ) -> None:
        self._context = context
        self._settings = settings
        self._read = read
        self._make = make
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Take the file over, or say in one line of the log why everything stays as it was."""
        async with self._lock:
            try:
                changed = await self._take()
            except Refused as refused:
                log.warning("config.refused", why=refused.detail, kept="all settings stay as they were")
            else:
                log.warning("config.read", changed=changed)

    async def _take(self) -> dict[str, dict[str, object]]:
        """What changed, from what to what. Refused, with nothing taken: `config_invalid`, `store_failed`."""
        new = self._read()
        changed = changes(self._settings, new)
        if fixed := needing_a_start(self._settings, new):
            raise Refused("config_invalid", f"only a new start takes over {', '.join(fixed)}")
        # the signer keeps what it was started with, also where that follows from a day's limit
        terms = replace(self._make(new), caps=self._context.filed.caps)
        now_ms = self._context.ports.clock.now_ms()

        def note(unit: Unit) -> None:
            if changed:
                records.note(unit, None, "config_read", None, now_ms, {"changed": changed})

        await self._context.take_terms(terms, note)
        self._settings = new
        return changed


def needing_a_start(before: Settings, after: Settings) -> list[str]:
    """The keys that changed and are read at the start alone."""
    fixed = [key for key in changes(before, after) if not _TAKEN.fullmatch(key)]
    if _signed(before) != _signed(after):
        fixed.append("limits.assets.per_transaction")
    if _private(before) != _private(after):
        fixed.append("merchants.NAME.private_network")
    return fixed


def _signed(settings: Settings) -> dict[str, tuple[int | None, int | None]]:
    """The tokens that the signer knows, and what is told of each for it alone."""
    assets = settings.limits.assets
    return {one.asset: (one.per_transaction_units, one.signed_per_day_units) for one in assets}


def _private(settings: Settings) -> set[str]:
    return {merchant.origin for merchant in settings.merchants.values() if merchant.private_network}
