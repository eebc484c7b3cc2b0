"""The dialect `flux`: a 402 whose JSON body is the invoice, repeated in X- headers.

Source: the Orynq SDK's Flux transport (8079f4b). Each header is optional but must agree with the body.

Never: reads another dialect's fields.
"""

import re
from collections.abc import Mapping
from datetime import datetime

from payagent.core.address import parse_address
from payagent.core.invoice import Invoice, parse_invoice_id
from payagent.core.money import check_supply, parse_asset, parse_units
from payagent.core.network import parse_chain, require_chain
from payagent.core.problems import Refused
from payagent.core.timestamps import posix_ms
from payagent.dialects import invoice_body
from payagent.dialects.dialect import Dialect, Shape, Terms
from payagent.dialects.http_wire import (
    HttpResponse,
    Reading,
    parse_timeout_text,
    refuse_unknown_terms,
    require,
    show,
)
from payagent.dialects.splits import InvoiceAmount, read_form, resolve_outputs

NAME = "flux"
_HEADERS = invoice_body.FLUX_HEADERS

_BODY_KEYS = ("invoiceId", "amount", "currency", "payTo", "chain", "expiresAt", "splits", "splitMode")
_KEYS = frozenset((*_BODY_KEYS, "decimals", "partner"))
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z", re.ASCII)


def _read(body: Terms, response: HttpResponse, reading: Reading) -> tuple[Invoice, ...]:
    """Parse the invoice from the body and the headers. Each kind of refusal has its own code."""
    refuse_unknown_terms(body, _KEYS, "the body")
    require_chain(require(body, "chain"), reading.network)
    invoice_id = parse_invoice_id(require(body, "invoiceId"))
    asset = parse_asset(require(body, "currency"))
    units = check_supply(asset, parse_units(require(body, "amount")))
    decimals = reading.check_decimals(asset, body.get("decimals"))
    amount = InvoiceAmount(parse_address(require(body, "payTo"), reading.network), asset, units)
    _check_headers(response.headers, invoice_id, amount, reading)
    expires_at_ms = _read_expiry(body.get("expiresAt"), response.headers.get("x-timeout"), reading)
    splits = body.get("splits")
    forms = [read_form("splits", [] if splits is None else splits, body.get("splitMode"), asset, reading)]
    invoice = Invoice(
        dialect=NAME,
        origin=reading.origin,
        invoice_id=invoice_id,
        network=reading.network.name,
        outputs=resolve_outputs(amount, forms, reading),
        expires_at_ms=expires_at_ms,
        decimals=decimals,
        proof=reading.proof,
        merchant_submits=reading.proof == "signed_cbor",
    )
    return (invoice,)


def _check_headers(headers: Mapping[str, str], invoice_id: str, amount: InvoiceAmount, reading: Reading) -> None:
    stated: dict[str, object] = {
        name: value for name, value in headers.items() if name in invoice_body.FLUX_HEADERS
    }
    if "x-amount" in stated:
        stated["x-amount"] = parse_units(stated["x-amount"], "X-Amount")
    if "x-asset" in stated:
        stated["x-asset"] = parse_asset(stated["x-asset"])
    if "x-chain" in stated:
        stated["x-chain"] = parse_chain(stated["x-chain"])
    body: dict[str, object] = {
        "x-invoice-id": invoice_id,
        "x-pay-to": amount.pay_to.text,
        "x-amount": amount.units,
        "x-asset": amount.asset,
        "x-chain": reading.network,
    }
    for name in stated.keys() & body.keys():
        if stated[name] != body[name]:
            raise Refused(
                "invoice_invalid/contradiction", f"{name} is {show(headers[name])}, the body says otherwise"
            )


def _read_expiry(expires_at: object, timeout: str | None, reading: Reading) -> int:
    """Return the earlier of the body's and the header's expiry. The clocks may differ, and earlier is safer."""
    ends_ms = []
    if timeout is not None:
        ends_ms.append(reading.received_at_ms + parse_timeout_text(timeout, "X-Timeout") * 1000)
    if expires_at is not None:
        ends_ms.append(reading.check_expiry(_parse_time_ms(expires_at)))
    if not ends_ms:
        raise Refused("invoice_invalid/missing_field", "the invoice has no expiresAt and no X-Timeout")
    return min(ends_ms)


def _parse_time_ms(value: object) -> int:
    if isinstance(value, str) and _TIME.fullmatch(value):
        try:
            return posix_ms(datetime.fromisoformat(value))
        except ValueError:
            pass
    raise Refused(
        "invoice_invalid/missing_field",
        f"expiresAt is {show(value)}, not a UTC time like 2026-11-24T13:38:18.993Z",
    )


DIALECT = Dialect(
    NAME,
    Shape(NAME, invoice_body.is_flux, invoice_body.find_invoice),
    _read,
    invoice_body.proof_headers,
    invoice_body.ANSWERS,
    has_status=True,
)
