"""Payments over HTTP: a 402 is paid on chain once, and the request is served."""

import asyncio
import base64
import json
import re
import sqlite3
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from kit.agent import ADA, World
from kit.api import Api, require_problem, served

from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.core.payment.machine import Delivery
from payagent.devnet.merchant import role_address
from payagent.store.rows import payments, prepaid

SHA256 = "ab" * 32


async def test_a_402_is_paid_on_chain_and_its_headers_get_the_request_served(api: Api) -> None:
    world = api.world
    answer = await api.http.post("/v1/payments", json=api.body("hello"))
    assert answer.status_code == 201, answer.text
    paid = answer.json()
    assert paid["state"] in ("signed", "in_flight")
    assert re.fullmatch("pay_[0-9a-f]{24}", paid["id"])
    assert [(o["role"], o["units"]) for o in paid["outputs"]] == [
        ("pay_to", "10000000"),
        ("split", "2000000"),
        ("split", "1000000"),
    ]
    assert paid["headers"]["X-Invoice-Id"] == paid["invoice_id"]
    assert paid["headers"]["X-Payment"] == paid["tx_hash"]
    assert paid["headers"]["X-Partner"] == "demo"
    assert paid["headers"]["X-Wallet-Address"] == world.address
    assert "X-Idempotency-Key" not in paid["headers"]
    assert paid["ready"] is False

    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    seen = (await api.http.get(f"/v1/payments/{paid['id']}")).json()
    assert (seen["state"], seen["ready"]) == ("confirmed", True)
    assert seen["headers"] == paid["headers"]
    outputs = world.http.get(f"{world.devnet.chain_url}/txs/{paid['tx_hash']}/utxos").json()["outputs"]
    on_chain = Counter((o["address"], o["amount"][0]["quantity"]) for o in outputs if len(o["amount"]) == 1)
    assert all(on_chain[o["address"], o["units"]] == 1 for o in paid["outputs"])

    assert world.call("hello", seen["headers"]).status_code == 200
    delivered = await api.http.post(f"/v1/payments/{paid['id']}/delivery", json={"status": 200})
    assert delivered.json()["delivery"] == "accepted"
    books = (await api.http.get("/v1/ledger/balance")).json()
    assert books["sums"] == {"lovelace": "0"}
    assert {row["account"]: row["units"] for row in books["balances"]} == {
        "external": "-500000000",
        "wallet": str(500_000_000 - 13_000_000 - int(paid["fee"])),
        f"merchant:{world.origin}": "13000000",
        "fees": paid["fee"],
    }
    wallet = (await api.http.get("/v1/wallet")).json()
    assert wallet["assets"][0]["total"] == str(world.on_chain()["lovelace"])


async def test_a_request_that_names_two_partners_is_refused(api: Api) -> None:
    """Otherwise a batch would be bought for a balance that nobody has."""
    api.world.settings(batch=4)
    call = {"method": "POST", "path": "/chat", "body_sha256": SHA256}
    for other, code in (("other", 400), ("demo", 201)):
        said = [["X-Partner", "demo"], ["x-partner", other]]
        answer = await api.http.post("/v1/payments", json=api.body(request=call | {"headers": said}))
        assert answer.status_code == code, answer.text
    (pool,) = prepaid.all_pools(api.run.context.conn)
    assert pool.partner == "demo"


