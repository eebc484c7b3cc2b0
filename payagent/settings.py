"""settings: what the operator decided, read once from a TOML file and the environment into frozen values.

May import: pydantic-settings, core, secretfile (its types), fence. Never: reads or keeps a secret. Secrets lie in
files of their own, which are named here and read at use (`secretfile`).

config/payagent.example.toml explains every key. A flag wins over the environment, the environment over the
file, the file over the defaults. What is wrong is told with the key, the place and the fix, never the value.
"""

import difflib
import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from payagent import fence
from payagent.core.address import parse_address
from payagent.core.invoice import Proof, SplitMode
from payagent.core.money import LOVELACE, parse_ada, parse_asset, parse_count, parse_units
from payagent.core.network import NETWORKS
from payagent.core.origin import DEFAULT_PORTS, is_this_machine, parse_origin
from payagent.core.policy import Window
from payagent.core.prepaid import CALLS
from payagent.core.problem import Refused
from payagent.secretfile import SecretFile

ENV_PREFIX = "PAYAGENT_"
CONFIG_VARIABLE = "PAYAGENT_CONFIG"
TOKEN_VARIABLE = "PAYAGENT_TOKEN"  # noqa: S105  the name under which clients find their app token: no setting
CREDENTIAL_NAME = "keystore-passphrase"
KEYSTORE_FILE = "keystore.json"
LEDGER_FILE = "ledger.db"
TOKEN_FILE = "operator.token"  # noqa: S105  the file's name
LINKS_KEY_FILE = "approval-links.key"
"""In the data folder: what links are signed with by which people decide."""

WORDS_FILE = "recovery-words.txt"
"""In the data folder: new words that no terminal showed, left there by `payagent init` to be taken away."""
SOCKET_PATH_BYTES_MAX = 107  # sun_path of unix(7) holds 108 with its closing zero byte

OFF = "off"

T = TypeVar("T")
Tree = dict[str, Any]

_DEFAULTS: dict[bool, dict[str, Tree]] = {
    True: {
        "limits": {"per_payment": "1000 ADA", "per_day": "100000 ADA"},
        "payments": {"confirm_depth": 1},
    },
    False: {
        "limits": {"per_payment": "5 ADA", "per_day": "20 ADA"},
        "payments": {"confirm_depth": 3},
    },
}
"""Defaults that depend on the network: is it the devnet?"""

_MERCHANT_DEFAULTS: dict[bool, Tree] = {
    True: {"pin": "off", "drift_percent": "off", "in_flight_max": "off"},
    False: {"pin": "first_use", "drift_percent": 25, "in_flight_max": 100},
}
"""The same, for each merchant."""

_MERCHANT_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
_VISIBLE = re.compile(r"[!-~]{1,128}", re.ASCII)


def _told(parse: Callable[[object], T], fix: str) -> Callable[[object], T]:
    """A parser of core as a validator: its refusal becomes the fix and repeats nothing of the value."""

    def parsed(value: object) -> T:
        try:
            return parse(value)
        except Refused:
            raise ValueError(fix) from None

    return parsed


def _absolute(value: object) -> Path:
    path = Path(value).expanduser() if isinstance(value, str | Path) and value else None
    if path is None or not path.is_absolute():
        raise ValueError('write an absolute path, or one that starts with "~/"')
    return path


def _socket_path(path: Path) -> Path:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one")
    return path


def _url(value: str) -> str:
    if not value.isascii() or " " in value:
        raise ValueError("an address is plain ASCII without spaces")
    parts = urlsplit(value)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("write the complete address, from http:// or https:// on")
    if "@" in parts.netloc or "?" in value or "#" in value:
        raise ValueError("no user, query or fragment; a secret belongs in a file that another key names")
    return value


def _base_url(value: str) -> str:
    url = _url(value).rstrip("/")
    parts = urlsplit(url)
    if (parts.hostname or "").endswith(".blockfrost.io") and parts.path != "/api/v0":
        raise ValueError(
            "write https://cardano-NETWORK.blockfrost.io/api/v0: the address of Blockfrost's API ends so"
        )
    return url


