"""The provider of kind `ogmios-kupo` over the devnet's Ogmios and Kupo: reads, denials, forks, submissions."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from faulty_provider import FaultyProvider, Reply, Seen
from kit.devnet import POLICY, TOKEN, Purse, ada, payer, signed
from websockets.asyncio.server import ServerConnection, serve
from websockets.utils import accept_key

from payagent.chain.adapter import Timeouts
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.ogmios_kupo import KIND, OgmiosKupo
from payagent.chain.ogmios_kupo_parse import classify, height_below, parse_genesis, parse_matches
from payagent.chain.open import chosen, opened
from payagent.chain.provider import AddressTx, BlockSeen, Found, Genesis, NotFound, Read, SubmitKind, Unknown, Why
from payagent.chain.provider_client import ProviderClient
from payagent.chain.submit_answers import RawAnswer, TransportError
from payagent.core.aggregate import TxSeen
from payagent.core.problems import Refused
from payagent.devnet.ledger import DevnetBlock
from payagent.devnet.ogmios_kupo_api import OgmiosKupoApi
from payagent.devnet.server import DevnetThread
from payagent.doctor.chain import usable_tip
from payagent.settings.schema import ProviderSettings

OTHER = payer("other").address.raw
HASH = "ab" * 32


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread() as running:
        yield running


@pytest.fixture
def purse(devnet: DevnetThread) -> Purse:
    return Purse(payer("wallet"), devnet)


@pytest.fixture
def server(devnet: DevnetThread) -> OgmiosKupoApi:
    return devnet.devnet.ogmios_kupo


@pytest.fixture
async def provider(devnet: DevnetThread) -> AsyncIterator[OgmiosKupo]:
    urls = devnet.devnet.provider_urls
    settings = ProviderSettings(kind="ogmios-kupo", base_url=urls["ogmios"], index_url=urls["kupo"])
    async with opened("own", settings, "devnet") as adapter:
        assert isinstance(adapter, OgmiosKupo)
        yield adapter


@pytest.fixture
def scripted() -> Iterator[FaultyProvider]:
    answers = FaultyProvider()
    yield answers
    answers.close()


@pytest.fixture
async def scripted_provider(scripted: FaultyProvider) -> AsyncIterator[OgmiosKupo]:
    adapter = OgmiosKupo("own", scripted.base_url, scripted.base_url, "preprod", Timeouts(call_s=5, submit_s=0.5))
    yield adapter
    await adapter.aclose()


def tip(devnet: DevnetThread) -> DevnetBlock:
    return devnet.run(lambda running: running.chain.tip)


def why(read: Read[Any]) -> Why:
    assert isinstance(read, Unknown), read
    return read.why


async def test_each_read_equals_that_of_blockfrost(
    devnet: DevnetThread, purse: Purse, provider: OgmiosKupo
) -> None:
    address = purse.who.address
    purse.fund(10_000_000, 20_000_000, assets={TOKEN: 5, POLICY: 7})
    devnet.run(lambda running: running.node.faucet(address.raw, 5_000_000, {TOKEN: 2**64 - 1}))
    devnet.run(lambda running: running.node.faucet(address.raw, 5_000_000, {}, bytes(32)))
    coin = purse.coins()[0]
    spent = f"{coin[0]}#{coin[1]}"
    tx_id = purse.pay([ada(OTHER, 2_000_000)], blocks=3)
    other = Blockfrost("other", devnet.chain_url, None)
    newest = tip(devnet)
    asked: list[Callable[[Any], Any]] = [
        lambda one: one.tip(),
        lambda one: one.genesis(),
        lambda one: one.parameters(),
        lambda one: one.utxos(address.text),
        lambda one: one.transactions(address.text, 0),
        lambda one: one.transactions(address.text, now_ms() // 1000 + 60),
        lambda one: one.movement(tx_id, address.text),
        lambda one: one.movement(coin[0], address.text),
        lambda one: one.tx(tx_id),
        lambda one: one.spender(spent),
        lambda one: one.block(newest.hash, newest.slot),
        lambda one: one.block(newest.prev_hash, newest.slot),
        lambda one: one.utxos(payer("nobody").address.text),
        lambda one: one.transactions(payer("nobody").address.text, 0),
    ]
    for ask in asked:
        read = await ask(provider)
        assert isinstance(read, Found)
        assert read == await ask(other)
    utxos = await provider.utxos(address.text)
    assert isinstance(utxos, Found)
    assert [utxo.unreadable for utxo in utxos.value].count(True) == 1
    assert [utxo.has_datum for utxo in utxos.value].count(True) == 1
    assert POLICY in utxos.value[0].assets
    assert await provider.findings(address.text) == ()
    off_s = await provider.clock_off_s(now_ms)
    assert isinstance(off_s, Found)
    assert abs(off_s.value) <= 2
    await other.aclose()


async def test_a_denial_says_how_far_its_machine_was(
    devnet: DevnetThread, purse: Purse, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    ((made_by, index),) = purse.coins()
    ref = f"{made_by}#{index}"
    assert await provider.spender(ref) == NotFound(1)
    assert why(await provider.tx(HASH, ref)) is Why.UNCLEAR, "whether Kupo watches the address is not known yet"
    assert isinstance(await provider.utxos(purse.who.address.text), Found)
    assert await provider.tx(HASH, ref) == NotFound(1)
    assert await provider.block(HASH, 0) == NotFound(1)
    assert why(await provider.tx(HASH)) is Why.UNCLEAR
    assert await provider.tx(HASH, f"{HASH}#0") == NotFound(1), "a deposit that is on no chain"
    tx_id = purse.pay([ada(OTHER, 2_000_000)])
    block = tip(devnet)
    seen = Found(TxSeen(tx_id, block.hash, 2, block.slot))
    assert await provider.spender(ref) == seen
    assert await provider.tx(tx_id, ref) == seen
    assert await provider.tx(HASH, ref) == NotFound(2)
    purse.control("rollback", depth=1)
    assert await provider.spender(ref) == NotFound(1)
    assert await provider.tx(tx_id, ref) == NotFound(1)
    assert await provider.block(block.hash, block.slot) == NotFound(1)
    assert why(await provider.movement(tx_id, purse.who.address.text)) is Why.UNCLEAR


async def test_a_send_of_everything_is_found_by_its_input(purse: Purse, provider: OgmiosKupo) -> None:
    """Kupo watches the wallet alone, and no output of this transaction is the wallet's."""
    purse.fund(10_000_000)
    purse.devnet.devnet.ogmios_kupo.watched = {purse.who.address.text}
    ((made_by, index),) = purse.coins()
    tx_id, raw = signed(purse.who, [(made_by, index)], [ada(OTHER, 9_800_000)])
    assert (await provider.submit(raw, tx_id)).kind is SubmitKind.ACCEPTED
    purse.control("blocks", count=1)
    block, ref = tip(purse.devnet), f"{made_by}#{index}"
    assert await provider.tx(tx_id, ref) == Found(TxSeen(tx_id, block.hash, 2, block.slot))
    moved = await provider.movement(tx_id, purse.who.address.text)
    assert isinstance(moved, Found)
    assert (moved.value.spent, moved.value.made) == ({ref: {"lovelace": 10_000_000}}, {})
    listed = await provider.transactions(purse.who.address.text, 0)
    assert isinstance(listed, Found)
    assert [tx.tx_id for tx in listed.value] == [made_by, tx_id]


