"""Settings that a request may change: strict dataclasses, and the reason why a value is refused.

Never: guesses.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

STRICT = ConfigDict(extra="forbid", strict=True)
T = TypeVar("T")


class BadSettings(ValueError):  # noqa: N818  the caller's mistake, reported with its reason
    """The settings are invalid; nothing was changed."""


def made(make: Callable[..., T], given: Mapping[str, Any]) -> T:
    """The settings of these values. Raises `BadSettings`."""
    try:
        return make(**given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise BadSettings(f"{where}: {fault['msg']}" if where else str(fault["msg"])) from None
