"""The form of a receipt, and the rows that it was made from.

Every key must be present and no other, and each value must have its type and be within bounds.
Never: I/O; judges the content of a well-formed receipt.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    ValidationError,
)
from pydantic.json_schema import WithJsonSchema

from payagent.audit.finding import parse_head
from payagent.audit.signed_bytes import Owner
from payagent.core import strict_json
from payagent.core.address import parse_address
from payagent.core.aggregate import AttemptKind, OutputRow
from payagent.core.invoice import Proof, Role
from payagent.core.ledger import general_account
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.core.timestamps import LAST_MS, iso_time
from payagent.store.audit.payment_records import (
    STANDING,
    BlockObservationRow,
    Case,
    IntentFacts,
    InvoiceTerms,
    SignedRow,
)
from payagent.store.rows.events import EventRow
from payagent.store.rows.journal import EntryRow

FORMAT: Final = "payagent-receipt/1"
CALL_FORMAT: Final = "payagent-call-receipt/1"
RECEIPT_MAX_BYTES = 16 * 1024 * 1024

_INTEGER_MAX = 2**63 - 1
_DIGITS_MAX = 40


def read_units(value: object) -> int:
    """An amount in digits, of any size. Raises ValueError."""
    text = value if isinstance(value, str) and len(value) <= _DIGITS_MAX else ""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or str(int(text)) != text:
        raise ValueError("not an amount in digits")
    return int(text)


def _json_object(text: str) -> str:
    try:
        is_object = isinstance(strict_json.loads(text), dict)
    except Refused:
        is_object = False
    if not is_object:
        raise ValueError("not the text of a JSON object")
    return text


def _head(text: str) -> str:
    try:
        return str(parse_head(text))
    except Refused as refused:
        raise ValueError(refused.detail) from None


_Whole = Annotated[int, Field(ge=0, le=_INTEGER_MAX)]
_Time = Annotated[int, Field(ge=0, le=LAST_MS, description="Milliseconds since 1970.")]
_Bytes = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
_Units = Annotated[
    int,
    BeforeValidator(read_units),
    Field(ge=-_INTEGER_MAX, le=_INTEGER_MAX),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": r"^-?(0|[1-9][0-9]*)$"}),
]
"""Units that fit a ledger row. A larger amount would yield endless postings when it is compared."""


class ReceiptPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class ReceiptOutput(ReceiptPart):
    role: Role
    address: str
    asset: str
    units: _Units


class ReceiptBlock(ReceiptPart):
    hash: str
    height: _Whole
    slot: _Whole


class ReceiptApp(ReceiptPart):
    id: str
    name: str


class ReceiptPayment(ReceiptPart):
    id: str
    kind: str
    state: str
    delivery: str
    nonce_utxo: str | None
    ttl_slot: _Whole | None
    first_invoice_seq: _Whole | None
    app: ReceiptApp
    outputs: list[ReceiptOutput]
    is_prepaid: bool
    tx_hash: str | None
    block: ReceiptBlock | None
    void_tx_id: str | None
    merchant_status: str | None
    code: str | None
    reason: str | None
    detail: str | None
    created_at_ms: _Time
    updated_at_ms: _Time


class ReceiptIntent(ReceiptPart):
    id: str
    app_id: str
    idempotency_key: str
    fingerprint: str
    origin: str
    request: str | None
    request_id: str
    is_key_derived: bool


class ReceiptInvoice(ReceiptPart):
    number: _Whole
    dialect: str
    origin: str
    invoice_id: str
    terms_hash: str
    batch_target: _Whole | None
    proof: Proof
    echo: str | None
    commitment: _Bytes | None
    received_at_ms: _Time
    expires_at_ms: _Time | None
    response_402: str
    outputs: list[ReceiptOutput]
    merchant_submits: bool


class ReceiptHold(ReceiptPart):
    asset: str
    at_ms: _Time
    released_at_ms: _Time | None
    units: _Units


class ReceiptAttempt(ReceiptPart):
    kind: AttemptKind
    nonce_utxo: str
    invoice_seq: _Whole | None
    ttl_slot: _Whole
    signed_at_ms: _Time
    tx_hash: str
    inputs: list[str]
    fee: _Units
    cbor: _Bytes
    headers: dict[str, str]


class ReceiptBlockObservation(ReceiptPart):
    tx_hash: str
    block: ReceiptBlock
    at_ms: _Time


class ReceiptPosting(ReceiptPart):
    account: str
    asset: str
    units: _Units


class ReceiptEntry(ReceiptPart):
    id: _Whole
    kind: str
    ref: str | None
    at_ms: _Time
    postings: list[ReceiptPosting]


class ReceiptEvent(ReceiptPart):
    seq: _Whole
    event: str
    state: str | None
    detail: Annotated[str, AfterValidator(_json_object)]
    at_ms: _Time
    prev_hash: str
    hash: str


class ReceiptEventCopy(ReceiptPart):
    """An event for people, with a readable time."""

    seq: _Whole
    event: str
    at: str
    detail: object


class ReceiptLastEvent(ReceiptPart):
    seq: _Whole
    hash: str


class ReceiptLedger(ReceiptPart):
    last_event: ReceiptLastEvent
    head: Annotated[str, AfterValidator(_head)]


class Receipt(ReceiptPart):
    """Everything that is recorded about a payment. `payagent ledger verify --receipt` checks it without a daemon.

    Each part has the columns of the ledger's tables. `decisions` and `answers` repeat some of `events` for people.
    In `events`, `detail` is the text that the hash covers. `spent` is there if the payment changes a channel: the
    value of each of the wallet's UTxOs that its attempts spend. Anything else that they spend is the channel's.
    """

    format: Literal["payagent-receipt/1"]
    network: str
    wallet: str
    payment: ReceiptPayment
    intent: ReceiptIntent
    invoice: ReceiptInvoice | None
    other_invoices: list[ReceiptInvoice]
    decisions: list[ReceiptEventCopy]
    holds: list[ReceiptHold]
    attempts: list[ReceiptAttempt]
    block_observations: list[ReceiptBlockObservation]
    answers: list[ReceiptEventCopy]
    entries: list[ReceiptEntry]
    events: list[ReceiptEvent]
    ledger: ReceiptLedger
    spent: dict[str, dict[str, _Units]] | None = None

    @property
    def all_invoices(self) -> list[ReceiptInvoice]:
        """The current one first. Numbers may repeat in a forged receipt."""
        return [*([] if self.invoice is None else [self.invoice]), *self.other_invoices]

    @property
    def invoices(self) -> dict[int, ReceiptInvoice]:
        """By number; the payment's current one first."""
        return {invoice.number: invoice for invoice in self.all_invoices}


