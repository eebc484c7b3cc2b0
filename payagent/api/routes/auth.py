"""Checks the token of each request, and what its app may do and see.

Never: says why a token is not valid.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, AnyStr, cast

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet
from payagent.api.http.problems import BrokenOffError
from payagent.api.http.sessions import Sessions
from payagent.api.http.tokens import hash_token
from payagent.api.models.base import RequestBody
from payagent.api.routes.params import SelectionFilter, json_body, require_clear_query
from payagent.core.aggregate import PaymentRow
from payagent.core.bounds import SCOPES
from payagent.core.origin import parse_origin
from payagent.core.problems import Refused
from payagent.store.db.unit import VIA
from payagent.store.rows import approvals, apps, payments
from payagent.store.rows.approvals import Via
from payagent.store.rows.apps import AppRow
from payagent.store.rows.journal import Selection

PAY, READ, OPERATE, APPROVE = SCOPES

SESSION_TOKEN = "payagent.session_token"  # noqa: S105  the name of a key
"""Scope key of the hash of the token that a dashboard's session acts with. Only the dashboard's calls have it."""

SESSION_IS_OPEN = "payagent.session_is_open"
"""Scope key of a function: whether the dashboard's session that makes the call is still open."""

BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="appToken",
    description="An app's token, as printed by `payagent init` or `payagent app add`.",
)
"""Reads the token of a request."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The app that makes the request, and the fleet. `via`: by its token, or by a session of the dashboard.

    `dashboard`: the origin of the dashboard, if it is on. `is_session_open`: always true for a token.
    """

    app: AppRow
    fleet: Fleet
    token_hash: str = field(repr=False)
    via: Via
    dashboard: str | None
    is_session_open: Callable[[], bool]

    @property
    def context(self) -> AgentContext:
        return self.fleet.context

    @property
    def sees_approvals(self) -> bool:
        """Whether the app sees other apps' payments that need or needed an approval."""
        return self.app.sees_all or APPROVE in self.app.scopes

    @property
    def has_valid_token(self) -> bool:
        """Whether the token is still valid, and the session still open. Long requests check it again."""
        context = self.context
        return (
            self.is_session_open() and apps.by_token(context.conn, self.token_hash, context.latest_ms) is not None
        )

    def require_valid_token(self) -> None:
        """Refused: `unauthorized`."""
        if not self.has_valid_token:
            raise _unauthorized()

    def require_token_still_valid(self) -> None:
        """Like `require_valid_token`, in the middle of an answer, which can then only be aborted."""
        if not self.has_valid_token:
            raise BrokenOffError("the token is no longer valid, or the session has ended")

    def while_token_is_valid(self, pieces: Iterator[AnyStr]) -> Iterator[AnyStr]:
        """Yield the pieces of a long answer, and abort it if the token becomes invalid."""
        for piece in pieces:
            self.require_token_still_valid()
            yield piece

    async def json_body(self, request: Request, *, may_be_absent: bool = False) -> bytes:
        """The request's body. The token must still be valid when all of it has arrived.

        The event loop goes on to the writer's queue without a pause. So a request that passed this check is queued
        before any answer that says the token is no longer valid.
        """
        raw = await json_body(request, may_be_absent=may_be_absent)
        self.require_valid_token()
        request.app.state.rate_limiter.weigh(self.app.id, len(raw))
        return raw

    def app_named(self, name: str, key: str = "app") -> AppRow:
        """An app that the caller may see, by its name or id. Refused: `forbidden`, `bad_request`.

        `key`: the parameter that names it.
        """
        own = self.app
        if name in (own.id, own.name):
            return own
        if not self.sees_approvals:
            raise Refused("forbidden", "seeing another app needs a token for read, operate or approve")
        app = apps.by_id(self.context.conn, name) or apps.by_name(self.context.conn, name)
        if app is None:
            raise Refused("bad_request", f"{key} is neither the name nor the id of an app", key=key)
        return app

    def selection(self, only: SelectionFilter) -> Selection:
        """What these filters select. A merchant that is no longer configured is named by its origin."""
        merchants = self.context.config.merchants.values()
        named = {merchant.name: merchant.origin for merchant in merchants}
        try:
            origin = None if only.merchant is None else named.get(only.merchant) or parse_origin(only.merchant)
        except ValueError:
            raise Refused(
                "bad_request", "merchant is neither a name in [merchants] nor an origin", key="merchant"
            ) from None
        app = None if only.app is None else self.app_named(only.app).id
        return Selection(since_ms=only.since, until_ms=only.until, origin=origin, app=app)

    def payment(self, payment_id: str) -> PaymentRow:
        """A payment that the app may see. Any other is `not_found`, whether it exists or not."""
        row = self.context.call(payment_id) or payments.payment(self.context.conn, payment_id)
        conn = self.context.conn
        if row is None or not (
            self.app.sees_all
            or row.app_id == self.app.id
            or (self.sees_approvals and approvals.of_payment(conn, row.id) is not None)
        ):
            raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
        return self.context.as_noted(row)


Need = Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[Caller]]


def _unauthorized() -> Refused:
    return Refused("unauthorized", "the request has no valid token")


def need(*scopes: str) -> Need:
    """Return a FastAPI dependency: the caller, whose token must have one of the scopes.

    The rate limit counts the request until its answer is sent.
    """

    async def caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
    ) -> Caller:
        fleet: Fleet = request.app.state.fleet
        token_hash: str = request.scope.get(SESSION_TOKEN, "")
        via: Via = "dashboard" if token_hash else "token"
        VIA.set("dashboard" if token_hash else None)
        if credentials is not None:
            token_hash, via = hash_token(credentials.credentials), "token"
        app = fleet.context.app_of(token_hash)
        if app is None:
            raise _unauthorized()
        inside: ExitStack = request.state.inside
        inside.enter_context(request.app.state.rate_limiter.admit(app.id))
        if not app.scopes & set(scopes):
            raise Refused(
                "forbidden",
                f"the request needs a token with scope {' or '.join(scopes)}",
                needs=" or ".join(scopes),
            )
        require_clear_query(request)
        sessions: Sessions | None = request.app.state.sessions
        request.state.caller = Caller(
            app,
            fleet,
            token_hash,
            via,
            None if sessions is None else sessions.origin,
            request.scope.get(SESSION_IS_OPEN, lambda: True),
        )
        return cast("Caller", request.state.caller)

    return caller


def sent(model: type[RequestBody], *, may_be_absent: bool = False) -> Any:
    """Return a FastAPI dependency: the body that the caller sent. Place it after the caller, whom it checks again.

    With `may_be_absent`, no body counts as an empty object.
    """

    async def body(request: Request) -> RequestBody:
        caller: Caller = request.state.caller
        return model.read(await caller.json_body(request, may_be_absent=may_be_absent), caller.context.config)

    return Depends(body)


AnyApp = Annotated[Caller, Depends(need(PAY, READ, OPERATE, APPROVE))]
Reader = Annotated[Caller, Depends(need(READ, OPERATE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]
