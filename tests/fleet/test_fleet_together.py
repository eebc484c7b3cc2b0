"""Three `payagent serve` on one PostgreSQL pay, and obey, as one, also when one of them or the database fails.

Each failure is here once. `./scripts/test --long` has all of them, in test_fleet_cut_off.py and
test_fleet_failures.py.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpx
import pytest
from fleetrelay import Relay
from fleetrounds import Failure, lose_answer, run_round
from fleetworld import PRICE_UNITS, DrillFleet, Purchase, drill_fleet
from kit.cli import until
from kit.postgresql import Server, needs_postgresql

from payagent.store.rows import fleet

pytestmark = needs_postgresql


@dataclass
class Cut:
    """The fleet. What `a` says to the database goes through a relay."""

    drill: DrillFleet
    database: Relay


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> Iterator[Cut]:
    with drill_fleet(tmp_path_factory.mktemp("fleet"), postgresql, "") as drill:
        database, url = drill.relay_to(drill.url)
        drill.start("a", url)
        drill.start("b")
        drill.start("c")
        drill.until_shared()
        yield Cut(drill, database)


@pytest.fixture
def drill(cut: Cut) -> DrillFleet:
    return cut.drill


def refused(drill: DrillFleet, at: str) -> list[str]:
    """The code with which a daemon refuses a new purchase; empty if it pays."""
    one = drill.wanted()
    drill.ask(one, at)
    return one.codes


def order(drill: DrillFleet, at: str, path: str, **body: object) -> httpx.Response:
    return drill.daemons[at].http.post(f"/v1/{path}", json=body).raise_for_status()


def test_the_same_key_at_all_daemons_at_once_is_one_payment(drill: DrillFleet) -> None:
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            one = drill.wanted()
            told = [answer for answer in pool.map(partial(drill.ask, one), "abc") if answer is not None]
            assert len(told) == 3, one.codes
            assert len({(answer["id"], answer["tx_hash"], str(answer["headers"])) for answer in told}) == 1


def test_a_pause_a_limit_and_a_revoked_token_hold_at_all_daemons_from_the_commit_on(drill: DrillFleet) -> None:
    order(drill, "a", "pause", reason="a look")
    assert [refused(drill, at) for at in "cb"] == [["paused"]] * 2
    order(drill, "b", "resume")
    order(drill, "c", "limits", limits={"per_payment": str(PRICE_UNITS - 1)})
    assert [refused(drill, at) for at in "ab"] == [["limit_exceeded"]] * 2
    order(drill, "a", "limits", limits={"per_payment": None})
    token = order(drill, "b", "apps", name="short", scopes=["pay"]).json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert drill.daemons["c"].http.get("/v1/merchants", headers=headers).status_code == 200
    order(drill, "a", "apps/short/revoke")
    for at in "bc":
        answer = drill.daemons[at].http.post("/v1/payments", json=drill.wanted().body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert [refused(drill, at) for at in "abc"] == [[]] * 3


def counted(drill: DrillFleet) -> dict[str, str]:
    """The prepaid balance, as a daemon without a call of its own tells it."""
    (pool,) = drill.daemons["c"].http.get("/v1/prepaid").json()["prepaid"]
    return {name: pool[name] for name in ("bought", "used", "left")}


def test_a_batch_wanted_at_two_daemons_is_bought_once_from_its_home_account(drill: DrillFleet) -> None:
    drill.sell(batch=4)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(drill.call_by_proxy, "ab")) == [200, 200]
    balance = {"bought": "4", "used": "2", "left": "2"}
    until(lambda: counted(drill) == balance, "the batch is not counted")
    assert [drill.call_by_proxy(at) for at in "ba"] == [200, 200]
    until(
        lambda: counted(drill) == {"bought": "4", "used": "4", "left": "0"}, "a call of the batch is not counted"
    )
    drill.sell(batch=1)
    bought = "SELECT id, tx_id, account FROM payments WHERE pool_id IS NOT NULL AND state <> 'rejected'"
    ((payment_id, tx_hash, account),) = drill.conn.execute(bought).fetchall()
    assert drill.conn.execute("SELECT account FROM homes").fetchall() == [(account,)]
    drill.purchases["batch"] = Purchase("batch", {}, payment_id, tx_hash, is_served=True)


def test_who_lost_the_answer_to_a_signing_is_told_the_truth_when_it_asks_again(cut: Cut) -> None:
    lose_answer(cut.drill, cut.database, "sign", "answers are lost")


def test_when_a_holder_is_killed_and_another_stopped_the_third_carries_on(drill: DrillFleet) -> None:
    """The second stands still in the gate."""
    run_round(drill, [Failure("kill", "before sign"), Failure("stop", "before admit")])


def test_payments_go_on_after_a_restart_and_a_crash_of_the_database(drill: DrillFleet, postgresql: Server) -> None:
    for fail in (postgresql.restart, postgresql.crash):
        with drill.shopping("a", "b"):
            drill.buy("a")
            fail()
            drill.buy("b")
    drill.reconnect()
    drill.until_shared()
    drill.judge()


def epochs_of(drill: DrillFleet) -> list[tuple[int, int]]:
    return list(drill.conn.execute("SELECT account, epoch FROM accounts ORDER BY account"))


def test_a_clock_an_hour_off_moves_no_lease(drill: DrillFleet) -> None:
    account = drill.account_of("c")
    epochs = epochs_of(drill)
    drill.daemons["c"].order("an hour ahead")
    drill.daemons["c"].reach()

    def until_ms() -> int:
        return fleet.all_accounts(drill.conn)[account].until_ms

    before_ms = until_ms()
    until(lambda: until_ms() >= before_ms + fleet.RENEW_EVERY_S * 1_500, "the lease was not renewed")
    assert until_ms() <= drill.conn.clock_ms() + fleet.LEASE_MS
    assert epochs_of(drill) == epochs
    assert refused(drill, "c") == ["chain_not_ready"]
    assert [refused(drill, at) for at in "ab"] == [[], []]
    drill.judge()
