"""Creates everything for a first start: data folder, config, keystore, ledger with its first app, token.

It also changes a keystore's passphrase. Start with `initialise`.
Never: asks a question or prints (the CLI does); overwrites a file; leaves half of its work behind when it
fails.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from payagent.agent.base.ports import Ports
from payagent.agent.operator.limits import write_limits
from payagent.api.http.tokens import hash_token, new_token
from payagent.chain.open import KINDS, NAMED_BY_URL, OFFERED, chosen, kind_of, needs_token
from payagent.core.bounds import SCOPES
from payagent.core.money import LOVELACE
from payagent.core.network import NETWORKS
from payagent.core.origin import is_t_backend
from payagent.core.policy import Scope, Window
from payagent.core.problems import Refused
from payagent.secret_file import of_another_user, open_to_others
from payagent.settings.config_file import TOKEN_FILE
from payagent.settings.loading import load_settings
from payagent.settings.paths import KEYSTORE_FILE, LEDGER_FILE, WORDS_FILE, require_config_out_of_reach
from payagent.settings.schema import ProviderSettings, Settings
from payagent.store.db.lease import lease
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet import new_keystore as creation
from payagent.wallet.keystore import Header

APP_NAME = "operator"
_READ_AT_START = "# Read when the daemon starts. Only its owner may read it (chmod 600)."
_SPLITS = (
    "# If a 402 states no mode, its revenue share is paid on top of the amount, not out of it.",
    'split_mode = "additional"',
)
PASSPHRASE_LENGTH_MIN = 8
MODULE_VARIABLES = ("SOFTHSM2_CONF", "YUBIHSM_PKCS11_CONF", "P11NETHSM_CONFIG_FILE")
"""What PKCS#11 modules read to find their own config."""

Undo = list[Callable[[], object]]
"""Steps that undo the work so far, in the order of the work."""


@dataclass(frozen=True, slots=True)
class FirstApp:
    """A program that may pay, and the most that it may spend in 24 hours."""

    name: str
    per_day_lovelace: int


@dataclass(frozen=True, slots=True)
class HsmChoices:
    """PKCS#11 URIs of the keys by account, the HSM's PIN and its file, and whether the keys are made now."""

    uris: Sequence[str]
    pin: str = field(repr=False)
    pin_file: Path | None = None
    generate: bool = False


@dataclass(frozen=True, slots=True)
class Choices:
    """The operator's choices. `merchants` are origins by name, `partners` are X-Partner values by name.

    With `hsm` there are neither words nor a passphrase.

    All paths are absolute. `data_dir` None means the default, `words` None means new ones. `tokens` are those of
    providers by the file that each is written to. Without `app` the operator is the only app.
    """

    network: str
    providers: tuple[ProviderSettings, ...]
    config: Path
    data_dir: Path | None
    merchants: Mapping[str, str]
    partners: Mapping[str, str]
    passphrase: str = field(repr=False)
    words: str | None = field(default=None, repr=False)
    tokens: Mapping[Path, str] = field(default_factory=dict, repr=False)
    passphrase_file: Path | None = None
    app: FirstApp | None = None
    hsm: HsmChoices | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """The created wallet. `token` is the operator's, `app_token_file` has that of the first app, if there is one.

    `words_file` is None if words were restored or shown.
    """

    config: Path
    data_dir: Path
    address: str
    token: str = field(repr=False)
    words_file: Path | None
    app_token_file: Path | None


