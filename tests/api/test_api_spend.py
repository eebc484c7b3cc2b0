"""Spending reports and ledger snapshots over HTTP."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

from kit.agent import World
from kit.api import Api, served

from payagent.core.address import encode_address

STRANGER = encode_address(bytes([0x60]) + bytes(28)).text
FUNDED_LOVELACE = 500_000_000


async def confirm(api: Api) -> None:
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()


async def spend(api: Api, **query: str) -> dict[str, list[dict[str, object]]]:
    answer = await api.as_("reader").get("/v1/ledger/spend", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_spend_is_grouped_as_requested_and_adds_up_to_the_chain(api: Api) -> None:
    await api.pay("one")
    request = {"method": "POST", "path": "/chat?model=one", "body_sha256": "0" * 64}
    await api.pay("two", app="payer", request=request)
    await confirm(api)
    split = await api.http.post("/v1/wallet/split", json={"count": 2, "lovelace": "5000000"})
    assert split.status_code == 201
    await confirm(api)
    told = await spend(api, by="merchant,app")
    left = FUNDED_LOVELACE - api.world.on_chain()["lovelace"]
    (total,) = told["totals"]
    assert (total["asset"], total["total"], total["sent"], total["payments"]) == ("lovelace", str(left), "0", 3)
    assert [(row["merchant"], row["origin"], row["app"], row["payments"]) for row in told["spend"]] == [
        (None, None, "first", 1),
        ("t", api.world.origin, "first", 1),
        ("t", api.world.origin, "payer", 1),
    ]
    for part in ("paid", "fees", "total"):
        assert sum(int(str(row[part])) for row in told["spend"]) == int(str(total[part]))
    by_day = await spend(api, by="day,merchant,asset,day", merchant="t", app="payer")
    assert [set(row) for row in by_day["spend"]] == [
        {"day", "merchant", "origin", "asset", "paid", "fees", "sent", "total", "payments"}
    ]
    (week,) = (await spend(api, by="week,hour,path", merchant="t", app="payer"))["spend"]
    day = date.fromisoformat(str(by_day["spend"][0]["day"]))
    assert week["path"] == "/chat"
    assert str(week["hour"]).startswith(f"{day}T")
    assert week["week"] == str(day - timedelta(days=day.weekday()))
    assert (await spend(api, by="asset"))["spend"] == [total]
    nothing = await spend(api, app="other")
    assert (nothing["spend"], nothing["totals"]) == ([], [])


async def test_spend_goes_on_after_the_last_entry_of_an_earlier_answer(api: Api) -> None:
    await api.pay("one")
    await confirm(api)
    first = await spend(api, by="merchant")
    last = str(first["last_entry"])
    assert (await spend(api, by="merchant", after=last))["spend"] == []
    await api.pay("two")
    await confirm(api)
    both = await spend(api, by="merchant")
    (before,), (more,), (total,) = first["spend"], (await spend(api, after=last))["spend"], both["spend"]
    assert int(str(before["total"])) + int(str(more["total"])) == int(str(total["total"]))
    assert (before["payments"], more["payments"], total["payments"]) == (1, 1, 2)


async def test_sends_are_grouped_by_the_address_that_they_went_to(api: Api) -> None:
    for address, units in ((STRANGER, "3000000"), (STRANGER, "2000000"), (api.world.address, "4000000")):
        sent = await api.http.post("/v1/wallet/send", json={"address": address, "units": units})
        assert sent.status_code == 201, sent.text
        await confirm(api)
    await api.pay("one")
    await confirm(api)
    rows = (await spend(api, by="destination"))["spend"]
    assert [(row["destination"], row["sent"], row["payments"]) for row in rows] == [
        (None, "0", 2),
        (STRANGER, "5000000", 2),
    ]


async def test_a_removed_merchant_is_reported_by_its_origin(world: World) -> None:
    world.fund(100_000_000)
    async with world.run() as run, served(run) as api:
        await run.run_pass()
        await api.pay()
        await confirm(api)
        api.run.context.config.merchants.clear()  # type: ignore[attr-defined]
        (row,) = (await spend(api))["spend"]
        assert (row["merchant"], row["origin"]) == (world.origin, world.origin)


async def test_an_invalid_spend_query_is_refused(api: Api) -> None:
    for query in [
        {"by": "merchants"},
        {"by": ""},
        {"by": "merchant day"},
        {"by": "merchant,"},
        {"text": ""},
        {"per": "x"},
    ]:
        answer = await api.http.get("/v1/ledger/spend", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_a_text_filter_selects_the_same_payment_in_every_report(api: Api) -> None:
    paid = await api.pay("one")
    await api.pay("two")
    await confirm(api)
    for text in (str(paid["id"])[4:].upper(), str(paid["invoice_id"]), str(paid["tx_hash"])[8:40]):
        query = {"text": text}
        entries = (await api.http.get("/v1/ledger/entries", params=query)).json()["entries"]
        assert {entry["payment"] for entry in entries} == {paid["id"]}
        balances = (await api.http.get("/v1/ledger/balance", params=query)).json()["balances"]
        booked = [posting for entry in entries for posting in entry["postings"]]
        assert sum(int(row["units"]) for row in balances if row["account"] == "fees") == sum(
            int(row["units"]) for row in booked if row["account"] == "fees"
        )
        exported = (await api.http.get("/v1/ledger/export", params=query)).text
        assert str(paid["id"]) in exported
        assert exported.count("pay_") == len(booked)
        assert (await spend(api, text=text))["totals"][0]["payments"] == 1
    assert (await spend(api, text="%"))["totals"] == []


async def test_a_snapshot_is_complete_and_leaves_no_temporary_files(api: Api, tmp_path: Path) -> None:
    await api.pay("one")
    folder = api.world.folder
    before = {".scratch", *(path.name for path in folder.iterdir())}
    answers = await asyncio.gather(*(api.as_("operator").get("/v1/ledger/snapshot") for _ in range(3)))
    assert {answer.headers["content-type"] for answer in answers} == {"application/vnd.sqlite3"}
    await api.pay("two")
    assert {path.name for path in folder.iterdir()} == before
    assert list((folder / ".scratch").iterdir()) == []
    copy = tmp_path / "copy.db"
    copy.write_bytes(answers[0].content)
    with closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert conn.execute("SELECT COUNT(*) FROM v_payments").fetchone() == (1,)


async def test_a_snapshot_needs_the_operate_scope(api: Api) -> None:
    for app in ("reader", "payer"):
        assert (await api.as_(app).get("/v1/ledger/snapshot")).json()["code"] == "forbidden"
