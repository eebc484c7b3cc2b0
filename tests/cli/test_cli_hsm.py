"""`payagent init`, `doctor` and `backup` for a wallet whose keys are in an HSM."""

import json
from pathlib import Path

import pytest
from kit.cli import Result, checks, invoke, write_private
from kit.softhsm import PIN, SoftHsm, make_softhsm, needs_softhsm, unload

pytestmark = needs_softhsm

CHAIN = "http://127.0.0.1:1/api/v0"


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    hsm = make_softhsm(tmp_path / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", hsm.environment["SOFTHSM2_CONF"])
    unload()
    return hsm


def init(folder: Path, hsm: SoftHsm, *more: str | Path, labels: tuple[str, ...] = ("payagent-0",)) -> Result:
    keys = [part for label in labels for part in ("--keystore", hsm.uri(label))]
    return invoke(
        *("init", "--json", "--network", "devnet", "--chain-url", CHAIN, "--pin-file", hsm.pin_file, *keys),
        *("--config", folder / "config.toml", "--data-dir", folder / "data", *more),
    )


def test_init_makes_keys_in_the_hsm_and_writes_no_secret_of_theirs(tmp_path: Path, hsm: SoftHsm) -> None:
    result = init(tmp_path, hsm, "--generate", labels=("payagent-0", "payagent-1"))
    assert result.code == 0, result.err
    assert set(result.json) == {"config", "data_dir", "address", "token"}
    assert "if the HSM is lost, so is the money" in result.err
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "keystore.json",
        "ledger.db",
        "operator.token",
    }
    keystore = json.loads((tmp_path / "data/keystore.json").read_text())
    assert (keystore["version"], keystore["address"]) == (2, result.json["address"])
    assert [key["label"] for key in keystore["keys"]] == ["payagent-0", "payagent-1"]
    for path in (tmp_path / "data/keystore.json", tmp_path / "config.toml"):
        assert PIN not in path.read_text()
    assert PIN not in result.out + result.err


def test_another_host_makes_the_same_wallet_of_keys_that_exist(tmp_path: Path, hsm: SoftHsm) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = init(tmp_path / "one", hsm, "--generate")
    two = init(tmp_path / "two", hsm)
    assert (one.code, two.code) == (0, 0), two.err
    assert one.json["address"] == two.json["address"]
    again = init(tmp_path / "three", hsm, "--generate")
    assert again.problem == "already_exists/keystore"
    assert not (tmp_path / "three").exists()


def test_a_wrong_pin_or_a_missing_key_leaves_nothing_behind(tmp_path: Path, hsm: SoftHsm) -> None:
    assert init(tmp_path / "new", hsm).problem == "keystore_invalid"
    write_private(hsm.pin_file, "another PIN")
    result = init(tmp_path / "new", hsm, "--generate")
    assert (result.problem, "another PIN" in result.err) == ("keystore_invalid", False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=payagent;object=a",
        "pkcs11:token=payagent;object=a?module-path=relative.so",
        "pkcs11:token=payagent;object=a?module-path=/a%00b",
        "pkcs11:token=payagent;object=a?module-path=/m.so&pin-value=1234",
        "softhsm",
    ],
)
def test_a_uri_that_names_no_key_or_has_a_pin_is_refused(tmp_path: Path, hsm: SoftHsm, uri: str) -> None:
    class Odd(SoftHsm):
        def uri(self, _label: str = "") -> str:
            return uri

    result = init(tmp_path / "new", Odd(hsm.folder, hsm.module))
    assert result.problem == "config_invalid", result.err
    assert "1234" not in result.err


def test_words_and_passphrases_do_not_go_with_an_hsm(tmp_path: Path, hsm: SoftHsm) -> None:
    for option in ("--restore", "--passphrase-file"):
        assert init(tmp_path, hsm, option, write_private(tmp_path / "secret", "zoo")).code == 2


def test_doctor_checks_module_token_pin_keys_and_speed(tmp_path: Path, hsm: SoftHsm) -> None:
    assert init(tmp_path, hsm, "--generate").code == 0
    found = {name: check for name, check in checks(tmp_path / "config.toml").items() if name.startswith("HSM")}
    assert list(found) == ["HSM module", "HSM token", "HSM PIN", "HSM keys", "HSM speed"]
    assert all(check["ok"] and not check["warning"] for check in found.values()), found
    assert "payagent-0: each once, and as in keystore.json" in found["HSM keys"]["detail"]


def test_doctor_says_which_key_is_not_the_keystores(tmp_path: Path, hsm: SoftHsm) -> None:
    assert init(tmp_path, hsm, "--generate").code == 0
    hsm.opened("payagent-9", generate=True)
    unload()
    keystore = tmp_path / "data/keystore.json"
    keystore.write_text(keystore.read_text().replace("payagent-0", "payagent-9"))
    check = checks(tmp_path / "config.toml")["HSM"]
    assert (check["ok"], check["code"]) == (False, "keystore_invalid")
    assert check["detail"] == "key payagent-9 is another one than in keystore.json"


def test_a_backup_has_the_keystore_file_and_says_that_the_keys_are_not_in_it(tmp_path: Path, hsm: SoftHsm) -> None:
    assert init(tmp_path, hsm, "--generate").code == 0
    config, data = tmp_path / "config.toml", tmp_path / "data"
    before = (data / "keystore.json").read_bytes()
    backup = invoke("backup", tmp_path / "backup.tar", "--config", config)
    assert backup.code == 0, backup.err
    assert "Not in the backup" in backup.err
    assert "keys and PIN of an HSM" in backup.err
    for path in data.iterdir():
        path.unlink()
    restored = invoke("restore", tmp_path / "backup.tar", "--config", config)
    assert restored.code == 0, restored.err
    assert (data / "keystore.json").read_bytes() == before
