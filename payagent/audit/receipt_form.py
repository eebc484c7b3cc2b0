"""Parses a receipt file into values, and into the rows that it was made from.

Every key must be present and no other, and each value must have its type and be within bounds.
May import: core, store's rows, audit.finding, audit.signed_bytes. Never: I/O; judges the content of a well-formed
receipt.
"""

from collections.abc import Callable
from typing import Any, get_args

from payagent.audit.finding import parse_head
from payagent.audit.signed_bytes import Owner
from payagent.core import strict_json
from payagent.core.address import parse_address
from payagent.core.aggregate import OutputRow
from payagent.core.invoice import Proof
from payagent.core.ledger import general_account
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.core.timestamps import LAST_MS
from payagent.store.audit.payment_records import (
    BlockObservationRow,
    Case,
    EventRow,
    IntentFacts,
    InvoiceTerms,
    SignedRow,
)
from payagent.store.rows.journal import EntryRow

FORMAT = "payagent-receipt/1"
RECEIPT_MAX_BYTES = 16 * 1024 * 1024

Receipt = dict[str, Any]
Read = Callable[[object, str], Any]

_INTEGER_MAX = 2**63 - 1
_DIGITS_MAX = 40


def _invalid(where: str, expected: str) -> Refused:
    return Refused("file_invalid/receipt", f"{where} is not {expected}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _invalid(where, "text")
    return value


def _proof(value: object, where: str) -> str:
    if value not in get_args(Proof):
        raise _invalid(where, "one of " + ", ".join(get_args(Proof)))
    return str(value)


def _flag(value: object, where: str) -> bool:
    if type(value) is not bool:
        raise _invalid(where, "true or false")
    return value


def _number(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _INTEGER_MAX:
        raise _invalid(where, "a whole number")
    return value


def _time(value: object, where: str) -> int:
    if type(value) is not int or not 0 <= value <= LAST_MS:
        raise _invalid(where, "a time in milliseconds")
    return value


def read_units(value: object, where: str) -> int:
    text = value if isinstance(value, str) and len(value) <= _DIGITS_MAX else ""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or str(int(text)) != text:
        raise _invalid(where, "an amount in digits")
    return int(text)


def _row_units(value: object, where: str) -> int:
    """Units that fit a ledger row. A larger amount would yield endless postings when it is compared."""
    units = read_units(value, where)
    if abs(units) > _INTEGER_MAX:
        raise _invalid(where, "an amount that one row can hold")
    return units


def _bytes(value: object, where: str) -> bytes:
    try:
        raw = bytes.fromhex(_text(value, where))
    except ValueError:
        raise _invalid(where, "bytes in hex") from None
    if raw.hex() != value:
        raise _invalid(where, "bytes in lower-case hex")
    return raw


def _detail(value: object, where: str) -> str:
    """An event's detail, as the text that its hash covers."""
    try:
        detail = strict_json.loads(_text(value, where))
    except Refused:
        detail = None
    if not isinstance(detail, dict):
        raise _invalid(where, "the text of a JSON object")
    return str(value)


def _anything(value: object, _where: str) -> object:
    return value


def _texts(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _invalid(where, "an object")
    return {name: _text(text, f"{where}.{name[:80]}") for name, text in value.items()}


def _maybe(read: Read) -> Read:
    return lambda value, where: None if value is None else read(value, where)


def _list(read: Read) -> Read:
    def every(value: object, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _invalid(where, "a list")
        return [read(item, f"{where}[{place}]") for place, item in enumerate(value)]

    return every


def _record(**fields: Read) -> Read:
    def all_of(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() != fields.keys():
            raise _invalid(where, f"an object of {', '.join(fields)}")
        return {name: read(value[name], f"{where}.{name}") for name, read in fields.items()}

    return all_of


_OUTPUTS = _list(_record(role=_text, address=_text, asset=_text, units=_row_units))
_BLOCK = _record(hash=_text, height=_number, slot=_number)
_EVENT_COPIES = _list(_record(seq=_number, event=_text, at=_text, detail=_anything))
_INVOICE = _record(
    **dict.fromkeys(("dialect", "origin", "invoice_id", "terms_hash", "response_402"), _text),
    number=_number,
    echo=_maybe(_text),
    commitment=_maybe(_bytes),
    outputs=_OUTPUTS,
    batch_target=_maybe(_number),
    proof=_proof,
    merchant_submits=_flag,
    received_at_ms=_time,
    expires_at_ms=_maybe(_time),
)
_FORM = _record(
    format=_text,
    network=_text,
    wallet=_text,
    payment=_record(
        **dict.fromkeys(("id", "kind", "state", "delivery"), _text),
        **dict.fromkeys(
            ("nonce_utxo", "tx_hash", "void_tx_id", "merchant_status", "code", "reason", "detail"), _maybe(_text)
        ),
        **dict.fromkeys(("created_at_ms", "updated_at_ms"), _time),
        app=_record(id=_text, name=_text),
        outputs=_OUTPUTS,
        is_prepaid=_flag,
        ttl_slot=_maybe(_number),
        first_invoice_seq=_maybe(_number),
        block=_maybe(_BLOCK),
    ),
    intent=_record(
        **dict.fromkeys(("id", "app_id", "idempotency_key", "fingerprint", "origin", "request_id"), _text),
        request=_maybe(_text),
        is_key_derived=_flag,
    ),
    invoice=_maybe(_INVOICE),
    other_invoices=_list(_INVOICE),
    decisions=_EVENT_COPIES,
    holds=_list(_record(asset=_text, units=_row_units, at_ms=_time, released_at_ms=_maybe(_time))),
    attempts=_list(
        _record(
            **dict.fromkeys(("kind", "nonce_utxo", "tx_hash"), _text),
            ttl_slot=_number,
            invoice_seq=_maybe(_number),
            signed_at_ms=_time,
            inputs=_list(_text),
            fee=_row_units,
            cbor=_bytes,
            headers=_texts,
        )
    ),
    block_observations=_list(_record(tx_hash=_text, block=_BLOCK, at_ms=_time)),
    answers=_EVENT_COPIES,
    entries=_list(
        _record(
            id=_number,
            kind=_text,
            ref=_maybe(_text),
            at_ms=_time,
            postings=_list(_record(account=_text, asset=_text, units=_row_units)),
        )
    ),
    events=_list(
        _record(
            **dict.fromkeys(("event", "prev_hash", "hash"), _text),
            seq=_number,
            state=_maybe(_text),
            detail=_detail,
            at_ms=_time,
        )
    ),
    ledger=_record(last_event=_record(seq=_number, hash=_text), head=_text),
)


def read_receipt(raw: bytes) -> Receipt:
    """The receipt in a file. Refused: `file_invalid/receipt`."""
    try:
        value = strict_json.loads(raw, max_bytes=RECEIPT_MAX_BYTES)
    except Refused as refused:
        raise Refused("file_invalid/receipt", refused.detail.replace("the body", "the file", 1)) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise Refused("file_invalid/receipt", f"the file does not say that it is a {FORMAT}")
    receipt: Receipt = _FORM(value, "the receipt")
    owner_of(receipt)
    try:
        parse_head(receipt["ledger"]["head"])
    except Refused as refused:
        raise Refused("file_invalid/receipt", refused.detail) from None
    return receipt


def owner_of(receipt: Receipt) -> Owner:
    network = NETWORKS.get(receipt["network"])
    if network is None:
        raise _invalid("network", "one of " + ", ".join(NETWORKS))
    try:
        return Owner(parse_address(receipt["wallet"], network), network)
    except Refused as refused:
        raise Refused("file_invalid/receipt", f"wallet: {refused.detail}") from None


def _outputs(rows: list[dict[str, Any]]) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(**row) for row in rows)


def case_of(receipt: Receipt) -> Case:
    """The receipt as the rows that it was made from; without UTxOs, reservations and submissions."""
    payment, intent = receipt["payment"], receipt["intent"]
    invoices = invoices_of(receipt)
    names = (
        "state",
        "delivery",
        "nonce_utxo",
        "ttl_slot",
        "void_tx_id",
        "merchant_status",
        "code",
        "reason",
        "detail",
        "updated_at_ms",
    )
    block = payment["block"] or {}
    standing = {name: payment[name] for name in names} | {"tx_id": payment["tx_hash"]}
    standing["invoice_seq"] = None if receipt["invoice"] is None else receipt["invoice"]["number"]
    standing |= {f"block_{name}": block.get(name) for name in ("hash", "height", "slot")}
    return Case(
        id=payment["id"],
        kind=payment["kind"],
        app_id=payment["app"]["id"],
        outputs=_outputs(payment["outputs"]),
        is_prepaid=payment["is_prepaid"],
        created_at_ms=payment["created_at_ms"],
        standing=standing,
        intent=IntentFacts(0, intent["app_id"], intent["origin"], intent["is_key_derived"], None, None),
        first_invoice_seq=payment["first_invoice_seq"],
        invoices={number: _terms(invoice) for number, invoice in invoices.items()},
        attempts=tuple(_signed(attempt) for attempt in receipt["attempts"]),
        events=tuple(
            EventRow(*(event[name] for name in ("seq", "event", "state", "detail", "at_ms")))
            for event in receipt["events"]
        ),
        holds=tuple(
            (hold["asset"], hold["units"], hold["at_ms"], hold["released_at_ms"]) for hold in receipt["holds"]
        ),
        entries=tuple(_entry(entry, payment["id"]) for entry in receipt["entries"]),
        block_observations=tuple(
            _block_observation(place, observation)
            for place, observation in enumerate(receipt["block_observations"], 1)
        ),
        submissions=(),
        utxos=(),
        reserved=frozenset(),
    )


def invoices_of(receipt: Receipt) -> dict[int, dict[str, Any]]:
    """The receipt's invoices by number; the payment's current one first."""
    return {invoice["number"]: invoice for invoice in all_invoices(receipt)}


def all_invoices(receipt: Receipt) -> list[dict[str, Any]]:
    """All invoices in the receipt, even if numbers repeat."""
    return [*([] if receipt["invoice"] is None else [receipt["invoice"]]), *receipt["other_invoices"]]


def _terms(invoice: dict[str, Any]) -> InvoiceTerms:
    return InvoiceTerms(
        seq=invoice["number"],
        origin=invoice["origin"],
        invoice_id=invoice["invoice_id"],
        dialect=invoice["dialect"],
        terms_hash=invoice["terms_hash"],
        outputs=_outputs(invoice["outputs"]),
        batch_target=invoice["batch_target"],
        commitment=None if invoice["commitment"] is None else invoice["commitment"].hex(),
    )


def _block_observation(place: int, observation: dict[str, Any]) -> BlockObservationRow:
    block = observation["block"]
    return BlockObservationRow(
        place, observation["tx_hash"], block["hash"], block["height"], block["slot"], observation["at_ms"]
    )


def _signed(attempt: dict[str, Any]) -> SignedRow:
    return SignedRow(
        tx_id=attempt["tx_hash"],
        kind=attempt["kind"],
        nonce_utxo=attempt["nonce_utxo"],
        invoice_seq=attempt["invoice_seq"],
        inputs=tuple(attempt["inputs"]),
        cbor=attempt["cbor"],
        fee_lovelace=attempt["fee"],
        ttl_slot=attempt["ttl_slot"],
        signed_at_ms=attempt["signed_at_ms"],
    )


def _entry(entry: dict[str, Any], payment_id: str) -> EntryRow:
    # a receipt is of one payment, so of one account, whose number it does not need
    postings = tuple(
        (general_account(line["account"]), line["asset"], line["units"]) for line in entry["postings"]
    )
    return EntryRow(entry["id"], entry["kind"], payment_id, entry["ref"], entry["at_ms"], postings)
