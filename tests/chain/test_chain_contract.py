"""What every kind of chain provider does alike, over HTTP to its fake in the devnet.

A kind is one entry in `KINDS`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace

import cbor2
import pytest
from kit.devnet import POLICY, TOKEN, Payer, Purse, payer, signed

from payagent.agent.base.ports import SystemClock
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.open import opened
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainProvider,
    Found,
    Genesis,
    Movement,
    NotFound,
    PlutusScript,
    ProtocolParameters,
    Read,
    SubmitKind,
    Unknown,
)
from payagent.core.address import encode_address
from payagent.core.aggregate import TxSeen
from payagent.core.money import LOVELACE
from payagent.devnet.channel_script import SCRIPT, SCRIPT_ADDRESS, SCRIPT_HASH
from payagent.devnet.server import DevnetThread
from payagent.settings.schema import ProviderSettings

KINDS: Mapping[str, Callable[[DevnetThread], ProviderSettings]] = {
    "blockfrost": lambda devnet: ProviderSettings(kind="blockfrost", base_url=devnet.chain_url),
    "koios": lambda devnet: ProviderSettings(kind="koios", base_url=devnet.devnet.provider_urls["koios"]),
    "ogmios-kupo": lambda devnet: ProviderSettings(
        kind="ogmios-kupo",
        base_url=devnet.devnet.provider_urls["ogmios"],
        index_url=devnet.devnet.provider_urls["kupo"],
    ),
}
"""What the config names to read a devnet with this kind."""

ADA = 1_000_000
UNKNOWN = "12" * 32
OTHER = payer("other").address


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread() as running:
        yield running


@pytest.fixture
def purse(devnet: DevnetThread) -> Purse:
    return Purse(payer("payer"), devnet)


@pytest.fixture(params=KINDS)
async def provider(request: pytest.FixtureRequest, devnet: DevnetThread) -> AsyncIterator[ChainProvider]:
    async with opened("one", KINDS[request.param](devnet), "devnet", lambda _: None) as provider:
        yield provider


def seen(devnet: DevnetThread, tx_id: str) -> TxSeen:
    """Where the devnet's chain has a transaction."""
    tx, block = devnet.devnet.chain.tx(tx_id) or (None, None)
    assert tx is not None
    assert block is not None
    return TxSeen(tx_id, block.hash, block.height, block.slot)


def newest(devnet: DevnetThread) -> BlockSeen:
    tip = devnet.devnet.chain.tip
    return BlockSeen(tip.height, tip.slot, tip.hash, devnet.devnet.node.time_s(tip.slot))


def with_datums(who: Payer) -> list[Mapping[int, object]]:
    """Two outputs of 5 ADA: with the hash of a datum, and with a datum."""
    plain: Mapping[int, object] = {0: who.address.raw, 1: 5 * ADA}
    return [{**plain, 2: [0, b"\xee" * 32]}, {**plain, 2: [1, cbor2.CBORTag(24, cbor2.dumps(42))]}]


async def test_the_chain_is_read_as_it_is(devnet: DevnetThread, purse: Purse, provider: ChainProvider) -> None:
    devnet.run(lambda running: running.node.make_blocks(3))
    shown = newest(devnet)
    assert await provider.tip() == Found(shown)
    assert await provider.block(shown.hash, shown.slot) == Found(shown)
    assert await provider.genesis() == Found(Genesis(42, devnet.devnet.node.system_start_s, 1))
    assert await provider.parameters() == Found(ProtocolParameters(44, 155_381, 4310, 16_384, 5000, 0))


async def test_a_payment_is_found_with_its_block_its_movement_and_what_it_spent(
    devnet: DevnetThread, purse: Purse, provider: ChainProvider
) -> None:
    purse.fund(100 * ADA, assets={TOKEN: 7})
    (coin,) = purse.coins()
    tx_id = purse.pay([(OTHER.raw, 3 * ADA, {})], blocks=2)
    own, spent = purse.who.address.text, f"{coin[0]}#{coin[1]}"
    assert await provider.tx(tx_id, spent) == Found(seen(devnet, tx_id))
    assert await provider.spender(spent) == Found(seen(devnet, tx_id))
    change = {LOVELACE: 96_800_000, TOKEN: 7}
    assert await provider.movement(tx_id, own) == Found(
        Movement(spent={spent: {LOVELACE: 100 * ADA, TOKEN: 7}}, made={f"{tx_id}#1": change})
    )
    assert await provider.movement(tx_id, OTHER.text) == Found(
        Movement(spent={}, made={f"{tx_id}#0": {LOVELACE: 3 * ADA}})
    )
    node = devnet.devnet.node
    listed = [
        AddressTx(one, seen(devnet, one).block_height, node.time_s(seen(devnet, one).block_slot))
        for one in (coin[0], tx_id)
    ]
    assert await provider.transactions(own, node.system_start_s) == Found(tuple(listed))
    assert await provider.transactions(own, node.system_start_s + 1_000_000) == Found(())
    utxos = await provider.utxos(own)
    assert isinstance(utxos, Found)
    assert [(utxo.ref, utxo.lovelace, utxo.assets) for utxo in utxos.value] == [
        (f"{tx_id}#1", 96_800_000, {TOKEN: 7})
    ]


