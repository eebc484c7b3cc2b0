"""/metrics: numbers that a monitoring system can read, and nothing that it should not."""

import re
from pathlib import Path

from kit.agent import World
from kit.api import Api, require_problem

from payagent.core.payment.machine import State
from payagent.core.version import VERSION

_SAMPLE = re.compile(r'([a-z_]+?)(_bucket|_sum|_count)?(?:\{((?:[a-z]+="[^"]*",?)*)\})? (-?[0-9.]+)', re.ASCII)


async def numbers(api: Api, app: str = "reader") -> dict[str, int]:
    """Every sample by its name and labels; the text is well formed and each family is described before it."""
    answer = await api.as_(app).get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, int] = {}
    described = kind = ""
    for line in answer.text.splitlines():
        if line.startswith("# TYPE "):
            _, _, described, kind = line.split()
        elif not line.startswith("# HELP "):
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            assert (sample[1], sample[2] is not None) == (described, kind == "histogram"), line
            name, _, number = line.rpartition(" ")
            found[name] = round(1000 * float(number)) if sample[2] == "_sum" else int(number)
    return found


async def test_metrics_follow_a_payment_from_hold_to_confirmation(api: Api) -> None:
    before = await numbers(api)
    assert before[f'payagent_build_info{{version="{VERSION}"}}'] == 1
    assert before['payagent_payments{state="in_flight"}'] == 0
    assert {f'payagent_payments{{state="{state}"}}' for state in State} <= before.keys()
    row = await api.pay("first")
    await api.run.agent.submitter.drain(60)
    spent = 13_000_000 + int(str(row["fee"]))
    held = await numbers(api)
    assert held['payagent_payments{state="in_flight"}'] == 1
    assert held['payagent_merchant_payments_in_flight{merchant="t"}'] == 1
    assert held['payagent_wallet_units{asset="lovelace",part="held"}'] == spent
    left = 'payagent_limit_remaining_units{limit="per_day",asset="lovelace"}'
    assert before[left] - held[left] == spent
    assert (
        held['payagent_provider_requests_total{provider="devnet"}']
        > (before['payagent_provider_requests_total{provider="devnet"}'])
    )
    assert held["payagent_events_total"] > before["payagent_events_total"]
    await api.run.settle_down()
    after = await numbers(api)
    assert after['payagent_payments{state="confirmed"}'] == 1
    assert after["payagent_chain_tip_height"] == held["payagent_chain_tip_height"] + 1
    assert after['payagent_wallet_units{asset="lovelace",part="held"}'] == 0


async def test_every_refusal_is_counted_by_its_code(api: Api) -> None:
    """At the API, before it, and in the proxy."""
    api.world.settings(price="2000000000")
    await api.http.post("/v1/payments", json=api.body("too much"))
    await api.http.post("/v1/payments", json=api.body("too much again"))
    await api.http.post("/v1/payments", content=b"{", headers={"content-type": "application/json"})
    await api.http.get("/v1/payments?limit=-1")
    await api.http.get("/v1/nothing")
    await api.http.get("/v1/payments", headers={"Origin": "https://a.example"})
    await api.http.get("/v1/payments", headers={"Authorization": "Bearer nobody"})
    await api.http.post("/proxy/nobody/chat", headers={"X-Payagent-Token": api.tokens["payer"]})
    found = await numbers(api)
    refusals = {name: n for name, n in found.items() if name.startswith("payagent_refusals_total")}
    assert refusals == {
        f'payagent_refusals_total{{code="{code}"}}': count
        for code, count in {
            "limit_exceeded": 2,
            "bad_request": 1,
            "invoice_invalid": 1,
            "not_found": 1,
            "browser_refused": 1,
            "unauthorized": 1,
            "merchant_not_allowed": 1,
        }.items()
    }


