"""Daemons with two accounts on a pair of servers, of which the first fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
from kit.cli import until
from kit.daemons_of_a_fleet import ADDRESSES, Member, add_app, furnish
from kit.http import NO_TLS
from kit.postgresql_pair import ServerPair

from payagent.devnet.server import DevnetThread

FAR_AHEAD_MS = 10**15
WITHOUT_UPKEEP = 'upkeep_fees_per_day = "0 ADA"\n'


@contextmanager
def two_accounts(url: str, folder: Path) -> Iterator[DevnetThread]:
    """A devnet on which both accounts of the wallet have funds, and a ledger with an app."""
    with DevnetThread(block_time_s=1) as devnet:
        add_app(url, folder)
        with httpx.Client(base_url=devnet.origin, verify=NO_TLS, trust_env=False) as control:
            for address in ADDRESSES[:2]:
                body = {"address": address, "lovelace": "100000000"}
                control.post("/devnet/faucet", json=body).raise_for_status()
        yield devnet


def landed(devnet: DevnetThread) -> set[str]:
    """The transactions on the devnet that spend something."""

    def ids(world: object) -> set[str]:
        blocks = world.chain.blocks  # type: ignore[attr-defined]
        return {tx.tx_id for block in blocks for tx in block.txs if tx.inputs}

    return devnet.run(ids)


def fresh(folder: Path, devnet: DevnetThread, url: str) -> Path:
    return furnish(folder, devnet, url, WITHOUT_UPKEEP, accounts=2)


def until_ready(*members: Member) -> None:
    until(lambda: all(one.ready()["ready"] for one in members), "a daemon is not ready")


def keep_first_account(url: str) -> None:
    """On the old primary the lease of the daemon that failed over still runs: another can only take account 1."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("UPDATE accounts SET holder = 'a', until_ms = %s WHERE account = 0", (FAR_AHEAD_MS,))
        conn.execute("UPDATE accounts SET holder = NULL, until_ms = 0 WHERE account = 1")


def fail_over(servers: ServerPair) -> None:
    servers.kill_primary()
    servers.promote(is_synchronous=True)
