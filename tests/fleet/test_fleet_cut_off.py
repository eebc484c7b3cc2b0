"""A daemon that is cut off from the database or the chain, and a COMMIT whose answer is lost.

The sample has one such COMMIT, in test_fleet_together.py.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from fleetrelay import Relay, Way
from fleetrounds import WRITTEN, lose_answer
from fleetworld import DrillFleet, drill_fleet
from kit.cli import until
from kit.effort import long_only
from kit.postgresql import Server, needs_postgresql

pytestmark = [needs_postgresql, long_only]


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
        database, url = drill.relay_to(drill.url)
        chain, chain_url = drill.relay_to(drill.devnet.chain_url)
        drill.start("a", url, chain_url)
        drill.start("b")
        drill.until_shared()
        yield Cut(drill, database, chain)


@pytest.mark.parametrize("point", WRITTEN)
@pytest.mark.parametrize("way", ["requests are lost", "answers are lost"])
def test_who_lost_the_answer_to_a_commit_is_told_the_truth_when_it_asks_again(
    cut: Cut, point: str, way: Way
) -> None:
    lose_answer(cut.drill, cut.database, point, way)


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


def test_accounts_of_a_daemon_cut_off_from_the_chain_go_to_one_that_is_not(cut: Cut) -> None:
    drill = cut.drill
    cut.chain.become("closed")
    cut.until_lost()
    assert drill.ask(drill.wanted(), "a") is not None
    cut.chain.become("open")
    drill.until_shared()
    drill.judge()


def test_while_a_merchants_home_has_no_holder_a_batch_waits_and_single_calls_go_on(cut: Cut) -> None:
    drill, single = cut.drill, cut.drill.wanted()
    drill.sell(batch=2)
    home = drill.buy("b")
    drill.serve(home, "b")
    assert drill.call_by_proxy("b") == 200
    ((account,),) = drill.conn.execute("SELECT account FROM homes").fetchall()
    (holder,) = [name for name, one in drill.daemons.items() if account in one.ready()["accounts"]]
    (other,) = drill.daemons.keys() - {holder}
    drill.daemons[holder].end()
    drill.daemons[holder].is_out = True
    with ThreadPoolExecutor(1) as pool:
        batch = drill.wanted()
        waiting = pool.submit(drill.pay, batch, other)
        assert drill.ask(single, other) is not None
        assert not waiting.done()
        waiting.result()
    drill.sell(batch=1)
    accounts = "SELECT account FROM payments WHERE id IN (?, ?)"
    assert drill.conn.execute(accounts, (home.payment_id, batch.payment_id)).fetchall() == [(account,)] * 2
    drill.start(holder)
    drill.until_shared()
    drill.judge()
