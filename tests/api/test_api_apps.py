"""Apps over HTTP: tokens, scopes and revocation, and limits set at run time."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import cycle, product
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.agent import World, with_terms, world_with_clock
from kit.api import Api, require_problem, served
from kit.canaries import plant
from kit.effort import pick
from kit.event_stream import following
from kit.http import NO_TLS

from payagent.core import ledger
from payagent.store.db.unit import Unit
from payagent.store.rows import apps
from payagent.store.rows import writes as records

PAY = "/v1/payments"


async def add(api: Api, name: str = "bot", **wanted: object) -> dict[str, Any]:
    answer = await api.http.post("/v1/apps", json={"name": name, **wanted})
    assert answer.status_code == 201, answer.text
    told: dict[str, Any] = answer.json()
    api.tokens[name] = plant(f"the token of {name}", told["token"])
    return told


async def test_an_app_pays_with_its_token_within_its_own_limits(api: Api) -> None:
    told = await add(api, limits={"per_payment": "14000000", "per_day": "20000000"})
    assert (told["scopes"], told["active"], told["expires_at"]) == (["pay"], True, None)
    paid = await api.pay("a", app="bot")
    refused = require_problem(await api.as_("bot").post(PAY, json=api.body("b")), "limit_exceeded")
    assert (refused["limit"], refused["app"]) == ("per_day", "bot")
    assert int(refused["left"]) == 20_000_000 - 13_000_000 - int(str(paid["fee"]))
    assert datetime.fromisoformat(refused["frees_at"]) > datetime.now(UTC) + timedelta(hours=23, minutes=54)
    api.world.settings(price="12000000")
    above = require_problem(await api.as_("bot").post(PAY, json=api.body("c")), "limit_exceeded")
    assert (above["limit"], above["frees_at"]) == ("per_day", refused["frees_at"])
    assert (await api.http.post(PAY, json=api.body("d"))).status_code == 201


async def test_a_refusal_names_the_tightest_limit(api: Api) -> None:
    await add(api, limits={"per_payment": "12000000", "total": "13000000"})
    refused = require_problem(await api.as_("bot").post(PAY, json=api.body()), "limit_exceeded")
    assert (refused["limit"], refused["left"], refused["frees_at"]) == ("per_payment", "12000000", None)
    await api.http.post("/v1/limits", json={"app": "bot", "merchant": "t", "limits": {"per_week": "5000000"}})
    refused = require_problem(await api.as_("bot").post(PAY, json=api.body()), "limit_exceeded")
    assert (refused["limit"], refused["left"]) == ("per_week", "5000000")
    assert (refused["app"], refused["merchant"]) == ("bot", api.world.origin)


async def test_an_order_that_only_lowers_limits_raises_none_however_its_scope_is_named(api: Api) -> None:
    bot, token = await add(api, limits={"per_day": "20000000"}), "ab" * 28 + "00"
    await api.http.post("/v1/limits", json={"merchant": "t", "limits": {"per_day": "20000000"}})
    for scope in ({"app": "bot"}, {"app": bot["id"]}, {"merchant": "t"}, {"merchant": api.world.origin}):
        lowered = {**scope, "only_lower": True}
        for limits in ({"per_day": "20000001"}, {"per_day": None}, {"total": "5", "per_day": "20000001"}):
            answer = await api.http.post("/v1/limits", json={**lowered, "limits": limits})
            assert require_problem(answer, "limit_not_lower")["now"] == "20000000"
        first = await api.http.post("/v1/limits", json={**lowered, "asset": token, "limits": {"per_day": "1"}})
        assert require_problem(first, "limit_not_lower")["now"] is None
        for limits in ({"per_day": "20000000"}, {"per_week": "90000000"}):
            answer = await api.http.post("/v1/limits", json={**lowered, "limits": limits})
            assert answer.status_code == 200, answer.text
    assert {one["most"] for one in answer.json()["limits"] if one["app"] or one["merchant"]} == {
        "20000000",
        "90000000",
    }


async def test_an_app_is_bound_to_its_merchants_and_assets(api: Api) -> None:
    other = "ab" * 28 + "00"
    require_problem(await api.http.post("/v1/apps", json={"name": "x", "merchants": ["nobody"]}), "not_found")
    await add(api, "bound", merchants=["t"], assets=["lovelace"])
    await api.pay("a", app="bound")
    await add(api, "tokens", assets=[other], limits={"per_day": "5"})
    require_problem(await api.as_("tokens").post(PAY, json=api.body("b")), "asset_not_allowed")
    limits = (await api.as_("tokens").get("/v1/limits")).json()["limits"]
    assert [(one["asset"], one["most"]) for one in limits if one["app"]] == [(other, "5")]


async def test_a_token_is_shown_once_and_only_its_hash_is_stored(api: Api) -> None:
    told = await add(api)
    listed = (await api.http.get("/v1/apps")).json()["apps"]
    assert [one for one in listed if one["name"] == "bot"] == [{k: v for k, v in told.items() if k != "token"}]
    secret = told["token"].removeprefix("pa_").encode()
    for path in api.world.folder.rglob("ledger.db*"):
        assert secret not in path.read_bytes()


async def test_a_caller_may_supply_its_own_token_once_and_only_of_full_length(api: Api) -> None:
    """A caller that loses the connection before the answer still has its token."""
    before = await add(api)
    mine = plant("a token of the caller's making", "pa_" + "m" * 43)
    renew = "/v1/apps/bot/rotate-token"
    told = (await api.http.post(renew, json={"token": mine})).json()
    assert told["token"] == mine
    headers = {"authorization": f"Bearer {mine}"}
    assert (await api.http.get("/v1/limits", headers=headers)).status_code == 200
    for bad in (mine, before["token"], "pa_short", "pa_" + "m" * 44, "pa_" + "m" * 43 + "\n", "xx_" + "m" * 43, 5):
        require_problem(await api.http.post(renew, json={"token": bad}), "bad_request")
    assert (await api.http.get("/v1/limits", headers=headers)).status_code == 200
    asked = (await api.http.get("/v1/apps")).json()
    (me,) = (row["name"] for row in asked["apps"] if row["id"] == asked["caller"])
    assert me == "first"


async def test_revocation_takes_effect_at_once_also_for_waits_and_streams(api: Api) -> None:
    await add(api)
    paid = await api.pay("a", app="bot")
    await api.run.agent.submitter.drain(60)  # below it waits for the block
    async with following(api, "bot") as stream:
        waiting = asyncio.create_task(api.as_("bot").get(f"{PAY}/{paid['id']}?wait=60"))
        told = (await api.http.post("/v1/apps/bot/revoke")).json()
        assert (told["active"], told["revoked_at"] is None) == (False, False)
        require_problem(await api.as_("bot").get("/v1/limits"), "unauthorized")
        require_problem(await api.as_("bot").post(PAY, json=api.body("b")), "unauthorized")
        await stream.end()
        await api.run.agent.submitter.drain(60)
        api.world.block()
        await api.run.run_pass()
        require_problem(await waiting, "unauthorized")
    shown = (await api.http.get(f"{PAY}/{paid['id']}")).json()
    assert shown["state"] == "confirmed"  # its payment in flight still completes


@pytest.mark.parametrize("path", ["/v1/ledger/snapshot", "/v1/ledger/export"])
async def test_a_long_download_is_cut_off_when_the_token_is_revoked(
    api: Api, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is larger than the connection buffers, so the client gets an incomplete one."""
    await add(api, "auditor", scopes=["read", "operate"])
    pad = "x" * 1_000_000

    def job(unit: Unit) -> None:
        for number in range(12):
            records.put_meta(unit, f"pad {number}", pad)
        for number in range(1500):
            records.write_entry(unit, ledger.deposit({"lovelace": 1}), 1, ref=f"{number} {pad[:5000]}")

    await api.run.context.write("pad", job)
    async with api.as_("auditor").stream("GET", path) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_raw(1024)
        await anext(pieces)
        assert (await api.http.post("/v1/apps/auditor/revoke")).status_code == 200
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await _all_of(pieces)
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


