"""Merchants as an operator sees them: what is known of each, and how that is changed while the daemon runs.

May import: core, store, the rest of agent. Never: decides about a payment (admission does).
"""

from dataclasses import dataclass

from payagent.agent import trust as known
from payagent.agent.agent import Agent
from payagent.agent.limits import origin_of
from payagent.agent.terms import MerchantTerms
from payagent.core.address import parse_address
from payagent.core.guards import Pin
from payagent.core.invoice import Role
from payagent.core.problem import Refused
from payagent.store import trust
from payagent.store.trust import Price, Strikes


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a merchant now. `pins` are those beside the config's, by role and address."""

    merchant: MerchantTerms
    pins: tuple[Pin, ...]
    prices: tuple[Price, ...]
    strikes: Strikes
    in_flight: int


def standing(agent: Agent, name: str) -> Standing:
    """Of a merchant of the config, by its name. Refused: `not_found`."""
    origin = origin_of(agent, name)
    return Standing(
        agent.terms.merchants[origin],
        tuple(sorted(trust.pins(agent.conn, origin))),
        tuple(trust.prices(agent.conn, origin)),
        trust.strikes(agent.conn, origin),
        trust.in_flight(agent.conn, origin),
    )


async def pin(agent: Agent, by_app: str, name: str, role: Role, address: str) -> None:
    """Let it be paid at an address. Refused: `not_found`; `bad_request` for one that cannot be paid."""
    origin = origin_of(agent, name)
    try:
        wanted = Pin(role, parse_address(address, agent.terms.network).text)
    except Refused as refused:
        raise Refused("bad_request", f"{refused.code}: {refused.detail}", key="address") from None
    now_ms = agent.ports.clock.now_ms()
    await agent.write("trust", lambda unit: known.pin(unit, origin, wanted, by_app, now_ms))


async def unpin(agent: Agent, by_app: str, name: str, role: Role, address: str) -> None:
    """Forget an address that was learnt or pinned; the config's stay. Refused: `not_found`."""
    origin, now_ms = origin_of(agent, name), agent.ports.clock.now_ms()
    await agent.write("trust", lambda unit: known.unpin(unit, origin, Pin(role, address), by_app, now_ms))


async def reopen(agent: Agent, by_app: str, name: str) -> None:
    """Let it be paid again, and count anew what it does not serve. Refused: `not_found`."""
    origin, now_ms = origin_of(agent, name), agent.ports.clock.now_ms()
    await agent.write("trust", lambda unit: known.reopen(unit, origin, by_app, now_ms))
