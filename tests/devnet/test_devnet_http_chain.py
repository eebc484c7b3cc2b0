"""The devnet's Blockfrost API, read by blockfrost-python and by plain HTTP over real sockets."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from blockfrost import ApiError, BlockFrostApi
from kit.devnet import FEE_LOVELACE, POLICY, TOKEN, HandClock, Purse, ada, payer, signed
from kit.http import NO_TLS

from payagent.devnet.server import DevnetThread

CLOCK_START_MS = 1_700_000_000_000


@pytest.fixture
def clock() -> HandClock:
    return HandClock(CLOCK_START_MS)


@pytest.fixture
def purse(clock: HandClock) -> Iterator[Purse]:
    with DevnetThread(now_ms=clock) as devnet:
        yield Purse(payer("alice"), devnet)


@pytest.fixture
def api(purse: Purse) -> BlockFrostApi:
    return client(purse.devnet)


def client(devnet: DevnetThread, project_id: str = "any") -> BlockFrostApi:
    return BlockFrostApi(project_id=project_id, base_url=devnet.origin + "/api", api_version="v0")


def refusal(api: BlockFrostApi, raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        api.transaction_submit_cbor(raw)
    return caught.value


# --- reading -----------------------------------------------------------------------------------------------------


def test_genesis_and_protocol_parameters_are_served(api: BlockFrostApi) -> None:
    genesis = api.genesis(return_type="json")
    assert (genesis["network_magic"], genesis["slot_length"]) == (42, 1)
    assert genesis["system_start"] == CLOCK_START_MS // 1000
    parameters = api.epoch_latest_parameters(return_type="json")
    assert (parameters["min_fee_a"], parameters["min_fee_b"], parameters["max_tx_size"]) == (44, 155381, 16384)
    assert (parameters["coins_per_utxo_size"], parameters["max_val_size"]) == ("4310", "5000")
    assert api.health(return_type="json") == {"is_healthy": True}
    assert api.root(return_type="json")["version"]


def test_pycardanos_blockfrost_context_reads_the_devnet(purse: Purse) -> None:
    from pycardano import BlockFrostChainContext

    purse.fund(7_000_000, assets={TOKEN: 5})
    context = BlockFrostChainContext("any", base_url=purse.devnet.origin + "/api")
    assert context.protocol_param.coins_per_utxo_byte == 4310
    (coin,) = context.utxos(purse.who.address.text)
    assert coin.output.amount.coin == 7_000_000
    assert coin.output.amount.multi_asset.to_primitive() == {bytes.fromhex(POLICY): {b"TOK": 5}}


def test_the_slot_follows_the_clock(purse: Purse, api: BlockFrostApi, clock: HandClock) -> None:
    clock.forward(90)
    purse.control("blocks", count=1)
    latest = api.block_latest(return_type="json")
    assert (latest["slot"], latest["time"], latest["height"]) == (90, CLOCK_START_MS // 1000 + 90, 1)


def test_blocks_are_found_by_hash_and_number(purse: Purse, api: BlockFrostApi) -> None:
    purse.control("blocks", count=3)
    second = api.block("2", return_type="json")
    assert api.block(second["hash"], return_type="json") == second
    assert (second["previous_block"], second["confirmations"]) == (api.block("1", return_type="json")["hash"], 1)
    assert second["next_block"] == api.block_latest(return_type="json")["hash"]
    for unknown in ("4", "ff" * 32, "latests"):
        with pytest.raises(ApiError) as caught:
            api.block(unknown)
        assert caught.value.status_code == 404


def test_utxos_are_paged_in_order(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(*range(2_000_000, 2_000_105))
    address = purse.who.address.text

    def amounts(**paging: object) -> list[int]:
        rows = api.address_utxos(address, return_type="json", **paging)
        return [int(row["amount"][0]["quantity"]) for row in rows]

    assert amounts(gather_pages=True) == list(range(2_000_000, 2_000_105))
    assert amounts() == list(range(2_000_000, 2_000_100))
    assert amounts(count=2, page=2) == [2_000_002, 2_000_003]
    assert amounts(count=2, order="desc") == [2_000_104, 2_000_103]
    assert amounts(count=100, page=3) == []


@pytest.mark.parametrize("query", ["count=0", "count=101", "count=x", "page=0", "page=-1", "order=up"])
def test_invalid_paging_is_refused(purse: Purse, query: str) -> None:
    purse.fund(2_000_000)
    answer = purse.get(f"/addresses/{purse.who.address.text}/utxos?{query}")
    assert answer.status_code == 400
    assert set(answer.json()) == {"status_code", "error", "message"}


def test_utxos_can_be_listed_for_one_asset(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(3_000_000)
    purse.fund(4_000_000, assets={TOKEN: 9})
    address = purse.who.address.text
    (row,) = api.address_utxos_asset(address, TOKEN, return_type="json")
    assert row["amount"] == [{"unit": "lovelace", "quantity": "4000000"}, {"unit": TOKEN, "quantity": "9"}]
    whole = api.address(address, return_type="json")["amount"]
    assert whole == [{"unit": "lovelace", "quantity": "7000000"}, {"unit": TOKEN, "quantity": "9"}]


def test_an_unused_address_is_404_and_an_emptied_one_an_empty_list(purse: Purse, api: BlockFrostApi) -> None:
    for path in ("", "/utxos", "/transactions"):
        answer = purse.get(f"/addresses/{purse.who.address.text}{path}")
        assert (answer.status_code, answer.json()["status_code"]) == (404, 404)
        assert answer.json()["error"] == "Not Found"
    purse.fund(5_000_000)
    _, raw = signed(purse.who, purse.coins(), [ada(payer("bob").address.raw, 5_000_000 - FEE_LOVELACE)])
    api.transaction_submit_cbor(raw)
    purse.control("blocks", count=1)
    assert api.address_utxos(purse.who.address.text, return_type="json") == []


@pytest.mark.parametrize("text", ["addr1vx", "nonsense", "stake_test1", "a" * 300])
def test_a_malformed_address_is_answered_with_400(purse: Purse, text: str) -> None:
    answer = purse.get(f"/addresses/{text}/utxos")
    assert answer.json()["message"] == "Invalid address for this network or malformed address format."
    assert answer.status_code == 400


def test_a_project_id_can_be_required(clock: HandClock) -> None:
    with DevnetThread(now_ms=clock, project_id="devnetSecret") as devnet:
        assert client(devnet, "devnetSecret").block_latest(return_type="json")["height"] == 0
        with pytest.raises(ApiError) as caught:
            client(devnet, "other").block_latest()
        assert (caught.value.status_code, caught.value.message) == (403, "Invalid project token.")
        refused = httpx.post(
            f"{devnet.chain_url}/tx/submit", headers={"content-type": "application/cbor"}, verify=NO_TLS
        )
        assert refused.status_code == 403


# --- submitting --------------------------------------------------------------------------------------------------


def test_a_transaction_goes_through_the_mempool_into_a_block(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(10_000_000)
    bob = payer("bob").address
    tx_id, raw = purse.build([ada(bob.raw, 3_000_000)], ttl=600)
    assert api.transaction_submit_cbor(raw) == tx_id

    assert api.mempool_tx(tx_id, return_type="json")["tx"]["fees"] == str(FEE_LOVELACE)
    assert api.mempool_address(bob.text, return_type="json") == [{"tx_hash": tx_id}]
    for path in (f"/txs/{tx_id}", f"/txs/{tx_id}/utxos", f"/addresses/{bob.text}/utxos"):
        assert purse.get(path).status_code == 404

    purse.control("blocks", count=2)
    assert purse.get(f"/mempool/{tx_id}").status_code == 404
    shown = api.transaction(tx_id, return_type="json")
    assert (shown["block_height"], shown["invalid_hereafter"], shown["valid_contract"]) == (2, "600", True)
    assert api.block(shown["block"], return_type="json")["confirmations"] == 1
    assert api.block_transactions(shown["block"], return_type="json") == [tx_id]
    assert api.transaction_cbor(tx_id, return_type="json") == {"cbor": raw.hex()}
    moved = api.transaction_utxos(tx_id, return_type="json")
    assert [row["amount"][0]["quantity"] for row in moved["inputs"]] == ["10000000"]
    assert [(row["address"], row["amount"][0]["quantity"]) for row in moved["outputs"]] == [
        (bob.text, "3000000"),
        (purse.who.address.text, "6800000"),
    ]


def test_a_refused_transaction_gets_the_nodes_error_text(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(10_000_000)
    who, (ref,), other = purse.who, purse.coins(), payer("bob").address.raw
    rest = 10_000_000 - FEE_LOVELACE
    missing = ("00" * 32, 0)
    cases = {
        "ConwayUtxowFailure (UtxoFailure (FeeTooSmallUTxO ": signed(
            who, [ref], [ada(other, 9_900_000)], fee=100_000
        ),
        "ConwayUtxowFailure (UtxoFailure (ValueNotConservedUTxO ": signed(who, [ref], [ada(other, rest + 1)]),
        "ConwayUtxowFailure (UtxoFailure (BabbageOutputTooSmallUTxO ": signed(
            who, [ref], [ada(other, 9_700_000), ada(other, 100_000)]
        ),
        "ConwayUtxowFailure (UtxoFailure (OutsideValidityIntervalUTxO ": signed(
            who, [ref], [ada(other, rest)], ttl=0
        ),
        "ConwayUtxowFailure (UtxoFailure (BadInputsUTxO ": signed(who, [ref, missing], [ada(other, rest)]),
        "ConwayUtxowFailure (MissingVKeyWitnessesUTXOW ": signed(payer("bob"), [ref], [ada(other, rest)]),
        'ConwayMempoolFailure "All inputs are spent. Transaction has probably already been included"': signed(
            who, [missing], [ada(other, rest)]
        ),
        "DecoderErrorDeserialiseFailure ": ("", b"\x83\x00\x00\x00"),
    }
    for text, (_, raw) in cases.items():
        refused = refusal(api, raw)
        assert (refused.status_code, refused.error) == (400, "Bad Request")
        inner = json.loads(str(refused.message))
        assert inner["tag"] == "TxSubmitFail"
        assert text in _strings(inner)
    assert purse.state()["mempool"] == []


def _strings(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(_strings(item) for item in value.values())
    return " ".join(map(_strings, value)) if isinstance(value, list) else str(value)


def test_the_same_bytes_twice_are_refused_before_and_after_the_block(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(10_000_000)
    _, raw = purse.build([])
    api.transaction_submit_cbor(raw)
    assert "ConwayMempoolFailure" in str(refusal(api, raw).message)
    purse.control("blocks", count=1)
    assert "ConwayMempoolFailure" in str(refusal(api, raw).message)


def test_submit_requires_the_cbor_content_type(purse: Purse) -> None:
    answer = httpx.post(
        f"{purse.devnet.chain_url}/tx/submit",
        content=b"{}",
        headers={"content-type": "text/plain"},
        verify=NO_TLS,
    )
    assert answer.status_code == 415


def test_an_unknown_path_gets_blockfrosts_404(purse: Purse) -> None:
    for path in ("/txs/" + "0" * 64, "/mempool/" + "0" * 64, "/no/such/thing"):
        assert purse.get(path).json() == {
            "status_code": 404,
            "error": "Not Found",
            "message": "The requested component has not been found.",
        }


# --- rollbacks, control ------------------------------------------------------------------------------------------


def test_a_rolled_back_transaction_is_gone_and_can_be_submitted_again(purse: Purse, api: BlockFrostApi) -> None:
    purse.fund(10_000_000)
    tx_id, raw = purse.build([ada(payer("bob").address.raw, 3_000_000)])
    api.transaction_submit_cbor(raw)
    purse.control("blocks", count=2)
    gone = api.transaction(tx_id, return_type="json")["block"]

    assert purse.control("rollback", depth=2) == {"undone": [tx_id], "height": 1}
    for path in (f"/txs/{tx_id}", f"/mempool/{tx_id}", f"/blocks/{gone}"):
        assert purse.get(path).status_code == 404
    assert api.address(purse.who.address.text, return_type="json")["amount"][0]["quantity"] == "10000000"

    assert api.transaction_submit_cbor(raw) == tx_id
    purse.control("blocks", count=1)
    assert api.transaction(tx_id, return_type="json")["block"] != gone


def test_a_rollback_can_put_its_transactions_back_into_the_mempool(purse: Purse) -> None:
    purse.fund(10_000_000)
    tx_id = purse.pay([])
    purse.control("rollback", depth=1, readd=True)
    assert purse.state()["mempool"] == [tx_id]


def test_tokens_from_the_faucet_come_with_ada(purse: Purse, api: BlockFrostApi) -> None:
    made = purse.control("faucet", address=purse.who.address.text, assets={TOKEN: "7"})
    purse.control("blocks", count=1)
    (row,) = api.address_utxos(purse.who.address.text, return_type="json")
    assert row["tx_hash"] == made["tx_hash"]
    assert {item["unit"]: item["quantity"] for item in row["amount"]} == {"lovelace": "5000000", TOKEN: "7"}


@pytest.mark.parametrize(
    "assets",
    [
        {"lovelace": "6000000", TOKEN: "7"},
        [{"unit": "lovelace", "quantity": "6000000"}, {"unit": TOKEN, "quantity": 7}],
    ],
)
def test_the_faucet_accepts_amounts_in_blockfrosts_form(purse: Purse, api: BlockFrostApi, assets: object) -> None:
    purse.control("faucet", address=purse.who.address.text, assets=assets)
    purse.control("blocks", count=1)
    (row,) = api.address_utxos(purse.who.address.text, return_type="json")
    assert {item["unit"]: item["quantity"] for item in row["amount"]} == {"lovelace": "6000000", TOKEN: "7"}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("faucet", {"address": "addr1", "lovelace": "1000000"}),
        ("faucet", {"lovelace": "1000000"}),
        ("faucet", {"address": payer("alice").address.text}),
        ("faucet", {"address": payer("alice").address.text, "lovelace": 1.5}),
        ("faucet", {"address": payer("alice").address.text, "lovelace": "1"}),
        ("faucet", {"address": payer("alice").address.text, "assets": {"TOK": "1"}}),
        ("faucet", {"address": payer("alice").address.text, "assets": [{"unit": TOKEN}]}),
        ("faucet", {"address": payer("alice").address.text, "assets": [{"unit": TOKEN, "quantity": "1"}] * 2}),
        ("faucet", {"address": payer("alice").address.text, "assets": {"lovelace": "9000000"}, "lovelace": "1"}),
        ("blocks", {"count": 0}),
        ("blocks", {"count": True}),
        ("rollback", {"depth": 1}),
        ("faults", {"on": "submit", "kind": "nonsense"}),
        ("faults", {"on": "submit", "kind": "stale_index"}),
        ("faults", {"on": "submit", "kind": "full", "count": 0}),
        ("faults", {"on": "submit", "kind": "full", "colour": "red"}),
    ],
)
def test_an_invalid_control_request_is_refused_and_changes_nothing(
    purse: Purse, name: str, body: dict[str, object]
) -> None:
    before = purse.state()
    answer = httpx.post(f"{purse.devnet.origin}/devnet/{name}", json=body, verify=NO_TLS)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert purse.state() == before


def test_a_control_request_with_deeply_nested_json_is_refused(purse: Purse) -> None:
    body = b'{"count": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    assert httpx.post(f"{purse.devnet.origin}/devnet/blocks", content=body, verify=NO_TLS).status_code == 400


# --- running -----------------------------------------------------------------------------------------------------


def test_blocks_are_made_automatically_when_a_block_time_is_set() -> None:
    with DevnetThread(block_time_s=1) as devnet:
        purse, deadline = Purse(payer("alice"), devnet), time.monotonic() + 60
        while purse.get("/blocks/latest").json()["height"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_devnet_listens_on_loopback_only() -> None:
    program = (
        "import asyncio\nfrom payagent.devnet.server import serve_devnet\n"
        "asyncio.run(serve_devnet(host='0.0.0.0', block_time_s=0, announce=print))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert "not a loopback address" in ran.stderr


def test_sigterm_stops_the_devnet_even_with_a_hanging_client() -> None:
    program = (
        "import asyncio, json\nfrom payagent.devnet.server import serve_devnet\n"
        "say = lambda where: print(json.dumps(where), flush=True)\n"
        "asyncio.run(serve_devnet(host='127.0.0.1', block_time_s=1, announce=say))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        where = json.loads(running.stdout.readline())
        assert where["network"] == "devnet"
        httpx.post(
            f"{where['control']}/faults", json={"on": "/genesis", "kind": "hang"}, verify=NO_TLS
        ).raise_for_status()
        with httpx.Client(verify=NO_TLS) as hanging:
            with pytest.raises(httpx.ReadTimeout):
                hanging.get(where["chain"] + "/genesis", timeout=0.3)
            running.send_signal(signal.SIGTERM)
            _, talk = running.communicate(timeout=60)
        assert (running.returncode, talk) == (0, "")