async def test_an_address_that_kupo_does_not_watch_is_no_empty_one(
    purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    address, server.watched = purse.who.address.text, set()
    ref = "#".join(map(str, purse.coins()[0]))
    for read in (
        provider.utxos(address),
        provider.transactions(address, 0),
        provider.movement(HASH, address),
        provider.tx(HASH, ref),
    ):
        assert why(await read) is Why.UNCLEAR
    (finding,) = await provider.findings(address)
    assert finding.startswith(f"Kupo does not watch the address: start it with --match {address}")


async def test_a_pruned_index_says_of_no_output_that_it_is_unspent_and_is_found(
    purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    ((made_by, index),) = purse.coins()
    purse.pay([ada(OTHER, 2_000_000)])
    server.is_pruned = True
    assert await provider.findings(purse.who.address.text) == ()  # nothing shows it until it is asked
    assert why(await provider.spender(f"{made_by}#{index}")) is Why.UNCLEAR
    (finding,) = await provider.findings(purse.who.address.text)
    assert finding.endswith("without --prune-utxo")


async def test_an_index_that_began_too_late_is_found(
    purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    server.blocks_behind = 1
    (finding,) = await provider.findings(purse.who.address.text)
    assert finding.startswith("Kupo lacks outputs: start it with --match")


async def test_a_migrated_index_is_believed_in_nothing_spent_and_is_found(
    purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    ((made_by, index),) = purse.coins()
    tx_id = purse.pay([ada(OTHER, 2_000_000)])
    address, server.is_migrated = purse.who.address.text, True
    for read in (
        provider.spender(f"{made_by}#{index}"),
        provider.transactions(address, 0),
        provider.movement(tx_id, address),
        provider.tx(HASH, f"{made_by}#{index}"),
    ):
        assert why(await read) is Why.UNCLEAR
    assert isinstance(await provider.utxos(address), Found)
    (finding,) = await provider.findings(address)
    assert "its database was made before Kupo 2.10" in finding


async def test_a_list_across_a_rollback_is_read_again(
    devnet: DevnetThread, purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    purse.fund(20_000_000)
    address, node = purse.who.address.text, server.node
    server.before_matches.append(lambda: (node.chain.rollback(1), node.make_blocks(2)))
    utxos = await provider.utxos(address)
    assert isinstance(utxos, Found)
    assert [utxo.lovelace for utxo in utxos.value] == [10_000_000]
    server.before_matches += [lambda: node.make_blocks(1)] * 4
    assert why(await provider.utxos(address)) is Why.UNCLEAR
    assert isinstance(await provider.utxos(address), Found)


async def test_two_forks_are_not_yet_one_chain(
    devnet: DevnetThread, purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.fund(10_000_000)
    ((made_by, index),) = purse.coins()
    server.forked_from = 1
    assert why(await provider.tip()) is Why.NOT_YET
    assert why(await provider.tx(made_by)) is Why.NOT_YET
    assert why(await provider.transactions(purse.who.address.text, 0)) is Why.NOT_YET
    assert why(await provider.spender(f"{made_by}#{index}")) is Why.NOT_YET


async def test_the_tip_is_the_indexs_with_its_height_from_the_node(
    devnet: DevnetThread, purse: Purse, server: OgmiosKupoApi, provider: OgmiosKupo
) -> None:
    purse.control("blocks", count=5)
    server.blocks_behind, server.slots_ahead = 3, 1000
    block = devnet.run(lambda running: running.chain.blocks[2])
    seen = BlockSeen(2, block.slot, block.hash, server.node.time_s(block.slot))
    assert await provider.tip() == Found(seen)
    purse.fund(10_000_000)
    assert await provider.utxos(purse.who.address.text) == Found(())
    server.blocks_behind = 0
    assert isinstance(await provider.tip(), Found)


async def test_each_further_call_takes_its_turn_and_known_heights_stay(purse: Purse, provider: OgmiosKupo) -> None:
    for lovelace in (5_000_000, 6_000_000, 7_000_000):
        purse.fund(lovelace)
    turns = [True, False]

    async def turn() -> bool:
        return turns.pop(0)

    provider.pace(turn)
    address = purse.who.address.text
    assert await provider.transactions(address, 0) == Unknown("Ogmios: out of calls")
    turns += [True]
    listed = await provider.transactions(address, 0)
    assert isinstance(listed, Found)
    assert [tx.block_height for tx in listed.value] == [1, 2, 3]
    assert all(isinstance(tx, AddressTx) for tx in listed.value)
    assert turns == []


READ_FAULTS = ("lost_reply", "rate", "quota", "server", "html", "truncated", "oversized", "not_found")


@pytest.mark.parametrize("kind", READ_FAULTS)
async def test_a_fault_of_either_server_is_unknown(purse: Purse, provider: OgmiosKupo, kind: str) -> None:
    purse.fund(10_000_000)
    ((made_by, index),) = purse.coins()
    block, address = tip(purse.devnet), purse.who.address.text
    assert isinstance(await provider.tip(), Found)
    for path in ("/matches", "/patterns", "/checkpoints"):
        purse.control("faults", on=path, kind=kind)
        assert isinstance(await provider.utxos(address), Unknown)
        purse.control("faults", clear=True)
    purse.control("faults", on="reads", kind=kind)
    for read in (
        provider.tip(),
        provider.genesis(),
        provider.parameters(),
        provider.transactions(address, 0),
        provider.movement(made_by, address),
        provider.tx(made_by),
        provider.block(block.hash, block.slot),
        provider.spender(f"{made_by}#{index}"),
    ):
        assert isinstance(await read, Unknown)
    assert await provider.findings(address) != ()


async def test_a_closed_provider_answers_nothing(purse: Purse, provider: OgmiosKupo) -> None:
    tx_id, raw = signed(purse.who, [(HASH, 0)], [ada(OTHER, 2_000_000)])
    purse.control("faults", on="reads", kind="hang")
    tips = [asyncio.create_task(provider.tip()) for _ in range(3)]
    while not purse.devnet.run(lambda running: running.node.switches.triggered["reads:hang"]) >= 3:
        await asyncio.sleep(0)
    await provider.aclose()
    for read in await asyncio.gather(*tips):
        assert why(read) is Why.OUTAGE
    assert why(await provider.tip()) is Why.OUTAGE
    assert (await provider.submit(raw, tx_id)).kind is SubmitKind.OUTAGE


SUBMIT_FAULTS = {
    "lost_reply": SubmitKind.AMBIGUOUS,
    "late_accept": SubmitKind.AMBIGUOUS,
    "truncated": SubmitKind.AMBIGUOUS,
    "server": SubmitKind.AMBIGUOUS,
    "lying_ok": SubmitKind.LIAR,
    "drop": SubmitKind.ACCEPTED,
    "rate": SubmitKind.RATE,
    "full": SubmitKind.FULL,
}


@pytest.mark.parametrize(("kind", "means"), SUBMIT_FAULTS.items())
async def test_a_fault_of_a_submission_is_never_a_failure(
    purse: Purse, provider: OgmiosKupo, kind: str, means: SubmitKind
) -> None:
    purse.fund(10_000_000)
    tx_id, raw = purse.build([ada(OTHER, 2_000_000)])
    purse.control("faults", on="submit", kind=kind)
    assert (await provider.submit(raw, tx_id)).kind is means


async def test_what_the_ledger_refuses_is_classified(purse: Purse, provider: OgmiosKupo) -> None:
    purse.fund(10_000_000)
    (coin,) = purse.coins()
    change = ada(purse.who.address.raw, 9_800_000)
    refused = {
        SubmitKind.EXPIRED: signed(purse.who, [coin], [change], ttl=0),
        SubmitKind.NEVER: signed(purse.who, [coin], [ada(purse.who.address.raw, 10_000_000)], fee=0),
        SubmitKind.SPENT_ALL: signed(purse.who, [(HASH, 0)], [change]),
    }
    for kind, (tx_id, raw) in refused.items():
        assert (await provider.submit(raw, tx_id)).kind is kind
    tx_id, raw = signed(payer("thief"), [coin], [change])
    assert (await provider.submit(raw, tx_id)).kind is SubmitKind.NEVER


CODES = {
    3100: SubmitKind.NEVER,
    3101: SubmitKind.NEVER,
    3117: SubmitKind.SPENT_ALL,
    3118: SubmitKind.EXPIRED,
    3119: SubmitKind.NEVER,
    3120: SubmitKind.NEVER,
    3121: SubmitKind.NEVER,
    3122: SubmitKind.NEVER,
    3123: SubmitKind.SPENT_SOME,
    3124: SubmitKind.NEVER,
    3125: SubmitKind.NEVER,
    -32602: SubmitKind.NEVER,
    3005: SubmitKind.OUTAGE,
    3997: SubmitKind.OUTAGE,
    -32600: SubmitKind.CLIENT,
    -32601: SubmitKind.CLIENT,
    -32700: SubmitKind.CLIENT,
}
CODES |= {code: SubmitKind.CLIENT for code in range(3100, 3180) if code not in CODES}


@pytest.mark.parametrize("status", [400, 200])
def test_every_code_of_ogmios_has_its_class(status: int) -> None:
    """In version 6.14 and 7.0. The message names no rule."""
    for code, kind in CODES.items():
        error = {"code": code, "message": "The transaction is not valid.", "data": {"any": "thing"}}
        body = json.dumps({"jsonrpc": "2.0", "method": "submitTransaction", "error": error, "id": None}).encode()
        assert classify(RawAnswer(status, body), HASH).kind is kind, code


def submitted(**members: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": "submitTransaction", **members}).encode()


ANSWERS = {
    "ours": (RawAnswer(200, submitted(result={"transaction": {"id": HASH}})), SubmitKind.ACCEPTED),
    "another": (RawAnswer(200, submitted(result={"transaction": {"id": "cd" * 32}})), SubmitKind.LIAR),
    "nothing": (RawAnswer(200, submitted(result={})), SubmitKind.LIAR),
    "cut": (RawAnswer(200, submitted(result={"transaction": {"id": HASH}})[:-9]), SubmitKind.AMBIGUOUS),
    "broke off": (RawAnswer(200, b"", error=TransportError.TRUNCATED), SubmitKind.AMBIGUOUS),
    "all spent": (
        RawAnswer(400, submitted(error={"code": 3997, "data": {"error": "All inputs are spent."}})),
        SubmitKind.SPENT_ALL,
    ),
    "full": (RawAnswer(400, submitted(error={"code": 3997, "data": "MempoolFull"})), SubmitKind.FULL),
    "some spent": (
        RawAnswer(400, submitted(error={"code": 3123, "data": {"valueConsumed": {"ada": {"lovelace": 5}}}})),
        SubmitKind.SPENT_SOME,
    ),
    "500": (RawAnswer(500, b"Something went wrong"), SubmitKind.AMBIGUOUS),
    "502": (RawAnswer(502, b"<html>"), SubmitKind.OUTAGE),
    "no answer": (RawAnswer(error=TransportError.TIMEOUT), SubmitKind.AMBIGUOUS),
    "not sent": (RawAnswer(error=TransportError.CONNECT, body_sent=False), SubmitKind.OUTAGE),
}


@pytest.mark.parametrize(("answer", "kind"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_answer_to_a_submission_is_classified(answer: RawAnswer, kind: SubmitKind) -> None:
    assert classify(answer, HASH).kind is kind


async def test_an_ogmios_that_takes_no_transactions_is_found(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo
) -> None:
    scripted.routes["POST /"] = Reply({"jsonrpc": "2.0", "error": {"code": -32601}}, 400)
    assert "Ogmios takes no transactions" in await scripted_provider.findings(payer("wallet").address.text)


async def test_before_a_wallet_is_known_its_outputs_are_no_finding(provider: OgmiosKupo) -> None:
    assert await provider.findings("") == ()


async def test_a_row_of_another_transaction_shows_nothing(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo
) -> None:
    elsewhere = {"slot_no": 6, "header_hash": "cd" * 32}
    for rows in ([row(transaction_id="cd" * 32)], [row(), row(output_index=1, created_at=elsewhere)]):
        scripted.routes[f"GET /matches/*@{HASH}"] = Reply(rows)
        assert why(await scripted_provider.tx(HASH)) is Why.UNCLEAR
        assert len(scripted.seen) == 1
        scripted.seen.clear()


async def test_a_transaction_in_a_block_that_the_node_dropped_is_not_yet_known(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo
) -> None:
    """Kupo follows the node a moment later. The height of the block was read before that."""
    scripted.routes[f"GET /matches/*@{HASH}"] = Reply([row()])
    located = {"result": {"intersection": INTERSECTION, "tip": TIP}}
    scripted.routes["POST /"] = [Reply(located), Reply({"error": {"code": 1000, "data": {"tip": TIP}}}, 400)]
    assert await scripted_provider.tx(HASH) == Found(TxSeen(HASH, HASH, 7, 5))
    assert why(await scripted_provider.tx(HASH)) is Why.NOT_YET


async def test_a_server_of_another_network_is_refused(
    devnet: DevnetThread, purse: Purse, server: OgmiosKupoApi
) -> None:
    purse.control("blocks", count=1)
    server.network_magic = 2
    urls = devnet.devnet.provider_urls
    settings = ProviderSettings(kind="ogmios-kupo", base_url=urls["ogmios"], index_url=urls["kupo"])
    async with opened("own", settings, "preprod") as provider:
        with pytest.raises(Refused, match="magic 2, not 1"):
            await usable_tip(provider, "preprod", now_ms)


def row(**members: Any) -> dict[str, Any]:
    """A row of Kupo."""
    point = {"slot_no": 5, "header_hash": HASH}
    return {
        "transaction_index": 0,
        "transaction_id": HASH,
        "output_index": 0,
        "address": "addr_test1",
        "value": {"coins": 1_000_000, "assets": {}},
        "datum_hash": None,
        "script_hash": None,
        "created_at": point,
        "spent_at": {**point, "transaction_id": HASH, "input_index": 0, "redeemer": None},
        **members,
    }


def test_a_script_is_read_and_the_assets_may_be_left_out() -> None:
    ((utxo, _, _),) = parse_matches([row(script_hash="ab" * 28, value={"coins": 1})])
    assert (utxo.has_script, utxo.lovelace, utxo.assets) == (True, 1, {})


ODD_ROWS = {
    "no list": {},
    "no object": [5],
    "listed twice": [row(), row()],
    "no coins": [row(value={"assets": {}})],
    "coins as text": [row(value={"coins": "1000000"})],
    "negative coins": [row(value={"coins": -1})],
    "true coins": [row(value={"coins": True})],
    "more than the supply": [row(value={"coins": 45_000_000_000_000_001})],
    "assets as text": [row(value={"coins": 1, "assets": "none"})],
    "no asset": [row(value={"coins": 1, "assets": {"ada": 1}})],
    "an empty name with a dot": [row(value={"coins": 1, "assets": {f"{POLICY}.": 1}})],
    "units above the ledger's": [row(value={"coins": 1, "assets": {POLICY: 2**64}})],
    "upper case": [row(transaction_id=HASH.upper())],
    "a negative index": [row(output_index=-1)],
    "no address": [row(address=None)],
    "spent by null": [row(spent_at={"slot_no": 5, "header_hash": HASH, "transaction_id": None})],
    "spent at a slot alone": [row(spent_at={"slot_no": 5, "transaction_id": HASH})],
    "spent by text": [row(spent_at=HASH)],
    **{f"no {name}": [{key: value for key, value in row().items() if key != name}] for name in list(row())[1:]},
}


@pytest.mark.parametrize("rows", ODD_ROWS.values(), ids=ODD_ROWS.keys())
async def test_an_odd_row_is_unknown(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo, rows: object
) -> None:
    scripted.routes[f"GET /matches/*@{HASH}"] = Reply(rows)
    assert why(await scripted_provider.tx(HASH)) is Why.UNCLEAR


INTERSECTION = {"slot": 5, "id": HASH}
TIP = {**INTERSECTION, "height": 7}
ODD_INTERSECTIONS = {
    "another block": {"result": {"intersection": {"slot": 6, "id": HASH}, "tip": TIP}},
    "no tip": {"result": {"intersection": INTERSECTION}},
    "the origin": {"result": {"intersection": "origin", "tip": "origin"}},
    "no height": {"result": {"intersection": INTERSECTION, "tip": INTERSECTION}},
    "a denial without a tip": {"error": {"code": 1000, "data": {"tip": "origin"}}},
    "another error": {"error": {"code": 1001, "data": {"tip": TIP}}},
    "nothing": {},
    "a list": [],
}


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("body", ODD_INTERSECTIONS.values(), ids=ODD_INTERSECTIONS.keys())
async def test_an_odd_answer_of_ogmios_is_unknown(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo, body: object, status: int
) -> None:
    scripted.routes["POST /"] = Reply(body, status)
    assert why(await scripted_provider.block(HASH, 5)) is Why.UNCLEAR
    scripted.routes["POST /"] = Reply({"error": {"code": 1000, "data": {"tip": TIP}}}, 400)
    assert await scripted_provider.block(HASH, 5) == NotFound(7)


async def test_parameters_across_an_epoch_are_unknown(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo
) -> None:
    epochs = iter((8, 9))
    parameters = {
        "minFeeCoefficient": 44,
        "minFeeConstant": {"ada": {"lovelace": 155_381}},
        "minUtxoDepositCoefficient": 4310,
        "maxTransactionSize": {"bytes": 16_384},
        "maxValueSize": {"bytes": 5000},
    }

    def answer(seen: Seen) -> Reply:
        is_epoch = json.loads(seen.body)["method"] == "queryLedgerState/epoch"
        return Reply({"result": next(epochs) if is_epoch else parameters})

    scripted.routes["POST /"] = answer
    assert why(await scripted_provider.parameters()) is Why.UNCLEAR
    epochs = iter((9, 9))
    assert isinstance(await scripted_provider.parameters(), Found)
    del parameters["maxValueSize"]
    epochs = iter((9, 9))
    assert why(await scripted_provider.parameters()) is Why.UNCLEAR


def test_a_genesis_of_part_seconds_is_not_understood() -> None:
    found = {"networkMagic": 1, "startTime": "2022-06-01T00:00:00Z", "slotLength": {"milliseconds": 1000}}
    assert parse_genesis({"result": found}) == Genesis(1, 1_654_041_600, 1)
    with pytest.raises(ValueError, match="whole seconds"):
        parse_genesis({"result": {**found, "slotLength": {"milliseconds": 100}}})
    with pytest.raises(ValueError, match=r"^startTime is no time$"):  # and nothing of what the server sent
        parse_genesis({"result": {**found, "startTime": "send your words to evil.example"}})


def next_block(**members: object) -> bytes:
    block = {"type": "praos", "id": "cd" * 32, "ancestor": HASH, "height": 8, "slot": 9, "transactions": []}
    return json.dumps({"result": {"tip": TIP, "direction": "forward", "block": {**block, **members}}}).encode()


def test_a_height_is_read_above_any_transactions() -> None:
    assert height_below(next_block(), HASH) == 7
    deep = next_block().replace(b'"transactions": []', b'"transactions": ' + b"[" * 100_000)
    assert height_below(deep, HASH) == 7
    faked = json.dumps({"ancestor": "ef" * 32, "height": 99}).encode()
    assert height_below(next_block().replace(b'"transactions": []', b'"transactions": ' + faked), HASH) == 7
    backward = json.dumps({"result": {"direction": "backward", "point": INTERSECTION, "tip": TIP}}).encode()
    for odd in (b"", backward, next_block(ancestor="cd" * 32), next_block(height=None), next_block(height=-8)):
        with pytest.raises(ValueError, match="not the next block"):
            height_below(odd, HASH)


async def test_a_conversation_is_bounded_and_never_raises() -> None:
    asked = asyncio.Event()

    async def answer(socket: ServerConnection) -> None:
        async for message in socket:
            if message == "hang":
                asked.set()
            else:
                await socket.send("x" * 2000 if message == "long" else f"to {message!r}")

    client = ProviderClient(5)
    async with serve(answer, "127.0.0.1", 0) as running:
        url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/"
        assert await client.converse(url, [b"one", b"two"], 60, 1000) == RawAnswer(200, b"to 'two'")
        assert (await client.converse(url, [b"long"], 60, 1000)).error is TransportError.RESET
        assert (await client.converse(url, [b"hang"], 0.3, 1000)).error is TransportError.TIMEOUT
        asked.clear()
        open_one = asyncio.create_task(client.converse(url, [b"hang"], 600, 1000))
        await asked.wait()
        await client.aclose()
        assert (await open_one).error is TransportError.TIMEOUT
    client = ProviderClient(5)
    assert (await client.converse(url, [b"one"], 60, 1000)).error is TransportError.RESET
    await client.aclose()


class Flood:
    """A WebSocket server that sends pings without end and reads nothing, or answers no handshake as it should."""

    def __init__(self, handshake: str) -> None:
        self.handshake = handshake
        self.is_gone = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", head, re.IGNORECASE)
        writer.write(self.handshake.format(accept_key(key.decode())).encode())
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        try:
            while "101" in self.handshake:
                writer.write(b"\x89\x7d" + b"p" * 125)
                await writer.drain()
        except OSError:
            self.is_gone.set()
        writer.close()


async def test_a_server_that_only_sends_pings_is_left() -> None:
    flood = Flood(
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n"
    )
    client = ProviderClient(5)
    async with await asyncio.start_server(flood, "127.0.0.1", 0) as running:
        url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/"
        assert (await client.converse(url, [b"one"], 600, 100_000)).error is TransportError.RESET
        await flood.is_gone.wait()
        await client.aclose()


async def test_a_handshake_with_two_locations_is_an_answer_like_any_broken_one() -> None:
    flood = Flood("HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n")
    client = ProviderClient(5)
    async with await asyncio.start_server(flood, "127.0.0.1", 0) as running:
        url = f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/"
        assert (await client.converse(url, [b"one"], 600, 1000)).error is TransportError.RESET
        await client.aclose()


async def test_a_redirect_to_another_server_is_not_followed(scripted: FaultyProvider) -> None:
    other = FaultyProvider()
    scripted.routes["GET /"] = Reply(b"", 307, headers={"Location": other.origin})
    client = ProviderClient(5)
    answer = await client.converse(f"{scripted.base_url}/", [b"one"], 60, 1000)
    assert (answer.error, other.seen) == (TransportError.RESET, [])
    await client.aclose()
    other.close()


@pytest.mark.parametrize("text", ["", "ab", HASH.upper(), HASH + "\n", "../genesis", HASH + "?x=1"])
async def test_a_value_that_is_not_a_hash_is_never_sent(
    scripted: FaultyProvider, scripted_provider: OgmiosKupo, text: str
) -> None:
    asked: tuple[Callable[[], Any], ...] = (
        lambda: scripted_provider.tx(text),
        lambda: scripted_provider.block(text, 5),
        lambda: scripted_provider.spender(f"{text}#0"),
        lambda: scripted_provider.movement(text, "addr_test1"),
        lambda: scripted_provider.utxos("addr/../../genesis"),
    )
    for ask in asked:
        with pytest.raises(ValueError, match="form"):
            await ask()
    assert scripted.seen == []


def test_each_network_has_its_urls() -> None:
    made = [KIND.make("own", chosen("ogmios-kupo", network), network, None) for network in KIND.urls]
    assert {one._kupo for one in made} == {"http://127.0.0.1:1442", "http://127.0.0.1:8490/kupo"}  # type: ignore[attr-defined]
    assert not any(map(KIND.needs_secret, KIND.urls.values()))
