"""The daemon: connects all rooms, and runs until it is stopped.

Start with `serve`. The daemon owns the lease of the data folder and the order of start and stop.
Never: decides about a payment.
"""

import asyncio
import gc
import os
import signal
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from starlette.types import ASGIApp

from payagent import sandbox
from payagent.agent.agent import Agent
from payagent.agent.base.chain_view import require_right_clock
from payagent.agent.base.config import AgentConfig, file_config
from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet, HeldAccount
from payagent.agent.fleet.shared import NoSigner, Parts, SharedFleet
from payagent.agent.operator.alerts import AlertMonitor
from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.agent.operator.config_reload import ConfigReload
from payagent.agent.operator.notifier import Notifier, TargetPort, take_targets
from payagent.agent.operator.telegram import TelegramTarget
from payagent.agent.topups.runner import TopupRunner
from payagent.api.app import Entrance, create_app
from payagent.api.http.listeners import Listeners, listen_unix
from payagent.api.http.rate_limit import Rates
from payagent.api.http.server import listen_tcp, make_server
from payagent.api.http.sessions import Sessions
from payagent.api.http.tls import server_context
from payagent.api.routes.health import Heartbeat
from payagent.chain.open import opened
from payagent.chain.provider import ChainProvider, Found
from payagent.core.address import Address
from payagent.core.network import NETWORKS
from payagent.core.problems import PROBLEMS, Refused
from payagent.core.timestamps import iso_time
from payagent.core.version import VERSION
from payagent.dashboard.app import HOST, Doors
from payagent.dashboard.build import create_dashboard
from payagent.log import SECRET_LENGTH_MIN, Redactor
from payagent.outbound.egress import Egress
from payagent.outbound.merchant_client import MerchantClient
from payagent.outbound.push import Push
from payagent.outbound.telegram import TelegramBot, bot_token
from payagent.outbound.webhook import Webhook, signing_key
from payagent.proxy.app import Bounds as ProxyBounds
from payagent.proxy.app import ProxyApp
from payagent.scheduler import DEVNET_INTERVALS, NETWORK_INTERVALS, Scheduler
from payagent.secret_file import (
    SecretFile,
    make_secret_file,
    read_header_secret,
    read_secret_file,
    require_private,
    require_unchanged_by_others,
)
from payagent.settings.paths import (
    KEYSTORE_FILE,
    LEDGER_FILE,
    LINKS_KEY_FILE,
    WORDS_FILE,
    host_of,
    passphrase_file,
    require_config_out_of_reach,
    sandbox_plan,
    written_by_daemon,
)
from payagent.settings.schema import (
    ApiSettings,
    NotificationSettings,
    Settings,
    shared_settings_hashes,
)
from payagent.signer.client import AccountSigner, SignerProcess, unlocked
from payagent.store.db.committer import Checkpoint, Ownership
from payagent.store.db.daemon_file import DAEMON_FILE, DaemonFile
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.lease import LOCK_FILE, lease
from payagent.store.db.opening import held_open, opening, require_ledger
from payagent.store.db.readers import Readers, make_scratch
from payagent.store.db.signer_record import SignerFile, signer_file
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import about, writes
from payagent.store.rows.fleet import DaemonRow
from payagent.wallet.keys import Account

log = structlog.get_logger("payagent.daemon")

Announce = Callable[[Mapping[str, str]], None]

Running = tuple[Fleet, list[Notifier], Heartbeat]
"""What answers requests, what tells the targets, and how the passes over the chain go."""

Opened = tuple[tuple[Writer, Readers], Seat | None]
"""The ledger, and the daemon's seat in a fleet."""

LOOK_AGAIN_S = 1.0
"""How often a daemon that starts looks whether a host of its database answers."""

CLOCK_PATIENCE_S = 5.0
"""How long a start waits for a provider's time."""