def _unheard(value: str) -> str:
    """An address that nobody on the way can listen at."""
    parts = urlsplit(value)
    if parts.scheme != "https" and not is_this_machine(parts.hostname or ""):
        raise ValueError("write an address with https://; http:// is for this machine alone")
    return value


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not _is_place(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("write an address and a port, such as 127.0.0.1:8402 (port 0: any free one)")
    return value


def require_loopback(listen: str, what: str) -> None:
    """Refuse, `config_invalid`, an address that is none or that other machines reach; `what` names the setting."""
    try:
        host = _listen(listen).rpartition(":")[0].removeprefix("[").removesuffix("]")
    except ValueError as error:
        raise Refused("config_invalid", f"{what}: {error}") from None
    if not is_this_machine(host):
        raise Refused(
            "config_invalid", f"{what} {listen} is reached from other machines; write a loopback address"
        )


def _is_place(host: str) -> bool:
    """Whether it is an address of a machine, or localhost; an IPv6 address stands in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or (ip_address(bare).version == 6) == (bare != host)
    except ValueError:
        return False


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("write a name in lower case without a port, such as payagent.internal")
    return value


def _partner(value: str) -> str:
    if not _VISIBLE.fullmatch(value):
        raise ValueError("1 to 128 visible ASCII characters without spaces: it travels in a header")
    return value


def _level(value: object) -> tuple[str, int]:
    """How much of a balance: so many calls, or an amount of ADA."""
    for unit, parse in ((CALLS, parse_count), (LOVELACE, parse_ada)):
        try:
            return unit, parse(value)
        except Refused:
            continue
    raise ValueError('write a whole number of calls, or an amount such as "5 ADA"')


def _or_off(least: int, most: int) -> Callable[[object], int | None]:
    """A whole number, or that it is not looked at."""

    def parsed(value: object) -> int | None:
        if value == OFF:
            return None
        try:
            number = parse_count(value)
        except Refused:
            number = -1
        if not least <= number <= most:
            raise ValueError(f'write a whole number from {least} to {most}, or "{OFF}"')
        return number

    return parsed


def _token(asset: str) -> str:
    if asset == LOVELACE:
        raise ValueError("ADA has its limits in limits.per_payment and limits.per_day")
    return asset


def _some(rows: tuple[T, ...]) -> tuple[T, ...]:
    if not rows:
        raise ValueError("it names none; write one table at least, under this key in [[ ]]")
    return rows


def _named(table: Mapping[str, T]) -> Mapping[str, T]:
    if not all(_MERCHANT_NAME.fullmatch(name) for name in table):
        raise ValueError("a merchant's name is lower-case letters and digits, with single - or _ between them")
    return MappingProxyType(dict(table))


Lovelace = Annotated[
    int, BeforeValidator(_told(parse_ada, 'write an amount as "5 ADA", "0.25 ADA" or "250000 lovelace"'))
]
Units = Annotated[
    int, BeforeValidator(_told(parse_units, 'write the smallest units as whole digits, such as "1000000"'))
]
Count = Annotated[int, BeforeValidator(_told(parse_count, "write a whole number"))]
Level = Annotated[tuple[str, int], BeforeValidator(_level)]
Asset = Annotated[
    str,
    BeforeValidator(
        _told(parse_asset, "write policy id and asset name in lower-case hex, joined or with a dot between")
    ),
    AfterValidator(_token),
]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _by_window(table: "_Table", unit: str) -> dict[str, int | None]:
    return {window.value: getattr(table, window.value + unit) for window in Window}


class Api(_Table):
    """Where the daemon listens, TCP and a Unix socket; by which other names it may be called; how much one app may
    ask at once. What other machines reach speaks TLS.
    """

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:8402"
    tls_certificate_file: AbsolutePath | None = None
    tls_key_file: AbsolutePath | None = None
    socket: Annotated[Path, BeforeValidator(_absolute), AfterValidator(_socket_path)]
    hosts: frozenset[Annotated[str, AfterValidator(_host)]] = frozenset()
    calls_per_s: Annotated[Count, Field(ge=1, le=1_000_000)] = 200
    calls_at_once: Annotated[Count, Field(ge=1, le=1_000_000)] = 128

    @property
    def is_remote(self) -> bool:
        """Whether other machines reach the port."""
        return not is_this_machine(self.listen.rpartition(":")[0].removeprefix("[").removesuffix("]"))

    @model_validator(mode="after")
    def _tls_by_both(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.is_remote and self.tls_key_file is None:
            raise ValueError(
                "listen is reached from other machines: name tls_certificate_file and tls_key_file, or write a "
                "loopback address"
            )
        return self


class Provider(_Table):
    """One way to see the chain. `base_url` is complete: nothing is appended to it but the paths of the API."""

    kind: Literal["blockfrost"]
    base_url: Annotated[str, AfterValidator(_base_url)]
    project_id_file: AbsolutePath | None = None

    @property
    def risk(self) -> str | None:
        """What somebody on the way to it can do, with what to do about that; None where nobody can listen.

        It is no refusal: who runs a server of their own in a network of their own may trust that.
        """
        parts = urlsplit(self.base_url)
        if parts.scheme == "https" or is_this_machine(parts.hostname or ""):
            return None
        read = "" if self.project_id_file is None else ", and reads the project id"
        return (
            f"who is on the way can answer in its place{read}; write https://, or use a tunnel to a loopback port"
        )


class Chain(_Table):
    """The providers; with several, two have to agree."""

    providers: Annotated[tuple[Provider, ...], AfterValidator(_some)]

    @property
    def named(self) -> dict[str, Provider]:
        """By the names that logs, alerts and numbers tell them apart by."""
        return {f"{one.kind}-{number}": one for number, one in enumerate(self.providers, 1)}


class Payments(_Table):
    """Depths (the block that holds the transaction counts 1) and the least life of an invoice, in seconds.

    `chain_depth`: how many transactions in no block yet may lead to the next one.
    """

    confirm_depth: Annotated[Count, Field(ge=1, le=2160)]
    void_depth: Annotated[Count, Field(ge=1, le=2160)] = 15
    settle_depth: Annotated[Count, Field(ge=1, le=2160)] = 2160
    min_window_s: Annotated[Count, Field(ge=1, le=86_400)] = 120
    chain_depth: Annotated[Count, Field(ge=0, le=100)] = 8

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.confirm_depth > self.settle_depth or self.void_depth > self.settle_depth:
            raise ValueError("settle_depth must be the deepest: nothing is watched beyond it")
        return self


class Topup(_Table):
    """How a merchant's prepaid balance is raised. Without `path` by calls that are named in the order."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")] = "POST"
    path: Annotated[str, Field(pattern=r"^(/[!-~]{0,8191})?$")] = ""
    body: Annotated[str, Field(max_length=65_536)] = ""
    per_day_lovelace: Annotated[Lovelace | None, Field(alias="per_day")] = None
    below: Level = (CALLS, 0)
    to: Level = (CALLS, 0)
    per_day_count: Annotated[Count, Field(ge=1, le=1000)] = 3

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.below[1] == 0:
            return self
        if not self.path:
            raise ValueError("path is missing: what is topped up without an order needs a request")
        if self.to[0] != self.below[0] or self.to[1] <= self.below[1]:
            raise ValueError("to must be more than below, and in the same unit")
        return self


class MerchantLimits(_Table):
    """What may be spent at one merchant, in ADA, within what the wallet may spend."""

    per_payment_lovelace: Lovelace | None = Field(default=None, alias="per_payment")
    per_hour_lovelace: Lovelace | None = Field(default=None, alias="per_hour")
    per_day_lovelace: Lovelace | None = Field(default=None, alias="per_day")
    per_week_lovelace: Lovelace | None = Field(default=None, alias="per_week")
    per_month_lovelace: Lovelace | None = Field(default=None, alias="per_month")
    total_lovelace: Lovelace | None = Field(default=None, alias="total")

    @property
    def most_lovelace(self) -> dict[str, int | None]:
        """By the names of the windows."""
        return _by_window(self, "_lovelace")


class Merchant(_Table):
    """One server that may be paid, named by its origin; and what its invoices are held to (core.guards).

    `pay_to` and `split_to`: where there are any, they are all that may be paid without a person's word.
    `known_as`: origins by which its x402 names itself; no call goes there.
    """

    origin: Annotated[str, AfterValidator(parse_origin), AfterValidator(_unheard)]
    known_as: tuple[Annotated[str, AfterValidator(parse_origin)], ...] = ()
    partner: Annotated[str, AfterValidator(_partner)] | None = None
    proof: Proof = "tx_hash"
    request_commitment: Annotated[bool, Field(strict=True)] = False
    split_mode: SplitMode | None = None
    ready: Literal["signed", "submitted", "confirmed"] = "confirmed"
    api_key_file: AbsolutePath | None = None
    timeout_s: Annotated[Count, Field(ge=1, le=600)] = 30
    pin: Literal["first_use", "off"] = "off"
    pay_to: tuple[str, ...] = ()
    split_to: tuple[str, ...] = ()
    drift_percent: Annotated[int | None, BeforeValidator(_or_off(0, 1_000_000))] = None
    stop_after: Annotated[int | None, BeforeValidator(_or_off(1, 1_000_000))] = 3
    in_flight_max: Annotated[int | None, BeforeValidator(_or_off(1, 1_000_000))] = None
    alert_below: Annotated[Count, Field(ge=1)] | None = None
    private_network: Annotated[bool, Field(strict=True)] = False
    topup: Topup = Topup()
    limits: MerchantLimits = MerchantLimits()


class Proxy(_Table):
    """The sidecar: how much of a request's body is kept for the retry, and how long it waits, in seconds."""

    spool_bytes: Annotated[Count, Field(ge=0, le=2**40)] = 64 * 2**20
    read_timeout_s: Annotated[Count, Field(ge=180, le=86_400)] = 600
    patience_s: Annotated[Count, Field(ge=1, le=86_400)] = 900


class AssetLimit(_Table):
    """The limits of one native token, in its units. `decimals`, when given, must be what an invoice says."""

    asset: Asset
    per_payment_units: Units = Field(alias="per_payment")
    per_hour_units: Units | None = Field(default=None, alias="per_hour")
    per_day_units: Units = Field(alias="per_day")
    per_week_units: Units | None = Field(default=None, alias="per_week")
    per_month_units: Units | None = Field(default=None, alias="per_month")
    total_units: Units | None = Field(default=None, alias="total")
    per_transaction_units: Units | None = Field(default=None, alias="per_transaction")
    signed_per_day_units: Units | None = Field(default=None, alias="signed_per_day")
    approval_above_units: Units | None = Field(default=None, alias="approval_above")
    decimals: Annotated[Count, Field(le=19)] | None = None

    @property
    def most_units(self) -> dict[str, int | None]:
        """By the names of the windows."""
        return _by_window(self, "_units")


def _told_or(told: int | None, default: int) -> int:
    return default if told is None else told


class Limits(_Table):
    """What may be spent: ADA, with fees and the ADA that rides along with a token; and each token by itself."""

    per_payment_lovelace: Lovelace = Field(alias="per_payment")
    per_hour_lovelace: Lovelace | None = Field(default=None, alias="per_hour")
    per_day_lovelace: Lovelace = Field(alias="per_day")
    per_week_lovelace: Lovelace | None = Field(default=None, alias="per_week")
    per_month_lovelace: Lovelace | None = Field(default=None, alias="per_month")
    total_lovelace: Lovelace | None = Field(default=None, alias="total")
    per_transaction_lovelace: Lovelace | None = Field(default=None, alias="per_transaction")
    signed_per_day_lovelace: Lovelace | None = Field(default=None, alias="signed_per_day")
    assets: tuple[AssetLimit, ...] = ()

    @property
    def most_lovelace(self) -> dict[str, int | None]:
        """By the names of the windows."""
        return _by_window(self, "_lovelace")

    @property
    def caps(self) -> dict[str, int]:
        """What one transaction may take out of the wallet, by whoever's order: if not told, a day's payments."""
        caps = {LOVELACE: _told_or(self.per_transaction_lovelace, self.per_day_lovelace)}
        for limit in self.assets:
            caps[limit.asset] = _told_or(limit.per_transaction_units, limit.per_day_units)
        return caps

    @property
    def day_caps(self) -> dict[str, int]:
        """What all that is signed in 24 hours may: if not told, twice that, or twice a day's payments.

        Not all that is signed lands, and what does not is no more counted by the ledger.
        """
        caps = self.caps
        day = {
            LOVELACE: _told_or(self.signed_per_day_lovelace, 2 * max(self.per_day_lovelace, caps[LOVELACE])),
        }
        for limit in self.assets:
            twice = 2 * max(limit.per_day_units, caps[limit.asset])
            day[limit.asset] = _told_or(limit.signed_per_day_units, twice)
        return day

    def signed_less(self, window: Window, asset: str, units: int) -> tuple[str, int] | None:
        """Where the signer lets out less than a limit would: the key that bounds it, and how much that is."""
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
        if len({limit.asset for limit in self.assets}) != len(self.assets):
            raise ValueError("assets lists the same asset twice; keep one table for it")
        return self


class Approvals(_Table):
    """Above how much ADA, with the fee, a person decides on a payment, and how many seconds it waits; and where
    people reach the daemon, for the links by which they decide.
    """

    above_lovelace: Lovelace | None = Field(default=None, alias="above")
    timeout_s: Annotated[Count, Field(ge=60, le=604_800)] = 3600
    link_origin: Annotated[str, AfterValidator(parse_origin), AfterValidator(_unheard)] | None = None


class Alerts(_Table):
    """When somebody is told that the wallet runs low, and the server that is told of every alert."""

    wallet_below_lovelace: Annotated[Lovelace, Field(ge=1)] | None = Field(default=None, alias="wallet_below")
    webhook_url: Annotated[str, AfterValidator(_url), AfterValidator(_unheard)] | None = None
    webhook_secret_file: AbsolutePath | None = None

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if (self.webhook_url is None) != (self.webhook_secret_file is None):
            raise ValueError("webhook_url and webhook_secret_file go together: what is sent is signed")
        return self


class Wallet(_Table):
    """What payagent may do with the wallet's coins by itself: lovelace for fees in 24 hours, 0 for nothing."""

    upkeep_per_day_lovelace: Lovelace = Field(default=2_000_000, alias="upkeep_per_day")


class Keystore(_Table):
    """The CIP-1852 account whose one base address is the wallet, and where its passphrase may be read."""

    account: Annotated[Count, Field(le=2**31 - 1)] = 0
    passphrase_file: AbsolutePath | None = None


class Settings(BaseSettings):
    """Every setting, validated and frozen. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    network: Literal["mainnet", "preprod", "preview", "devnet"]
    data_dir: AbsolutePath
    api: Api
    chain: Chain
    payments: Payments
    merchants: Annotated[Mapping[str, Merchant], AfterValidator(_named)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    limits: Limits
    approvals: Approvals = Approvals()
    proxy: Proxy = Proxy()
    alerts: Alerts = Alerts()
    wallet: Wallet = Wallet()
    keystore: Keystore = Keystore()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` merged counts: nothing is read behind its back."""
        return (init_settings,)

    @model_validator(mode="after")
    def _each_origin_once(self) -> Self:
        origins = [merchant.origin for merchant in self.merchants.values()]
        if len(set(origins)) != len(origins):
            raise ValueError("two merchants have the same origin; keep one table for it")
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
                            f"merchants.{name}.{key} has no address that can be paid on {self.network} "
                            f"({refused.code}); copy it anew"
                        ) from None
        return self


