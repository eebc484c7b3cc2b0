"""Starts the daemon, answers requests until a signal, and reads the config again after SIGHUP.

Start with `serve`. The daemon owns the lease of the data folder from here until it ends.

Never: opens the keystore, which the signer's process does.
"""

import asyncio
import gc
import os
import signal
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import cache, partial
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from starlette.types import ASGIApp

from payagent import sandbox
from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.agent.fleet.fleet import Fleet
from payagent.agent.operator.config_reload import ConfigReload
from payagent.api.app import Entrance, create_app
from payagent.api.http.listeners import Listeners, listen_unix
from payagent.api.http.rate_limit import Rates
from payagent.api.http.server import listen_tcp, make_server
from payagent.api.http.sessions import Sessions
from payagent.api.http.tls import server_context
from payagent.chain.open import kind_of
from payagent.core.network import NETWORKS
from payagent.core.problems import PROBLEMS, Refused
from payagent.core.timestamps import iso_time
from payagent.core.version import VERSION
from payagent.daemon.compose import Running, Startup, StoppedError, make_config, note_settings, running, stop
from payagent.dashboard.app import HOST, Doors
from payagent.dashboard.build import create_dashboard
from payagent.log import Redactor
from payagent.proxy.app import Bounds, ProxyApp
from payagent.secret_file import (
    require_private,
    require_unchanged_by_others,
)
from payagent.settings.paths import (
    KEYSTORE_FILE,
    LEDGER_FILE,
    WORDS_FILE,
    passphrase_file,
    require_config_out_of_reach,
    sandbox_plan,
    written_by_daemon,
)
from payagent.settings.schema import (
    ApiSettings,
    Settings,
)
from payagent.signer.client import HsmOptions, unlocked
from payagent.store.db.committer import Checkpoint
from payagent.store.db.lease import lease
from payagent.store.db.opening import held_open, require_ledger
from payagent.store.db.readers import make_scratch
from payagent.wallet.keystore import read_header

log = structlog.get_logger("payagent.daemon")

Announce = Callable[[Mapping[str, str]], None]

LOOK_AGAIN_S = 1.0
"""How often a daemon that starts looks whether a host of its database answers."""