class _StoppedError(Exception):
    """A signal ended the daemon while it waited for its database."""


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
    Ends with `signer_lost` when the signer process has ended: only a new start can unlock the key again.
    """
    if not __debug__:
        raise Refused("config_invalid", "Python's -O strips checks that libraries rely on; start without it")
    if any(distributions(name="cardano-payagent-client")):
        # it has the same files, perhaps of another version (docs/decisions/0026)
        raise Refused(
            "config_invalid",
            "cardano-payagent-client is installed beside the daemon and may have replaced files of it. "
            "Install payagent into a new environment, without that package",
        )
    sandbox.keep_to_itself()
    _require_private_place(settings.data_dir, config)
    context = _tls(settings.api, allow_remote)
    with lease(settings.data_dir, (LEDGER_FILE, KEYSTORE_FILE)) as held:
        if settings.store.url is None:
            require_ledger(settings.data_dir / LEDGER_FILE)
        scratch = make_scratch(settings.data_dir)
        passphrase = passphrase_file(settings, environ, can_ask)
        plan = sandbox_plan(settings, config, passphrase)
        require_config_out_of_reach(settings, [*looked_for, config], written_by_daemon(settings, plan))
        with (
            _unlocked(settings, passphrase, held.pop(KEYSTORE_FILE, None)) as (account, signer, missing),
            listen_tcp(settings.api.listen, "api.listen") as tcp,
            listen_unix(settings.api.socket) as unix,
            _held_open(settings) as use_for_temporary,
        ):
            _enter_sandbox(settings, plan, scratch, use_for_temporary)
            _warn_of_risks(settings)
            log_signer = log.warning if missing else log.info
            log_signer("signer.started", pid=signer.pid, not_possible_here=missing)
            listeners = Listeners(unix, tcp, context)
            with suppress(_StoppedError):
                asyncio.run(
                    _serve(settings, account, signer, listeners, announce, redactor, checkpoint, config, reread)
                )
            if signer.problem is not None:
                raise Refused("signer_lost", f"the signer process has ended: {signer.problem}")


@contextmanager
def _held_open(settings: Settings) -> Iterator[Callable[[Path], None]]:
    """Keep the files of a ledger in place that is one (`store.db.opening.held_open`)."""
    if settings.store.url is None:
        with held_open(settings.data_dir / LEDGER_FILE) as use_for_temporary:
            yield use_for_temporary
    else:
        yield lambda _folder: None


def _require_private_place(data_dir: Path, config: Path) -> None:
    if not data_dir.is_dir():
        raise Refused("config_invalid", f"{data_dir} does not exist; create it with `payagent init`")
    require_private(data_dir)
    require_unchanged_by_others(config)


def _unlocked(
    settings: Settings, passphrase: SecretFile | None, lock: int | None
) -> AbstractContextManager[tuple[Account, SignerProcess, list[str]]]:
    """Unlock the keystore. Yields the account, its signer, and the hardening that this machine lacks."""
    keystore, network, limits = settings.data_dir / KEYSTORE_FILE, NETWORKS[settings.network], settings.limits
    account, count = settings.keystore.account, settings.wallet.accounts
    return unlocked(keystore, passphrase, network, account, limits.caps, limits.day_caps, count, lock)


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


async def _serve(
    settings: Settings,
    account: Account,
    signer: SignerProcess,
    listeners: Listeners,
    announce: Announce,
    redactor: Redactor,
    checkpoint: Checkpoint,
    config: Path,
    reread: Callable[[], Settings] | None,
) -> None:
    links = _links(settings, redactor)
    signer.watch(lambda: None)  # until `_stop` has a handler
    egress = _egress(settings)
    new_id = partial(Ports(SystemClock(), SystemRandomness()).new_id, "call")
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

        Raises `_StoppedError` after a signal.
        """
        if why is None:
            entrance.why = Refused("store_failed", "the daemon is starting")
            return
        if why.detail != entrance.why.detail:
            log.warning("daemon.waits", why=why.detail)
        entrance.why = why
        if (await asyncio.wait([serving()], timeout=LOOK_AGAIN_S))[0]:
            await serving()  # raises what ended it, if that was no signal
            raise _StoppedError

    running = _running(settings, account, signer, links, egress, redactor, checkpoint, listeners.url, wait)
    async with running as (fleet, notifiers, heartbeat):
        api, proxy, hosts = settings.api, settings.proxy, settings.api.allowed_hosts
        rates = Rates(api.rate_limit_per_s, api.concurrent_requests_max)
        sessions = _sessions(fleet.context, settings, listeners) if api.dashboard else None
        inner = create_app(
            fleet,
            heartbeat=heartbeat,
            signer=lambda: signer.problem,
            allowed_hosts=hosts,
            rates=rates,
            sessions=sessions,
            notifiers={one.name: one for one in notifiers},
        )
        app = ProxyApp(
            fleet,
            inner,
            ProxyBounds(proxy.body_buffer_bytes_max, proxy.read_timeout_s, proxy.payment_timeout_s, hosts, rates),
            egress,
        )
        outer: ASGIApp = app
        if sessions is not None:
            dashboard = create_dashboard(
                *(fleet, inner, sessions, links, listeners.url, api.explorer_url),
                _process_facts(settings, listeners, config),
                is_devnet=settings.is_devnet,
            )
            outer = Doors(app, dashboard, frozenset({HOST}) | api.dashboard_hosts, _link_host(links))
        entrance.app = outer
        server.stop_on_signal()
        if reread is not None:
            make_agent_config = partial(make_config, own=account.address, redactor=redactor)
            read = partial(_reread, config, reread)
            _read_on_sighup(ConfigReload(fleet.context, settings, read, make_agent_config, _noting(fleet)))
        signer.watch(_stop)
        _freeze_startup_objects()
        try:
            await serving()
        finally:
            app.close()


