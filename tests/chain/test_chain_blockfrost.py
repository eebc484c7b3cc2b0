"""The Blockfrost adapter against a real HTTP server on loopback: answers, faults, limits and secrets."""

import asyncio
import datetime
import hashlib
import json
import logging
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import blockfrost.api as blockfrost_api
import pytest
import requests
from blockfrost import ApiError, BlockFrostApi
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from faulty_provider import NOT_FOUND, FaultyProvider, Reply, Seen
from kit.blockfrost_rows import (
    ADDRESS,
    BLOCK,
    GENESIS,
    LATEST,
    PARAMETERS,
    TRANSACTION,
    TX,
    made_row,
    spent_row,
    tx_row,
    utxo_row,
)
from kit.effort import pick
from kit.http import compressed

from payagent.agent.chain_sync.follow_up import SENT_AT_ONCE_MAX
from payagent.chain.adapter import Timeouts
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
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
from payagent.core.aggregate import TxSeen
from payagent.core.problems import Refused

T = TypeVar("T")

SECRET = "preprodCANARYCANARYCANARYCANARYCANARY01"
TOKEN = "0f" * 28 + "abcd"


@pytest.fixture
def provider() -> Iterator[FaultyProvider]:
    server = FaultyProvider()
    server.routes["GET /blocks/latest"] = Reply(LATEST)
    yield server
    server.close()


@pytest.fixture
async def blockfrost(provider: FaultyProvider) -> AsyncIterator[Blockfrost]:
    adapter = Blockfrost("main", provider.base_url, SECRET)
    yield adapter
    await adapter.aclose()


async def measured(asked: Awaitable[T]) -> tuple[T, int]:
    """The answer, and the peak memory in bytes."""
    tracemalloc.start()
    try:
        answer = await asked
        return answer, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
async def hasty(provider: FaultyProvider) -> AsyncIterator[Blockfrost]:
    adapter = Blockfrost("main", provider.base_url, SECRET, Timeouts(0.3, 0.5, 2.0, 0.5))
    yield adapter
    await adapter.aclose()


async def test_every_field_of_a_blockfrost_answer_is_read(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes["GET /genesis"] = Reply(GENESIS)
    provider.routes["GET /epochs/latest/parameters"] = Reply(PARAMETERS)
    provider.routes[f"GET /txs/{TX}"] = Reply(TRANSACTION)
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    assert await blockfrost.tip() == Found(BlockSeen(15_243_593, 412_162_133, BLOCK, 1_700_000_000))
    assert await blockfrost.genesis() == Found(Genesis(1, 1_654_041_600, 1))
    assert await blockfrost.parameters() == Found(ProtocolParameters(44, 155_381, 4310, 16_384, 5000, 225))
    assert await blockfrost.tx(TX) == Found(TxSeen(TX, BLOCK, 100, 2_000))
    assert await blockfrost.block(BLOCK, 5) == Found(BlockSeen(15_243_593, 412_162_133, BLOCK, 1_700_000_000))


async def test_an_output_is_read_with_its_tokens_datum_and_script(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    amount = [{"unit": "lovelace", "quantity": "1500000"}, {"unit": TOKEN, "quantity": "12"}]
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply(
        [
            utxo_row(1),
            utxo_row(2, amount=amount, data_hash="ee" * 32, block=None),
            utxo_row(3, reference_script_hash="aa" * 28),
            utxo_row(4, inline_datum="182a"),
        ]
    )
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    plain, rich, script, inline = read.value
    assert plain == ChainUtxo(f"{1:064x}", 0, ADDRESS, 2_000_001, {}, BLOCK, False, False)
    assert rich == ChainUtxo(f"{2:064x}", 0, ADDRESS, 1_500_000, {TOKEN: 12}, None, True, False)
    assert (script.has_script, script.has_datum, inline.has_datum) == (True, False, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"scripts/{'ab' * 28}/cbor", {"cbor": "450101002499"}),
        (f"scripts/{'ab' * 28}/cbor", {"cbor": None}),
        ("epochs/latest/parameters", {**PARAMETERS, "cost_models_raw": {"PlutusV3": [1, "2"]}}),
        ("epochs/latest/parameters", {**PARAMETERS, "cost_models_raw": None}),
    ],
)
async def test_another_script_or_a_broken_cost_model_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, path: str, body: object
) -> None:
    script = bytes.fromhex("450101002499")
    own = hashlib.blake2b(b"\x03" + script, digest_size=28).hexdigest()
    name = "ab" * 28 if path.startswith("scripts") else own
    provider.routes[f"GET /scripts/{own}/cbor"] = Reply({"cbor": script.hex()})
    provider.routes["GET /epochs/latest/parameters"] = Reply(
        {**PARAMETERS, "cost_models_raw": {"PlutusV3": [1, -2]}}
    )
    assert await blockfrost.script(own) == Found(PlutusScript(script, (1, -2)))
    provider.routes[f"GET /{path}"] = Reply(body)
    assert isinstance(await blockfrost.script(name), Unknown)


