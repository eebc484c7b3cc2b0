"""A wallet is idle when nothing is open on the chain; passes may then be rare."""

from kit.agent import ADA, World

from payagent.core.payment.machine import State


async def test_a_wallet_is_idle_once_its_payments_are_confirmed(world: World) -> None:
    async with world.run() as run:
        await run.run_pass()
        assert not run.chain_sync.is_idle, "a wallet without UTxOs waits for a deposit"
        world.fund(50 * ADA)
        await run.run_pass()
        assert run.chain_sync.is_idle
        row = await run.pay()
        assert not run.chain_sync.is_idle
        await run.settle_down(3)
        assert run.state(row.id) is State.CONFIRMED
        assert run.chain_sync.is_idle


async def test_a_wallet_is_not_idle_after_a_provider_read_fails(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        world.fault("/blocks/", "server")
        world.block()
        await run.run_pass()
        assert not run.chain_sync.is_idle