def _sessions(context: AgentContext, settings: Settings, listeners: Listeners) -> Sessions:
    """The dashboard's sessions. With TLS, their links lead to a name of `dashboard_hosts`."""
    url = urlsplit(listeners.url)
    host = min(settings.api.dashboard_hosts, default=HOST) if url.scheme == "https" else HOST
    origin = f"{url.scheme}://{host}:{url.port}"
    return Sessions(context.ports.randomness, time.monotonic, context.ports.clock.now_ms, origin)


def _process_facts(settings: Settings, listeners: Listeners, config: Path) -> dict[str, str]:
    """What the dashboard tells of this process."""
    return {
        "version": VERSION,
        "started_at": iso_time(SystemClock().now_ms()),
        "url": listeners.url,
        "socket": str(settings.api.socket),
        "config": str(config),
        "data_dir": str(settings.data_dir),
    }


def _freeze_startup_objects() -> None:
    """Exclude objects that live as long as the process (modules, routes) from garbage collection.

    A collection would find nothing among them, and no request is answered while it runs.
    """
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _running(
    settings: Settings,
    account: Account,
    signer: SignerProcess,
    links: ApprovalLinks | None,
    egress: Egress,
    redactor: Redactor,
    checkpoint: Checkpoint,
    url: str,
    wait: Callable[[Refused | None], Awaitable[None]],
) -> AsyncIterator[Running]:
    """Run what pays and its jobs, and stop them in an order that cuts nothing off.

    A daemon of a fleet runs the jobs of an account while it holds it. What is done once for all accounts runs
    beside account 0.
    """
    ports, accounts = Ports(SystemClock(), SystemRandomness()), signer.accounts
    is_lost = threading.Event()
    async with AsyncExitStack() as stack:
        records = {number: SignerFile(settings.data_dir / signer_file(number)) for number in range(len(accounts))}
        for record in records.values():
            stack.callback(record.close)
        own_file = DaemonFile(settings.data_dir / DAEMON_FILE)
        open_store = partial(_open_store, settings, ports, records, own_file, is_lost, checkpoint, redactor)
        store, seat = open_store() if settings.store.url is None else await _once_open(open_store, wait)
        writer, readers = store
        stack.callback(writer.close)
        read = partial(_secret, redactor=redactor)
        providers = [
            await stack.enter_async_context(opened(name, provider, settings.network, read))
            for name, provider in settings.chain.named.items()
        ]
        merchants = MerchantClient(egress.transport())
        stack.push_async_callback(merchants.aclose)
        await _require_right_clock(providers, ports.clock.now_ms)
        config = make_config(settings, account.address, redactor)
        with opening(settings.store.url or settings.data_dir / LEDGER_FILE):
            await _bind(writer, readers, settings, account.address)
            front = Agent(config, ports, writer, readers, providers, signer if seat is None else NoSigner())
        first = HeldAccount(front, TopupRunner(front, merchants))
        schedulers: dict[HeldAccount, tuple[Scheduler, list[asyncio.Task[None]]]] = {}

        def visit(number: int) -> HeldAccount:
            own = replace(front.context.from_file, own=accounts[number].address, account=number)
            signs = accounts[number].signer
            own_signer = AccountSigner(signer, number, signs.public_key, signs.payment_key_hash)
            agent = Agent(own, ports, writer, readers, (), own_signer, front.context)
            return HeldAccount(agent, TopupRunner(agent, merchants))

        async def start(held: HeldAccount, number: int) -> HeldAccount:
            recovery = Recovery(held.agent.context, records[number])
            await recovery.begin()
            if is_first := number == 0:
                await take_targets(front.context, list(targets))
            scheduler = Scheduler(
                held.agent,
                ChainSync(held.agent, merchants),
                AlertMonitor(held.agent.context) if is_first else None,
                held.topups,
                recovery,
                DEVNET_INTERVALS if settings.is_devnet else NETWORK_INTERVALS,
                notifiers if is_first else (),
            )
            scheduler.start()
            chats = [one for one in targets.values() if isinstance(one, TelegramTarget)] if is_first else []
            schedulers[held] = scheduler, [asyncio.create_task(one.run()) for one in chats]
            return held

        async def stop(held: HeldAccount) -> None:
            scheduler, chats = schedulers.pop(held)
            for chat in chats:
                chat.cancel()
            await asyncio.gather(*chats, return_exceptions=True)
            await scheduler.stop()

        def heartbeat() -> tuple[str | None, bool]:
            running = [scheduler for scheduler, _ in schedulers.values()]
            late = next((why for scheduler in running if (why := scheduler.stale())), None)
            return late, not running or any(scheduler.is_watching() for scheduler in running)

        if seat is None:
            fleet = Fleet(first)
        else:
            me = DaemonRow(
                *(seat.holder, seat.host, url, shared_settings_hashes(settings), VERSION, ports.clock.now_ms())
            )
            addresses = tuple(one.address.text for one in accounts)
            parts = Parts(visit, lambda number: start(visit(number), number), stop)
            fleet = SharedFleet(first, me, seat, addresses, parts)
        bots: set[str] = set()
        targets = {one.name: _target(one, redactor, fleet, bots) for one in settings.notifications}
        for target in targets.values():
            stack.push_async_callback(target.aclose)
        notifiers = [Notifier(front.context, one, targets[one.name], links) for one in settings.notifications]
        if isinstance(fleet, SharedFleet):
            stack.push_async_callback(fleet.leave)
            await fleet.join()
            stack.push_async_callback(_end, asyncio.create_task(fleet.run()))
        else:
            with opening(settings.data_dir / LEDGER_FILE):
                await start(first, 0)
            stack.push_async_callback(stop, first)
        yield fleet, notifiers, heartbeat
    if is_lost.is_set():
        raise Refused("lease_lost", f"another daemon has opened {settings.data_dir / LEDGER_FILE}")


