"""How an operation names the models of its body and its answers in /openapi.json.

Never: parses or writes a body.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from payagent.api.http.problems import MEDIA_TYPE, ProblemDetails

# FastAPI adds the models of answers to the document. It does not know those that `refer` names.
_REFERRED: dict[type[BaseModel], Literal["validation"]] = {}
_REF = "#/components/schemas/{model}"


def takes(model: type[BaseModel], *, may_be_absent: bool = False) -> dict[str, Any]:
    """The part of an operation that describes its body."""
    content = {"application/json": {"schema": refer(model)}}
    return {"requestBody": {"required": not may_be_absent, "content": content}}


def refer(model: type[BaseModel]) -> dict[str, str]:
    """The schema of a model, which the document then has."""
    _REFERRED[model] = "validation"
    return {"$ref": _REF.format(model=model.__name__)}


def gives(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation: `statuses` have the model, all others are problems."""
    described: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": (model.__doc__ or model.__name__).strip()} for status in statuses
    }
    return described | {
        "default": {"description": "A refusal.", "content": {MEDIA_TYPE: {"schema": refer(ProblemDetails)}}}
    }


def gives_as(description: str, media_type: str, schema: Mapping[str, str]) -> dict[int | str, dict[str, Any]]:
    """The answers of an operation whose answer is no JSON object."""
    content = {media_type.partition(";")[0]: {"schema": schema} if schema else {}}
    return gives(ProblemDetails) | {200: {"description": description, "content": content}}


def add_schemas(document: dict[str, Any]) -> dict[str, Any]:
    """Add the models that were referred to to an OpenAPI document."""
    _, described = models_json_schema(list(_REFERRED.items()), ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(described["$defs"])
    return document
