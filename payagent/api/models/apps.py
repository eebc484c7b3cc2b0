"""Apps, their tokens and limits. May import: core, dialects, pydantic."""

from typing import Annotated

from pydantic import BaseModel, Field

from payagent.api.http.tokens import TOKEN_PATTERN
from payagent.api.models.base import Closed, LimitName, LimitStanding, Time, Units, absent
from payagent.core.bounds import TokenScope


class Limits(BaseModel):
    limits: list[LimitStanding]


class SetLimits(Closed):
    """Limits of an app, a merchant (both by name), both together, or else of the wallet as a whole."""

    app: str = absent("Default: any.")
    merchant: str = absent("Default: any.")
    asset: str = absent("Default: lovelace.")
    limits: Annotated[
        dict[LimitName, Units | None],
        Field(min_length=1, description="null: what the config file says counts again."),
    ]


Scopes = list[TokenScope]


class CreateApp(Closed):
    """An app. Limits only tighten what binds the wallet as a whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    scopes: Scopes = absent('Default: ["pay"].')
    merchants: list[str] = absent("The only ones that it may pay, by name.")
    assets: list[str] = absent("The only ones that it may pay in.")
    limits: dict[LimitName, Units] = absent("Of the one asset of `assets`, else of lovelace.")
    expires_at: str = absent("When its token ends, as RFC 3339. Default: never.")


class RotateToken(Closed):
    expires_at: str = absent("When the new token ends, as RFC 3339. Default: never.")
    token: Annotated[str, Field(pattern=TOKEN_PATTERN)] = absent(
        "Made by the caller of 32 random bytes, and kept already: none is lost with the answer."
    )


class App(BaseModel):
    """An app. `active`: whether its last token is good now."""

    id: str
    name: str
    scopes: Scopes
    merchants: list[str] | None
    assets: list[str] | None
    active: bool
    token_made_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None


class AppWithToken(App):
    """With its token, which is shown this once."""

    token: str


class AppsPage(BaseModel):
    apps: list[App]
    caller: Annotated[str, Field(description="The id of the app whose token this call has.")]
