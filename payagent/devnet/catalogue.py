"""The devnet merchant's paid endpoints, and the parsing of their request bodies.

Never: knows about payments; a receipt is any JSON that the caller passes.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

Json = dict[str, object]
_REPLY = "Cardano is a proof-of-stake chain, and this answer was paid for."


def chat(body: Mapping[str, object], receipt: Json) -> Response:
    """A reply; with `"stream": true` as server-sent events."""
    if body.get("stream") is True:
        words: list[Json] = [{"token": word + " "} for word in _REPLY.split(" ")]
        return _stream([*words, receipt])
    return JSONResponse({"reply": _REPLY, "session_id": body.get("session_id"), **receipt})


def _stream(payloads: Iterable[Json]) -> Response:
    """Server-sent events, each in its own chunk, then the end mark."""

    async def events() -> AsyncIterator[str]:
        for payload in payloads:
            yield f"data: {json.dumps(payload)}\n\n"
            await asyncio.sleep(0)
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def chat_completion(body: Mapping[str, object], receipt: Json) -> Response:
    """The same reply in the form of OpenAI's chat completions; with `"stream": true` as server-sent events."""
    model = body.get("model")
    if body.get("stream") is True:
        return _stream(_completion_chunks(_REPLY, model))
    choice = {"index": 0, "message": {"role": "assistant", "content": _REPLY}, "finish_reason": "stop"}
    asked, replied = len(str(body.get("messages")).split()), len(_REPLY.split())
    usage = {"prompt_tokens": asked, "completion_tokens": replied, "total_tokens": asked + replied}
    return JSONResponse(_completion("chat.completion", model, choice) | {"usage": usage} | receipt)


def _completion_chunks(reply: str, model: object) -> Iterator[Json]:
    """One chunk per word, and the end of the choice."""
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word + " "} for word in reply.split(" ")]
    for delta in (*deltas, {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield _completion("chat.completion.chunk", model, choice)


def _completion(kind: str, model: object, choice: Json) -> Json:
    return {"id": "chatcmpl-devnet", "object": kind, "created": 0, "model": model, "choices": [choice]}


def _token_analysis(body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"token": body.get("token"), "analysis": "A devnet token; worth nothing.", **receipt})


def _images(_body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"success": True, "images": [], **receipt})


GOODS: dict[str, Callable[[Mapping[str, object], Json], Response]] = {
    "/chat": chat,
    "/v1/chat/completions": chat_completion,
    "/token-analysis": _token_analysis,
    "/images/generate": _images,
    "/images/edit": _images,
}


# --- bodies ------------------------------------------------------------------------------------------------------

TOO_LARGE: Json = {"detail": "Request body too large"}
UNPROCESSABLE: Json = {
    "detail": [{"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "input": {}}]
}


async def read_body(request: Request, most_bytes: int = 1024 * 1024) -> bytes | None:
    """The request's body; None when it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            return None
    return body


def json_object(raw: bytes | str) -> Json | None:
    """A JSON object; None for anything else."""
    try:
        body = json.loads(raw)
        # parts of it go into the answer, so refuse what JSON cannot carry: NaN, half a surrogate pair
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
