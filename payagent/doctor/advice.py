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

from payagent.agent.base.config import file_limits
from payagent.core.money import LOVELACE, format_amount
from payagent.core.policy import ANY, Limit, in_force, limit_in_words, outranked
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, opened
from payagent.settings.schema import MerchantSettings, Settings
from payagent.store.rows import apps, limit_counters, merchants
from payagent.unix_peer import peer_pid_and_uid


def check_choices(settings: Settings, config: Path) -> list[CheckResult]:
    """Settings that could be safer, by key, each with what to do. All are warnings.

    On the devnet no real money is at stake, so advice about real money is left out.
    """
    choices = [(key, why) for is_so, key, why in _risks(settings) if is_so]
    choices += [*_open_files(settings, config), *void_limits(settings), *_apps(settings), *_no_merchants(settings)]
    return [CheckResult(name, why, is_warning=True) for name, why in (*choices, *_signer(settings.api.socket))]


Choice = tuple[str, str]
"""(setting's key, what it means and what to do)."""
Risk = tuple[bool, str, str]
"""(whether it is set so, setting's key, what it means and what to do)."""


def _risks(settings: Settings) -> list[Risk]:
    """What the settings alone show."""
    api, providers, is_real = settings.api, settings.chain.providers, not settings.is_devnet
    names = ", ".join(sorted(api.allowed_hosts))
    is_one_host = len({urlsplit(provider.base_url).hostname for provider in providers}) == 1
    return [
        (
            api.is_remote,
            "api.listen",
            "other machines can reach it and use a stolen token; prefer a tunnel to a loopback port",
        ),
        (
            bool(names),
            "api.allowed_hosts",
            f"requests to {names} are accepted; keep only names that nobody else can point at this machine",
        ),
        *(
            (provider.risk is not None, f"chain.providers {number}", provider.risk or "")
            for number, provider in enumerate(providers, 1)
        ),
        (
            is_real and len(providers) == 1,
            "chain.providers",
            "payagent believes whatever the only provider says; add one of another operator",
        ),
        (
            is_real and len(providers) > 1 and is_one_host,
            "chain.providers",
            "all are on one host, which can lie for all of them; add one of another operator",
        ),
        *(  # depths below those that exactly-once.md assumes
            (
                is_real and getattr(settings.payments, key) < depth,
                f"payments.{key}",
                f"below {depth}: a fork may undo what counts as final; remove the key",
            )
            for key, depth in (("confirm_depth", 3), ("void_depth", 15), ("settle_depth", 2160))
        ),
        (
            is_real and not settings.notifications,
            "notifications",
            "none: what happens is only in the log; add a [[notifications]] table",
        ),
        *_wide_limits(settings),
        *(risk for name, merchant in settings.merchants.items() for risk in _trust(name, merchant, is_real)),
    ]


def _trust(name: str, merchant: MerchantSettings, is_real: bool) -> tuple[Risk, ...]:
    """Settings that allow a merchant new payees, any price, or payments without service."""
    key = f"merchants.{name}"
    return (
        (
            is_real and merchant.pin == "off" and not merchant.pay_to,
            f"{key}.pin",
            'off: new addresses are paid without approval; set "first_use", or list them in pay_to',
        ),
        (
            is_real and merchant.price_rise_percent_max is None,
            f"{key}.price_rise_percent_max",
            "off: any price within the limits is paid without approval; set 25",
        ),
        (
            is_real and merchant.payments_in_flight_max is None,
            f"{key}.payments_in_flight_max",
            "off: its invoices can hold the whole wallet; set 100",
        ),
        (
            merchant.stop_after_unserved is None,
            f"{key}.stop_after_unserved",
            "off: it may take money without serving until a limit is reached; set 3",
        ),
        (
            merchant.allow_private_network,
            f"{key}.allow_private_network",
            "true: requests may reach your private network; set it only if the merchant is there",
        ),
    )


def _wide_limits(settings: Settings) -> Iterator[Risk]:
    """Signer limits that are wider than a day's payments could need."""
    limits = settings.limits
    for asset, per_day in {
        LOVELACE: limits.per_day_lovelace,
        **{t.asset: t.per_day_units for t in limits.assets},
    }.items():
        cap, later = limits.caps[asset], "per_day; lower it after the large transfer"
        yield cap > per_day, _key("per_transaction", asset), f"above {later}"
        yield limits.day_caps[asset] > 2 * max(per_day, cap), _key("signed_per_day", asset), f"above twice {later}"


def _open_files(settings: Settings, config: Path) -> Iterator[Choice]:
    if config.stat().st_mode & stat.S_IROTH:
        yield "config", f"every user can read your merchants and limits; run: chmod o-rwx {config}"
    passphrase = settings.keystore.passphrase_file
    if passphrase is not None and passphrase.parent.is_dir():
        folder = passphrase.parent.stat()
        if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in (0, os.geteuid()):
            yield (
                "keystore.passphrase_file",
                f"others can replace files in {passphrase.parent}; move it to a folder of its own (0700)",
            )


def _key(limit: str, asset: str) -> str:
    return f"limits.{limit}" if asset == LOVELACE else f"limits.{limit} of {asset}"


def void_limits(settings: Settings) -> Iterator[Choice]:
    """Limits in force that have no effect, because another one, or one of the signer's, allows less."""
    limits, names = tuple(file_limits(settings)), {ANY: ""}
    with suppress(Refused), opened(settings) as conn:  # else it has its own check
        limits = in_force(limits, limit_counters.limits(conn))
        names |= {app.id: app.name for app in apps.all_apps(conn)}

    def in_words(one: Limit) -> str:
        return limit_in_words({"limit": one.window, "app": names[one.scope.app], "merchant": one.scope.merchant})

    for limit in limits:
        bound = settings.limits.signed_less(limit.window, limit.asset, limit.most_units)
        if (other := outranked(limit, limits)) is not None and (bound is None or other.most_units <= bound[1]):
            bound = in_words(other), other.most_units
        if bound is not None:
            most, less = (format_amount(limit.asset, units) for units in (limit.most_units, bound[1]))
            yield (
                f"app {names[limit.scope.app]}" if limit.scope.app else _key(limit.window, limit.asset),
                f"{in_words(limit)} of {most} has no effect: {bound[0]} is {less}; raise that, or lower this one",
            )


def _apps(settings: Settings) -> Iterator[Choice]:
    """Apps that pay without limits of their own: a stolen token could spend all that the wallet allows."""
    with suppress(Refused), opened(settings) as conn:
        bound = {limit.scope.app for limit in limit_counters.limits(conn)}
        for app in apps.all_apps(conn):
            token = apps.last_token(conn, app.id)
            is_program = "pay" in app.scopes and "operate" not in app.scopes
            if is_program and app.id not in bound and token is not None and token.revoked_at_ms is None:
                yield (
                    f"app {app.name}",
                    "it has no limits of its own: a stolen token can spend up to the wallet's limits; run: "
                    f'payagent limits set --app {app.name} --per-day "5 ADA"',
                )


def _no_merchants(settings: Settings) -> Iterator[Choice]:
    with suppress(Refused), opened(settings) as conn:
        if not settings.merchants and not merchants.all_merchants(conn):
            yield (
                "merchants",
                "there is none, so nothing can be paid; start the daemon and run: "
                "payagent merchants add NAME --origin https://HOST",
            )


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
