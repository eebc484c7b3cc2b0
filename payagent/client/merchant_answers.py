"""Read a merchant's answers, without headers that only payagent may set, in the form for the daemon.

Never: I/O; decompresses without a limit.
"""

import base64

import httpx

from payagent.client.steps import Json
from payagent.core.cost_headers import OWN_PREFIX

ANSWER_MAX_BYTES = 128 * 1024
"""The most bytes read of an answer that may concern the payment."""

_UNPACKED_AT_ONCE = 256
"""Compressed bytes per step."""


def is_own(name: bytes) -> bool:
    return name.lower().startswith(OWN_PREFIX)


def plain(answer: httpx.Response) -> httpx.Response:
    """Remove headers that only payagent may set: a merchant cannot claim a payment."""
    for name in {name for name, _ in answer.headers.raw if is_own(name)}:
        del answer.headers[name.decode("latin-1")]
    return answer


def answer_json(answer: httpx.Response, body: bytes) -> Json:
    """Return an answer's headers and body in the form of the daemon's API."""
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers.raw]
    return {"headers": headers, "body_base64": base64.b64encode(body).decode("ascii")}


def readable(answer: httpx.Response, raw: bytes | None) -> Json:
    """Return an answer as an object for people. An unreadable body is left out."""
    body = b"" if raw is None else decoded(answer, raw) or b""
    return {"status": answer.status_code, "headers": dict(answer.headers), "body": body.decode(errors="replace")}


def decoded(answer: httpx.Response, raw: bytes, cut_at: int | None = None) -> bytes | None:
    """Remove the content coding; None if the body is unreadable or too long.

    With `cut_at`, a longer body is cut to slightly more bytes than that.
    The steps are small because a few bytes can become millions. Several codings multiply that and are not read.
    """
    if "," in answer.headers.get("content-encoding", ""):
        return None
    parts = (raw[at : at + _UNPACKED_AT_ONCE] for at in range(0, len(raw), _UNPACKED_AT_ONCE))
    body = bytearray()
    try:
        for part in httpx.Response(answer.status_code, headers=answer.headers, content=parts).iter_bytes():
            body += part
            if len(body) > (cut_at or ANSWER_MAX_BYTES):
                return bytes(body) if cut_at else None
    except httpx.DecodingError:
        return None
    return bytes(body)
