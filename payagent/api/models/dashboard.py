"""Sign-in to the dashboard, and its orders that the terminal confirms. Never: I/O."""

from typing import Annotated

from pydantic import BaseModel, Field

from payagent.api.models.base import RequestBody, Time, absent


class CreateSignIn(RequestBody):
    """A link to the dashboard."""

    app: str = absent("The app, by name or id, whose token the session acts with. Default: the caller.")


class SignIn(BaseModel):
    """A link that works once. `code`: what to type on the sign-in page instead of it."""

    url: str
    code: str
    app: str
    scopes: list[str]
    expires_at: Time


class Fact(BaseModel):
    name: str
    value: str


class DashboardOrder(BaseModel):
    """An order of the dashboard that waits for a confirmation in the terminal.

    `app`: as which app the session that asked for it is signed in, since `signed_in_at`.
    """

    title: str
    facts: list[Fact]
    app: str
    signed_in_at: Time
    expires_at: Time


class ConfirmedOrder(BaseModel):
    """What the API answered to the order."""

    title: str
    answer: Annotated[dict[str, object], Field(description="As the path of the order answers.")]
