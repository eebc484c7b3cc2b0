"""Several `payagent serve` on one PostgreSQL: one wallet, one set of books, and no daemon that is missed."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit.cli import invoke, until, write_private
from kit.daemon import refused
from kit.daemons_of_a_fleet import ADDRESSES, TOKEN, asked, fleet_of, furnish
from kit.postgresql import Server, move_to_file, needs_postgresql

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread
from payagent.store.db.opening import open_read_only

pytestmark = [needs_postgresql, pytest.mark.timeout(1200)]


def send_all(folder: Path) -> list[dict[str, Any]]:
    """The payments that `payagent wallet send --all` shows at the daemon of this folder."""
    files = ("--config", folder / "config.toml", "--token-file", write_private(folder / "token", TOKEN))
    done = invoke("wallet", "send", role_address("creator").text, "--all", "--yes", *files, "--json")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_three_daemons_pay_as_one_and_others_go_on_when_one_is_killed(tmp_path: Path, postgresql: Server) -> None:
    database = postgresql.new_database()
    url = postgresql.tcp_url(database)
    with DevnetThread(block_time_s=1) as devnet, fleet_of(3, tmp_path, devnet, url) as members:
        one, two, third = members
        held = [account for member in members for account in member.ready()["accounts"]]
        assert sorted(held) == [0, 1, 2]
        body = asked(devnet, "once")
        paid = [member.pay(body, "once") for member in members]
        assert len({payment["id"] for payment in paid}) == 1
        last = one.pay(asked(devnet, "before it dies"), "last")
        one.stop()

        code, said = refused(furnish(tmp_path / "other", devnet, url, "[limits]\nper_day = '7 ADA'\n"))
        assert code == 2
        assert "has other settings in limits. Nothing was changed." in said

        until(lambda: len(two.ready()["accounts"]) + len(third.ready()["accounts"]) == 3, "not taken over")

        def shown(payment: dict[str, Any]) -> str:
            return str(two.http.get(f"/v1/payments/{payment['id']}").json()["state"])

        until(lambda: {shown(paid[0]), shown(last)} == {"confirmed"}, "not confirmed")
        wallet = two.http.get("/v1/wallet").json()
        assert [row["address"] for row in wallet["accounts"]] == ADDRESSES
        assert two.http.get("/metrics").text.count("payagent_fleet_account_held{") == len(ADDRESSES)

        ids = [row["id"] for row in send_all(tmp_path / "b")]
        assert len(ids) == len(ADDRESSES)
        until(lambda: {shown({"id": name}) for name in ids} == {"confirmed"}, "not sent")
        assert two.http.get("/v1/wallet").json()["assets"][0]["total"] == "0"
    move_to_file(database, tmp_path / "ledger.db")
    with closing(open_read_only(tmp_path / "ledger.db")) as conn:
        owner = Owner(parse_address(ADDRESSES[0], NETWORKS["devnet"]), NETWORKS["devnet"])
        assert [one for one in verify(conn, owner) if isinstance(one, AuditFinding)] == []
