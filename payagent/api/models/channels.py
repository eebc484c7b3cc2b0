"""Channels, and the payments that change them or that they pay. Never: I/O."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from payagent.api.models.base import GivenUnits, InSupply, RequestBody, Shown, Time, Units, absent
from payagent.api.models.prepaid import ConfiguredMerchant


class OpenChannel(RequestBody):
    """Lock money in a channel at a merchant."""

    merchant: ConfiguredMerchant
    amount: Annotated[GivenUnits, InSupply] = absent("How much to lock. Without it: the deposit of the config.")


class AddToChannel(RequestBody):
    """Lock more in a channel."""

    amount: Annotated[GivenUnits, InSupply]


class ChannelPayment(Shown):
    """A payment of a channel. `step`: open, add, close, end or elapse; call if the channel pays it.

    `units`: what the step locks or brings back; of a call, what the merchant charged, null before its answer.
    """

    payment: Annotated[str, Field(validation_alias="payment_id")]
    step: str
    units: Units | None
    state: str


class ChannelDetails(BaseModel):
    """A channel. Amounts are in units of `asset`.

    `locked`: what it holds now. `deposited`: what was locked in all. `capacity`: the most that vouchers may
    promise. `signed`: the highest voucher. `count`: what the merchant charged. `claimed`: what it took on the
    chain. `most_lost`: what it may still take. `returns_at`: from when the rest may be taken back; null before
    the chain shows it closed. `problem`: why payagent closed it. `steps`: oldest first.
    """

    id: str
    merchant: str
    state: Literal["opening", "open", "closing", "ended", "void"]
    asset: str
    locked: Units
    deposited: Units
    capacity: Units
    signed: Units
    count: Units
    claimed: Units
    most_lost: Units
    returns_at: Time | None
    problem: str | None
    steps: list[ChannelPayment]
    calls: list[ChannelPayment] = absent("The newest, newest first. Present if one channel is shown.")


class ChannelsPage(BaseModel):
    """`next`: the cursor of the next page."""

    channels: list[ChannelDetails]
    next: str | None
