"""Puts together what pays and its jobs, and holds the order in which they start and stop. Begin with `running`.

Never: answers a request.
"""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from payagent.agent.agent import Agent
from payagent.agent.base.chain_view import require_right_clock
from payagent.agent.base.config import AgentConfig, file_config
from payagent.agent.base.ports import Ports, Randomness
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.fleet.fleet import Fleet, HeldAccount
from payagent.agent.fleet.leases import Parts
from payagent.agent.fleet.shared import NoSigner, SharedFleet
from payagent.agent.operator.alerts import AlertMonitor
from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.agent.operator.notifier import Notifier, TargetPort, take_targets
from payagent.agent.operator.telegram import TelegramTarget
from payagent.agent.topups.runner import TopupRunner
from payagent.api.http.listeners import Listeners
from payagent.api.routes.health import Heartbeat
from payagent.chain.open import opened
from payagent.chain.provider import ChainProvider, Found
from payagent.core.address import Address
from payagent.core.problems import Refused
from payagent.core.version import VERSION
from payagent.log import SECRET_LENGTH_MIN, Redactor
from payagent.outbound.egress import Egress
from payagent.outbound.merchant_client import MerchantClient
from payagent.outbound.push import Push
from payagent.outbound.telegram import TelegramBot, bot_token
from payagent.outbound.webhook import Webhook, signing_key
from payagent.scheduler import DEVNET_INTERVALS, NETWORK_INTERVALS, Scheduler
from payagent.secret_file import make_secret_file, read_header_secret, read_secret_file
from payagent.settings.paths import LEDGER_FILE, LINKS_KEY_FILE, host_of
from payagent.settings.schema import NotificationSettings, Settings, shared_settings_hashes
from payagent.signer.client import SignerProcess
from payagent.store.db.committer import Checkpoint, Ownership
from payagent.store.db.daemon_file import DAEMON_FILE, DaemonFile
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.lease import LOCK_FILE
from payagent.store.db.opening import opening
from payagent.store.db.readers import Readers
from payagent.store.db.signer_record import SignerFile, signer_file
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import about, writes
from payagent.store.rows.fleet import DaemonRow

Running = tuple[Fleet, list[Notifier], Heartbeat, ApprovalLinks | None, Egress]
"""What answers requests, what tells the targets, how the passes over the chain go, and what both ways out need."""

if TYPE_CHECKING:
    from payagent.store.db.ceiling_file import CeilingFile

Store = tuple[Writer, Readers]
Opened = tuple[Store, Seat | None]
"""The ledger, and the daemon's seat in a fleet."""

CLOCK_PATIENCE_S = 5.0
"""How long a start waits for a provider's time."""


@dataclass(frozen=True, slots=True)
class Startup:
    """What a daemon has once its key is unlocked and its ports are open."""

    settings: Settings
    config: Path
    ports: Ports
    signer: SignerProcess
    listeners: Listeners
    redactor: Redactor
    checkpoint: Checkpoint


@asynccontextmanager
async def running(startup: Startup, wait: Callable[[Refused | None], Awaitable[None]]) -> AsyncIterator[Running]:
    """Run what pays and its jobs, and stop them in an order that cuts nothing off.

    `wait` is called with the reason while the hosts of a fleet's database do not answer, and with None once one
    does.
    """
    settings, redactor, is_lost = startup.settings, startup.redactor, threading.Event()
    links = _approval_links(settings, redactor, startup.ports.randomness)
    private = (merchant.origin for merchant in settings.merchants.values() if merchant.allow_private_network)
    egress = Egress(frozenset(urlsplit(origin).hostname or "" for origin in private))
    async with AsyncExitStack() as stack:
        records = {
            number: SignerFile(settings.data_dir / signer_file(number))
            for number in range(len(startup.signer.accounts))
        }
        for record in records.values():
            stack.callback(record.close)
        open_store = partial(_open_store, startup, records, DaemonFile(settings.data_dir / DAEMON_FILE), is_lost)
        store, seat = open_store() if settings.store.url is None else await _once_open(open_store, wait)
        stack.callback(store[0].close)
        providers = [
            await stack.enter_async_context(
                opened(name, provider, settings.network, partial(_secret, redactor=redactor))
            )
            for name, provider in settings.chain.named.items()
        ]
        merchants = MerchantClient(egress.transport())
        stack.push_async_callback(merchants.aclose)
        await _require_right_clock(providers, startup.ports.clock.now_ms)
        own = startup.signer.accounts[0].address
        config = make_config(settings, own, redactor)
        with opening(settings.store.url or settings.data_dir / LEDGER_FILE):
            await _bind(*store, settings.network, own)
            signer = startup.signer.accounts[0] if seat is None else NoSigner()
            front = Agent(config, startup.ports, *store, providers, signer)
        if config.channels is None:
            _require_none_locked(front)
        first = HeldAccount(front, TopupRunner(front, merchants))
        jobs = AccountJobs(startup, front, store, merchants, records)
        fleet = Fleet(first) if seat is None else _shared_fleet(startup, first, seat, jobs)
        bots: set[str] = set()
        for one in settings.notifications:
            target = jobs.targets[one.name] = _target(one, redactor, fleet, bots)
            stack.push_async_callback(target.aclose)
            jobs.notifiers.append(Notifier(front.context, one, target, links))
        if isinstance(fleet, SharedFleet):
            stack.push_async_callback(fleet.leave)
            await fleet.leases.join()
            stack.push_async_callback(end, asyncio.create_task(fleet.run()))
        else:
            with opening(settings.data_dir / LEDGER_FILE):
                await jobs.start(first)
            stack.push_async_callback(jobs.stop, first)
        yield fleet, jobs.notifiers, jobs.heartbeat, links, egress
    if is_lost.is_set():
        raise Refused("lease_lost", f"another daemon has opened {settings.data_dir / LEDGER_FILE}")


