"""Writes every refusal and error as RFC 9457 problem+json.

Never: reveals more about an unexpected error than that it happened.
"""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from payagent.core.problems import Refused

MEDIA_TYPE = "application/problem+json"
_HEADERS = {401: {"WWW-Authenticate": 'Bearer realm="payagent"'}, 408: {"Connection": "close"}}
"""Headers by status (RFC 9110)."""

RETRY_AFTER_S = 5
BATCH_RETRY_AFTER_S = 2


class BrokenOffError(Exception):
    """An answer cannot be completed. The connection is closed, so that the part cannot pass for the whole."""


class ErrorObject(BaseModel):
    """The form that OpenAI's clients read. `message`: title, detail, money and fix in one text.

    `type` distinguishes a refusal by payagent from an error of the merchant.
    """

    message: str
    code: str
    type: Literal["payagent_error"]


class ProblemDetails(BaseModel):
    """RFC 9457, with what the refusal means for the money and what to do next.

    `instance` identifies this one answer, and the log has the same id.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    retryable: bool
    money: str
    fix: str
    error: ErrorObject


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return to_json(content).encode("ascii")


def to_json(content: object) -> str:
    """Write compact JSON in ASCII, so that no untrusted text can break the answer. Unset fields are left out."""
    value = content.model_dump(exclude_unset=True) if isinstance(content, BaseModel) else content
    return json.dumps(value, separators=(",", ":"))


def problem_of(refused: Refused, request_id: str) -> ProblemDetails:
    row = refused.problem
    return ProblemDetails.model_validate(
        {
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
            "error": {"message": refused.message, "code": refused.code, "type": "payagent_error"},
        }
    )


def problem_response(refused: Refused, request_id: str, headers: dict[str, str] | None = None) -> JsonResponse:
    """The response for a refusal, with the headers that RFC 9110 requires for its status."""
    status = refused.problem.status
    sent = {**(headers or {}), **_HEADERS.get(status, {})}
    if status in (429, 503):
        sent["Retry-After"] = str(refused.context.get("retry_after_s", RETRY_AFTER_S))
    if refused.code == "batch_in_progress":
        sent["Retry-After"] = str(BATCH_RETRY_AFTER_S)
    return JsonResponse(problem_of(refused, request_id), status, sent, MEDIA_TYPE)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | bool | dict) else str(value)