async def test_a_token_amount_above_63_bits_makes_only_its_own_output_unreadable(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    amount = [{"unit": "lovelace", "quantity": "1500000"}, {"unit": TOKEN, "quantity": str(2**64 - 1)}]
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply([utxo_row(1), utxo_row(2, amount=amount)])
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    assert [(row.unreadable, dict(row.assets)) for row in read.value] == [(False, {}), (True, {})]


BAD_ROWS: dict[str, dict[str, Any]] = {
    "another address": utxo_row(address="addr_test1other"),
    "lovelace above 63 bits": utxo_row(amount=[{"unit": "lovelace", "quantity": str(2**63)}]),
    "more lovelace than exists": utxo_row(amount=[{"unit": "lovelace", "quantity": "45000000000000001"}]),
    "token above 64 bits": utxo_row(
        amount=[{"unit": "lovelace", "quantity": "1"}, {"unit": TOKEN, "quantity": str(2**64)}]
    ),
    "no lovelace": utxo_row(amount=[{"unit": TOKEN, "quantity": "1"}]),
    "lovelace twice": utxo_row(amount=[{"unit": "lovelace", "quantity": "1"}] * 2),
    "fraction": utxo_row(amount=[{"unit": "lovelace", "quantity": 1.0}]),
    "exponent text": utxo_row(amount=[{"unit": "lovelace", "quantity": "1e6"}]),
    "negative": utxo_row(amount=[{"unit": "lovelace", "quantity": "-1"}]),
    "bool": utxo_row(amount=[{"unit": "lovelace", "quantity": True}]),
    "zero": utxo_row(amount=[{"unit": "lovelace", "quantity": "0"}]),
    "ticker": utxo_row(amount=[{"unit": "lovelace", "quantity": "1"}, {"unit": "HOSKY", "quantity": "1"}]),
    "unit is a list": utxo_row(amount=[{"unit": ["lovelace"], "quantity": "1"}]),
    "short tx hash": utxo_row(tx_hash="ab"),
    "no index": {k: v for k, v in utxo_row().items() if k != "output_index"},
    "amount is text": utxo_row(amount="lovelace"),
    "block is a number": utxo_row(block=0),
    "block is a flag": utxo_row(block=False),
    "block is a list": utxo_row(block=[]),
    "an output listed before": utxo_row(7),
    "more than exists together": utxo_row(amount=[{"unit": "lovelace", "quantity": "45000000000000000"}]),
}


async def test_an_output_with_an_empty_block_is_read_as_in_no_known_block(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    """Dolos leaves the block empty in this case."""
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply([utxo_row(7, block=""), utxo_row(8)])
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    assert [row.block_hash for row in read.value] == [None, BLOCK]


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS.keys())
async def test_one_malformed_row_makes_the_whole_utxo_list_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, row: dict[str, Any]
) -> None:
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply([utxo_row(7), row])
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)


def _twice(value: Any, key: str) -> bytes:
    """The JSON of a value with a key duplicated in every object, first with another value."""
    text = json.dumps(value)
    return text.replace(f'"{key}":', f'"{key}": "0", "{key}":').encode()


async def test_an_answer_with_a_duplicate_json_key_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes["GET /blocks/latest"] = Reply(_twice(LATEST, "height"))
    provider.routes[f"GET /txs/{TX}"] = Reply(_twice(NOT_FOUND.body, "status_code"), 404)
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply(_twice([utxo_row()], "quantity"))
    for read in (await blockfrost.tip(), await blockfrost.tx(TX), await blockfrost.utxos(ADDRESS)):
        assert isinstance(read, Unknown)
        assert "invoice_invalid/json" in read.reason


