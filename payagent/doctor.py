"""doctor: looks at what payagent needs, from outside, and says what is wrong and how to mend it.

May import: core, settings, wallet.keystore, store (read-only), chain, agent.chainview. Never: writes; opens the
keystore (its public header is enough); moves money; shows a secret.
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from payagent.agent.chainview import ChainView, require_right_clock
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.source import Found
from payagent.core.network import NETWORKS
from payagent.core.problem import Refused
from payagent.secretfile import read_secret_file, require_own_folder, require_private
from payagent.settings import (
    CREDENTIAL_NAME,
    LINKS_KEY_FILE,
    WORDS_FILE,
    Provider,
    Settings,
    fence_plan,
    passphrase_file,
)
from payagent.store import merchants, queries, spending
from payagent.store.schema import missing_guards
from payagent.store.writer import Readers, require_ledger
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


def look_at_files(settings: Settings, config: Path, environ: Mapping[str, str]) -> list[Finding]:
    """Config, folder, keystore, ledger, token and passphrase: modes, and that they belong together."""
    data_dir, webhook_file = settings.data_dir, settings.alerts.webhook_secret_file
    webhook = [] if webhook_file is None else [finding("webhook secret", lambda: _signing_key(webhook_file))]
    words = data_dir / WORDS_FILE
    links = data_dir / LINKS_KEY_FILE
    key = [finding("links' key", lambda: _secret(links))] if os.path.lexists(links) else []
    left = [finding("recovery words", lambda: _left(words))] if os.path.lexists(words) else []
    return [
        finding("config file", lambda: _not_writable_by_others(config)),
        finding("data folder", lambda: _private(data_dir)),
        finding("keystore", lambda: _keystore(settings)),
        finding("ledger file", lambda: _ledger_file(data_dir / "ledger.db")),
        finding("ledger", lambda: _ledger(settings)),
        finding("socket folder", lambda: _socket_folder(settings.api.socket.parent)),
        finding("set at run time", lambda: _set_at_run_time(settings)),
        finding("operator token", lambda: _secret(data_dir / "operator.token")),
        finding("passphrase", lambda: _passphrase(settings, environ)),
        _fence(settings, config, environ),
        *webhook,
        *key,
        *left,
    ]


async def look_at_chain(settings: Settings, now_ms: Callable[[], int]) -> list[Finding]:
    """Every provider: does it answer, is it of our network, do its newest block and its clock agree with ours?"""
    findings = []
    for index, provider in enumerate(settings.chain.providers):
        name = f"provider {index + 1}"
        try:
            findings.append(Finding(name, await _provider(provider, settings.network, now_ms)))
        except Refused as refused:
            findings.append(Finding(name, f"{provider.base_url}: {refused.detail}", refused))
    return findings


def _not_writable_by_others(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        raise Refused("config_invalid", f"{path} can be changed by others; run: chmod go-w {path}")
    return f"{path} ({mode:04o})"


def _private(path: Path) -> str:
    if not path.exists():
        raise Refused("config_invalid", f"{path} is missing; make it with `payagent init`")
    return require_private(path)


def _socket_folder(folder: Path) -> str:
    return require_own_folder(folder) if folder.exists() else f"{folder} is made when the daemon starts"


def _keystore(settings: Settings) -> str:
    header = read_header(settings.data_dir / "keystore.json")
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
    path = settings.data_dir / "ledger.db"
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
    """What stands over the config file, and what of the file does not count for that."""
    path = settings.data_dir / "ledger.db"
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
    return ", ".join(told)


def _own_address(settings: Settings) -> str | None:
    """The keystore's address; None when it cannot be read, which has a line of its own."""
    try:
        return read_header(settings.data_dir / "keystore.json").address
    except Refused:
        return None


def _read_ledger(path: Path) -> tuple[list[str], dict[str, str | None], dict[str, int], int | None]:
    """Missing triggers, what the database is bound to, the sum of all postings per asset, the first bad event."""
    conn = Readers(path).conn
    try:
        sums: dict[str, int] = {}
        for _account, asset, units in queries.added_up(conn):
            sums[asset] = sums.get(asset, 0) + units
        known = {key: queries.meta(conn, key) for key in ("network", "address")}
        return missing_guards(conn), known, sums, queries.broken_event(conn)
    finally:
        conn.close()


def _secret(path: Path) -> str:
    read_secret_file(path)
    return f"{path} is there and private"


def _left(words: Path) -> NoReturn:
    raise Refused("words_left", f"{words} holds them in clear: whoever reads it has the money")


def _signing_key(path: Path) -> str:
    signing_key(read_secret_file(path))
    return f"{path} is there and private"


def _passphrase(settings: Settings, environ: Mapping[str, str]) -> str:
    """Where the daemon will find it; it is not tried."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (Path(folder) / CREDENTIAL_NAME).is_file():
        return f"systemd credential {CREDENTIAL_NAME}"
    if settings.keystore.passphrase_file is not None:
        return _secret(settings.keystore.passphrase_file)
    return "asked on a terminal when the daemon starts"


def _fence(settings: Settings, config: Path, environ: Mapping[str, str]) -> Finding:
    """What of the secrets the daemon itself will be kept from at its next start."""
    try:
        passphrase = passphrase_file(settings, environ, can_ask=True)
        plan = fence_plan(settings, config, passphrase)
    except OSError as error:
        return Finding("fence", f"it cannot be told: {error}", is_warning=True)
    if plan.open:
        return Finding("fence", "; ".join(plan.open), is_warning=True)
    return Finding("fence", "the daemon cannot read " + ", ".join(map(str, plan.hidden)))


async def _provider(provider: Provider, network: str, now_ms: Callable[[], int]) -> str:
    project_id = None if provider.project_id_file is None else read_secret_file(provider.project_id_file)
    source = Blockfrost("provider", provider.base_url, project_id)
    try:
        genesis, parameters, tip = await source.genesis(), await source.parameters(), await source.tip()
        off_s = await source.clock_off_s(now_ms)
    finally:
        await source.aclose()
    for name, read in (("genesis", genesis), ("parameters", parameters), ("newest block", tip)):
        if not isinstance(read, Found):
            raise Refused(
                "chain_not_ready", f"its {name} could not be read: {getattr(read, 'reason', 'not there')}"
            )
    if not (isinstance(genesis, Found) and isinstance(parameters, Found) and isinstance(tip, Found)):
        raise Refused("chain_not_ready", "it did not answer")
    view = ChainView(NETWORKS[network])
    view.learn_genesis(genesis.value)
    view.learn_parameters(parameters.value)
    view.tip, view.problem = tip.value, None
    slot = view.require_ready(now_ms())
    require_right_clock([off_s.value] if isinstance(off_s, Found) else [])
    return (
        f"{provider.base_url}: {network}, block {tip.value.height}, "
        f"newest block {max(slot - tip.value.slot, 0)} s old"
    )
