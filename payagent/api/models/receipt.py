"""Makes a payment's receipt, in the form that `payagent.audit.receipt` checks.

Never: I/O beyond the ledger connection it is given; judges the payment.
"""

import json
from dataclasses import replace
from typing import Any, TypeVar

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.payment_view import retry_headers
from payagent.audit.finding import Head
from payagent.audit.receipt import ANSWERS, DECISIONS
from payagent.audit.receipt_form import (
    CALL_FORMAT,
    FORMAT,
    CallReceipt,
    Receipt,
    ReceiptApp,
    ReceiptAttempt,
    ReceiptBlock,
    ReceiptBlockObservation,
    ReceiptEntry,
    ReceiptEvent,
    ReceiptHold,
    ReceiptIntent,
    ReceiptInvoice,
    ReceiptLastEvent,
    ReceiptLedger,
    ReceiptPart,
    ReceiptPayment,
    copies,
)
from payagent.core.address import parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.store.audit.payment_records import values_of
from payagent.store.audit.receipts import Recorded, Row, recorded
from payagent.store.db.unit import Connection
from payagent.store.rows import about
from payagent.store.rows.journal import EntryRow

Part = TypeVar("Part", bound=ReceiptPart)


def receipt_of(conn: Connection, row: PaymentRow, config: AgentConfig) -> Receipt:
    """`conn` must be in one read transaction."""
    record = recorded(conn, row.id)
    if (address := about.account_addresses(conn).get(row.account)) is not None:
        config = replace(config, own=parse_address(address, config.network))
    events = [_part(ReceiptEvent, event) for event in record.events]
    seq, hash_ = record.last_event
    receipt = Receipt(
        format=FORMAT,
        network=config.network.name,
        wallet=config.own.text,
        payment=_payment(record),
        intent=_part(ReceiptIntent, record.intent, is_key_derived=bool(record.intent["is_key_derived"])),
        invoice=None if record.invoice is None else _invoice(record.invoice),
        other_invoices=[_invoice(invoice) for invoice in record.other_invoices],
        decisions=copies(events, DECISIONS),
        holds=[_part(ReceiptHold, hold, units=str(hold["units"])) for hold in record.holds],
        attempts=[_attempt(attempt, row, record, config) for attempt in record.attempts],
        block_observations=[
            _part(ReceiptBlockObservation, one, tx_hash=one["tx_id"], block=_block(one))
            for one in record.block_observations
        ],
        answers=copies(events, ANSWERS),
        entries=[_entry(entry) for entry in record.entries],
        events=events,
        ledger=ReceiptLedger(last_event=ReceiptLastEvent(seq=seq, hash=hash_), head=str(Head(*record.last_seal))),
    )
    if row.is_channel_step:
        receipt.spent = values_of(conn, [ref for attempt in receipt.attempts for ref in attempt.inputs])
    return receipt


def call_receipt_of(conn: Connection, row: PaymentRow, config: AgentConfig) -> CallReceipt:
    """The receipt of a call that a channel pays. `conn` must be in one read transaction."""
    from payagent.store.rows import channels  # only where there are channels

    call = channels.require_call(conn, row.id)
    channel = channels.channel(conn, call.channel)
    return CallReceipt.model_validate(
        {"format": CALL_FORMAT, "network": config.network.name, "payment": call.id, "app": call.app_id}
        | {"merchant": channel.origin, "state": str(call.state), "asset": channel.asset, "price": str(call.price)}
        | {"charged": None if call.charged is None else str(call.charged), "created_at_ms": call.created_at_ms}
        | {"channel": channel.id, "provider": channel.provider, "amount": str(call.amount)}
        | {"iou_key": channel.iou_key, "voucher_amount": str(channel.voucher_amount), "signature": channel.voucher}
    )


def _part(part: type[Part], row: Row, **others: Any) -> Part:
    """The part with the row's columns of the same names, and with the others."""
    return part.model_validate({name: row[name] for name in part.model_fields.keys() - others} | others)


def _payment(record: Recorded) -> ReceiptPayment:
    row = record.payment
    return _part(
        ReceiptPayment,
        row,
        app=_part(ReceiptApp, record.app),
        outputs=json.loads(row["outputs"]),
        is_prepaid=row["pool_id"] is not None,
        tx_hash=row["tx_id"],
        block=None if row["block_hash"] is None else _block(row),
    )


def _block(row: Row) -> ReceiptBlock:
    return ReceiptBlock(hash=row["block_hash"], height=row["block_height"], slot=row["block_slot"])


def _invoice(row: Row) -> ReceiptInvoice:
    return _part(
        ReceiptInvoice,
        row,
        number=row["seq"],
        outputs=json.loads(row["outputs"]),
        merchant_submits=bool(row["merchant_submits"]),
    )


def _attempt(row: Row, payment: PaymentRow, record: Recorded, config: AgentConfig) -> ReceiptAttempt:
    """An attempt with its retry headers. A finished attempt has them too, because they may have been presented."""
    headers: dict[str, str] = {}
    if row["kind"] == "pay":
        attempt = replace(payment.attempt, tx_id=row["tx_id"], cbor=row["cbor"])
        signed = replace(payment, attempt=attempt, state=State.SIGNED)
        invoice = next((one for one in record.other_invoices if one["seq"] == row["invoice_seq"]), record.invoice)
        if invoice is not None:
            names = {name: invoice[name] for name in ("dialect", "proof", "echo")}
            signed = replace(signed, invoice=replace(payment.invoice, id=invoice["invoice_id"], **names))
        headers = retry_headers(signed, config.merchants.get(payment.invoice.origin or ""), config.own.text)
    return _part(
        ReceiptAttempt,
        row,
        tx_hash=row["tx_id"],
        inputs=row["inputs"].split(" "),
        fee=str(row["fee_lovelace"]),
        cbor=row["cbor"].hex(),
        headers=headers,
    )


def _entry(entry: EntryRow) -> ReceiptEntry:
    postings = [
        {"account": account, "asset": asset, "units": str(units)} for account, asset, units in entry.postings
    ]
    return ReceiptEntry.model_validate(
        {"id": entry.id, "kind": entry.kind, "ref": entry.ref, "at_ms": entry.at_ms, "postings": postings}
    )