def initialise(
    choices: Choices,
    environ: Mapping[str, str],
    ports: Ports,
    *,
    show_words: Callable[[str], None] | None,
    randomness: creation.RandomBytes,
) -> Made:
    """Create everything, or nothing. Without `show_words`, new words are in a 0600 file in the data folder.

    Keys that it made in an HSM stay there if a later step fails.

    Refused: `already_exists`, `config_invalid`, `mnemonic_invalid`, `passphrase_too_short`. For keys in an HSM:
    `signer_away`, `keystore_invalid`.
    """
    if choices.hsm is None and (
        choices.network != "devnet" or choices.words
    ):  # restored words may hold money elsewhere
        require_long(choices.passphrase)
    with undone_on_failure() as undo:
        write_new(choices.config, config_text(choices, environ), undo)
        try:
            settings = load_settings(choices.config, environ)
        except Refused as refused:
            fix = "Correct the option that it is about, and repeat the command. Nothing was written."
            raise Refused(refused.name, refused.detail, fix=fix) from None
        _require_same(settings, choices)
        for name, provider in settings.chain.named.items():
            kind_of(name, provider)
        require_config_out_of_reach(settings, [choices.config], [settings.data_dir])
        for file, token in choices.tokens.items():
            write_new(file, token + "\n", undo)
        make_private_folder(settings.data_dir, undo, config=choices.config)
        require_none(settings.data_dir)
        words = choices.words or creation.new_words(randomness)
        words_file = None if choices.words or choices.hsm or show_words else settings.data_dir / WORDS_FILE
        if words_file is not None:
            write_new(words_file, words + "\n", undo)
        elif show_words is not None and choices.words is None and choices.hsm is None:
            show_words(words)
        header = (
            _make_keystore(settings, words, choices.passphrase, randomness, undo)
            if choices.hsm is None
            else _make_hsm_keystore(settings, choices.hsm, undo)
        )
        token = new_token(ports.randomness)
        app_token = new_token(ports.randomness)
        _make_ledger(settings.data_dir / LEDGER_FILE, ports, token, choices.app, app_token, undo)
        write_new(settings.data_dir / TOKEN_FILE, token + "\n", undo)
        app_token_file = None if choices.app is None else settings.data_dir / f"{choices.app.name}.token"
        if app_token_file is not None:
            write_new(app_token_file, app_token + "\n", undo)
    return Made(choices.config, settings.data_dir, header.address, token, words_file, app_token_file)


def offered(network: str) -> tuple[str, str]:
    """The names of all kinds of chain providers, and the one to begin with: a kind, or the devnet's URL."""
    return ", ".join(KINDS), KINDS[NAMED_BY_URL].urls[network] if network == "devnet" else OFFERED


def named_providers(
    texts: Iterable[str], network: str, token_file: Path | None = None
) -> tuple[ProviderSettings, ...]:
    """The providers that kinds or base URLs name. Those that need a token get its file, or the only one.

    Refused: `config_invalid`.
    """
    try:
        named = tuple(chosen(text, network) for text in texts)
    except ValueError as error:
        raise Refused("config_invalid", f"--provider: {error}") from None
    owners = [one for one in named if needs_token(one)] or named
    if token_file is not None and len(owners) > 1:
        raise Refused(
            "config_invalid",
            "--project-id-file: whose token is it? Leave it out, and write it as token_file into the table of its "
            "provider",
        )
    return tuple(one.model_copy(update={"token_file": token_file}) if one in owners else one for one in named)


def lacks_token(texts: Iterable[str], network: str) -> bool:
    """Whether one of these providers answers only with a token."""
    return any(map(needs_token, named_providers(texts, network)))


def require_long(passphrase: str) -> None:
    """Check a new passphrase, typed or from a file. Refused `passphrase_too_short`."""
    if len(passphrase) < PASSPHRASE_LENGTH_MIN:
        raise Refused("passphrase_too_short", f"at least {PASSPHRASE_LENGTH_MIN} characters are needed")


def change_passphrase(settings: Settings, old: str, new: str) -> Header:
    """Encrypt the keystore with another passphrase while no daemon uses it, atomically and durably.

    Refused `passphrase_too_short`, `already_running`, `keystore_invalid`, `config_invalid`.
    """
    require_long(new)
    path = settings.data_dir / KEYSTORE_FILE
    with undone_on_failure():
        _require_own(path)
        with lease(settings.data_dir, (LEDGER_FILE, KEYSTORE_FILE)):
            return creation.change_passphrase(path, old, new)


def _require_own(path: Path) -> None:
    """Refuse another user's keystore or folder: that user could not open what this one (even root) writes."""
    if path.exists() and (owner := path.stat().st_uid) != os.geteuid():
        raise of_another_user(
            f"{path} belongs to another user (uid {owner}), who could not open the new file", owner
        )