class _Environment(EnvSettingsSource):
    """pydantic-settings' reader of variables, over an environment that is handed in."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items()}


def config_places(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> list[Path]:
    """Where the config file is looked for: the one place that was named, else the usual ones, in their order."""
    if named := config or environ.get(CONFIG_VARIABLE):
        return [Path(named)]
    return [_home(environ) / ".config/payagent/config.toml", etc / "payagent/config.toml"]


def find_config(config: Path | None, environ: Mapping[str, str], etc: Path = Path("/etc")) -> Path:
    """The config file: `--config`, $PAYAGENT_CONFIG, ~/.config/payagent/config.toml, /etc/payagent/config.toml.

    A file that was asked for by name must be there; otherwise the first that exists. `config_invalid` if none.
    """
    places = config_places(config, environ, etc)
    if len(places) == 1 and not places[0].is_file():
        source = "--config" if config else CONFIG_VARIABLE
        raise Refused("config_invalid", f"{places[0]}, named by {source}, is not a file")
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise Refused(
        "config_invalid", f"no config file: looked for {looked}; make one with `payagent init` or name it"
    )


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Read the settings. `overrides` are flags, as a tree of the same keys.

    Raises `config_invalid` with one line for each key that is wrong: place, key, fix; values are not repeated.
    """
    path = find_config(config, environ)
    tree = _merged(_merged(_read_toml(path), _read_environ(environ)), overrides or {})
    try:
        return Settings(**_with_defaults(tree, environ))
    except ValidationError as error:
        lines = [_explain(dict(item), path, environ, overrides or {}) for item in error.errors()]
    raise Refused("config_invalid", "\n".join(lines))


