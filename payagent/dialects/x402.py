"""Parts that the x402 dialects share: marks, base64 JSON headers, entries of `accepts`, the resource, an id.

Source: the x402 specification, its HTTP transports of versions 1 and 2, and its scheme `exact` on Cardano.

Never: depends on the x402 version; executes a page, or reads anything else in it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from payagent.core import strict_json
from payagent.core.address import parse_address
from payagent.core.invoice import Output, check_outputs
from payagent.core.money import check_supply, parse_units
from payagent.core.network import parse_chain
from payagent.core.origin import MCP, is_called, parse_origin
from payagent.core.problems import Refused
from payagent.dialects.dialect import Shape, Terms
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpResponse,
    Reading,
    fields_of,
    refuse_unknown_terms,
    require,
    require_json_type,
    require_object,
    show,
)

SCHEME = "exact"
Offer = TypeVar("Offer")
ACCEPTS_MAX = 64
ECHO_MAX_BYTES = 8_192
"""The most bytes of the 402 that a proof may repeat. Together with the transaction and in base64, it must fit into
the 16 KiB of headers that common servers accept.
"""

_KEYS = frozenset(("x402Version", "accepts", "x402", "paymentRequired", "protocol", "maxAmountRequired"))
_HEADERS = frozenset((PAYMENT_REQUIRED, "x-payment-required"))
_PAGE = re.compile(r"window\.__x402Requirements\s*=(?!=)\s*")


def _has_marks(response: HttpResponse) -> bool:
    body, headers = response.body, response.headers
    is_page = isinstance(body, str) and "window.__x402Requirements" in body
    fields = fields_of(body)
    return is_page or bool(
        (fields.keys() | fields_of(fields.get("detail")).keys()) & _KEYS or headers.keys() & _HEADERS
    )


def _find_terms(response: HttpResponse) -> Terms:
    """Return PAYMENT-REQUIRED, which overrides the body, or else what the body or page states."""
    if PAYMENT_REQUIRED in response.headers:
        return decode_header(response.headers[PAYMENT_REQUIRED])
    page = find_page(response.body) if isinstance(response.body, str) else None
    if page is None:
        require_json_type(response)
    terms = page or response.body
    if not isinstance(terms, dict):
        raise Refused("invoice_invalid/body", f"the 402 has an unsupported form of x402: {show(terms)}")
    return terms


SHAPE = Shape("x402", _has_marks, _find_terms)


def has_version(terms: Terms, version: int) -> bool:
    """Whether the terms state this version, as a JSON number."""
    stated = terms.get("x402Version")
    return type(stated) is int and stated == version


def decode_header(value: str, name: str = PAYMENT_REQUIRED) -> Terms:
    """Decode a header of base64 JSON. It must hold a strict JSON object."""
    if len(value) > strict_json.MAX_BYTES:
        raise Refused("body_too_big", f"{name} has more than {strict_json.MAX_BYTES} characters")
    try:
        raw = base64.b64decode(value, validate=True)
    except ValueError:
        raise Refused("invoice_invalid/json", f"{name} is not base64: {show(value, 60)}") from None
    return require_object(strict_json.loads(raw), f"{name} holds")


def find_page(text: str) -> Terms | None:
    """Return the requirements in an HTML page, or None if it has none."""
    starts = [match.end() for match in _PAGE.finditer(text)]
    if not starts:
        return None
    if len(starts) > 1:
        raise Refused("invoice_invalid/contradiction", "the page states what it requires more than once")
    try:
        _, end = json.JSONDecoder().raw_decode(text, starts[0])
    except (ValueError, RecursionError) as error:
        raise Refused("invoice_invalid/json", f"the page's requirements are not JSON: {str(error)[:80]}") from None
    return require_object(strict_json.loads(text[starts[0] : end]), "the page requires")


def encode_header(value: object) -> str:
    """Encode a value as base64 of compact JSON."""
    return base64.b64encode(strict_json.dumps(value).encode("ascii")).decode("ascii")


def encode_transaction(cbor: bytes | None) -> str:
    """Encode the signed transaction for a payload. Payments of these dialects always have it."""
    if cbor is None:
        raise Refused("bad_request", "an x402 proof is the signed transaction, which is missing")
    return base64.b64encode(cbor).decode("ascii")


def choose(
    accepts: object, read: Callable[[Terms], Offer], reading: Reading, scheme: str = SCHEME
) -> tuple[Offer, ...]:
    """Parse the entries of `accepts` that can be paid, in the merchant's order. Others are skipped.

    If none can be paid, the refusal is that of the first entry on our network, or else of the first entry.
    """
    entries = require_accepts(accepts)
    offers: list[Offer] = []
    own_refusals: list[Refused] = []
    other_refusals: list[Refused] = []
    for entry in entries:
        try:
            offers.append(read(_require_entry(entry, scheme)))
        except Refused as refused:
            (own_refusals if _is_own_network(entry, reading) else other_refusals).append(refused)
    if not offers:
        raise (own_refusals or other_refusals)[0]
    return tuple(offers)


def require_accepts(accepts: object) -> list[object]:
    """Return the entries of `accepts`: 1 to 64, of any type. Anything else is refused (`invoice_invalid/body`)."""
    if not isinstance(accepts, list) or not accepts:
        raise Refused("invoice_invalid/body", f"accepts is {show(accepts, 80)}, not a list of offers")
    if len(accepts) > ACCEPTS_MAX:
        raise Refused("invoice_invalid/body", f"accepts has {len(accepts)} entries, the maximum is {ACCEPTS_MAX}")
    return accepts


def _require_entry(value: object, scheme: str) -> Terms:
    entry = require_object(value, "accepts holds")
    stated = require(entry, "scheme")
    if stated != scheme:
        raise Refused("invoice_unsupported/scheme", f"the scheme is {show(stated, 80)}, not {scheme}")
    return entry


def _is_own_network(entry: object, reading: Reading) -> bool:
    try:
        return isinstance(entry, dict) and parse_chain(entry.get("network")) is reading.network
    except Refused:
        return False


def read_output(entry: Terms, amount_key: str, asset: str, reading: Reading) -> tuple[Output, ...]:
    """Parse the one output of an entry. Amounts are strings in x402; a JSON number is refused."""
    if asset not in reading.assets:
        raise Refused("asset_not_allowed", f"no limit is set for {asset}", asset=asset)
    amount = require(entry, amount_key)
    if not isinstance(amount, str):
        raise Refused("invoice_invalid/amount", f"{amount_key} is {show(amount, 80)}, not a string of digits")
    units = check_supply(asset, parse_units(amount, amount_key), amount_key)
    pay_to = parse_address(require(entry, "payTo"), reading.network)
    return check_outputs((Output("pay_to", pay_to, asset, units),), reading.own)


def read_extra(entry: Terms, known: frozenset[str]) -> Terms:
    """Return the `extra` of an entry, or {}. Unknown members that refer to money or terms are refused."""
    if entry.get("extra") is None:
        return {}
    extra = require_object(entry["extra"], "extra is")
    refuse_unknown_terms(extra, known, "extra")
    return extra


def make_id(entry: Terms, resource: str | None) -> str:
    """Derive an invoice id for terms without one. The same terms and resource give the same id."""
    text = strict_json.dumps([entry, resource], sort_keys=True)
    return "x402-" + hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def check_resource(resource: object, reading: Reading) -> str | None:
    """Return the resource URL of the 402, or refuse it (`resource_mismatch`) if it is not the paid request's.

    Path and query are compared with `is_called`. An http resource matches an https request, because a server
    behind a TLS proxy believes that it serves http. An origin in `reading.resource_origins` matches too.
    """
    if resource is None or resource == "":
        return None
    if not isinstance(resource, str):
        raise Refused("resource_mismatch", f"the resource is {show(resource, 80)}, not a URL")
    call = reading.call
    is_same = _is_same_mcp if call is not None and call.method == MCP else _is_same
    if call is not None and not is_same(resource, call.url, reading):
        raise Refused("resource_mismatch", f"the 402 sells {show(resource)}, the request was to {show(call.url)}")
    return resource


def _is_same(resource: str, url: str, reading: Reading) -> bool:
    try:
        sold, called = urlsplit(urljoin(reading.origin + "/", resource)), urlsplit(url)
        named, used = (parse_origin(f"{part.scheme}://{part.netloc}") for part in (sold, called))
    except ValueError:
        return False
    if used not in (named, named.replace("http://", "https://", 1)) and named not in reading.resource_origins:
        return False
    return is_called(sold, called)


def _is_same_mcp(resource: str, url: str, reading: Reading) -> bool:
    """Whether a resource is the MCP call. Servers write `mcp://tool/NAME` or `mcp://HOST/tools/NAME`.

    They may also name a resource by its own URI, or the call by a URL at their own origin.
    """
    kind, _, name = unquote(url.partition("#")[2]).partition("/")
    server = urlsplit(reading.origin)
    names = {
        f"mcp://{place}/{name}" for place in (kind[:-1], f"{server.netloc}/{kind}", f"{server.hostname}/{kind}")
    }
    if unquote(resource) in names or (kind == "resources" and unquote(resource) == name):
        return True
    try:
        sold = urlsplit(resource)
        return parse_origin(f"{sold.scheme}://{sold.netloc}") in {reading.origin, *reading.resource_origins}
    except ValueError:
        return False