class CallReceipt(ReceiptPart):
    """A call that a channel paid, and the newest voucher of the channel that its merchant answered.

    `amount`: the sum that the call's own voucher promises. A voucher for as much or more covers the call.
    `charged`: None before the merchant's answer. `signature`: in hex, over the IOU for `voucher_amount`; None
    before the channel's first answer. `provider`: the hash of the key that may claim.
    """

    format: Literal["payagent-call-receipt/1"]
    network: str
    payment: str
    app: str
    merchant: str
    state: str
    asset: str
    price: _Units
    charged: _Units | None
    created_at_ms: _Time
    channel: _Bytes
    provider: _Bytes
    amount: _Units
    iou_key: _Bytes
    voucher_amount: _Units
    signature: _Bytes | None


class AnyReceipt(RootModel[Receipt | CallReceipt]):
    """The receipt of a payment, or of a call that a channel paid."""


def read_receipt(raw: bytes) -> Receipt | CallReceipt:
    """The receipt in a file. Refused: `file_invalid/receipt`."""
    try:
        value = strict_json.loads(raw, max_bytes=RECEIPT_MAX_BYTES)
    except Refused as refused:
        raise Refused("file_invalid/receipt", refused.detail.replace("the body", "the file", 1)) from None
    if not isinstance(value, dict) or value.get("format") not in (FORMAT, CALL_FORMAT):
        raise Refused("file_invalid/receipt", f"the file does not say that it is a {FORMAT}")
    try:
        if value["format"] == CALL_FORMAT:
            return CallReceipt.model_validate(value)
        receipt = Receipt.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in fault["loc"])
        raise Refused("file_invalid/receipt", f"{where}: {fault['msg'].removeprefix('Value error, ')}") from None
    owner_of(receipt)
    return receipt