async def _all_of(pieces: AsyncIterator[bytes]) -> None:
    async for _ in pieces:
        continue


LATE = [
    (PAY, None),
    ("/v1/apps", {"name": "made", "scopes": ["pay"]}),
    ("/v1/apps/bot/rotate-token", {}),
    ("/v1/limits", {"limits": {"per_day": "5000000"}}),
    ("/v1/wallet/split", {"count": 2, "lovelace": "2000000"}),
]
ENDS = ("revoke", "rotate-token")


@pytest.mark.parametrize(
    ("call", "end"),
    pick(list(zip(LATE, cycle(ENDS))), list(product(LATE, ENDS))),
    ids=lambda given: str(given)[:40],
)
async def test_a_request_whose_token_is_revoked_or_rotated_before_its_body_arrives_does_nothing(
    api: Api, call: tuple[str, dict[str, object] | None], end: str
) -> None:
    path, body = call
    await add(api, scopes=["pay", "operate", "read", "approve"])

    async def end_token() -> None:
        assert (await api.http.post(f"/v1/apps/bot/{end}", json={})).status_code == 200

    answer = await _with_late_body(api, path, api.body() if body is None else body, end_token)
    assert answer.startswith("HTTP/1.1 401 "), answer
    assert (await api.http.get(PAY)).json()["payments"] == []
    told = (await api.http.get("/v1/apps")).json()["apps"]
    assert "made" not in {one["name"] for one in told}
    assert [one["active"] for one in told if one["name"] == "bot"] == [end == "rotate-token"]
    assert {one["set_by"] for one in (await api.http.get("/v1/limits")).json()["limits"]} == {"config"}


