"""A payment with everything that a step needs to know of it: frozen values, as the store loads them.

Never: SQL; changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from payagent.core.invoice import Proof, Role
from payagent.core.payment.machine import BY_A_BLOCK, Delivery, State
from payagent.core.problems import name_of

Stage = Literal["approval", "payment"]
"""The stage of a hold: `approval` while a decision is pending, `payment` from the decision on."""


CHANNEL_CALL = "channel_call"
"""The kind of a call that a channel pays. It is seen as a payment, and has no transaction."""


@dataclass(frozen=True, slots=True)
class OutputRow:
    role: Role
    address: str
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class IntentPart:
    """A payment's intent. `is_first`: nothing was signed for it before this payment.

    `origin`: the merchant's; empty for a transfer.
    """

    id: str
    request_id: str
    is_first: bool
    origin: str


@dataclass(frozen=True, slots=True)
class InvoicePart:
    """The invoice that a payment's current attempt pays. A transfer has none: None in all columns that can be."""

    seq: int | None
    origin: str | None
    dialect: str | None
    id: str | None
    terms_hash: str | None
    batch_target: int | None
    expires_at_ms: int | None
    proof: Proof
    merchant_submits: bool
    echo: str | None
    commitment: str | None


@dataclass(frozen=True, slots=True)
class AttemptPart:
    """A payment's current attempt: the last one, or the one in a block. All None while it is being replaced."""

    number: int | None  # its place among the attempts of all payments
    tx_id: str | None
    ttl_slot: int | None  # the planned one before there is an attempt
    fee_lovelace: int | None
    cbor: bytes | None = field(repr=False)
    accepted_by_provider: bool  # ever
    seen_in_block: bool  # ever


class TxSeen(NamedTuple):
    """A transaction in a block, as a provider showed it. The reader computes the depth from the newest block."""

    tx_id: str
    block_hash: str
    block_height: int
    block_slot: int


@dataclass(frozen=True, slots=True)
class BlockPart:
    """The block that a payment's transaction is in; None before that."""

    hash: str | None
    height: int | None
    slot: int | None


@dataclass(frozen=True, slots=True)
class ProblemPart:
    """Why a payment was refused, is cancelled or is void: a code, its reason, and a detail for people."""

    code: str | None
    reason: str | None
    detail: str | None

    @property
    def name(self) -> str | None:
        """The name that `Refused` takes."""
        return name_of(self.code, self.reason)


@dataclass(frozen=True, slots=True)
class PrepaidPart:
    """The prepaid balance that a payment raises (`partner` is '' if none was named), and its top-up; or None."""

    pool_id: int | None
    partner: str | None
    wallet: str | None
    topup_id: str | None


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment with its intent, its invoice and its current attempt."""

    seq: int
    id: str
    kind: str
    app_id: str
    outputs: tuple[OutputRow, ...]  # the invoice's
    state: State
    delivery: Delivery
    nonce_utxo: str | None
    void_tx_id: str | None  # the transaction of another payment that rules out this one's nonce UTxO
    merchant_status: str | None
    refused: bool  # the merchant refused it before broadcasting anything
    created_at_ms: int
    updated_at_ms: int
    account: int  # the account of the wallet that pays
    intent: IntentPart
    invoice: InvoicePart
    attempt: AttemptPart
    block: BlockPart
    problem: ProblemPart
    prepaid: PrepaidPart
    is_noted: bool = True  # False while the signer's own record lacks the attempt; its proof must not leave yet

    @property
    def is_channel_step(self) -> bool:
        """Whether it opens, changes or ends a channel: a transfer with a merchant."""
        return self.invoice.seq is None and self.intent.origin != ""

    @property
    def shown_by(self) -> str:
        """The transaction whose block the payment's state rests on: its own, or the one that rules it out."""
        return self.void_tx_id or self.attempt.tx_id or ""


AttemptKind = Literal["pay", "cancel"]


@dataclass(frozen=True, slots=True)
class AttemptRow:
    tx_id: str
    payment_id: str
    kind: AttemptKind
    nonce_utxo: str
    invoice_seq: int | None
    inputs: tuple[str, ...]
    cbor: bytes
    fee_lovelace: int
    ttl_slot: int
    account: int = 0


