"""The ledger, and the results of checking it. May import: core, agent, audit, store.rows, pydantic. Never: I/O."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field

from payagent.agent.base.config import AgentConfig
from payagent.api.models.base import Hex, Shown, SignedUnits, Time, absent
from payagent.api.models.prepaid import PrepaidPool
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.store.rows.journal import EntryRow, SpendKey, SpendRow


class LedgerPosting(BaseModel):
    account: str
    asset: str
    units: SignedUnits


def _postings(rows: Sequence[tuple[str, str, int]]) -> list[LedgerPosting]:
    return [LedgerPosting(account=account, asset=asset, units=units) for account, asset, units in rows]


class LedgerEntry(BaseModel):
    id: int
    kind: str
    payment: str | None
    ref: str | None
    at: Time
    postings: list[LedgerPosting]

    @classmethod
    def of(cls, row: EntryRow) -> Self:
        return cls(
            id=row.id,
            kind=row.kind,
            payment=row.payment_id,
            ref=row.ref,
            at=row.at_ms,
            postings=_postings(row.postings),
        )


class Entries(BaseModel):
    entries: list[LedgerEntry]
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
    app: str = absent("By app: its name.")
    day: str = absent("By day, UTC.")
    month: str = absent("By month, UTC.")


class Spending(BaseModel):
    """What left the wallet, by group and asset, and in total."""

    spend: list[SpentBy]
    totals: list[Spent]

    @classmethod
    def of(cls, keys: Sequence[SpendKey], rows: Sequence[SpendRow], config: AgentConfig) -> Self:
        groups = []
        for row in rows:
            group: dict[str, str | None] = dict(zip(keys, row.group, strict=True))
            if "merchant" in group:
                merchant = config.merchants.get(group["merchant"] or "")
                group["origin"] = group["merchant"]
                group["merchant"] = merchant.name if merchant else group["merchant"]
            groups.append(SpentBy.of(row.asset, [row], **group))
        assets = sorted({row.asset for row in rows}, key=lambda asset: (asset != LOVELACE, asset))
        totals = [Spent.of(asset, [row for row in rows if row.asset == asset]) for asset in assets]
        return cls(spend=groups, totals=totals)


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
