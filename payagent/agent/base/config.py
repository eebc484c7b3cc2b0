"""`AgentConfig` and `MerchantConfig`: the settings that the agent's decisions depend on.

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
    """A request whose 402 sells prepaid balance. `path` includes the query; `body` is JSON text or empty."""

    method: str
    path: str
    body: str

    def asking(self, query: str) -> "TopupSource":
        """The same request with `query` appended to its query string."""
        return TopupSource(self.method, f"{self.path}{'&' if '?' in self.path else '?'}{query}", self.body)


@dataclass(frozen=True, slots=True)
class AutoTopup:
    """Automatic top-up: raise a balance when less than `below` is left. `unit`: calls or lovelace."""

    unit: str
    below: int
    to: int
    per_day_max: int


@dataclass(frozen=True, slots=True)
class MerchantConfig:
    """A merchant that may be paid. `api_key` is sent with payagent's own requests to it."""

    name: str
    origin: str
    partner: str | None
    split_mode: SplitMode | None
    ready: Ready
    timeout_s: int
    proof: Proof = "tx_hash"
    request_commitment: bool = False
    resource_origins: frozenset[str] = frozenset()
    api_key: str | None = field(default=None, repr=False)
    topup_request: TopupSource | None = None
    topup_per_day_lovelace: int | None = None
    auto_topup: AutoTopup | None = None
    prepaid_alert_below: int | None = None
    rules: MerchantRules = field(default_factory=MerchantRules)
    is_filed: bool = True
    """Whether the config file has it. Otherwise it was added at run time."""

    def buyer_headers(self, wallet_address: str) -> dict[str, str]:
        """Headers that tie a request's invoice and prepaid balance to the wallet; none without a partner."""
        return {} if self.partner is None else {"X-Partner": self.partner, "X-Wallet-Address": wallet_address}

    def call_headers(self, row: PaymentRow, wallet_address: str) -> dict[str, str]:
        """Headers of payagent's own requests about a payment (the T Backend developer guide)."""
        return self.own_headers(wallet_address) | {"X-Request-Id": row.request_id}

    def own_headers(self, wallet_address: str) -> dict[str, str]:
        """Headers of payagent's own requests to the merchant."""
        headers = {"X-Wallet-Address": wallet_address}
        if self.partner is not None:
            headers["X-Partner"] = self.partner
        if self.api_key is not None:
            headers["api-key"] = self.api_key
        return headers


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All settings that a decision depends on. `merchants` by origin; `limits` of the config file only."""

    network: Network
    own: Address
    merchants: Mapping[str, MerchantConfig]
    limits: tuple[Limit, ...]
    decimals: Mapping[str, int]
    confirm_depth: int
    void_depth: int
    settle_depth: int
    min_window_s: int
    unconfirmed_ancestors_max: int = 0
    upkeep_fees_per_day_lovelace: int = 0
    """The most lovelace that upkeep transactions may cost in fees in 24 hours; 0 disables them."""

    caps: Caps | None = None
    wallet_below_lovelace: int | None = None
    approval_required_above: Mapping[str, int] = field(default_factory=dict)
    """Units per asset above which a payment needs an approval."""

    approval_timeout_s: int = 3600
    call_rate: Rate | None = None
    """Rate limit of calls to each provider; None: unlimited."""

    def rules(self, origin: str | None) -> MerchantRules:
        """The rules of a merchant; empty rules if it is not configured (any more)."""
        merchant = self.merchants.get(origin or "")
        return MerchantRules() if merchant is None else merchant.rules

    def merchant(self, origin: str) -> MerchantConfig:
        """The configured merchant of an origin. Refused: `merchant_not_allowed`."""
        if origin not in self.merchants:
            raise Refused("merchant_not_allowed", f"{origin[:200]!r} is not in [merchants]", origin=origin[:200])
        return self.merchants[origin]
