"""A payment's receipt, in the form that `payagent.audit.receipt` checks.

May import: core, agent, audit's form, store, pydantic.
Never: I/O beyond the ledger connection it is given; judges the payment.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

from pydantic import BaseModel

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.payment_view import retry_headers
from payagent.audit.finding import Head
from payagent.audit.receipt import ANSWERS, DECISIONS
from payagent.core.address import parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.timestamps import iso_time
from payagent.store.audit.receipts import Recorded, Row, recorded
from payagent.store.db.unit import Connection
from payagent.store.rows import about
from payagent.store.rows.journal import EntryRow

Json = dict[str, object]


class Receipt(BaseModel):
    """Everything that is recorded about a payment. `payagent ledger verify --receipt` checks it without a daemon.

    Each part has the columns of the ledger's tables. `decisions` and `answers` repeat some of `events` for people.
    In `events`, `detail` is the text that the hash covers.
    """

    format: Literal["payagent-receipt/1"]
    network: str
    wallet: str
    payment: dict[str, object]
    intent: dict[str, object]
    invoice: dict[str, object] | None
    other_invoices: list[dict[str, object]]
    decisions: list[dict[str, object]]
    holds: list[dict[str, object]]
    attempts: list[dict[str, object]]
    block_observations: list[dict[str, object]]
    answers: list[dict[str, object]]
    entries: list[dict[str, object]]
    events: list[dict[str, object]]
    ledger: dict[str, object]

    @classmethod
    def of(cls, conn: Connection, row: PaymentRow, config: AgentConfig) -> Self:
        """`conn` must be in one read transaction."""
        record = recorded(conn, row.id)
        if (address := about.account_addresses(conn).get(row.account)) is not None:
            config = replace(config, own=parse_address(address, config.network))
        event_names = ("seq", "event", "state", "detail", "at_ms", "prev_hash", "hash")
        return cls(
            format="payagent-receipt/1",
            network=config.network.name,
            wallet=config.own.text,
            payment=_payment(record),
            intent=_intent(record.intent),
            invoice=None if record.invoice is None else _invoice(record.invoice),
            other_invoices=[_invoice(invoice) for invoice in record.other_invoices],
            decisions=_selected(record.events, DECISIONS),
            holds=[_only(hold, "asset", "at_ms", "released_at_ms") | _units(hold) for hold in record.holds],
            attempts=[_attempt(attempt, row, record, config) for attempt in record.attempts],
            block_observations=[_block_observation(observation) for observation in record.block_observations],
            answers=_selected(record.events, ANSWERS),
            entries=[_entry(entry) for entry in record.entries],
            events=[_only(event, *event_names) for event in record.events],
            ledger={
                "last_event": dict(zip(("seq", "hash"), record.last_event, strict=True)),
                "head": str(Head(*record.last_seal)),
            },
        )


def _only(row: Row, *names: str) -> Json:
    return {name: row[name] for name in names}


def _units(row: Row) -> Json:
    return {"units": str(row["units"])}


def _payment(record: Recorded) -> Json:
    row = record.payment
    return {
        **_only(row, "id", "kind", "state", "delivery", "nonce_utxo", "ttl_slot", "first_invoice_seq"),
        "app": dict(record.app),
        "outputs": json.loads(row["outputs"]),
        "is_prepaid": row["pool_id"] is not None,
        "tx_hash": row["tx_id"],
        "block": None if row["block_hash"] is None else _block(row),
        **_only(
            row, "void_tx_id", "merchant_status", "code", "reason", "detail", "created_at_ms", "updated_at_ms"
        ),
    }


def _block(row: Row) -> Json:
    return {"hash": row["block_hash"], "height": row["block_height"], "slot": row["block_slot"]}


def _intent(row: Row) -> Json:
    columns = _only(row, "id", "app_id", "idempotency_key", "fingerprint", "origin", "request", "request_id")
    return columns | {"is_key_derived": bool(row["is_key_derived"])}


def _invoice(row: Row) -> Json:
    names = ("dialect", "origin", "invoice_id", "terms_hash", "batch_target", "proof", "echo", "commitment")
    return {
        "number": row["seq"],
        **_only(row, *names, "received_at_ms", "expires_at_ms", "response_402"),
        "outputs": json.loads(row["outputs"]),
        "merchant_submits": bool(row["merchant_submits"]),
    }


def _attempt(row: Row, payment: PaymentRow, record: Recorded, config: AgentConfig) -> Json:
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
    return {
        **_only(row, "kind", "nonce_utxo", "invoice_seq", "ttl_slot", "signed_at_ms"),
        "tx_hash": row["tx_id"],
        "inputs": row["inputs"].split(" "),
        "fee": str(row["fee_lovelace"]),
        "cbor": row["cbor"].hex(),
        "headers": headers,
    }


def _block_observation(row: Row) -> Json:
    return {"tx_hash": row["tx_id"], "block": _block(row), "at_ms": row["at_ms"]}


def _selected(events: Sequence[Row], names: frozenset[str]) -> list[Json]:
    """Selected events, with readable times."""
    return [
        _only(event, "seq", "event") | {"at": iso_time(event["at_ms"]), "detail": json.loads(event["detail"])}
        for event in events
        if event["event"] in names
    ]


def _entry(entry: EntryRow) -> Json:
    postings = [
        {"account": account, "asset": asset, "units": str(units)} for account, asset, units in entry.postings
    ]
    return {"id": entry.id, "kind": entry.kind, "ref": entry.ref, "at_ms": entry.at_ms, "postings": postings}
