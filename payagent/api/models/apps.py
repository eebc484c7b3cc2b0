"""Apps, their tokens and limits. Never: I/O."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from payagent.agent.operator.apps import NewApp
from payagent.agent.operator.limits import LimitStatus
from payagent.api.http.tokens import TOKEN_PATTERN
from payagent.api.models.base import (
    Amounts,
    GivenAsset,
    GivenCount,
    GivenTime,
    InSupply,
    LimitName,
    RequestBody,
    Time,
    Units,
    absent,
)
from payagent.core.bounds import APP_NAME_PATTERN, TokenScope
from payagent.core.money import LOVELACE, Tokens


class LimitStanding(BaseModel):
    """A limit in force. `app` and `merchant`: whose spending it limits; null: everyone's.

    `spent` is what its window counts now. `frees_at` is when the oldest of that leaves the window. A token with
    the pay scope alone sees only its own app's part of a shared limit: `spent` is that part, and `left` is null.
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

    @classmethod
    def of(cls, status: LimitStatus, names: Mapping[str, str]) -> Self:
        limit = status.limit
        app, merchant = (names.get(name, name) or None for name in limit.scope)
        return cls(
            app=app,
            merchant=merchant,
            asset=limit.asset,
            limit=limit.window,
            most=limit.most_units,
            spent=status.spent_units,
            left=status.left_units,
            frees_at=status.frees_at_ms,
            set_by="config" if status.is_from_file else "operator",
        )


class NamedToken(BaseModel):
    """What amounts call a token: "2 USDM" is 2 whole tokens with these decimals."""

    name: str
    asset: str
    decimals: int


class SignerCaps(BaseModel):
    """The most that the signer lets out of the wallet, by asset, whatever the limits allow.

    It counts what it signs in a process of its own, and does not tell its count.
    """

    per_transaction: Amounts
    signed_per_day: Amounts


class Limits(BaseModel):
    """`tokens`: those of the limits that the config names. `approval_above`: a payment of more needs an approval.

    A token with the pay scope alone does not get `signer` and `approval_above`.
    """

    limits: list[LimitStanding]
    tokens: list[NamedToken]
    signer: SignerCaps = absent("Above all limits.")
    approval_above: Amounts = absent("By asset.")

    @classmethod
    def of(cls, standing: Sequence[LimitStatus], names: Mapping[str, str], tokens: Tokens, **more: Any) -> Self:
        limited = {one.limit.asset for one in standing}
        return cls(
            limits=[LimitStanding.of(one, names) for one in standing],
            tokens=[
                NamedToken(name=name, asset=asset, decimals=decimals)
                for name, (asset, decimals) in tokens.items()
                if asset in limited
            ],
            **more,
        )


class SetLimits(RequestBody):
    """Limits of an app, a merchant, an app at a merchant, or (without both) of the whole wallet."""

    app: str = absent("By name. Default: any.")
    merchant: str = absent("By name. Default: any.")
    asset: GivenAsset = Field(default=LOVELACE)
    limits: Annotated[
        dict[LimitName, Annotated[GivenCount, InSupply] | None],
        Field(min_length=1, description="null: the config file's limit applies again."),
    ]
    only_lower: Annotated[
        bool, Field(description="Refuse the order (limit_not_lower) if it could let more out, as null could.")
    ] = False


Scopes = list[TokenScope]
Names = Annotated[list[str], Field(min_length=1)]


class CreateApp(RequestBody):
    """An app. Its limits apply besides those of the wallet."""

    name: Annotated[str, Field(pattern=f"^{APP_NAME_PATTERN}$")]
    scopes: Annotated[Scopes, Field(min_length=1)] = Field(default=["pay"])
    merchants: Names = absent("Names of the only merchants that it may pay.")
    assets: Annotated[list[GivenAsset], Field(min_length=1)] = absent("The only assets that it may pay in.")
    limits: Annotated[
        dict[LimitName, Annotated[GivenCount, InSupply]],
        Field(description="In the asset of `assets` if that lists one; otherwise in lovelace."),
    ] = Field(default={})
    expires_at: GivenTime = absent("When its token expires, as RFC 3339. Default: never.")

    @property
    def new_app(self) -> NewApp:
        assets = None if self.assets is None else frozenset(self.assets)
        return NewApp(
            self.name,
            frozenset(self.scopes),
            None if self.merchants is None else tuple(self.merchants),
            assets,
            next(iter(assets)) if assets is not None and len(assets) == 1 else LOVELACE,
            self.limits,
            self.expires_at,
        )


class RotateToken(RequestBody):
    expires_at: GivenTime = absent("When the new token expires, as RFC 3339. Default: never.")
    token: Annotated[str, Field(pattern=TOKEN_PATTERN)] = absent(
        "A token that the caller made of 32 random bytes and has stored, so that a lost answer loses no token."
    )


class App(BaseModel):
    """An app. `active`: whether its last token is valid now. `last_call_at`: its last request since the daemon's
    start, to the API or the proxy; null: none."""

    id: str
    name: str
    scopes: Scopes
    merchants: list[str] | None
    assets: list[str] | None
    active: bool
    token_made_at: Time | None
    expires_at: Time | None
    revoked_at: Time | None
    last_call_at: Time | None


class AppWithToken(App):
    """An app with its token, which is shown only in this answer."""

    token: str


class AppsPage(BaseModel):
    apps: list[App]
    caller: Annotated[str, Field(description="The id of the app that made this request.")]
