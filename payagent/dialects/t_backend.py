"""The dialect `t-backend`: a 402 whose JSON body holds the invoice under `detail` (FastAPI's HTTPException).

Source: the T Backend developer guide (63c7145). What the guide leaves open is refused. For example `babel: true`
is undocumented and could change who pays what, and a version other than 0.1 may mean anything.

Never: reads another dialect's fields.
"""

from collections.abc import Mapping

from payagent.core.address import parse_address
from payagent.core.invoice import Invoice, parse_invoice_id
from payagent.core.money import LOVELACE, check_supply, parse_asset, parse_units
from payagent.core.network import require_chain
from payagent.core.problems import Refused
from payagent.dialects import invoice_body
from payagent.dialects.dialect import Dialect, Shape, Terms
from payagent.dialects.http_wire import (
    HttpResponse,
    Reading,
    fields_of,
    parse_timeout_s,
    refuse_unknown_terms,
    require,
    show,
)
from payagent.dialects.splits import InvoiceAmount, read_form, resolve_outputs

NAME = "t-backend"
VERSION = "0.1"
BATCH_MAX = 1_000_000_000

_DETAIL_KEYS = frozenset(
    ("version", "invoiceId", "chain", "asset", "amountUnits", "decimals", "payTo", "timeout", "extra")
)
_EXTRA_KEYS = frozenset(("lovelace", "babel", "partner", "batchTarget", "outputs", "split"))


def _find_detail(response: HttpResponse) -> Terms:
    return invoice_body.refuse_status(fields_of(invoice_body.find_invoice(response)["detail"]))


def _read(detail: Terms, response: HttpResponse, reading: Reading) -> tuple[Invoice, ...]:
    """Parse the invoice in `detail`. Each kind of refusal has its own code."""
    refuse_unknown_terms(fields_of(response.body), frozenset(("detail",)), "the body beside detail")
    refuse_unknown_terms(detail, _DETAIL_KEYS, "detail")
    extra = _read_extra(detail.get("extra"))
    if detail.get("version", VERSION) != VERSION:
        raise Refused("invoice_invalid/body", f"version is {show(detail['version'])}, expected {VERSION}")
    require_chain(require(detail, "chain"), reading.network)
    invoice_id = parse_invoice_id(require(detail, "invoiceId"))
    asset = parse_asset(require(detail, "asset"))
    _check_flags(extra, asset)
    units = check_supply(asset, parse_units(require(detail, "amountUnits"), "amountUnits"), "amountUnits")
    decimals = reading.check_decimals(asset, detail.get("decimals"))
    amount = InvoiceAmount(parse_address(require(detail, "payTo"), reading.network), asset, units)
    timeout_s = parse_timeout_s(require(detail, "timeout"), "timeout")
    forms = [
        read_form(f"extra.{key}", extra[key], None, asset, reading)
        for key in ("outputs", "split")
        if extra.get(key) is not None
    ]
    batch = extra.get("batchTarget")
    invoice = Invoice(
        dialect=NAME,
        origin=reading.origin,
        invoice_id=invoice_id,
        network=reading.network.name,
        outputs=resolve_outputs(amount, forms, reading),
        expires_at_ms=reading.received_at_ms + timeout_s * 1000,
        decimals=decimals,
        batch_target=None if batch is None else _read_batch(batch),
        proof=reading.proof,
        merchant_submits=reading.proof == "signed_cbor",
    )
    return (invoice,)


def _read_batch(batch: object) -> int:
    """Parse the number of calls that the payment buys. More than `BATCH_MAX` is refused as a mistake."""
    count = parse_units(batch, "extra.batchTarget")
    if count > BATCH_MAX:
        raise Refused("invoice_invalid/body", f"extra.batchTarget is {show(batch)}, the maximum is {BATCH_MAX}")
    return count


def _read_extra(extra: object) -> Mapping[str, object]:
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise Refused("split_ambiguous", f"extra is {show(extra)}, not an object")
    refuse_unknown_terms(extra, _EXTRA_KEYS, "extra")
    return extra


def _check_flags(extra: Mapping[str, object], asset: str) -> None:
    lovelace = extra.get("lovelace")
    if lovelace is not None and lovelace is not (asset == LOVELACE):
        raise Refused("invoice_invalid/contradiction", f"extra.lovelace is {show(lovelace)}, the asset is {asset}")
    babel = extra.get("babel")
    if babel is not None and babel is not False:
        raise Refused("invoice_invalid/body", f"extra.babel is {show(babel)}, which is not documented")


DIALECT = Dialect(
    NAME,
    Shape(NAME, invoice_body.is_t_backend, _find_detail),
    _read,
    invoice_body.proof_headers,
    invoice_body.ANSWERS,
    has_status=True,
)