def config_text(choices: Choices, environ: Mapping[str, str]) -> str:
    """Build the config file: the choices without defaults. For the T Backend it also sets the split mode."""
    data_dir, passphrase = choices.data_dir, choices.passphrase_file
    merchants = (_merchant(name, origin, choices.partners.get(name)) for name, origin in choices.merchants.items())
    lines = [
        "# Created by `payagent init`. `payagent init --example` explains every key.",
        *("", f"network = {_quote(choices.network)}"),
        *(
            ["", "# Holds ledger.db, keystore.json and operator.token.", _path("data_dir", data_dir)]
            if data_dir
            else ()
        ),
        *(line for provider in choices.providers for line in _provider(provider)),
        *(line for merchant in merchants for line in merchant),
        *(["", "[keystore]", _READ_AT_START, _path("passphrase_file", passphrase)] if passphrase else ()),
        *(_hsm_lines(choices.hsm, environ) if choices.hsm else ()),
    ]
    return "\n".join(lines) + "\n"


def _hsm_lines(hsm: HsmChoices, environ: Mapping[str, str]) -> list[str]:
    """The lines of the HSM's PIN, and of the variables that its module reads now."""
    variables = ", ".join(f"{name} = {_quote(environ[name])}" for name in MODULE_VARIABLES if name in environ)
    return [
        *("", "[keystore]"),
        *([_READ_AT_START, _path("pin_file", hsm.pin_file)] if hsm.pin_file else ()),
        *(["# For the HSM's PKCS#11 module.", f"environment = {{ {variables} }}"] if variables else ()),
    ]


def _provider(provider: ProviderSettings) -> list[str]:
    """The lines of a chain provider's table."""
    return [
        *("", "[[chain.providers]]", f"kind = {_quote(provider.kind)}"),
        *("# The complete base URL: nothing is appended.", f"base_url = {_quote(provider.base_url)}"),
        *([f"index_url = {_quote(provider.index_url)}"] if provider.index_url else ()),
        *([_path("token_file", provider.token_file)] if provider.token_file else ()),
    ]


def _merchant(name: str, origin: str, partner: str | None) -> list[str]:
    """The lines of a merchant's table."""
    return [
        *("", "# A merchant that may be paid.", f"[merchants.{_key(name)}]", f"origin = {_quote(origin)}"),
        *(["# Sent as X-Partner.", f"partner = {_quote(partner)}"] if partner is not None else ()),
        *(_SPLITS if is_t_backend(origin) else ()),
        f"# With `auto_below` in [merchants.{_key(name)}.topup], the first top-up may follow at once: a",
        "# balance that was never bought counts as 0.",
    ]


def _path(key: str, path: Path) -> str:
    return f"{key} = {_quote(str(path))}"


def _key(name: str) -> str:
    """Return a TOML key. Other text is quoted, and the settings refuse it later."""
    return name if name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name) else _quote(name)


