"""An app with only the pay scope sees its own payments and limits, in every operation of the API."""

import json
import re
from functools import partial
from typing import Any

from kit.api import Api, require_problem
from kit.api_operations import BLIND, OPERATIONS
from kit.canaries import plant
from kit.event_stream import following

from payagent.core.money import format_ada
from payagent.core.policy import WALLET, Limit, Scope, Window
from payagent.store.rows.limit_counters import set_limit

NAMED = "{id}"
"""Where the other app's payment goes, in a path of the table."""


PUBLIC = {"get /healthz", "get /readyz", "head /healthz", "head /readyz"}


async def test_the_isolation_table_lists_every_operation(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    calls = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    assert calls - PUBLIC == OPERATIONS.keys()


async def test_no_operation_reveals_another_apps_payment(api: Api) -> None:
    """Searches each answer for the other app's ids, transaction, amount and name."""
    api.world.settings(price="11000000")
    theirs = await api.pay("a secret of the other", app="other")
    api.world.settings(price="10000000")
    for operation, (expected, body) in OPERATIONS.items():
        if body == "stream":
            await _streams_nothing(api, theirs)
            continue
        method, path = operation.split(" ")
        call = {"origin": api.world.origin, "request": {"method": "POST", "path": "/chat"}}
        content = api.body(f"mine by {operation}") if body == "402" else call if body == "call" else body
        for name in ("{payment_id}", "{topup_id}", "{name}"):
            path = path.replace(name, "other" if name == "{name}" else str(theirs["id"]))
        answer = await api.as_("payer").request(method, path, json=content)
        if expected is BLIND:
            assert answer.status_code in (200, 201), (operation, answer.text)
            _tells_nothing(answer.text, theirs)
        else:
            assert answer.status_code >= 400, operation
            require_problem(answer, expected)


async def _streams_nothing(api: Api, theirs: dict[str, Any]) -> None:
    async with following(api, "payer", params={"after": "0"}) as stream:
        await api.pay("mine", app="payer")
        for event in await stream.until("sign"):
            _tells_nothing(json.dumps(event), theirs)


def _tells_nothing(text: str, theirs: dict[str, Any]) -> None:
    spent = sum(int(output["units"]) for output in theirs["outputs"]) + int(theirs["fee"])
    for secret in (theirs["id"], theirs["invoice_id"], theirs["tx_hash"], "app_other", f'"{spent}"'):
        assert str(secret) not in text, secret


async def test_limits_do_not_reveal_what_other_apps_spent(api: Api) -> None:
    await api.http.post("/v1/limits", json={"app": "payer", "limits": {"per_day": "40000000"}})
    await api.http.post("/v1/limits", json={"app": "other", "limits": {"per_day": "50000000"}})
    await api.pay("a", app="other")
    mine = await api.pay("b", app="payer")
    spent = str(13_000_000 + int(str(mine["fee"])))
    told = (await api.as_("payer").get("/v1/limits")).json()["limits"]
    assert [(one["app"], one["limit"], one["spent"], one["left"]) for one in told] == [
        (None, "per_payment", "0", None),
        (None, "per_day", spent, None),
        ("payer", "per_day", spent, str(40_000_000 - int(spent))),
    ]


async def test_an_app_that_repeats_anothers_invoice_and_key_does_not_get_its_payment(api: Api) -> None:
    """The same invoice and the same key, by an app that has seen them."""
    body = api.body("shared")
    first = await api.as_("other").post("/v1/payments", json=body, headers={"Idempotency-Key": "k"})
    assert first.status_code == 201
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = await api.as_("payer").post("/v1/payments", json=body, headers=headers)
        told = require_problem(answer, "invoice_already_paid/other_intent")
        assert "payment" not in told
        _tells_nothing(answer.text.replace(first.json()["invoice_id"], ""), first.json())


async def test_a_refusal_by_a_shared_limit_does_not_reveal_what_others_spent(api: Api) -> None:
    """Neither in the answer nor where the refused payment is shown. An app that may see the wallet sees it."""
    await api.http.post("/v1/limits", json={"limits": {"per_day": "30000000"}})
    theirs = await api.pay("theirs", app="other")
    left = str(30_000_000 - 13_000_000 - int(str(theirs["fee"])))
    mine = await api.pay("mine", app="payer")
    left_then = str(int(left) - 13_000_000 - int(str(mine["fee"])))
    refused = await api.as_("payer").post("/v1/payments", json=api.body("more"))
    told = require_problem(refused, "limit_exceeded")
    assert (told["limit"], told["asset"], told["left"], told["frees_at"]) == ("per_day", "lovelace", None, None)
    assert int(told["asked"]) > 13_000_000 - 1
    quoted = await api.as_("payer").post("/v1/quotes", json=api.body("more"))
    assert quoted.json()["within_limits"] is False
    shown = [refused.text, quoted.text]
    for row in (await api.as_("payer").get("/v1/payments")).json()["payments"]:
        shown.append((await api.as_("payer").get(f"/v1/payments/{row['id']}")).text)
        require_problem(await api.as_("payer").get(f"/v1/payments/{row['id']}/receipt"), "forbidden")
    async with following(api, "payer", params={"after": "0"}) as stream:
        shown += [json.dumps(event) for event in await stream.until("reject")]
    figures = [form for units in (left, left_then) for form in (units, format_ada(int(units)))]
    for text in shown:
        assert not [figure for figure in figures if figure in text]
    rejected = (await api.http.get("/v1/payments", params={"state": "rejected"})).json()["payments"][0]
    shown_all = (await api.http.get(f"/v1/payments/{rejected['id']}")).text
    assert format_ada(int(left_then)) in shown_all, "the operator sees it"
    by_operator = await api.http.post("/v1/payments", json=api.body("the operator's"))
    assert require_problem(by_operator, "limit_exceeded")["left"] == left_then


async def test_an_app_sees_exactly_what_its_own_limit_leaves(api: Api) -> None:
    await api.http.post("/v1/limits", json={"app": "payer", "limits": {"per_day": "20000000"}})
    mine = await api.pay("mine", app="payer")
    left = str(20_000_000 - 13_000_000 - int(str(mine["fee"])))
    told = require_problem(await api.as_("payer").post("/v1/payments", json=api.body("b")), "limit_exceeded")
    assert (told["app"], told["left"]) == ("payer", left)
    assert told["frees_at"] is not None
    (row, *_) = (await api.as_("payer").get("/v1/payments")).json()["payments"]
    assert format_ada(int(left)) in row["reason"]["detail"]


async def test_a_refusal_for_lack_of_funds_does_not_reveal_the_wallet_balance(api: Api) -> None:
    api.world.settings(price=str(900_000_000))
    free = sum(utxo.lovelace for utxo in api.run.context.utxos)
    for path in ("/v1/payments", "/v1/quotes"):
        answer = await api.as_("payer").post(path, json=api.body("too much"))
        told = require_problem(answer, "not_enough_funds")
        assert not re.search(r"[0-9]{5}|[0-9]\.[0-9]| ADA", told["detail"])
        assert "shortfall" not in told
    by_operator = require_problem(await api.http.post("/v1/quotes", json=api.body("too much")), "not_enough_funds")
    short, in_words = str(by_operator["shortfall"]), format_ada(int(by_operator["shortfall"]))
    assert int(short) > free // 2
    (row, *_) = (await api.as_("payer").get("/v1/payments")).json()["payments"]
    told_less = (await api.as_("payer").get(f"/v1/payments/{row['id']}")).text
    assert (short not in told_less, in_words not in told_less) == (True, True)
    assert in_words in (await api.http.get(f"/v1/payments/{row['id']}")).text


async def test_an_app_can_find_the_wallet_balance_by_quoting_many_amounts(api: Api) -> None:
    """docs/explanation/security.md says so; a change that prevents it must change that page."""
    free = sum(utxo.lovelace for utxo in api.run.context.utxos)
    payable, too_much = 10_000_000, 900_000_000
    while too_much - payable > 1_000_000:
        price = (payable + too_much) // 2
        api.world.settings(price=str(price))
        answer = await api.as_("payer").post("/v1/quotes", json=api.body("how much"))
        if answer.status_code == 200:
            payable = price
        else:
            require_problem(answer, "not_enough_funds")
            too_much = price
    shares = 3_000_000
    assert 0 <= free - payable - shares < 3_000_000


async def test_an_app_bound_to_merchants_and_assets_sees_no_limits_of_others(api: Api) -> None:
    bound = {"name": "bound", "merchants": ["t"], "assets": ["lovelace"]}
    made = (await api.http.post("/v1/apps", json=bound)).json()
    api.tokens["bound"] = plant("the token of bound", made["token"])
    elsewhere = Limit(Scope(merchant="https://elsewhere.example"), "lovelace", Window.DAY, 77)
    of_token = Limit(WALLET, "ab" * 28, Window.DAY, 78)
    here = Limit(Scope(merchant=api.world.origin), "lovelace", Window.DAY, 79_000_000)
    for limit in (elsewhere, of_token, here):
        await api.run.context.write("limit", partial(set_limit, limit=limit))
    told = await api.as_("bound").get("/v1/limits")
    assert "elsewhere" not in told.text
    assert [one["most"] for one in told.json()["limits"]][-1] == "79000000"
    assert not {"77", "78"} & {one["most"] for one in told.json()["limits"]}
