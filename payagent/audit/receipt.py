"""Checks a payment's receipt from the file alone: is it consistent in itself?

The wallet's signature proves the transaction, the terms hash proves the invoice, and each event's hash proves the
event. Everything else must follow from these. A forger who recomputes all hashes can still invent whatever is not
signed; `untold` lists the facts that only the chain or the ledger can show.
Start reading at `check_receipt`; `receipt_form` parses the file.
Never: I/O; reads a clock.
"""

import hashlib
import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

from payagent.audit.finding import AuditFinding
from payagent.audit.payments import check_record
from payagent.audit.receipt_form import (
    CallReceipt,
    Receipt,
    ReceiptEvent,
    ReceiptInvoice,
    ReceiptLastEvent,
    case_of,
    copies,
    owner_of,
    read_units,
    rows_of,
)
from payagent.audit.signed_bytes import Owner
from payagent.core import strict_json
from payagent.core.aggregate import OutputRow
from payagent.core.invoice import Invoice, SplitMode
from payagent.core.problems import Refused
from payagent.dialects import (
    HttpRequest,
    HttpResponse,
    ProofMaterial,
    Reading,
    make_response,
    parse_response,
    proof_headers,
    read_offers,
)
from payagent.store.rows.events import event_hash
from payagent.store.rows.upkeep import UPKEEP_APP

DECISIONS = frozenset(("reserve", "request_approval", "deny", "reject", "cancel"))
"""Events that explain why there is a payment, or none."""
ANSWERS = frozenset(
    (
        "merchant_answered", "merchant_refused", "retry_answered", "invoiced_again",
        "delivery_present", "delivery_accept", "delivery_give_up",
    )
)  # fmt: skip
"""Events about the merchant's answers, to the retry and to other requests."""

_402_MAX_BYTES = 6 * 1024 * 1024
"""The longest body and headers that are read from a merchant, if every character takes six bytes in JSON."""

_402_MAX_DEPTH = strict_json.MAX_DEPTH + 2


def check_receipt(receipt: Receipt | CallReceipt) -> Iterator[AuditFinding]:
    """Every part of the receipt that does not follow from the rest."""
    if isinstance(receipt, CallReceipt):
        yield from _check_voucher(receipt)
        return
    owner = owner_of(receipt)
    ids = {str(number): invoice.invoice_id for number, invoice in receipt.invoices.items()}
    yield from _check_events(receipt)
    for finding in check_record(case_of(receipt), owner):
        # a receipt names an invoice by its id
        yield (
            AuditFinding(finding.table, ids[finding.row], finding.what) if finding.table == "invoices" else finding
        )
    yield from _check_copies(receipt)
    yield from _check_limits(receipt)
    yield from _check_intent(receipt)
    yield from _check_invoices(receipt)
    for invoice in receipt.invoices.values():
        yield from _check_402(receipt, invoice, owner)
    yield from _check_headers(receipt)


def _check_voucher(receipt: CallReceipt) -> Iterator[AuditFinding]:
    """Check the IOU's signature, and that no more was charged than the call's price."""
    from payagent.wallet.channel_tx import is_iou  # only where there are channels

    iou_key, tag, signature = (
        bytes.fromhex(text or "") for text in (receipt.iou_key, receipt.channel, receipt.signature)
    )
    if receipt.signature is not None and not is_iou(iou_key, tag, receipt.voucher_amount, signature):
        yield AuditFinding("channels", receipt.channel, f"its key did not sign {receipt.voucher_amount}")
    if not 0 <= (receipt.charged or 0) <= receipt.price <= receipt.amount:
        yield AuditFinding("channel_calls", receipt.payment, "it charges more than its price or its voucher")


