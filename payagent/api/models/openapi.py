"""How an operation names the models of its body and its answers in /openapi.json.

Never: parses or writes a body.
"""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from payagent.api.http.problems import MEDIA_TYPE, ProblemDetails

# FastAPI adds the models of answers to the document. It does not know those of `takes` and `streams`.
_REFERRED: dict[type[BaseModel], Literal["validation"]] = {}
_REF = "#/components/schemas/{model}"


def takes(model: type[BaseModel], *, may_be_absent: bool = False) -> dict[str, Any]:
    """The part of an operation that describes its body."""
    content = {"application/json": {"schema": _refer(model)}}
    return {"requestBody": {"required": not may_be_absent, "content": content}}


def _refer(model: type[BaseModel]) -> dict[str, str]:
    _REFERRED[model] = "validation"
    return {"$ref": _REF.format(model=model.__name__)}


def gives(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation: `statuses` have the model, all others are problems."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": (model.__doc__ or model.__name__).strip()} for status in statuses
    }
    return described | {
        "default": {"description": "A refusal.", "content": {MEDIA_TYPE: {"schema": _refer(ProblemDetails)}}}
    }


def gives_text(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation whose answer is text."""
    content = {media_type.partition(";")[0]: {"schema": {"type": "string"}}}
    return gives(ProblemDetails) | {200: {"description": "Text.", "content": content}}


def streams(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation that streams events, each with the model as its data."""
    content = {"text/event-stream": {"schema": _refer(model)}}
    return gives(ProblemDetails) | {200: {"description": (model.__doc__ or "").strip(), "content": content}}


def add_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Add the models of `takes`, `gives` and `streams` to an OpenAPI document."""
    _, described = models_json_schema(list(_REFERRED.items()), ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(described["$defs"])
    return document
