"""A daemon that is cut off from the database or the chain, and a COMMIT whose answer is lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from fleetrelay import Relay, Way
from fleetworld import DrillFleet, Purchase, drill_fleet
from kit.cli import until
from kit.effort import pick
from kit.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql


@dataclass
class Cut:
    """A fleet of two daemons. What `a` says to the database and to the chain goes through relays."""

    drill: DrillFleet
    database: Relay
    chain: Relay

    def until_lost(self) -> None:
        """Wait until `b` holds all accounts."""
        until(lambda: self.drill.daemons["b"].ready()["accounts"] == [0, 1, 2], "the accounts were not taken")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> Iterator[Cut]:
    with drill_fleet(tmp_path_factory.mktemp("fleet"), postgresql, "") as drill:
        database, url = drill.relay_to_database()
        chain, chain_url = drill.relay_to_chain()
        drill.start("a", url, chain_url)
        drill.start("b")
        drill.until_shared()
        yield Cut(drill, database, chain)


@pytest.mark.parametrize("point", ["admit", "sign"])
@pytest.mark.parametrize(("way", "took_place"), [("requests are lost", False), ("answers are lost", True)])
def test_who_lost_the_answer_to_a_commit_is_told_the_truth_when_it_asks_again(
    cut: Cut, point: str, way: Way, took_place: bool
) -> None:
    drill, one = cut.drill, cut.drill.wanted()
    drill.daemons["a"].order("wait", f"before {point}")
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(drill.ask, one, "a")
        drill.daemons["a"].reach()
        cut.database.become(way)
        drill.daemons["a"].go_on()
        assert told.result() is None
    cut.database.become("open")
    assert one.codes == ["store_failed"]
    rows = drill.conn.execute(
        "SELECT tx_id IS NOT NULL FROM payments WHERE intent_id = (SELECT id FROM intents WHERE idempotency_key = ?)",
        (f"key:{one.key}",),
    ).fetchall()
    if point == "admit":
        assert len(rows) == took_place
    drill.pay(one, "a")
    drill.until_shared()
    drill.judge()


def test_a_daemon_cut_off_from_the_database_pays_nothing_and_loses_its_accounts(cut: Cut) -> None:
    drill, one = cut.drill, cut.drill.wanted()
    cut.database.become("closed")
    assert drill.ask(one, "a") is None
    assert one.codes == ["store_failed"]
    drill.pay(one, "b")
    cut.until_lost()
    cut.database.become("open")
    drill.until_shared()
    drill.judge()