async def test_the_proof_of_a_batch_names_the_partner_and_wallet_it_was_bought_for(api: Api) -> None:
    """Otherwise the merchant refuses the proof: the invoice names another partner or wallet than the config."""
    api.world.settings(batch=4)
    ours, theirs = api.world.address, role_address("split").text
    buyers = ("mine", ours), ("a b", ours), ("demo", theirs), ("demo", ours)
    for message, (partner, wallet) in zip(("first", "second", "third", "fourth"), buyers, strict=True):
        who = {"X-Partner": partner, "X-Wallet-Address": wallet}
        heard = api.world.call(message, who)
        said = {"method": "POST", "path": "/chat", "body_sha256": SHA256, "headers": who}
        body = api.body(request=said) | {"response": {"status": 402, "headers": {}, "body": heard.json()}}
        paid = (await api.http.post("/v1/payments", json=body, headers={"Idempotency-Key": message})).json()
        other = {api.world.origin: replace(api.run.context.config.merchants[api.world.origin], partner="since")}
        await api.run.context.take_config(replace(api.run.context.from_file, merchants=other), lambda _unit: None)
        await api.run.agent.submitter.drain(60)
        await api.run.settle_down()
        seen = (await api.http.get(f"/v1/payments/{paid['id']}")).json()
        assert {name: seen["headers"][name] for name in who} == who
        assert api.world.call(message, seen["headers"]).status_code == 200
        told = (await api.http.get(f"/v1/payments/{paid['id']}/receipt")).content
        assert list(check_receipt(read_receipt(told))) == []


async def test_a_reported_delivery_survives_a_crash_right_after_it(world: World) -> None:
    """Otherwise, if the client does not report again, the same request finds a used proof."""
    world.fund(50 * ADA)
    dead: list[str] = []

    def die(name: str) -> None:
        if dead or name == "after delivery":
            dead.append(name)
            raise sqlite3.OperationalError("the process is gone")

    async with world.run(checkpoint=die) as run:
        await run.run_pass()
        async with served(run) as api:
            paid = await api.pay()
            await run.agent.submitter.drain(60)
            await run.settle_down()
            await api.http.post(f"/v1/payments/{paid['id']}/delivery", json={"status": 200})
    assert dead
    async with world.run() as run:
        assert run.context.payment(str(paid["id"])).delivery is Delivery.ACCEPTED


async def test_the_same_402_fifty_times_at_once_under_one_key_is_one_payment(api: Api) -> None:
    body, key = api.body(), {"Idempotency-Key": "order-7"}
    answers = await asyncio.gather(
        *(api.http.post("/v1/payments", json=body, headers=key) for _ in range(50)),
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 49}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.json()["headers"]["X-Payment"] for answer in answers}) == 1
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    assert len(api.world.transactions()) == 1


async def test_an_idempotency_key_of_another_request_is_refused(api: Api) -> None:
    key = {"Idempotency-Key": "order-8"}
    request = {"method": "POST", "path": "/chat", "body_sha256": SHA256}
    first = await api.http.post("/v1/payments", json=api.body("a", request=request), headers=key)
    other = api.body("b", request=request | {"path": "/chat?again"})
    second = await api.http.post("/v1/payments", json=other, headers=key)
    assert first.status_code == 201
    assert (second.status_code, second.json()["code"]) == (422, "idempotency_key_reused")
    assert second.json()["detail"] == "the key 'order-8' was used for another request"


async def test_a_new_invoice_for_the_same_request_finds_the_payment_until_it_is_delivered(api: Api) -> None:
    request = {"method": "POST", "path": "/chat", "body_sha256": SHA256}
    first = await api.pay("a", request=request)
    again = await api.http.post("/v1/payments", json=api.body("a, with another invoice", request=request))
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert again.json()["invoice_id"] == first["invoice_id"]
    await api.http.post(f"/v1/payments/{first['id']}/delivery", json={"status": 402})
    again = await api.http.post("/v1/payments", json=api.body("a, with a third", request=request))
    assert (again.json()["id"], again.json()["delivery"]) == (first["id"], "presented")
    await api.http.post(f"/v1/payments/{first['id']}/delivery", json={"status": 200})
    tomorrow = await api.http.post("/v1/payments", json=api.body("a, tomorrow", request=request))
    assert tomorrow.status_code == 201
    assert tomorrow.json()["id"] != first["id"]