def owner_of(receipt: Receipt) -> Owner:
    network = NETWORKS.get(receipt.network)
    if network is None:
        raise Refused("file_invalid/receipt", f"network is not one of {', '.join(NETWORKS)}")
    try:
        return Owner(parse_address(receipt.wallet, network), network)
    except Refused as refused:
        raise Refused("file_invalid/receipt", f"wallet: {refused.detail}") from None


def copies(events: Iterable[ReceiptEvent], names: Set[str]) -> list[ReceiptEventCopy]:
    """The events of these names, for people."""
    return [
        ReceiptEventCopy(
            seq=event.seq, event=event.event, at=iso_time(event.at_ms), detail=strict_json.loads(event.detail)
        )
        for event in events
        if event.event in names
    ]


def rows_of(outputs: Iterable[ReceiptOutput]) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(o.role, o.address, o.asset, o.units) for o in outputs)


def case_of(receipt: Receipt) -> Case:
    """The receipt as the rows that it was made from; without UTxOs, reservations and submissions."""
    payment, intent, spent = receipt.payment, receipt.intent, receipt.spent
    current = {
        **dict(payment),
        "tx_id": payment.tx_hash,
        "invoice_seq": receipt.invoice and receipt.invoice.number,
        **{f"block_{name}": getattr(payment.block, name, None) for name in ReceiptBlock.model_fields},
    }
    return Case(
        id=payment.id,
        kind=payment.kind,
        app_id=payment.app.id,
        outputs=rows_of(payment.outputs),
        is_prepaid=payment.is_prepaid,
        created_at_ms=payment.created_at_ms,
        standing={name: current[name] for name in STANDING},
        intent=IntentFacts(0, intent.app_id, intent.origin, intent.is_key_derived, None, None),
        first_invoice_seq=payment.first_invoice_seq,
        invoices={number: _terms(invoice) for number, invoice in receipt.invoices.items()},
        attempts=tuple(_signed(attempt, spent) for attempt in receipt.attempts),
        events=tuple(EventRow(e.seq, payment.id, e.event, e.state, e.detail, e.at_ms) for e in receipt.events),
        holds=tuple((hold.asset, hold.units, hold.at_ms, hold.released_at_ms) for hold in receipt.holds),
        entries=tuple(_entry(entry, payment.id) for entry in receipt.entries),
        block_observations=tuple(
            BlockObservationRow(place, one.tx_hash, one.block.hash, one.block.height, one.block.slot, one.at_ms)
            for place, one in enumerate(receipt.block_observations, 1)
        ),
        submissions=(),
        utxos=(),
        reserved=frozenset(),
        spent=spent,
    )


def _terms(invoice: ReceiptInvoice) -> InvoiceTerms:
    return InvoiceTerms(
        seq=invoice.number,
        origin=invoice.origin,
        invoice_id=invoice.invoice_id,
        dialect=invoice.dialect,
        terms_hash=invoice.terms_hash,
        outputs=rows_of(invoice.outputs),
        batch_target=invoice.batch_target,
        commitment=invoice.commitment,
    )


def _signed(attempt: ReceiptAttempt, spent: Mapping[str, object] | None) -> SignedRow:
    return SignedRow(
        tx_id=attempt.tx_hash,
        kind=attempt.kind,
        nonce_utxo=attempt.nonce_utxo,
        invoice_seq=attempt.invoice_seq,
        inputs=tuple(ref for ref in attempt.inputs if spent is None or ref in spent),
        cbor=bytes.fromhex(attempt.cbor),
        fee_lovelace=attempt.fee,
        ttl_slot=attempt.ttl_slot,
        signed_at_ms=attempt.signed_at_ms,
    )


def _entry(entry: ReceiptEntry, payment_id: str) -> EntryRow:
    # a receipt is of one payment, so of one account, whose number it does not need
    postings = tuple((general_account(line.account), line.asset, line.units) for line in entry.postings)
    return EntryRow(entry.id, entry.kind, payment_id, entry.ref, entry.at_ms, postings)
