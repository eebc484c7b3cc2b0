"""What the devnet's merchant sells, and the bodies that ask for it.

Imports Starlette. Knows nothing of money: a receipt is whatever the one who was paid wants to say.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Json = dict[str, object]
_MOST_BODY_BYTES = 1024 * 1024
_REPLY = "Cardano is a proof-of-stake chain, and this answer was paid for."


def chat(body: Mapping[str, object], receipt: Json) -> Response:
    """A reply; with `"stream": true` as server-sent events."""
    if body.get("stream") is True:
        return StreamingResponse(_events(_REPLY, receipt), media_type="text/event-stream")
    return JSONResponse({"reply": _REPLY, "session_id": body.get("session_id"), **receipt})


async def _events(reply: str, receipt: Json) -> AsyncIterator[str]:
    """One event per word, each in a piece of its own, then the receipt and the end mark."""
    for word in reply.split(" "):
        yield f"data: {json.dumps({'token': word + ' '})}\n\n"
        await asyncio.sleep(0)
    yield f"data: {json.dumps(receipt)}\n\n"
    yield "data: [DONE]\n\n"


def _token_analysis(body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"token": body.get("token"), "analysis": "A devnet token; worth nothing.", **receipt})


def _images(_body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"success": True, "images": [], **receipt})


GOODS: dict[str, Callable[[Mapping[str, object], Json], Response]] = {
    "/chat": chat,
    "/token-analysis": _token_analysis,
    "/images/generate": _images,
    "/images/edit": _images,
}


# --- bodies ------------------------------------------------------------------------------------------------------

TOO_LARGE: Json = {"detail": "Request body too large"}
UNPROCESSABLE: Json = {
    "detail": [{"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "input": {}}]
}


async def read_body(request: Request) -> bytes | None:
    """The request's body; None when it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            return None
    return body


def json_object(raw: bytes | str) -> Json | None:
    """A JSON object; None for anything else."""
    try:
        body = json.loads(raw)
        # parts of it go into the answer, and what cannot be written there is no JSON: NaN, half a character
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
