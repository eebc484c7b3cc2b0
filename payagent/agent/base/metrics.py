"""What a daemon counts in memory since its start: refusals, times to delivery, calls of apps.

Never: stores anything; a label from a text that an app or a merchant sent.
"""

from collections import Counter
from dataclasses import dataclass, field

from payagent.agent.base.config import AgentConfig
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused
from payagent.core.prometheus import Histogram

OTHER_MERCHANT = "(other)"
"""The label of every merchant that is not configured. No merchant can have this name."""

SERVED_BOUNDS_MS = (1_000, 2_500, 5_000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000, 3_600_000)


@dataclass(slots=True)
class AgentMetrics:
    """One per daemon: the agents of its accounts share it."""

    refusals: Counter[str] = field(default_factory=Counter)
    """How often each code was returned, by the API, the proxy or a pass."""
    purchases_refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How often a purchase was refused, by app id, merchant (`merchant_label`) and code."""
    time_to_served: dict[str, Histogram] = field(default_factory=dict)
    """From a payment's request to its accepted delivery, by merchant (`merchant_label`)."""
    last_calls_ms: dict[str, int] = field(default_factory=dict)
    """When each app's token was last shown to the API or the proxy, by app id."""

    def refuse(self, config: AgentConfig, app_id: str, origin: str | None, refusal: Refused) -> None:
        """Count a refused purchase."""
        self.purchases_refused[app_id, merchant_label(config, origin), refusal.code] += 1

    def serve(self, config: AgentConfig, row: PaymentRow, now_ms: int) -> None:
        """Measure a payment whose delivery has just been accepted."""
        label = merchant_label(config, row.invoice.origin)
        self.time_to_served.setdefault(label, Histogram(SERVED_BOUNDS_MS)).observe(now_ms - row.created_at_ms)


def merchant_label(config: AgentConfig, origin: str | None) -> str:
    """A merchant's label: its name in the config, or `OTHER_MERCHANT`."""
    merchant = config.merchants.get(origin or "")
    return OTHER_MERCHANT if merchant is None else merchant.name
