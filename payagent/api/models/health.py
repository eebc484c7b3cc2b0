"""The state of the daemon. Never: I/O."""

from typing import Literal

from pydantic import BaseModel

from payagent.api.models.base import absent


class Health(BaseModel):
    status: Literal["ok"]
    version: str


class Readiness(BaseModel):
    """Whether payments can be made. `checks` and `providers` have "ok" or what is wrong, by name.

    What is wrong with a provider is why it is excluded, or gets no requests now; that does not decide `ready`.
    Nor does a failed check if payments are taken all the same: providers may disagree, or only one of the accounts
    held here may be unable to pay. `code` is the problem that a payment would be refused with now.
    """

    ready: bool
    code: str | None
    network: str
    checks: dict[str, str]
    providers: dict[str, str]
    accounts: list[int] = absent("In a fleet: the accounts that this daemon holds.")
    daemons: int = absent("In a fleet: how many daemons run.")
    lag_s: int = absent("In a fleet: seconds since this daemon renewed its leases.")
