"""init: makes what a first start needs: data folder, config, keystore, ledger with its first app, token.

May import: core, settings, wallet, store, agent.ports, api.tokens. Never: asks a question or prints (the CLI
does); overwrites a file; leaves half of its work behind when it fails.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from payagent.agent.ports import Ports
from payagent.api.tokens import hash_token, new_token
from payagent.core.network import NETWORKS
from payagent.core.problem import Refused
from payagent.settings import Settings, load_settings
from payagent.store import records
from payagent.store.writer import Unit, Writer
from payagent.wallet import keystore

SCOPES = ("pay", "read", "operate", "approve")
APP_NAME = "operator"
TOKEN_FILE = "operator.token"  # noqa: S105  the file's name
WORDS_FILE = "recovery-words.txt"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator decided. `merchants` are origins by name, `partners` are their X-Partner by name.

    All paths are absolute. `data_dir` None is the default place; `words` None makes new ones.
    """

    network: str
    chain_url: str
    config: Path
    data_dir: Path | None
    merchants: Mapping[str, str]
    partners: Mapping[str, str]
    passphrase: str = field(repr=False)
    words: str | None = field(default=None, repr=False)
    project_id_file: Path | None = None
    passphrase_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """What is there now. `new_words` is None when they were restored; `words_file` when they were not written."""

    config: Path
    data_dir: Path
    address: str
    token: str = field(repr=False)
    new_words: str | None = field(repr=False)
    words_file: Path | None


def initialise(
    choices: Choices,
    environ: Mapping[str, str],
    ports: Ports,
    *,
    write_words: bool,
    randomness: keystore.RandomBytes,
) -> Made:
    """Make everything, or nothing. `write_words` puts new words in a 0600 file of the data folder.

    Refused: `config_invalid`, `file_exists`, `keystore_exists`, `keystore_invalid`, `mnemonic_invalid`.
    """
    with _undone_on_failure() as made:
        _write_new(choices.config, config_text(choices), made)
        settings = load_settings(choices.config, environ)
        _require_same(settings, choices)
        _make_private_folder(settings.data_dir, made)
        _require_none(settings.data_dir)
        words = choices.words or keystore.new_words(randomness)
        words_file = settings.data_dir / WORDS_FILE if write_words and choices.words is None else None
        if words_file is not None:
            _write_new(words_file, words + "\n", made)
        header = _make_keystore(settings, words, choices.passphrase, randomness, made)
        token = new_token(ports.randomness)
        _make_ledger(settings.data_dir / "ledger.db", ports, hash_token(token), made)
        _write_new(settings.data_dir / TOKEN_FILE, token + "\n", made)
    shown = None if choices.words is not None else words
    return Made(choices.config, settings.data_dir, header.address, token, shown, words_file)


def config_text(choices: Choices) -> str:
    """The config file: what was decided, and nothing that is a default."""
    lines = [
        "# payagent's configuration, made by `payagent init`. config/payagent.example.toml explains every key.",
        "",
        f"network = {_quote(choices.network)}",
    ]
    if choices.data_dir is not None:
        lines += [
            "",
            "# Where ledger.db, keystore.json and operator.token lie.",
            _path("data_dir", choices.data_dir),
        ]
    lines += ["", "[[chain.providers]]", 'kind = "blockfrost"', "# Complete: nothing is appended to it."]
    lines.append(f"base_url = {_quote(choices.chain_url)}")
    if choices.project_id_file is not None:
        lines.append(_path("project_id_file", choices.project_id_file))
    for name, origin in choices.merchants.items():
        lines += ["", "# A merchant that may be paid.", f"[merchants.{_key(name)}]", f"origin = {_quote(origin)}"]
        if name in choices.partners:
            lines += ["# Sent as X-Partner.", f"partner = {_quote(choices.partners[name])}"]
    if choices.passphrase_file is not None:
        lines += ["", "[keystore]", "# Read when the daemon starts; for its owner alone (chmod 600)."]
        lines.append(_path("passphrase_file", choices.passphrase_file))
    return "\n".join(lines) + "\n"


def _path(key: str, path: Path) -> str:
    return f"{key} = {_quote(str(path))}"


def _key(name: str) -> str:
    """A TOML key; what is no bare key is quoted, and then refused by the settings."""
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else _quote(name)


def _quote(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _require_same(settings: Settings, choices: Choices) -> None:
    """An environment that overrides what was just decided would found something else than was asked for."""
    if settings.network != choices.network:
        raise Refused("config_invalid", "environment PAYAGENT_NETWORK names another network; unset it")
    if choices.data_dir is not None and settings.data_dir != choices.data_dir:
        raise Refused("config_invalid", "environment PAYAGENT_DATA_DIR names another folder; unset it")


def _make_keystore(
    settings: Settings, words: str, passphrase: str, randomness: keystore.RandomBytes, made: list[Path]
) -> keystore.Header:
    path = settings.data_dir / "keystore.json"
    header = keystore.create(
        path,
        words,
        passphrase,
        NETWORKS[settings.network],
        settings.keystore.account,
        randomness=randomness,
    )
    made.append(path)
    return header


def _make_ledger(path: Path, ports: Ports, token_hash: str, made: list[Path]) -> None:
    """An empty ledger with one app that may do everything."""
    made += [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]
    writer = Writer(path)
    app_id, now_ms = ports.new_id("app"), ports.clock.now_ms()

    def job(unit: Unit) -> None:
        records.add_app(unit, app_id, APP_NAME, token_hash, SCOPES, now_ms)

    try:
        writer.submit("init", job).result()
    finally:
        writer.close()


def _require_none(data_dir: Path) -> None:
    """A wallet that is there stays as it is."""
    if (data_dir / "keystore.json").exists():
        raise Refused("keystore_exists", f"{data_dir / 'keystore.json'} is there already")
    if (data_dir / "ledger.db").exists():
        raise Refused("file_exists", f"{data_dir / 'ledger.db'} is there already")


def _make_private_folder(folder: Path, made: list[Path]) -> None:
    """The data folder, for its owner alone. One that holds something already must be private already."""
    if not folder.exists():
        folder.mkdir(parents=True)
        made.append(folder)
    elif not folder.is_dir():
        raise Refused("file_exists", f"{folder} is there already, and is not a folder")
    elif folder.stat().st_mode & 0o077 and any(folder.iterdir()):
        raise Refused("config_invalid", f"{folder} is open to others and not empty; run: chmod 700 {folder}")
    folder.chmod(0o700)


def _write_new(path: Path, text: str, made: list[Path]) -> None:
    """A new file, durable and for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused("file_exists", f"{path} is there already") from None
    made.append(path)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _undone_on_failure() -> Iterator[list[Path]]:
    """Hands out a list of files and folders; all that are in it are removed when the block fails."""
    made: list[Path] = []
    try:
        yield made
    except OSError as error:
        _remove(made)
        raise Refused(
            "config_invalid", f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        ) from None
    except BaseException:
        _remove(made)
        raise


def _remove(paths: list[Path]) -> None:
    for path in reversed(paths):
        with suppress(OSError):  # the error that led here is the one to be told
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