async def test_what_the_chain_does_not_have_is_denied(
    devnet: DevnetThread, purse: Purse, provider: ChainProvider
) -> None:
    purse.fund(100 * ADA)
    (coin,) = purse.coins()
    own, spent = purse.who.address.text, f"{coin[0]}#{coin[1]}"
    assert isinstance(await provider.utxos(own), Found)
    pending, raw = purse.build([(OTHER.raw, 3 * ADA, {})])
    assert (await provider.submit(raw, pending)).kind is SubmitKind.ACCEPTED
    for tx_id in (UNKNOWN, pending):
        assert isinstance(await provider.tx(tx_id, spent), NotFound)
        assert not isinstance(await provider.movement(tx_id, own), Found)
    assert isinstance(await provider.block(UNKNOWN, 0), NotFound)
    assert isinstance(await provider.spender(spent), NotFound)
    assert await provider.utxos(OTHER.text) == Found(())
    assert await provider.transactions(OTHER.text, 0) == Found(())


async def test_a_rollback_is_followed(devnet: DevnetThread, purse: Purse, provider: ChainProvider) -> None:
    purse.fund(100 * ADA)
    (coin,) = purse.coins()
    spent = f"{coin[0]}#{coin[1]}"
    assert isinstance(await provider.utxos(purse.who.address.text), Found)
    tx_id = purse.pay([(OTHER.raw, 3 * ADA, {})])
    lost = newest(devnet)
    assert isinstance(await provider.tx(tx_id, spent), Found)
    purse.control("rollback", depth=1)
    purse.control("blocks", count=2)
    assert isinstance(await provider.tx(tx_id, spent), NotFound)
    assert isinstance(await provider.spender(spent), NotFound)
    assert isinstance(await provider.block(lost.hash, lost.slot), NotFound)
    utxos = await provider.utxos(purse.who.address.text)
    assert isinstance(utxos, Found)
    assert [utxo.ref for utxo in utxos.value] == [spent]


async def test_all_kinds_list_the_same_outputs(devnet: DevnetThread, purse: Purse) -> None:
    purse.fund(100 * ADA)
    own = purse.who.address
    held = {POLICY: 5, TOKEN: 2**64 - 1, POLICY + "ff" * 32: 2**63 - 1}
    coin = purse.coins()[0]
    devnet.run(lambda running: running.node.faucet(own.raw, 5 * ADA, held))
    _, raw = signed(purse.who, [coin], [*with_datums(purse.who), (own.raw, 89_800_000, {})])
    assert purse.submit(raw).status_code == 200
    purse.control("blocks", count=1)
    lists = []
    for settings in KINDS.values():
        async with opened("one", settings(devnet), "devnet", lambda _: None) as provider:
            read = await provider.utxos(own.text)
            assert isinstance(read, Found)
            lists.append({utxo.ref: replace(utxo, block_hash=None, block_height=None) for utxo in read.value})
    assert all(listed == lists[0] for listed in lists)
    rows = lists[0].values()
    assert sorted(utxo.has_datum for utxo in rows if not utxo.unreadable) == [False, True, True]
    (unreadable,) = [utxo for utxo in rows if utxo.unreadable]
    assert unreadable.assets == {POLICY: 5, POLICY + "ff" * 32: 2**63 - 1}


async def test_only_blockfrost_shows_scripts_and_the_datums_at_their_address(
    devnet: DevnetThread, purse: Purse, provider: ChainProvider
) -> None:
    purse.fund(100 * ADA)
    datum = cbor2.dumps([1, 2])
    paid: Mapping[int, object] = {0: SCRIPT_ADDRESS, 1: 5 * ADA, 2: [1, cbor2.CBORTag(24, datum)]}
    _, raw = signed(purse.who, [purse.coins()[0]], [paid, (purse.who.address.raw, 94_800_000, {})])
    assert purse.submit(raw).status_code == 200
    purse.control("blocks", count=1)
    listed = await provider.script_utxos(encode_address(SCRIPT_ADDRESS).text)
    script = await provider.script(SCRIPT_HASH.hex())
    if not isinstance(provider, Blockfrost):
        assert listed == script == Unknown("this kind of provider shows no scripts")
        return
    assert isinstance(listed, Found)
    assert [(utxo.lovelace, utxo.datum) for utxo in listed.value] == [(5 * ADA, datum.hex())]
    assert script == Found(PlutusScript(SCRIPT, devnet.devnet.chain.params.cost_model))
    assert isinstance(await provider.script("ab" * 28), NotFound)


