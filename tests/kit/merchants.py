"""Merchant rules: payments that need an approval, and payments that are not served."""

from collections.abc import Callable
from dataclasses import replace

from kit.agent import Run, World, with_terms
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.requests import Approver
from payagent.core.aggregate import PaymentRow
from payagent.core.merchant_rules import MerchantRules
from payagent.devnet.merchant import role_address

SOMEBODY = Approver("token", "app_somebody")


def guarded(world: World, rules: MerchantRules) -> Callable[[AgentConfig], AgentConfig]:
    return with_terms(merchants={o: replace(m, rules=rules) for o, m in world.terms.merchants.items()})


async def approve(run: Run, message: str) -> PaymentRow:
    """Request a payment that needs approval, and approve it."""
    row = await run.pay(message)
    await run.agent.decisions.approve(row.id, SOMEBODY)
    await run.agent.submitter.drain(10)
    return run.context.payment(row.id)


def pay_to(name: str) -> str:
    return role_address(name).text


async def leave_unserved(world: World, run: Run, message: str) -> PaymentRow:
    """Pay, in a block; the merchant then answers 402 after its invoice expired."""
    row = await run.pay_in_block(message)
    world.clock.ahead_ms += 301_000
    await run.settle_down()
    return await run.agent.deliveries.record_delivery(row.id, 402)
