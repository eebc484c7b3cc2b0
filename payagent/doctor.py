"""doctor: looks at what payagent needs, from outside, and says what is wrong and how to mend it.

May import: core, secretfile, settings, wallet.keystore, store (read-only), chain, webhook, agent.chainview,
api.tls. Never: writes; opens the keystore (its public header is enough); moves money; shows a secret.
"""

import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from payagent.agent.chainview import ChainView, require_right_clock
from payagent.api.tls import server_context
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.source import Found
from payagent.core.money import LOVELACE
from payagent.core.network import NETWORKS
from payagent.core.policy import ANY, Window
from payagent.core.problem import Refused
from payagent.secretfile import (
    read_header_secret,
    read_secret_file,
    require_out_of_reach,
    require_own_folder,
    require_private,
    require_unchanged_by_others,
)
from payagent.settings import (
    CREDENTIAL_NAME,
    KEYSTORE_FILE,
    LEDGER_FILE,
    LINKS_KEY_FILE,
    TOKEN_FILE,
    WORDS_FILE,
    Merchant,
    Provider,
    Settings,
    fence_plan,
    passphrase_file,
    written_by_daemon,
)
from payagent.store import about, apps, events, journal, merchants, spending
from payagent.store.opening import require_ledger
from payagent.store.readers import Readers
from payagent.store.room import room_problem
from payagent.store.schema import missing_guards
from payagent.wallet.keystore import read_header
from payagent.webhook import signing_key


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `problem` is None when it is well; `detail` says what was seen.

    `is_warning`: the daemon works as it is, and more could be had.
    """

    name: str
    detail: str
    problem: Refused | None = None
    is_warning: bool = False

    @property
    def fix(self) -> str | None:
        """What to do; None when it is well."""
        return None if self.problem is None else self.problem.problem.fix


def finding(name: str, look: Callable[[], str]) -> Finding:
    """What `look` saw, or the refusal that it ended in."""
    try:
        return Finding(name, look())
    except Refused as refused:
        return Finding(name, refused.detail, refused)


def look_at_files(
    settings: Settings, config: Path, environ: Mapping[str, str], looked_for: Iterable[Path] = ()
) -> list[Finding]:
    """Config, folder, keystore, ledger, token and passphrase: modes, and that they belong together."""
    data_dir, webhook_file = settings.data_dir, settings.alerts.webhook_secret_file
    webhook = [] if webhook_file is None else [finding("webhook secret", lambda: _signing_key(webhook_file))]
    words = data_dir / WORDS_FILE
    links = data_dir / LINKS_KEY_FILE
    key = [finding("links' key", lambda: _secret(links))] if os.path.lexists(links) else []
    lent = [(f"key of {name}", one.api_key_file) for name, one in settings.merchants.items()]
    keys = [finding(name, partial(_secret, path, read_header_secret)) for name, path in lent if path is not None]
    tls = [] if settings.api.tls_key_file is None else [finding("TLS", lambda: _tls(settings))]
    left = [finding("recovery words", lambda: _left(words))] if os.path.lexists(words) else []
    return [
        finding("config file", lambda: _config(settings, config, looked_for, environ)),
        finding("data folder", lambda: _data_folder(data_dir)),
        finding("keystore", lambda: _keystore(settings)),
        finding("ledger file", lambda: _ledger_file(data_dir / LEDGER_FILE)),
        finding("ledger", lambda: _ledger(settings)),
        finding("socket folder", lambda: _socket_folder(settings.api.socket.parent)),
        finding("set at run time", lambda: _set_at_run_time(settings)),
        finding("operator token", lambda: _secret(data_dir / TOKEN_FILE, read_header_secret)),
        finding("passphrase", lambda: _passphrase(settings, environ)),
        _fence(settings, config, environ),
        *webhook,
        *key,
        *keys,
        *tls,
        *left,
    ]


def look_at_choices(settings: Settings, config: Path) -> list[Finding]:
    """What was chosen and could be safer, by its key, with what to do: warnings, since all works as it is.

    What is only made up is at stake on the devnet: there nobody is told of what guards money.
    """
    told = [*_open_doors(settings), *_open_files(settings, config), *_wide_limits(settings)]
    told += [*_signed_less(settings), *_apps(settings)]
    for name, merchant in settings.merchants.items():
        told += [(f"merchants.{name}.{key}", why) for key, why in _trusting(merchant, settings.network)]
    if settings.network != "devnet":
        told += [*_one_word(settings), *_soon(settings), *_untold(settings)]
    told += _signer(settings.api.socket)
    return [Finding(name, why, is_warning=True) for name, why in told]


async def look_at_chain(settings: Settings, now_ms: Callable[[], int]) -> list[Finding]:
    """Every provider: does it answer, is it of our network, do its newest block and its clock agree with ours?"""
    findings = []
    for index, (called, provider) in enumerate(settings.chain.named.items()):
        name = f"provider {index + 1}"
        try:
            findings.append(Finding(name, await _provider(provider, called, settings.network, now_ms)))
        except Refused as refused:
            findings.append(Finding(name, f"{provider.base_url}: {refused.detail}", refused))
    return findings


def _config(settings: Settings, config: Path, looked_for: Iterable[Path], environ: Mapping[str, str]) -> str:
    """That neither another user nor the daemon itself can write what the next start allows it."""
    seen = require_unchanged_by_others(config)
    with suppress(OSError):  # of files that cannot be looked at, which have lines of their own
        plan = fence_plan(settings, config, passphrase_file(settings, environ, can_ask=True))
        require_out_of_reach([*looked_for, config], written_by_daemon(settings, plan))
    return seen


def _private(path: Path) -> str:
    if not path.exists():
        raise Refused("config_invalid", f"{path} is missing; make it with `payagent init`")
    return require_private(path)


def _data_folder(path: Path) -> str:
    """Private, and of a disk that takes what is to be written."""
    seen = _private(path)
    if (problem := room_problem(path)) is not None:
        raise Refused("store_failed", f"{path}: {problem}")
    return seen


def _socket_folder(folder: Path) -> str:
    return require_own_folder(folder) if folder.exists() else f"{folder} is made when the daemon starts"


def _keystore(settings: Settings) -> str:
    header = read_header(settings.data_dir / KEYSTORE_FILE)
    if header.network.name != settings.network:
        raise Refused("keystore_invalid", f"it is of {header.network.name}, the config says {settings.network}")
    if header.account != settings.keystore.account:
        raise Refused("keystore_invalid", f"it is of account {header.account}, see keystore.account")
    return f"{header.network.name}, account {header.account}, {header.address}"


def _ledger_file(path: Path) -> str:
    require_ledger(path)
    return _private(path)


def _ledger(settings: Settings) -> str:
    """Opened read-only: its tables' guards are there, it balances, its events are one chain, and it is ours."""
    path = settings.data_dir / LEDGER_FILE
    require_ledger(path)
    try:
        missing, known, sums, broken = _read_ledger(path)
    except Exception as error:  # noqa: BLE001  whatever SQLite raises: the store is its only home
        raise Refused("store_failed", f"{path} cannot be read: {error}") from None
    if missing:
        raise Refused("store_failed", f"{path} lacks the triggers {', '.join(missing)}")
    if any(sums.values()):
        raise Refused("store_failed", f"the postings in {path} do not sum to zero: it was changed from outside")
    if broken is not None:
        raise Refused("store_failed", f"the events in {path} are changed from event {broken} on")
    ours = {"network": settings.network, "address": _own_address(settings)}
    for key, value in known.items():
        if None not in (value, ours[key]) and value != ours[key]:
            raise Refused("config_invalid", f"{path} is of {key} {value}, not of {ours[key]}")
    return "its triggers are there, its postings sum to zero, its events are one unbroken chain"