@pytest.mark.parametrize("fault", ["server", "rate", "quota", "html", "truncated", "oversized", "lost_reply"])
async def test_a_broken_answer_is_unknown(
    devnet: DevnetThread, purse: Purse, provider: ChainProvider, fault: str
) -> None:
    purse.fund(100 * ADA)
    (coin,) = purse.coins()
    own = purse.who.address.text
    purse.control("faults", on="reads", kind=fault)
    reads: list[Awaitable[Read[object]]] = [
        provider.tip(),
        provider.genesis(),
        provider.parameters(),
        provider.utxos(own),
        provider.transactions(own, 0),
        provider.movement(coin[0], own),
        provider.tx(coin[0]),
        provider.block(newest(devnet).hash, newest(devnet).slot),
        provider.spender(f"{coin[0]}#{coin[1]}"),
    ]
    for read in reads:
        assert isinstance(await read, Unknown)


SUBMISSIONS = {
    "lost_reply": SubmitKind.AMBIGUOUS,
    "truncated": SubmitKind.AMBIGUOUS,
    "server": SubmitKind.OUTAGE,
    "html": SubmitKind.OUTAGE,
    "lying_ok": SubmitKind.LIAR,
}


@pytest.mark.parametrize("fault", SUBMISSIONS)
async def test_a_submission_without_a_plain_answer_is_never_failed(
    purse: Purse, provider: ChainProvider, fault: str
) -> None:
    purse.fund(100 * ADA)
    tx_id, raw = purse.build([(OTHER.raw, 3 * ADA, {})])
    purse.control("faults", on="submit", kind=fault, count=1)
    answer = await provider.submit(raw, tx_id)
    may_be = {SUBMISSIONS[fault]} | ({SubmitKind.AMBIGUOUS} if fault == "server" else set())  # Ogmios' 500
    assert answer.kind in may_be, answer
    assert "failed" not in answer.detail


async def test_a_submission_is_accepted_once_and_a_conflicting_one_is_refused(
    purse: Purse, provider: ChainProvider
) -> None:
    purse.fund(100 * ADA)
    tx_id, raw = purse.build([(OTHER.raw, 3 * ADA, {})])
    conflicting_id, conflicting = purse.build([(OTHER.raw, 4 * ADA, {})])
    expired_id, expired = purse.build([(OTHER.raw, 5 * ADA, {})], ttl=0)
    assert (await provider.submit(expired, expired_id)).kind is SubmitKind.EXPIRED
    assert (await provider.submit(b"\xff", UNKNOWN)).kind is SubmitKind.NEVER
    assert (await provider.submit(raw, tx_id)).kind is SubmitKind.ACCEPTED
    purse.control("blocks", count=1)
    for again, again_id in ((raw, tx_id), (conflicting, conflicting_id)):
        assert (await provider.submit(again, again_id)).kind is SubmitKind.SPENT_ALL
    assert await provider.findings(purse.who.address.text) == ()


async def test_the_providers_clock_is_compared_with_ours(provider: ChainProvider) -> None:
    clock = SystemClock()
    for ahead_s in (0, 100):
        off = await provider.clock_off_s(lambda ahead_s=ahead_s: clock.now_ms() + ahead_s * 1000)  # type: ignore[misc]
        assert isinstance(off, Found)
        assert ahead_s - 2 <= off.value <= ahead_s + 60  # the test machine may be slow


async def test_closing_ends_the_calls_in_progress_and_refuses_more(
    devnet: DevnetThread, purse: Purse, provider: ChainProvider
) -> None:
    purse.control("faults", on="reads", kind="hang")
    waiting = asyncio.create_task(provider.genesis())
    while not devnet.devnet.node.switches.triggered["reads:hang"]:
        await asyncio.sleep(0.01)
    await provider.aclose()
    assert isinstance(await waiting, Unknown)
    assert isinstance(await provider.genesis(), Unknown)
    assert (await provider.submit(b"\xff", UNKNOWN)).kind is SubmitKind.OUTAGE
