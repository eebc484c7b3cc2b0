"""`AgentConfig` and `MerchantConfig`: the settings that the agent's decisions depend on, and how they are built.

They come from the config file and from the merchants added at run time.
Never: reads a file (the daemon does); shows a secret in a repr; decides who may be paid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from payagent.core.address import Address
from payagent.core.aggregate import PaymentRow
from payagent.core.hard_caps import Caps
from payagent.core.invoice import Proof, Role, SplitMode
from payagent.core.merchant_rules import MerchantRules, Pin
from payagent.core.money import LOVELACE, Tokens
from payagent.core.network import NETWORKS, Network
from payagent.core.origin import not_configured
from payagent.core.policy import Limit, Scope, limits_of
from payagent.core.retry_schedule import Ready
from payagent.settings.loading import read_merchant
from payagent.settings.schema import (
    CHANNEL_SCRIPTS,
    ChannelSettings,
    MerchantChannelSettings,
    MerchantSettings,
    Settings,
)
from payagent.store.db.unit import Connection
from payagent.store.rows import merchants
from payagent.store.rows.merchants import MerchantRow


@dataclass(frozen=True, slots=True)
class TopupSource:
    """A request whose 402 sells prepaid balance. `path` includes the query; `body` is JSON text or empty."""

    method: str
    path: str
    body: str

    def with_query(self, query: str) -> "TopupSource":
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
    channel: MerchantChannelSettings | None = None
    """None: it is paid by no channel."""

    is_from_file: bool = True
    """Whether the config file has it. Otherwise it was added at run time."""

    def buyer_headers(self, wallet_address: str) -> dict[str, str]:
        """Headers that tie a request's invoice and prepaid balance to the wallet; none without a partner."""
        return {} if self.partner is None else {"X-Partner": self.partner, "X-Wallet-Address": wallet_address}

    def call_headers(self, row: PaymentRow, wallet_address: str) -> dict[str, str]:
        """Headers of payagent's own requests about a payment (the T Backend developer guide)."""
        return self.own_headers(wallet_address) | {"X-Request-Id": row.intent.request_id}

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
    """The address of the one account that the agent pays from."""

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

    tokens: Tokens = field(default_factory=dict)
    caps: Caps | None = None
    """The signer's caps for one transaction."""

    day_caps: Caps | None = None
    """The signer's caps for all transactions that it signs in 24 hours."""

    wallet_below_lovelace: int | None = None
    approval_required_above: Mapping[str, int] = field(default_factory=dict)
    """Units per asset above which a payment needs an approval."""

    approval_timeout_s: int = 3600
    account: int = 0
    """The number of that account among the wallet's."""

    channels: ChannelSettings | None = None
    """None where channels are off. Its `scripts` are those that payagent trusts."""

    def rules(self, origin: str | None) -> MerchantRules:
        """The rules of a merchant; empty rules if it is not configured (any more)."""
        merchant = self.merchants.get(origin or "")
        return MerchantRules() if merchant is None else merchant.rules

    def merchant_name(self, origin: str | None) -> str | None:
        """A merchant as people are shown it: its name in the config, else its origin."""
        merchant = self.merchants.get(origin or "")
        return origin if merchant is None else merchant.name

    def merchant(self, origin: str) -> MerchantConfig:
        """The configured merchant of an origin. Refused: `merchant_not_allowed`."""
        if origin not in self.merchants:
            raise not_configured(origin[:200])
        return self.merchants[origin]


def rules_of(merchant: MerchantSettings) -> MerchantRules:
    """The merchant rules that a merchant's settings define."""
    by_role: tuple[tuple[Role, tuple[str, ...]], ...] = (("pay_to", merchant.pay_to), ("split", merchant.split_to))
    return MerchantRules(
        first_use=merchant.pin == "first_use",
        from_file=frozenset(Pin(role, address) for role, addresses in by_role for address in addresses),
        price_rise_percent_max=merchant.price_rise_percent_max,
        stop_after_unserved=merchant.stop_after_unserved,
        payments_in_flight_max=merchant.payments_in_flight_max,
    )


