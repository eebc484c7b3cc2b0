"""Turn a merchant's answer into input for the dialects: bounded, decompressed, kept for the record.

Never: I/O; reads a content coding without a decoder.
"""

import zlib
from dataclasses import dataclass

from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused
from payagent.dialects import HttpResponse, as_recorded, parse_answer, parse_response
from payagent.proxy.headers import Headers, combined, values

BODY_MAX_BYTES = ANSWER_MAX_BYTES

READABLE = b"gzip, deflate"
"""The Accept-Encoding to send after an answer in an unknown coding."""

_PLAIN, _GZIP, _DEFLATE = (b"", b"identity"), (b"gzip", b"x-gzip"), b"deflate"


class CodingError(Exception):
    """The body has an unsupported content coding."""


@dataclass(frozen=True, slots=True)
class PaymentRequired:
    """A merchant's 402. `received` is its text for the record."""

    response: HttpResponse
    received: str
    received_at_ms: int


def read_payment_required(status: int, headers: Headers, raw: bytes, now_ms: int) -> PaymentRequired:
    """Read a 402 with its whole body. Raises `CodingError`, or `Refused` if it is not a 402 that can be paid."""
    body = decode(headers, raw)
    texts = _texts(headers)
    return PaymentRequired(parse_response(status, texts, body), as_recorded(status, texts, body), now_ms)


def read_response(status: int, headers: Headers, raw: bytes) -> HttpResponse:
    """Read any answer. An unreadable body becomes empty; the headers stay. Raises `CodingError`."""
    try:
        body = decode(headers, raw)
    except Refused:
        body = b""
    return parse_answer(status, _texts(headers), body)


def as_object(status: int, headers: Headers, raw: bytes) -> dict[str, object]:
    """Return an answer as an object for people. An unreadable body is left out."""
    try:
        body = decode(headers, raw)
    except (CodingError, Refused):
        body = b""
    return {"status": status, "headers": combined(headers), "body": body.decode(errors="replace")}


def decode(headers: Headers, raw: bytes) -> bytes:
    """Remove the content coding. Refused `body_too_big` over `BODY_MAX_BYTES`."""
    codings = values(headers, b"content-encoding")
    coding = codings[0].strip().lower() if len(codings) == 1 else b",".join(codings)
    if coding in _PLAIN:
        return raw
    if coding not in (*_GZIP, _DEFLATE):
        raise CodingError(coding.decode("latin-1")[:60])
    is_raw_deflate = coding == _DEFLATE and raw[:1] and (raw[0] & 0x0F) != 8  # see RFC 9110 8.4.1.2
    unpack = zlib.decompressobj(31 if coding in _GZIP else -15 if is_raw_deflate else 15)
    try:
        body = unpack.decompress(raw, BODY_MAX_BYTES + 1)
    except zlib.error:
        raise Refused("invoice_invalid/body", "the body is not what its Content-Encoding says") from None
    if len(body) > BODY_MAX_BYTES:
        raise Refused("body_too_big", f"the body has more than {BODY_MAX_BYTES} bytes")
    return body


def _texts(headers: Headers) -> list[tuple[str, str]]:
    return [(key.decode("latin-1"), value.decode("latin-1")) for key, value in headers]
