"""The log of changes and refusals, the raised alerts, and the names of listed payments."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import ADA, World, with_terms
from kit.api import Api, require_problem, served


@pytest.fixture
async def asking(world: World) -> AsyncIterator[Api]:
    """A funded wallet behind a running API; above 5 ADA a person decides."""
    world.fund(*[100 * ADA] * 5)
    async with world.run(terms=with_terms(approval_required_above={"lovelace": 5 * ADA})) as run:
        await run.run_pass()
        async with served(run) as api:
            yield api


LATER = {"since": "2000-01-01T00:00:00Z"}
"""Later than the apps of the API's tests, which were added in 1970."""


async def log(api: Api, **query: str | int) -> list[dict[str, object]]:
    answer = await api.as_("reader").get("/v1/log", params=LATER | query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["log"])


async def post(api: Api, path: str, app: str = "operator", **body: object) -> None:
    answer = await api.as_(app).post(path, json=body)
    assert answer.status_code in (200, 201), answer.text


async def test_a_read_token_sees_by_name_who_changed_what(api: Api) -> None:
    await post(api, "/v1/apps", name="bot", scopes=["pay"], app="first")
    await post(api, "/v1/limits", app="first", merchant="t", limits={"per_day": "7000000"})
    await post(api, "/v1/pause", reason="a drill")
    await post(api, "/v1/resume")
    await post(api, "/v1/merchants", name="shop", origin="https://shop.example")
    told = await log(api)
    assert [(one["event"], one["by"], one["app"], one["merchant"]) for one in told] == [
        ("merchant_added", "operator", None, "shop"),
        ("resumed", "operator", None, None),
        ("paused", "operator", None, None),
        ("limit_set", "first", None, "t"),
        ("token_issued", "first", "bot", None),
        ("app_added", "first", "bot", None),
    ]
    assert told[2]["detail"] == {"reason": "a drill"}


async def test_refusals_are_listed_with_the_app_and_its_call(api: Api) -> None:
    await api.http.post("/v1/limits", json={"app": "payer", "limits": {"per_day": "1000000"}})
    request = {"method": "POST", "path": "/chat?api_key=secret", "body_sha256": "ab" * 32}
    above = await api.as_("payer").post("/v1/payments", json=api.body("above", request=request))
    body = api.body("unread")
    body["response"] = {"status": 402, "body": {"no": "invoice"}}
    unread = await api.as_("other").post("/v1/payments", json=body)
    assert above.json()["code"] == "limit_exceeded"
    first, second, _ = await log(api)
    assert (first["event"], first["app"], first["payment"], first["by"]) == ("refused", "other", None, None)
    assert first["detail"]["code"] == unread.json()["code"]  # type: ignore[index]
    assert "received" not in first["detail"]  # type: ignore[operator]
    assert (second["event"], second["app"], second["merchant"]) == ("reject", "payer", "t")
    (rejected,) = (await api.http.get("/v1/payments")).json()["payments"]
    assert (second["request"], second["payment"]) == ("POST /chat", rejected["id"])


async def test_decisions_on_approvals_say_who_made_them(asking: Api) -> None:
    for decision in ("approve", "deny"):
        asked = (await asking.as_("payer").post("/v1/payments", json=asking.body(decision))).json()
        await post(asking, f"/v1/payments/{asked['id']}/{decision}")
        newest = (await log(asking, limit=1))[0]
        assert (newest["by"], newest["app"], newest["payment"]) == ("operator", "payer", asked["id"])
        assert newest["event"] == {"approve": "reserve", "deny": "deny"}[decision]


async def test_the_log_is_read_page_by_page_and_from_a_time(api: Api) -> None:
    for reason in ("one", "two", "three"):
        await post(api, "/v1/pause", reason=reason)
        await post(api, "/v1/resume")
    pages, cursor = [], None
    while True:
        query = {"limit": 4} | LATER | ({"cursor": cursor} if cursor else {})
        answer = (await api.as_("reader").get("/v1/log", params=query)).json()
        pages.append([one["seq"] for one in answer["log"]])
        cursor = answer["cursor"]
        if cursor is None:
            break
    assert [len(page) for page in pages] == [4, 2]
    everything = await log(api)
    assert [seq for page in pages for seq in page] == [one["seq"] for one in everything]
    assert await log(api, since="2126-01-01T00:00:00Z") == []
    assert await log(api, since=str(everything[-1]["at"])) == everything


async def test_the_log_of_one_kind_lists_nothing_else(asking: Api) -> None:
    await post(asking, "/v1/pause", reason="a drill")
    await post(asking, "/v1/resume")
    asked = (await asking.as_("payer").post("/v1/payments", json=asking.body("please"))).json()
    await post(asking, f"/v1/payments/{asked['id']}/deny")
    assert [one["event"] for one in await log(asking, kind="signing")] == ["resumed", "paused"]
    assert [one["event"] for one in await log(asking, kind="decisions")] == ["deny"]
    require_problem(await asking.as_("reader").get("/v1/log", params={"kind": "secrets"}), "bad_request")


async def test_a_refused_filter_is_named_as_it_was_given(api: Api) -> None:
    for name in ("app", "by"):
        told = require_problem(await api.as_("reader").get("/v1/log", params={name: "nobody"}), "bad_request")
        assert (told["key"], told["detail"]) == (name, f"{name} is neither the name nor the id of an app")


async def test_alerts_are_listed_until_they_are_cleared(asking: Api) -> None:
    asked = (await asking.as_("payer").post("/v1/payments", json=asking.body("please"))).json()
    (alert,) = (await asking.as_("reader").get("/v1/alerts")).json()["alerts"]
    assert (alert["kind"], alert["facts"]["payment"]) == ("approval_needed", asked["id"])
    await post(asking, f"/v1/payments/{asked['id']}/deny")
    assert (await asking.as_("reader").get("/v1/alerts")).json() == {"alerts": []}


@pytest.mark.parametrize("path", ["/v1/log", "/v1/alerts"])
async def test_an_app_that_only_pays_sees_neither_log_nor_alerts(api: Api, path: str) -> None:
    require_problem(await api.as_("payer").get(path), "forbidden")


async def test_a_listed_payment_names_its_app_its_merchant_and_its_call(api: Api) -> None:
    request = {"method": "POST", "path": "/chat?model=a", "body_sha256": "ab" * 32}
    await api.pay("with its request", app="payer", request=request)
    await api.pay("without it", app="payer")
    split = await api.http.post("/v1/wallet/split", json={"count": 2, "lovelace": "5000000"})
    assert split.status_code == 201
    listed = (await api.as_("reader").get("/v1/payments")).json()["payments"]
    assert [(one["app_name"], one["merchant"], one["request"]) for one in listed] == [
        ("first", None, None),
        ("payer", "t", None),
        ("payer", "t", "POST /chat"),
    ]
    shown = (await api.as_("payer").get(f"/v1/payments/{listed[2]['id']}")).json()
    assert shown["app_name"] == "payer"
    api.run.context.config.merchants.clear()  # type: ignore[attr-defined]
    removed = (await api.as_("reader").get("/v1/payments")).json()["payments"]
    assert [one["merchant"] for one in removed] == [None, api.world.origin, api.world.origin]
