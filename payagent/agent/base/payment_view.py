"""The payment object of the API, built from a row and the config.

May import: core, dialects, store.rows, agent.base. Never: I/O.
"""

import json
from collections.abc import Iterable

from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.core.payment import ON_CHAIN, WITHOUT_PROOF
from payagent.core.policy import is_shared
from payagent.core.timestamps import iso_time
from payagent.dialects import ProofMaterial, proof_headers
from payagent.store.rows.attempts_and_utxos import AttemptRow
from payagent.store.rows.payments import PaymentRow

Json = dict[str, object]


def has_proof(row: PaymentRow) -> bool:
    """Whether the payment has a proof that may be presented to the merchant."""
    return row.tx_id is not None and row.is_noted and row.state not in WITHOUT_PROOF


def retry_headers(row: PaymentRow, merchant: MerchantConfig | None, wallet_address: str) -> dict[str, str]:
    """The headers of the retry. Empty without an invoice, or while `has_proof` is False.

    X-Request-Id belongs to the intent and stays the same on every retry. No X-Idempotency-Key is sent: the first
    request had none, and a merchant takes a key that only the retry has for a new purchase. A payment for a
    prepaid balance names that balance's partner and wallet, even if the config changed since.
    """
    if row.tx_id is None or not has_proof(row) or row.dialect is None or row.invoice_id is None:
        return {}
    configured = merchant.partner if merchant else None
    headers = proof_headers(
        row.dialect,
        invoice_id=row.invoice_id,
        shown=_shown(row, row.tx_id),
        echo=row.echo,
        partner=configured if row.partner is None else row.partner or None,
        wallet=row.wallet or wallet_address,
    )
    return headers | {"X-Request-Id": row.request_id}


def _shown(row: PaymentRow, tx_id: str) -> ProofMaterial:
    """The parts of a proof. Its identifier names one payment: one that follows a void payment has its own."""
    cbor = row.cbor if row.proof == "signed_cbor" else None
    return ProofMaterial(tx_id, cbor, row.nonce_utxo or "", row.intent_id if row.is_first else row.id)


def payment_view(row: PaymentRow, terms: AgentConfig, *, ready: bool) -> Json:
    """The payment object of the API. Amounts are strings of digits. `AgentContext.view` fills in `ready`."""
    merchant = terms.merchants.get(row.origin or "")
    view: Json = {
        "id": row.id,
        "kind": row.kind,
        "app": row.app_id,
        "state": row.state,
        "delivery": row.delivery,
        "network": terms.network.name,
        "dialect": row.dialect,
        "origin": row.origin,
        "invoice_id": row.invoice_id,
        "outputs": [
            {"role": o.role, "address": o.address, "asset": o.asset, "units": str(o.units)} for o in row.outputs
        ],
        "fee": None if row.fee_lovelace is None else str(row.fee_lovelace),
        "tx_hash": row.tx_id if row.is_noted else None,
        "ttl_slot": row.ttl_slot,
        "anchor": row.nonce_utxo,
        "proof": row.proof,
        "handed_over": row.handed_over,
        "headers": retry_headers(row, merchant, terms.own.text),
        "ready": ready,
        "request_id": row.request_id,
        "idempotency_key": row.intent_id,
        "merchant_status": row.merchant_status,
        "block": _block(row),
        "batch_target": row.batch_target,
        "expires_at": None if row.expires_at_ms is None else iso_time(row.expires_at_ms),
        "created_at": iso_time(row.created_at_ms),
        "changed_at": iso_time(row.changed_at_ms),
    }
    if row.code is not None:
        view["reason"] = {"code": row.code, "reason": row.reason, "detail": row.detail}
    return view


def _block(row: PaymentRow) -> Json | None:
    if row.block_hash is None or row.state not in ON_CHAIN:
        return None
    return {"hash": row.block_hash, "height": row.block_height, "slot": row.block_slot}


def attempts_view(attempts: Iterable[AttemptRow]) -> list[Json]:
    """All attempts of a payment, oldest first. At most one of them is ever on the chain."""
    return [
        {"kind": a.kind, "tx_hash": a.tx_id, "fee": str(a.fee_lovelace), "ttl_slot": a.ttl_slot} for a in attempts
    ]


def history_view(events: Iterable[tuple[int, str, str, str, int]], *, sees_all: bool) -> list[Json]:
    """The payment's events in order. `state` is the state after the event."""
    return [
        {"event": event, "state": state, "at": iso_time(at_ms), "detail": detail_view(detail, sees_all=sees_all)}
        for _, event, state, detail, at_ms in events
    ]


def detail_view(detail: str, *, sees_all: bool) -> Json:
    """The details of an event. An app that sees only its own data gets no figures of the wallet or others."""
    told: Json = json.loads(detail)
    limits = told.get("limits")
    if not sees_all:
        told.pop("figures", None)
    if not sees_all and isinstance(limits, list):
        told["limits"] = [{**one, "left": None} if is_shared(one["limit"], one) else one for one in limits]
    return told