async def test_a_402_body_is_accepted_as_json_as_text_or_as_base64(api: Api) -> None:
    body = api.body()
    response = body["response"]
    text = json.dumps(response.pop("body"), indent=2)
    raw = base64.b64encode(text.encode()).decode()
    answers = [
        await api.http.post("/v1/payments", json=body | {"response": response | form})
        for form in ({"body": json.loads(text)}, {"body": text}, {"body_base64": raw})
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 200]


async def test_a_wait_ends_as_soon_as_the_state_changes(api: Api) -> None:
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    waiting = asyncio.create_task(api.http.get(f"/v1/payments/{paid['id']}", params={"wait": 60}))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await api.run.settle_down()
    answer = await asyncio.wait_for(waiting, 60)
    assert answer.json()["state"] in ("in_block", "confirmed")


async def test_a_wait_ends_when_its_time_is_up(api: Api) -> None:
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    answer = await api.http.get(f"/v1/payments/{paid['id']}", params={"wait": 1})
    assert answer.json()["state"] == "in_flight"


async def test_an_app_sees_its_own_payments_and_no_others(api: Api) -> None:
    mine = (await api.pay(app="payer"))["id"]
    own, other = api.as_("payer"), api.as_("other")
    assert (await own.get(f"/v1/payments/{mine}")).status_code == 200
    hidden = await other.get(f"/v1/payments/{mine}")
    missing = await other.get("/v1/payments/pay_000000000000000000000000")
    assert (hidden.status_code, missing.status_code) == (404, 404)
    assert hidden.json()["detail"].replace(mine, "") == missing.json()["detail"].replace(
        "pay_000000000000000000000000", ""
    )
    refused = await other.post(f"/v1/payments/{mine}/delivery", json={"status": 200})
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert (await other.get("/v1/payments")).json()["payments"] == []
    for app in ("app_payer", "payer", "nobody"):
        assert (await other.get("/v1/payments", params={"app": app})).json()["code"] == "forbidden"
    for app in ("app_payer", "payer"):
        for who in (own, api.as_("reader")):
            listed = (await who.get("/v1/payments", params={"app": app})).json()["payments"]
            assert [p["id"] for p in listed] == [mine]
    for app in ("payer", "both", "reader", "operator"):
        assert [p["id"] for p in (await api.as_(app).get("/v1/payments")).json()["payments"]] == [mine]
    assert (await api.as_("reader").get("/v1/payments", params={"app": "app_other"})).json()["payments"] == []
    for app in ("both", "reader"):
        refused = await api.as_(app).post(f"/v1/payments/{mine}/delivery", json={"status": 200})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), app
    assert (await own.get(f"/v1/payments/{mine}")).json()["delivery"] == "not_presented"


async def test_an_invoice_that_another_app_paid_is_refused_and_its_proof_is_not_shown(api: Api) -> None:
    body = api.body()
    first = await api.as_("payer").post("/v1/payments", json=body, headers={"Idempotency-Key": "k"})
    second = await api.as_("other").post("/v1/payments", json=body, headers={"Idempotency-Key": "k"})
    assert first.status_code == 201
    assert (second.status_code, second.json()["code"]) == (409, "invoice_already_paid")
    assert "headers" not in second.json()