def read_merchant(name: str, table: Mapping[str, object], network: str) -> Merchant:
    """A merchant's table that came at run time, as it would be read in the config file. Refused: `bad_request`."""
    try:
        _named({name: table})
        return Merchant.model_validate({**_MERCHANT_DEFAULTS[network == "devnet"], **table})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        raise Refused("bad_request", f"{key}: {_fix(first, ['merchants', name, key])}", key=key) from None
    except ValueError as error:
        raise Refused("bad_request", str(error), key="name") from None


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """The keys, as the config file has them, whose values differ; of a table that one of them lacks, its name."""
    return sorted(_differing(before, after, ""))


def _differing(before: object, after: object, key: str) -> Iterator[str]:
    old, new = _parts(before), _parts(after)
    if old is None or new is None:
        if before != after:
            yield key
        return
    for name in old.keys() | new.keys():
        inner = f"{key}.{name}" if key else name
        if name in old and name in new:
            yield from _differing(old[name], new[name], inner)
        else:
            yield inner


def _parts(value: object) -> Mapping[str, object] | None:
    """A table's values by their keys; None of what is no table."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {field.alias or name: getattr(value, name) for name, field in fields.items()}
    return value if isinstance(value, Mapping) else None


def passphrase_file(settings: Settings, environ: Mapping[str, str], can_ask: bool) -> SecretFile | None:
    """Where the keystore's passphrase lies: systemd credential, else `keystore.passphrase_file`; None is to ask.

    Raises `keystore_locked` when there is neither a file nor anybody who can answer, and when whether there is a
    credential cannot be seen.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and _is_there(Path(folder) / CREDENTIAL_NAME):
        # systemd guards the folder; on the file its access list shows as group bits
        return SecretFile(Path(folder) / CREDENTIAL_NAME, private=False)
    if settings.keystore.passphrase_file is not None:
        return SecretFile(settings.keystore.passphrase_file, private=True)
    if not can_ask:
        raise Refused(
            "keystore_locked",
            f"no passphrase: no systemd credential {CREDENTIAL_NAME}, no keystore.passphrase_file, no terminal",
        )
    return None


