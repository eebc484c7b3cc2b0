"""Types and helpers that all dialects share: requests, responses, and parsers for common fields.

Start with `HttpResponse` (the 402 as received) and `Reading` (everything else a dialect needs to parse it).

Never: depends on a dialect; I/O.
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from payagent.core import strict_json
from payagent.core.address import Address
from payagent.core.invoice import Proof, SplitMode
from payagent.core.money import LOVELACE
from payagent.core.network import Network
from payagent.core.problems import Refused

PAYMENT_REQUIRED = "payment-required"
PAYMENT_RESPONSE = "payment-response"
TIMEOUT_MAX_S = 86_400
_DECIMALS_MAX = 19
_TIMEOUT_TEXT = re.compile(r"-?[0-9]{1,9}", re.ASCII)

# Prefixes of headers that carry payment data in any dialect.
_PAYMENT_PREFIXES = (
    "payment-", "x-payment-", "x-402-", "x-invoice-", "x-pay-", "x-amount", "x-asset", "x-chain", "x-timeout",
)  # fmt: skip

# A member that a dialect does not know is ignored, unless its name refers to money or terms.
_TERM_STEMS = (
    "amount", "split", "output", "percent", "lovelace", "recipient", "receiver", "currenc", "revenue", "royalt",
    "commission", "deposit", "payout", "address", "payto", "pay_to", "payee", "beneficiar",
    "expir", "deadline", "network", "asset", "policy", "decimal", "timeout", "invoiceid", "invoice_id",
)  # fmt: skip
_TERM_WORDS = frozenset(
    (
        *("pay", "price", "cost", "share", "shares", "tax", "vat", "tip", "premium", "bps"),
        *("charge", "charges", "surcharge", "surcharges", "chain", "blockchain"),
    )
)
_BESIDE_TERMS = frozenset(("mode", "inclusive", "additional", "paid", "state", "unit", "units", "total", "to"))
"""Words that refer to terms, except inside members meant for a merchant's own data (`_OWN_WORDS`)."""

_OWN_WORDS = frozenset(("metadata", "customFields"))
_ADDRESS = re.compile("addr(?:_test)?1", re.ASCII | re.IGNORECASE)
# A fee may be part of a longer word (platformfee, feerate). Coffee, feedback and the like are no fees.
_FEE = re.compile(r"[a-z]*(?<!cof)(?<!tof)fees?|fee(?!d|l(?:s|ess|ings?)?\b|t\b|bl[ey])[a-z]*")
# The last capital before small letters may begin the next word (TXFee) or not (FEEs), so both splits are tried.
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+"), re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response. Header names are in lower case. The body is strictly parsed JSON, or a str if not JSON."""

    status: int
    headers: Mapping[str, str]
    body: object


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The request to pay for, as it was sent. Header names are in lower case, `body_sha256` is in hex.

    `headers` is None if they are no longer known.
    """

    method: str
    url: str
    body_sha256: str
    headers: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Reading:
    """The context in which a 402 is parsed. `split_mode`, `proof` and `decimals` are the operator's settings."""

    origin: str
    network: Network
    split_mode: SplitMode | None
    received_at_ms: int  # when the 402 arrived
    decimals: Mapping[str, int] = field(default_factory=dict)  # per asset
    own: Address | None = None  # the wallet's address, which no invoice may pay
    call: HttpRequest | None = None  # the paid request, if known
    proof: Proof = "tx_hash"
    assets: frozenset[str] = frozenset((LOVELACE,))  # the assets that have a limit
    salt: bytes | None = None  # 32 fresh random bytes if payments may commit to the request that they buy
    resource_origins: frozenset[str] = frozenset()  # further origins by which the merchant may name itself

    def check_decimals(self, asset: str, stated: object) -> int | None:
        """Return the stated decimals, or refuse them (`decimals_mismatch`) if the asset has others."""
        if stated is None:
            return None
        expected = 6 if asset == LOVELACE else self.decimals.get(asset)
        if type(stated) is not int or not 0 <= stated <= _DECIMALS_MAX or expected not in (None, stated):
            raise Refused("decimals_mismatch", f"decimals is {show(stated)}, expected {show(expected)}")
        return stated

    def check_expiry(self, expires_at_ms: int) -> int:
        """Refuse an expiry that has passed (`invoice_expired`) or is over a day away (`invoice_invalid`).

        A merchant that confuses seconds and milliseconds could otherwise be paid after its invoice expired.
        """
        left_ms = expires_at_ms - self.received_at_ms
        if left_ms <= 0:
            raise Refused("invoice_expired", f"the invoice expired {-left_ms // 1000} s before it was received")
        if left_ms > TIMEOUT_MAX_S * 1000:
            raise Refused(
                "invoice_invalid/missing_field", f"the invoice ends in {left_ms // 1000} s, the maximum is a day"
            )
        return expires_at_ms


