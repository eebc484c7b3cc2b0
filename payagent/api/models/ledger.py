"""The books, and what was found when they were checked. May import: core, dialects, pydantic."""

from typing import Literal

from pydantic import BaseModel

from payagent.api.models.base import Hex, SignedUnits, Time, absent
from payagent.api.models.prepaid import PrepaidPool


class LedgerPosting(BaseModel):
    account: str
    asset: str
    units: SignedUnits


class LedgerEntry(BaseModel):
    id: int
    kind: str
    payment: str | None
    ref: str | None
    at: Time
    postings: list[LedgerPosting]


class Entries(BaseModel):
    entries: list[LedgerEntry]
    cursor: str | None


class Balances(BaseModel):
    balances: list[LedgerPosting]
    sums: dict[str, SignedUnits]


class Spent(BaseModel):
    """`payments`: how many took it, less those that a rollback took back."""

    asset: str
    paid: SignedUnits
    fees: SignedUnits
    sent: SignedUnits
    total: SignedUnits
    payments: int


class SpentBy(Spent):
    """With what it is told by. A merchant that is not configured goes by its origin; null: the operator's own."""

    merchant: str | None = absent("By merchant: its name in the config.")
    origin: str | None = absent("By merchant.")
    app: str = absent("By app: its name.")
    day: str = absent("By day, UTC.")
    month: str = absent("By month, UTC.")


class Spending(BaseModel):
    """What left the wallet: by group and asset, and in all."""

    spend: list[SpentBy]
    totals: list[Spent]


class LedgerFinding(BaseModel):
    """What is wrong, and in which row of which table it shows."""

    table: str
    row: str
    what: str


class VerifyReport(BaseModel):
    """Of the findings, the first thousand; `checked` counts rows, or payments with all that belongs to them.

    `head` is the newest seal, by number and hash: it stands for every row up to it.
    """

    findings: list[LedgerFinding]
    clean: bool
    found: int
    head: str
    checked: dict[str, int]


class ReconcileDifference(BaseModel):
    """What the chain and the books do not say alike, and in which row of which table it shows."""

    kind: Literal["missing", "foreign", "differing"]
    table: str
    row: str
    tx_hash: str | None
    what: str


class ReconcileInFlight(BaseModel):
    """What the chain has and the books are about to have; or the other way round, with negative units."""

    tx_hash: str
    payment: str | None
    what: str
    units: dict[str, SignedUnits]


class ReconcileAsset(BaseModel):
    """Of an asset: wallet + held, what is unspent at the address, and how much of the difference is in flight."""

    asset: str
    books: SignedUnits
    chain: SignedUnits
    in_flight: SignedUnits


class ChainTip(BaseModel):
    height: int
    slot: int
    hash: Hex


class Reconciliation(BaseModel):
    """Of each list, the first thousand. It is clean when nothing was found and nothing was left untold.

    `prepaid` is what merchants say beside what we count: their word is no finding.
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
