"""What the operator decided, in the form that the agent works with.

May import: core, chain.circuit_breaker, store.rows. Never: reads a file (the daemon does); shows a secret in a
repr.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from payagent.chain.circuit_breaker import Rate
from payagent.core.address import Address
from payagent.core.hard_caps import Caps
from payagent.core.invoice import Proof, SplitMode
from payagent.core.merchant_rules import MerchantRules
from payagent.core.network import Network
from payagent.core.policy import Limit
from payagent.core.problems import Refused
from payagent.core.retry_schedule import Ready
from payagent.store.rows.payments import PaymentRow


@dataclass(frozen=True, slots=True)
class TopupSource:
    """A call whose 402 sells prepaid balance. `path` has the query; `body` is JSON text, or empty."""

    method: str
    path: str
    body: str

    def asking(self, query: str) -> "TopupSource":
        """The same call with this in its query too."""
        return TopupSource(self.method, f"{self.path}{'&' if '?' in self.path else '?'}{query}", self.body)


@dataclass(frozen=True, slots=True)
class AutoTopup:
    """When a balance is raised without an order: less than `below` is left of `unit` (calls, or lovelace)."""

    unit: str
    below: int
    to: int
    per_day_count: int


@dataclass(frozen=True, slots=True)
class MerchantConfig:
    """A merchant that may be paid. `api_key` is for its own status calls."""

    name: str
    origin: str
    partner: str | None
    split_mode: SplitMode | None
    ready: Ready
    timeout_s: int
    proof: Proof = "tx_hash"
    request_commitment: bool = False
    known_as: frozenset[str] = frozenset()
    api_key: str | None = field(default=None, repr=False)
    topup_request: TopupSource | None = None
    topup_per_day_lovelace: int | None = None
    auto_topup: AutoTopup | None = None
    alert_below: int | None = None
    rules: MerchantRules = field(default_factory=MerchantRules)
    is_filed: bool = True
    """Whether it is of the config file; else it was added at run time."""

    def buyer_headers(self, wallet_address: str) -> dict[str, str]:
        """What each call to the merchant carries, so that its invoice and a prepaid balance are the wallet's."""
        return {} if self.partner is None else {"X-Partner": self.partner, "X-Wallet-Address": wallet_address}

    def call_headers(self, row: PaymentRow, wallet_address: str) -> dict[str, str]:
        """Headers of our own calls about a payment (the T Backend developer guide)."""
        return self.own_headers(wallet_address) | {"X-Request-Id": row.request_id}

    def own_headers(self, wallet_address: str) -> dict[str, str]:
        """Headers of every call of our own."""
        headers = {"X-Wallet-Address": wallet_address}
        if self.partner is not None:
            headers["X-Partner"] = self.partner
        if self.api_key is not None:
            headers["api-key"] = self.api_key
        return headers


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything configured that a decision depends on. `merchants` go by origin; `limits` are the file's."""

    network: Network
    own: Address
    merchants: Mapping[str, MerchantConfig]
    limits: tuple[Limit, ...]
    decimals: Mapping[str, int]
    confirm_depth: int
    void_depth: int
    settle_depth: int
    min_window_s: int
    unconfirmed_ancestors: int = 0
    upkeep_lovelace: int = 0
    """What payagent may spend in 24 hours on fees of transactions that keep coins ready; 0: it makes none."""

    caps: Caps | None = None
    wallet_below_lovelace: int | None = None
    approval_above: Mapping[str, int] = field(default_factory=dict)
    """Units per asset above which a person decides on a payment."""

    approval_timeout_s: int = 3600
    call_rate: Rate | None = None
    """How often each provider may be called; None where nobody counts."""

    def rules(self, origin: str | None) -> MerchantRules:
        """What the guards hold a merchant to; nothing of one that is not configured (any more)."""
        merchant = self.merchants.get(origin or "")
        return MerchantRules() if merchant is None else merchant.rules

    def merchant(self, origin: str) -> MerchantConfig:
        """The configured merchant of an origin, or `merchant_not_allowed`."""
        if origin not in self.merchants:
            raise Refused("merchant_not_allowed", f"{origin[:200]!r} is not in [merchants]", origin=origin[:200])
        return self.merchants[origin]
