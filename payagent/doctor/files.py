"""Checks config, data folder, keystore, ledger and secrets: present, private, and of one wallet.

Never: keeps the key, which only shows that the passphrase is right.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from payagent.api.http.tls import server_context
from payagent.core.ledger import add
from payagent.core.network import NETWORKS
from payagent.core.policy import ANY
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, finding, opened, own_address, own_hsm
from payagent.outbound.telegram import bot_token
from payagent.outbound.webhook import signing_key
from payagent.secret_file import (
    SecretFile,
    read_header_secret,
    read_secret_file,
    require_own_folder,
    require_private,
    require_unchanged_by_others,
)
from payagent.settings.config_file import TOKEN_FILE
from payagent.settings.loading import store_password
from payagent.settings.paths import (
    CREDENTIAL_NAME,
    KEYSTORE_FILE,
    LEDGER_FILE,
    LINKS_KEY_FILE,
    PIN_CREDENTIAL_NAME,
    WORDS_FILE,
    passphrase_file,
    require_config_out_of_reach,
    sandbox_plan,
    written_by_daemon,
)
from payagent.settings.schema import Settings
from payagent.store.db.engine import look_at_tables
from payagent.store.db.opening import require_ledger, room_problem
from payagent.store.db.schema import lacking_migrations, missing_guards
from payagent.store.rows import about, chats, events, journal, limit_counters, merchants
from payagent.wallet.keystore import Hsm, open_keystore, read_header

_SECRET_OF_TARGET: dict[str, Callable[[Path], object]] = {
    "webhook": lambda path: signing_key(read_secret_file(path)),
    "telegram": lambda path: bot_token(read_secret_file(path)),
}
"""Reads the secret of a target of notifications, by its kind. Any other has one that is sent in a header."""

SIGNATURES, SLOW_S = 3, 2.0
_ASKED = "asked for on a terminal at start, unless the service has the credential "


def check_files(
    settings: Settings, config: Path, environ: Mapping[str, str], looked_for: Iterable[Path] = ()
) -> Iterator[CheckResult]:
    """Check config, folders, keystore, ledger, token and passphrase: modes, and that they belong together."""
    data_dir = settings.data_dir
    yield from (
        finding("config file", lambda: _config(settings, config, looked_for, environ)),
        finding("data folder", lambda: _data_folder(data_dir)),
        finding("keystore", lambda: _keystore(settings)),
    )
    if settings.store.url is None:
        yield from (finding("ledger file", lambda: _ledger_file(data_dir / LEDGER_FILE)), _ledger(settings))
    else:
        yield _database(settings, settings.store.url)
    yield from (
        finding("socket folder", lambda: _socket_folder(settings.api.socket.parent)),
        finding("set at run time", lambda: _set_at_run_time(settings)),
        finding("operator token", lambda: _secret(data_dir / TOKEN_FILE, read_header_secret)),
        *(
            [finding("passphrase", lambda: _passphrase(settings, environ))]
            if (hsm := own_hsm(settings)) is None
            else _hsm(settings, hsm, environ)
        ),
        _fence(settings, config, environ),
    )
    for target in settings.notifications:
        if target.secret_file is not None:
            read = _SECRET_OF_TARGET.get(target.kind, read_header_secret)
            yield finding(f"secret of {target.name}", partial(_secret, target.secret_file, read))
        if target.kind == "telegram":
            yield _chats(settings, target.name)
    if os.path.lexists(data_dir / LINKS_KEY_FILE):
        yield finding("links' key", lambda: _secret(data_dir / LINKS_KEY_FILE))
    for name, merchant in settings.merchants.items():
        if merchant.api_key_file is not None:
            yield finding(f"key of {name}", partial(_secret, merchant.api_key_file, read_header_secret))
    if settings.api.tls_key_file is not None:
        yield finding("TLS", lambda: _tls(settings))
    if os.path.lexists(data_dir / WORDS_FILE):
        yield _words_on_disk(settings)


def _config(settings: Settings, config: Path, looked_for: Iterable[Path], environ: Mapping[str, str]) -> str:
    """Check that neither another user nor the daemon itself can change the config of the next start."""
    checked = require_unchanged_by_others(config)
    with suppress(OSError):  # unreadable files have checks of their own
        plan = sandbox_plan(settings, config, _secret_file(settings, environ))
        require_config_out_of_reach(settings, [*looked_for, config], written_by_daemon(settings, plan))
    return checked


def _private(path: Path) -> str:
    if not path.exists():
        raise Refused("config_invalid", f"{path} is missing; create it with `payagent init`")
    return require_private(path)


def _data_folder(path: Path) -> str:
    """Check that the folder is private and its disk has room to write."""
    checked = _private(path)
    if (problem := room_problem(path)) is not None:
        raise Refused("store_failed", f"{path}: {problem}")
    return checked


def _socket_folder(folder: Path) -> str:
    return require_own_folder(folder) if folder.exists() else f"{folder} is created when the daemon starts"


def _keystore(settings: Settings) -> str:
    header = read_header(settings.data_dir / KEYSTORE_FILE)
    if header.network.name != settings.network:
        raise Refused("keystore_invalid", f"it is for {header.network.name}, the config says {settings.network}")
    if header.account != settings.keystore.account:
        raise Refused("keystore_invalid", f"it is for account {header.account}, see keystore.account")
    return f"{header.network.name}, account {header.account}, {header.address}"


def _ledger_file(path: Path) -> str:
    require_ledger(path)
    return _private(path)


def _ledger(settings: Settings) -> CheckResult:
    """Whether the ledger is sound. One that the next start migrates is not checked yet."""
    path = settings.data_dir / LEDGER_FILE
    with suppress(Refused), opened(settings) as conn:
        if lacking_migrations(conn):
            detail = f"{path} is from an older payagent: the daemon migrates it when it starts"
            return CheckResult("ledger", detail, is_warning=True)
    return finding("ledger", lambda: _books(settings))


def _database(settings: Settings, url: str) -> CheckResult:
    """Whether the database can be reached, has the tables and their guards, and keeps them from the daemon."""
    try:
        is_owner, lacking = look_at_tables(url, store_password(settings), settings.data_dir)
    except Refused as refused:
        return CheckResult("database", refused.detail, refused)
    warnings = []
    if is_owner:
        warnings.append(
            f"the daemon's role owns the tables of {url}, so it could switch their triggers off; make another "
            "role for it, as docs/how-to/move-to-postgresql.md says"
        )
    if lacking:
        warnings.append(
            f"the tables of {url} are from an older payagent, and the daemons run on them as they are; once every "
            "daemon is upgraded, run `payagent store migrate`"
        )
    detail = ". Also: ".join(warnings) or f"{url} has the tables and all triggers"
    return CheckResult("database", detail, is_warning=bool(warnings))


def _books(settings: Settings) -> str:
    """Check the ledger read-only: triggers, balanced postings, unbroken event chain, right wallet."""
    path = settings.data_dir / LEDGER_FILE
    with opened(settings) as conn:
        missing, broken = missing_guards(conn), events.broken_event(conn)
        recorded = {key: about.meta(conn, key) for key in ("network", "address")}
        sums = add({asset: units} for _account, asset, units in journal.added_up(conn))
    if missing:
        raise Refused("ledger_tampered", f"{path} lacks the triggers {', '.join(missing)}")
    if any(sums.values()):
        raise Refused("ledger_tampered", f"the postings in {path} do not sum to zero")
    if broken is not None:
        raise Refused("ledger_tampered", f"the events in {path} were changed from event {broken} on")
    expected = {"network": settings.network, "address": own_address(settings)}
    for key, value in recorded.items():
        if None not in (value, expected[key]) and value != expected[key]:
            raise Refused("config_invalid", f"{path} is for {key} {value}, not {expected[key]}")
    return "triggers are complete, postings sum to zero, the event chain is unbroken"


def _set_at_run_time(settings: Settings) -> str:
    """Run-time settings, the config entries they override, and limits of merchants that are gone."""
    with opened(settings) as conn:
        limits, added = limit_counters.limits(conn), merchants.all_merchants(conn)
    names, origins = {row.name for row in added}, {row.origin for row in added}
    hidden = [name for name, merchant in settings.merchants.items() if name in names or merchant.origin in origins]
    in_file = {merchant.origin for name, merchant in settings.merchants.items() if name not in hidden}
    gone = sorted({limit.scope.merchant for limit in limits} - origins - in_file - {ANY})
    return ", ".join(
        (
            f"{len(limits)} limits and {len(added)} merchants",
            *(f"overrides merchants.{name} of the config file" for name in hidden),
            *(f"limits for {origin}, which is no merchant's origin" for origin in gone),
        )
    )


def _secret(path: Path, read: Callable[[Path], object] = read_secret_file) -> str:
    read(path)
    return f"{path} exists and is private"


def _words_on_disk(settings: Settings) -> CheckResult:
    """Recovery words still on disk. On the devnet they protect no money, so it is only a warning."""
    problem = f"{settings.data_dir / WORDS_FILE} holds them unencrypted: anyone who reads it can take the money"
    refusal = None if settings.is_devnet else Refused("recovery_words_on_disk", problem)
    return CheckResult("recovery words", problem, refusal, is_warning=settings.is_devnet)


def _tls(settings: Settings) -> str:
    certificate, key = settings.api.tls_certificate_file, settings.api.tls_key_file
    if certificate is not None and key is not None:
        server_context(certificate, key)
    return f"{certificate} and {key} belong together"


def _chats(settings: Settings, target: str) -> CheckResult:
    """Whether a chat is paired with a Telegram target. The ledger has a check of its own."""
    paired = 0
    with suppress(Refused), opened(settings) as conn:
        paired = len(chats.of_target(conn, target))
    if paired:
        return CheckResult(f"chats of {target}", f"{paired} paired")
    detail = f"none is paired, so nobody is told; run `payagent notifications pair {target}`"
    return CheckResult(f"chats of {target}", detail, is_warning=True)


def _secret_file(settings: Settings, environ: Mapping[str, str]) -> SecretFile | None:
    """Where the daemon will find the passphrase, or the PIN of the HSM that has the keys."""
    return passphrase_file(settings, environ, can_ask=True, in_hsm=own_hsm(settings) is not None)


def _hsm(settings: Settings, hsm: Hsm, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check module, token, PIN, keys and speed, up to the first problem. The module runs in this process."""
    try:
        from payagent.signer.pkcs11_token import Pkcs11Token, require_module

        source, network = _secret_file(settings, environ), NETWORKS[settings.network]
        yield CheckResult("HSM module", f"{require_module(hsm, network)}, only root or this user can change it")
        token = Pkcs11Token(hsm, settings.keystore.environment, network)
        yield CheckResult("HSM token", f"{hsm.token}, serial {hsm.serial}, has Ed25519; its PIN is not locked")
        if source is None:
            yield CheckResult("HSM PIN", _ASKED + PIN_CREDENTIAL_NAME)
            return
        token.log_in(read_secret_file(source.path, private=source.private))
        yield CheckResult("HSM PIN", f"{source.path} opens the token")
        names, can_leave = ", ".join(key.label for key in hsm.keys), token.is_extractable()
        detail = f"{names}: each once, and as in keystore.json" + (
            "; a key can leave the HSM" if can_leave else ""
        )
        yield CheckResult("HSM keys", detail, is_warning=can_leave)
        began_s = time.monotonic()
        for number in range(SIGNATURES):
            token.try_key(number % len(hsm.keys))
        took_s = (time.monotonic() - began_s) / SIGNATURES
        yield CheckResult("HSM speed", f"{took_s:.3f} s for a signature", is_warning=took_s > SLOW_S)
    except Refused as refused:
        yield CheckResult("HSM", refused.detail, refused)


def _passphrase(settings: Settings, environ: Mapping[str, str]) -> str:
    """Where the daemon will find the passphrase, and whether it opens the keystore."""
    source = _secret_file(settings, environ)
    if source is None:
        return _ASKED + CREDENTIAL_NAME
    open_keystore(settings.data_dir / KEYSTORE_FILE, read_secret_file(source.path, private=source.private))
    return f"{source.path} opens the keystore{' and is private' if source.private else ''}"


def _fence(settings: Settings, config: Path, environ: Mapping[str, str]) -> CheckResult:
    """Which secret files the sandbox will hide from the daemon at its next start."""
    try:
        passphrase = _secret_file(settings, environ)
        plan = sandbox_plan(settings, config, passphrase)
    except (OSError, Refused) as error:
        return CheckResult("fence", f"cannot be checked: {error}", is_warning=True)
    if plan.open:
        return CheckResult("fence", "; ".join(plan.open), is_warning=True)
    return CheckResult("fence", "the daemon cannot read " + ", ".join(map(str, plan.hidden)))
