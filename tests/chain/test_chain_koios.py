"""The kind `koios` against its fake: machines of unlike height, pages, limits of the server, its errors."""

from collections.abc import AsyncIterator, Iterator

import pytest
from kit.agent import ADA, World
from kit.devnet import Purse, payer

from payagent.chain.koios import KIND, RATE_PAUSE_S, UTXO_ROWS, Koios
from payagent.chain.open import opened
from payagent.chain.provider import Found, NotFound, SubmitKind, Unknown, Why
from payagent.core.payment.machine import State
from payagent.devnet.koios_api import KoiosApi
from payagent.devnet.server import DevnetThread
from payagent.settings.schema import ProviderSettings

UNKNOWN = "12" * 32
OTHER = payer("other").address.raw


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread() as running:
        yield running


@pytest.fixture
def purse(devnet: DevnetThread) -> Purse:
    return Purse(payer("payer"), devnet)


@pytest.fixture
def server(devnet: DevnetThread) -> KoiosApi:
    return devnet.devnet.koios


@pytest.fixture
async def provider(devnet: DevnetThread) -> AsyncIterator[Koios]:
    settings = ProviderSettings(kind="koios", base_url=devnet.devnet.provider_urls["koios"])
    async with opened("one", settings, "devnet") as provider:
        assert isinstance(provider, Koios)
        yield provider


async def test_a_denial_says_how_far_the_machine_was_that_denied(
    purse: Purse, server: KoiosApi, provider: Koios
) -> None:
    purse.fund(100 * ADA)
    purse.control("blocks", count=130)
    tx_id = purse.pay([(OTHER, 3 * ADA, {})])
    purse.control("blocks", count=19)
    newest = purse.devnet.devnet.chain.tip
    assert await provider.tx(UNKNOWN) == NotFound(newest.height)
    server.behind = (20,)
    assert await provider.tx(tx_id) == NotFound(newest.height - 20)
    assert await provider.block(newest.hash, newest.slot) == NotFound(newest.height - 20)


async def test_a_machine_that_is_far_behind_denies_nothing(
    purse: Purse, server: KoiosApi, provider: Koios
) -> None:
    purse.fund(100 * ADA)
    purse.control("blocks", count=130)
    assert isinstance(await provider.tx(UNKNOWN), NotFound)
    server.behind = (10_000,)
    read = await provider.tx(UNKNOWN)
    assert isinstance(read, Unknown)
    assert read.why is Why.NOT_YET


async def test_a_long_list_is_read_in_pages_and_is_whole_or_unknown(
    purse: Purse, server: KoiosApi, provider: Koios
) -> None:
    count, own = 2 * UTXO_ROWS + 1, purse.who.address
    for _ in range(count):
        purse.control("faucet", address=own.text, lovelace="2000000")
    purse.control("blocks", count=1)
    read = await provider.utxos(own.text)
    assert isinstance(read, Found)
    assert len({utxo.ref for utxo in read.value}) == count
    server.behind = (0, 1)  # every other call goes to a machine that does not have these outputs
    read = await provider.utxos(own.text)
    assert isinstance(read, Unknown) or len(read.value) in (0, count)


async def test_a_wallets_lists_by_machines_of_unlike_height_delay_only(world: World) -> None:
    """Each call goes to another machine, two of which lag. The payment is confirmed, and never lost."""
    world.fund(50 * ADA)
    settings = ProviderSettings(kind="koios", base_url=world.devnet.devnet.provider_urls["koios"])
    async with opened("koios", settings, "devnet") as koios, world.run(providers={"koios": koios}) as run:
        await run.run_pass()
        row = await run.pay()
        world.devnet.devnet.koios.behind = (0, 1, 3)
        world.block(5)
        states = set()
        while State.CONFIRMED not in states:
            await run.pass_time(1, 5)
            states.add(run.state(row.id))
        assert states <= {State.IN_FLIGHT, State.IN_BLOCK, State.CONFIRMED}
        assert world.transactions() == [row.attempt.tx_id]


async def test_too_many_calls_pause_for_a_minute(purse: Purse, provider: Koios) -> None:
    purse.control("faults", on="reads", kind="rate", count=1)
    read = await provider.tip()
    assert isinstance(read, Unknown)
    assert (read.why, read.retry_after_s) == (Why.RATE, RATE_PAUSE_S)


async def test_a_transaction_too_long_for_koios_without_a_token_names_the_token(
    purse: Purse, server: KoiosApi, provider: Koios
) -> None:
    purse.fund(100 * ADA)
    server.submit_max_bytes = 100
    tx_id, raw = purse.build([(OTHER, 3 * ADA, {})])
    answer = await provider.submit(raw, tx_id)
    assert answer.kind is SubmitKind.CLIENT
    assert "token" in answer.detail
    assert purse.devnet.devnet.chain.mempool == {}


async def test_a_gateway_that_gives_up_leaves_a_submission_ambiguous(purse: Purse, provider: Koios) -> None:
    purse.fund(100 * ADA)
    tx_id, raw = purse.build([(OTHER, 3 * ADA, {})])
    purse.control("faults", on="submit", kind="late_accept", count=1)
    assert (await provider.submit(raw, tx_id)).kind is SubmitKind.AMBIGUOUS


async def test_a_token_is_sent_and_a_wrong_one_is_refused_and_shown_nowhere(
    devnet: DevnetThread, server: KoiosApi
) -> None:
    server.token, url = "right.token", devnet.devnet.provider_urls["koios"]
    for token, is_right in (("right.token", True), ("wrong.token", False)):
        provider = Koios("one", url, token)
        read = await provider.tip()
        assert isinstance(read, Found) is is_right
        assert token not in repr(provider) + repr(read)
        if not is_right:
            assert (await provider.submit(b"\xff", UNKNOWN)).kind is SubmitKind.AUTH
        await provider.aclose()


def test_a_base_url_of_koios_without_its_path_is_refused() -> None:
    assert KIND.parse_url("https://api.koios.rest/api/v1/") == "https://api.koios.rest/api/v1"
    with pytest.raises(ValueError, match="write https://HOST"):
        KIND.parse_url("https://api.koios.rest")
