"""The x402 variant of the Orynq SDK's middleware: terms in PAYMENT-REQUIRED, the invoice id in the body.

Standard x402 clients cannot pay it: whatever form its 402 has, the middleware expects the proof of its Flux form,
X-Invoice-Id and a raw X-Payment. So it is parsed into an invoice of the dialect `flux`. The 402 of the SDK's
gateway (`protocol` instead of `paymentRequired`) is refused, because the gateway accepts no Cardano proof.

Source: the Orynq SDK's server middleware and gateway (8079f4b).

Never: reads another dialect's fields.
"""

from dataclasses import replace

from payagent.core.address import parse_address
from payagent.core.invoice import Invoice, Output, check_outputs, parse_invoice_id
from payagent.core.money import check_supply, parse_asset, parse_units
from payagent.core.network import require_chain
from payagent.core.problems import Refused
from payagent.dialects import flux, x402
from payagent.dialects.dialect import Terms
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpResponse,
    Reading,
    parse_timeout_s,
    refuse_unknown_terms,
    require,
    show,
)

VERSION = "1"

_KEYS = frozenset(
    (
        "version", "scheme", "network", "maxAmountRequired", "resource", "payTo", "maxTimeoutSeconds",
        "asset", "decimals", "extra",
    )
)  # fmt: skip
_BODY_KEYS = frozenset(("error", "invoiceId", "paymentRequired"))


def _read(required: Terms, response: HttpResponse, reading: Reading) -> tuple[Invoice, ...] | None:
    """Parse the invoice from header and body.

    `resource` is not checked: it is the path relative to the router that the middleware is mounted on.
    """
    body, is_v2 = response.body, "x402Version" in required
    if PAYMENT_REQUIRED not in response.headers or is_v2 or "version" not in required:
        return None
    if required.get("version") != VERSION or required.get("scheme") != x402.SCHEME:
        raise Refused("invoice_invalid/body", f"PAYMENT-REQUIRED holds {show(required)}, which is not understood")
    if not isinstance(body, dict) or body.get("paymentRequired") is not True:
        raise Refused("invoice_invalid/body", f"no proof is known for a 402 with the body {show(body)}")
    refuse_unknown_terms(required, _KEYS, "PAYMENT-REQUIRED")
    refuse_unknown_terms(body, _BODY_KEYS, "the body")
    x402.read_extra(required, frozenset())
    require_chain(require(required, "network"), reading.network)
    asset = parse_asset(require(required, "asset"))
    units = parse_units(require(required, "maxAmountRequired"), "maxAmountRequired")
    pay_to = parse_address(require(required, "payTo"), reading.network)
    timeout_s = parse_timeout_s(require(required, "maxTimeoutSeconds"), "maxTimeoutSeconds")
    output = Output("pay_to", pay_to, asset, check_supply(asset, units, "maxAmountRequired"))
    invoice = Invoice(
        dialect=flux.NAME,
        origin=reading.origin,
        invoice_id=parse_invoice_id(require(body, "invoiceId")),
        network=reading.network.name,
        outputs=check_outputs((output,), reading.own),
        expires_at_ms=reading.received_at_ms + timeout_s * 1000,
        decimals=reading.check_decimals(asset, required.get("decimals")),
        proof=reading.proof,
        merchant_submits=reading.proof == "signed_cbor",
    )
    return (invoice,)


DIALECT = replace(flux.DIALECT, shape=x402.SHAPE, read=_read)
