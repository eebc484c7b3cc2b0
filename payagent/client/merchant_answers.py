"""A merchant's answers: unpacked, without the headers that only we may give, and in the form for the daemon.

May import: httpx's values, client.effects. Never: I/O; unpacks without a bound.
"""

import base64

import httpx

from payagent.client.effects import Json

_OWN_PREFIX = b"x-payagent-"

ANSWER_MAX_BYTES = 128 * 1024
"""What is read of an answer that may say something about paying."""

_UNPACKED_AT_ONCE = 256
"""Bytes of a packed answer in one step."""


def is_own(name: bytes) -> bool:
    return name.lower().startswith(_OWN_PREFIX)


def plain(answer: httpx.Response) -> httpx.Response:
    """An answer without headers that only we may give: a merchant cannot claim a payment."""
    for name in {name for name, _ in answer.headers.raw if is_own(name)}:
        del answer.headers[name.decode("latin-1")]
    return answer


def told(answer: httpx.Response, body: bytes) -> Json:
    """An answer's headers and body as the daemon takes them."""
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers.raw]
    return {"headers": headers, "body_base64": base64.b64encode(body).decode("ascii")}


def readable(answer: httpx.Response, raw: bytes | None) -> Json:
    """An answer as an object for people to read; a body that cannot be read is left out."""
    body = b"" if raw is None else decoded(answer, raw) or b""
    return {"status": answer.status_code, "headers": dict(answer.headers), "body": body.decode(errors="replace")}


def decoded(answer: httpx.Response, raw: bytes) -> bytes | None:
    """The body without its content coding; None when it cannot be read, or is too much.

    It is unpacked in small steps, since a few bytes can become millions; through several codings they multiply.
    """
    if "," in answer.headers.get("content-encoding", ""):
        return None
    parts = (raw[at : at + _UNPACKED_AT_ONCE] for at in range(0, len(raw), _UNPACKED_AT_ONCE))
    body = bytearray()
    try:
        for part in httpx.Response(answer.status_code, headers=answer.headers, content=parts).iter_bytes():
            body += part
            if len(body) > ANSWER_MAX_BYTES:
                return None
    except httpx.DecodingError:
        return None
    return bytes(body)