def merchant_config(name: str, merchant: MerchantSettings, api_key: str | None) -> MerchantConfig:
    topup = merchant.topup
    unit, below = topup.auto_below
    return MerchantConfig(
        name=name,
        origin=merchant.origin,
        resource_origins=frozenset(merchant.resource_origins),
        partner=merchant.partner,
        split_mode=merchant.split_mode,
        ready=merchant.ready,
        timeout_s=merchant.timeout_s,
        proof=merchant.proof,
        request_commitment=merchant.request_commitment,
        api_key=api_key,
        prepaid_alert_below=merchant.prepaid_alert_below,
        rules=rules_of(merchant),
        channel=merchant.channel if merchant.channel.provider_keys else None,
        topup_request=TopupSource(topup.method, topup.path, topup.body) if topup.path else None,
        topup_per_day_lovelace=topup.per_day_lovelace,
        auto_topup=AutoTopup(unit, below, topup.auto_to[1], topup.auto_per_day_max) if below else None,
    )


def file_config(settings: Settings, own: Address, keys: Mapping[str, str | None]) -> AgentConfig:
    """The config of the file, for the wallet `own`. `keys`: the merchants' API keys by merchant name."""
    return AgentConfig(
        network=NETWORKS[settings.network],
        own=own,
        merchants={
            merchant.origin: merchant_config(name, merchant, keys[name])
            for name, merchant in settings.merchants.items()
        },
        limits=tuple(file_limits(settings)),
        decimals={token.asset: token.decimals for token in settings.limits.assets if token.decimals is not None},
        tokens=settings.limits.tokens,
        confirm_depth=settings.payments.confirm_depth,
        void_depth=settings.payments.void_depth,
        unconfirmed_ancestors_max=settings.payments.unconfirmed_ancestors_max,
        upkeep_fees_per_day_lovelace=settings.wallet.upkeep_fees_per_day_lovelace,
        caps=settings.limits.caps,
        day_caps=settings.limits.day_caps,
        settle_depth=settings.payments.settle_depth,
        min_window_s=settings.payments.min_window_s,
        wallet_below_lovelace=settings.alerts.wallet_below_lovelace,
        approval_required_above=_approval_required_above(settings),
        approval_timeout_s=settings.approvals.timeout_s,
        channels=_channels(settings),
    )


def _channels(settings: Settings) -> ChannelSettings | None:
    scripts = settings.channels.scripts or CHANNEL_SCRIPTS.get(settings.network, ())
    return settings.channels.model_copy(update={"scripts": scripts}) if settings.channels.enabled else None


def _approval_required_above(settings: Settings) -> dict[str, int]:
    """Units per asset above which a payment needs an approval. Assets left out never need one."""
    tokens = {token.asset: token.approval_required_above_units for token in settings.limits.assets}
    thresholds = {LOVELACE: settings.approvals.required_above_lovelace} | tokens
    return {asset: units for asset, units in thresholds.items() if units is not None}


def file_limits(settings: Settings) -> Iterator[Limit]:
    """The config file's limits for the wallet and for merchants."""
    yield from limits_of(LOVELACE, settings.limits.most_lovelace)
    for token in settings.limits.assets:
        yield from limits_of(token.asset, token.most_units)
    for merchant in settings.merchants.values():
        yield from limits_of(LOVELACE, merchant.limits.most_lovelace, Scope(merchant=merchant.origin))


def overlaid(from_file: AgentConfig, conn: Connection) -> AgentConfig:
    """The config in force: the file's, with the merchants added at run time.

    An added merchant replaces one of the file that has the same name or origin.
    """
    rows = merchants.all_merchants(conn)
    names, origins = {row.name for row in rows}, {row.origin for row in rows}
    unchanged: Mapping[str, MerchantConfig] = {
        origin: merchant
        for origin, merchant in from_file.merchants.items()
        if merchant.name not in names and origin not in origins
    }
    added = {row.origin: _of_row(row, from_file.network) for row in rows}
    return replace(from_file, merchants={**unchanged, **added})


def _of_row(row: MerchantRow, network: Network) -> MerchantConfig:
    merchant = read_merchant(row.name, row.settings, network.name)
    return replace(merchant_config(row.name, merchant, None), is_from_file=False)
