"""A daily budget under kills: ten clients ask for payments of 1 ADA with a limit of 20 ADA, and daemons die.

Half of the clients run in a separate process. Every second daemon has a clock that jumps by days, and one more
daemon is started on a wallet already in use. The limit was set at run time, so it has to survive every kill too.
With fees 17 payments fit, and the 18th is refused. Neither the ledger of any dead daemon nor the chain ever shows
more than 20 ADA.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from killbudget import Client, Json, Shop, in_a_process_of_its_own
from killchecks import copy_of_dead
from killforks import BORN_S, ForkServer
from killworld import STUCK_S, TOKEN, Lane, World, running_world
from kit.effort import pick

from payagent.audit.verify import check_limits
from payagent.core.policy import WALLET
from payagent.devnet.merchant import role_address
from payagent.store.rows import limit_counters

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

CLIENTS = 10
WANTED = pick(30, 100)
DAY_LOVELACE, PRICE_LOVELACE = 20_000_000, 1_000_000
FIT = 17
KILLS = (
    *(("after admit", 2), ("before sign", 2), ("after sign", 3), ("before admit", 3), ("after submit", 2)),
    *(("before answer", 1), ("after admit", 5), ("before admit", 20), ("after admit", 40), ("before admit", 60)),
)[: pick(6, 10)]
RANDOM_KILLS = pick(2, 6)


async def _clients(lane: Lane) -> list[Client]:
    """Create the clients, each with its own app, and set the daily limit for all of them together."""
    operator = await lane.call("POST", "/v1/limits", json={"limits": {"per_day": str(DAY_LOVELACE)}})
    assert operator.status_code == 200, operator.text
    clients = []
    for number in range(CLIENTS):
        added = await lane.call("POST", "/v1/apps", json={"name": f"client-{number}"})
        shop = Shop(lane.world.http, lane.world.devnet.merchant_url, lane.address)
        clients.append(Client(shop, lane.call, number, added.json()["token"], WANTED))
    return clients


async def _want_everything(lane: Lane, clients: list[Client]) -> None:
    """Run half of the clients in another process, and merge its results into them here."""
    here, there = clients[::2], clients[1::2]
    orders: Json = {
        "socket": str(lane.dir / "s"),
        "merchant_url": lane.world.devnet.merchant_url,
        "wallet": lane.address,
        "clients": [[client.number, client.token, WANTED] for client in there],
    }
    *_, told = await asyncio.gather(
        *(client.want_everything() for client in here), in_a_process_of_its_own(orders)
    )
    for client, one in zip(there, told, strict=True):
        client.paid, client.refused = one["paid"], one["refused"]


def _require_within(lane: Lane) -> None:
    """In the ledger of a dead daemon, the counted and the held amounts are within the daily limit."""
    with closing(sqlite3.connect(copy_of_dead(lane))) as conn:
        assert limit_counters.totals(conn, WALLET).get("lovelace", 0) <= DAY_LOVELACE
        (held,) = conn.execute(
            "SELECT COALESCE(SUM(units), 0) FROM holds WHERE asset = 'lovelace' AND released_at_ms IS NULL"
        ).fetchone()
        assert held <= DAY_LOVELACE
        assert list(check_limits(conn)) == []


def _spent(world: World) -> Iterator[tuple[str, int]]:
    """By the chain: each transaction to payTo, and what it took with its fee."""
    pay_to = role_address("pay_to").raw
    txs = world.devnet.run(lambda devnet: [tx for block in devnet.chain.blocks for tx in block.txs])
    for tx in txs:
        paid = sum(out.lovelace for out in tx.outputs if out.address == pay_to)
        if paid:
            yield tx.tx_id, paid + tx.fee_lovelace


async def _start_a_second(lane: Lane) -> None:
    """Start a second daemon on the same wallet: it is refused, and the first one goes on."""
    second = lane.world.forks.start(lane.config, lane.log, None, None)
    await asyncio.wait_for(asyncio.shield(second.exit), BORN_S)
    assert "already_running" in str(second.failed)


async def _kill_through(lane: Lane, work: asyncio.Task[None]) -> int:
    kills = 0
    for number, (point, count) in enumerate(KILLS):
        life = await lane.start((point, count), variant="jumping_clock" if number % 2 else None)
        while not (await lane.ended(life, 0.2) or work.done()):
            pass
        if not life.exit.done():
            await life.end(9)
            return kills
        kills += 1
        _require_within(lane)
    for number in range(RANDOM_KILLS):
        life = await lane.start(variant="jumping_clock" if number % 2 else None)
        if number == 0 and await life.is_ready():
            await _start_a_second(lane)
        await lane.ended(life, 0.3 + 0.11 * number)
        await life.end(9)
        kills += 1
        _require_within(lane)
    return kills


async def test_a_daily_budget_of_20_ada_holds_while_daemons_are_killed(tmp_path: Path, forks: ForkServer) -> None:
    async with running_world(tmp_path, forks, seed=20, lanes=1) as made:
        (lane,) = made.lanes
        settings = {"price": str(PRICE_LOVELACE), "asset": "lovelace", "splits": [], "timeout": 7200}
        (await made.http.post(f"{made.devnet.merchant_url}/merchant/settings", json=settings)).raise_for_status()
        first = await lane.start()
        clients = await _clients(lane)
        await first.end(9)

        work = made.spawn(_want_everything(lane, clients))
        kills = await _kill_through(lane, work)
        made.calm = True
        await made.control("faults", clear=True)
        await lane.start()
        await work
        assert kills >= len(KILLS)
        assert sum(client.refused for client in clients) == CLIENTS * WANTED - FIT

        paid = {told["tx_hash"]: told["id"] for client in clients for told in client.paid.values()}
        assert len(paid) == FIT
        for payment_id in paid.values():
            await _confirmed(lane, payment_id)
        spent = dict(_spent(made))
        assert spent.keys() == paid.keys()
        assert DAY_LOVELACE - PRICE_LOVELACE - 200_000 < sum(spent.values()) <= DAY_LOVELACE
        (day,) = [
            one
            for one in (await lane.call("GET", "/v1/limits")).json()["limits"]
            if one["limit"] == "per_day" and one["asset"] == "lovelace"
        ]
        assert (day["most"], day["spent"]) == (str(DAY_LOVELACE), str(sum(spent.values())))
        await _another_asset_is_no_way_around(made, clients[0])
        assert made.violations == []


async def _confirmed(lane: Lane, payment_id: str) -> None:
    async with asyncio.timeout(STUCK_S):
        while (await lane.call("GET", f"/v1/payments/{payment_id}?wait=1")).json()["state"] not in (
            "confirmed",
            "settled",
        ):
            pass


async def _another_asset_is_no_way_around(world: World, client: Client) -> None:
    """The min-ADA of a token payment counts against the ADA limit."""
    settings = {"price": "100", "asset": TOKEN, "splits": []}
    (await world.http.post(f"{world.devnet.merchant_url}/merchant/settings", json=settings)).raise_for_status()
    before = client.refused
    await client.want(b'{"message": "a token"}')
    assert client.refused == before + 1
