"""Writes every refusal and error as RFC 9457 problem+json.

May import: core, Starlette.
Never: reveals more about an unexpected error than that it happened.
"""

import json

from starlette.responses import Response

from payagent.core.problems import Refused

MEDIA_TYPE = "application/problem+json"
ERROR_TYPE = "payagent_error"
"""`error.type` of every problem. It distinguishes a refusal by payagent from an error of the merchant."""
RETRY_AFTER_S = 5
BATCH_RETRY_AFTER_S = 2

Json = dict[str, object]


class BrokenOffError(Exception):
    """An answer cannot be completed. The connection is closed, so that the part cannot pass for the whole."""


class JsonResponse(Response):
    """JSON in plain ASCII, so that no foreign text can break the answer."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def problem_of(refused: Refused, request_id: str) -> Json:
    """The problem object. `instance` identifies this one answer, and the log has the same id.

    `error` is the form that OpenAI's clients expect: they show its `message`, and nothing of a body without it.
    """
    row = refused.problem
    return {
        **{name: _plain(value) for name, value in refused.context.items()},
        "type": f"urn:payagent:problem:{refused.code}",
        "title": row.title,
        "status": row.status,
        "detail": refused.detail,
        "instance": f"urn:payagent:request:{request_id}",
        "code": refused.code,
        "reason": refused.reason,
        "retryable": row.retryable,
        "money": refused.money,
        "fix": row.fix,
        "error": {"message": refused.message, "code": refused.code, "type": ERROR_TYPE},
    }


def problem_response(refused: Refused, request_id: str, headers: dict[str, str] | None = None) -> JsonResponse:
    """The response for a refusal, with the headers that RFC 9110 requires for its status."""
    status = refused.problem.status
    sent = dict(headers or {})
    if status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="payagent"'
    if status == 408:
        sent["Connection"] = "close"
    if status in (429, 503):
        sent["Retry-After"] = str(refused.context.get("retry_after_s", RETRY_AFTER_S))
    if refused.code == "batch_in_progress":
        sent["Retry-After"] = str(BATCH_RETRY_AFTER_S)
    return JsonResponse(problem_of(refused, request_id), status, sent, MEDIA_TYPE)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | bool | dict) else str(value)
