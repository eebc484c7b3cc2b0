"""Parts that the dialects share whose 402's body is the invoice: their marks, the proof, and the answers to it.

Source: the T Backend developer guide (63c7145) and the Orynq SDK's Flux transport (8079f4b).

Never: reads the terms of an invoice.
"""

from collections.abc import Set

from payagent.core.invoice import parse_invoice_id
from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.problems import Refused
from payagent.dialects import status_answers as status
from payagent.dialects.dialect import AnswerRules, RetriedProof, Terms
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpResponse,
    ProofMaterial,
    fields_of,
    require_json_type,
    show,
    text_of,
)

FLUX_HEADERS = ("x-invoice-id", "x-pay-to", "x-amount", "x-asset", "x-chain", "x-timeout")
_TBACKEND_MARKS = frozenset(("invoiceId", "amountUnits", "payTo"))
_TBACKEND_ONLY = frozenset(("amountUnits", "timeout", "extra"))
_FLUX_MARKS = frozenset(("amount", "currency", "payTo"))
_FLUX_ONLY = frozenset(("amount", "currency", "splits", "splitMode", "expiresAt"))

# `paid_already` and `transaction_used` come from the devnet merchant. No document defines a reason.
_USED_UP_REASONS = ("paid_already", "transaction_used", "consumed")


def is_t_backend(response: HttpResponse) -> object:
    """Whether `detail` has marks of the T Backend, or the body has those of both."""
    fields, inner = _names(response)
    return inner & _TBACKEND_MARKS or (fields & _FLUX_MARKS and fields & _TBACKEND_ONLY)


def is_flux(response: HttpResponse) -> object:
    """Whether the body has marks of Flux, or it or `detail` has those of both."""
    fields, inner = _names(response)
    is_named = (inner | fields) & _FLUX_ONLY or response.headers.keys() & set(FLUX_HEADERS)
    return fields & _FLUX_MARKS or (inner & _TBACKEND_MARKS and is_named)


def _names(response: HttpResponse) -> tuple[Set[str], Set[str]]:
    """The names in the body and in its `detail`.

    If PAYMENT-REQUIRED is present, the body is ignored unless it too says in these dialects whom to pay.
    """
    fields = fields_of(response.body)
    inner = fields_of(fields.get("detail"))
    says_whom = "payTo" in {*fields, *inner} or "invoiceId" in inner or response.headers.keys() & set(FLUX_HEADERS)
    return (set(), set()) if PAYMENT_REQUIRED in response.headers and not says_whom else (set(fields), set(inner))


def find_invoice(response: HttpResponse) -> Terms:
    """Return the body. Refuse one that states a payment's status or an error: it is not an invoice."""
    require_json_type(response)
    return refuse_status(fields_of(response.body))


def refuse_status(fields: Terms) -> Terms:
    """Return the fields, or refuse them (`not_an_invoice`) if they state a payment's status or an error."""
    if fields.get("error") is not None or isinstance(fields.get("status"), str):
        status_fields = {key: fields[key] for key in ("status", "error") if key in fields}
        raise Refused("not_an_invoice", f"the 402 says {show(status_fields)}")
    return fields


def proof_headers(
    *, invoice_id: str, shown: ProofMaterial, echo: str | None, partner: str | None, wallet: str
) -> dict[str, str]:
    """Return X-Payment, raw, with the invoice and whom its calls belong to."""
    proof = shown.tx_id if shown.cbor is None else shown.cbor.hex()
    headers = {"X-Invoice-Id": parse_invoice_id(invoice_id), "X-Payment": proof}
    if partner is not None:
        headers["X-Partner"] = partner
    return {**headers, "X-Wallet-Address": wallet}


def _read_402(response: HttpResponse, proof: RetriedProof) -> tuple[RetryVerdict, str]:
    """Classify a 402 that states its answer in the body or in its `detail`."""
    body = fields_of(response.body)
    for fields in (body, fields_of(body.get("detail"))):
        word, reason = text_of(fields.get("error")), text_of(fields.get("reason"))
        if reason in _USED_UP_REASONS:
            return RetryVerdict.USED_UP, reason
        if word and word.lower() != "payment required":
            return RetryVerdict.UNCLEAR, f"{word} {reason}"
        if status_text := text_of(fields.get("status")):
            return _read_status(status_text), status_text
        if named_id := text_of(fields.get("invoiceId")):
            return (
                (RetryVerdict.PENDING, "the same invoice")
                if named_id == proof.invoice_id
                else (RetryVerdict.INVOICED, "another invoice")
            )
    return RetryVerdict.UNCLEAR, text_of(body.get("detail"))


def _read_status(status_text: str) -> RetryVerdict:
    status_word = status.WORDS.get(status_text.strip().lower())
    if status_word == "consumed":
        return RetryVerdict.USED_UP
    return RetryVerdict.PENDING if status_word in ("pending", "submitted", "confirmed") else RetryVerdict.UNCLEAR


ANSWERS = AnswerRules(_read_402, is_unclear_refused=True)
