"""Whether it works. May import: core, dialects, pydantic."""

from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    """`checks` and `providers` say "ok" or what is wrong, for each. A provider's word is not needed to be ready.

    What is wrong with a provider is why it is not heard, or not sent anything, at present. `code` is the problem
    that an order meets now, where one stands for what is wrong.
    """

    ready: bool
    code: str | None
    network: str
    checks: dict[str, str]
    providers: dict[str, str]