@dataclass(frozen=True, slots=True)
class ProofMaterial:
    """The data that a proof is made of: the transaction id alone (`cbor` is None) or the signed transaction too.

    `nonce` is the nonce UTxO as "txid#index".
    """

    tx_id: str
    cbor: bytes | None
    nonce: str
    intent_id: str


def make_response(
    status: int, headers: Mapping[str, str] | Iterable[tuple[str, str]], body: object
) -> HttpResponse:
    """Build a response that a client forwards. `body` is a strictly parsed JSON value, or the text as received."""
    lowered = _lower_headers(headers)
    return HttpResponse(status, lowered, _parse_body(lowered, body) if isinstance(body, str) else body)


def parse_response(
    status: int, headers: Mapping[str, str] | Iterable[tuple[str, str]], raw_body: bytes
) -> HttpResponse:
    """Parse a response as received, decompressed. A body that looks like JSON must be strict JSON."""
    lowered = _lower_headers(headers)
    return HttpResponse(status, lowered, _parse_body(lowered, raw_body))


def parse_answer(status: int, headers: Iterable[tuple[str, str]], raw_body: bytes) -> HttpResponse:
    """Parse the response to a retry. It is only advice, so nothing is refused.

    A body that is not strict JSON becomes "". Of a repeated header, the first value counts.
    """
    lowered: dict[str, str] = {}
    for name, value in headers:
        lowered.setdefault(name.lower(), value)
    try:
        return HttpResponse(status, lowered, _parse_body(lowered, raw_body))
    except Refused:
        return HttpResponse(status, lowered, "")


def as_recorded(status: int, headers: Iterable[tuple[str, str]], raw_body: bytes) -> str:
    """Write a response as JSON for the ledger, in the form that `audit.receipt` reads.

    A body larger than any invoice is stored in base64, because as JSON text it could grow to six times its size.
    """
    body_field = {"body_base64": base64.b64encode(raw_body).decode("ascii")}
    if len(raw_body) <= strict_json.MAX_BYTES:
        with suppress(UnicodeDecodeError):
            body_field = {"body": raw_body.decode()}
    return json.dumps({"status": status, "headers": list(headers), **body_field}, separators=(",", ":"))


