"""The agent over Ogmios and Kupo: alone, and beside a provider of another kind that lags or lies."""

from collections.abc import Iterator

import pytest
from kit.agent import ADA, Relay, World
from kit.providers import raised

from payagent.chain.koios import Koios
from payagent.chain.ogmios_kupo import OgmiosKupo
from payagent.core.payment.machine import State

NOT_FOUND = {"status_code": 404, "error": "Not Found", "message": "The requested component has not been found."}


@pytest.fixture
async def own(world: World) -> OgmiosKupo:
    urls = world.devnet.devnet.provider_urls
    world.devnet.devnet.ogmios_kupo.watched = {world.address}
    return OgmiosKupo("own", urls["ogmios"], urls["kupo"], "devnet")


@pytest.fixture
def other(world: World) -> Iterator[Relay]:
    with Relay(world.devnet).serving() as relay:
        yield relay


async def test_a_payment_is_confirmed_rolled_back_and_confirmed_again(world: World, own: OgmiosKupo) -> None:
    world.fund(100 * ADA)
    async with world.run(providers={"own": own}) as run:
        row = await run.pay_in_block()
        assert run.state(row.id) is State.CONFIRMED
        assert run.owned() == world.on_chain()
        world.control("rollback", depth=1)
        await run.run_pass()
        await run.pass_time(5)
        assert run.state(row.id) is State.CONFIRMED
        assert row.attempt is not None
        assert world.transactions() == [row.attempt.tx_id]
        assert run.owned() == world.on_chain()
        assert raised(run) == set()


async def test_an_index_that_lags_delays_and_is_not_excluded(world: World, own: OgmiosKupo, other: Relay) -> None:
    world.fund(100 * ADA)
    async with world.run(providers={"own": own, "other": other.url}) as run:
        await run.run_pass()
        row = await run.pay()
        world.devnet.devnet.ogmios_kupo.blocks_behind = 2
        await run.settle_down(2)
        assert run.state(row.id) is not State.CONFIRMED
        await run.settle_down(3)
        assert run.state(row.id) is State.CONFIRMED
        world.devnet.devnet.ogmios_kupo.blocks_behind = 0
        await run.settle_down()
        assert run.owned() == world.on_chain()
        assert raised(run) == set()


async def test_one_that_denies_a_payment_only_delays_it(world: World, own: OgmiosKupo, other: Relay) -> None:
    """It says that the payment is in no block, and the other shows it."""
    world.fund(100 * ADA)
    async with world.run(providers={"own": own, "other": other.url}) as run:
        await run.run_pass()
        row = await run.pay()
        assert row.attempt is not None
        other.tell(f"/txs/{row.attempt.tx_id}", 404, NOT_FOUND)
        await run.settle_down(2)
        assert run.state(row.id) is State.IN_FLIGHT
        other.unfreeze()
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert world.transactions() == [row.attempt.tx_id]


async def test_an_index_that_forgets_a_payment_only_delays_it(world: World, own: OgmiosKupo, other: Relay) -> None:
    world.fund(100 * ADA)
    server = world.devnet.devnet.ogmios_kupo
    async with world.run(providers={"own": own, "other": other.url}) as run:
        await run.run_pass()
        row = await run.pay()
        server.is_pruned, server.watched = True, set()
        await run.settle_down(2)
        assert run.state(row.id) is State.IN_FLIGHT
        server.is_pruned, server.watched = False, {world.address}
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert run.owned() == world.on_chain()
        assert raised(run) == set()


async def test_beside_koios_whose_machines_lag_a_payment_is_confirmed_and_nobody_excluded(
    world: World, own: OgmiosKupo
) -> None:
    world.fund(100 * ADA)
    koios = Koios("koios", world.devnet.devnet.provider_urls["koios"], None)
    async with world.run(providers={"own": own, "koios": koios}) as run:
        await run.run_pass()
        row = await run.pay()
        world.devnet.devnet.koios.behind = (0, 2, 1)
        await run.settle_down(20)
        assert run.state(row.id) is State.CONFIRMED
        assert row.attempt is not None
        assert world.transactions() == [row.attempt.tx_id]
        world.devnet.devnet.koios.behind = (0,)
        await run.settle_down()
        assert run.owned() == world.on_chain()
        assert raised(run) == set()


async def test_beside_koios_one_that_denies_a_payment_only_delays_it(world: World, own: OgmiosKupo) -> None:
    world.fund(100 * ADA)
    with Relay(world.devnet, world.devnet.devnet.provider_urls["koios"]).serving() as relay:
        koios = Koios("koios", relay.url, None)
        async with world.run(providers={"own": own, "koios": koios}) as run:
            await run.run_pass()
            row = await run.pay()
            assert row.attempt is not None
            relay.tell("/tx_status", 200, [{"tx_hash": row.attempt.tx_id, "num_confirmations": None}])
            relay.tell("/tx_info", 200, [])
            await run.settle_down(2)
            assert run.state(row.id) is State.IN_FLIGHT
            relay.unfreeze()
            await run.settle_down(2)
            assert run.state(row.id) is State.CONFIRMED
            assert world.transactions() == [row.attempt.tx_id]


async def test_beside_koios_one_that_hides_money_only_delays(world: World, own: OgmiosKupo) -> None:
    world.fund(100 * ADA)
    with Relay(world.devnet, world.devnet.devnet.provider_urls["koios"]).serving() as relay:
        koios = Koios("koios", relay.url, None)
        async with world.run(providers={"own": own, "koios": koios}) as run:
            await run.run_pass()
            row = await run.pay_in_block()
            before = run.owned()
            relay.tell("/address_utxos", 200, [])
            await run.settle_down(2)
            assert run.owned() == before
            relay.unfreeze()
            await run.settle_down(2)
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == world.on_chain()
