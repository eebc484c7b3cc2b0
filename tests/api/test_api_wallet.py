"""The wallet, its transfers, the limits and the ledger over HTTP, compared with the chain."""

import pytest
from kit.agent import DEVNET, World, daily, with_terms
from kit.api import Api, served
from kit.external_spends import spend_elsewhere
from kit.hostile_402s import TOKEN, address

PAYEE = address(DEVNET, 6, 0x41)


async def totals(api: Api) -> dict[str, dict[str, str]]:
    wallet = (await api.http.get("/v1/wallet")).json()
    return {row.pop("asset"): row for row in wallet["assets"]}


async def test_the_wallet_shows_available_held_and_total_at_every_step(api: Api) -> None:
    assert await totals(api) == {
        "lovelace": {"available": "500000000", "held": "0", "in_flight": "0", "total": "500000000"}
    }
    paid = await api.pay()
    spent = 13_000_000 + int(paid["fee"])  # type: ignore[call-overload]
    held = {"available": "400000000", "held": str(spent), "in_flight": str(spent), "total": "500000000"}
    assert await totals(api) == {"lovelace": held}
    wallet = (await api.http.get("/v1/wallet")).json()
    assert wallet["utxos"] == {"available": 4, "reserved": 1, "pending": 1, "locked": 0, "missing": 0}
    assert (wallet["network"], wallet["address"]) == ("devnet", api.world.address)
    assert wallet["chain"]["problem"] is None
    assert wallet["chain"]["tip_height"] == api.run.context.chain.tip.height  # type: ignore[union-attr]
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    left = str(500_000_000 - spent)
    assert await totals(api) == {"lovelace": {"available": left, "held": "0", "in_flight": "0", "total": left}}
    assert api.world.on_chain() == {"lovelace": int(left)}


async def test_utxos_add_up_and_name_the_payment_that_reserves_them(api: Api) -> None:
    paid = await api.pay()
    utxos = (await api.http.get("/v1/wallet/utxos")).json()["utxos"]
    reserved = [utxo for utxo in utxos if utxo["state"] == "reserved"]
    assert [utxo["reserved_for"] for utxo in reserved] == [paid["id"]]
    assert reserved[0]["ref"] == paid["nonce_utxo"]
    assert sum(int(utxo["lovelace"]) for utxo in utxos if utxo["state"] == "available") == 400_000_000


async def test_a_split_makes_equal_utxos_and_a_send_pays_exactly_the_amount(api: Api) -> None:
    split = await api.http.post("/v1/wallet/split", json={"count": 7, "lovelace": "5000000"})
    assert (split.status_code, split.json()["kind"]) == (201, "split")
    send = await api.http.post("/v1/wallet/send", json={"address": PAYEE, "units": "7000000"})
    assert (send.status_code, send.json()["kind"]) == (201, "send")
    assert send.json()["headers"] == {}
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    utxos = (await api.http.get("/v1/wallet/utxos")).json()["utxos"]
    assert [utxo["lovelace"] for utxo in utxos].count("5000000") == 7
    fees = int(split.json()["fee"]) + int(send.json()["fee"])
    assert api.world.on_chain() == {"lovelace": 500_000_000 - 7_000_000 - fees}
    assert (await totals(api))["lovelace"]["total"] == str(api.world.on_chain()["lovelace"])
    books = (await api.http.get("/v1/ledger/balance")).json()["balances"]
    assert {row["account"]: row["units"] for row in books}["fees"] == str(fees)


