"""dialects: parses the wire forms of a 402 into invoices, and writes payments as proof headers.

Start with `read_offers`, which detects the dialect by its shape and refuses a 402 with two shapes or none. Each
dialect is one module that ends with its `Dialect` (`dialect`), and `registry` lists them.

Never: I/O, a clock, a guess, an exception other than `Refused`.
"""

import re

from payagent.core.invoice import Invoice
from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.prepaid_balance import WALLET_WANTED
from payagent.core.problems import Refused
from payagent.dialects.dialect import RetryAnswer
from payagent.dialects.http_wire import (
    HttpRequest,
    HttpResponse,
    ProofMaterial,
    Reading,
    as_recorded,
    make_response,
    parse_answer,
    parse_response,
    show,
)
from payagent.dialects.prepaid_answers import PrepaidAnswer, read_prepaid
from payagent.dialects.registry import (
    DIALECTS,
    NAMES_PAYER,
    PENDING_IN_BODY,
    SHAPES,
    TIMED_BY_BLOCK,
    WITH_STATUS,
    dialect_of,
)
from payagent.dialects.retry_answers import is_refusal, may_pass, read_answer
from payagent.dialects.status_answers import read_status

__all__ = [
    "DIALECTS",
    "NAMES_PAYER",
    "PENDING_IN_BODY",
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

_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?", re.ASCII)


def read_offers(response: HttpResponse, reading: Reading) -> tuple[Invoice, ...]:
    """Parse a 402 into at least one invoice, in the merchant's order, of which one is to be paid.

    Refuses anything that is not understood in full.
    """
    if wants_wallet_address(response):
        raise Refused("wallet_address_required", "the merchant answered " + WALLET_WANTED)
    if response.status != 402:
        raise Refused("not_an_invoice", f"the status is {response.status}; only a 402 can be an invoice")
    shapes = [shape for shape in SHAPES if shape.has_marks(response)]
    if len(shapes) > 1:
        names = " and ".join(shape.name for shape in shapes)
        raise Refused("invoice_invalid/mixed_dialects", f"the 402 has the forms of {names}")
    if not shapes:
        raise _no_invoice(response.body)
    terms = shapes[0].find_terms(response)
    for dialect in DIALECTS:
        if dialect.shape is shapes[0] and (offers := dialect.read(terms, response, reading)) is not None:
            return offers
    form = shapes[0].name
    raise Refused("invoice_invalid/body", f"the 402 has an unsupported form of {form}: {show(terms)}")


def wants_wallet_address(response: HttpResponse) -> bool:
    """Whether a merchant refused a request because it must know which wallet owns the prepaid calls.

    Neither the status nor the place of the error in the body is documented.
    """
    return 400 <= response.status < 500 and _says(response.body, WALLET_WANTED)


def proof_headers(
    dialect: str, *, invoice_id: str, shown: ProofMaterial, echo: str | None, partner: str | None, wallet: str
) -> dict[str, str]:
    """Return the headers that a client adds to its retry. `dialect` and `echo` are the invoice's.

    The dialect must never be guessed: X-Payment is raw in one and base64 in another. A value that a header cannot
    hold is refused (`bad_request`).
    """
    headers = dialect_of(dialect).proof_headers(
        invoice_id=invoice_id, shown=shown, echo=echo, partner=partner, wallet=wallet
    )
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


def _no_invoice(body: object) -> Refused:
    if isinstance(body, str):
        return Refused("invoice_invalid/body", f"the 402's body is not JSON: {show(body, 80)}")
    if isinstance(body, dict) and ("detail" in body or "error" in body):
        return Refused("not_an_invoice", f"the 402 says {show(body)}")
    return Refused("invoice_invalid/body", f"the 402's body is {show(body)}")