def _quote(text: str) -> str:
    """Return a TOML basic string. Refused `config_invalid` for a file name that is not UTF-8."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise Refused("config_invalid", f"{text} is not UTF-8, but the config file is: choose another name")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _require_same(settings: Settings, choices: Choices) -> None:
    """Refuse an environment that overrides the choices: it would create a different wallet."""
    if settings.network != choices.network:
        raise Refused("config_invalid", "the environment's PAYAGENT_NETWORK names another network; unset it")
    if choices.data_dir is not None and settings.data_dir != choices.data_dir:
        raise Refused("config_invalid", "the environment's PAYAGENT_DATA_DIR names another folder; unset it")


def _make_keystore(
    settings: Settings, words: str, passphrase: str, randomness: creation.RandomBytes, undo: Undo
) -> Header:
    path = settings.data_dir / KEYSTORE_FILE
    header = creation.create(
        path,
        words,
        passphrase,
        NETWORKS[settings.network],
        settings.keystore.account,
        randomness=randomness,
    )
    undo.append(path.unlink)
    return header


def _make_hsm_keystore(settings: Settings, chosen: HsmChoices, undo: Undo) -> Header:
    """Find the keys in the HSM, after making them if that was chosen, try each, and write down which they are."""
    from payagent.signer.pkcs11_token import Pkcs11Token
    from payagent.signer.token import TokenAway

    path, network = settings.data_dir / KEYSTORE_FILE, NETWORKS[settings.network]
    try:
        token = Pkcs11Token(creation.hsm_of(chosen.uris), settings.keystore.environment, network)
        token.log_in(chosen.pin, generate=chosen.generate)
    except TokenAway as away:  # a key or token that is not there: nothing waits for it here
        raise Refused("keystore_invalid", f"{away.detail}. No wallet was made") from None
    for number in range(len(token.hsm.keys)):
        token.try_key(number)
    header = creation.create_hsm(path, token.hsm, network)
    undo.append(path.unlink)
    return header


def _make_ledger(path: Path, ports: Ports, token: str, first: FirstApp | None, app_token: str, undo: Undo) -> None:
    """Create an empty ledger with the operator, who has every scope, and the first app, which may pay."""
    write_new(path, "", undo)  # an empty file is an empty database, and O_EXCL makes it ours
    undo += [path.with_name(path.name + more).unlink for more in ("-wal", "-shm")]
    writer = Writer(path)
    operator_id, app_id, now_ms = ports.new_id("app"), ports.new_id("app"), ports.clock.now_ms()

    def job(unit: Unit) -> None:
        apps.add_with_token(unit, operator_id, APP_NAME, hash_token(token), SCOPES, now_ms)
        if first is None:
            return
        apps.add_with_token(unit, app_id, first.name, hash_token(app_token), ("pay",), now_ms, by_app=operator_id)
        most = {Window.DAY: first.per_day_lovelace}
        write_limits(unit, Scope(app_id), LOVELACE, most, operator_id, now_ms)

    try:
        writer.submit("init", job).result()
    finally:
        writer.close()


def require_none(data_dir: Path) -> None:
    """Refuse a data folder that already holds a wallet."""
    for name, code in (
        (KEYSTORE_FILE, "already_exists/keystore"),
        (LEDGER_FILE, "already_exists/file"),
        (f"{LEDGER_FILE}-wal", "already_exists/file"),
        (f"{LEDGER_FILE}-shm", "already_exists/file"),
    ):
        if (data_dir / name).exists():
            raise Refused(code, f"{data_dir / name} exists already")


def make_private_folder(folder: Path, undo: Undo, config: Path | None = None) -> None:
    """Create the data folder, private to its owner.

    An existing folder must be this user's. One that holds anything but `config` must already be private.
    """
    _require_own(folder)
    if not folder.exists():
        _make_folders(folder, undo)
    elif not folder.is_dir():
        raise Refused("already_exists/file", f"{folder} exists already, and is not a folder")
    elif folder.stat().st_mode & 0o077 and any(entry != config for entry in folder.iterdir()):
        raise open_to_others(f"{folder} is open to others and not empty", f"chmod 700 {folder}")
    undo.append(partial(folder.chmod, folder.stat().st_mode))
    folder.chmod(0o700)


def _make_folders(folder: Path, undo: Undo) -> None:
    """Create the folder and its missing parents."""
    for step in (*reversed(folder.parents), folder):
        if not step.exists():
            step.mkdir(mode=0o755)  # not group-writable under any umask: others could change the config
            undo.append(step.rmdir)


def write_new(path: Path, text: str, undo: Undo) -> None:
    """Write a new file, durable and private to its owner."""
    _make_folders(path.parent, undo)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Refused("already_exists/file", f"{path} exists already") from None
    undo.append(path.unlink)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def undone_on_failure() -> Iterator[Undo]:
    """Yield a list of undo steps. If the block fails, they are run in reverse order."""
    undo: Undo = []
    try:
        yield undo
    except OSError as error:
        _undo_all(undo)
        raise Refused(
            "config_invalid", f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        ) from None
    except BaseException:
        _undo_all(undo)
        raise


def _undo_all(undo: Undo) -> None:
    for step in reversed(undo):
        with suppress(OSError):  # the original error is the one to report
            step()
