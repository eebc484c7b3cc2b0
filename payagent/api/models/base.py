"""What all shapes are made of. May import: core, dialects, pydantic."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Units = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,18})$", description="Smallest units, as digits.")]
SignedUnits = Annotated[str, Field(pattern=r"^-?(0|[1-9][0-9]*)$", description="Smallest units; debits positive.")]
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Amounts = dict[str, Units]
LimitName = Literal["per_payment", "per_hour", "per_day", "per_week", "per_month", "total"]


def absent(description: str) -> Any:
    """A field that need not be there, and is not null when it is."""
    return Field(default_factory=lambda: None, description=description)


def closed(*either: str) -> ConfigDict:
    """No other keys; and exactly one of `either`, when there are any."""
    choice: dict[str, Any] = {"oneOf": [{"required": [key]} for key in either]} if either else {}
    return ConfigDict(extra="forbid", json_schema_extra=choice)


class Closed(BaseModel):
    model_config = closed()


class Reason(BaseModel):
    code: str
    reason: str | None
    detail: str | None


class LimitStanding(BaseModel):
    """`app` and `merchant`: whose spending it bounds; null: whoever's.

    `spent` is what its window counts now, and `frees_at` when the oldest of that does so no more. To a token that
    only pays, of a limit that others share: what its app spent, and `left` is null.
    """

    app: str | None
    merchant: str | None
    asset: str
    limit: LimitName
    most: Units
    spent: Units
    left: Units | None
    frees_at: Time | None
    set_by: Literal["config", "operator"]
