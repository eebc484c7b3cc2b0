"""Reads the config file again on SIGHUP, and applies all of the changes or none.

Merchants, limits, approval thresholds, the wallet's low mark and its upkeep can change. If anything else has
changed, which takes a restart, nothing is applied.

Never: applies a part; applies a change that it does not record.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.log import log
from payagent.agent.context import AgentContext
from payagent.core.problems import Refused
from payagent.settings.schema import Settings, changes
from payagent.store.db.unit import Unit
from payagent.store.rows import writes

_RELOADABLE = re.compile(
    r"merchants(\..*)?|limits\.(per_(payment|hour|day|week|month)|total|assets)"
    r"|approvals\.(required_above|timeout_s)|alerts\.wallet_below|wallet\.upkeep_fees_per_day"
)
"""Keys that a reload applies, except for the parts of them that `needing_a_start` names."""


class ConfigReload:
    """Reloads the config. One run at a time.

    `read` reads the file as at the start; `make` turns it into the agent's config. `note` writes
    more into the commit.
    """

    def __init__(
        self,
        context: AgentContext,
        settings: Settings,
        read: Callable[[], Settings],
        make: Callable[[Settings], AgentConfig],
        note: Callable[[Unit, Settings], None] = lambda _unit, _settings: None,
    ) -> None:
        self._context = context
        self._settings = settings
        self._read = read
        self._make = make
        self._note = note
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Apply the file, or log in one line why nothing changed."""
        async with self._lock:
            try:
                changed = await self._apply()
            except Refused as refused:
                log.warning("config.refused", why=refused.detail, kept="all settings stay as they were")
            else:
                log.warning("config.read", changed=changed)

    async def _apply(self) -> dict[str, dict[str, object]]:
        """Apply the file and return what changed, from what to what.

        Refused, with nothing applied: `config_invalid`, `store_failed`.
        """
        new = self._read()
        changed = changes(self._settings, new)
        if fixed := needing_a_start(self._settings, new):
            raise Refused("config_invalid", f"restart the daemon to change {', '.join(fixed)}")
        # the signer keeps the caps it was started with, even those derived from a day's limit
        before = self._context.from_file
        config = replace(self._make(new), caps=before.caps, day_caps=before.day_caps)
        now_ms = self._context.ports.clock.now_ms()

        def record_change(unit: Unit) -> None:
            self._note(unit, new)
            if changed:
                writes.note(unit, None, "config_read", None, now_ms, {"changed": changed})

        await self._context.take_config(config, record_change)
        self._settings = new
        return changed


def needing_a_start(before: Settings, after: Settings) -> list[str]:
    """The changed keys that are read only at the start."""
    fixed = [key for key in changes(before, after) if not _RELOADABLE.fullmatch(key)]
    if _signed(before) != _signed(after):
        fixed.append("limits.assets.per_transaction")
    if before.limits.tokens != after.limits.tokens:  # amounts on open pages are written and read by them
        fixed.append("limits.assets.decimals")
    if _private(before) != _private(after):
        fixed.append("merchants.NAME.allow_private_network")
    if before.channel_rules != after.channel_rules:
        fixed.append("merchants.NAME.channel")
    return fixed


def _signed(settings: Settings) -> dict[str, tuple[int | None, int | None]]:
    """The tokens that the signer knows, with the limits that only the signer uses."""
    limits = settings.limits.assets
    return {limit.asset: (limit.per_transaction_units, limit.signed_per_day_units) for limit in limits}


def _private(settings: Settings) -> set[str]:
    return {merchant.origin for merchant in settings.merchants.values() if merchant.allow_private_network}
