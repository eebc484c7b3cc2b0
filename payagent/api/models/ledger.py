"""The ledger, and the results of checking it. Never: I/O."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from payagent.agent.base.config import AgentConfig
from payagent.api.models.base import Hex, Shown, SignedUnits, Time, Units, absent
from payagent.api.models.payments import shown_request
from payagent.api.models.prepaid import PrepaidPool
from payagent.audit.month import SPEND_BY, MonthRecord
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.store.rows.journal import EntryRow, SpendKey, SpendRow
from payagent.store.rows.operator_log import RefusalRow


class LedgerPosting(BaseModel):
    account: str
    asset: str
    units: SignedUnits


def _postings(rows: Sequence[tuple[str, str, int]]) -> list[LedgerPosting]:
    return [LedgerPosting(account=account, asset=asset, units=units) for account, asset, units in rows]


class LedgerEntry(BaseModel):
    """An entry with its postings. `merchant` and `app`: those of its payment, or of a use of a prepaid balance."""

    id: int
    kind: str
    payment: str | None
    merchant: str | None
    app: str | None
    ref: str | None
    at: Time
    postings: list[LedgerPosting]

    @classmethod
    def of(cls, row: EntryRow, config: AgentConfig) -> Self:
        return cls(
            id=row.id,
            kind=row.kind,
            payment=row.payment_id,
            merchant=config.merchant_name(row.origin),
            app=row.app,
            ref=row.ref,
            at=row.at_ms,
            postings=_postings(row.postings),
        )


class Entries(BaseModel):
    entries: list[LedgerEntry]
    cursor: str | None


class LedgerTransaction(BaseModel):
    payment: str
    tx_hash: str
    cbor: Annotated[str, Field(description="The signed bytes, in hex.")]


class Transactions(BaseModel):
    transactions: list[LedgerTransaction]
    cursor: str | None


class Balances(BaseModel):
    """Every account, and the sum over all accounts per asset. A sum other than zero means a broken ledger."""

    balances: list[LedgerPosting]
    sums: dict[str, SignedUnits]

    @classmethod
    def of(cls, balances: Sequence[tuple[str, str, int]]) -> Self:
        return cls(balances=_postings(balances), sums=add({asset: units} for _, asset, units in balances))


class Spent(BaseModel):
    """`payments`: how many payments spent it, without those that a rollback reversed."""

    asset: str
    paid: SignedUnits
    fees: SignedUnits
    sent: SignedUnits
    total: SignedUnits
    payments: int

    @classmethod
    def of(cls, asset: str, rows: Sequence[SpendRow], **group: str | None) -> Self:
        return cls.model_validate(
            {
                **group,
                "asset": asset,
                **{
                    name: sum(getattr(row, name) for row in rows)
                    for name in ("paid", "fees", "sent", "total", "payments")
                },
            }
        )


class SpentBy(Spent):
    """The spend of one group. A merchant that is not configured has its origin as its name; null: the operator."""

    merchant: str | None = absent("By merchant: its name in the config.")
    origin: str | None = absent("By merchant.")
    app: str | None = absent("By app: its name. null: what a channel promised, or gave back, for no call.")
    path: str | None = absent("By path, without its query. null: the request is not known.")
    destination: str | None = absent("By destination: the address that a transfer sent to. null: no transfer.")
    hour: str = absent("By hour, UTC.")
    day: str = absent("By day, UTC.")
    week: str = absent("By week, UTC: its Monday.")
    month: str = absent("By month, UTC.")


class Spending(BaseModel):
    """What left the wallet, by group and asset, and in total. `last_entry`: the ledger's newest entry then."""

    spend: list[SpentBy]
    totals: list[Spent]
    last_entry: int

    @classmethod
    def of(cls, keys: Sequence[SpendKey], rows: Sequence[SpendRow], config: AgentConfig, last_id: int) -> Self:
        groups = []
        for row in rows:
            group: dict[str, str | None] = dict(zip(keys, row.group, strict=True))
            if "merchant" in group:
                group["origin"] = group["merchant"]
                group["merchant"] = config.merchant_name(group["origin"])
            groups.append(SpentBy.of(row.asset, [row], **group))
        assets = sorted({row.asset for row in rows}, key=lambda asset: (asset != LOVELACE, asset))
        totals = [Spent.of(asset, [row for row in rows if row.asset == asset]) for asset in assets]
        return cls(spend=groups, totals=totals, last_entry=last_id)


class LedgerRefusal(BaseModel):
    """A refused purchase. `payment`: null if it was refused before there was one.

    `request`: method and path, without its query.
    """

    at: Time
    payment: str | None
    app: str | None
    merchant: str | None
    origin: str | None
    request: str | None
    code: str
    reason: str | None
    detail: str | None

    @classmethod
    def of(cls, row: RefusalRow, config: AgentConfig) -> Self:
        return cls(
            at=row.at_ms,
            payment=row.payment_id,
            app=row.app,
            merchant=config.merchant_name(row.origin),
            origin=row.origin,
            request=shown_request(row.request),
            code=row.code,
            reason=row.reason,
            detail=row.detail,
        )


