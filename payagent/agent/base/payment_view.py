"""The headers of a retry, built from a payment's row.

Never: I/O.
"""

import json

from payagent.agent.base.config import MerchantConfig
from payagent.core.aggregate import CHANNEL_CALL, PaymentRow
from payagent.core.payment.machine import WITHOUT_PROOF
from payagent.dialects import ProofMaterial, proof_headers


def has_proof(row: PaymentRow) -> bool:
    """Whether the payment has a proof that may be presented to the merchant."""
    return row.attempt.tx_id is not None and row.is_noted and row.state not in WITHOUT_PROOF


def retry_headers(row: PaymentRow, merchant: MerchantConfig | None, wallet_address: str) -> dict[str, str]:
    """The headers of the retry. Empty without an invoice, or while `has_proof` is False.

    X-Request-Id belongs to the intent and stays the same on every retry. No X-Idempotency-Key is sent: the first
    request had none, and a merchant would read a key on the retry as a new purchase. A payment for a prepaid
    balance names that balance's partner and wallet, even if the config changed since.
    """
    if row.attempt.tx_id is None or not has_proof(row) or row.invoice.dialect is None or row.invoice.id is None:
        return {}
    if row.kind == CHANNEL_CALL:
        return {**json.loads(row.invoice.echo or "{}"), "X-Request-Id": row.intent.request_id}
    configured = merchant.partner if merchant else None
    headers = proof_headers(
        row.invoice.dialect,
        invoice_id=row.invoice.id,
        shown=_proof_material(row, row.attempt.tx_id),
        echo=row.invoice.echo,
        partner=configured if row.prepaid.partner is None else row.prepaid.partner or None,
        wallet=row.prepaid.wallet or wallet_address,
    )
    return headers | {"X-Request-Id": row.intent.request_id}


def _proof_material(row: PaymentRow, tx_id: str) -> ProofMaterial:
    """The parts of a proof. Its identifier names one payment: a payment after a void one gets an id of its own."""
    cbor = row.attempt.cbor if row.invoice.proof == "signed_cbor" else None
    return ProofMaterial(tx_id, cbor, row.nonce_utxo or "", row.intent.id if row.intent.is_first else row.id)