async def test_a_request_whose_token_expires_before_its_body_arrives_pays_nothing(api: Api) -> None:
    await add(api, expires_at=(datetime.now(UTC) + timedelta(seconds=60)).isoformat())

    async def pass_time() -> None:
        api.world.clock.ahead_ms += 61_000

    answer = await _with_late_body(api, PAY, api.body(), pass_time)
    assert answer.startswith("HTTP/1.1 401 "), answer
    assert (await api.http.get(PAY)).json()["payments"] == []


async def _with_late_body(
    api: Api, path: str, body: dict[str, object], between: Callable[[], Awaitable[None]]
) -> str:
    """A request of `bot` that sends its body only after it was admitted and `between` has run."""
    raw = json.dumps(body).encode()
    reader, writer = await asyncio.open_unix_connection(api.unix_path)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.tokens['bot']}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n".encode()
    )
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await between()
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_rotating_a_token_revokes_the_old_one(api: Api) -> None:
    await add(api)
    before = api.as_("bot")
    renewed = (await api.http.post("/v1/apps/bot/rotate-token", json={})).json()
    require_problem(await before.get("/v1/limits"), "unauthorized")
    headers = {"Authorization": f"Bearer {plant('the next token', renewed['token'])}"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers, verify=NO_TLS, trust_env=False) as after:
        assert (await after.get("/v1/limits")).status_code == 200
        await api.http.post("/v1/apps/bot/revoke")
        require_problem(await after.get("/v1/limits"), "unauthorized")


async def names(api: Api) -> list[str]:
    return [one["name"] for one in (await api.http.get("/v1/apps")).json()["apps"]]


async def test_each_apps_last_call_is_listed(api: Api) -> None:
    async def last_calls() -> dict[str, str | None]:
        listed = (await api.as_("reader").get("/v1/apps")).json()["apps"]
        return {one["name"]: one["last_call_at"] for one in listed}

    assert (await last_calls())["payer"] is None
    await api.as_("payer").get("/v1/limits")
    first = (await last_calls())["payer"]
    api.world.clock.ahead_ms += 5_000
    through = f"/proxy/~{api.tokens['payer']}/nobody/chat"
    await api.http.post(through, headers={"Authorization": ""})
    then = (await last_calls())["payer"]
    assert first
    assert str(then) > first


async def test_an_operator_sees_what_stands_above_the_limits(world: World) -> None:
    above = with_terms(caps={"lovelace": 7}, day_caps={"lovelace": 8}, approval_required_above={"lovelace": 5})
    async with world.run(terms=above) as run, served(run) as api:
        seen = (await api.as_("reader").get("/v1/limits")).json()
        assert seen["signer"] == {"per_transaction": {"lovelace": "7"}, "signed_per_day": {"lovelace": "8"}}
        assert seen["approval_above"] == {"lovelace": "5"}
        assert set((await api.as_("payer").get("/v1/limits")).json()) == {"limits", "tokens"}


async def test_a_token_is_refused_after_its_expiry(api: Api) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=60)
    await add(api, expires_at=soon.isoformat())
    assert (await api.as_("bot").get("/v1/limits")).status_code == 200
    api.world.clock.ahead_ms += 61_000
    require_problem(await api.as_("bot").get("/v1/limits"), "unauthorized")
    late = {"name": "late", "expires_at": soon.isoformat()}
    require_problem(await api.http.post("/v1/apps", json=late), "bad_request")


