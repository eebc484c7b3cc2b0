"""Daemons of a fleet whose database fails over: `payagent serve`, by one URL of both servers."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from kit.cli import until
from kit.daemon import refused
from kit.daemons_of_a_fleet import ADDRESSES, furnish, three
from kit.effort import IS_LONG
from kit.http import NO_TLS
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pair import server_pair

from payagent.devnet.server import DevnetThread
from payagent.store.db.postgresql.connection import PostgresqlConnection

pytestmark = needs_postgresql

SYNCHRONOUS = "PAYAGENT_STORE__SYNCHRONOUS"


def asked(devnet: DevnetThread, message: str) -> dict[str, object]:
    """The merchant's 402 for a request, as a client forwards it."""
    headers = {"X-Partner": "demo", "X-Wallet-Address": ADDRESSES[0]}
    answer = httpx.post(
        f"{devnet.merchant_url}/chat", json={"message": message}, headers=headers, verify=NO_TLS, trust_env=False
    )
    assert answer.status_code == 402
    return {
        "origin": devnet.merchant_url,
        "response": {"status": 402, "headers": dict(answer.headers), "body": answer.json()},
    }


def landed(devnet: DevnetThread) -> set[str]:
    """The transactions on the devnet that spend something."""

    def ids(world: object) -> set[str]:
        blocks = world.chain.blocks  # type: ignore[attr-defined]
        return {tx.tx_id for block in blocks for tx in block.txs if tx.inputs}

    return devnet.run(ids)


def test_a_daemon_whose_server_keeps_no_synchronous_standby_does_not_start(
    tmp_path: Path, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYNCHRONOUS, "true")
    with DevnetThread() as devnet:
        folder = furnish(tmp_path / "a", devnet, postgresql.tcp_url(postgresql.new_database()))
        code, said = refused(folder)
    assert code == 2
    assert "synchronous_commit is local" in said


@pytest.mark.skipif(not IS_LONG, reason="only --long runs it: the sample has this drill without processes")
def test_daemons_go_on_when_the_primary_and_one_of_them_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SYNCHRONOUS, "true")
    with (
        server_pair(is_synchronous=True) as servers,
        DevnetThread(block_time_s=1) as devnet,
        three(tmp_path, devnet, servers.tcp_url) as (one, two, third),
        ThreadPoolExecutor(8) as pool,
    ):
        paid = [one.pay(asked(devnet, "before"), "before")]
        asks = [(member, asked(devnet, f"{number}"), f"{number}") for number in range(4) for member in (one, two)]
        for member, body, key in asks:
            pool.submit(member.pay, body, key)
        servers.kill_primary()
        third.stop()
        servers.promote(is_synchronous=True)

        def is_paid_again() -> bool:
            answer = one.http.post(
                "/v1/payments", json=asked(devnet, "after"), headers={"Idempotency-Key": "after"}
            )
            if answer.is_success:
                paid.append(answer.json())
            return answer.is_success

        until(is_paid_again, "the fleet does not pay after the failover")
        until(lambda: {row["tx_hash"] for row in paid} <= landed(devnet), "what was paid does not land")
        until(lambda: len(one.ready()["accounts"]) + len(two.ready()["accounts"]) == 3, "not taken over")
        with closing(PostgresqlConnection(servers.url)) as conn:
            known = {tx_id for (tx_id,) in conn.execute("SELECT tx_id FROM attempts")}
        assert landed(devnet) <= known
