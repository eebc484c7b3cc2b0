"""Every settings key, by table, and the differences between two configs.

Never: reads a source.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapSerializer,
    model_validator,
)

from payagent.core.address import parse_address
from payagent.core.invoice import Proof, SplitMode
from payagent.core.money import LOVELACE, Tokens
from payagent.core.network import NETWORKS
from payagent.core.notifications import Filter
from payagent.core.origin import is_this_machine
from payagent.core.policy import Window
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.core.retry_schedule import Ready
from payagent.settings.field_types import (
    AbsolutePath,
    Asset,
    BaseUrl,
    Count,
    EventPattern,
    HostName,
    Level,
    LinkOrigin,
    Listen,
    Lovelace,
    Origin,
    Partner,
    SafeOrigin,
    SafeUrl,
    SocketPath,
    TargetName,
    TokenName,
    TokenUnits,
    is_safe,
    named,
    or_off,
    require,
)

CHANNEL_SCRIPTS = {
    "preprod": ("62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a",),
    "devnet": ("6d907e2d92f7fffce8f691af7dc2782583902b4d1b255d99da5e050f",),
}
"""The hashes of the validators that payagent trusts with channels, by network. No other network has channels."""


class SettingsTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _by_window(table: "SettingsTable", unit: str) -> dict[str, int | None]:
    return {window.value: getattr(table, window.value + unit) for window in Window}


def _require_distinct(values: list[str], fix: str) -> None:
    if len(set(values)) != len(values):
        raise ValueError(fix)


class ApiSettings(SettingsTable):
    """Where the daemon listens (TCP and a Unix socket), its allowed host names, and rate limits per app.

    A port that other machines can reach requires TLS. The dashboard answers at payagent.localhost and at
    `dashboard_hosts`, under which nothing else answers. `explorer_url` has {tx} where a transaction's id goes.
    """

    listen: Listen = "127.0.0.1:8402"
    tls_certificate_file: AbsolutePath | None = None
    tls_key_file: AbsolutePath | None = None
    socket: SocketPath
    allowed_hosts: frozenset[HostName] = frozenset()
    rate_limit_per_s: Annotated[Count, Field(ge=1, le=1_000_000)] = 200
    concurrent_requests_max: Annotated[Count, Field(ge=1, le=1_000_000)] = 128
    dashboard: bool = True
    dashboard_hosts: frozenset[HostName] = frozenset()
    explorer_url: Annotated[str, Field(pattern=r"^https://[!-~]*\{tx\}[!-~]*$")] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether other machines can reach the port."""
        return not is_this_machine(self.listen.rpartition(":")[0].removeprefix("[").removesuffix("]"))

    @model_validator(mode="after")
    def _tls_by_both(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("set both tls_certificate_file and tls_key_file, or neither")
        if self.is_remote and self.tls_key_file is None:
            raise ValueError(
                "other machines can reach listen. Set tls_certificate_file and tls_key_file, or write a loopback "
                "address"
            )
        return self


class ProviderSettings(SettingsTable):
    """A chain provider. payagent appends only the API's paths to its URLs. `chain.open` has the kinds.

    `index_url`: the server that answers for addresses, for a kind with two servers. `project_id_file` is another
    name of `token_file`.
    """

    kind: str
    base_url: BaseUrl
    index_url: BaseUrl | None = None
    token_file: Annotated[
        AbsolutePath | None, Field(validation_alias=AliasChoices("token_file", "project_id_file"))
    ] = None

    @property
    def risk(self) -> str | None:
        """Describe the risk of plain http to another machine, and how to avoid it; None if there is no such risk.

        The setting is still accepted: operators may trust a server in their own network.
        """
        if is_safe(self.base_url) and (self.index_url is None or is_safe(self.index_url)):
            return None
        read = "" if self.token_file is None else " and read its token"
        return f"others on the network can forge its answers{read}. Use https://, or a tunnel to a loopback port"


class ChainSettings(SettingsTable):
    """The chain providers. If there are two or more, payagent believes what two of them agree on."""

    providers: Annotated[
        tuple[ProviderSettings, ...],
        require(bool, "the list is empty. Write at least one table, such as [[chain.providers]]"),
    ]

    @model_validator(mode="after")
    def _each_server_once(self) -> Self:
        servers = [provider.base_url for provider in self.providers]
        _require_distinct(servers, "providers has the same server twice, which is no second opinion. Keep one")
        return self

    @property
    def named(self) -> dict[str, ProviderSettings]:
        """Providers by the names used in logs, alerts and metrics."""
        return {f"{provider.kind}-{number}": provider for number, provider in enumerate(self.providers, 1)}


class PaymentSettings(SettingsTable):
    """When a payment counts as confirmed, void or settled, and what payagent accepts to start one.

    Depths are in blocks; the block that holds the transaction counts 1. `min_window_s`: the least time left on an
    invoice. `unconfirmed_ancestors_max`: the most unconfirmed ancestors of a new transaction.
    """

    confirm_depth: Annotated[Count, Field(ge=1, le=2160)]
    void_depth: Annotated[Count, Field(ge=1, le=2160)] = 15
    settle_depth: Annotated[Count, Field(ge=1, le=2160)] = 2160
    min_window_s: Annotated[Count, Field(ge=1, le=86_400)] = 120
    unconfirmed_ancestors_max: Annotated[Count, Field(ge=0, le=100)] = 8

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.confirm_depth > self.settle_depth or self.void_depth > self.settle_depth:
            raise ValueError("settle_depth must not be less than confirm_depth or void_depth")
        return self


class TopupSettings(SettingsTable):
    """How payagent tops up a merchant's prepaid balance. Without `path` each top-up order names its request."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")] = "POST"
    path: Annotated[str, Field(pattern=r"^(/[!-~]{0,8191})?$")] = ""
    body: Annotated[str, Field(max_length=65_536)] = ""
    per_day_lovelace: Annotated[Lovelace | None, Field(alias="per_day")] = None
    auto_below: Level = (CALLS, 0)
    auto_to: Level = (CALLS, 0)
    auto_per_day_max: Annotated[Count, Field(ge=1, le=1000)] = 3

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.auto_below[1] == 0:
            return self
        if not self.path:
            raise ValueError("auto_below needs path, the request that buys balance")
        if self.auto_to[0] != self.auto_below[0] or self.auto_to[1] <= self.auto_below[1]:
            raise ValueError("auto_to must be more than auto_below, in the same unit")
        return self


class MerchantLimitSettings(SettingsTable):
    """The limits in ADA for one merchant, within the wallet's limits."""

    per_payment_lovelace: Lovelace | None = Field(default=None, alias="per_payment")
    per_hour_lovelace: Lovelace | None = Field(default=None, alias="per_hour")
    per_day_lovelace: Lovelace | None = Field(default=None, alias="per_day")
    per_week_lovelace: Lovelace | None = Field(default=None, alias="per_week")
    per_month_lovelace: Lovelace | None = Field(default=None, alias="per_month")
    total_lovelace: Lovelace | None = Field(default=None, alias="total")

    @property
    def most_lovelace(self) -> dict[str, int | None]:
        """The limits, by spending window."""
        return _by_window(self, "_lovelace")


KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{56}$")]
"""A key's or a script's hash, 28 bytes in hex."""


class MerchantChannelSettings(SettingsTable):
    """The channel at one merchant. Without `provider_keys` there is none.

    `provider_keys`: the hashes of keys that may claim. `deposit`: what an opening locks. `locked_max`: the most
    that is locked there, and that vouchers of one channel may promise. `withdraw_delay_max`: seconds.
    """

    provider_keys: tuple[KeyHash, ...] = ()
    deposit_lovelace: Lovelace = Field(default=5_000_000, alias="deposit")
    locked_max_lovelace: Lovelace = Field(default=20_000_000, alias="locked_max")
    withdraw_delay_max: Annotated[Count, Field(ge=900, le=2_592_000)] = 86_400
    open: Literal["by_hand", "auto"] = "by_hand"


class MerchantSettings(SettingsTable):
    """A merchant that may be paid, by its origin, and the rules for its invoices (core.merchant_rules).

    `pay_to` and `split_to`: if set, any other address needs a person's approval. `resource_origins`: further
    origins that its x402 402s may name; no request goes there.
    """

    origin: SafeOrigin
    resource_origins: tuple[Origin, ...] = ()
    partner: Partner | None = None
    proof: Proof = "tx_hash"
    request_commitment: Annotated[bool, Field(strict=True)] = False
    split_mode: SplitMode | None = None
    ready: Ready = "auto"
    api_key_file: AbsolutePath | None = None
    timeout_s: Annotated[Count, Field(ge=1, le=600)] = 30
    pin: Literal["first_use", "off"] = "off"
    pay_to: tuple[str, ...] = ()
    split_to: tuple[str, ...] = ()
    price_rise_percent_max: Annotated[int | None, BeforeValidator(or_off(0, 1_000_000))] = None
    stop_after_unserved: Annotated[int | None, BeforeValidator(or_off(1, 1_000_000))] = 3
    payments_in_flight_max: Annotated[int | None, BeforeValidator(or_off(1, 1_000_000))] = None
    prepaid_alert_below: Annotated[Count, Field(ge=1)] | None = None
    allow_private_network: Annotated[bool, Field(strict=True)] = False
    topup: TopupSettings = TopupSettings()
    limits: MerchantLimitSettings = MerchantLimitSettings()
    channel: MerchantChannelSettings = MerchantChannelSettings()


class ProxySettings(SettingsTable):
    """The proxy: the largest request body that it keeps for the retry, and its timeouts."""

    body_buffer_bytes_max: Annotated[Count, Field(ge=0, le=2**40)] = 64 * 2**20
    read_timeout_s: Annotated[Count, Field(ge=180, le=86_400)] = 600
    payment_timeout_s: Annotated[Count, Field(ge=1, le=86_400)] = 900


class AssetLimitSettings(SettingsTable):
    """The limits of one native token, in its smallest units. An invoice must state the same `decimals`, if any.

    `name`: what amounts call the token.
    """

    asset: Asset
    decimals: Annotated[Count, Field(le=19)] | None = None
    name: TokenName | None = None
    per_payment_units: TokenUnits = Field(alias="per_payment")
    per_hour_units: TokenUnits | None = Field(default=None, alias="per_hour")
    per_day_units: TokenUnits = Field(alias="per_day")
    per_week_units: TokenUnits | None = Field(default=None, alias="per_week")
    per_month_units: TokenUnits | None = Field(default=None, alias="per_month")
    total_units: TokenUnits | None = Field(default=None, alias="total")
    per_transaction_units: TokenUnits | None = Field(default=None, alias="per_transaction")
    signed_per_day_units: TokenUnits | None = Field(default=None, alias="signed_per_day")
    approval_required_above_units: TokenUnits | None = Field(default=None, alias="approval_required_above")

    @property
    def most_units(self) -> dict[str, int | None]:
        """The limits, by spending window."""
        return _by_window(self, "_units")


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


class LimitSettings(MerchantLimitSettings):
    """The wallet's limits: of ADA, with fees and min-ADA, and of each token."""

    per_payment_lovelace: Lovelace = Field(alias="per_payment")
    per_day_lovelace: Lovelace = Field(alias="per_day")
    per_transaction_lovelace: Lovelace | None = Field(default=None, alias="per_transaction")
    signed_per_day_lovelace: Lovelace | None = Field(default=None, alias="signed_per_day")
    assets: tuple[AssetLimitSettings, ...] = ()

    @property
    def tokens(self) -> Tokens:
        """The tokens that have a name."""
        return {limit.name: (limit.asset, limit.decimals or 0) for limit in self.assets if limit.name is not None}

    @property
    def caps(self) -> dict[str, int]:
        """The most that one transaction may take out of the wallet, by asset; by default `per_day`."""
        return {
            LOVELACE: _or(self.per_transaction_lovelace, self.per_day_lovelace),
            **{limit.asset: _or(limit.per_transaction_units, limit.per_day_units) for limit in self.assets},
        }

    @property
    def day_caps(self) -> dict[str, int]:
        """The most that all transactions signed in 24 hours may take, by asset.

        By default it is twice the larger of the cap and `per_day`. Not every signed transaction lands, and the
        ledger stops counting those that do not.
        """
        caps = self.caps
        return {
            LOVELACE: _or(self.signed_per_day_lovelace, 2 * max(self.per_day_lovelace, caps[LOVELACE])),
            **{
                limit.asset: _or(limit.signed_per_day_units, 2 * max(limit.per_day_units, caps[limit.asset]))
                for limit in self.assets
            },
        }

    def signed_less(self, window: Window, asset: str, units: int) -> tuple[str, int] | None:
        """If the signer allows less than a limit, return the key that bounds it and its value."""
        cap = self.caps.get(asset, 0)
        if window is Window.PAYMENT or not cap:
            key, most = "limits.per_transaction", cap
        elif window in (Window.HOUR, Window.DAY):
            key, most = "limits.signed_per_day", self.day_caps.get(asset, 0)
        else:
            return None
        return (key, most) if units > most else None

    @model_validator(mode="after")
    def _each_asset_once(self) -> Self:
        assets = [limit.asset for limit in self.assets]
        _require_distinct(assets, "assets has two tables for the same asset. Keep one")
        names = [limit.name for limit in self.assets if limit.name is not None]
        _require_distinct(names, "two assets have the same name. Rename one")
        return self


class ChannelSettings(SettingsTable):
    """Channels, on preprod and the devnet only: the most that is locked, and what the signer allows in 24 hours.

    `scripts`: hashes of the validators that may hold money, in place of those that payagent trusts.
    """

    enabled: Annotated[bool, Field(strict=True)] = False
    locked_max_lovelace: Lovelace = Field(default=50_000_000, alias="locked_max")
    locked_per_day_lovelace: Lovelace = Field(default=50_000_000, alias="locked_per_day")
    signed_per_day_lovelace: Lovelace = Field(default=10_000_000, alias="signed_per_day")
    scripts: tuple[KeyHash, ...] = ()


class ApprovalSettings(SettingsTable):
    """When a payment needs a person's approval, how long it waits for one, and the origin of approval links.

    The threshold includes the fee. The links are pages of the dashboard.
    """

    required_above_lovelace: Lovelace | None = Field(default=None, alias="required_above")
    timeout_s: Annotated[Count, Field(ge=60, le=604_800)] = 3600
    link_origin: LinkOrigin | None = None


class AlertSettings(SettingsTable):
    """When to raise an alert because the wallet runs low."""

    wallet_below_lovelace: Annotated[Lovelace, Field(ge=1)] | None = Field(default=None, alias="wallet_below")


TELEGRAM_URL = "https://api.telegram.org"


class NotificationSettings(SettingsTable):
    """A target of notifications, and which of them it wants. Without a filter a webhook wants all, and people want
    decisions and trouble.

    `secret_file`: a webhook's signing secret, ntfy's access token, or the token of a Telegram bot.
    `events`: types of core.notifications; an event may end in `*`. `merchants` and `apps`: names.
    """

    name: TargetName
    kind: Literal["webhook", "ntfy", "slack", "discord", "telegram"]
    url: SafeUrl = Field(default=TELEGRAM_URL)
    secret_file: AbsolutePath | None = None
    events: tuple[EventPattern, ...] = ()
    merchants: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.kind == "webhook" and self.secret_file is None:
            raise ValueError("set secret_file: every notification to a webhook is signed")
        if self.kind == "telegram" and self.secret_file is None:
            raise ValueError("set secret_file: the file with the bot's token")
        if self.kind in ("slack", "discord") and self.secret_file is not None:
            raise ValueError("remove secret_file: the secret of this service is in its URL")
        if self.kind != "telegram" and "url" not in self.model_fields_set:
            raise ValueError("set url: only telegram has a default")
        return self

    @property
    def wanted(self) -> Filter:
        return Filter(self.events, self.merchants, self.apps, has_routine=self.kind == "webhook")


class WalletSettings(SettingsTable):
    """How many accounts the wallet pays from, `keystore.account` and those that follow it, and their upkeep.

    Upkeep spends at most so much lovelace on fees in 24 hours; 0 turns it off.
    """

    accounts: Annotated[Count, Field(ge=1, le=100)] = 1
    upkeep_fees_per_day_lovelace: Lovelace = Field(default=2_000_000, alias="upkeep_fees_per_day")


class StoreSettings(SettingsTable):
    """The PostgreSQL database that holds the ledger of several daemons. Without `url` it is ledger.db."""

    url: Annotated[str, Field(pattern=r"^postgresql://[!-~]+$")] | None = None
    password_file: AbsolutePath | None = None
    synchronous: bool = False

    @model_validator(mode="after")
    def _by_tcp_and_without_secrets(self) -> Self:
        parts = urlsplit(self.url or "postgresql://localhost")
        if parts.password is not None or {"password", "sslpassword"} & parse_qs(parts.query).keys():
            raise ValueError("url has a password. Write it into a file, and its path into password_file")
        if not parts.hostname or "host" in parse_qs(parts.query):
            raise ValueError("url has no host. Name the server's host: the daemon's sandbox opens no Unix sockets")
        return self


class KeystoreSettings(SettingsTable):
    """The CIP-1852 account whose one base address is the wallet, and its passphrase file.

    If an HSM has the keys: the file of its PIN, the seconds that it has for a signature, and more variables of the
    environment for its PKCS#11 module.
    """

    account: Annotated[Count, Field(le=2**31 - 1)] = 0
    passphrase_file: AbsolutePath | None = None
    pin_file: AbsolutePath | None = None
    answer_s: Annotated[Count, Field(ge=1, le=60)] = 10
    environment: Mapping[str, str] = {}


class Settings(SettingsTable):
    """Every setting, validated and frozen. Built by `load_settings`."""

    network: Literal["mainnet", "preprod", "preview", "devnet"]
    data_dir: AbsolutePath
    api: ApiSettings
    chain: ChainSettings
    payments: PaymentSettings
    merchants: Annotated[
        Mapping[str, MerchantSettings],
        AfterValidator(named),
        WrapSerializer(lambda table, serialize: serialize(dict(table))),
    ] = Field(default_factory=lambda: MappingProxyType({}))
    limits: LimitSettings
    channels: ChannelSettings = ChannelSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    proxy: ProxySettings = ProxySettings()
    alerts: AlertSettings = AlertSettings()
    notifications: tuple[NotificationSettings, ...] = ()
    wallet: WalletSettings = WalletSettings()
    keystore: KeystoreSettings = KeystoreSettings()
    store: StoreSettings = StoreSettings()

    @property
    def is_devnet(self) -> bool:
        return self.network == "devnet"

    @model_validator(mode="after")
    def _each_origin_and_target_once(self) -> Self:
        origins = [merchant.origin for merchant in self.merchants.values()]
        _require_distinct(origins, "two merchants have the same origin. Keep one")
        names = [target.name for target in self.notifications]
        _require_distinct(names, "two notifications have the same name. Rename one")
        return self

    @model_validator(mode="after")
    def _channels_on_test_networks(self) -> Self:
        if self.channels.enabled and self.network not in CHANNEL_SCRIPTS:
            raise ValueError(
                "channels.enabled: nobody has audited the validator that holds a channel's money, so channels are "
                "for preprod and the devnet. Write enabled = false"
            )
        return self

    @model_validator(mode="after")
    def _accounts_of_a_fleet(self) -> Self:
        if self.wallet.accounts > 1 and self.store.url is None:
            raise ValueError(
                "wallet.accounts: more than one account needs store.url, a ledger that several daemons can use. "
                "Write accounts = 1"
            )
        return self

    @model_validator(mode="after")
    def _links_at_the_dashboard(self) -> Self:
        host = urlsplit(self.approvals.link_origin or "").hostname
        if host is not None and not self.api.dashboard:
            raise ValueError(
                "approvals.link_origin: the links are pages of the dashboard, which is off. Remove it, or set "
                "api.dashboard = true"
            )
        if host is not None and (is_this_machine(host) or host in self.api.allowed_hosts):
            raise ValueError(
                f"approvals.link_origin: the API answers at {host}, and the dashboard needs a name of its own. "
                "Write another name; on this machine, http://payagent.localhost and the port"
            )
        return self

    @model_validator(mode="after")
    def _addresses_of_the_network(self) -> Self:
        for name, merchant in self.merchants.items():
            for key, addresses in (("pay_to", merchant.pay_to), ("split_to", merchant.split_to)):
                for address in addresses:
                    try:
                        parse_address(address, NETWORKS[self.network])
                    except Refused as refused:
                        raise ValueError(
                            f"merchants.{name}.{key}: an address cannot be paid on {self.network} "
                            f"({refused.name}). Copy it again from the merchant"
                        ) from None
        return self

    @property
    def channel_rules(self) -> dict[str, object] | None:
        """What the signer is told of channels (signer.channels); None where they are off."""
        if not self.channels.enabled:
            return None
        merchants = [merchant.channel for merchant in self.merchants.values()]
        return {
            "network": f"cardano:{self.network}",
            "scripts": self.channels.scripts or CHANNEL_SCRIPTS[self.network],
            "providers": {
                key: (one.locked_max_lovelace, one.withdraw_delay_max * 1000)
                for one in merchants
                for key in one.provider_keys
            },
            "locked_per_day": self.channels.locked_per_day_lovelace,
            "signed_per_day": self.channels.signed_per_day_lovelace,
        }


def changes(before: Settings, after: Settings) -> dict[str, dict[str, object]]:
    """Return the differences by config key, with the values `from` and `to` as the config file writes them.

    None means off, or no value. Example: {"limits.per_day": {"from": "20 ADA", "to": "50 ADA"}}.
    """
    old, new = (settings.model_dump(mode="json", by_alias=True, exclude_none=True) for settings in (before, after))
    return {key: {"from": was, "to": now} for key, was, now in sorted(_differing(old, new, ""))}


_SHARED = ("network", "merchants", "limits", "channels", "approvals", "payments", "wallet")
"""The tables in which all daemons of a fleet have the same values, but for paths."""


def shared_settings_hashes(settings: Settings) -> str:
    """SHA-256 of each section of the settings that all daemons of a fleet share, as JSON.

    Values that are the default are left out: a newer payagent that has more settings agrees with an older one.
    """
    shared: Any = {**dict.fromkeys(_SHARED, True), "store": {"synchronous"}}
    tree = settings.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=shared)
    for merchant in tree.get("merchants", {}).values():
        merchant.pop("api_key_file", None)
    texts = {name: json.dumps(section, sort_keys=True) for name, section in tree.items()}
    return json.dumps({name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()})


def _differing(old: object, new: object, key: str) -> Iterator[tuple[str, object, object]]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        if old != new:
            yield key, old, new
        return
    for name in old.keys() | new.keys():
        yield from _differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)
