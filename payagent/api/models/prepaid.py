"""Prepaid balances, and the top-ups that raise them. Never: I/O."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, ValidationInfo, WithJsonSchema

from payagent.agent.base.config import AgentConfig, TopupSource
from payagent.agent.base.requests import PrepaidQuote
from payagent.agent.topups.orders import TopupGoal, bought, gained_by
from payagent.agent.topups.runner import TopupPlan
from payagent.api.models.base import (
    Amounts,
    GivenUnit,
    GivenUnits,
    InSupply,
    Origin,
    Reason,
    RequestBody,
    Shown,
    Time,
    Units,
    absent,
    refusing,
)
from payagent.api.models.payments import RequestLine, RequestWithHeaders, quote_verdict
from payagent.core.aggregate import PaymentRow
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.origin import parse_origin
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.store.rows.prepaid import Holding, Observation, Pool
from payagent.store.rows.topups import TopupRow


class TopupRequest(RequestLine):
    """An ordinary request that costs money and whose 402 sells a batch. `body` is sent as JSON, unchanged."""

    body: str = Field(default="", description="The text of the body.")


def _configured(merchant: object, info: ValidationInfo[AgentConfig]) -> str:
    """The origin of a configured merchant, given its name in [merchants] or its origin. Context: the config."""
    merchants = info.context.merchants
    origin = next((one.origin for one in merchants.values() if one.name == merchant), None)
    with suppress(ValueError):
        origin = origin or parse_origin(merchant if isinstance(merchant, str) else "")
    if origin not in merchants:
        detail = f"{ascii(merchant)[:80]} is not in [merchants]"
        raise refusing(Refused("merchant_not_allowed", detail, key="merchant"))
    return str(origin)


ConfiguredMerchant = Annotated[
    str,
    PlainValidator(_configured),
    WithJsonSchema({"type": "string", "description": "Its name in the config, or its origin."}),
]


class CreateTopup(RequestBody):
    """Raise the balance at a merchant until `units` are paid without fees. With `calls` for `asset`: bought."""

    merchant: ConfiguredMerchant
    asset: GivenUnit = LOVELACE
    units: Annotated[GivenUnits, InSupply]
    request: TopupRequest = absent("Without it the request of merchants.NAME.topup is made.")
    only_sells: bool = Field(
        default=False, description="The request sells balance, and a balance never serves it."
    )
    dry_run: bool = False

    @property
    def goal(self) -> TopupGoal:
        request = None if self.request is None else TopupSource(**self.request.model_dump())
        return TopupGoal(self.merchant, self.asset, self.units, request, self.only_sells)


class PrepaidCost(Shown):
    """What was paid for a balance in one asset, and how much of that is used."""

    asset: str
    bought: Units
    used: Units
    left: Units


class MerchantBalance(BaseModel):
    """A balance as the merchant last reported it."""

    remaining: Units | None
    total: Units | None
    used: Units | None
    unit: str | None
    expires_at: Time | None
    understood: bool
    why_not: str | None
    source: Literal["balance", "credits"]
    status: int
    body: str
    at: Time

    @classmethod
    def of(cls, report: Observation) -> Self:
        return cls.model_validate(
            {
                "remaining": report.remaining,
                "total": report.total,
                "used": report.used,
                "unit": report.unit,
                "expires_at": report.expires_at_ms,
                "understood": report.why_not_understood is None,
                "why_not": report.why_not_understood,
                "source": report.source,
                "status": report.http_status,
                "body": report.body,
                "at": report.at_ms,
            }
        )


class PrepaidPool(BaseModel):
    """One balance, in `unit`: calls, or an asset. `coming`: what payments that are not yet confirmed will add.

    `difference`: what the merchant reports as left, minus our count; null if the two cannot be compared.
    """

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

    @classmethod
    def of(cls, holding: Holding, report: Observation | None, config: AgentConfig) -> Self:
        balance, merchant = holding.balance, config.merchants.get(holding.pool.origin)
        remaining = report.remaining if report is not None and (report.unit or CALLS) == holding.unit else None
        return cls(
            merchant=None if merchant is None else merchant.name,
            origin=holding.pool.origin,
            partner=holding.pool.partner or None,
            wallet=holding.pool.wallet,
            unit=holding.unit,
            bought=balance.bought,
            used=balance.used,
            left=balance.left,
            coming=holding.coming,
            unexplained=balance.unexplained - min(balance.unexplained, holding.coming),
            costs=[
                PrepaidCost(asset=asset, bought=cost.bought, used=cost.used, left=cost.left)
                for asset, cost in sorted(balance.costs.items())
            ],
            merchant_says=None if report is None else MerchantBalance.of(report),
            difference=None if remaining is None else str(remaining - balance.left),
        )


class Prepaid(BaseModel):
    """Everything that was bought in advance."""

    prepaid: list[PrepaidPool]


class PrepaidQuestion(RequestBody):
    """Whether a prepaid balance would serve a request."""

    origin: Annotated[Origin, Field(description="Scheme, host and port of the merchant.")]
    request: RequestWithHeaders


class PrepaidQuoteAnswer(BaseModel):
    """`prepaid`: whether a balance would serve the request. The other fields are present only then.

    The request would use `units` of `unit`, calls or an asset. `units` is null if the price is unknown, because
    the request never got a 402.
    """

    prepaid: bool
    network: str = absent("The network's name.")
    origin: str = absent("The merchant's origin.")
    unit: str = absent("What the balance counts.")
    units: Units | None = absent("How much the request would use.")
    within_limits: bool = absent("Whether the app's own limits allow it.")
    refusal: Reason = absent("Present if a limit of the app forbids it.")

    @classmethod
    def of(cls, quote: PrepaidQuote | None, config: AgentConfig) -> Self:
        if quote is None:
            return cls(prepaid=False)
        return cls(
            prepaid=True,
            network=config.network.name,
            origin=quote.origin,
            unit=quote.unit,
            units=quote.units,
            **quote_verdict(quote.refusal),
        )


class TopupRequestDetails(BaseModel):
    method: str
    path: str


class Topup(BaseModel):
    """A top-up. `bought` counts in its `unit`, calls or an asset; `paid` is without fees."""

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
    reason: Reason = absent("Present if it ends before its goal.")

    @classmethod
    def of(cls, row: TopupRow, pool: Pool, payments: Sequence[PaymentRow], config: AgentConfig) -> Self:
        merchant, request = config.merchants.get(pool.origin), json.loads(row.request)
        paid = add(
            {output.asset: output.units}
            for payment in payments
            if payment.state not in ENDED_WITHOUT_PAYING
            for output in payment.outputs
        )
        topup = cls.model_validate(
            {
                "id": row.id,
                "merchant": None if merchant is None else merchant.name,
                "origin": pool.origin,
                "partner": pool.partner or None,
                "wallet": pool.wallet,
                "trigger": row.trigger,
                "state": row.state,
                "unit": row.unit,
                "units": row.units,
                "bought": bought(row, payments),
                "paid": paid,
                "request": {"method": request["method"], "path": request["path"]},
                "payments": [payment.id for payment in payments],
                "created_at": row.created_at_ms,
                "ended_at": row.ended_at_ms,
            }
        )
        if row.code is not None:
            topup.reason = Reason(code=row.code, reason=row.reason, detail=row.detail)
        elif row.stop_code is not None:
            topup.reason = Reason(code=row.stop_code, reason=row.stop_reason, detail=row.stop_detail)
        return topup


class TopupsPage(BaseModel):
    topups: list[Topup]
    cursor: str | None


class Price(BaseModel):
    asset: str
    units: Units


class TopupQuote(BaseModel):
    """What a top-up would cost now: `count` payments of `price`. `spend` is everything that leaves the wallet.

    `under_way`: the top-up of the same balance that must end first; null if there is none.
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
    approval: list[Reason] = absent("Present if each payment would need an approval: why.")
    refusal: Reason = absent("Present if a limit or the wallet's funds forbid it.")

    @classmethod
    def of(cls, plan: TopupPlan, config: AgentConfig) -> Self:
        invoice, tx, count = plan.quote.invoice, plan.quote.plan, plan.count
        return cls(
            prepaid=False,
            merchant=config.merchant(plan.goal.origin).name,
            origin=plan.goal.origin,
            unit=plan.goal.unit,
            units=plan.goal.units,
            count=count,
            price=Price(asset=invoice.asset, units=invoice.total_units),
            total=invoice.total_units * count,
            calls=gained_by(CALLS, invoice) * count or None,
            fees=tx.fee_lovelace * count,
            spend={asset: units * count for asset, units in tx.spend.items()},
            under_way=plan.under_way,
            **quote_verdict(plan.quote.refusal, plan.quote.reasons),
        )
