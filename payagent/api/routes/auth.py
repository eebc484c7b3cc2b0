"""Who asks, and what that token may do and see.

May import: core, agent, store, api.routes and api.http, FastAPI. Never: tells one reason for a 401 from another.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, AnyStr

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from payagent.agent.agent import Agent
from payagent.agent.context import AgentContext
from payagent.api.http.problems import BrokenOffError
from payagent.api.http.tokens import hash_token
from payagent.api.routes.params import json_body, require_clear_query
from payagent.core.bounds import SCOPES
from payagent.core.problems import Refused
from payagent.store.rows import approvals, apps, payments
from payagent.store.rows.apps import AppRow
from payagent.store.rows.payments import PaymentRow

PAY, READ, OPERATE, APPROVE = SCOPES

_BEARER = HTTPBearer(auto_error=False, scheme_name="appToken", description="An app's token, as `init` printed it.")


@dataclass(frozen=True, slots=True)
class Caller:
    """The app whose token came with the call, and the agent that it asks."""

    app: AppRow
    agent: Agent
    _token_hash: str = field(repr=False)

    @property
    def context(self) -> AgentContext:
        """The agent's."""
        return self.agent.context

    @property
    def sees_all(self) -> bool:
        """Whether it sees more than itself."""
        return self.app.sees_all

    @property
    def sees_asked(self) -> bool:
        """Who decides sees the payments that a person is or was asked about, and no others of other apps."""
        return self.sees_all or APPROVE in self.app.scopes

    @property
    def is_let_in(self) -> bool:
        """Whether the token is good still; asked again by calls that last."""
        context = self.context
        return apps.by_token(context.conn, self._token_hash, context.latest_ms) is not None

    def require_let_in(self) -> None:
        """As at the call's beginning: `unauthorized`."""
        if not self.is_let_in:
            raise _unauthorized()

    def require_still_let_in(self) -> None:
        """As `require_let_in`, in the middle of an answer: it can only be broken off."""
        if not self.is_let_in:
            raise BrokenOffError("the token has ended")

    def while_let_in(self, pieces: Iterator[AnyStr]) -> Iterator[AnyStr]:
        """An answer that lasts, in pieces; it breaks off when the token ends, so that nobody takes it for all."""
        for piece in pieces:
            self.require_still_let_in()
            yield piece

    async def json_body(self, request: Request, *, may_be_absent: bool = False) -> bytes:
        """The call's body. It may take its time, so the token must be good still when all of it is there; the loop
        goes on to the writer's queue without a pause, so that whoever was told of the token's end was told later.
        """
        raw = await json_body(request, may_be_absent=may_be_absent)
        self.require_let_in()
        request.app.state.turnstile.weigh(self.app.id, len(raw))
        return raw

    def app_named(self, name: str) -> AppRow:
        """An app that the caller may see, by its name or id. Who pays only knows of itself."""
        own = self.app
        if name in (own.id, own.name):
            return own
        if not self.sees_asked:
            raise Refused("forbidden", "another app's data needs a token with scope read, operate or approve")
        found = apps.by_id(self.context.conn, name) or apps.by_name(self.context.conn, name)
        if found is None:
            raise Refused("bad_request", "app is neither the name nor the id of an app", key="app")
        return found

    def payment(self, payment_id: str) -> PaymentRow:
        """A payment that the app may see; any other is `not_found`, whether it exists or not."""
        row = payments.payment(self.context.conn, payment_id)
        conn = self.context.conn
        if row is None or not (
            self.sees_all
            or row.app_id == self.app.id
            or (self.sees_asked and approvals.of_payment(conn, row.id) is not None)
        ):
            raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
        return self.context.as_noted(row)


async def bearer(request: Request) -> HTTPAuthorizationCredentials | None:
    """The call's token, as FastAPI reads it for the calls that it routes."""
    return await _BEARER(request)


Need = Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[Caller]]


def _unauthorized() -> Refused:
    return Refused("unauthorized", "the request has no valid token")


def need(*scopes: str) -> Need:
    """A dependency: the caller, whose token has at least one of the scopes, and who is counted until the answer
    is out.
    """

    async def caller(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> Caller:
        agent: Agent = request.app.state.agent
        token_hash = "" if credentials is None else hash_token(credentials.credentials)
        app = apps.by_token(agent.context.conn, token_hash, agent.context.latest_ms)
        if app is None:
            raise _unauthorized()
        inside: ExitStack = request.state.inside
        inside.enter_context(request.app.state.turnstile.admit(app.id))
        if not app.scopes & set(scopes):
            raise Refused(
                "forbidden",
                f"the request needs a token with scope {' or '.join(scopes)}",
                needs=" or ".join(scopes),
            )
        require_clear_query(request)
        return Caller(app, agent, token_hash)

    return caller
