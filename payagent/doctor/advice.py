"""Suggests safer settings. The current ones work, so every suggestion is a warning.

Never: reports something broken (`files` does).
"""

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from payagent.core.money import LOVELACE
from payagent.core.policy import Window
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, opened
from payagent.settings.schema import MerchantSettings, Settings
from payagent.store.rows import apps, limit_counters, merchants
from payagent.unix_peer import peer_pid_and_uid


def check_choices(settings: Settings, config: Path) -> list[CheckResult]:
    """Settings that could be safer, by key, each with what to do. All are warnings.

    On the devnet no real money is at stake, so advice about real money is left out.
    """
    choices = [*_open_listeners(settings), *_open_files(settings, config), *_wide_limits(settings)]
    choices += [*_signed_less(settings), *_apps(settings), *_no_merchants(settings)]
    for name, merchant in settings.merchants.items():
        choices += [(f"merchants.{name}.{key}", why) for key, why in _trusting(merchant, settings.network)]
    if not settings.is_devnet:
        choices += [*_few_providers(settings), *_shallow_depths(settings), *_no_target(settings)]
    choices += _signer(settings.api.socket)
    return [CheckResult(name, why, is_warning=True) for name, why in choices]


Choice = tuple[str, str]
"""(setting's key, what it means and what to do)."""


def _trusting(merchant: MerchantSettings, network: str) -> Iterator[Choice]:
    """Settings that allow a merchant new payees, any price, or payments without service."""
    is_real = network != "devnet"
    if is_real and merchant.pin == "off" and not merchant.pay_to:
        yield "pin", 'off: new addresses are paid without approval; set "first_use", or list them in pay_to'
    if is_real and merchant.price_rise_percent_max is None:
        yield "price_rise_percent_max", "off: any price within the limits is paid without approval; set 25"
    if is_real and merchant.payments_in_flight_max is None:
        yield "payments_in_flight_max", "off: its invoices can hold the whole wallet; set 100"
    if merchant.stop_after_unserved is None:
        yield "stop_after_unserved", "off: it may take money without serving until a limit is reached; set 3"
    if merchant.allow_private_network:
        yield (
            "allow_private_network",
            "true: requests may reach your private network; set it only if the merchant is there",
        )


def _open_listeners(settings: Settings) -> Iterator[Choice]:
    if settings.api.is_remote:
        yield (
            "api.listen",
            "other machines can reach it and use a stolen token; prefer a tunnel to a loopback port",
        )
    if settings.api.allowed_hosts:
        names = ", ".join(sorted(settings.api.allowed_hosts))
        yield (
            "api.allowed_hosts",
            f"requests to {names} are accepted; keep only names that nobody else can point at this machine",
        )
    for index, provider in enumerate(settings.chain.providers):
        if (risk := provider.risk) is not None:
            yield f"chain.providers {index + 1}", risk


def _open_files(settings: Settings, config: Path) -> Iterator[Choice]:
    if config.stat().st_mode & stat.S_IROTH:
        yield "config", f"every user can read your merchants and limits; run: chmod o-rwx {config}"
    passphrase = settings.keystore.passphrase_file
    if passphrase is not None and passphrase.parent.is_dir():
        folder = passphrase.parent.stat()
        if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in (0, os.geteuid()):
            advice = f"others can replace files in {passphrase.parent}; move it to a folder of its own (0700)"
            yield "keystore.passphrase_file", advice


def _key(limit: str, asset: str) -> str:
    return f"limits.{limit}" if asset == LOVELACE else f"limits.{limit} of {asset}"


def _wide_limits(settings: Settings) -> Iterator[Choice]:
    """Signer limits that are wider than a day's payments could need."""
    limits = settings.limits
    days = {LOVELACE: limits.per_day_lovelace} | {token.asset: token.per_day_units for token in limits.assets}
    for asset, per_day in days.items():
        if limits.caps[asset] > per_day:
            yield _key("per_transaction", asset), "above per_day; lower it after the large transfer"
        if limits.day_caps[asset] > 2 * max(per_day, limits.caps[asset]):
            yield _key("signed_per_day", asset), "above twice per_day; lower it after the large transfer"


def _signed_less(settings: Settings) -> Iterator[Choice]:
    """Spending limits above what the signer allows, which therefore have no effect."""
    from_file = settings.limits
    rows = [(LOVELACE, window, units) for window, units in from_file.most_lovelace.items()]
    rows += [
        (token.asset, window, units) for token in from_file.assets for window, units in token.most_units.items()
    ]
    with suppress(Refused), opened(settings) as conn:  # else it has its own check
        rows += [(limit.asset, limit.window.value, limit.most_units) for limit in limit_counters.limits(conn)]
    for asset, window, units in dict.fromkeys(rows):
        bound = None if units is None else from_file.signed_less(Window(window), asset, units)
        if bound is not None:
            yield (
                _key(window, asset),
                f"{units} has no effect above {bound[0]}, which is {bound[1]}; raise that and restart the daemon, "
                "or lower the limit",
            )


def _apps(settings: Settings) -> Iterator[Choice]:
    """Apps that pay without limits of their own: a stolen token could spend all that the wallet allows."""
    with suppress(Refused), opened(settings) as conn:
        bound = {limit.scope.app for limit in limit_counters.limits(conn)}
        for app in apps.all_apps(conn):
            token = apps.last_token(conn, app.id)
            is_program = "pay" in app.scopes and "operate" not in app.scopes
            if is_program and app.id not in bound and token is not None and token.revoked_at_ms is None:
                fix = f'payagent limits set --app {app.name} --per-day "5 ADA"'
                yield (
                    f"app {app.name}",
                    f"it has no limits of its own: a stolen token can spend up to the wallet's limits; run: {fix}",
                )


def _no_merchants(settings: Settings) -> Iterator[Choice]:
    with suppress(Refused), opened(settings) as conn:
        if not settings.merchants and not merchants.all_merchants(conn):
            fix = "payagent merchants add NAME --origin https://HOST"
            yield "merchants", f"there is none, so nothing can be paid; start the daemon and run: {fix}"


def _signer(path: Path) -> Iterator[Choice]:
    """Whether the running signer's memory can be swapped to disk, according to the kernel."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(1)
        unix.connect(str(path))
        daemon, _ = peer_pid_and_uid(unix)
        (launcher,) = _children(daemon)
        (signer,) = _children(launcher)
        if re.search(r"^VmLck:\s+0 kB$", Path(f"/proc/{signer}/status").read_text(), re.MULTILINE):
            yield "signer", "its memory can be swapped to disk; set LimitMEMLOCK=64M as in config/payagent.service"


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _few_providers(settings: Settings) -> Iterator[Choice]:
    providers = settings.chain.providers
    if len(providers) == 1:
        yield (
            "chain.providers",
            "payagent believes whatever the only provider says; add one of another operator",
        )
    elif len({urlsplit(provider.base_url).hostname for provider in providers}) == 1:
        yield "chain.providers", "all are on one host, which can lie for all of them; add one of another operator"


def _shallow_depths(settings: Settings) -> Iterator[Choice]:
    """Depths below those that exactly-once.md assumes."""
    for key, depth in (("confirm_depth", 3), ("void_depth", 15), ("settle_depth", 2160)):
        if getattr(settings.payments, key) < depth:
            yield f"payments.{key}", f"below {depth}: a fork may undo what counts as final; remove the key"


def _no_target(settings: Settings) -> Iterator[Choice]:
    if not settings.notifications:
        yield "notifications", "none: what happens is only in the log; add a [[notifications]] table"