def _open_store(
    settings: Settings,
    ports: Ports,
    records: Mapping[int, SignerFile],
    own_file: DaemonFile,
    is_lost: threading.Event,
    checkpoint: Checkpoint,
    redactor: Redactor,
) -> Opened:
    """Open the ledger: in the data folder, where `is_lost` is set if another daemon opens it, or with others."""
    if settings.store.url is None:
        database = settings.data_dir / LEDGER_FILE
        own = Ownership(ports.new_id("boot"), records[0], partial(_stop_without_lease, is_lost))
        writer = Writer(database, checkpoint=checkpoint, own=own)
        with opening(database):
            return (writer, Readers(database)), None
    host = host_of(settings, own_file.own_id(settings.data_dir / LOCK_FILE))
    seat = Seat(
        *(ports.new_id("daemon"), host, records),
        is_synchronous=settings.store.synchronous,
        own_file=own_file,
    )
    password = _secret(settings.store.password_file, redactor)
    store = open_fleet_store(
        settings.store.url, settings.data_dir, checkpoint=checkpoint, seat=seat, password=password
    )
    return store, seat


async def _once_open(
    open_store: Callable[[], Opened], wait: Callable[[Refused | None], Awaitable[None]]
) -> Opened:
    """Open the ledger of a fleet as soon as the hosts of its database answer that it must wait for."""
    while True:
        try:
            opened = await asyncio.to_thread(open_store)
            await wait(None)
            return opened
        except Refused as refused:
            if "waits_for" not in refused.context:
                raise
            await wait(refused)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _require_right_clock(providers: Sequence[ChainProvider], now_ms: Callable[[], int]) -> None:
    """Refuse a wrong local clock (`clock_skew`). Providers that give no time are ignored."""

    async def ask(provider: ChainProvider) -> int | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_PATIENCE_S):
                read = await provider.clock_off_s(now_ms)
                return read.value if isinstance(read, Found) else None
        return None

    offsets_s = await asyncio.gather(*map(ask, providers))
    require_right_clock([off_s for off_s in offsets_s if off_s is not None])