async def test_an_expired_token_stays_expired_when_the_clock_goes_back(tmp_path: Path) -> None:
    """Nothing was paid since: only the newest block shows that the expiry has passed."""
    with world_with_clock(tmp_path) as world:
        async with world.run() as run, served(run) as api:
            await add(api, expires_at=(datetime.now(UTC) + timedelta(seconds=60)).isoformat())
            await run.pass_time(1, 120)
            require_problem(await api.as_("bot").get("/v1/limits"), "unauthorized")
            world.clock.ahead_ms -= 3_600_000
            require_problem(await api.as_("bot").get("/v1/limits"), "unauthorized")
            through = f"/proxy/~{api.tokens['bot']}/t/chat"
            require_problem(await api.http.post(through, headers={"Authorization": ""}), "unauthorized")
            (bot,) = [app for app in (await api.http.get("/v1/apps")).json()["apps"] if app["name"] == "bot"]
            assert bot["active"] is False


async def test_an_expiry_beyond_the_last_date_is_shown_as_the_last_date(api: Api) -> None:
    """Old ledgers may hold one: 9999-12-31T23:59:59-05:00 was once accepted."""
    end_ms = 253_402_318_799_000
    await api.run.context.write(
        "token", lambda unit: apps.give_token(unit, "app_payer", "h", end_ms, "app_payer", 2)
    )
    rows = {row["name"]: row for row in (await api.http.get("/v1/apps")).json()["apps"]}
    assert (rows["payer"]["active"], rows["payer"]["expires_at"]) == (True, "9999-12-31T23:59:59.999Z")


async def test_an_app_cannot_grant_a_scope_that_it_lacks(api: Api) -> None:
    client = api.as_("operator")
    require_problem(await client.post("/v1/apps", json={"name": "x", "scopes": ["approve"]}), "forbidden")
    require_problem(await client.post("/v1/apps/payer/rotate-token", json={}), "forbidden")
    assert (await client.post("/v1/apps", json={"name": "y", "scopes": ["operate"]})).status_code == 201
    require_problem(await client.post("/v1/apps/operator/revoke"), "forbidden")


async def test_an_app_cannot_revoke_an_app_with_more_scopes(api: Api) -> None:
    client = api.as_("operator")
    for app in ("first", "payer"):
        assert require_problem(await client.post(f"/v1/apps/{app}/revoke"), "forbidden")["needs"]
        assert (await api.as_(app).get("/v1/limits")).status_code == 200
    await add(api, "other-operator", scopes=["operate"])
    assert (await client.post("/v1/apps/other-operator/revoke")).json()["active"] is False


async def test_an_invalid_body_adds_no_app(api: Api) -> None:
    before = await names(api)
    for body, code in [
        ({"name": "payer"}, "already_exists/app"),
        ({"name": "app_payer"}, "already_exists/app"),
        ({"name": "a b"}, "bad_request"),
        ({"name": "x", "scopes": []}, "bad_request"),
        ({"name": "x", "scopes": ["all"]}, "bad_request"),
        ({"name": "x", "merchants": []}, "bad_request"),
        ({"name": "x", "assets": ["USDM"]}, "bad_request"),
        ({"name": "x", "limits": {"per_year": "5"}}, "bad_request"),
        ({"name": "x", "limits": {"per_day": 5}}, "bad_request"),
        ({"name": "x", "limits": {"per_day": None}}, "bad_request"),
        ({"name": "x", "limits": {"per_day": "45000000000000001"}}, "bad_request"),
        ({"name": "x", "expires_at": "tomorrow"}, "bad_request"),
        ({"name": "x", "expires_at": "9999-12-31T23:59:59-05:00"}, "bad_request"),
        ({"name": "x", "limit": {}}, "bad_request"),
    ]:
        require_problem(await api.http.post("/v1/apps", json=body), code)
        assert await names(api) == before


