"""Pause and resume over HTTP: an operator stops all signing, and every app sees it."""

from kit.api import Api


async def test_a_pause_refuses_payments_and_transfers_until_an_operator_resumes(api: Api) -> None:
    paid = await api.pay("before")
    answer = await api.as_("operator").post("/v1/pause", json={"reason": "a token leaked"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["paused"], told["by"], told["reason"]) == (True, "operator", "a token leaked")
    refused = await api.http.post("/v1/payments", json=api.body("after"))
    assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "paused", True)
    assert int(refused.headers["retry-after"]) > 0
    ready = await api.http.get("/readyz")
    assert ready.status_code == 503
    assert told["since"] in ready.json()["checks"]["pause"]
    assert "leaked" not in ready.text
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    assert (await api.http.get(f"/v1/payments/{paid['id']}?wait=5")).json()["state"] == "confirmed"
    refused = await api.http.post("/v1/quotes", json=api.body("after"))
    assert (refused.status_code, refused.json()["code"]) == (503, "paused"), "a quote is refused too"
    for path, body in (("send", {"address": api.world.address, "units": "5000000"}), ("split", SPLIT)):
        refused = await api.http.post(f"/v1/wallet/{path}", json=body)
        assert (refused.status_code, refused.json()["code"]) == (503, "paused")
    answer = await api.as_("operator").post("/v1/resume", json={})
    assert answer.json() == {"paused": False, "since": None, "by": None, "reason": None}
    await api.pay("after")


SPLIT = {"count": 2, "lovelace": "5000000"}


async def test_pausing_again_keeps_and_returns_the_first_pause_and_its_reason(api: Api) -> None:
    first = (await api.as_("operator").post("/v1/pause", json={"reason": "a drill"})).json()
    assert "already" not in first
    again = await api.http.post("/v1/pause", json={"reason": "a token leaked"})
    assert again.json() == {**first, "already": True}
    assert "already" not in (await api.http.get("/v1/pause")).json()


async def test_only_an_operator_pauses_and_a_paying_app_does_not_see_who_or_why(api: Api) -> None:
    for app in ("payer", "reader"):
        for path in ("pause", "resume"):
            answer = await api.as_(app).post(f"/v1/{path}", json={})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    await api.as_("operator").post("/v1/pause", json={"reason": "secret matters"})
    told = (await api.as_("payer").get("/v1/pause")).json()
    assert (told["paused"], told["by"], told["reason"]) == (True, None, None)
    assert (await api.as_("reader").get("/v1/pause")).json()["reason"] == "secret matters"


async def test_pause_and_resume_need_no_body_and_a_body_must_be_json(api: Api) -> None:
    operator = api.as_("operator")
    for headers in ({}, {"content-type": "application/json"}):
        told = await operator.post("/v1/pause", headers=headers)
        assert (told.status_code, told.json()["paused"], told.json()["reason"]) == (200, True, ""), told.text
        assert (await operator.post("/v1/resume")).json()["paused"] is False
    for headers, content, code in (
        ({}, b"{}", "media_type_refused"),
        ({"content-type": "text/plain"}, b"", "media_type_refused"),
        ({"content-type": "application/json"}, b" ", "bad_request"),
    ):
        assert (await operator.post("/v1/pause", headers=headers, content=content)).json()["code"] == code
    assert (await operator.get("/v1/pause")).json()["paused"] is False


async def test_a_pause_reason_must_be_one_short_line(api: Api) -> None:
    for reason in ("two\nlines", "x" * 301, 7):
        answer = await api.http.post("/v1/pause", json={"reason": reason})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert (await api.http.get("/v1/pause")).json()["paused"] is False


async def test_pause_and_resume_are_events_with_who_and_why(api: Api) -> None:
    await api.as_("operator").post("/v1/pause", json={"reason": "a drill"})
    await api.as_("first").post("/v1/resume", json={})
    found = api.run.context.conn.execute(
        "SELECT event, detail ->> '$.by', detail ->> '$.reason' FROM events "
        "WHERE event IN ('paused', 'resumed') ORDER BY seq"
    ).fetchall()
    assert found == [("paused", "app_operator", "a drill"), ("resumed", "app_first", None)]
