"""dialects: one wire form of a 402 and of its proof each, to and from the core's invoice.

`read_invoice` tells the dialect by its shape and refuses what has two shapes or none.
May import: the standard library, core. Never: I/O, a clock, a guess; it raises nothing but `Refused`.
"""

import re
from collections.abc import Iterator, Mapping

from payagent.core.invoice import Invoice, parse_invoice_id
from payagent.core.problem import Refused
from payagent.dialects import flux, tbackend
from payagent.dialects.status import StatusSaid, read_status
from payagent.dialects.wire import Reading, Response, is_json_type, make_response, parse_response, show

__all__ = [
    "Reading",
    "Response",
    "StatusSaid",
    "make_response",
    "parse_response",
    "proof_headers",
    "read_invoice",
    "read_status",
]

WALLET_WANTED = "wallet_address_required_for_prepaid_batches"

_TBACKEND_MARKS = frozenset(("invoiceId", "amountUnits", "payTo"))
_TBACKEND_ONLY = frozenset(("amountUnits", "timeout", "extra"))
_FLUX_MARKS = frozenset(("amount", "currency", "payTo"))
_FLUX_ONLY = frozenset(("amount", "currency", "splits", "splitMode", "expiresAt"))
_FLUX_HEADERS = frozenset(flux.HEADERS)
_X402_KEYS = frozenset(("x402Version", "accepts", "x402", "paymentRequired", "protocol", "maxAmountRequired"))
_X402_HEADERS = frozenset(("payment-required", "x-payment-required"))
_MATERIOS_HEADER = "x-402-payment-required"
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+", re.ASCII)


def read_invoice(response: Response, reading: Reading) -> Invoice:
    """The invoice of a 402, or `Refused`; nothing is an invoice unless it is understood in full."""
    if any(WALLET_WANTED in text for text in _texts(response.body)):
        raise Refused("wallet_address_required", "the merchant answered " + WALLET_WANTED)
    if response.status != 402:
        raise Refused("not_an_invoice", f"the status is {response.status}; only a 402 can be an invoice")
    body = response.body
    shapes = _shapes(body, response.headers)
    if len(shapes) > 1:
        raise Refused("mixed_dialects", "the 402 has the shapes of " + " and ".join(shapes))
    if not isinstance(body, dict) or not shapes:
        raise _no_invoice(body)
    if shapes[0] not in (tbackend.NAME, flux.NAME):
        raise Refused("body_not_understood", f"the 402 has the shape of {shapes[0]}, which is not paid")
    if "content-type" in response.headers and not is_json_type(response.headers):
        raise Refused("body_not_understood", f"the content type is {show(response.headers['content-type'], 80)}")
    _refuse_status(body)
    if shapes[0] == flux.NAME:
        return flux.read(body, response.headers, reading)
    detail = body["detail"]
    _refuse_status(detail)
    return tbackend.read(body, detail, reading)


def proof_headers(
    dialect: str, *, invoice_id: str, proof: str, partner: str | None, wallet: str
) -> dict[str, str]:
    """The headers that a client adds to its retry; `proof` is a tx hash or the signed CBOR in hex.

    Both dialects take the proof raw: no JSON, no base64. A value that a header cannot hold is refused.
    """
    if dialect not in (tbackend.NAME, flux.NAME):
        raise Refused("body_not_understood", f"no proof is known for the dialect {dialect}")
    headers = {"X-Invoice-Id": parse_invoice_id(invoice_id), "X-Payment": proof}
    if partner is not None:
        headers["X-Partner"] = partner
    headers["X-Wallet-Address"] = wallet
    for name, value in headers.items():
        if not _HEADER_VALUE.fullmatch(value):
            raise Refused("bad_request", f"the value for {name} is not visible ASCII")
    return headers


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _shapes(body: object, headers: Mapping[str, str]) -> list[str]:
    """Every dialect whose marks the 402 bears."""
    fields = body.keys() if isinstance(body, dict) else frozenset[str]()
    detail = body.get("detail") if isinstance(body, dict) else None
    inner = detail.keys() if isinstance(detail, dict) else frozenset[str]()
    two = bool(
        (inner & _TBACKEND_MARKS and (inner | fields) & _FLUX_ONLY)
        or (inner & _TBACKEND_MARKS and headers.keys() & _FLUX_HEADERS)
        or (fields & _FLUX_MARKS and fields & _TBACKEND_ONLY)
    )
    marks = {
        tbackend.NAME: two or inner & _TBACKEND_MARKS,
        flux.NAME: two or fields & _FLUX_MARKS,
        "x402": (fields | inner) & _X402_KEYS or headers.keys() & _X402_HEADERS,
        "payment-wrapped": isinstance(body, dict) and isinstance(body.get("payment"), dict),
        "materios": _MATERIOS_HEADER in headers,
    }
    return [name for name, seen in marks.items() if seen]


def _refuse_status(said: Mapping[str, object]) -> None:
    """A body that tells a payment's status or an error is no invoice, whatever else stands in it."""
    if said.get("error") is not None or isinstance(said.get("status"), str):
        what = {key: said[key] for key in ("status", "error") if key in said}
        raise Refused("not_an_invoice", f"the 402 says {show(what)}")


def _no_invoice(body: object) -> Refused:
    if isinstance(body, str):
        return Refused("body_not_understood", f"the 402's body is not JSON: {show(body, 80)}")
    if isinstance(body, dict) and ("detail" in body or "error" in body):
        return Refused("not_an_invoice", f"the 402 says {show(body)}")
    return Refused("body_not_understood", f"the 402's body is {show(body)}")