def _set_at_run_time(settings: Settings) -> str:
    """What stands over the config file, what of it does not count for that, and limits that are of nobody now."""
    path = settings.data_dir / LEDGER_FILE
    require_ledger(path)
    conn = Readers(path).conn
    try:
        limits, added = spending.limits(conn), merchants.everybody(conn)
    except Exception as error:  # noqa: BLE001  whatever SQLite raises: the store is its only home
        raise Refused("store_failed", f"{path} cannot be read: {error}") from None
    finally:
        conn.close()
    names, origins = {row.name for row in added}, {row.origin for row in added}
    hidden = [n for n, one in settings.merchants.items() if n in names or one.origin in origins]
    told = [f"{len(limits)} limits and {len(added)} merchants"]
    told += [f"instead of merchants.{name} of the config file" for name in hidden]
    payable = origins | {one.origin for name, one in settings.merchants.items() if name not in hidden} | {ANY}
    gone = sorted({limit.scope.merchant for limit in limits} - payable)
    told += [f"limits at {origin}, which is no merchant's origin now" for origin in gone]
    return ", ".join(told)


def _own_address(settings: Settings) -> str | None:
    """The keystore's address; None when it cannot be read, which has a line of its own."""
    try:
        return read_header(settings.data_dir / KEYSTORE_FILE).address
    except Refused:
        return None


def _read_ledger(path: Path) -> tuple[list[str], dict[str, str | None], dict[str, int], int | None]:
    """Missing triggers, what the database is bound to, the sum of all postings per asset, the first bad event."""
    conn = Readers(path).conn
    try:
        sums: dict[str, int] = {}
        for _account, asset, units in journal.added_up(conn):
            sums[asset] = sums.get(asset, 0) + units
        known = {key: about.meta(conn, key) for key in ("network", "address")}
        return missing_guards(conn), known, sums, events.broken_event(conn)
    finally:
        conn.close()