def _lower_headers(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> dict[str, str]:
    lowered: dict[str, str] = {}
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        if not isinstance(name, str) or not isinstance(value, str):
            raise Refused("bad_request", "a header's name and value must be text")
        if lowered.setdefault(name.lower(), value) != value and name.lower().startswith(_PAYMENT_PREFIXES):
            raise Refused(
                "invoice_invalid/contradiction", f"the header {ascii(name)[:60]} is given twice, with two values"
            )
    return lowered


def _parse_body(headers: Mapping[str, str], body: str | bytes) -> object:
    """Parse the body. If a PAYMENT- header carries the data, a body that cannot be parsed becomes ""."""
    try:
        return _parse_text(headers, body)
    except Refused:
        if headers.keys() & {PAYMENT_REQUIRED, PAYMENT_RESPONSE}:
            return ""
        raise


def _parse_text(headers: Mapping[str, str], body: str | bytes) -> object:
    text = strict_json.decode_text(body)
    if is_json_type(headers) or text.lstrip(" \t\r\n")[:1] in ("{", "[", '"', "\ufeff"):
        return strict_json.loads(body)
    return text


def is_json_type(headers: Mapping[str, str]) -> bool:
    """Whether a content type is present and is JSON."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def require_json_type(response: HttpResponse) -> None:
    """Refuse a body with another content type. It may have none."""
    if "content-type" in response.headers and not is_json_type(response.headers):
        raise Refused("invoice_invalid/body", f"the content type is {show(response.headers['content-type'], 80)}")


def fields_of(value: object) -> Mapping[str, object]:
    """Return a JSON object's members, and none of any other value."""
    return value if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """Return a text, and "" for any other value."""
    return value if isinstance(value, str) else ""


def require_object(value: object, said: str) -> Mapping[str, object]:
    """Return a JSON object. Any other value is refused (`invoice_invalid/body`). `said`: who says what."""
    if not isinstance(value, dict):
        raise Refused("invoice_invalid/body", f"{said} {show(value, 80)}, not an object")
    return value


def require(terms: Mapping[str, object], key: str) -> object:
    """Return a required field. Absent or null is `invoice_invalid/missing_field`."""
    value = terms.get(key)
    if value is None:
        raise Refused("invoice_invalid/missing_field", f"the invoice has no {key}")
    return value


def parse_timeout_s(value: object, name: str) -> int:
    """Parse a relative timeout: a JSON int of 1 to 86,400 seconds. Zero or less is `invoice_expired`."""
    if type(value) is not int:
        raise Refused("invoice_invalid/amount", f"{name} is {show(value)}, not whole seconds")
    if value <= 0:
        raise Refused("invoice_expired", f"{name} is {show(value)} s")
    if value > TIMEOUT_MAX_S:
        raise Refused("invoice_invalid/missing_field", f"{name} is {show(value)} s, the maximum is a day")
    return value


def parse_timeout_text(value: str, name: str) -> int:
    """Parse a relative timeout in seconds from a header, like `parse_timeout_s`."""
    if not _TIMEOUT_TEXT.fullmatch(value):
        raise Refused("invoice_invalid/amount", f"{name} is {show(value)}, not whole seconds")
    return parse_timeout_s(int(value), name)


def refuse_unknown_terms(terms: Mapping[str, object], known: frozenset[str], where: str) -> None:
    """Refuse unknown members that refer to money or terms (`terms_not_understood`).

    A member refers to them by its own name, or by an address or such a name anywhere in its value. All other
    unknown members are ignored: they do not change the payment.
    """
    for key in terms.keys() - known:
        inside = _TERM_WORDS if key in _OWN_WORDS else _TERM_WORDS | _BESIDE_TERMS
        if _names_terms(key, _TERM_WORDS | _BESIDE_TERMS) or _holds_terms(terms[key], inside):
            raise Refused("terms_not_understood", f"{where} has {show(key)}: {show(terms[key])}")


def _names_terms(name: str, term_words: frozenset[str]) -> bool:
    plain = name.lower()
    words = {word.lower() for pattern in _WORDS for word in pattern.findall(name)}
    is_fee = any(_FEE.fullmatch(word) for word in words)
    return is_fee or bool(words & term_words) or any(stem in plain for stem in _TERM_STEMS)


def _holds_terms(value: object, term_words: frozenset[str]) -> bool:
    if isinstance(value, dict):
        names = any(_names_terms(key, term_words) for key in value)
        return names or any(_holds_terms(inner, term_words) for inner in (*value, *value.values()))
    if isinstance(value, list):
        return any(_holds_terms(inner, term_words) for inner in value)
    return isinstance(value, str) and _ADDRESS.search(value) is not None


def show(value: object, limit: int = 300) -> str:
    """Format an untrusted value as bounded ASCII for a refusal's detail."""
    if type(value) is int and value.bit_length() > 256:
        return "a very long number"
    return json.dumps(value, default=lambda other: getattr(other, "text", type(other).__name__))[:limit]
