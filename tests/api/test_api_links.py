"""Links by which a person decides, at a door that anybody reaches: what each call costs, and what is counted."""

from dataclasses import replace

from agent_kit import ADA, APP, World, with_terms
from api_kit import Api, served

from payagent.agent.limits import set_limits
from payagent.agent.links import KEY_BYTES, Links, Way
from payagent.api.turnstile import BURST_S, Rates
from payagent.core.guards import Rules
from payagent.core.policy import Window
from payagent.proxy.door import Bounds
from payagent.store import approvals, events

LINKS = Links("http://127.0.0.1", bytes(KEY_BYTES))
ASKING = with_terms(approval_above={"lovelace": 5 * ADA})
OWN_FORM = {"Sec-Fetch-Site": "same-origin", "Origin": "null"}


async def link_of(api: Api, way: Way) -> str:
    """Ask for a payment; the path of the link that decides on it."""
    answer = await api.as_("payer").post("/v1/payments", json=api.body())
    assert answer.status_code == 202, answer.text
    approval = approvals.of_payment(api.run.desk.conn, answer.json()["id"])
    assert approval is not None
    return LINKS.url(approval, way).removeprefix(LINKS.origin)


async def test_who_has_no_link_uses_up_no_calls_of_those_who_have(world: World) -> None:
    world.fund(100 * ADA)
    bounds = Bounds(rates=Rates(calls_per_s=1))
    async with world.run(terms=ASKING) as run, served(run, bounds, links=LINKS) as api:
        await run.look()
        link = await link_of(api, "approve")
        forged = (link[:-1] + "~", link.replace("/approve/", "/deny/"), link.replace("pay_", "pay_0"), link[:-43])
        for path in (*forged[:3], *[forged[1]] * (BURST_S + 2)):
            assert (await api.http.get(path)).status_code == 404
        assert (await api.http.get(link)).status_code == 200
        assert (await api.http.get(forged[3])).status_code == 404, "the first half alone opens nothing"


async def test_a_decision_by_link_that_is_refused_is_counted_once_and_in_the_record(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.look()
        link = await link_of(api, "approve")
        await set_limits(run.desk, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        page = await api.http.post(link, headers=OWN_FORM)
        assert (page.status_code, run.desk.refusals["limit_exceeded"]) == (403, 1)
        told = events.last_note(run.desk.conn, link.split("/")[2], "decision_refused")
        assert told is not None
        assert (told["code"], told["by"], told["via"]) == ("limit_exceeded", None, "link")


async def test_a_merchant_that_is_busy_is_counted(world: World) -> None:
    world.fund(*[100 * ADA] * 3)
    merchants = {o: replace(m, rules=Rules(in_flight_max=1)) for o, m in world.terms.merchants.items()}
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        await run.look()
        await api.pay("first")
        busy = await api.http.post("/v1/payments", json=api.body("second"))
        assert (busy.json()["code"], run.desk.refusals["merchant_busy"]) == ("merchant_busy", 1)
