"""dialects: parses the wire forms of a 402 into invoices, and writes payments as proof headers.

Start with `read_offers`, which detects the dialect by its shape and refuses a 402 with two shapes or none. Each
dialect is one module.

May import: the standard library, core.
Never: I/O, a clock, a guess, an exception other than `Refused`.
"""

import re
from collections.abc import Mapping, Set

from payagent.core.invoice import Invoice, parse_invoice_id
from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.prepaid_balance import WALLET_WANTED
from payagent.core.problems import Refused
from payagent.dialects import flux, x402, x402_v1, x402_v2
from payagent.dialects import t_backend as tbackend
from payagent.dialects import x402_orynq as sdk_x402
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpRequest,
    HttpResponse,
    ProofMaterial,
    Reading,
    as_recorded,
    is_json_type,
    make_response,
    parse_answer,
    parse_response,
    show,
)
from payagent.dialects.prepaid_answers import PrepaidAnswer, read_prepaid
from payagent.dialects.retry_answers import RetryAnswer, is_refusal, may_pass, read_answer
from payagent.dialects.status_answers import read_status

__all__ = [
    "NAMES_PAYER",
    "TIMED_BY_BLOCK",
    "WITH_STATUS",
    "HttpRequest",
    "HttpResponse",
    "PrepaidAnswer",
    "ProofMaterial",
    "Reading",
    "RetryAnswer",
    "RetryVerdict",
    "as_recorded",
    "is_refusal",
    "make_response",
    "may_pass",
    "parse_answer",
    "parse_response",
    "proof_headers",
    "read_answer",
    "read_offers",
    "read_prepaid",
    "read_status",
    "wants_wallet_address",
]

WITH_STATUS = frozenset((tbackend.NAME, flux.NAME))
"""Dialects whose merchants report the status of a payment."""

TIMED_BY_BLOCK = frozenset((x402_v1.NAME, x402_v2.NAME))
"""Dialects whose facilitators count `maxTimeoutSeconds` from the newest block's slot, and refuse a later TTL."""

_X402 = "x402"

_TBACKEND_MARKS = frozenset(("invoiceId", "amountUnits", "payTo"))
_TBACKEND_ONLY = frozenset(("amountUnits", "timeout", "extra"))
_FLUX_MARKS = frozenset(("amount", "currency", "payTo"))
_FLUX_ONLY = frozenset(("amount", "currency", "splits", "splitMode", "expiresAt"))
_FLUX_HEADERS = frozenset(flux.HEADERS)
_X402_KEYS = frozenset(("x402Version", "accepts", "x402", "paymentRequired", "protocol", "maxAmountRequired"))
_X402_HEADERS = frozenset((PAYMENT_REQUIRED, "x-payment-required"))
_MATERIOS_HEADER = "x-402-payment-required"
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", re.ASCII)


NAMES_PAYER = x402_v2.NAME
"""The dialect whose proof names the address that paid."""


def read_offers(response: HttpResponse, reading: Reading) -> tuple[Invoice, ...]:
    """Parse a 402 into at least one invoice, in the merchant's order, of which one is to be paid.

    Refuses anything that is not understood in full.
    """
    if wants_wallet_address(response):
        raise Refused("wallet_address_required", "the merchant answered " + WALLET_WANTED)
    if response.status != 402:
        raise Refused("not_an_invoice", f"the status is {response.status}; only a 402 can be an invoice")
    body = response.body
    shapes = _shapes(body, response.headers)
    if len(shapes) > 1:
        raise Refused("invoice_invalid/mixed_dialects", "the 402 has the forms of " + " and ".join(shapes))
    if shapes == [_X402]:
        return _read_x402(response, reading)
    if not isinstance(body, dict) or not shapes:
        raise _no_invoice(body)
    if shapes[0] not in (tbackend.NAME, flux.NAME):
        raise Refused("invoice_invalid/body", f"the 402 has the form of {shapes[0]}, which is not supported")
    _require_json_type(response)
    _refuse_status(body)
    if shapes[0] == flux.NAME:
        return (flux.read(body, response.headers, reading),)
    detail = body["detail"]
    _refuse_status(detail)
    return (tbackend.read(body, detail, reading),)


def wants_wallet_address(response: HttpResponse) -> bool:
    """Whether a merchant refused a request because it must know which wallet owns the prepaid calls.

    Neither the status nor the place of the error in the body is documented.
    """
    return 400 <= response.status < 500 and _says(response.body, WALLET_WANTED)


