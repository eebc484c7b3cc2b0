"""`payagent store`: a ledger goes to PostgreSQL and back, as the page about it says."""

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.cli import Result, Shop, checks, clean_environ, invoke, running, until, write_private
from kit.effort import long_only
from kit.next_release import upgraded
from kit.pages import blocks
from kit.postgresql import Server, needs_postgresql

from payagent.devnet.server import DevnetThread
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.signer_record import LastSigned, SignerFile

pytestmark = needs_postgresql

PAGE = "docs/how-to/move-to-postgresql.md"
SERVICE = "/var/lib/payagent"
OWNER_URL = (
    "postgresql://payagent_owner@db.example/payagent?sslmode=verify-full&sslrootcert=/etc/payagent/database-ca.pem"
)
SOON_SETTLED = "[payments]\nvoid_depth = 4\nsettle_depth = 4\n"
PAID = ("confirmed", "settled")
FUNDS_LOVELACE = 100_000_000


@dataclass
class Moved:
    """A wallet whose ledger was moved to PostgreSQL. `owner`: the database's URL for the tables' owner."""

    shop: Shop
    owner: str
    while_running: Result
    said: Result
    again: Result


@pytest.fixture(scope="module")
def moved(postgresql: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    with DevnetThread(block_time_s=1) as devnet:
        shop = Shop(devnet, tmp_path_factory.mktemp("moved"))
        with closing(shop.http):
            for _ in range(3):
                shop.control("faucet", address=shop.made["address"], lovelace=str(FUNDS_LOVELACE))
            owner = made_by_the_page(postgresql)
            with running(shop):
                pay(shop, "on a file")
                while_running = shop.payagent("store", "copy", "--to", owner)
            _stop, copy, away, _check = blocks("Copy the ledger", PAGE)
            said = run(copy, shop, {OWNER_URL: owner})
            again = shop.payagent("store", "copy", "--to", owner)
            run(away, shop, {SERVICE: str(shop.data_dir)})
            with shop.config.open("a") as config:
                url = owner.replace("payagent_owner", "payagent")
                config.write(f'[store]\nurl = "{url}"\n[wallet]\naccounts = 2\n{SOON_SETTLED}')
            yield Moved(shop, owner, while_running, said, again)


def made_by_the_page(server: Server) -> str:
    """The URL of the page's database for its owner, with tables."""
    (roles,) = blocks("Make the database", PAGE, "sql")
    execute(server.url("postgres"), roles)
    here = server.tcp_url(server.url("payagent")).replace("postgres@", "payagent_owner@")
    (make,) = blocks("Make the database", PAGE)
    words = [
        here if word.startswith("postgresql://") else word for word in shlex.split(make.replace("\\\n", ""))[1:]
    ]
    made = invoke(*words)
    assert (made.code, made.json) == (0, {"made": True}), made.err
    assert invoke(*words).json == {"made": False}
    return here


def execute(url: str, statements: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        for statement in filter(str.strip, statements.split(";\n")):
            conn.execute(statement)


def run(block: str, shop: Shop, places: dict[str, str]) -> Result:
    """Run a block of the page, with other places for those it names."""
    for place, here in places.items():
        assert place in block
        block = block.replace(place, here)
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
    }
    done = subprocess.run(
        ["bash", "-ec", block], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def pay(shop: Shop, message: str) -> None:
    until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
    paid = shop.payagent("pay", shop.saved(message), "--merchant", "t")
    assert paid.code == 0, paid.err
    until(lambda: shop.payments()[0]["state"] in PAID, "it is not confirmed")


def test_a_ledger_moves_only_while_no_daemon_uses_it_and_into_an_empty_database_alone(moved: Moved) -> None:
    assert moved.while_running.problem == "already_running"
    assert moved.said.json["payments"] == 1
    assert moved.again.problem == "already_exists/ledger"


def test_a_ledger_that_is_older_than_the_signers_record_is_not_moved(
    moved: Moved, postgresql: Server, tmp_path: Path
) -> None:
    shop, data = moved.shop, tmp_path / "data"
    data.mkdir(mode=0o700)
    for path in (shop.data_dir / "keystore.json", *(shop.data_dir / "moved").iterdir()):
        shutil.copy(path, data)
    SignerFile(data / "signer.json").write(LastSigned(9, "ff" * 32, 10**9))
    config = shop.config_of(data)
    config.write_text(without_database(config))
    empty = postgresql.tcp_url(postgresql.new_database("template0"))
    assert invoke("store", "copy", "--to", empty, "--config", config).problem == "ledger_behind"
    with closing(PostgresqlConnection(empty)) as conn:
        assert conn.execute("SELECT to_regclass('apps')::text").fetchone() == (None,)


def test_the_doctor_warns_of_a_daemon_that_owns_the_tables(moved: Moved, tmp_path: Path) -> None:
    config = moved.shop.config_of(tmp_path / "data")
    config.write_text(without_database(config) + f'[store]\nurl = "{moved.owner}"\n')
    check = checks(config)["database"]
    assert (check["ok"], check["warning"]) == (True, True)
    assert "the daemon's role owns the tables" in check["detail"]


def test_the_doctor_names_sslmode_beside_its_other_findings(moved: Moved, tmp_path: Path) -> None:
    config = moved.shop.config_of(tmp_path / "away")
    config.write_text(without_database(config) + '[store]\nurl = "postgresql://payagent@db.example/payagent"\n')
    found = checks(config)
    assert not found["database"]["ok"]
    assert "does not have sslmode=verify-full" in found["database"]["detail"]
    assert len(found) > 5, found


def test_the_doctor_says_that_the_tables_lack_a_change(moved: Moved) -> None:
    with upgraded():
        check = checks(moved.shop.config)["database"]
    assert (check["ok"], check["warning"]) == (True, True)
    assert "once every daemon is upgraded, run `payagent store migrate`" in check["detail"]


def test_the_doctor_says_both_of_an_owner_of_older_tables(moved: Moved, tmp_path: Path) -> None:
    config = moved.shop.config_of(tmp_path / "both")
    config.write_text(without_database(config) + f'[store]\nurl = "{moved.owner}"\n')
    with upgraded():
        detail = checks(config)["database"]["detail"]
    assert "the daemon's role owns the tables" in detail
    assert "run `payagent store migrate`" in detail


def test_a_payment_of_another_account_must_settle_before_the_ledger_goes_back(
    moved: Moved, postgresql: Server, tmp_path: Path
) -> None:
    with closing(PostgresqlConnection(postgresql.url("payagent"))) as conn:
        (paid,) = conn.execute("SELECT id FROM payments WHERE state = 'confirmed'").fetchone() or ()
        conn.execute("SET session_replication_role = replica")
        conn.execute("UPDATE payments SET account = 1 WHERE id = ?", (paid,))
        refused = moved.shop.payagent("store", "copy", "--to", tmp_path / "ledger.db")
        conn.execute("UPDATE payments SET account = 0 WHERE id = ?", (paid,))
    assert refused.problem == "wrong_state"
    assert paid in refused.err
    assert list(tmp_path.iterdir()) == []


def test_the_owner_of_the_tables_changes_no_row_of_a_moved_ledger(moved: Moved) -> None:
    with closing(PostgresqlConnection(moved.owner)) as conn:
        for statement in ("DELETE FROM events", "UPDATE attempts SET fee_lovelace = 1", "TRUNCATE seals"):
            with pytest.raises(sqlite3.IntegrityError):
                conn.execute(statement)


def test_the_daemons_role_empties_no_table_of_record_and_changes_no_table(moved: Moved) -> None:
    with closing(PostgresqlConnection(moved.owner.replace("payagent_owner", "payagent"))) as conn:
        for statement in (
            "DELETE FROM accounts",
            "DELETE FROM events",
            "TRUNCATE utxos",
            "ALTER TABLE events DISABLE TRIGGER USER",
            "DROP TABLE limits",
            "CREATE TABLE more (one BIGINT)",
        ):
            with pytest.raises(sqlite3.OperationalError, match=r"permission denied|must be owner"):
                conn.execute(statement)


@long_only
def test_a_second_machine_joins_with_copies_of_the_firsts_files(moved: Moved, tmp_path: Path) -> None:
    first, second = moved.shop, copy(moved.shop)
    second.folder, second.config, second.data_dir = tmp_path, tmp_path / "config.toml", tmp_path / "data"
    second.data_dir.mkdir(mode=0o700)
    for name in ("passphrase", "data/keystore.json", "data/operator.token"):
        shutil.copy(first.folder / name, tmp_path / name)
    write_private(second.config, first.config.read_text().replace(str(first.folder), str(tmp_path)))
    with running(first), running(second):
        until(lambda: len(holders(second)) == 2, "each does not hold an account")
        status, migrate = blocks("Upgrade a fleet", "docs/how-to/upgrade.md")
        assert run(status, second, {}).json["ready"] is True
        assert run(migrate, second, {OWNER_URL: moved.owner}).json == {"made": False}
        shown = second.payagent("wallet", "--human").out
        for account in second.payagent("wallet").json["accounts"]:
            assert f"{account['account']}        {account['holder']}" in shown
            assert account["address"] in shown
            first.control("faucet", address=account["address"], lovelace=str(FUNDS_LOVELACE))
        until(lambda: len(second.payagent("wallet", "utxos").json["utxos"]) > 4, "no deposit")
        token = write_private(tmp_path / "token", first.payagent("app", "add", "bot").json["token"])
        for shop in (first, second):
            saved = first.saved(f"at {shop.folder}")
            paid = shop.payagent("pay", saved, "--merchant", "t", "--token-file", token)
            assert paid.code == 0, paid.err
        until(lambda: {row["state"] for row in first.payments()} == {"settled"}, "not settled")
        assert first.payments() == second.payments()


def holders(shop: Shop) -> set[str]:
    """Who holds the accounts."""
    return {row["holder"] for row in shop.payagent("wallet").json["accounts"]} - {None}


def test_a_moved_ledger_pays_and_comes_back_with_the_same_seals_and_tokens(moved: Moved, tmp_path: Path) -> None:
    shop = moved.shop
    with running(shop):
        *_, check = blocks("Copy the ledger", PAGE)
        run(check, shop, {})
        pay(shop, "on PostgreSQL")
        count = len(shop.payments())
        until(lambda: {row["state"] for row in shop.payments()} == {"settled"}, "not settled")
        verified = shop.payagent("ledger", "verify", "--head", moved.said.json["head"])
        assert (verified.code, verified.json["findings"]) == (0, []), verified.err
        assert verified.json["checked"]["payments"] == count
        assert shop.payagent("ledger", "reconcile").code == 0
        exported = shop.payagent("ledger", "export", "--format", "jsonl").out
        assert shop.payagent("ledger", "snapshot", tmp_path / "books.db").code == 0
        with closing(sqlite3.connect(tmp_path / "books.db")) as books:
            assert books.execute("SELECT COUNT(*) FROM v_payments").fetchone() == (count,)
        backup = shop.payagent("backup", tmp_path / "wallet.tar")
        assert (backup.code, backup.json["payments"]) == (0, count), backup.err
        in_use = shop.payagent("store", "copy", "--to", tmp_path / "ledger.db")
        assert in_use.problem == "already_running"
        assert checks(shop.config)["database"]["warning"] is False
    restored = shop.config_of(tmp_path / "restored")
    restored.write_text(without_database(restored))
    assert invoke("restore", tmp_path / "wallet.tar", "--config", restored).code == 0

    (back,) = blocks("Go back to a file", PAGE)
    run(back, shop, {SERVICE: str(shop.data_dir)})
    shop.config.write_text(without_database(shop.config))
    with running(shop):
        verified = shop.payagent("ledger", "verify", "--head", moved.said.json["head"])
        assert (verified.code, verified.json["findings"]) == (0, []), verified.err
        assert shop.payagent("ledger", "export", "--format", "jsonl").out == exported
        pay(shop, "on a file again")
        assert len(shop.payments()) == count + 1


def without_database(config: Path) -> str:
    return config.read_text().partition("[store]")[0]