async def test_a_limit_set_at_run_time_counts_at_once_and_after_a_restart(api: Api) -> None:
    told = await api.http.post("/v1/limits", json={"limits": {"per_day": "5000000", "per_hour": "4000000"}})
    rows = {one["limit"]: (one["most"], one["set_by"]) for one in told.json()["limits"]}
    assert rows == {
        "per_payment": ("1000000000", "config"),
        "per_hour": ("4000000", "operator"),
        "per_day": ("5000000", "operator"),
    }
    refused = require_problem(await api.http.post(PAY, json=api.body()), "limit_exceeded")
    assert (refused["limit"], refused["left"]) == ("per_hour", "4000000")
    async with api.world.run() as again:
        await again.run_pass()
        assert (await again.agent.quote(api.world.ask("b"))).refusal is not None
    back = await api.http.post("/v1/limits", json={"limits": {"per_day": None, "per_hour": None}})
    assert {one["set_by"] for one in back.json()["limits"]} == {"config"}
    await api.pay("c")
    (set_,) = [
        (row["detail"]["limit"], row["detail"]["most"], row["detail"]["by"])
        for row in await _events(api, "limit_set")
        if row["detail"]["limit"] == "per_hour" and row["detail"]["most"]
    ]
    assert set_ == ("per_hour", "4000000", "app_first")


async def test_a_limit_of_zero_refuses_every_payment(api: Api) -> None:
    await add(api, limits={"per_day": "0"})
    refused = require_problem(await api.as_("bot").post(PAY, json=api.body("a")), "limit_exceeded")
    assert (refused["limit"], refused["left"], refused["frees_at"]) == ("per_day", "0", None)
    assert (await api.http.post("/v1/limits", json={"limits": {"total": "0"}})).status_code == 200
    refused = require_problem(await api.http.post(PAY, json=api.body("b")), "limit_exceeded")
    assert (refused["limit"], refused["left"]) == ("total", "0")
    assert (await api.http.post("/v1/limits", json={"limits": {"total": None}})).status_code == 200
    await api.pay("c")


async def test_a_native_token_is_allowed_by_a_limit_over_time_not_by_a_per_payment_limit(api: Api) -> None:
    """A per-payment limit bounds nothing when one payment follows another."""
    token = "ab" * 28 + "00"
    order = {"asset": token, "limits": {"per_payment": "5"}}
    assert (await api.http.post("/v1/limits", json=order)).status_code == 200
    assert token not in api.run.context.assets_allowed()
    api.world.settings(asset=token, price="5", splits=[])
    require_problem(await api.http.post(PAY, json=api.body("a")), "asset_not_allowed")
    order["limits"] = {"total": "5"}
    assert (await api.http.post("/v1/limits", json=order)).status_code == 200
    require_problem(await api.http.post(PAY, json=api.body("a")), "not_enough_funds")


async def test_a_limit_of_a_removed_merchant_is_removed_by_its_origin(api: Api) -> None:
    operator = api.as_("operator")
    await operator.post("/v1/merchants", json={"name": "shop", "origin": "https://shop.example"})
    await operator.post("/v1/limits", json={"merchant": "shop", "limits": {"per_day": "5000000"}})
    await operator.post("/v1/merchants/shop/remove", json={})
    (left,) = [one for one in (await operator.get("/v1/limits")).json()["limits"] if one["merchant"]]
    assert left["merchant"] == "https://shop.example"
    back = {"merchant": left["merchant"], "limits": {"per_day": None}}
    answer = await operator.post("/v1/limits", json=back)
    assert answer.status_code == 200, answer.text
    assert not [one for one in answer.json()["limits"] if one["merchant"]]
    require_problem(await operator.post("/v1/limits", json=back), "not_found")


async def _events(api: Api, name: str) -> list[dict[str, Any]]:
    async with following(api, params={"after": "0"}) as stream:
        return [one["data"] for one in await stream.until("sign") if one["event"] == name]


async def test_an_invalid_body_sets_no_limit(api: Api) -> None:
    before = (await api.http.get("/v1/limits")).json()
    for body, code in [
        ({"limits": {}}, "bad_request"),
        ({"limits": {"per_year": "1"}}, "bad_request"),
        ({"limits": {"per_day": "-1"}}, "bad_request"),
        ({"limits": {"per_day": "1"}, "asset": "USDM"}, "bad_request"),
        ({"limits": {"per_day": "1"}, "app": "nobody"}, "not_found"),
        ({"limits": {"per_day": "1"}, "merchant": "nobody"}, "not_found"),
        ({"limits": {"per_day": "1"}, "merchant": None}, "bad_request"),
    ]:
        require_problem(await api.http.post("/v1/limits", json=body), code)
        assert (await api.http.get("/v1/limits")).json() == before
