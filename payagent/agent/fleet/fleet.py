"""`Fleet`: the agents of the accounts that this daemon holds. The API, the proxy and the dashboard know only it.

A daemon on a file always holds account 0. `front` is the agent that reads for all accounts and writes what they
share; on a file it is that account's agent.

Never: pays itself; writes a payment.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.agent.agent import Agent
from payagent.agent.base.requests import Approver, PaymentQuote, PaymentRequest, PrepaidQuote
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.topups.orders import TopupGoal
from payagent.agent.topups.runner import TopupPlan, TopupRunner
from payagent.core.address import Address
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused
from payagent.store.rows.fleet import AccountRow, DaemonRow
from payagent.store.rows.topups import TopupRow


@dataclass(frozen=True, slots=True)
class HeldAccount:
    """What pays from one account."""

    agent: Agent
    topups: TopupRunner


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A fleet as one of its daemons sees it."""

    held: tuple[int, ...]  # the accounts that this daemon holds
    accounts: tuple[AccountRow, ...]  # all accounts, with their leases
    daemons: tuple[DaemonRow, ...]  # those that registered and were not forgotten
    living: Mapping[str, DaemonRow]  # those of them that renewed within a lease, by id
    at_ms: int  # when they were read, by the database's clock
    lag_s: float  # since this daemon renewed its leases
    problem: str | None  # what keeps accounts from paying, or soon will


class Fleet:
    """The one account of a daemon on a file. `SharedFleet` overrides what another daemon may have to do.

    Call it from one event loop.
    """

    def __init__(self, front: HeldAccount) -> None:
        self.front = front
        self.context = front.agent.context
        """For reads, and for writes of what all accounts share."""
        self.intake = front.agent.intake
        self.prepaid_calls = front.agent.prepaid_calls
        self.topups = front.topups
        """For reads. Orders go through the fleet."""
        self.held = {self.context.config.account: front}

    def status(self) -> FleetStatus | None:
        """None for a daemon alone on its ledger."""
        return None

    async def pay(self, payment_request: PaymentRequest) -> tuple[PaymentRow, bool]:
        """As `Agent.pay`."""
        return await self.front.agent.pay(payment_request)

    async def quote(self, payment_request: PaymentRequest, count: int = 1) -> PaymentQuote:
        """As `Agent.quote`."""
        return await self.front.agent.quote(payment_request, count)

    def deliveries(self, payment_id: str) -> Deliveries:
        """What records the deliveries of a payment."""
        return self.front.agent.deliveries_of(payment_id)

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        """As `Decisions.approve`."""
        return await self.front.agent.decisions.approve(payment_id, by)

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        """As `Decisions.deny`."""
        return await self.front.agent.decisions.deny(payment_id, by)

    async def resolve(self, payment_id: str, app_id: str) -> PaymentRow:
        """As `PaymentLifecycle.resolve`."""
        return await self.front.agent.lifecycle.resolve(payment_id, app_id)

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """As `Transfers.send`."""
        return await self.front.agent.transfers.send(app_id, to, asset, units, key)

    async def send_all(
        self, app_id: str, to: Address, key: str | None = None, account: int | None = None
    ) -> tuple[PaymentRow, bool]:
        """As `Transfers.send_all`, from one account. Refused: `bad_request` if the wallet has no such account."""
        if account is not None and account not in self.held:
            raise no_account(account)
        return await self.front.agent.transfers.send_all(app_id, to, key)

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """As `Transfers.split`."""
        return await self.front.agent.transfers.split(app_id, count, lovelace, key)

    async def order_channel(self, step: str, app_id: str, **asked: object) -> list[str]:
        """Do what the method of `ChannelSteps` with this name does. Returns the ids of its channels."""
        parts = self.front.agent.channels
        made = [] if parts is None else await getattr(parts.steps, step)(app_id, **asked)
        return [channel.id for channel in (made if step == "recover" else made[:1])]

    async def order_topup(self, app_id: str, key: str | None, goal: TopupGoal) -> tuple[TopupRow, bool]:
        """As `TopupRunner.order`."""
        return await self.front.topups.order(app_id, key, goal)

    async def plan_topup(self, app_id: str, goal: TopupGoal) -> TopupPlan | PrepaidQuote:
        """As `TopupRunner.plan`."""
        return await self.front.topups.plan(app_id, goal)

    async def cancel_topup(self, topup_id: str, app_id: str) -> TopupRow:
        """As `TopupRunner.cancel`."""
        return await self.front.topups.cancel(topup_id, app_id)


def no_account(account: int) -> Refused:
    return Refused("bad_request", f"the wallet has no account {account}", key="account")
