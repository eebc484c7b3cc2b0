"""The page, its plots and the JSON of a run."""

from typing import Any


def about_the_run() -> dict[str, Any]:
    return {}


def as_summary(told: dict[str, Any]) -> str:
    import json

    return json.dumps(told, indent=1)


def write(told: dict[str, Any], out: Any) -> None:
    pass