@pytest.mark.parametrize(
    ("path", "order", "other"),
    [
        ("split", {"count": 2, "lovelace": "5000000"}, {"count": 3, "lovelace": "5000000"}),
        ("send", {"address": PAYEE, "units": "7000000"}, {"address": PAYEE, "units": "7000001"}),
        ("send", {"address": PAYEE, "all": True}, {"address": PAYEE, "units": "7000000"}),
    ],
)
async def test_a_transfer_repeated_with_its_key_is_one_transaction(
    api: Api, path: str, order: dict[str, object], other: dict[str, object]
) -> None:
    key = {"Idempotency-Key": "order-1"}
    answers = [await api.http.post(f"/v1/wallet/{path}", json=order, headers=key) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert len({answer.json()["tx_hash"] for answer in answers}) == 1
    reused = await api.http.post(f"/v1/wallet/{path}", json=other, headers=key)
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")


async def test_send_all_leaves_nothing_behind(world: World) -> None:
    world.fund(100_000_000, 7_000_000)
    world.fund(5_000_000, assets={TOKEN: 12})
    async with world.run() as run:
        await run.run_pass()
        async with served(run) as api:
            sent = await api.http.post("/v1/wallet/send", json={"address": PAYEE, "all": True})
            assert (sent.status_code, sent.json()["kind"]) == (201, "sweep")
            assert {(o["asset"], o["units"]) for o in sent.json()["outputs"]} == {
                ("lovelace", str(112_000_000 - int(sent.json()["fee"]))),
                (TOKEN, "12"),
            }
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert world.on_chain() == {}
            assert await totals(api) == {
                "lovelace": {"available": "0", "held": "0", "in_flight": "0", "total": "0"}
            }


async def test_send_all_names_what_it_may_not_send_and_sends_the_rest(world: World) -> None:
    world.fund(100_000_000)
    world.fund(2_000_000, assets={TOKEN: 12})
    order, key = {"address": PAYEE, "all": True}, {"Idempotency-Key": "all"}
    async with world.run(terms=with_terms(caps={"lovelace": 200_000_000})) as run:
        await run.run_pass()
        async with served(run) as api:
            sent = await api.http.post("/v1/wallet/send", json=order, headers=key)
            again = await api.http.post("/v1/wallet/send", json=order, headers=key)
            assert (sent.status_code, again.status_code) == (201, 200), sent.text
            behind = sent.json()["left_behind"]
            assert (behind["utxos"], behind["lovelace"], behind["assets"]) == (1, "2000000", [TOKEN])
            assert "[[limits.assets]]" in behind["detail"]
            assert again.json()["left_behind"] == behind
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert world.on_chain() == {"lovelace": 2_000_000, TOKEN: 12}
            refused = await api.http.post("/v1/wallet/send", json=order)
            assert (refused.status_code, refused.json()["code"]) == (403, "asset_not_allowed")
            assert "nothing is left to send but 1 UTxO with 2 ADA" in refused.json()["detail"]


async def test_a_native_token_is_sent_in_its_own_units(world: World) -> None:
    world.fund(100_000_000)
    world.fund(5_000_000, assets={TOKEN: 12})
    async with world.run() as run:
        await run.run_pass()
        async with served(run) as api:
            order = {"address": PAYEE, "asset": TOKEN, "units": "5"}
            sent = await api.http.post("/v1/wallet/send", json=order)
            assert sent.status_code == 201, sent.text
            await run.agent.submitter.drain(60)
            await run.settle_down()
            assert world.on_chain()[TOKEN] == 7
            assert (await totals(api))[TOKEN] == {"available": "7", "held": "0", "in_flight": "0", "total": "7"}


async def test_limits_count_what_is_held_and_a_payment_above_them_is_refused(world: World) -> None:
    world.fund(*[100_000_000] * 3)
    limits = daily(20_000_000, 30_000_000) + daily(5, 50, TOKEN)
    async with world.run(terms=with_terms(limits=limits)) as run:
        await run.run_pass()
        async with served(run) as api:
            paid = await api.pay()
            spent = 13_000_000 + int(paid["fee"])  # type: ignore[call-overload]
            told = (await api.http.get("/v1/limits")).json()["limits"]
            of_token, of_ada = ([one for one in told if one["asset"] == asset] for asset in (TOKEN, "lovelace"))
            assert [(one["limit"], one["spent"], one["left"]) for one in of_ada] == [
                ("per_payment", "0", "20000000"),
                ("per_day", str(spent), str(30_000_000 - spent)),
            ]
            assert [(one["spent"], one["left"]) for one in of_token] == [("0", "5"), ("0", "50")]
            assert (await api.http.post("/v1/payments", json=api.body("b"))).status_code == 201
            third = await api.http.post("/v1/payments", json=api.body("c"))
            assert (third.status_code, third.json()["limit"]) == (403, "per_day")
            quote = (await api.http.post("/v1/quotes", json=api.body("d"))).json()
            assert (quote["within_limits"], quote["refusal"]["code"]) == (False, "limit_exceeded")


async def test_a_payments_entries_are_listed_in_pages_and_each_balances(api: Api) -> None:
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    reader = api.as_("reader")
    mine = (await reader.get("/v1/ledger/entries", params={"payment": paid["id"]})).json()["entries"]
    assert [entry["kind"] for entry in mine] == ["post", "reserve"]
    pages: list[dict[str, object]] = []
    cursor: str | None = None
    while not pages or cursor:
        query = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = (await reader.get("/v1/ledger/entries", params=query)).json()
        pages += page["entries"]
        cursor = page["cursor"]
    assert [entry["kind"] for entry in pages] == ["post", "reserve"] + ["deposit"] * 5
    for entry in pages:
        assert sum(int(line["units"]) for line in entry["postings"]) == 0  # type: ignore[attr-defined]
    fees = (await reader.get("/v1/ledger/entries", params={"account": "fees"})).json()["entries"]
    assert [entry["id"] for entry in fees] == [mine[0]["id"]]


async def test_unfreeze_is_refused_while_an_external_spend_is_missing_from_seen(api: Api) -> None:
    first = spend_elsewhere(api.run)
    await api.run.run_pass()
    second = spend_elsewhere(api.run)
    await api.run.run_pass()
    assert (await api.http.get("/v1/wallet")).json()["frozen_by"] == [first, second]
    assert (await api.as_("payer").get("/v1/wallet")).json()["frozen_by"] is None
    for seen in (None, first, [1], [first, "F" * 64]):
        answer = await api.http.post("/v1/wallet/unfreeze", json={"seen": seen})
        assert (answer.status_code, answer.json()["code"], answer.json()["key"]) == (400, "bad_request", "seen")
    answer = await api.http.post("/v1/wallet/unfreeze", json={"seen": [first]})
    assert (answer.status_code, answer.json()["code"]) == (409, "external_spend_new")
    assert second in answer.json()["detail"]
    answer = await api.http.post("/v1/wallet/unfreeze")
    assert answer.json() == {"tx": second, "txs": [first, second]}
    answer = await api.http.post("/v1/wallet/unfreeze", json={"seen": []})
    assert answer.json() == {"tx": None, "txs": []}