async def test_payments_are_listed_newest_first_in_pages_and_by_filter(api: Api) -> None:
    made = [(await api.pay(f"m{number}"))["id"] for number in range(3)][::-1]
    first = (await api.http.get("/v1/payments", params={"limit": 2})).json()
    rest = (await api.http.get("/v1/payments", params={"limit": 2, "cursor": first["cursor"]})).json()
    assert [p["id"] for p in first["payments"] + rest["payments"]] == made
    assert rest["cursor"] is None
    for query, count in (
        ({"state": "settled"}, 0),
        ({"origin": api.world.origin + "/"}, 3),
        ({"origin": "https://api.example.com"}, 0),
        ({"since": first["payments"][0]["created_at"]}, 1),
        ({"since": "2100-01-01T00:00:00Z"}, 0),
        ({"app": "app_first"}, 3),
        ({"state": "signed,in_flight,rejected"}, 3),
        ({"state": "void,rejected,denied"}, 0),
        ({"delivery": "not_presented"}, 3),
        ({"delivery": "accepted"}, 0),
        ({"text": made[0]}, 1),
        ({"text": made[0][-8:].upper()}, 1),
        ({"text": str(first["payments"][0]["invoice_id"])}, 1),
        ({"text": str(first["payments"][0]["tx_hash"])}, 1),
        ({"text": made[0], "state": "settled"}, 0),
        ({"text": "%"}, 0),
        ({"decided": "true"}, 0),
    ):
        assert len((await api.http.get("/v1/payments", params=query)).json()["payments"]) == count, query
    wrong = await api.http.get("/v1/payments", params={"state": "signed,sined"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad_request")


async def test_a_request_is_found_by_its_path_and_not_by_its_query(api: Api) -> None:
    request = {"method": "GET", "path": "/search?key=s3cret", "body_sha256": SHA256}
    made = await api.pay("hello", request=request)
    for text, found in (("/search", [made["id"]]), ("s3cret", [])):
        listed = (await api.http.get("/v1/payments", params={"text": text})).json()["payments"]
        assert [one["id"] for one in listed] == found, text


async def test_a_filter_without_an_index_looks_at_so_many_payments_and_its_cursor_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payments, "SCAN_MAX", 2)
    oldest, *_ = [(await api.pay(f"m{number}"))["id"] for number in range(5)]
    query: dict[str, Any] = {"text": str(oldest)[4:]}
    pages = 0
    found: list[str] = []
    while query.get("cursor", "") is not None:
        page = (await api.http.get("/v1/payments", params=query)).json()
        found += [one["id"] for one in page["payments"]]
        query, pages = query | {"cursor": page["cursor"]}, pages + 1
    assert (found, pages) == ([oldest], 3)
    whole = (await api.http.get("/v1/payments", params={"text": oldest})).json()
    assert [one["id"] for one in whole["payments"]] == [oldest], "a whole id is found wherever it is"


async def test_a_quote_shows_the_total_of_the_payment_and_reserves_nothing(api: Api) -> None:
    body = api.body()
    quote = await api.http.post("/v1/quotes", json=body)
    assert quote.status_code == 200, quote.text
    told = quote.json()
    assert told["within_limits"] is True
    assert "refusal" not in told
    assert int(told["total"]) == 13_000_000 + int(told["fee"])
    assert told["spend"] == {"lovelace": told["total"]}
    wallet = (await api.http.get("/v1/wallet")).json()
    assert wallet["assets"][0]["held"] == "0"
    assert (await api.http.get("/v1/payments")).json()["payments"] == []
    paid = (await api.http.post("/v1/payments", json=body)).json()
    assert (paid["fee"], paid["outputs"]) == (told["fee"], told["outputs"])


async def test_a_quote_for_a_paid_invoice_names_the_payment_only_to_its_own_app(api: Api) -> None:
    body = api.body()
    paid = (await api.as_("payer").post("/v1/payments", json=body)).json()["id"]
    own = require_problem(await api.as_("payer").post("/v1/quotes", json=body), "invoice_already_paid/same_intent")
    assert own["payment"] == paid
    assert own["state"] in ("signed", "in_flight")
    other = await api.as_("other").post("/v1/quotes", json=body)
    require_problem(other, "invoice_already_paid/other_intent")
    assert paid not in other.text
    dearer = json.loads(json.dumps(body).replace('"amountUnits": "10000000"', '"amountUnits": "11000000"'))
    for path in ("/v1/quotes", "/v1/payments"):
        require_problem(await api.as_("payer").post(path, json=dearer), "terms_changed")


async def test_a_quote_without_the_key_of_a_paid_invoice_is_refused_as_the_payment_would_be(api: Api) -> None:
    body = api.body()
    paid = (await api.http.post("/v1/payments", json=body, headers={"Idempotency-Key": "k"})).json()["id"]
    for path in ("/v1/quotes", "/v1/payments"):
        told = require_problem(await api.http.post(path, json=body), "invoice_already_paid/other_intent")
        assert told["payment"] == paid


async def test_a_402_refused_by_max_total_can_still_be_quoted(api: Api) -> None:
    body = api.body()
    assert (await api.http.post("/v1/payments", json=body | {"max_total": "1"})).status_code == 403
    assert (await api.http.post("/v1/quotes", json=body)).json()["within_limits"] is True


async def test_max_total_bounds_the_payment_including_its_fee(api: Api) -> None:
    body = api.body()
    total = int((await api.http.post("/v1/quotes", json=body)).json()["total"])
    tight = body | {"max_total": str(total - 1)}
    told = (await api.http.post("/v1/quotes", json=tight)).json()
    assert (told["within_limits"], told["refusal"]["code"]) == (False, "limit_exceeded")
    refused = await api.http.post("/v1/payments", json=tight)
    assert (refused.status_code, refused.json()["code"]) == (403, "limit_exceeded")
    assert (refused.json()["limit"], refused.json()["asked"]) == ("max_total", str(total))
    other = {"max_total": str(2 * total), "max_total_asset": "ab" * 28}
    refused = await api.http.post("/v1/payments", json=body | other)
    assert (refused.status_code, refused.json()["limit"], refused.json()["left"]) == (403, "max_total", "0")
    bound = f"the call's own limit is {2 * total} units of {'ab' * 28} and allows nothing else"
    assert refused.json()["detail"] == f"{bound}, this payment is in ADA", "and not: leaves 0 ADA"
    assert "X-Payagent-Max-Cost" in refused.json()["fix"]
    same = {"max_total": str(total), "max_total_asset": "lovelace"}
    paid = await api.http.post("/v1/payments", json=body | same)
    assert paid.status_code == 201, paid.text


async def test_a_delivery_of_a_rejected_payment_or_a_transfer_is_refused(api: Api) -> None:
    split = (await api.http.post("/v1/wallet/split", json={"count": 2, "lovelace": "5000000"})).json()["id"]
    await api.http.post("/v1/payments", json=api.body(max_total="1"))
    rejected = (await api.http.get("/v1/payments", params={"state": "rejected"})).json()["payments"][0]
    assert rejected["reason"]["code"] == "limit_exceeded"
    for payment_id in (split, rejected["id"]):
        answer = await api.http.post(f"/v1/payments/{payment_id}/delivery", json={"status": 200})
        assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")


async def test_the_ledger_keeps_the_paid_402_as_received(world: World) -> None:
    world.fund(100_000_000)
    async with world.run() as run:
        await run.run_pass()
        async with served(run) as api:
            body = api.body()
            paid = (await api.http.post("/v1/payments", json=body)).json()
            kept = run.context.conn.execute(
                "SELECT response_402 FROM invoices WHERE invoice_id = ?", (paid["invoice_id"],)
            ).fetchone()[0]
            assert json.loads(kept) == body["response"]


async def test_reporting_the_answer_to_a_retry_returns_whether_and_when_to_retry(api: Api) -> None:
    paid = await api.pay("asked again")
    report = f"/v1/payments/{paid['id']}/delivery"
    early = api.world.call("asked again", paid["headers"])  # type: ignore[arg-type]
    pending = {"status": early.status_code, "headers": dict(early.headers), "body": early.json()}
    told = (await api.http.post(report, json=pending)).json()
    assert (told["answer"]["said"], told["answer"]["again_after_s"]) == ("pending", 0.5)
    assert told["headers"] == paid["headers"]
    lost = {"status": 502, "body_base64": base64.b64encode(b"\xff<html>").decode()}
    told = (await api.http.post(report, json=lost)).json()
    assert (told["answer"]["said"], told["answer"]["again_after_s"]) == ("unclear", 1)
    moved = (await api.http.post(report, json={"status": 307, "headers": [["Location", "/"]]})).json()
    assert (moved["answer"]["said"], moved["answer"]["again_after_s"]) == ("other", None)
    assert moved["delivery"] == "presented"
    both = {"status": 502, "body": "", "body_base64": ""}
    assert (await api.http.post(report, json=both)).json()["code"] == "bad_request"
    shown = (await api.http.get(f"/v1/payments/{paid['id']}")).json()
    assert [(a["kind"], a["tx_hash"]) for a in shown["attempts"]] == [("pay", paid["tx_hash"])]


async def test_a_retry_without_an_answer_can_be_reported(api: Api) -> None:
    """The proof was shown all the same, and the merchant has the money."""
    paid = await api.pay("no answer")
    report = f"/v1/payments/{paid['id']}/delivery"
    told = (await api.http.post(report, json={"status": 504, "unanswered": "ReadTimeout"})).json()
    assert (told["delivery"], told["answer"]["said"]) == ("presented", "unclear")
    assert (told["answer"]["reason"], told["answer"]["again_after_s"]) == ("ReadTimeout", 0.5)
    for wrong in ("two\nlines", "x" * 301, 1, None):
        refused = await api.http.post(report, json={"status": 504, "unanswered": wrong})
        assert (refused.json()["code"], refused.json()["key"]) == ("bad_request", "unanswered"), wrong


async def test_payments_are_not_searched_on_the_event_loop(api: Api) -> None:
    asked: list[str] = []
    api.run.context.conn.set_trace_callback(asked.append)
    answer = await api.http.get("/v1/payments", params={"since": "2100-01-01T00:00:00Z"})
    assert (answer.status_code, answer.json()["payments"]) == (200, [])
    assert not [sql for sql in asked if "FROM payments" in sql]


async def test_metadata_in_a_402_is_ignored_and_kept_in_the_receipt_unless_it_names_a_fee(api: Api) -> None:
    api.world.settings(dialect="flux")
    body = api.body("hello")
    response = body["response"]
    assert isinstance(response, dict)
    notes = {"metadata": {"model": "gpt-4-1106", "weights": [0.5, 1]}, "customFields": {"orderId": "20260001"}}
    response["body"] |= notes
    paid = await api.http.post("/v1/payments", json=body)
    assert paid.status_code == 201, paid.text
    receipt = (await api.http.get(f"/v1/payments/{paid.json()['id']}/receipt")).json()
    assert notes.items() <= json.loads(receipt["invoice"]["response_402"])["body"].items(), receipt
    response["body"] = dict(response["body"]) | {"customFields": {"platformFee": "1000000"}}
    refused = await api.http.post("/v1/payments", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "terms_not_understood"), refused.text


async def test_no_url_in_a_402_is_requested(api: Api) -> None:
    """Only the config says where to reach a merchant; a URL in its 402 could belong to anyone."""
    called: list[object] = []
    server = await asyncio.start_server(lambda _, writer: called.append(writer.close()), "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        body = api.body("hello")
        response = body["response"]
        assert isinstance(response, dict)
        honest = dict(response["body"])
        response["body"] = honest | dict.fromkeys(("webhook", "statusUrl", "facilitator"), url)
        response["headers"] |= {"Location": url, "X-Status-Url": url, "Link": f"<{url}>; rel=payment"}
        paid = await api.http.post("/v1/payments", json=body)
        assert paid.status_code == 201, paid.text
        path = f"/v1/payments/{paid.json()['id']}"
        await api.http.post(f"{path}/delivery", json={"status": 502})
        await api.run.agent.submitter.drain(60)
        await api.run.settle_down()
        assert (await api.http.get(path)).json()["state"] == "confirmed"
        assert called == []