def _read_x402(response: HttpResponse, reading: Reading) -> tuple[Invoice, ...]:
    """Parse PAYMENT-REQUIRED if it is present and ignore the body. Otherwise parse the body."""
    body = response.body
    if PAYMENT_REQUIRED in response.headers:
        required = x402.decode_header(response.headers[PAYMENT_REQUIRED])
        if "x402Version" not in required and "version" in required:
            return (sdk_x402.read(required, body, reading),)
        return x402_v2.read(required, reading)
    page = x402_v1.find_page(body) if isinstance(body, str) else None
    if page is None:
        _require_json_type(response)
    content = page or body
    version = content.get("x402Version") if isinstance(content, dict) else None
    if isinstance(content, dict) and type(version) is int and version == x402_v1.VERSION:
        return x402_v1.read(content, reading)
    if isinstance(content, dict) and type(version) is int and version == x402_v2.VERSION and page is None:
        return x402_v2.read(content, reading)
    raise Refused("invoice_invalid/body", f"the 402 has an unsupported form of x402: {show(content)}")


def _require_json_type(response: HttpResponse) -> None:
    if "content-type" in response.headers and not is_json_type(response.headers):
        raise Refused("invoice_invalid/body", f"the content type is {show(response.headers['content-type'], 80)}")


def proof_headers(
    dialect: str, *, invoice_id: str, shown: ProofMaterial, echo: str | None, partner: str | None, wallet: str
) -> dict[str, str]:
    """Return the headers that a client adds to its retry. `dialect` and `echo` are the invoice's.

    The dialect must never be guessed: X-Payment is raw in one and base64 in another. A value that a header cannot
    hold is refused (`bad_request`).
    """
    if dialect in (tbackend.NAME, flux.NAME):
        proof = shown.tx_id if shown.cbor is None else shown.cbor.hex()
        headers = {"X-Invoice-Id": parse_invoice_id(invoice_id), "X-Payment": proof}
        if partner is not None:
            headers["X-Partner"] = partner
        headers["X-Wallet-Address"] = wallet
    elif dialect == x402_v2.NAME:
        headers = x402_v2.proof_headers(shown=shown, echo=echo or "", wallet=wallet)
    elif dialect == x402_v1.NAME:
        headers = x402_v1.proof_headers(shown=shown, echo=echo or "")
    else:
        raise Refused("invoice_invalid/body", f"no proof is known for the dialect {dialect}")
    for name, value in headers.items():
        if not _HEADER_VALUE.fullmatch(value):
            raise Refused("bad_request", f"the value for {name} is not ASCII text")
    return headers


def _says(body: object, word: str) -> bool:
    """Whether any key or string value of a JSON value contains the word."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if word in value:
                return True
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    return False


def _shapes(body: object, headers: Mapping[str, str]) -> list[str]:
    """Return every shape whose marks the 402 has."""
    fields = body.keys() if isinstance(body, dict) else frozenset[str]()
    detail = body.get("detail") if isinstance(body, dict) else None
    inner = detail.keys() if isinstance(detail, dict) else frozenset[str]()
    is_page = isinstance(body, str) and "window.__x402Requirements" in body
    is_wrapped = isinstance(body, dict) and isinstance(body.get("payment"), dict)
    marks = {
        **_invoice_marks(fields, inner, headers),
        _X402: is_page or (fields | inner) & _X402_KEYS or headers.keys() & _X402_HEADERS,
        "payment-wrapped": is_wrapped and PAYMENT_REQUIRED not in headers,
        "materios": _MATERIOS_HEADER in headers,
    }
    return [name for name, is_present in marks.items() if is_present]


def _invoice_marks(fields: Set[str], inner: Set[str], headers: Mapping[str, str]) -> dict[str, object]:
    """Return the marks of the two dialects whose invoice is the body.

    If PAYMENT-REQUIRED is present, the body is ignored unless it too says in one of these dialects whom to pay.
    """
    says_whom = "payTo" in fields | inner or "invoiceId" in inner or headers.keys() & _FLUX_HEADERS
    if PAYMENT_REQUIRED in headers and not says_whom:
        return {}
    is_both = bool(
        (inner & _TBACKEND_MARKS and (inner | fields) & _FLUX_ONLY)
        or (inner & _TBACKEND_MARKS and headers.keys() & _FLUX_HEADERS)
        or (fields & _FLUX_MARKS and fields & _TBACKEND_ONLY)
    )
    return {tbackend.NAME: is_both or inner & _TBACKEND_MARKS, flux.NAME: is_both or fields & _FLUX_MARKS}


def _refuse_status(fields: Mapping[str, object]) -> None:
    """Refuse a body that states a payment's status or an error: it is not an invoice."""
    if fields.get("error") is not None or isinstance(fields.get("status"), str):
        status_fields = {key: fields[key] for key in ("status", "error") if key in fields}
        raise Refused("not_an_invoice", f"the 402 says {show(status_fields)}")


def _no_invoice(body: object) -> Refused:
    if isinstance(body, str):
        return Refused("invoice_invalid/body", f"the 402's body is not JSON: {show(body, 80)}")
    if isinstance(body, dict) and ("detail" in body or "error" in body):
        return Refused("not_an_invoice", f"the 402 says {show(body)}")
    return Refused("invoice_invalid/body", f"the 402's body is {show(body)}")