def _require_none_locked(front: Agent) -> None:
    """Refused `config_invalid` if channels hold money: nothing would bring it back while channels are off."""
    from payagent.store.rows.channels import locked_channels

    if held := locked_channels(front.context.conn):
        raise Refused(
            "config_invalid",
            f"channels.enabled is false, and {len(held)} channels hold money",
            money="Nothing was signed. What is locked returns only while channels are on.",
            fix="Set channels.enabled = true, close the channels, and turn it off once they have ended.",
        )


class AccountJobs:
    """Builds the agent of an account, and runs its jobs while this daemon holds it.

    `targets` and `notifiers` belong to all accounts, and run beside account 0.
    """

    def __init__(
        self,
        startup: Startup,
        front: Agent,
        store: Store,
        merchants: MerchantClient,
        records: Mapping[int, SignerFile],
    ) -> None:
        self.targets: dict[str, TargetPort] = {}
        self.notifiers: list[Notifier] = []
        self._startup, self._front, self._store = startup, front, store
        self._merchants, self._records = merchants, records
        self._ceilings: dict[int, CeilingFile] = {}
        if front.channels is not None:
            from payagent.store.db import ceiling_file as file

            folder = startup.settings.data_dir
            self._ceilings = {number: file.CeilingFile(folder / file.ceiling_file(number)) for number in records}
        self._running: dict[HeldAccount, tuple[Scheduler, list[asyncio.Task[None]]]] = {}

    def visit(self, number: int) -> HeldAccount:
        """What pays from an account, without its jobs."""
        front, signer = self._front.context, self._startup.signer.accounts[number]
        own = replace(front.from_file, own=signer.address, account=number)
        agent = Agent(own, self._startup.ports, *self._store, (), signer, front)
        return HeldAccount(agent, TopupRunner(agent, self._merchants))

    async def start(self, held: HeldAccount) -> HeldAccount:
        """Recover what the ledger may lack of the account, then start its jobs."""
        context = held.agent.context
        recovery = Recovery(context, self._records[context.config.account])
        await recovery.begin()
        if held.agent.channels is not None:
            await held.agent.channels.calls.start(self._merchants, self._ceilings[context.config.account])
        if is_first := context.config.account == 0:
            await take_targets(self._front.context, list(self.targets))
        scheduler = Scheduler(
            held.agent,
            ChainSync(held.agent, self._merchants),
            AlertMonitor(context) if is_first else None,
            held.topups,
            recovery,
            DEVNET_INTERVALS if self._startup.settings.is_devnet else NETWORK_INTERVALS,
            self.notifiers if is_first else (),
        )
        scheduler.start()
        chats = [one for one in self.targets.values() if isinstance(one, TelegramTarget)] if is_first else []
        self._running[held] = scheduler, [asyncio.create_task(one.run()) for one in chats]
        return held

    async def stop(self, held: HeldAccount) -> None:
        """End the jobs of an account. A run that has begun is not cut off."""
        scheduler, chats = self._running.pop(held)
        await end(*chats)
        await scheduler.stop()
        if held.agent.channels is not None:
            held.agent.channels.calls.stop()

    def heartbeat(self) -> tuple[str | None, bool]:
        """As `Heartbeat`, for the passes of all accounts."""
        schedulers = [scheduler for scheduler, _ in self._running.values()]
        late = next((why for scheduler in schedulers if (why := scheduler.stale())), None)
        return late, not schedulers or any(scheduler.is_watching() for scheduler in schedulers)


