"""`payagent init`: makes private files, overwrites nothing, and leaves nothing behind when it fails."""

import itertools
import json
import os
import stat
from pathlib import Path

import pytest
from kit.agent import WORDS
from kit.canaries import plant
from kit.cli import PASSPHRASE, Result, invoke, write_private

from payagent.chain.open import KINDS
from payagent.core.origin import T_BACKEND
from payagent.secret_file import require_unchanged_by_others
from payagent.settings.loading import load_settings

CHAIN, MERCHANT = "http://127.0.0.1:1/api/v0", "http://127.0.0.1:2"


def arguments(folder: Path, *more: str | Path) -> list[str | Path]:
    passphrase = folder / "passphrase"
    if not passphrase.exists():
        write_private(passphrase, PASSPHRASE)
    return [
        *("init", "--json", "--network", "devnet", "--chain-url", CHAIN, "--merchant", f"t={MERCHANT}"),
        *("--partner", "t=demo", "--passphrase-file", passphrase),
        *("--config", folder / "config.toml", "--data-dir", folder / "data", *more),
    ]


def made(folder: Path, *more: str | Path) -> Result:
    result = invoke(*arguments(folder, *more))
    assert result.code == 0, result.err
    plant("a token", result.json["token"])
    return result


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with what `init` made, and what it said."""
    folder = tmp_path_factory.mktemp("one")
    return folder, made(folder, "--project-id-file", folder / "blockfrost")


def test_init_makes_private_files_and_says_where(one: tuple[Path, Result]) -> None:
    folder, result = one
    assert result.out.count("\n") == 1
    assert set(result.json) == {"config", "data_dir", "address", "token"}
    data = folder / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
    assert files == dict.fromkeys(("keystore.json", "ledger.db", "operator.token", "recovery-words.txt"), 0o600)
    assert str(data / "recovery-words.txt") in result.err
    assert (data / "operator.token").read_text().strip() == result.json["token"]


def test_init_prints_no_secret_except_the_token_once(one: tuple[Path, Result]) -> None:
    folder, result = one
    words = (folder / "data/recovery-words.txt").read_text().strip()
    assert len(words.split()) == 24
    places = result.out + result.err + (folder / "config.toml").read_text()
    places += (folder / "data/ledger.db").read_bytes().decode(errors="ignore")
    places += (folder / "data/keystore.json").read_text()
    assert PASSPHRASE not in places
    assert words not in places
    assert places.count(result.json["token"]) == 1


def test_the_config_is_valid_and_holds_the_given_options(one: tuple[Path, Result]) -> None:
    folder, _ = one
    settings = load_settings(folder / "config.toml", {"HOME": str(folder)})
    assert settings.network == "devnet"
    assert settings.chain.providers[0].base_url == CHAIN
    assert (settings.merchants["t"].origin, settings.merchants["t"].partner) == (MERCHANT, "demo")
    assert (
        "`auto_below` in [merchants.t.topup], the first top-up may follow at once"
        in (folder / "config.toml").read_text()
    )
    assert settings.data_dir == folder / "data"
    assert settings.keystore.passphrase_file == folder / "passphrase"


MODES = {
    "https://api-v3.fluxpointstudios.com": "additional",
    "https://api-v2.fluxpointstudios.com": None,
    "https://api-v3.fluxpointstudios.com:8443": None,
    "https://api.example.com": None,
}


def test_the_config_sets_the_split_mode_for_the_t_backend_only(tmp_path: Path) -> None:
    named = {f"other-{number}": origin for number, origin in enumerate(MODES)}
    options = (("--merchant", f"{name}={origin}", "--partner", f"{name}=demo") for name, origin in named.items())
    made(tmp_path, *itertools.chain.from_iterable(options))
    merchants = load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).merchants
    assert merchants["t"].split_mode is None
    assert {origin: merchants[name].split_mode for name, origin in named.items()} == MODES
    lines = (tmp_path / "config.toml").read_text().splitlines()
    told = [before for before, line in itertools.pairwise(lines) if line == 'split_mode = "additional"']
    assert [("on top" in one, one[0]) for one in told] == [(True, "#")]


def test_the_t_backend_is_known_however_its_origin_is_written(tmp_path: Path) -> None:
    made(tmp_path, "--merchant", "other=https://API-v3.fluxpointstudios.com:443/", "--partner", "other=demo")
    merchants = load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).merchants
    assert merchants["other"].split_mode == "additional"


def test_a_merchant_may_be_given_as_any_url_of_it(tmp_path: Path) -> None:
    urls = ("https://api.example.com/v1/chat?model=a", f"{T_BACKEND}/chat", "two=https://api.example.org/v1")
    command = arguments(tmp_path)
    at = command.index("--merchant")
    options = itertools.chain.from_iterable(("--merchant", url) for url in urls)
    result = invoke(*command[:at], *options, *command[at + 4 :])
    assert result.code == 0, result.err
    plant("a token", result.json["token"])
    merchants = load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).merchants
    assert {name: merchant.origin for name, merchant in merchants.items()} == {
        "api-example-com": "https://api.example.com",
        "t": T_BACKEND,
        "two": "https://api.example.org",
    }


def test_a_data_dir_from_the_environment_is_written_to_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *command, option, folder = arguments(tmp_path)
    assert option == "--data-dir"
    monkeypatch.setenv("PAYAGENT_DATA_DIR", str(folder))
    result = invoke(*command)
    assert result.code == 0, result.err
    plant("a token", result.json["token"])
    assert result.json["data_dir"] == str(folder)
    assert load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).data_dir == folder


def test_restored_words_give_the_same_address_and_are_not_written(
    one: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, first = one
    again = made(tmp_path, "--restore", folder / "data/recovery-words.txt")
    assert again.json["address"] == first.json["address"]
    assert not (tmp_path / "data/recovery-words.txt").exists()


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("config.toml", "already_exists/file"),
        ("data/keystore.json", "already_exists/keystore"),
        ("data/ledger.db", "already_exists/file"),
    ],
)
def test_init_overwrites_no_file_and_leaves_nothing_behind(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text("precious")
    before = listing(tmp_path)
    result = invoke(*arguments(tmp_path))
    assert (result.code, result.out, result.problem) == (2, "", code)
    assert path.read_text() == "precious"
    assert listing(tmp_path) - {"passphrase"} == before


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (("--merchant", "two=http://127.0.0.1:2"), "config_invalid"),
        (("--merchant", "Bad Name=http://127.0.0.1:3"), "config_invalid"),
        (("--merchant", 'x]\n[limits]\nper_day="9 ADA"#=http://127.0.0.1:3'), "config_invalid"),
        (("--merchant", "x=ftp://127.0.0.1"), "config_invalid"),
        (("--merchant", "x"), "usage"),
        (("--partner", "nobody=demo"), "usage"),
        (("--restore", "/nonexistent"), "mnemonic_invalid"),
    ],
)
def test_an_invalid_option_is_reported_and_nothing_is_left_behind(
    tmp_path: Path, more: tuple[str, ...], code: str
) -> None:
    result = invoke(*arguments(tmp_path, *more))
    assert (result.code, result.problem) == (2, code)
    assert listing(tmp_path) == {"passphrase"}


def test_a_data_dir_that_is_not_utf_8_is_refused_by_its_name(tmp_path: Path) -> None:
    """Its name is in an old encoding; a config file is UTF-8."""
    result = invoke(*arguments(tmp_path, "--data-dir", tmp_path / os.fsdecode(b"d\xe9p\xf4t")))
    assert (result.code, result.problem) == (2, "config_invalid")
    assert "UTF-8" in result.error["detail"]
    assert result.error["detail"].startswith(f"{tmp_path}/d")


def test_a_config_in_the_data_dir_is_refused_except_on_the_devnet(tmp_path: Path) -> None:
    one_folder = arguments(tmp_path, "--config", tmp_path / "data/config.toml")
    result = invoke(*one_folder, "--network", "preprod")
    assert (result.code, result.problem) == (2, "config_invalid")
    assert "a folder of its own" in result.error["detail"]
    assert not (tmp_path / "data").exists()
    made(tmp_path, "--config", tmp_path / "data/config.toml")  # the devnet's money is worth nothing
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_the_config_is_private_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "made/on the way"
    before = os.umask(0o002)
    try:
        made(tmp_path, "--config", folder / "config.toml")
    finally:
        os.umask(before)
    assert require_unchanged_by_others(folder / "config.toml").endswith("(0600)")


def test_a_chain_url_that_the_provider_cannot_have_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    result = invoke(*arguments(tmp_path, "--chain-url", "https://cardano-preprod.blockfrost.io"))
    assert (result.code, result.error["code"]) == (2, "config_invalid")
    assert "--provider: write https://cardano-NETWORK.blockfrost.io/api/v0" in result.error["detail"]
    assert [path.name for path in tmp_path.iterdir()] == ["passphrase"]


def test_invalid_recovery_words_are_refused_and_not_repeated(tmp_path: Path) -> None:
    words = write_private(tmp_path / "words", "walrus " * 24)
    result = invoke(*arguments(tmp_path, "--restore", words))
    assert (result.code, result.problem) == (2, "mnemonic_invalid")
    assert "walrus" not in result.err
    assert not (tmp_path / "data").exists()


def test_a_data_dir_that_is_open_and_not_empty_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    (data / "something").touch()
    result = invoke(*arguments(tmp_path))
    assert "chmod 700" in result.error["detail"]
    assert listing(tmp_path) == {"passphrase", "data", "data/something"}


def test_a_passphrase_file_must_be_private_except_on_the_devnet(tmp_path: Path) -> None:
    path = write_private(tmp_path / "passphrase", PASSPHRASE)
    os.chmod(path, 0o644)  # noqa: PTH101
    result = invoke(*arguments(tmp_path, "--network", "preprod"))
    assert result.code == 2
    assert "chmod 600" in result.error["detail"]
    assert f"{path} can be read by others" in made(tmp_path).err


def test_a_short_passphrase_from_a_file_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "passphrase", "seven77\n")
    result = invoke(*arguments(tmp_path, "--network", "preprod"))
    assert (result.code, result.problem) == (2, "passphrase_too_short")
    assert "8 characters" in result.error["detail"]
    assert "seven77" not in result.err
    assert listing(tmp_path) == {"passphrase"}
    write_private(tmp_path / "passphrase", "éight888\n")
    made(tmp_path, "--network", "preprod")


def test_on_the_devnet_any_passphrase_is_accepted_for_new_words(tmp_path: Path) -> None:
    path = write_private(tmp_path / "passphrase", "test\n")
    restore = ("--restore", write_private(tmp_path / "words", WORDS))
    assert invoke(*arguments(tmp_path, *restore)).problem == "passphrase_too_short"
    os.chmod(path, 0o644)  # noqa: PTH101
    assert "chmod 600" in invoke(*arguments(tmp_path, *restore)).error["detail"]
    made(tmp_path)


def test_a_failed_init_removes_the_folders_it_made(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir(mode=0o750)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    before = {path: path.stat().st_mode for path in (tmp_path, there, empty)}
    words = write_private(tmp_path / "words", "walrus " * 24)
    for data in (there / "a/b/data", empty):
        places = ("--config", there / "etc/deep/config.toml", "--data-dir", data)
        result = invoke(*arguments(tmp_path, *places, "--restore", words))
        assert (result.code, result.problem) == (2, "mnemonic_invalid")
        assert listing(tmp_path) == {"passphrase", "words", "there", "empty"}
        assert {path: path.stat().st_mode for path in before} == before
    places = ("--config", there / "etc/deep/config.toml", "--data-dir", there / "a/b/data")
    made(tmp_path, *places)
    assert stat.S_IMODE((there / "a/b/data").stat().st_mode) == 0o700


def test_files_of_another_ledger_are_neither_used_nor_removed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "ledger.db-wal").write_text("precious")
    result = invoke(*arguments(tmp_path))
    assert (result.code, result.problem) == (2, "already_exists/file")
    assert listing(tmp_path) == {"passphrase", "data", "data/ledger.db-wal"}


def test_without_a_terminal_init_names_the_missing_options(tmp_path: Path) -> None:
    result = invoke("init", "--config", tmp_path / "config.toml")
    assert result.code == 2
    for option in ("--network", "--provider", "--passphrase-file"):
        assert option in result.error["detail"]


def test_init_writes_the_path_of_the_project_id_file_and_does_not_read_it(one: tuple[Path, Result]) -> None:
    folder, _ = one
    assert f'token_file = "{folder}/blockfrost"' in (folder / "config.toml").read_text()


def test_a_wallet_may_have_several_providers(tmp_path: Path) -> None:
    made(tmp_path, "--provider", "http://127.0.0.1:2")
    chain = load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).chain
    assert [(one.kind, one.base_url) for one in chain.providers] == [
        ("blockfrost", CHAIN),
        ("blockfrost", "http://127.0.0.1:2"),
    ]


def test_a_token_is_given_to_no_provider_that_may_be_the_wrong_one(tmp_path: Path) -> None:
    wanted = ("--provider", "http://127.0.0.1:2", "--project-id-file", tmp_path / "id")
    result = invoke(*arguments(tmp_path, *wanted))
    assert result.error["code"] == "config_invalid"
    assert "whose token is it?" in result.error["detail"]
    assert not (tmp_path / "config.toml").exists()


def test_the_url_of_a_kinds_own_servers_means_that_kind(tmp_path: Path) -> None:
    made(tmp_path, "--provider", KINDS["koios"].urls["devnet"])
    chain = load_settings(tmp_path / "config.toml", {"HOME": str(tmp_path)}).chain
    assert [one.kind for one in chain.providers] == ["blockfrost", "koios"]


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_errors_for_people_say_what_happened_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("precious")
    words = [str(word) for word in arguments(tmp_path, "--human")]
    words.remove("--json")
    err = invoke(*words).err
    assert "already_exists/file" in err
    assert "\n  money: " not in err, "no payment was decided on"
    assert "\n  next: " in err
    with pytest.raises(json.JSONDecodeError):
        json.loads(err)


def test_relative_paths_are_stored_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_private(Path("passphrase"), PASSPHRASE)
    result = invoke(
        *("init", "--network", "devnet", "--chain-url", CHAIN, "--passphrase-file", "passphrase"),
        *("--config", "config.toml", "--data-dir", "data"),
    )
    assert result.code == 0, result.err
    plant("a token", result.json["token"])
    settings = load_settings(tmp_path / "config.toml", {"HOME": "/"})
    assert settings.data_dir == tmp_path / "data"
    assert settings.keystore.passphrase_file == tmp_path / "passphrase"