def _secret(path: Path, read: Callable[[Path], str] = read_secret_file) -> str:
    read(path)
    return f"{path} is there and private"


def _left(words: Path) -> NoReturn:
    raise Refused("words_left", f"{words} holds them in clear: whoever reads it has the money")


Choice = tuple[str, str]
"""A key, and what it means, with what to do."""


def _trusting(merchant: Merchant, network: str) -> Iterator[Choice]:
    """Whom a merchant may have paid, at what price, and how often in vain."""
    is_real = network != "devnet"
    if is_real and merchant.pin == "off" and not merchant.pay_to:
        yield "pin", 'off: a new address is paid unasked; write "first_use", or the addresses as pay_to'
    if is_real and merchant.drift_percent is None:
        yield "drift_percent", "off: any price within the limits is paid unasked; write 25"
    if is_real and merchant.in_flight_max is None:
        yield "in_flight_max", "off: its invoices can hold the whole wallet; write 100"
    if merchant.stop_after is None:
        yield "stop_after", "off: it may take and not serve for as long as the limits last; write 3"
    if merchant.private_network:
        yield (
            "private_network",
            "true: its name may lead calls into your network; only where it is meant to be there",
        )


def _open_doors(settings: Settings) -> Iterator[Choice]:
    if settings.api.is_remote:
        yield (
            "api.listen",
            "other machines reach it, and a stolen token works there; a tunnel to a loopback port does not",
        )
    if settings.api.hosts:
        names = ", ".join(sorted(settings.api.hosts))
        yield (
            "api.hosts",
            f"calls to {names} are let in; keep only names that nobody else can point at this machine",
        )
    for index, provider in enumerate(settings.chain.providers):
        if (risk := provider.risk) is not None:
            yield f"chain.providers {index + 1}", risk


def _open_files(settings: Settings, config: Path) -> Iterator[Choice]:
    if config.stat().st_mode & stat.S_IROTH:
        yield "config", f"every user can read whom you pay and what may be spent; run: chmod o-rwx {config}"
    passphrase = settings.keystore.passphrase_file
    if passphrase is not None and passphrase.parent.is_dir():
        folder = passphrase.parent.stat()
        if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in (0, os.geteuid()):
            what = f"others can replace what lies in {passphrase.parent}; move it to a folder of its own (0700)"
            yield "keystore.passphrase_file", what


def _wide_limits(settings: Settings) -> Iterator[Choice]:
    """What the signer lets out, where it is more than the payments of a day could need."""
    limits = settings.limits
    days = {LOVELACE: limits.per_day_lovelace} | {token.asset: token.per_day_units for token in limits.assets}
    for asset, per_day in days.items():
        of = "" if asset == LOVELACE else f" of {asset}"
        if limits.caps[asset] > per_day:
            yield f"limits.per_transaction{of}", "above per_day; take it back once the large sum was moved"
        if limits.day_caps[asset] > 2 * max(per_day, limits.caps[asset]):
            yield f"limits.signed_per_day{of}", "above twice per_day; take it back once the large sum was moved"


def _signed_less(settings: Settings) -> Iterator[Choice]:
    """Limits above what the signer lets out, which therefore bind nothing."""
    filed = settings.limits
    told = [(LOVELACE, window, units) for window, units in filed.most_lovelace.items()]
    told += [(token.asset, window, units) for token in filed.assets for window, units in token.most_units.items()]
    with suppress(Exception):  # of what cannot be read, which has a line of its own
        require_ledger(settings.data_dir / LEDGER_FILE)
        conn = Readers(settings.data_dir / LEDGER_FILE).conn
        with closing(conn):
            told += [(limit.asset, limit.window.value, limit.most_units) for limit in spending.limits(conn)]
    for asset, window, units in dict.fromkeys(told):
        less = None if units is None else filed.signed_less(Window(window), asset, units)
        if less is not None:
            of = "" if asset == LOVELACE else f" of {asset}"
            yield (
                f"limits.{window}{of}",
                f"{units} is above {less[0]}, {less[1]}, which bounds first: raise that and start again, or lower "
                "the limit",
            )


def _apps(settings: Settings) -> Iterator[Choice]:
    """Programs whose token is worth all that the wallet may spend. What cannot be read has its own line."""
    conn = None
    try:
        require_ledger(settings.data_dir / LEDGER_FILE)
        conn = Readers(settings.data_dir / LEDGER_FILE).conn
        bound = {limit.scope.app for limit in spending.limits(conn)}
        for app in apps.everybody(conn):
            token = apps.last_token(conn, app.id)
            is_program = "pay" in app.scopes and "operate" not in app.scopes
            if is_program and app.id not in bound and token is not None and token.revoked_at_ms is None:
                fix = f'payagent limits set --app {app.name} --per-day "5 ADA"'
                yield (
                    f"app {app.name}",
                    f"it has no limits of its own: a stolen token spends all that you allow; {fix}",
                )
    except Exception:  # noqa: BLE001  whatever SQLite raises: the store is its only home
        return
    finally:
        if conn is not None:
            conn.close()


