"""Payments whose signed transaction the merchant submits."""

from dataclasses import replace

from kit.agent import Run, World
from payagent.agent.base.config import AgentConfig

VOID_DEPTH = 3


def with_handover(terms: AgentConfig) -> AgentConfig:
    merchants = {origin: replace(merchant, proof="signed_cbor") for origin, merchant in terms.merchants.items()}
    return replace(terms, merchants=merchants)


def broadcast(world: World, cbor: bytes) -> int:
    """Do what a merchant does with the proof: submit it."""
    answer = world.http.post(
        f"{world.devnet.chain_url}/tx/submit", content=cbor, headers={"Content-Type": "application/cbor"}
    )
    return answer.status_code


async def pass_ttl(world: World, run: Run) -> None:
    """Go past the TTL of everything in flight, with a block and a pass."""
    world.clock.ahead_ms += 400_000
    await run.settle_down()
