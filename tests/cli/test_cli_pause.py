"""`payagent pause`, on a real daemon that is killed the moment it has answered."""

import subprocess

from kit.cli import Shop, checks, readiness, running, spawn, until


def test_a_pause_survives_a_kill_of_the_daemon_until_it_is_resumed(closed_shop: Shop) -> None:
    shop = closed_shop
    shop.control("faucet", address=shop.made["address"], lovelace="100000000")
    with running(shop) as daemon:
        until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
        paused = shop.payagent("pause", "--reason", "the token leaked")
        again = shop.payagent("pause", "--reason", "another one")
        daemon.kill()
        assert (paused.code, paused.err, again.code) == (0, "", 0)
        assert (again.json["reason"], again.json["already"]) == ("the token leaked", True)
        assert "already paused" in again.err
        assert "another one" in (shop.folder / "daemon.log").read_text()
        daemon.wait(60)
    (shop.folder / "s").unlink()  # the socket that a killed daemon leaves
    with (shop.folder / "daemon.log").open("a") as log:
        second = spawn("serve", "--config", shop.config, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: readiness(shop.folder / "s").get("code") == "paused", "the daemon does not tell of a pause")
        told = checks(shop.config)["daemon"]
        assert (told["ok"], told["code"]) == (False, "paused")
        assert "payagent resume" in told["fix"]
        refused = shop.payagent("pay", shop.saved("while paused"), "--merchant", "t")
        assert (refused.code, refused.problem) == (4, "paused")
        assert "the token leaked" in refused.error["detail"]
        assert shop.payments() == []
        until(lambda: readiness(shop.folder / "s")["checks"]["chain"] == "ok", "the chain is not seen")
        assert shop.payagent("resume", "--human").out == "payagent signs again.\n"
        assert shop.payagent("pay", shop.saved("after it"), "--merchant", "t").code == 0
    finally:
        second.terminate()
        second.wait(60)