def _shared_fleet(startup: Startup, first: HeldAccount, seat: Seat, jobs: AccountJobs) -> SharedFleet:
    me = DaemonRow(
        *(seat.holder, seat.host, startup.listeners.url, shared_settings_hashes(startup.settings), VERSION),
        startup.ports.clock.now_ms(),
    )
    addresses = tuple(one.address.text for one in startup.signer.accounts)
    parts = Parts(jobs.visit, lambda number: jobs.start(jobs.visit(number)), jobs.stop)
    return SharedFleet(first, me, seat, addresses, parts)


def note_settings(fleet: Fleet, unit: Unit, settings: Settings) -> None:
    """Tell the rest of a fleet, in the commit of a reload, that this daemon has other settings now."""
    if isinstance(fleet, SharedFleet):
        fleet.leases.note_settings(unit, shared_settings_hashes(settings))


async def _bind(writer: Writer, readers: Readers, network: str, own: Address) -> None:
    """Bind the database to one network and one address for good."""
    for key, value in (("network", network), ("address", own.text)):
        if about.meta(readers.conn, key) is None:
            await writer.run("bind", partial(_put_first, key=key, value=value))
        if (bound := about.meta(readers.conn, key)) != value:
            raise Refused(
                "config_invalid", f"ledger.db belongs to {key} {bound}, but the configuration says {value}"
            )


def _put_first(unit: Unit, key: str, value: str) -> None:
    """Another daemon of a fleet may start at the same time."""
    if about.meta(unit.conn, key) is None:
        writes.put_meta(unit, key, value)


def _open_store(
    startup: Startup, records: Mapping[int, SignerFile], own_file: DaemonFile, is_lost: threading.Event
) -> Opened:
    """Open SQLite, or join a PostgreSQL fleet. `is_lost` is set if another daemon opens the SQLite file."""
    settings, new_id, checkpoint = startup.settings, startup.ports.new_id, startup.checkpoint
    if settings.store.url is None:
        database = settings.data_dir / LEDGER_FILE
        own = Ownership(new_id("boot"), {0: records[0]}, partial(stop_without_lease, is_lost))
        writer = Writer(database, checkpoint=checkpoint, own=own)
        with opening(database):
            return (writer, Readers(database)), None
    host = host_of(settings, own_file.own_id(settings.data_dir / LOCK_FILE))
    seat = Seat(
        *(new_id("daemon"), host, records),
        is_synchronous=settings.store.synchronous,
        own_file=own_file,
    )
    password = _secret(settings.store.password_file, startup.redactor)
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


async def _require_right_clock(providers: Sequence[ChainProvider], now_ms: Callable[[], int]) -> None:
    """Refuse a wrong local clock (`clock_skew`). Providers that give no time are ignored."""

    async def ask(provider: ChainProvider) -> list[int]:
        with suppress(TimeoutError):
            read = await asyncio.wait_for(provider.clock_off_s(now_ms), CLOCK_PATIENCE_S)
            return [read.value] if isinstance(read, Found) else []
        return []

    require_right_clock([off_s for told in await asyncio.gather(*map(ask, providers)) for off_s in told])


def _secret(path: Path | None, redactor: Redactor, read: Callable[[Path], str] = read_secret_file) -> str | None:
    """Read a secret, and redact it in the log."""
    if path is None:
        return None
    secret = read(path)
    # a very short secret may be a common word: it is not redacted, but it is never logged
    if len(secret) >= SECRET_LENGTH_MIN:
        redactor.register(secret)
    return secret


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


def _approval_links(settings: Settings, redactor: Redactor, randomness: Randomness) -> ApprovalLinks | None:
    """Set up approval links, if they are configured. Their key is created when it is first needed."""
    if settings.approvals.link_origin is None:
        return None
    path = settings.data_dir / LINKS_KEY_FILE
    if os.path.lexists(path):
        secret = read_secret_file(path)
    else:  # not read back: the sandbox hides new files beside the keystore
        secret = randomness.token_hex(KEY_BYTES)
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


class StoppedError(Exception):
    """A signal ended the daemon while it waited for its database."""


def stop() -> None:
    """Stop as by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def stop_without_lease(is_lost: threading.Event) -> None:
    """Stop after the lease is lost: nothing can be written, so nothing is signed or newly submitted."""
    if not is_lost.is_set():
        is_lost.set()
        stop()


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