@dataclass(frozen=True, slots=True)
class UtxoRow:
    ref: str
    tx_id: str
    output_index: int
    lovelace: int
    assets: Mapping[str, int]
    source: str
    state: str
    reserved_for: str | None
    account: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether nothing can spend it now: it is missing from the provider's list, rolled back, or spent."""
        return self.state in ("missing", "rolled_back", "spent")


@dataclass(frozen=True, slots=True)
class Hold:
    """Units of one asset that are held for a payment, and what they count against limits."""

    stage: Stage
    asset: str
    units: int
    counted_units: int | None  # None: they count nowhere
    counted_from_ms: int | None  # None: they count in every window
    is_released: bool


@dataclass(frozen=True, slots=True)
class Maker:
    """The payment whose attempt makes a UTxO. `tx_id`: its current attempt, which may be another one.

    `is_settled`: it has reserved nothing, because no rollback reaches its end any more.
    """

    payment_id: str
    state: State
    tx_id: str | None
    is_settled: bool


@dataclass(frozen=True, slots=True)
class OwnUtxo:
    """A UTxO that a payment has reserved, that one of its attempts spends, or that one of them makes."""

    row: UtxoRow
    spent_by: str | None
    maker: Maker | None

    @property
    def is_made(self) -> bool:
        """Whether its transaction is on the chain: a deposit, or an attempt in a block."""
        if self.row.source == "deposit":
            return True
        maker = self.maker
        return maker is not None and maker.tx_id == self.row.tx_id and maker.state in BY_A_BLOCK

    @property
    def is_never_made(self) -> bool:
        """Whether its maker ended with another transaction or none, and no rollback can change that."""
        maker = self.maker
        return maker is not None and maker.is_settled and maker.tx_id != self.row.tx_id


@dataclass(frozen=True, slots=True)
class ExternalSpendRow:
    """An external spend: a transaction in a block that spent our UTxOs (`inputs`) and is not an attempt.

    `is_on_chain`: False if its block was rolled back. `spent`: the value of those UTxOs, per asset. They belong to
    one account. A transaction that spends from two has a row for each.
    """

    tx_id: str
    is_on_chain: bool
    inputs: tuple[str, ...]
    spent: Mapping[str, int]
    block_hash: str
    block_height: int
    block_slot: int
    account: int = 0


@dataclass(frozen=True, slots=True)
class LoadedPayment:
    """A payment as one step sees it. `attempts`: oldest first. `posted`: its last entry that was not reversed.

    `external_spends`: transactions outside payagent that are on the chain and spent an input of its attempts.
    """

    row: PaymentRow
    attempts: tuple[AttemptRow, ...] = ()
    holds: tuple[Hold, ...] = ()
    utxos: Mapping[str, OwnUtxo] = field(default_factory=dict)
    posted: tuple[tuple[str, str, int], ...] = ()
    external_spends: tuple[ExternalSpendRow, ...] = ()

    @property
    def held(self) -> dict[str, int]:
        """Units of its hold, per asset."""
        return {hold.asset: hold.units for hold in self.holds if hold.stage == "payment"}

    @property
    def reserved(self) -> list[OwnUtxo]:
        """The UTxOs that it has reserved, in the order of their refs."""
        return [one for _, one in sorted(self.utxos.items()) if one.row.reserved_for == self.row.id]

    def made_by(self, tx_id: str | None) -> list[OwnUtxo]:
        """The UTxOs that a transaction makes, in the order of their refs."""
        return [one for _, one in sorted(self.utxos.items()) if one.row.tx_id == tx_id]

    def attempt(self, tx_id: str | None) -> AttemptRow | None:
        return next((one for one in self.attempts if one.tx_id == tx_id), None)

    def require_attempt(self, tx_id: str | None) -> AttemptRow:
        """The attempt. Raises KeyError if there is none, which is a bug."""
        return {one.tx_id: one for one in self.attempts}[tx_id or ""]


@dataclass(frozen=True, slots=True)
class AgreedPriceRow:
    """The agreed price of a request: its method, its path without query, and the calls bought at once."""

    method: str
    path: str
    asset: str
    calls: int
    units: int
