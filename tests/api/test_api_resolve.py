"""An operator cancels a payment over HTTP to take its UTxOs back."""

from kit.api import Api


async def test_an_in_flight_payment_is_cancelled_and_its_history_shows_by_whom(api: Api) -> None:
    api.world.fault("submit", "drop")
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    answer = await api.as_("operator").post(f"/v1/payments/{paid['id']}/resolve", json={})
    assert answer.status_code == 200, answer.text
    resolved = answer.json()
    assert (resolved["state"], resolved["reason"]["reason"], resolved["headers"]) == (
        "cancelling",
        "cancelled_by_operator",
        {},
    )
    history = (await api.http.get(f"/v1/payments/{paid['id']}")).json()["history"]
    (told,) = [happened["detail"] for happened in history if happened["event"] == "cancel"]
    assert told["by"] == "app_operator"


async def test_only_the_last_attempts_change_is_listed_as_pending(api: Api) -> None:
    api.world.fault("submit", "drop")
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    cancel = (await api.as_("operator").post(f"/v1/payments/{paid['id']}/resolve", json={})).json()["tx_hash"]
    utxos = (await api.http.get("/v1/wallet/utxos")).json()["utxos"]
    to_come = {utxo["ref"].partition("#")[0] for utxo in utxos if utxo["state"] == "pending"}
    assert to_come == {cancel} != {paid["tx_hash"]}, "at most one of the two attempts can land"
    assert (await api.http.get("/v1/wallet")).json()["utxos"]["pending"] == 1


async def test_resolve_needs_the_operate_scope_and_an_existing_payment(api: Api) -> None:
    paid = await api.pay()
    for app in ("payer", "reader", "both"):
        answer = await api.as_(app).post(f"/v1/payments/{paid['id']}/resolve", json={})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    answer = await api.as_("operator").post("/v1/payments/pay_x/resolve", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_confirmed_payment_cannot_be_resolved(api: Api) -> None:
    paid = await api.pay()
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    answer = await api.as_("operator").post(f"/v1/payments/{paid['id']}/resolve", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
    assert "confirmed" in answer.json()["detail"]
    assert (await api.http.get(f"/v1/payments/{paid['id']}")).json()["state"] == "confirmed"
