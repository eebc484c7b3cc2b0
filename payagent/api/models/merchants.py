"""Merchants, their pins, prices and rules. Never: I/O."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.operator.merchants import MerchantStatus
from payagent.api.models.base import RequestBody, Shown, Time, Units, absent
from payagent.core.aggregate import AgreedPriceRow
from payagent.core.invoice import Proof, SplitMode
from payagent.core.merchant_rules import MerchantRules, Pin
from payagent.core.retry_schedule import MerchantReadiness, Ready


class CreateMerchant(RequestBody):
    """A merchant that may be paid from now on. Settings that are left out have the config file's defaults."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]
    origin: Annotated[str, Field(description="Scheme, host and port; https, except on this machine.")]
    resource_origins: list[str] = absent(
        "Other origins that its x402 may name as the resource. No request goes there."
    )
    partner: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] = absent("X-Partner of the requests.")
    proof: Proof = "tx_hash"
    ready: Ready = "auto"
    split_mode: SplitMode = absent("How a split without a mode is read.")
    request_commitment: bool = False
    timeout_s: Annotated[int, Field(ge=1, le=600)] = 30

    @property
    def settings(self) -> dict[str, object]:
        """The settings that were given, by their names in the config file."""
        return self.model_dump(exclude={"name"}, exclude_unset=True)


class AgreedPrice(Shown):
    """The agreed price of `calls` requests. `path` has no query."""

    method: str
    path: str
    asset: str
    calls: int
    units: Units


class Merchant(BaseModel):
    """A merchant that may be paid. `call_headers` belong in every request to it, the first one too.

    `accepted_depth`: how deep a payment's transaction was when the merchant accepted its proof (1: in the newest
    block, 0: in no block); null: unknown. With `ready` = auto the next proof is first presented at that depth.
    `refused_early`: it refused a proof before `confirm_depth`, so no proof is presented before that.
    `resource_origins`: other origins that its x402 may name as the resource. `prices`: what was last agreed.
    `topup_path`: the path of the request that the config names for top-ups, or null.
    """

    name: str
    origin: str
    resource_origins: list[str]
    ready: Ready
    accepted_depth: int | None
    refused_early: bool
    call_headers: dict[str, str]
    set_by: Literal["config", "operator"]
    topup_path: str | None
    prices: list[AgreedPrice]

    @classmethod
    def of(
        cls,
        merchant: MerchantConfig,
        readiness: MerchantReadiness,
        prices: Iterable[AgreedPriceRow],
        config: AgentConfig,
        **more: Any,
    ) -> Self:
        return cls(
            name=merchant.name,
            origin=merchant.origin,
            resource_origins=sorted(merchant.resource_origins),
            ready=merchant.ready,
            accepted_depth=readiness.accepted_depth,
            refused_early=readiness.refused_early,
            call_headers=merchant.buyer_headers(config.own.text),
            set_by="config" if merchant.is_from_file else "operator",
            topup_path=None if merchant.topup_request is None else merchant.topup_request.path,
            prices=[AgreedPrice.model_validate(price) for price in prices],
            **more,
        )


class Merchants(BaseModel):
    merchants: list[Merchant]


class CreatePin(RequestBody):
    """An address that the merchant's invoices may pay: its own (`pay_to`), or one that gets a share."""

    role: Literal["pay_to", "split"]
    address: str


class PinnedAddress(BaseModel):
    role: Literal["pay_to", "split"]
    address: str
    set_by: Literal["config", "daemon"]

    @classmethod
    def all(cls, rules: MerchantRules, pins: Iterable[Pin]) -> list[Self]:
        """The config file's addresses, then those that the daemon pinned."""
        known = [*sorted(rules.from_file), *(pin for pin in pins if pin not in rules.from_file)]
        return [
            cls.model_validate({**pin._asdict(), "set_by": "config" if pin in rules.from_file else "daemon"})
            for pin in known
        ]


class MerchantDetails(Merchant):
    """A merchant, the rules for its invoices, and what was recorded about it. A rule that is null is off.

    `unserved_streak`: how many payments in a row it accepted without serving the request. `stopped_at`: since when
    payagent makes no payment to it.
    """

    pin: Literal["first_use", "config", "off"]
    addresses: list[PinnedAddress]
    price_rise_percent_max: int | None
    stop_after_unserved: int | None
    unserved_streak: int
    stopped_at: Time | None
    in_flight: int
    payments_in_flight_max: int | None

    @classmethod
    def of_status(cls, status: MerchantStatus, config: AgentConfig) -> Self:
        rules = status.merchant.rules
        return cls.of(
            status.merchant,
            status.readiness,
            status.prices,
            config,
            pin="config" if rules.from_file else "first_use" if rules.first_use else "off",
            addresses=PinnedAddress.all(rules, status.pins),
            price_rise_percent_max=rules.price_rise_percent_max,
            stop_after_unserved=rules.stop_after_unserved,
            unserved_streak=status.unserved_streak.count,
            stopped_at=status.unserved_streak.stopped_at_ms,
            in_flight=status.in_flight,
            payments_in_flight_max=rules.payments_in_flight_max,
        )
