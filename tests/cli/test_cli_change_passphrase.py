"""`payagent wallet change-passphrase`: the keystore gets a new passphrase, or stays as it was."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from kit.canaries import plant
from kit.cli import PASSPHRASE, invoke, make_cheap, write_private
from kit.terminal import at_terminal

from payagent.core.problems import Refused
from payagent.settings.loading import load_settings
from payagent.store.db.lease import lease
from payagent.wallet.keystore import open_keystore

SOMEBODY = 12_345
NEW = plant("the new passphrase", "another canary for the keystore")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that `payagent init` makes."""
    folder = tmp_path_factory.mktemp("original")
    result = invoke(
        *("init", "--json", "--network", "devnet", "--chain-url", "http://127.0.0.1:1/api/v0"),
        *("--passphrase-file", write_private(folder / "passphrase", PASSPHRASE)),
        *("--config", folder / "config.toml", "--data-dir", folder / "data"),
    )
    assert result.code == 0, result.err
    plant("a token", result.json["token"])
    make_cheap(folder / "data/keystore.json", (folder / "data/recovery-words.txt").read_text().strip())
    write_private(folder / "new", NEW + "\n")
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    folder = Path(shutil.copytree(original, tmp_path / "made"))
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(str(original), str(folder)))
    return folder


def change(folder: Path) -> list[str | Path]:
    places = ("--config", folder / "config.toml", "--new-passphrase-file", folder / "new")
    return ["wallet", "change-passphrase", *places]


def words_of(folder: Path, passphrase: str) -> str | None:
    try:
        return open_keystore(folder / "data/keystore.json", passphrase).words
    except Refused:
        return None


def test_only_the_new_passphrase_opens_the_keystore_with_the_same_words(made: Path) -> None:
    words = (made / "data/recovery-words.txt").read_text().strip()
    before = json.loads((made / "data/keystore.json").read_text())
    result = invoke(*change(made))
    assert result.code == 0, result.err
    after = json.loads((made / "data/keystore.json").read_text())
    assert result.json == {"keystore": str(made / "data/keystore.json"), "address": before["address"]}
    assert (words_of(made, NEW), words_of(made, PASSPHRASE)) == (words, None)
    assert stat.S_IMODE((made / "data/keystore.json").stat().st_mode) == 0o600
    for field in ("network", "account", "address"):
        assert after[field] == before[field]
    assert after["kdf"]["salt"] != before["kdf"]["salt"]
    assert f"reads {made / 'passphrase'}" in result.err
    assert not [secret for secret in (PASSPHRASE, NEW) if secret in result.out + result.err]
    assert {path.name for path in (made / "data").iterdir()} >= {"keystore.json", "ledger.db"}
    assert not (made / "data/.keystore.json.new").exists()


@pytest.mark.parametrize(
    ("old", "new", "code", "exit_code"),
    [
        ("not the passphrase", NEW, "keystore_invalid", 5),
        (PASSPHRASE, "short", "passphrase_too_short", 2),
        (PASSPHRASE, "", "config_invalid", 2),
    ],
)
def test_a_refused_change_leaves_the_keystore_as_it_was(
    made: Path, old: str, new: str, code: str, exit_code: int
) -> None:
    before = (made / "data/keystore.json").read_bytes()
    write_private(made / "passphrase", old)
    write_private(made / "new", new)
    result = invoke(*change(made))
    assert (result.problem, result.code) == (code, exit_code)
    assert (made / "data/keystore.json").read_bytes() == before


def test_a_change_is_refused_while_a_daemon_runs_on_the_wallet(made: Path) -> None:
    with lease(load_settings(made / "config.toml", {}).data_dir, ("ledger.db", "keystore.json")):
        assert invoke(*change(made)).problem == "already_running"
    assert words_of(made, PASSPHRASE) is not None


def test_a_file_left_by_an_interrupted_change_does_not_stop_the_next(made: Path) -> None:
    write_private(made / "data/.keystore.json.new", '{"half": ')
    assert invoke(*change(made)).code == 0
    assert words_of(made, NEW) is not None


def test_a_symlinked_keystore_is_changed_at_its_target(made: Path) -> None:
    keystore, elsewhere = made / "data/keystore.json", made / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    keystore.rename(elsewhere / "wallet.json")
    keystore.symlink_to(elsewhere / "wallet.json")
    assert invoke(*change(made)).code == 0
    assert keystore.readlink() == elsewhere / "wallet.json"
    assert (words_of(made, NEW) is None, words_of(made, PASSPHRASE)) == (False, None)
    assert [path.name for path in elsewhere.iterdir()] == ["wallet.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a second user")
def test_root_does_not_change_another_users_keystore(made: Path) -> None:
    """The service could not open a file that root wrote in its place."""
    keystore = made / "data/keystore.json"
    before = keystore.read_bytes()
    (made / "data/lock").unlink(missing_ok=True)
    os.chown(keystore, SOMEBODY, SOMEBODY)
    result = invoke(*change(made))
    assert (result.problem, result.code) == ("config_invalid", 2)
    assert "runuser -u " in result.error["fix"]
    assert (keystore.read_bytes(), keystore.stat().st_uid) == (before, SOMEBODY)
    assert not (made / "data/lock").exists()


def test_a_terminal_asks_twice_for_the_new_passphrase(made: Path) -> None:
    with at_terminal("wallet", "change-passphrase", "--config", made / "config.toml") as session:
        for question, answer in (("Passphrase for the keystore", NEW), ("Repeat it", NEW)):
            session.expect(question)
            session.type(answer)
        assert session.end() == 0
    assert NEW not in session.seen
    assert words_of(made, NEW) is not None


def test_without_a_terminal_a_passphrase_file_is_required(made: Path) -> None:
    result = invoke("wallet", "change-passphrase", "--config", made / "config.toml")
    assert (result.code, result.problem) == (2, "usage")


def test_there_is_no_command_that_exports_the_key() -> None:
    for name in ("export-key", "export", "words", "key"):
        assert invoke("wallet", name).problem == "usage"
