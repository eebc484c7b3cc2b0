"""What a step changes in the ledger, as plain values in the order in which they are written.

`core.payment.apply` makes them, `store.executor` writes them, and nothing else writes these tables.

Never: SQL; depends on when it is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from payagent.core.aggregate import AgreedPriceRow, AttemptRow, ExternalSpendRow, Hold, Stage, TxSeen, UtxoRow
from payagent.core.findings import Reasons
from payagent.core.ledger import Entry
from payagent.core.merchant_rules import Pin
from payagent.core.payment.machine import State
from payagent.core.prepaid_balance import PrepaidBalance
from payagent.core.utxo import FreeSet

Detail = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class MovePayment:
    """A payment's state, the columns that change with it, and its event. It must still be in state `before`."""

    payment_id: str
    before: State
    after: State
    event: str
    columns: Mapping[str, object] = field(default_factory=dict)
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """An event of a payment (with its state) or of the wallet."""

    payment_id: str | None
    event: str
    state: State | None
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Book:
    """An entry of the journal."""

    entry: Entry
    payment_id: str | None = None
    ref: str | None = None
    pool_id: int | None = None


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose limits a hold counts against, and the prepaid balance that it raises."""

    app_id: str
    origin: str
    pool_id: int | None


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """Units held for a payment from this time of the limits' clock on. Counted: in every window, until it ends."""

    payment_id: str
    stage: Stage
    units: Mapping[str, int]
    clock_ms: int
    is_counted: bool
    whose: Whose


@dataclass(frozen=True, slots=True)
class SetHold:
    """What a hold of one asset counts against limits from now on, and whether it is released."""

    payment_id: str
    hold: Hold  # as it was before
    whose: Whose
    units: int  # what it counts from now on
    from_ms: int | None  # since when it counts; None: in every window
    is_released: bool | None = None  # None: as before


@dataclass(frozen=True, slots=True)
class AddApproval:
    """A request for approval. `plan`: the transaction as planned. `expires_at_ms`: on the limits' clock."""

    payment_id: str
    terms_hash: str
    reasons: Reasons
    plan: Mapping[str, object]
    max_total_units: int | None
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class SetColumn:
    """What a merchant said of a payment: `delivery` or `merchant_status`. Its state stays."""

    payment_id: str
    column: Literal["delivery", "merchant_status"]
    value: str


@dataclass(frozen=True, slots=True)
class EndIntent:
    """An intent with a derived key ends, so that the same request may be bought again."""

    intent_id: str


@dataclass(frozen=True, slots=True)
class AddAttempt:
    """A signed attempt."""

    attempt: AttemptRow


@dataclass(frozen=True, slots=True)
class AddSubmission:
    tx_id: str
    provider: str


@dataclass(frozen=True, slots=True)
class AddObservation:
    """A provider showed a transaction in a block."""

    block: TxSeen
    provider: str


@dataclass(frozen=True, slots=True)
class AddUtxo:
    utxo: UtxoRow
    spent_by: str | None = None


@dataclass(frozen=True, slots=True)
class SetUtxo:
    """A UTxO's state. `spent_by`: the transaction, if it is spent now."""

    ref: str
    state: str
    spent_by: str | None = None


@dataclass(frozen=True, slots=True)
class ForgetUtxo:
    ref: str


@dataclass(frozen=True, slots=True)
class Free:
    """A change of the free set, in memory. It is undone if the commit fails."""

    what: FreeSet
    utxo: UtxoRow


@dataclass(frozen=True, slots=True)
class Reserve:
    payment_id: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unreserve:
    """All reservations of a payment end."""

    payment_id: str


@dataclass(frozen=True, slots=True)
class MovePrepaid:
    """A prepaid balance moves: bought, used or taken back. `kind` and what follows go into the move's row."""

    pool_id: int
    origin: str
    unit: str
    kind: str
    before: PrepaidBalance
    after: PrepaidBalance
    payment_id: str | None = None
    app_id: str | None = None
    call: str | None = None
    call_key: str | None = None


@dataclass(frozen=True, slots=True)
class AddUse:
    """A request of an app uses (unit, count) of a balance, at this cost; it counts from `clock_ms`."""

    pool_id: int
    app_id: str
    drawn: tuple[str, int]
    cost: Mapping[str, int]
    clock_ms: int


@dataclass(frozen=True, slots=True)
class TakeBackUses:
    """The newest uses of a balance, `count` in all, that no payment covers any more: they count no longer."""

    pool_id: int
    unit: str
    count: int


@dataclass(frozen=True, slots=True)
class AgreePrice:
    """The price of a request, with which later ones are compared."""

    origin: str
    price: AgreedPriceRow
    why: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PinAddress:
    """A merchant may be paid at an address."""

    origin: str
    pin: Pin
    why: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SetStreak:
    """How many payments in a row a merchant did not serve, and since when it is stopped."""

    origin: str
    count: int
    stopped_at_ms: int | None


@dataclass(frozen=True, slots=True)
class AddExternalSpend:
    spend: ExternalSpendRow
    provider: str


@dataclass(frozen=True, slots=True)
class Raise:
    """An alert. Unless `again`, only if its subject has none."""

    kind: str
    subject: str
    facts: Mapping[str, str]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Clear:
    """A subject's alert ends, if it has one."""

    subject: str
    facts: Mapping[str, str]


Change = (
    MovePayment | SetColumn | EndIntent | Note | Book | PlaceHold | SetHold | AddApproval
    | AddAttempt | AddSubmission | AddObservation | AddUtxo | SetUtxo | ForgetUtxo | Free | Reserve | Unreserve
    | MovePrepaid | AddUse | TakeBackUses | AgreePrice | PinAddress | SetStreak | AddExternalSpend | Raise | Clear
)  # fmt: skip
Changes = tuple[Change, ...]
"""In the order in which they are written."""