def _check_events(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check each event's hash, and its link to the event before if that is also the payment's."""
    payment_id, events = receipt.payment.id, receipt.events
    for event in events:
        content = event.seq, payment_id, event.event, event.state, event.detail, event.at_ms
        if event_hash(event.prev_hash, *content) != event.hash:
            yield AuditFinding("events", str(event.seq), "its hash does not match its content")
    rows: list[ReceiptEvent | ReceiptLastEvent] = [*events, receipt.ledger.last_event]
    for before, after in pairwise(rows):
        gap, linked = (1, after.prev_hash) if isinstance(after, ReceiptEvent) else (0, after.hash)
        if after.seq < before.seq + gap:
            yield AuditFinding("events", str(after.seq), f"it is listed after event {before.seq}")
        if after.seq == before.seq + gap and linked != before.hash:
            yield AuditFinding("events", str(after.seq), "its hash does not follow from the event before")
    for entry, following in pairwise(receipt.entries):
        if following.id <= entry.id:
            yield AuditFinding("entries", str(following.id), f"it is listed after entry {entry.id}")


def _check_copies(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check `decisions` and `answers`, which repeat events for readers."""
    for part, names in (("decisions", DECISIONS), ("answers", ANSWERS)):
        if getattr(receipt, part) != copies(receipt.events, names):
            yield AuditFinding("events", "-", f"{part} differ from the events")


def _check_limits(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check that every limit left enough for the hold."""
    held = {hold.asset: hold.units for hold in receipt.holds}
    for event in receipt.events:
        detail = json.loads(event.detail)
        limits = detail.get("limits") if event.event == "reserve" else None
        for limit in limits if isinstance(limits, list) else ():
            try:
                asked, left = read_units(limit["asked"]), read_units(limit["left"])
                is_sound = asked <= left and asked == held.get(limit["asset"])
            except (ValueError, TypeError, KeyError):
                is_sound = False
            if not is_sound:
                message = f"a limit does not allow the hold: {strict_json.dumps(limit)[:300]}"
                yield AuditFinding("events", str(event.seq), message)


def _check_intent(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check the fingerprint, and a derived key that is made from it.

    The fingerprint is the hash of the request or of the operator's transfer. For upkeep it is the intent's id.
    """
    payment, intent, invoice = receipt.payment, receipt.intent, receipt.invoice
    kind, outputs = payment.kind, payment.outputs
    first = outputs[0] if outputs else None
    request = intent.request
    requested = {
        "invoice": [intent.origin, *(request.split(" ") if request is not None else ())],
        "send": first and ["send", first.address, first.asset, str(first.units)],
        "sweep": first and ["sweep", first.address],
        "split": first and ["split", str(len(outputs)), str(first.units)],
    }.get(kind)
    fingerprint = hashlib.sha256(json.dumps(requested).encode()).hexdigest()
    if intent.app_id == UPKEEP_APP:
        fingerprint = intent.id
    is_step = kind == "send" and intent.origin != ""
    # what stays in a channel that closes is change at another address
    own = {receipt.wallet} | {one.address for one in outputs if is_step and one.role == "change"}
    roles = [("change" if output.address in own else "pay_to") for output in outputs]
    if requested is None or (kind == "invoice") != (invoice is not None) or is_step != (receipt.spent is not None):
        yield AuditFinding(
            "payments", payment.id, f"its kind {kind} is unknown, or needs an invoice or `spent`, or may have none"
        )
    elif fingerprint != intent.fingerprint:
        yield AuditFinding("intents", intent.id, "its fingerprint does not match its request")
    if invoice is None and (
        request is not None or payment.is_prepaid or [output.role for output in outputs] != roles
    ):
        yield AuditFinding("payments", payment.id, "it does not have the form of a transfer")
    if not _is_its_key(receipt):
        yield AuditFinding("intents", intent.id, "its idempotency key does not have the form for it")


def _is_its_key(receipt: Receipt) -> bool:
    intent, invoice, key = receipt.intent, receipt.invoice, receipt.intent.idempotency_key
    if not intent.is_key_derived:
        return key.startswith(("key:", "topup:"))
    if invoice is None:
        return key == f"order:{intent.id}"
    if intent.request is not None:
        return key == f"request:{intent.fingerprint}"
    named = f"invoice:{invoice.origin} "
    if _own_id(receipt, invoice) != invoice.invoice_id:
        return key.startswith(named)
    return key == named + invoice.invoice_id


def _own_id(receipt: Receipt, invoice: ReceiptInvoice) -> str:
    """The invoice id without the payment id, which is appended for terms that have no id of their own."""
    return invoice.invoice_id.removesuffix(f"-{receipt.payment.id}")


def _check_402(receipt: Receipt, invoice: ReceiptInvoice, owner: Owner) -> Iterator[AuditFinding]:
    """Check that the received 402, parsed again by its dialect, gives the invoice's terms.

    The operator's setting for a split without a mode is not recorded, so any mode that yields these outputs
    passes.
    """
    reasons = []
    modes: tuple[SplitMode | None, ...] = (None, *get_args(SplitMode))
    for mode in modes:
        try:
            offers = read_offers(_response(invoice.response_402), _reading(receipt, invoice, owner, mode))
        except Refused as refused:
            reasons.append(f"the 402 as received cannot be read again: {refused.detail}")
            continue
        if any(_is_same(offer, invoice, _own_id(receipt, invoice)) for offer in offers):
            return
        reasons.insert(0, "the 402 as received asks for something else")
    yield AuditFinding("invoices", invoice.invoice_id, reasons[0])


def _response(text: str) -> HttpResponse:
    """A 402 as the ledger stores it: status, headers, and the body as text, as a JSON value, or in base64.

    Strings beside the terms may be any text. The terms are parsed as strictly as on arrival.
    """
    stored = strict_json.loads(text, max_bytes=_402_MAX_BYTES, max_depth=_402_MAX_DEPTH, any_text=True)
    if not isinstance(stored, dict) or stored.keys() - {"headers"} not in (
        {"status", "body"},
        {"status", "body_base64"},
    ):
        raise Refused("file_invalid/receipt", "it is not an answer with a body")
    status, headers = stored["status"], stored.get("headers", {})
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    if (
        type(status) is not int
        or not isinstance(pairs, list)
        or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    ):
        raise Refused("file_invalid/receipt", "its status or headers are missing")
    if "body" in stored:
        if not isinstance(stored["body"], str):
            strict_json.check_strings(stored["body"])
        return make_response(status, pairs, stored["body"])
    try:
        return parse_response(status, pairs, b64decode(stored["body_base64"], validate=True))
    except (ValueError, TypeError):
        raise Refused("file_invalid/receipt", "its body is not base64") from None


class _AnyName(frozenset[str]):
    """Contains every origin, because the ledger does not record `resource_origins` of the config."""

    def __contains__(self, name: object) -> bool:
        return True


def _reading(receipt: Receipt, invoice: ReceiptInvoice, owner: Owner, mode: SplitMode | None) -> Reading:
    """The context of the original parse, without the request's headers, which are not recorded.

    A commitment's salt may be any bytes here: the signed bytes hold the commitment.
    """
    request = (receipt.intent.request or "").split(" ")
    method, path, body_sha256 = request if len(request) == 3 else ("", "", "")
    return Reading(
        origin=invoice.origin,
        network=owner.network,
        split_mode=mode,
        received_at_ms=invoice.received_at_ms,
        own=owner.address,
        call=HttpRequest(method, invoice.origin + path, body_sha256, None) if method else None,
        proof=invoice.proof,
        assets=frozenset(output.asset for output in invoice.outputs),
        salt=None if invoice.commitment is None else bytes(32),
        resource_origins=_AnyName(),
    )


def _is_same(offer: Invoice, invoice: ReceiptInvoice, own_id: str) -> bool:
    outputs = tuple(OutputRow(o.role, o.address.text, o.asset, o.units) for o in offer.outputs)
    names = ("dialect", "batch_target", "proof", "merchant_submits", "expires_at_ms")
    return (
        outputs == rows_of(invoice.outputs)
        and offer.invoice_id == (invoice.invoice_id if offer.has_own_id else own_id)
        and all(getattr(offer, name) == getattr(invoice, name) for name in names)
        and (offer.commitment is None) == (invoice.commitment is None)
        and (offer.echo == invoice.echo or offer.commitment is not None)
    )


def _check_invoices(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check that every other invoice has its own number, and an attempt that was signed for it."""
    invoices = receipt.all_invoices
    times = Counter(invoice.number for invoice in invoices)
    for invoice in invoices:
        if times[invoice.number] > 1:
            yield AuditFinding("invoices", invoice.invoice_id, "another invoice has its number")
    signed_for = {attempt.invoice_seq for attempt in receipt.attempts}
    for invoice in receipt.other_invoices:
        if invoice.number not in signed_for:
            yield AuditFinding("invoices", invoice.invoice_id, "nothing was signed for it")


def _check_headers(receipt: Receipt) -> Iterator[AuditFinding]:
    """Check that each attempt's retry headers follow from the attempt."""
    invoices, payment, intent = receipt.invoices.values(), receipt.payment, receipt.intent
    own, wallet = {"X-Request-Id": intent.request_id}, receipt.wallet
    for attempt in receipt.attempts:
        headers = attempt.headers
        expected: list[dict[str, str]] = [{}]
        invoice = next((one for one in invoices if one.number == attempt.invoice_seq), None)
        if invoice is not None and attempt.kind == "pay":
            cbor = bytes.fromhex(attempt.cbor) if invoice.proof == "signed_cbor" else None
            try:
                expected = [
                    proof_headers(
                        invoice.dialect,
                        invoice_id=invoice.invoice_id,
                        shown=ProofMaterial(attempt.tx_hash, cbor, attempt.nonce_utxo, name),
                        echo=invoice.echo,
                        partner=headers.get("X-Partner"),
                        # the prepaid balance may be another wallet's, named by the request
                        wallet=headers.get("X-Wallet-Address", wallet) if payment.is_prepaid else wallet,
                    )
                    | own
                    for name in (intent.id, payment.id)
                ]
            except Refused:
                expected = []
        if headers not in expected:
            yield AuditFinding("attempts", attempt.tx_hash, "its headers do not match its proof")


def checked(receipt: Receipt | CallReceipt) -> list[str]:
    """The questions that the checks have answered. The findings say which answers are no."""
    if isinstance(receipt, CallReceipt):
        return [
            "whether the charge is within the call's price and its voucher",
            f"whether the channel's key signed the voucher for {receipt.voucher_amount}, if there is a signature",
        ]
    of_invoice = ["whether the 402 as received asks for these outputs, and the terms hash matches them"]
    of_attempts = [
        "whether each transaction's bytes have its id, inputs, fee and TTL, pay "
        + ("each output" if receipt.spent is None else "the channel's script")
        + " and nobody else but the wallet, and are signed with the wallet's key",
        "whether pycardano reads the same in these bytes",
        "whether the holds and entries match the bytes, and the proof's headers are made from them",
    ]
    return [
        "whether each event's hash matches the event, and the events lead to the payment's state",
        *(of_invoice if receipt.invoice is not None else ()),
        *(of_attempts if receipt.attempts else ()),
    ]


def untold(receipt: Receipt | CallReceipt) -> list[str]:
    """The facts that the file alone cannot show, each with the party that can show it."""
    if isinstance(receipt, CallReceipt):
        covers = "covers" if receipt.signature and receipt.voucher_amount >= receipt.amount else "does not cover"
        return [
            f"the ledger: whether this is its row; the voucher for {receipt.voucher_amount} {covers} this call",
            "the chain: whether the channel is there, and its datum names this key and this provider",
            "the merchant: what it charged and served",
        ]
    questions, payment = [], receipt.payment
    if (block := payment.block) is not None:
        tx_id = payment.tx_hash or payment.void_tx_id
        claim = "is there" if tx_id is None else f"has the transaction {tx_id}"
        questions.append(f"the chain: whether block {block.height} ({block.hash}) {claim}")
    if receipt.spent is not None:
        questions.append("the chain: what the spent UTxOs were worth, and whether the others were the channel's")
    if receipt.attempts:
        questions.append(f"the payer: whether {receipt.wallet}, whose key has signed, is its wallet's address")
    return [
        *questions,
        "the ledger: whether these are its rows, and all of them; there, "
        f"`payagent ledger verify --head {receipt.ledger.head}` tells whether it still has the past that this "
        "receipt comes from",
        "the operator: who the app is, and for which X-Partner and X-Wallet-Address it bought",
    ]