async def test_spend_and_refused_purchases_are_shown_by_app_and_merchant(api: Api) -> None:
    for message, app in (("one", "first"), ("two", "payer"), ("three", "payer")):
        await api.pay(message, app=app)
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    api.world.settings(price="2000000000")
    await api.as_("payer").post("/v1/payments", json=api.body("too much"))
    stranger = api.body("from elsewhere") | {"origin": "https://elsewhere.example"}
    await api.as_("payer").post("/v1/payments", json=stranger)
    found = await numbers(api)
    rows = (await api.as_("reader").get("/v1/ledger/spend", params={"by": "app,merchant"})).json()["spend"]
    assert {name: n for name, n in found.items() if name.startswith("payagent_spend_units")} == {
        f'payagent_spend_units{{app="{row["app"]}",merchant="t",asset="lovelace"}}': int(row["total"])
        for row in rows
    }
    assert {name: n for name, n in found.items() if name.startswith("payagent_purchases_refused")} == {
        'payagent_purchases_refused_total{app="payer",merchant="(other)",code="merchant_not_allowed"}': 1,
        'payagent_purchases_refused_total{app="payer",merchant="t",code="limit_exceeded"}': 1,
    }
    api.run.context.config.merchants.clear()  # type: ignore[attr-defined]
    removed = await numbers(api)
    assert removed['payagent_spend_units{app="payer",merchant="(other)",asset="lovelace"}'] == next(
        int(row["total"]) for row in rows if row["app"] == "payer"
    )


async def test_the_time_to_served_runs_from_the_request_to_the_first_served_delivery(api: Api) -> None:
    row = await api.pay("first")
    path = f"/v1/payments/{row['id']}/delivery"
    await api.http.post(path, json={"status": 402})
    assert not any(name.startswith("payagent_time_to_served") for name in await numbers(api))
    api.world.clock.ahead_ms += 20_001
    for _ in range(2):
        await api.http.post(path, json={"status": 200})
    found = await numbers(api)
    name = 'payagent_time_to_served_seconds_{}{{merchant="t"{}}}'
    assert found[name.format("bucket", ',le="20.000"')] == 0
    assert found[name.format("bucket", ',le="30.000"')] == found[name.format("count", "")] == 1
    assert 20_000 <= found[name.format("sum", "")] <= 30_000


async def test_the_latency_of_each_operation_of_a_provider_is_measured(api: Api) -> None:
    before = await numbers(api)
    await api.pay("first")
    await api.run.agent.submitter.drain(60)
    found = await numbers(api)
    name = 'payagent_provider_latency_seconds_count{{provider="devnet",operation="{}"}}'
    assert found[name.format("submit")] == 1
    assert found[name.format("tip")] >= before[name.format("tip")] >= 1


async def test_a_failed_provider_request_is_counted(api: Api) -> None:
    api.world.fault("/blocks/latest", "rate", count=1)
    await api.run.run_pass()
    found = await numbers(api)
    assert found['payagent_provider_failures_total{provider="devnet"}'] >= 1


async def test_a_failed_health_check_shows_in_payagent_up(api: Api) -> None:
    assert (await numbers(api))['payagent_up{check="sweeps"}'] == 1
    api.stale.append("late")
    assert (await numbers(api))['payagent_up{check="sweeps"}'] == 0


async def test_metrics_are_refused_to_paying_apps_and_contain_no_ids_or_secrets(api: Api, world: World) -> None:
    require_problem(await api.as_("payer").get("/metrics"), "forbidden")
    nobody = await api.http.get("/metrics", headers={"Authorization": "Bearer nobody"})
    require_problem(nobody, "unauthorized")
    row = await api.pay("first", app="payer")
    text = (await api.as_("operator").get("/metrics")).text
    for secret in (world.address, row["id"], row["tx_hash"], "app_", *api.tokens.values()):
        assert str(secret) not in text


async def test_the_metrics_reference_page_lists_every_metric(api: Api) -> None:
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    text = (await api.as_("reader").get("/metrics")).text
    told = set(re.findall(r"^# TYPE (payagent_[a-z_]+)", text, re.MULTILINE))
    listed = set(re.findall(r"^\| `(payagent_[a-z_]+)", page, re.MULTILINE))
    assert told == {name for name in listed if not name.startswith(("payagent_fleet_", "payagent_channel_"))}