class Refusals(BaseModel):
    refusals: list[LedgerRefusal]
    cursor: str | None


class BalanceChange(BaseModel):
    """How entries of one kind changed what is ours, wallet and held together."""

    kind: str
    asset: str
    units: SignedUnits


class RefusalCount(BaseModel):
    app: str | None
    merchant: str | None
    origin: str | None
    code: str
    count: int


class TopupCount(BaseModel):
    """Top-ups that were ordered. `unit`: calls, or an asset. `ended_early`: how many ended with a code.

    `units` were ordered; `bought` is what their confirmed payments bought.
    """

    merchant: str | None
    origin: str
    app: str
    trigger: str
    unit: str
    count: int
    units: Units
    bought: Units
    ended_early: int


class UnservedSum(BaseModel):
    """Payments with one asset that were paid and not served, without fees. Each has ADA, beside a token too."""

    asset: str
    payments: int
    units: Units


class MonthReport(BaseModel):
    """A month of the ledger, UTC, from one consistent state.

    For each asset, `opening` of wallet and held, plus `changes`, is `closing` of wallet and held. `head` is the
    newest seal: it covers every row that the report was made from.
    """

    network: str
    month: str
    since: Time
    until: Time
    opening: list[LedgerPosting]
    closing: list[LedgerPosting]
    changes: list[BalanceChange]
    spend: list[SpentBy]
    totals: list[Spent]
    refusals: list[RefusalCount]
    topups: list[TopupCount]
    unserved: list[UnservedSum]
    head: str

    @classmethod
    def of(cls, month: str, record: MonthRecord, config: AgentConfig) -> Self:
        spending = Spending.of(SPEND_BY, record.spend, config, last_id=0)
        return cls(
            network=config.network.name,
            month=month,
            since=record.since_ms,
            until=record.until_ms,
            opening=_postings(record.opening),
            closing=_postings(record.closing),
            changes=[BalanceChange(kind=kind, asset=asset, units=units) for kind, asset, units in record.changes],
            spend=spending.spend,
            totals=spending.totals,
            refusals=[
                RefusalCount(app=app, merchant=config.merchant_name(origin), origin=origin, code=code, count=count)
                for app, origin, code, count in record.refusals
            ],
            topups=[
                TopupCount.model_validate(
                    {"merchant": config.merchant_name(origin), "origin": origin}
                    | {"app": app, "trigger": trigger, "unit": unit, "count": count, "units": units}
                    | {"bought": bought, "ended_early": ended}
                )
                for origin, app, trigger, unit, count, units, bought, ended in record.topups
            ],
            unserved=[
                UnservedSum(asset=asset, payments=len(units), units=sum(units))
                for asset, group in groupby(record.unserved, key=itemgetter(0))
                for units in [[of_one for _, of_one in group]]
            ],
            head=str(record.head),
        )


class LedgerFinding(Shown):
    """A fault, and the table and row where it shows."""

    table: str
    row: str
    what: str


class VerifyReport(BaseModel):
    """The result of checking the ledger. `findings` has the first thousand.

    `checked` counts rows, or payments with all their rows. `head` is the newest seal, by number and hash: it
    covers every row before it.
    """

    findings: list[LedgerFinding]
    clean: bool
    found: int
    head: str
    checked: dict[str, int]


class ReconcileDifference(Shown):
    """A disagreement between the chain and the ledger, and the table and row where it shows."""

    kind: Literal["missing", "foreign", "differing"]
    table: str
    row: str
    tx_hash: str | None = Field(validation_alias="tx_id")
    what: str


class ReconcileInFlight(Shown):
    """A transaction that one side has and the other will have soon. `units`: chain minus ledger."""

    tx_hash: str = Field(validation_alias="tx_id")
    payment: str | None = Field(validation_alias="payment_id")
    what: str
    units: dict[str, SignedUnits]


class ReconcileAsset(Shown):
    """One asset: wallet + held, the unspent total at the address, and how much of the difference is in flight."""

    asset: str
    books: SignedUnits = Field(validation_alias="books_units")
    chain: SignedUnits = Field(validation_alias="chain_units")
    in_flight: SignedUnits = Field(validation_alias="in_flight_units")


class ChainTip(Shown):
    height: int
    slot: int
    hash: Hex


class Reconciliation(BaseModel):
    """The ledger compared with the chain. Each list has the first thousand.

    It is clean if it is complete and nothing was found. `prepaid` shows what merchants report beside our own
    count. A difference between these two is not a finding.
    """

    findings: list[ReconcileDifference]
    clean: bool
    complete: bool
    found: int
    could_not_tell: list[str]
    in_flight: list[ReconcileInFlight]
    balances: list[ReconcileAsset]
    checked: dict[str, int]
    since_slot: int
    provider: str | None
    tip: ChainTip | None
    prepaid: list[PrepaidPool]