async def test_an_unknown_answer_says_why_it_was_not_understood(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    path = f"GET /addresses/{ADDRESS}/utxos"
    for rows, why in (
        ([utxo_row(7), utxo_row(7)], "an output is listed twice"),
        ([utxo_row(amount=[{"unit": "lovelace", "quantity": str(2**62)}])], "invoice_invalid/amount_range"),
        ([utxo_row(amount=[{"unit": "lovelace", "quantity": 1.5}])], "invoice_invalid/amount"),
        ([utxo_row(address="elsewhere")], "an output of another address"),
    ):
        provider.routes[path] = Reply(rows)
        assert await blockfrost.utxos(ADDRESS) == Unknown(f"utxos: http 200, not understood ({why})")


async def test_only_blockfrosts_own_404_means_not_found(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    for path in (f"/txs/{TX}", f"/blocks/{BLOCK}", f"/addresses/{ADDRESS}/utxos"):
        provider.routes[f"GET {path}"] = NOT_FOUND
    assert await blockfrost.tx(TX) == NotFound()
    assert await blockfrost.block(BLOCK, 5) == NotFound()
    assert await blockfrost.utxos(ADDRESS) == Found(())


NOT_REALLY_404 = {
    "bare": Reply(status=404),
    "html": Reply(b"<html>404 Not Found</html>", 404, "text/html"),
    "router": Reply({"message": "Route GET:/x not found", "error": "Not Found", "statusCode": 404}, 404),
    "framework": Reply({"detail": "Not Found"}, 404),
    "other error": Reply({"status_code": 404, "error": "No such route", "message": ""}, 404),
    "other body status": Reply({"status_code": 500, "error": "Not Found", "message": ""}, 404),
    "no message": Reply({"status_code": 404, "error": "Not Found"}, 404),
    "list": Reply([NOT_FOUND.body], 404),
    "500 that says 404": Reply(NOT_FOUND.body, 500),
    "200 that says 404": Reply(NOT_FOUND.body, 200),
    "empty 200": Reply(b""),
    "null": Reply(b"null"),
}


async def test_who_spends_an_output_is_told_with_its_block(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    made = "12" * 32
    rows = [{**made_row(0), "consumed_by_tx": TX}, made_row(1), made_row(0, collateral=True)]
    provider.routes[f"GET /txs/{made}/utxos"] = Reply({"hash": made, "inputs": [], "outputs": rows})
    provider.routes[f"GET /txs/{TX}"] = Reply(TRANSACTION)
    assert await blockfrost.spender(f"{made}#0") == Found(TxSeen(TX, BLOCK, 100, 2_000))
    assert await blockfrost.spender(f"{made}#1") == NotFound()
    assert isinstance(await blockfrost.spender(f"{made}#2"), Unknown), "there is no such output"
    assert isinstance(await blockfrost.spender(f"{'34' * 32}#0"), Unknown), "nor such a transaction"


async def test_who_spends_an_output_is_searched_for_where_the_server_does_not_tell(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    made, row = "12" * 32, made_row(0)
    del row["consumed_by_tx"]
    provider.routes |= {
        "GET /blocks/latest": Reply(LATEST),
        f"GET /blocks/{BLOCK}": Reply(LATEST),
        f"GET /txs/{made}": Reply({**TRANSACTION, "hash": made}),
        f"GET /txs/{made}/utxos": Reply({"hash": made, "inputs": [], "outputs": [row]}),
        f"GET /addresses/{ADDRESS}/transactions": Reply([tx_row(1, tx_hash=TX, block_time=1_700_000_000)]),
        f"GET /txs/{TX}": Reply(TRANSACTION),
    }
    for index, expected in ((0, Found(TxSeen(TX, BLOCK, 100, 2_000))), (1, NotFound())):
        spent = spent_row(0, tx_hash=made, output_index=index)
        provider.routes[f"GET /txs/{TX}/utxos"] = Reply({"hash": TX, "inputs": [spent], "outputs": []})
        assert await blockfrost.spender(f"{made}#0") == expected


@pytest.mark.parametrize("reply", NOT_REALLY_404.values(), ids=NOT_REALLY_404.keys())
async def test_any_other_404_is_unknown_and_not_an_empty_wallet(
    provider: FaultyProvider, blockfrost: Blockfrost, reply: Reply
) -> None:
    provider.routes[f"GET /txs/{TX}"] = reply
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = reply
    assert isinstance(await blockfrost.tx(TX), Unknown)
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)


BROKEN = {
    "html 200": Reply(b"<html>maintenance</html>", 200, "text/html"),
    "html 522": Reply(b"<html>522: Connection timed out</html>", 522, "text/html"),
    "cut json": Reply(b'{"height": 1, "slot"'),
    "short body": Reply(LATEST, fault="short"),
    "reset": Reply(fault="reset"),
    "oversized": Reply(b'"' + b"a" * (17 * 1024 * 1024) + b'"'),
    "nested": Reply(b"[" * 100_000),
    "not utf-8": Reply(b"\xff\xfe\x00"),
    "huge number": Reply(b'{"height": ' + b"9" * 5_000 + b"}"),
    "float height": Reply({**LATEST, "height": 15.0}),
    "infinite height": Reply(b'{"height": Infinity, "slot": 1, "hash": "' + BLOCK.encode() + b'", "time": 1}'),
    "no hash": Reply({**LATEST, "hash": None}),
    "list": Reply([LATEST]),
    "quota 402": Reply(
        {"status_code": 402, "error": "Project Over Limit", "message": "Usage is over limit."}, 402
    ),
    "429": Reply({"status_code": 429, "error": "Project Over Limit", "message": "Usage is over limit."}, 429),
    "403": Reply({"status_code": 403, "error": "Forbidden", "message": f"Invalid project token. {SECRET}"}, 403),
    "redirect": Reply(b"", 302, headers={"Location": "/x/y/blocks/elsewhere"}),
    "202": Reply(LATEST, 202),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_answer_is_unknown_and_never_an_exception(
    provider: FaultyProvider, blockfrost: Blockfrost, reply: Reply
) -> None:
    provider.routes["GET /blocks/latest"] = reply
    provider.routes["GET /blocks/elsewhere"] = Reply(LATEST)
    read = await blockfrost.tip()
    assert isinstance(read, Unknown)
    assert SECRET not in read.reason


@pytest.mark.parametrize(
    ("status", "told"),
    [(403, "another network"), (402, "used up"), (418, "banned"), (429, "http 429"), (400, "http 400")],
)
async def test_an_answer_the_operator_can_fix_says_how(
    provider: FaultyProvider, blockfrost: Blockfrost, status: int, told: str
) -> None:
    """Blockfrost answers 403 to a project id of another network too."""
    provider.routes["GET /blocks/latest"] = Reply({"status_code": status, "message": SECRET}, status)
    read = await blockfrost.tip()
    assert isinstance(read, Unknown)
    assert f"http {status}" in read.reason
    assert told in read.reason


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
async def test_a_decompression_bomb_is_unknown_and_takes_little_memory(
    provider: FaultyProvider, blockfrost: Blockfrost, coding: str
) -> None:
    """No encoding was requested; the libraries decompress it all the same."""
    body = compressed(b'"' + b"a" * 200_000_000, coding)
    provider.routes["GET /blocks/latest"] = Reply(body, headers={"Content-Encoding": coding})
    read, peak_bytes = await measured(blockfrost.tip())
    assert isinstance(read, Unknown)
    assert peak_bytes < 48 * 2**20


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "a chunk below zero": Reply(HEAD + b"-1\r\n", fault="flood", more=b"a" * 65_536),
    "chunks of a byte": Reply(HEAD, fault="flood", more=b"1\r\na\r\n" * 10_000),
    "trailers": Reply(HEAD + b"0\r\n", fault="flood", more=b"A: a\r\n" * 10_000),
    "100": Reply(fault="flood", more=b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000),
    "103": Reply(fault="flood", more=b"HTTP/1.1 103 Early Hints\r\nA: a\r\n\r\n" * 4_000),
}


@pytest.mark.parametrize("form", pick(["a chunk below zero", "trailers", "100"], list(FLOODS)))
async def test_an_endless_answer_of_any_form_ends_soon_and_takes_little_memory(
    provider: FaultyProvider, blockfrost: Blockfrost, form: str
) -> None:
    provider.routes["GET /blocks/latest"] = FLOODS[form]
    read, peak_bytes = await measured(blockfrost.tip())
    assert isinstance(read, Unknown)
    assert peak_bytes < 16 * 2**20


@pytest.mark.parametrize("odd", [b"no header\r\n", b"A: a\r\r\n"])
async def test_a_malformed_response_head_is_not_written_to_the_log(
    provider: FaultyProvider, blockfrost: Blockfrost, caplog: pytest.LogCaptureFixture, odd: bytes
) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + odd + (b"k" * 60_000 + b"\r\n") * 10
    provider.routes["GET /blocks/latest"] = Reply(head, fault="flood", more=b"\r\n{}")
    assert isinstance(await blockfrost.tip(), Unknown)
    assert "kkk" not in caplog.text


@pytest.mark.parametrize("value", [b"[]", b"{}", b"0.1"])
async def test_a_list_of_millions_of_tiny_values_is_unknown_and_takes_little_memory(
    provider: FaultyProvider, blockfrost: Blockfrost, value: bytes
) -> None:
    body = b"[" + b",".join([value] * 3_000_000) + b"]"
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply(body)
    read, peak_bytes = await measured(blockfrost.utxos(ADDRESS))
    assert read == Unknown("utxos: http 200, not understood (too many values)")
    assert peak_bytes < 64 * 2**20


async def test_an_interim_103_response_is_not_taken_for_the_answer(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    """Nor is the final answer taken for the answer to the next request."""
    other = "99" * 32
    provider.routes[f"GET /txs/{other}"] = Reply(NOT_FOUND.body, 404, fault="early")
    provider.routes[f"GET /txs/{TX}"] = Reply(TRANSACTION, fault="early")
    assert isinstance(await blockfrost.tx(other), NotFound)
    assert isinstance(await blockfrost.tx(TX), Found)
    assert isinstance(await blockfrost.tx(other), NotFound)


async def test_an_answer_about_another_transaction_or_block_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes[f"GET /txs/{TX}"] = Reply({**TRANSACTION, "hash": "99" * 32})
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply({**LATEST, "hash": "99" * 32})
    assert isinstance(await blockfrost.tx(TX), Unknown)
    assert isinstance(await blockfrost.block(BLOCK, 5), Unknown)


@pytest.mark.parametrize("fault", ["silent", "drip"])
async def test_a_server_that_never_finishes_is_unknown_within_the_deadline(
    provider: FaultyProvider, hasty: Blockfrost, fault: str
) -> None:
    provider.routes["GET /blocks/latest"] = Reply(fault=fault)
    async with asyncio.timeout(60):
        reads = await asyncio.gather(*(hasty.tip() for _ in range(20)))
    assert all(isinstance(read, Unknown) for read in reads)
    provider.routes["GET /blocks/latest"] = Reply(LATEST)
    async with asyncio.timeout(60):  # the connections come back, however long a busy machine takes
        while not isinstance(await hasty.tip(), Found):
            continue


async def test_a_refused_connection_is_unknown(unused_tcp_port: int) -> None:
    blockfrost = Blockfrost("main", f"http://127.0.0.1:{unused_tcp_port}", SECRET)
    assert await blockfrost.tip() == Unknown("tip: no connection")
    answer = await blockfrost.submit(b"\x84", TX)
    assert answer.kind is SubmitKind.OUTAGE
    assert await blockfrost.findings(ADDRESS) == ()
    await blockfrost.aclose()


def _own_certificate(folder: Path) -> ssl.SSLContext:
    """A TLS server with a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(key.private_bytes(*plain) + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_an_untrusted_certificate_ends_the_connection_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = FaultyProvider(_own_certificate(tmp_path))
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    impostor.routes["GET /blocks/latest"] = Reply(LATEST)
    impostor.routes["POST /tx/submit"] = Reply(TX)
    blockfrost = Blockfrost("main", impostor.base_url, SECRET)
    assert await blockfrost.tip() == Unknown("tip: no secure connection")
    assert (await blockfrost.submit(b"\x84", TX)).kind is SubmitKind.OUTAGE
    assert impostor.seen == []
    assert not keys.exists(), "this key would reveal the project id in a recorded connection"
    await blockfrost.aclose()
    impostor.close()


def _paged(rows: Callable[[int], list[dict[str, Any]]]) -> Callable[[Seen], Reply]:
    def answer(seen: Seen) -> Reply:
        query = parse_qs(urlsplit(seen.path).query)
        return Reply(rows(int(query["page"][0])))

    return answer


def _slice(numbers: list[int], page: int) -> list[dict[str, Any]]:
    return [utxo_row(number) for number in numbers[(page - 1) * 100 : page * 100]]


@pytest.mark.parametrize("total", [0, 1, 99, 100, 101, 200, 250])
async def test_all_pages_are_read(provider: FaultyProvider, blockfrost: Blockfrost, total: int) -> None:
    numbers = list(range(total))
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = _paged(lambda page: _slice(numbers, page))
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    assert [row.lovelace for row in read.value] == [2_000_000 + number for number in numbers]


async def test_rows_that_shift_between_pages_are_read_again_until_none_is_missing(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    """An output is spent after page 1 was read, so row 100 moves to page 1 and is missed."""
    numbers, reads_of_page_1, height = list(range(250)), 0, 1

    def rows(page: int) -> list[dict[str, Any]]:
        nonlocal reads_of_page_1, height
        reads_of_page_1 += page == 1
        shown = _slice(numbers, page)
        if page == 1 and reads_of_page_1 == 2:
            numbers.remove(5)
            height += 1
        return shown

    provider.routes["GET /blocks/latest"] = lambda _: Reply({**LATEST, "height": height, "hash": f"{height:064x}"})
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = _paged(rows)
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    assert [row.lovelace - 2_000_000 for row in read.value] == numbers
    assert 100 in numbers


async def test_a_row_on_two_pages_makes_the_list_unknown(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    numbers = [*range(150), 5]
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = _paged(lambda page: _slice(numbers, page))
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)


async def test_new_blocks_during_a_read_do_no_harm_while_two_passes_agree(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    height = 0

    def next_block(_: Seen) -> Reply:
        nonlocal height
        height += 1
        return Reply({**LATEST, "height": height, "hash": f"{height:064x}"})

    provider.routes["GET /blocks/latest"] = next_block
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = _paged(lambda page: _slice(list(range(150)), page))
    read = await blockfrost.utxos(ADDRESS)
    assert isinstance(read, Found)
    assert len(read.value) == 150


async def test_rows_that_change_on_every_read_are_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    numbers, height = list(range(250)), 0

    def rows(page: int) -> list[dict[str, Any]]:
        nonlocal height
        height += 1
        if page == 1:
            numbers.pop(0)
        return _slice(numbers, page)

    provider.routes["GET /blocks/latest"] = lambda _: Reply({**LATEST, "height": height, "hash": f"{height:064x}"})
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = _paged(rows)
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)


async def test_a_fault_on_a_later_page_and_endless_pages_make_the_list_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, hasty: Blockfrost
) -> None:
    def second_page_lost(seen: Seen) -> Reply:
        return NOT_FOUND if "page=2" in seen.path else Reply(_slice(list(range(100)), 1))

    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = second_page_lost
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply(_slice(list(range(100)), 1))
    assert isinstance(await hasty.utxos(ADDRESS), Unknown)


async def test_a_list_with_too_many_token_amounts_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = pick(5_000, 500_000)
    monkeypatch.setattr("payagent.chain.blockfrost._MAX_TOKENS", most)
    laden = [{"unit": f"{TOKEN}{number:04x}", "quantity": "1"} for number in range(most // 500)]
    rows = [utxo_row(number) for number in range(100)]
    rows = [{**row, "amount": [*row["amount"], *laden]} for row in rows]
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply(json.dumps(rows).encode())
    read = await blockfrost.utxos(ADDRESS)
    assert read == Unknown(f"utxos: more than {most} token amounts")
    assert len(provider.seen) < 10


async def test_a_page_with_more_rows_than_asked_for_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes[f"GET /addresses/{ADDRESS}/utxos"] = Reply([utxo_row(number) for number in range(101)])
    assert isinstance(await blockfrost.utxos(ADDRESS), Unknown)


def _newest_first(numbers: list[int]) -> Callable[[Seen], Reply]:
    def answer(seen: Seen) -> Reply:
        query = parse_qs(urlsplit(seen.path).query)
        assert query["order"] == ["desc"]
        page = int(query["page"][0])
        return Reply([tx_row(number) for number in numbers[::-1][(page - 1) * 100 : page * 100]])

    return answer


@pytest.mark.parametrize("total", [0, 1, 99, 100, 101, 250])
async def test_all_transactions_of_an_address_are_read_oldest_first(
    provider: FaultyProvider, blockfrost: Blockfrost, total: int
) -> None:
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = _newest_first(list(range(total)))
    read = await blockfrost.transactions(ADDRESS, 0)
    rows = tuple(AddressTx(f"{number:064x}", number, 1_000 + number) for number in range(total))
    assert read == Found(rows)
    if total > 100:
        since = await blockfrost.transactions(ADDRESS, 1_000 + total - 2)
        assert since == Found(rows[-2:])
        assert provider.seen[-2].path.endswith("&page=1&order=desc"), "older pages are not requested"


async def test_an_address_never_used_has_no_transactions(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = NOT_FOUND
    assert await blockfrost.transactions(ADDRESS, 0) == Found(())


async def test_new_transactions_during_a_read_hide_no_older_one(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    numbers = list(range(150))

    def growing(seen: Seen) -> Reply:
        reply = _newest_first(list(numbers))(seen)
        numbers.append(len(numbers))
        return reply

    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = growing
    read = await blockfrost.transactions(ADDRESS, 0)
    assert isinstance(read, Found)
    assert [row.block_height for row in read.value] == list(range(150))


async def test_pages_on_both_sides_of_a_fork_are_read_again(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = _newest_first([1, 2])
    provider.routes[f"GET /blocks/{BLOCK}"] = [NOT_FOUND, Reply(LATEST)]
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Found)
    provider.routes[f"GET /blocks/{BLOCK}"] = NOT_FOUND
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply({}, 500)
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)


def _pages_asked(provider: FaultyProvider) -> list[int]:
    seen = [urlsplit(one.path) for one in provider.seen]
    return [int(parse_qs(path.query)["page"][0]) for path in seen if path.path.endswith("/transactions")]


async def test_a_rate_limited_read_of_transactions_resumes_where_it_stopped(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    numbers = list(range(1050))
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = _newest_first(numbers)
    turns = [True] * 4 + [False] + [True] * 3 + [False] + [True] * 20

    async def turn() -> bool:
        return turns.pop(0)

    blockfrost.pace(turn)
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)
    numbers += [1050, 1051, 1052]
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)
    assert _pages_asked(provider) == [1, 2, 3, 4, 1, 5, 6]
    read = await blockfrost.transactions(ADDRESS, 0)
    assert isinstance(read, Found)
    assert [row.block_height for row in read.value] == numbers
    assert _pages_asked(provider)[7:] == [1, 6, 7, 8, 9, 10, 11]


async def test_pages_read_before_a_fork_are_read_again(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    numbers = list(range(1050))
    listed = _newest_first(numbers)
    lost = Reply({}, 500)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = lambda seen: (
        lost if "page=5" in seen.path else listed(seen)
    )
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)
    del numbers[-7:]
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = listed
    read = await blockfrost.transactions(ADDRESS, 0)
    assert isinstance(read, Found)
    assert [row.block_height for row in read.value] == numbers
    assert _pages_asked(provider)[5:] == list(range(1, 12))


async def test_a_read_does_not_resume_from_pages_of_a_lost_tip(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    listed = _newest_first(list(range(350)))
    provider.routes[f"GET /blocks/{BLOCK}"] = [NOT_FOUND, Reply(LATEST)]
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = lambda seen: (
        Reply({}, 500) if "page=3" in seen.path and len(provider.seen) < 6 else listed(seen)
    )
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Found)
    assert _pages_asked(provider) == [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4]


async def test_a_long_transaction_history_is_read_past_the_page_limit(
    provider: FaultyProvider, blockfrost: Blockfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.chain.blockfrost._MAX_PAGES", 3)
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = _newest_first(list(range(450)))
    read = await blockfrost.transactions(ADDRESS, 0)
    assert isinstance(read, Found)
    assert len(read.value) == 450


BAD_TX_PAGES: dict[str, Any] = {
    "not a list": {"rows": []},
    "short hash": [tx_row(1, tx_hash="ab")],
    "a height with a fraction": [tx_row(1, block_height=1.5)],
    "no time": [{name: value for name, value in tx_row(1).items() if name != "block_time"}],
    "twice": [tx_row(1), tx_row(1)],
    "oldest first": [tx_row(1), tx_row(2)],
    "too many": [tx_row(500 - number) for number in range(101)],
}


@pytest.mark.parametrize("page", BAD_TX_PAGES.values(), ids=BAD_TX_PAGES.keys())
async def test_a_malformed_page_of_transactions_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, page: Any
) -> None:
    provider.routes[f"GET /blocks/{BLOCK}"] = Reply(LATEST)
    provider.routes[f"GET /addresses/{ADDRESS}/transactions"] = Reply(page)
    assert isinstance(await blockfrost.transactions(ADDRESS, 0), Unknown)


OTHER = "addr_test1other"


def moving(inputs: list[Any], outputs: list[Any]) -> Reply:
    return Reply({"hash": TX, "inputs": inputs, "outputs": outputs})


def utxo(number: int) -> dict[str, int]:
    return {"lovelace": 2_000_000 + number}


async def test_a_movement_leaves_out_reference_inputs_and_other_addresses(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    inputs = [spent_row(1), spent_row(2, address=OTHER), spent_row(3, reference=True)]
    outputs = [made_row(0, address=OTHER, amount="not ours to read"), made_row(1)]
    provider.routes[f"GET /txs/{TX}/utxos"] = moving(inputs, outputs)
    moved = Movement({f"{1:064x}#0": utxo(1)}, {f"{TX}#1": utxo(1)})
    assert await blockfrost.movement(TX, ADDRESS) == Found(moved)
    assert len(provider.seen) == 1


@pytest.mark.parametrize("reference", [{}, {"reference": None}], ids=["absent", "null"])
async def test_an_input_without_a_reference_flag_counts_as_spent(
    provider: FaultyProvider, blockfrost: Blockfrost, reference: dict[str, Any]
) -> None:
    """Blockfrost's OpenAPI does not require `reference`, and other servers of its API say null."""
    row = {name: value for name, value in spent_row(1).items() if name != "reference"}
    provider.routes[f"GET /txs/{TX}/utxos"] = moving([row | reference], [])
    assert await blockfrost.movement(TX, ADDRESS) == Found(Movement({f"{1:064x}#0": utxo(1)}, {}))


@pytest.mark.parametrize("is_valid", [True, False])
async def test_collateral_counts_as_moved_only_when_the_script_failed(
    provider: FaultyProvider, blockfrost: Blockfrost, is_valid: bool
) -> None:
    inputs, outputs = [spent_row(1), spent_row(2, collateral=True)], [made_row(0), made_row(1, collateral=True)]
    provider.routes[f"GET /txs/{TX}/utxos"] = moving(inputs, outputs)
    assert isinstance(await blockfrost.movement(TX, ADDRESS), Unknown), "whether the script failed is unknown"
    provider.routes[f"GET /txs/{TX}"] = Reply({**TRANSACTION, "valid_contract": is_valid})
    spent, made = (1, 0) if is_valid else (2, 1)
    moved = Movement({f"{spent:064x}#0": utxo(spent)}, {f"{TX}#{made}": utxo(made)})
    assert await blockfrost.movement(TX, ADDRESS) == Found(moved)


async def test_collateral_taken_by_a_failed_script_is_read_with_its_tokens(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    """Blockfrost then lists it twice: as usual, and as collateral without its tokens."""
    tokens = {"amount": [{"unit": "lovelace", "quantity": "2000002"}, {"unit": TOKEN, "quantity": "5"}]}
    inputs = [spent_row(2, **tokens), spent_row(2, collateral=True)]
    outputs = [made_row(1, **tokens), made_row(1, collateral=True)]
    provider.routes[f"GET /txs/{TX}/utxos"] = moving(inputs, outputs)
    provider.routes[f"GET /txs/{TX}"] = Reply({**TRANSACTION, "valid_contract": False})
    whole = {"lovelace": 2_000_002, TOKEN: 5}
    assert await blockfrost.movement(TX, ADDRESS) == Found(Movement({f"{2:064x}#0": whole}, {f"{TX}#1": whole}))


BAD_MOVES: dict[str, Reply] = {
    "another transaction": Reply({"hash": BLOCK, "inputs": [], "outputs": []}),
    "no outputs": Reply({"hash": TX, "inputs": []}),
    "no flag": moving([utxo_row(1)], []),
    "a flag of text": moving([{**spent_row(1), "reference": "false"}], []),
    "spent twice": moving([spent_row(1), spent_row(1)], []),
    "no amount": moving([], [made_row(1, amount=[])]),
    "a fraction": moving([], [made_row(1, amount=[{"unit": "lovelace", "quantity": "1.5"}])]),
}


@pytest.mark.parametrize("reply", BAD_MOVES.values(), ids=BAD_MOVES.keys())
async def test_a_malformed_movement_is_unknown(
    provider: FaultyProvider, blockfrost: Blockfrost, reply: Reply
) -> None:
    provider.routes[f"GET /txs/{TX}/utxos"] = reply
    assert isinstance(await blockfrost.movement(TX, ADDRESS), Unknown)
    provider.routes[f"GET /txs/{TX}/utxos"] = NOT_FOUND
    assert await blockfrost.movement(TX, ADDRESS) == NotFound()


async def test_requests_share_one_connection(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    provider.routes["POST /tx/submit"] = Reply(TX)
    for _ in range(4):
        assert isinstance(await blockfrost.tip(), Found)
    assert (await blockfrost.submit(b"\x84", TX)).kind is SubmitKind.ACCEPTED
    assert provider.connections == 1


async def test_many_tasks_share_a_provider_and_each_gets_its_own_answer(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    ids = [f"{number:064x}" for number in range(60)]
    for number, tx_id in enumerate(ids):
        provider.routes[f"GET /txs/{tx_id}"] = Reply({**TRANSACTION, "hash": tx_id, "block_height": number})
    reads = await asyncio.gather(*(blockfrost.tx(tx_id) for tx_id in ids))
    assert reads == [Found(TxSeen(tx_id, BLOCK, number, 2_000)) for number, tx_id in enumerate(ids)]
    assert provider.connections <= 8


async def test_the_base_url_is_used_as_written_and_the_environment_is_ignored(
    provider: FaultyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKFROST_API_VERSION", "v7")
    monkeypatch.setenv("BLOCKFROST_PROJECT_ID", "from-the-environment")
    monkeypatch.setenv("BLOCKFROST_API_URL", "http://127.0.0.1:9/wrong")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    for base_url, project_id in ((provider.base_url, SECRET), (provider.base_url + "/", None)):
        blockfrost = Blockfrost("main", base_url, project_id)
        assert isinstance(await blockfrost.tip(), Found)
        await blockfrost.aclose()
    assert [seen.path for seen in provider.seen] == ["/x/y/blocks/latest"] * 2
    assert [seen.headers.get("project_id") for seen in provider.seen] == [SECRET, None]


async def test_the_project_id_appears_in_no_log_error_or_repr(
    provider: FaultyProvider, blockfrost: Blockfrost, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = {"status_code": 400, "error": "Bad Request", "message": f"unknown token {SECRET}"}
    provider.routes["POST /tx/submit"] = Reply(echo, 400)
    provider.routes["GET /blocks/latest"] = Reply(echo, 403)
    read, answer = await blockfrost.tip(), await blockfrost.submit(b"\x84", TX)
    assert provider.seen[0].headers["project_id"] == SECRET
    assert "unknown token" in answer.detail
    assert "httpcore" in caplog.text
    for shown in (repr(blockfrost), str(blockfrost), repr(read), repr(answer), caplog.text):
        assert SECRET not in shown
    with pytest.raises(Refused) as refused:
        Blockfrost("main", provider.base_url, SECRET + "\n")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("before", range(150, 200, 10))
async def test_a_truncated_error_message_shows_no_part_of_the_project_id(
    provider: FaultyProvider, blockfrost: Blockfrost, before: int
) -> None:
    provider.routes["POST /tx/submit"] = Reply("x" * before + SECRET, 400)
    answer = await blockfrost.submit(b"\x84", TX)
    assert "xxx" in answer.detail
    assert SECRET[:8] not in answer.detail


@pytest.mark.parametrize("project_id", ["0", "ab", "Inputs"])
async def test_a_project_id_that_occurs_in_an_answer_does_not_change_its_meaning(
    provider: FaultyProvider, project_id: str
) -> None:
    """A self-hosted server accepts any project id. A short one once made an acceptance look like a lie."""
    adapter = Blockfrost("main", provider.base_url, project_id)
    tx_id = "0ab1" * 16
    provider.routes["POST /tx/submit"] = Reply(json.dumps(tx_id).encode())
    assert (await adapter.submit(b"\x84", tx_id)).kind is SubmitKind.ACCEPTED
    provider.routes["POST /tx/submit"] = Reply(b'"BadInputsUTxO"', 400)
    assert (await adapter.submit(b"\x84", tx_id)).kind is SubmitKind.SPENT_ALL
    await adapter.aclose()


async def test_a_very_long_refusal_of_a_submission_takes_little_memory(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes["POST /tx/submit"] = Reply(b"[" + b"[]," * 4_000_000 + b"0]", 400)
    answer, peak_bytes = await measured(blockfrost.submit(b"\x84", TX))
    assert answer.kind is SubmitKind.AMBIGUOUS
    assert peak_bytes < 64 * 2**20


async def test_other_users_of_the_blockfrost_library_are_not_affected(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    assert isinstance(await blockfrost.tip(), Found)
    assert blockfrost_api.requests is requests
    other = BlockFrostApi(project_id="other", base_url=provider.origin, api_version="x/y")
    assert (await asyncio.to_thread(other.block_latest, return_type="json"))["hash"] == BLOCK


async def test_each_request_is_identical_to_the_blockfrost_librarys_own(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    names = ("project_id", "user-agent", "content-type")

    def sent() -> set[tuple[object, ...]]:
        requested = {(seen.method, seen.path, *map(seen.headers.get, names)) for seen in provider.seen}
        provider.seen.clear()
        return requested

    for read in (
        blockfrost.tip(),
        blockfrost.genesis(),
        blockfrost.parameters(),
        blockfrost.tx(TX),
        blockfrost.block(BLOCK, 5),
    ):
        await read
    for read in (blockfrost.utxos(ADDRESS), blockfrost.transactions(ADDRESS, 0), blockfrost.movement(TX, ADDRESS)):
        await read
    await blockfrost.clock_off_s(lambda: 0)
    await blockfrost.submit(b"\x84", TX)
    ours = sent()
    library = BlockFrostApi(project_id=SECRET, base_url=provider.origin, api_version="x/y")
    paged = {"count": 100, "page": 1}
    for call in (
        *(library.block_latest, library.clock, library.genesis, library.epoch_latest_parameters),
        *(partial(library.transaction, TX), partial(library.transaction_utxos, TX), partial(library.block, BLOCK)),
        partial(library.address_utxos, ADDRESS, **paged),
        partial(library.address_transactions, ADDRESS, order="desc", **paged),
        partial(library.transaction_submit_cbor, b"\x84"),
    ):
        with suppress(ApiError):  # nothing is found
            await asyncio.to_thread(call)
    assert len(ours) == 10
    assert ours == sent()


async def test_the_exact_bytes_are_submitted(provider: FaultyProvider, blockfrost: Blockfrost) -> None:
    raw = bytes(range(256)) * 64
    provider.routes["POST /tx/submit"] = Reply(TX.encode(), content_type="text/plain")
    assert (await blockfrost.submit(raw, TX)).kind is SubmitKind.ACCEPTED
    (seen,) = provider.seen
    assert (seen.path, seen.body) == ("/x/y/tx/submit", raw)
    assert seen.headers["content-type"] == "application/cbor"
    assert seen.headers["content-length"] == str(len(raw))


SUBMISSIONS = {
    "another id": (Reply("99" * 32), SubmitKind.LIAR),
    "500 says 404": (Reply(NOT_FOUND.body, 500), SubmitKind.OUTAGE),
    "202": (Reply(TX, 202), SubmitKind.ACCEPTED),
    "body cut": (Reply(TX, fault="short"), SubmitKind.AMBIGUOUS),
    "refusal cut": (Reply(b"FeeTooSmallUTxO", 400, fault="short"), SubmitKind.AMBIGUOUS),
    "reset": (Reply(fault="reset"), SubmitKind.AMBIGUOUS),
    "silent": (Reply(fault="silent"), SubmitKind.AMBIGUOUS),
    "drip": (Reply(fault="drip"), SubmitKind.AMBIGUOUS),
    "oversized": (Reply(b"a" * (17 * 1024 * 1024)), SubmitKind.AMBIGUOUS),
    "redirect": (Reply(b"", 307, headers={"Location": "/x/y/tx/submit"}), SubmitKind.CLIENT),
    "quota": (Reply({"status_code": 402, "error": "Project Over Limit"}, 402), SubmitKind.QUOTA),
    "full": (Reply({"status_code": 425, "error": "Mempool Full"}, 425), SubmitKind.FULL),
}


@pytest.mark.parametrize(("reply", "kind"), SUBMISSIONS.values(), ids=SUBMISSIONS.keys())
async def test_each_answer_to_a_submission_is_classified(
    provider: FaultyProvider, blockfrost: Blockfrost, hasty: Blockfrost, reply: Reply, kind: SubmitKind
) -> None:
    provider.routes["POST /tx/submit"] = reply
    has_no_end = reply.fault in ("silent", "drip")
    answer = await (hasty if has_no_end else blockfrost).submit(b"\x84\xa3", TX)
    assert answer.kind is kind, answer
    assert len(provider.seen) == 1


async def test_retry_after_is_part_of_the_submission_answer(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    provider.routes["POST /tx/submit"] = Reply({"status_code": 429}, 429, headers={"Retry-After": "17"})
    answer = await blockfrost.submit(b"\x84", TX)
    assert (answer.kind, answer.retry_after_s) == (SubmitKind.RATE, 17)


async def test_a_submission_that_never_got_a_connection_counts_as_not_sent(provider: FaultyProvider) -> None:
    slow = Blockfrost("main", provider.base_url, SECRET, Timeouts(submit_s=0.2))
    provider.routes["GET /blocks/latest"] = Reply(fault="silent")
    tips = [asyncio.create_task(slow.tip()) for _ in range(8)]
    assert await asyncio.to_thread(provider.wait_for_requests, 8), "every connection waits for the silent server"
    assert (await slow.submit(b"\x84", TX)).kind is SubmitKind.OUTAGE
    assert all(seen.method == "GET" for seen in provider.seen)
    await slow.aclose()
    assert all(isinstance(read, Unknown) for read in await asyncio.gather(*tips))


async def test_a_read_gets_its_turn_among_many_resubmissions(
    provider: FaultyProvider, blockfrost: Blockfrost
) -> None:
    """After a fork hundreds are due at once, and few go at a time: a read must not time out behind them."""
    submission_s, connections = 1.5, 8
    provider.routes["POST /tx/submit"] = Reply(TX)
    again = [asyncio.create_task(blockfrost.submit(b"\x84", TX)) for _ in range(SENT_AT_ONCE_MAX)]
    await asyncio.sleep(0)  # each has asked for a connection
    assert isinstance(await blockfrost.tip(), Found)
    ahead = [seen.method for seen in provider.seen].index("GET")
    assert ahead / connections * submission_s < Timeouts().call_s
    await asyncio.gather(*again)


async def test_closing_ends_open_requests_and_later_calls_are_unknown(provider: FaultyProvider) -> None:
    blockfrost = Blockfrost("main", provider.base_url, SECRET)
    provider.routes["GET /blocks/latest"] = Reply(fault="silent")
    provider.routes["POST /tx/submit"] = Reply(fault="silent")
    tips = [asyncio.create_task(blockfrost.tip()) for _ in range(12)]
    assert await asyncio.to_thread(provider.wait_for_requests, 8)
    await blockfrost.aclose()
    reads: list[Read[BlockSeen]] = await asyncio.gather(*tips)
    assert all(isinstance(read, Unknown) for read in reads)
    assert isinstance(await blockfrost.tip(), Unknown)
    assert (await blockfrost.submit(b"\x84", TX)).kind is SubmitKind.OUTAGE


async def test_cancelling_a_task_frees_its_connection(provider: FaultyProvider) -> None:
    blockfrost = Blockfrost("main", provider.base_url, SECRET)
    provider.routes["GET /blocks/latest"] = Reply(fault="silent")
    tips = [asyncio.create_task(blockfrost.tip()) for _ in range(8)]
    assert await asyncio.to_thread(provider.wait_for_requests, 8)
    for tip in tips:
        tip.cancel()
    await asyncio.gather(*tips, return_exceptions=True)
    provider.routes["GET /blocks/latest"] = Reply(LATEST)
    assert isinstance(await blockfrost.tip(), Found)
    await blockfrost.aclose()


@pytest.mark.parametrize("text", ["", "ab", TX.upper(), TX + "\n", "../genesis", TX + "?x=1"])
async def test_a_value_that_is_not_a_hash_is_never_put_into_a_path(
    provider: FaultyProvider, blockfrost: Blockfrost, text: str
) -> None:
    for ask in (
        blockfrost.tx,
        lambda text: blockfrost.block(text, 5),
        lambda text: blockfrost.spender(f"{text}#0"),
    ):
        with pytest.raises(ValueError, match="form"):
            await ask(text)
    with pytest.raises(ValueError, match="form"):
        await blockfrost.utxos("addr/../../genesis")
    assert provider.seen == []


def test_a_base_url_of_another_scheme_is_refused() -> None:
    with pytest.raises(Refused, match="config_invalid"):
        Blockfrost("main", "ftp://127.0.0.1/x", None)


@pytest.mark.parametrize(
    "date",
    [
        "Wed, 02 Dec 99999999999999999999 14:00:00 GMT",
        "Wed, 02 Dec 2026 14:00:00 +99999999999999999999",
        "Fri, 31 Dec 9999 23:59:59 -0100",
    ],
)
async def test_a_servers_clock_that_is_no_time_spoils_no_answer(
    provider: FaultyProvider, blockfrost: Blockfrost, date: str
) -> None:
    provider.routes["GET /blocks/latest"] = Reply(LATEST, headers={"Date": date})
    assert isinstance(await blockfrost.tip(), Found)
