"""Refusals and errors as RFC 9457 problem+json: one writer for all of them.

May import: core, Starlette. Never: says more of an unexpected error than that it happened.
"""

import json

from starlette.responses import Response

from payagent.core.problems import Refused

MEDIA_TYPE = "application/problem+json"
ERROR_TYPE = "payagent_error"
"""`error.type` of every problem: it tells a refusal of payagent's from an error of the merchant's."""
RETRY_AFTER_S = 5
BATCH_RETRY_AFTER_S = 2

Json = dict[str, object]


class BrokenOffError(Exception):
    """An answer ends in its middle: the connection is closed, since a part is not to be taken for all of it."""


class JsonResponse(Response):
    """JSON in plain ASCII, so that no foreign text in it can break the answer."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def problem_of(refused: Refused, request_id: str) -> Json:
    """The problem object. `instance` names this one answer; the log has it too.

    `error` is the form that OpenAI's clients read: they show its `message`, and nothing of a body without it.
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
        "retryable": row.retryable,
        "money": refused.money,
        "fix": row.fix,
        "error": {"message": refused.message, "code": refused.code, "type": ERROR_TYPE},
    }


def problem_response(refused: Refused, request_id: str, headers: dict[str, str] | None = None) -> JsonResponse:
    """The answer for a refusal, with the headers that its status asks for (RFC 9110)."""
    status = refused.problem.status
    sent = dict(headers or {})
    if status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="payagent"'
    if status == 408:
        sent["Connection"] = "close"
    if status in (429, 503):
        sent["Retry-After"] = str(refused.context.get("retry_after_s", RETRY_AFTER_S))
    if refused.code == "batch_under_way":
        sent["Retry-After"] = str(BATCH_RETRY_AFTER_S)
    return JsonResponse(problem_of(refused, request_id), status, sent, MEDIA_TYPE)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | bool | dict) else str(value)