def _egress(settings: Settings) -> Egress:
    """Return the rules for where calls to merchants may go."""
    origins = (merchant.origin for merchant in settings.merchants.values() if merchant.allow_private_network)
    return Egress(frozenset(urlsplit(origin).hostname or "" for origin in origins))


def _links(settings: Settings, redactor: Redactor) -> ApprovalLinks | None:
    """Set up approval links, if they are configured. Their key is created when it is first needed."""
    if settings.approvals.link_origin is None:
        return None
    path = settings.data_dir / LINKS_KEY_FILE
    if os.path.lexists(path):
        secret = read_secret_file(path)
    else:  # not read back: the sandbox hides new files beside the keystore
        secret = SystemRandomness().token_hex(KEY_BYTES)
        make_secret_file(path, secret)
    try:
        key = bytes.fromhex(secret)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise Refused(
            "config_invalid", f"{path} is not a valid link key: remove it, and the next start makes a new one"
        )
    redactor.register(secret)
    redactor.register(key)
    return ApprovalLinks(settings.approvals.link_origin, key)


def _link_host(links: ApprovalLinks | None) -> str | None:
    """Return the name that `Host` has in requests for approval links."""
    return None if links is None else urlsplit(links.origin).hostname


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


def _noting(fleet: Fleet) -> Callable[[Unit, Settings], None]:
    """What a reload of the config tells the rest of a fleet."""

    def note(unit: Unit, settings: Settings) -> None:
        if isinstance(fleet, SharedFleet):
            fleet.note_settings(unit, shared_settings_hashes(settings))

    return note


def _read_on_sighup(config_reload: ConfigReload) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def start_reload() -> None:
        task = asyncio.create_task(config_reload.run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, start_reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _stop_without_lease(is_lost: threading.Event) -> None:
    """Stop after the lease is lost: nothing can be written, so nothing is signed or newly submitted."""
    if not is_lost.is_set():
        is_lost.set()
        _stop()


def _stop() -> None:
    """Stop as by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def _put_first(unit: Unit, key: str, value: str) -> None:
    """Another daemon of a fleet may start at the same time."""
    if about.meta(unit.conn, key) is None:
        writes.put_meta(unit, key, value)


async def _bind(writer: Writer, readers: Readers, settings: Settings, own: Address) -> None:
    """Bind the database to one network and one address for good."""
    for key, value in (("network", settings.network), ("address", own.text)):
        bound = about.meta(readers.conn, key)
        if bound is None:
            await writer.run("bind", partial(_put_first, key=key, value=value))
            bound = about.meta(readers.conn, key)
        if bound != value:
            raise Refused(
                "config_invalid", f"ledger.db belongs to {key} {bound}, but the configuration says {value}"
            )


def make_config(settings: Settings, own: Address, redactor: Redactor) -> AgentConfig:
    """Convert the settings to the agent's config. Merchants' API keys are read and redacted here."""
    keys = {
        name: _secret(merchant.api_key_file, redactor, read_header_secret)
        for name, merchant in settings.merchants.items()
    }
    return file_config(settings, own, keys)


def _target(settings: NotificationSettings, redactor: Redactor, fleet: Fleet, bots: set[str]) -> TargetPort:
    """Build a target of notifications, by its kind.

    A webhook's key is redacted in the log as bytes too, which lack the prefix. The URL of a push is a secret: it
    names a closed topic or channel. `bots`: tokens of earlier targets. Two with one bot would take each other's
    presses.
    """
    if settings.kind == "telegram":
        token = bot_token(_secret(settings.secret_file, redactor) or "")
        if token in bots:
            raise Refused(
                "config_invalid", f"notifications: {settings.name} needs a bot of its own, not another target's"
            )
        bots.add(token)
        return TelegramTarget(settings.name, TelegramBot(settings.url, token), fleet)
    if settings.kind != "webhook":
        redactor.register(settings.url)
        return Push(settings.kind, settings.url, _secret(settings.secret_file, redactor, read_header_secret))
    key = signing_key(_secret(settings.secret_file, redactor) or "")
    redactor.register(key)
    return Webhook(settings.url, key)


def _secret(path: Path | None, redactor: Redactor, read: Callable[[Path], str] = read_secret_file) -> str | None:
    """Read a secret, and redact it in the log."""
    if path is None:
        return None
    secret = read(path)
    # a very short secret may be a common word: it is not redacted, but it is never logged
    if len(secret) >= SECRET_LENGTH_MIN:
        redactor.register(secret)
    return secret
