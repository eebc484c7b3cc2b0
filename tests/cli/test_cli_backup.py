"""`payagent backup` and `payagent restore`, and a daemon on the restored wallet."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli import under_unit
from kit.cli import PASSPHRASE, TOKEN, Shop, checks, clean_environ, invoke, readiness, spawn, until
from kit.daemon import SOMEBODY
from kit.pages import blocks

BIN = Path(sys.executable).parent
CONFIG = Path(__file__).parents[2] / "config"


@dataclass
class Again:
    """The config of the restored wallet, its folder, the backup, and what `restore` printed."""

    config: Path
    data_dir: Path
    backup: Path
    said: dict[str, object]


@pytest.fixture(scope="module")
def again(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """A backup taken while the daemon runs, a payment after it, and the backup restored to another folder."""
    assert shop.payagent("pay", shop.saved("known"), "--merchant", "t").code == 0
    folder = tmp_path_factory.mktemp("again")
    made = shop.payagent("backup", folder / "wallet.tar")
    assert (made.code, made.json["payments"]) == (0, 1), made.err
    assert "Not in the backup: the keystore's passphrase" in made.err
    assert shop.payagent("pay", shop.saved("lost"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    data_dir = shop.folder / "again"
    config = shop.config_of(data_dir)
    config.write_text(
        config.read_text().replace(f'socket = "{shop.folder}/s"', f'socket = "{shop.folder}/again.s"')
    )
    put_back = invoke("restore", folder / "wallet.tar", "--config", config)
    assert put_back.code == 0, put_back.err
    return Again(config, data_dir, folder / "wallet.tar", put_back.json)


@pytest.fixture(scope="module")
def daemon(shop: Shop, again: Again) -> Iterator["subprocess.Popen[str]"]:
    """A daemon on the restored wallet; it sees the chain and is not ready yet."""
    process = spawn("serve", "--config", again.config, stderr=subprocess.DEVNULL)
    try:
        until(lambda: readiness(shop.folder / "again.s").get("code") == "restored_recently", "it is not restored")
        assert "restored" in checks(again.config)["daemon"]["detail"]
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_a_backup_is_private_and_holds_its_three_members(again: Again) -> None:
    assert stat.S_IMODE(again.backup.stat().st_mode) == 0o600
    listed = subprocess.run(["tar", "tf", again.backup], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["manifest.json", "keystore.json", "ledger.db"]
    assert PASSPHRASE.encode() not in again.backup.read_bytes()


def test_a_restore_reports_utxos_that_differ_between_ledger_and_chain(again: Again) -> None:
    chain = again.said["chain"]
    assert isinstance(chain, dict)
    assert (chain["checked"], chain["gone"]["utxos"], chain["unknown"]["utxos"]) == (True, 1, 1)


def test_the_human_output_of_a_restore_reports_utxos_that_differ(shop: Shop, again: Again, tmp_path: Path) -> None:
    shop.control("faucet", address=shop.made["address"], lovelace="5000000", assets={TOKEN: "1200"})
    until(lambda: "'1200'" in str(shop.payagent("wallet", "utxos").json), "the tokens did not arrive")
    config = shop.config_of(shop.folder / "people")
    told = invoke("restore", again.backup, "--config", config, "--human").out
    shutil.rmtree(shop.folder / "people")
    assert re.search(r"1 UTxOs of the ledger are not on the chain: \d+\.\d+ ADA", told)
    assert re.search(r"2 UTxOs on the chain are not in the ledger: \d+\.\d+ ADA, 1\D?200 COIN", told)
    assert "The daemon signs nothing before " in told


def test_the_backups_head_is_still_in_the_running_ledger(shop: Shop, again: Again) -> None:
    assert shop.payagent("ledger", "verify", "--head", str(again.said["head"])).code == 0


def test_a_restored_daemon_refuses_payments_for_a_while_and_says_until_when(
    shop: Shop, again: Again, daemon: "subprocess.Popen[str]"
) -> None:
    refused = invoke("pay", shop.saved("new"), "--merchant", "t", "--config", again.config)
    assert (refused.code, refused.out, refused.problem) == (4, "", "restored_recently")
    assert refused.error["retryable"] is True
    assert str(again.said["signs_at"]) in refused.error["detail"]


def test_a_restore_makes_a_new_operator_token_and_the_old_one_still_works(
    shop: Shop, again: Again, daemon: "subprocess.Popen[str]"
) -> None:
    assert (again.data_dir / "operator.token").read_text() != (shop.data_dir / "operator.token").read_text()
    for more in ((), ("--token-file", shop.data_dir / "operator.token")):
        shown = invoke("payments", "--config", again.config, *more)
        assert [row["state"] for row in shown.json["payments"]] == ["confirmed"], shown.err


def test_a_restored_ledger_verifies_clean(again: Again, daemon: "subprocess.Popen[str]") -> None:
    verified = invoke("ledger", "verify", "--head", str(again.said["head"]), "--config", again.config)
    assert verified.code == 0, verified.out


def test_backup_and_restore_overwrite_nothing(shop: Shop, again: Again) -> None:
    refused = shop.payagent("backup", again.backup)
    assert (refused.code, refused.problem) == (2, "already_exists/file")
    refused = invoke("restore", again.backup, "--config", again.config)
    assert (refused.code, refused.problem) == (2, "already_exists/keystore")


def test_a_name_that_cannot_be_looked_up_is_refused_and_is_no_bug(shop: Shop) -> None:
    """As is any name in another user's private folder."""
    told = shop.payagent("backup", "x" * 300)
    assert (told.code, told.problem) == (2, "write_failed/backup")