def serve(
    settings: Settings,
    *,
    config: Path,
    looked_for: Sequence[Path] = (),
    environ: Mapping[str, str],
    can_ask: bool,
    announce: Announce,
    redactor: Redactor,
    allow_remote: bool = False,
    checkpoint: Checkpoint = lambda _name: None,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    `looked_for`: where the next start looks for `config`. `can_ask`: a person can type the passphrase.
    `allow_remote`: other machines may reach api.listen, by TLS. `checkpoint` is told of every commit point (tests
    kill the process there). `reread` reads the settings again after SIGHUP. A caller that passes it has blocked
    SIGHUP, so an early signal is handled once the daemon is ready.

    A separate process opens the keystore before the daemon can be reached, so Ctrl-C still works at the passphrase
    prompt. From then on the daemon can read neither keystore nor passphrase (`sandbox`). That holds for the life
    of the process, so nothing else is done in it after serving.

    Refused before serving: `already_running`, `clock_skew`, `config_invalid`, `keystore_*`, `ledger_tampered`,
    `ledger_missing`, `ledger_newer`, `store_failed`. Ends with `lease_lost` when another daemon opened the ledger.
    Ends with `signer_lost` when the signer process has ended: only a new start can unlock the key again. Ends with
    `keystore_invalid` when an HSM that was away refuses the PIN.
    """
    _require_ready_to_start(settings, config)
    sandbox.keep_to_itself()
    context = _tls(settings.api, allow_remote)
    with lease(settings.data_dir, (LEDGER_FILE, KEYSTORE_FILE)) as held:
        ledger = settings.data_dir / LEDGER_FILE if settings.store.url is None else None
        if ledger is not None:
            require_ledger(ledger)
        scratch = make_scratch(settings.data_dir)
        in_hsm = read_header(settings.data_dir / KEYSTORE_FILE).hsm is not None
        secret = passphrase_file(settings, environ, can_ask, in_hsm=in_hsm)
        plan = sandbox_plan(settings, config, secret)
        require_config_out_of_reach(settings, [*looked_for, config], written_by_daemon(settings, plan))
        with (
            unlocked(
                *(settings.data_dir / KEYSTORE_FILE, secret, NETWORKS[settings.network]),
                *(settings.keystore.account, settings.limits.caps, settings.limits.day_caps),
                *(settings.wallet.accounts, held.pop(KEYSTORE_FILE, None)),
                HsmOptions(settings.keystore.answer_s, settings.keystore.environment) if in_hsm else None,
                settings.channel_rules,
            ) as (signer, missing),
            listen_tcp(settings.api.listen, "api.listen") as tcp,
            listen_unix(settings.api.socket) as unix,
            nullcontext(lambda _folder: None) if ledger is None else held_open(ledger) as use_for_temporary,
        ):
            _enter_sandbox(settings, plan, scratch, use_for_temporary)
            _warn_of_risks(settings)
            log_signer = log.warning if missing else log.info
            log_signer("signer.started", pid=signer.pid, not_possible_here=missing)
            ports, listeners = Ports(SystemClock(), SystemRandomness()), Listeners(unix, tcp, context)
            startup = Startup(settings, config, ports, signer, listeners, redactor, checkpoint)
            with suppress(StoppedError):
                asyncio.run(_serve(startup, announce, reread))
            if signer.problem is not None:
                raise Refused(signer.code, f"the signer process has ended: {signer.problem}")


def _require_ready_to_start(settings: Settings, config: Path) -> None:
    if not __debug__:
        raise Refused("config_invalid", "Python's -O strips checks that libraries rely on; start without it")
    if any(distributions(name="cardano-payagent-client")):
        # it has the same files, perhaps of another version (docs/decisions/0026)
        raise Refused(
            "config_invalid",
            "cardano-payagent-client is installed beside the daemon and may have replaced files of it. "
            "Install payagent into a new environment, without that package",
        )
    for name, provider in settings.chain.named.items():
        kind_of(name, provider)
    if not settings.data_dir.is_dir():
        raise Refused("config_invalid", f"{settings.data_dir} does not exist; create it with `payagent init`")
    require_private(settings.data_dir)
    require_unchanged_by_others(config)


def _warn_of_risks(settings: Settings) -> None:
    """Warn of risks that do not stop the start and that an operator should fix."""
    if os.path.lexists(settings.data_dir / WORDS_FILE):
        log.warning(
            "words.left", file=str(settings.data_dir / WORDS_FILE), fix=PROBLEMS["recovery_words_on_disk"].fix
        )
    for name, provider in settings.chain.named.items():
        if (risk := provider.risk) is not None:
            log.warning("provider.in_clear", provider=name, risk=risk)


def _tls(api: ApiSettings, allow_remote: bool) -> ssl.SSLContext | None:
    """Return the TLS context of the port; None for plain text, which must stay on this machine."""
    if api.is_remote and not allow_remote:
        raise Refused(
            "config_invalid",
            f"api.listen {api.listen} accepts connections from other machines: if intended, use --allow-remote",
        )
    if api.tls_certificate_file is None or api.tls_key_file is None:
        return None
    return server_context(api.tls_certificate_file, api.tls_key_file)


def _enter_sandbox(
    settings: Settings,
    plan: sandbox.SandboxPlan,
    scratch: Path,
    use_for_temporary: Callable[[Path], None],
) -> None:
    """Sandbox this process for good: it cannot read the secrets, or have other programs read them.

    In the sandbox, a file created in a folder above the keystore cannot be read. So temporary files are created
    elsewhere.
    """
    log_sandbox = log.warning if plan.open else log.info
    log_sandbox("daemon.fenced", hidden=[str(path) for path in plan.hidden], not_hidden=plan.open)
    sandbox.close_ways_out()
    if not plan.hidden:
        return
    folder = Path(tempfile.gettempdir()).resolve()
    temporary = folder if folder in sandbox.temporary(plan.hidden) else scratch
    tempfile.tempdir = str(temporary)
    use_for_temporary(temporary)
    sandbox.enter_sandbox(plan.hidden, written_by_daemon(settings, plan), (settings.api.socket.parent,))


async def _serve(startup: Startup, announce: Announce, reread: Callable[[], Settings] | None) -> None:
    settings, signer, listeners = startup.settings, startup.signer, startup.listeners
    signer.watch(lambda: None)  # until `stop` has a handler
    new_id = partial(startup.ports.new_id, "call")
    entrance = Entrance(settings.network, settings.api.allowed_hosts, new_id)
    plain, secure = listeners.sorted()
    server = make_server(entrance, new_id, secure)

    @cache
    def serving() -> asyncio.Task[None]:
        """Answer from now on, until a signal."""
        server.stop_on_signal()
        announce({"api": listeners.url, "socket": str(settings.api.socket), "network": settings.network})
        return asyncio.create_task(server.serve(sockets=plain))

    async def wait(why: Refused | None) -> None:
        """Tell requests for a moment why the ledger is not open; None once it is.

        Raises `StoppedError` after a signal.
        """
        if why is None:
            entrance.why = Refused("store_failed", "the daemon is starting")
            return
        if why.detail != entrance.why.detail:
            log.warning("daemon.waits", why=why.detail)
        entrance.why = why
        if (await asyncio.wait([serving()], timeout=LOOK_AGAIN_S))[0]:
            await serving()  # raises what ended it, if that was no signal
            raise StoppedError

    async with running(startup, wait) as parts:
        proxy, entrance.app = _applications(startup, parts)
        server.stop_on_signal()
        if reread is not None:
            _read_on_sighup(startup, parts[0], reread)
        signer.watch(stop)
        # objects that live as long as the process are kept from garbage collection: it would find nothing among
        # them, and no request is answered while it runs
        gc.collect()
        gc.freeze()
        try:
            await serving()
        finally:
            proxy.close()


def _applications(startup: Startup, parts: Running) -> tuple[ProxyApp, ASGIApp]:
    """The proxy with the API, and what answers: these, or the dashboard in front of them."""
    fleet, notifiers, heartbeat, links, egress = parts
    settings, listeners, signer = startup.settings, startup.listeners, startup.signer
    api, limits = settings.api, settings.proxy
    rates = Rates(api.rate_limit_per_s, api.concurrent_requests_max)
    sessions = _sessions(startup) if api.dashboard else None
    inner = create_app(
        fleet,
        heartbeat=heartbeat,
        signer=lambda: signer.problem,
        allowed_hosts=api.allowed_hosts,
        rates=rates,
        sessions=sessions,
        notifiers={one.name: one for one in notifiers},
    )
    bounds = Bounds(
        *(limits.body_buffer_bytes_max, limits.read_timeout_s, limits.payment_timeout_s),
        *(api.allowed_hosts, rates),
    )
    proxy = ProxyApp(fleet, inner, bounds, egress)
    if sessions is None:
        return proxy, proxy
    facts = {
        "version": VERSION,
        "started_at": iso_time(startup.ports.clock.now_ms()),
        "url": listeners.url,
        "socket": str(api.socket),
        "config": str(startup.config),
        "data_dir": str(settings.data_dir),
    }
    dashboard = create_dashboard(
        *(fleet, inner, sessions, links, listeners.url, api.explorer_url, facts), is_devnet=settings.is_devnet
    )
    link_host = None if links is None else urlsplit(links.origin).hostname
    return proxy, Doors(proxy, dashboard, frozenset({HOST}) | api.dashboard_hosts, link_host)


def _sessions(startup: Startup) -> Sessions:
    """The dashboard's sessions. With TLS, their links lead to a name of `dashboard_hosts`."""
    ports, url = startup.ports, urlsplit(startup.listeners.url)
    host = min(startup.settings.api.dashboard_hosts, default=HOST) if url.scheme == "https" else HOST
    return Sessions(ports.randomness, time.monotonic, ports.clock.now_ms, f"{url.scheme}://{host}:{url.port}")


def _read_on_sighup(startup: Startup, fleet: Fleet, reread: Callable[[], Settings]) -> None:
    config_reload = ConfigReload(
        fleet.context,
        startup.settings,
        partial(_reread, startup.config, reread),
        partial(make_config, own=startup.signer.accounts[0].address, redactor=startup.redactor),
        partial(note_settings, fleet),
    )
    tasks: set[asyncio.Task[None]] = set()

    def start_reload() -> None:
        task = asyncio.create_task(config_reload.run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, start_reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _reread(config: Path, reread: Callable[[], Settings]) -> Settings:
    """Reread the settings. Refused with the fix if the sandbox hides the file."""
    require_unchanged_by_others(config)
    try:
        config.open("rb").close()
    except PermissionError:
        raise Refused(
            "config_invalid",
            f"{config} cannot be read: while the daemon runs, its sandbox hides new files in a folder above the "
            "keystore; edit the file in place, or start the daemon again",
        ) from None
    return reread()