def _is_there(credential: Path) -> bool:
    try:
        return stat.S_ISREG(credential.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        told = f"the systemd credential {credential} cannot be looked at: {error.strerror}"
        raise Refused("keystore_locked", told) from None


def fence_plan(settings: Settings, config: Path, passphrase: SecretFile | None) -> fence.Plan:
    """What of the wallet's secrets the daemon can be kept from, by where they lie.

    It must be able to read anew what an operator may replace while it runs: the config and what that names.
    """
    read_anew = [
        config,
        settings.api.tls_certificate_file,
        settings.api.tls_key_file,
        settings.alerts.webhook_secret_file,
        *(provider.project_id_file for provider in settings.chain.providers),
        *(merchant.api_key_file for merchant in settings.merchants.values()),
    ]
    return fence.plan(
        [settings.data_dir / name for name in (KEYSTORE_FILE, WORDS_FILE)],
        None if passphrase is None else passphrase.path,
        [path for path in read_anew if path is not None],
        fence.version(),
    )


def written_by_daemon(settings: Settings, plan: fence.Plan) -> list[Path]:
    """The folders where the daemon may make files while it runs; without a fence those that are its own."""
    return [settings.data_dir, *(fence.temporary(plan.hidden) if plan.hidden else ())]


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def _read_toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused("config_invalid", f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused("config_invalid", f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"\(at [^()]*\)$", str(error))
        raise Refused("config_invalid", f"{path} is not valid TOML {where[0] if where else ''}") from None


def _read_environ(environ: Mapping[str, str]) -> Tree:
    for variable in environ:
        if variable.startswith(ENV_PREFIX) and variable not in (CONFIG_VARIABLE, TOKEN_VARIABLE):
            key = variable.removeprefix(ENV_PREFIX).lower().split("__")[0]
            if key not in Settings.model_fields:
                hint = _did_you_mean(key, Settings.model_fields)
                raise Refused(
                    "config_invalid", f"environment {variable}: {key} is not a known key; {hint}unset it"
                )
    try:
        tree = dict(_Environment(environ)())
    except SourceError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"{ENV_PREFIX}{field[1].upper()}" if field else "a variable"
        raise Refused("config_invalid", f"environment {name}: a list or a table is written as JSON") from None
    if isinstance(merchants := tree.get("merchants"), Mapping):
        tree["merchants"] = {name: _merchant_of_environ(table) for name, table in merchants.items()}
    return tree


def _merchant_of_environ(table: object) -> object:
    """A merchant's table as variables tell it. pydantic-settings knows no types in a table of tables: lists and
    switches are JSON here, as lists are elsewhere.
    """
    if not isinstance(table, Mapping):
        return table
    return {key: _json_or_text(value) if key in _JSON_OF_MERCHANT else value for key, value in table.items()}


def _json_or_text(value: object) -> object:
    """What is no JSON stays text, and is refused as what its key takes."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


_JSON_OF_MERCHANT = frozenset(
    name
    for name, field in Merchant.model_fields.items()
    if field.annotation is bool or get_origin(field.annotation) is tuple
)


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> Tree:
    tree = dict(low)
    for key, value in high.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            tree[key] = _merged(below, value)
        else:
            tree[key] = value
    return tree


def _with_defaults(tree: Tree, environ: Mapping[str, str]) -> Tree:
    """Add the defaults that depend on the network and on the user; the model has the rest."""
    data_dir = tree.get("data_dir", str(_home(environ) / ".local/share/payagent"))
    runtime = environ.get("XDG_RUNTIME_DIR")
    socket = f"{runtime}/payagent/payagent.sock" if runtime else f"{data_dir}/payagent.sock"
    places, is_devnet = {"data_dir": data_dir, "api": {"socket": socket}}, tree.get("network") == "devnet"
    merchants = tree.get("merchants")
    named = merchants if isinstance(merchants, Mapping) else {}
    defaults = {"merchants": dict.fromkeys(named, _MERCHANT_DEFAULTS[is_devnet])}
    return _merged(_merged(_merged(places, _DEFAULTS[is_devnet]), defaults), tree)


def _explain(
    error: Mapping[str, Any], path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> str:
    """One line for one of pydantic's errors: where the key was set, its name, and what to write."""
    steps = [str(step) for step in error["loc"]]
    key = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).removeprefix(".")
    return f"{_place(steps, path, environ, overrides)}: {key + ': ' if key else ''}{_fix(error, steps)}"


def _place(steps: list[str], path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> str:
    flags: object = overrides
    for step in steps:
        flags = flags.get(step) if isinstance(flags, Mapping) else flags
    if steps and flags is not None and flags is not overrides:
        return "command line"
    for count in range(len(steps), 0, -1):
        variable = ENV_PREFIX + "__".join(steps[:count]).upper()
        if variable in environ:
            return f"environment {variable}"
    return str(path)


def _fix(error: Mapping[str, Any], steps: list[str]) -> str:
    if error["type"] == "missing" and steps == ["network"]:
        return f"is missing and has no default; write one of {', '.join(NETWORKS)}"
    if error["type"] == "missing":
        return "is missing; config/payagent.example.toml explains it"
    if error["type"] == "extra_forbidden":
        hint = _did_you_mean(steps[-1], _known_keys(steps))
        return f"is not a known key; {hint}config/payagent.example.toml explains every key"
    return _SHAPES.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


_SHAPES = {
    "bool_type": "write true or false",
    "tuple_type": "write a list",
    "frozen_set_type": "write a list",
    "dict_type": "write a table of keys",
    "model_type": "write a table of keys",
}
"""What to write, by pydantic's name for what was found in its place."""


def _known_keys(steps: list[str]) -> list[str]:
    """The keys that the table around an unknown key has."""
    model: Any = Settings
    for step in steps[:-1]:
        if model is Settings:
            model = _TABLES[step]
        elif step in _ROWS:
            model = _ROWS[step]
    return [field.alias or name for name, field in model.model_fields.items()]


_ROWS: dict[str, type[_Table]] = {
    "providers": Provider,
    "assets": AssetLimit,
    "topup": Topup,
    "limits": MerchantLimits,
}
_TABLES: dict[str, type[_Table]] = {
    "api": Api,
    "chain": Chain,
    "payments": Payments,
    "merchants": Merchant,
    "limits": Limits,
    "approvals": Approvals,
    "proxy": Proxy,
    "alerts": Alerts,
    "wallet": Wallet,
    "keystore": Keystore,
}


def _did_you_mean(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]}? " if close else ""