def test_a_backup_that_cannot_be_read_needs_no_other_backup(shop: Shop, tmp_path: Path) -> None:
    told = invoke("restore", tmp_path / "none.tar", "--config", shop.config_of(tmp_path / "data"))
    assert told.problem == "file_invalid/backup"
    assert "make it readable for this user" in told.error["fix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_restores_nothing_into_another_users_folder(shop: Shop, again: Again, tmp_path: Path) -> None:
    """The service could not open files that root wrote there."""
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, SOMEBODY, SOMEBODY)
    told = invoke("restore", again.backup, "--config", shop.config_of(data_dir))
    assert (told.code, told.problem) == (2, "config_invalid")
    assert "runuser -u " in told.error["fix"]
    assert (list(data_dir.iterdir()), data_dir.stat().st_uid) == ([], SOMEBODY)


def test_the_nightly_unit_makes_a_backup_and_removes_one_older_than_30_days(shop: Shop, tmp_path: Path) -> None:
    old, kept = tmp_path / "wallet-old.tar", tmp_path / "wallet-kept.tar"
    for path, days in ((old, 31), (kept, 29)):
        path.touch()
        os.utime(path, (path.stat().st_mtime - days * 86_400,) * 2)
    unit = (CONFIG / "payagent-backup.service").read_text()
    commands = "\n".join(re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE))
    for there, here in {
        "/opt/payagent/bin/payagent": str(BIN / "payagent"),
        "/etc/payagent/config.toml": str(shop.config),
        "/var/lib/payagent-backups": str(tmp_path),
        "$$": "$",
        "%%": "%",
    }.items():
        assert there in commands
        commands = commands.replace(there, here)
    under = [sys.executable, under_unit.__file__, str(CONFIG / "payagent-backup.service")]
    for confined in (under, []):
        command = [*confined, "sh", "-ec", commands]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environ())
        if run.returncode != under_unit.NOT_HERE:
            break
    assert run.returncode == 0, run.stderr
    (made,) = {*tmp_path.iterdir()} - {kept}
    assert tarfile.is_tarfile(made)


def test_the_commands_of_the_backup_pages_work(shop: Shop, tmp_path: Path) -> None:
    take, take_as_service, _units = blocks("Back up the wallet", "docs/how-to/back-up.md")
    put_back, put_back_as_service = blocks("Restore a backup", "docs/how-to/restore-and-recover.md")
    script = "set -e\n" + take + put_back.replace("~/payagent/config.toml", str(shop.config_of(tmp_path / "data")))
    for part, config in (
        (take_as_service, shop.config),
        (put_back_as_service, shop.config_of(tmp_path / "payagent")),
    ):
        for there, here in {
            "-o payagent -g payagent": f"-o {os.geteuid()} -g {os.getegid()}",
            "runuser -u payagent -- /opt/payagent/bin/payagent": "payagent",
            "/etc/payagent/config.toml": str(config),
            "/var/lib": str(tmp_path),
        }.items():
            assert there in part
            part = part.replace(there, here)
        script += part
    environ = clean_environ() | {"PATH": f"{BIN}:{os.environ['PATH']}", "PAYAGENT_CONFIG": str(shop.config)}
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environ, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    _, restored, backed_up, restored_again = map(json.loads, run.stdout.splitlines())
    assert restored["data_dir"] == str(tmp_path / "data")
    assert backed_up["file"] == str(tmp_path / "payagent-backups/wallet.tar")
    assert (restored_again["data_dir"], (tmp_path / "payagent-restore.tar").exists()) == (
        str(tmp_path / "payagent"),
        False,
    )
