"""Prepaid balances, and the orders that raise them. May import: core, dialects, pydantic."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from payagent.api.models.base import Amounts, Closed, Reason, Time, Units, absent


class TopupRequest(Closed):
    """An ordinary call that costs money, whose 402 sells a batch. `body` is sent as JSON, as it stands."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]
    body: str = absent("The body's text.")


class CreateTopup(Closed):
    """Raise the balance at a merchant until so much is paid, fees not counted."""

    merchant: Annotated[str, Field(description="Its name in the config, or its origin.")]
    units: Units
    asset: str = "lovelace"
    request: TopupRequest = absent("Without it the request of merchants.NAME.topup is made.")
    dry_run: bool = False


class PrepaidCost(BaseModel):
    """What was paid for a balance in one asset, and how much of that is used up."""

    asset: str
    bought: Units
    used: Units
    left: Units


class MerchantBalance(BaseModel):
    """A merchant's own word on a balance, as it was last heard."""

    remaining: Units | None
    total: Units | None
    used: Units | None
    unit: str | None
    expires_at: str | None
    understood: bool
    why_not: str | None
    source: Literal["balance", "credits"]
    status: int
    body: str
    at: str


class PrepaidPool(BaseModel):
    """One balance, in `unit`: calls, or an asset. `coming`: what payments that are not confirmed yet will add."""

    merchant: str | None
    origin: str
    partner: str | None
    wallet: str
    unit: str
    bought: Units
    used: Units
    left: Units
    coming: Units
    unexplained: Units
    costs: list[PrepaidCost]
    merchant_says: MerchantBalance | None
    difference: str | None


class Prepaid(BaseModel):
    """What was bought ahead."""

    prepaid: list[PrepaidPool]


class PrepaidCall(Closed):
    """A call that is not made yet. `headers`: X-Partner and X-Wallet-Address, where it names another buyer."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]
    headers: dict[str, str] | list[tuple[str, str]] = absent("Without them the buyer is as configured.")


class PrepaidQuestion(Closed):
    """Whether a prepaid balance would serve a call."""

    origin: Annotated[str, Field(description="Scheme, host and port of the merchant.")]
    request: PrepaidCall


class PrepaidQuoteAnswer(BaseModel):
    """`prepaid`: whether a balance would serve the call; the rest is there when one would.

    The call would use `units` of `unit`, calls or an asset. `units` is null when the call never answered 402:
    nobody knows its price.
    """

    prepaid: bool
    network: str = absent("The network's name.")
    origin: str = absent("As it was asked.")
    unit: str = absent("In what the balance counts.")
    units: Units | None = absent("How much the call would use.")
    within_limits: bool = absent("Whether the app's own limits let it through.")
    refusal: Reason = absent("There when a limit of the app stands against it.")


class TopupRequestDetails(BaseModel):
    method: str
    path: str


class Topup(BaseModel):
    """An order. `bought` counts in its `unit`, calls or an asset; `paid` is without fees."""

    id: str
    merchant: str | None
    origin: str
    partner: str | None
    wallet: str
    trigger: Literal["manual", "auto"]
    state: Literal["open", "stopping", "done", "stopped"]
    unit: str
    units: Units
    bought: Units
    paid: Amounts
    request: TopupRequestDetails
    payments: list[str]
    created_at: Time
    ended_at: Time | None
    reason: Reason = absent("There when it ends before so much was bought.")


class TopupsPage(BaseModel):
    topups: list[Topup]
    cursor: str | None


class Price(BaseModel):
    asset: str
    units: Units


class TopupQuote(BaseModel):
    """What a top-up would take: `count` payments of `price`. `spend` is all that leaves the wallet.

    `under_way`: the top-up of the same balance that has to be done first; null when there is none.
    """

    prepaid: Literal[False]
    merchant: str
    origin: str
    unit: str
    units: Units
    count: int
    price: Price
    total: Units
    calls: Units | None
    fees: Units
    spend: Amounts
    under_way: str | None
    within_limits: bool
    approval: list[Reason] = absent("There when a person would be asked about each payment first: why.")
    refusal: Reason = absent("There when a limit or the wallet's funds stand against it.")
