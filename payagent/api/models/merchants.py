"""Merchants, as they are added and as they are known. May import: core, dialects, pydantic."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from payagent.api.models.base import Closed, Time, Units, absent
from payagent.core.invoice import Proof
from payagent.core.retry_schedule import Ready


class CreateMerchant(Closed):
    """A merchant that may be paid from now on. What is not given is as in the config file's defaults."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+([_-][a-z0-9]+)*$")]
    origin: Annotated[str, Field(description="Scheme, host and port; https, but on this machine.")]
    resource_origins: list[str] = absent("Origins by which its x402 may name what it sells. No call goes there.")
    partner: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")] = absent("X-Partner of the calls.")
    proof: Proof = "tx_hash"
    ready: Ready = "auto"
    split_mode: Literal["additional", "inclusive", "outputs"] = absent("How a split without a mode is read.")
    request_commitment: bool = False
    timeout_s: Annotated[int, Field(ge=1, le=600)] = 30


class Merchant(BaseModel):
    """Who may be paid. `call_headers` belong in every call to it, the first one too.

    `accepted_depth`: how deep a payment's transaction was when the merchant accepted its proof (1: in the newest
    block, 0: in none); with `ready` = auto the next proof is first shown there. null: not known yet.
    `refused_early`: it refused a proof before `confirm_depth`, and is shown none before that.
    `resource_origins`: origins by which its x402 may name what it sells, besides the one that is called.
    """

    name: str
    origin: str
    resource_origins: list[str]
    ready: Ready
    accepted_depth: int | None
    refused_early: bool
    call_headers: dict[str, str]
    set_by: Literal["config", "operator"]


class Merchants(BaseModel):
    merchants: list[Merchant]


class CreatePin(Closed):
    """Whom a merchant may have paid: itself (`pay_to`), or one that gets a share."""

    role: Literal["pay_to", "split"]
    address: str


class PinnedAddress(BaseModel):
    role: Literal["pay_to", "split"]
    address: str
    set_by: Literal["config", "daemon"]


class AgreedPrice(BaseModel):
    """What was agreed to for so many calls at once, of a path without its query."""

    method: str
    path: str
    asset: str
    calls: int
    units: Units


class MerchantDetails(Merchant):
    """A merchant, what its invoices are held to, and what is known of it. null: that guard is off.

    `strikes`: how many payments in a row it took and did not serve; `stopped_at`: since when none is made to it.
    """

    pin: Literal["first_use", "config", "off"]
    addresses: list[PinnedAddress]
    price_rise_percent_max: int | None
    prices: list[AgreedPrice]
    stop_after_unserved: int | None
    strikes: int
    stopped_at: Time | None
    in_flight: int
    payments_in_flight_max: int | None
