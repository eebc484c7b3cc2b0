"""The list of refused purchases."""

from kit.agent import World, asking_above
from kit.api import Api, require_problem, served

from payagent.core.timestamps import iso_time


async def refusals(api: Api, **query: str) -> list[dict[str, object]]:
    answer = await api.as_("reader").get("/v1/ledger/refusals", params=query)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["refusals"])


async def refuse_three(api: Api) -> None:
    """One by a limit, one for its merchant, one by a person."""
    api.world.settings(price="2000000000")
    request = {"method": "POST", "path": "/chat?to=much", "body_sha256": "0" * 64}
    await api.as_("payer").post("/v1/payments", json=api.body("too much", request=request))
    api.world.settings(price="10000000")
    await api.as_("other").post("/v1/payments", json=api.body("one") | {"origin": "https://elsewhere.example"})
    asking_above(api.run.context, {"lovelace": 1})
    asked = await api.http.post("/v1/payments", json=api.body("asked"))
    await api.http.post(f"/v1/payments/{asked.json()['id']}/deny")


async def test_every_refused_purchase_is_listed_newest_first_with_its_reason(api: Api) -> None:
    await refuse_three(api)
    rows = await refusals(api)
    assert [(row["app"], row["merchant"], row["origin"], row["code"]) for row in rows] == [
        ("first", "t", api.world.origin, "approval_denied"),
        ("other", "https://elsewhere.example", "https://elsewhere.example", "merchant_not_allowed"),
        ("payer", "t", api.world.origin, "limit_exceeded"),
    ]
    assert [row["payment"] is None for row in rows] == [False, True, False]
    assert rows[2]["request"] == "POST /chat", "without its query, which may hold a key"
    assert all(row["detail"] for row in rows)


async def test_refusals_are_filtered_and_paged(api: Api) -> None:
    await refuse_three(api)
    rows = await refusals(api)
    for query, found in (
        ({"app": "payer"}, rows[2:]),
        ({"merchant": "t"}, [rows[0], rows[2]]),
        ({"merchant": "https://elsewhere.example"}, rows[1:2]),
        ({"code": "limit_exceeded"}, rows[2:]),
        ({"since": "2026-01-01T00:00:00Z"}, rows),
        ({"until": "2026-01-01T00:00:00Z"}, []),
    ):
        assert await refusals(api, **query) == found, query
    api.world.clock.ahead_ms += 60_000
    since = iso_time(api.world.clock.now_ms())
    await api.as_("other").post("/v1/payments", json=api.body("two") | {"origin": "https://later.example"})
    assert [row["origin"] for row in await refusals(api, since=since)] == ["https://later.example"]
    first = (await api.http.get("/v1/ledger/refusals", params={"limit": 3})).json()
    rest = (await api.http.get("/v1/ledger/refusals", params={"limit": 3, "cursor": first["cursor"]})).json()
    assert (first["refusals"][1:], rest["refusals"], rest["cursor"]) == (rows[:2], rows[2:], None)


async def test_an_invalid_filter_of_refusals_is_refused(api: Api) -> None:
    for query in [{"app": "nobody"}, {"merchant": "nobody"}, {"since": "today"}, {"state": "void"}]:
        require_problem(await api.http.get("/v1/ledger/refusals", params=query), "bad_request")


async def test_a_refusal_survives_a_restart_and_the_removal_of_its_merchant(world: World) -> None:
    world.fund(100_000_000)
    async with world.run() as run, served(run) as api:
        await run.run_pass()
        world.settings(price="2000000000")
        await api.http.post("/v1/payments", json=api.body("too much"))
        run.context.config.merchants.clear()  # type: ignore[attr-defined]
        (row,) = await refusals(api)
        assert (row["merchant"], row["origin"]) == (world.origin, world.origin)