def _signer(path: Path) -> Iterator[Choice]:
    """Of a daemon that runs: whether the memory that has the key can be written to disk, by the kernel's word."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(1)
        unix.connect(str(path))
        peer = unix.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        daemon: int = struct.unpack("3i", peer)[0]
        (launcher,) = _children(daemon)
        (signer,) = _children(launcher)
        if re.search(r"^VmLck:\s+0 kB$", Path(f"/proc/{signer}/status").read_text(), re.MULTILINE):
            yield (
                "signer",
                "its memory can be swapped out; give the daemon LimitMEMLOCK=64M, as config/payagent.service does",
            )


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _one_word(settings: Settings) -> Iterator[Choice]:
    providers = settings.chain.providers
    if len(providers) == 1:
        yield "chain.providers", "one alone is taken at its word; name a second one, of another operator"
    elif len({urlsplit(provider.base_url).hostname for provider in providers}) == 1:
        yield "chain.providers", "all are of one host: who lies there lies twice; name one of another operator"


def _soon(settings: Settings) -> Iterator[Choice]:
    """Depths below what the page on exactly-once argues from."""
    for key, depth in (("confirm_depth", 3), ("void_depth", 15), ("settle_depth", 2160)):
        if getattr(settings.payments, key) < depth:
            yield f"payments.{key}", f"below {depth}: a fork may undo what counts as done; leave it out"


def _untold(settings: Settings) -> Iterator[Choice]:
    if settings.alerts.webhook_url is None:
        yield (
            "alerts.webhook_url",
            "nobody is told when something is wrong but who reads the log; name a server of yours",
        )


def _tls(settings: Settings) -> str:
    certificate, key = settings.api.tls_certificate_file, settings.api.tls_key_file
    if certificate is not None and key is not None:
        server_context(certificate, key)
    return f"{certificate} and {key} belong together"


def _signing_key(path: Path) -> str:
    signing_key(read_secret_file(path))
    return f"{path} is there and private"


def _passphrase(settings: Settings, environ: Mapping[str, str]) -> str:
    """Where the daemon will find it; it is not tried."""
    found = passphrase_file(settings, environ, can_ask=True)
    if found is None:
        return f"asked on a terminal at the start, unless the service has the credential {CREDENTIAL_NAME}"
    return _secret(found.path) if found.private else f"systemd credential {CREDENTIAL_NAME}"


def _fence(settings: Settings, config: Path, environ: Mapping[str, str]) -> Finding:
    """What of the secrets the daemon itself will be kept from at its next start."""
    try:
        passphrase = passphrase_file(settings, environ, can_ask=True)
        plan = fence_plan(settings, config, passphrase)
    except (OSError, Refused) as error:
        return Finding("fence", f"it cannot be told: {error}", is_warning=True)
    if plan.open:
        return Finding("fence", "; ".join(plan.open), is_warning=True)
    return Finding("fence", "the daemon cannot read " + ", ".join(map(str, plan.hidden)))


async def _provider(provider: Provider, name: str, network: str, now_ms: Callable[[], int]) -> str:
    project_id = None if provider.project_id_file is None else read_secret_file(provider.project_id_file)
    source = Blockfrost(name, provider.base_url, project_id)
    try:
        genesis, parameters, tip = await source.genesis(), await source.parameters(), await source.tip()
        off_s = await source.clock_off_s(now_ms)
        is_view_only = await source.lacks_submit()
    finally:
        await source.aclose()
    for what, read in (("genesis", genesis), ("parameters", parameters), ("newest block", tip)):
        if not isinstance(read, Found):
            raise Refused(
                "chain_not_ready", f"its {what} could not be read: {getattr(read, 'reason', 'not there')}"
            )
    if not (isinstance(genesis, Found) and isinstance(parameters, Found) and isinstance(tip, Found)):
        raise Refused("chain_not_ready", "it did not answer")
    view = ChainView(NETWORKS[network])
    view.learn_genesis(genesis.value)
    view.learn_parameters(parameters.value)
    view.tip, view.problem = tip.value, None
    slot = view.require_ready(now_ms())
    require_right_clock([off_s.value] if isinstance(off_s, Found) else [])
    if is_view_only:
        raise Refused(
            "chain_not_ready", "it has no /tx/submit: put cardano-submit-api there, behind the same address"
        )
    return (
        f"{provider.base_url}: {network}, block {tip.value.height}, "
        f"newest block {max(slot - tip.value.slot, 0)} s old"
    )
