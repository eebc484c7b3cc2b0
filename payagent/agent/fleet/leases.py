"""The accounts that this daemon holds: it takes them, renews their leases and gives some back.

Start at `Leases.keep`.

Never: keeps more than its part of the accounts while nothing of them is being signed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog

from payagent.agent.context import AgentContext
from payagent.agent.fleet import failover
from payagent.agent.fleet.fleet import HeldAccount
from payagent.core.problems import Refused
from payagent.store.db.fence import Seat, unproven
from payagent.store.db.unit import Unit
from payagent.store.rows import fleet, onchain
from payagent.store.rows.fleet import AccountRow, DaemonRow

TAKE_S = 1
"""How often a daemon looks for an account that nobody holds."""

BLIND_MS = 30_000
"""How long a daemon keeps its accounts from the others without a provider that it believes."""

log = structlog.get_logger("payagent.fleet")


@dataclass(frozen=True, slots=True)
class Parts:
    """Starts and stops what runs for an account. `visit` makes the same without a job, to quote from it."""

    visit: Callable[[int], HeldAccount]
    start: Callable[[int], Awaitable[HeldAccount]]
    stop: Callable[[HeldAccount], Awaitable[None]]


class Leases:
    """The leases of one daemon. `held`: the accounts that run here; `seat` says whether they may commit."""

    def __init__(
        self, context: AgentContext, me: DaemonRow, seat: Seat, addresses: tuple[str, ...], parts: Parts
    ) -> None:
        self.held: dict[int, HeldAccount] = {}
        self.me = me
        self.seat = seat
        self.addresses = addresses
        self.parts = parts
        self._context = context
        self._stopping: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._has_joined = False
        self._known: frozenset[str] = frozenset()
        self._renewed_s = self._loop.time()
        self._behind_seq = 0
        self._saw_chain_ms: int | None = None

    @property
    def lag_s(self) -> float:
        """Seconds since the last renewal."""
        return self._loop.time() - self._renewed_s

    # --- join and leave

    async def join(self) -> None:
        """Register this daemon and take its part of the accounts.

        Waits while the lease of a killed daemon of this id runs on.
        Refused: `config_invalid` if the fleet has a newer version, or another config or wallet; `already_running`
        if another daemon has this id and renews.
        """
        seen: set[object] = set()
        while not self._has_joined:
            try:
                await self._context.write("join", self._join)
                self._has_joined = True
            except Refused as refused:
                seen.add(refused.context.get("seen_ms"))
                if refused.code != "already_running" or len(seen) > 2:  # a last renewal may land after its death
                    raise
                log.info("fleet.join_waits", why=refused.detail)
                await asyncio.sleep(TAKE_S)
        self._behind_seq, _, _ = onchain.last_of_wallet(self._context.conn, "ledger_behind")
        self.seat.on_lost, self.seat.on_connect = self._note_lost, self._check_records
        await self.keep()

    def _join(self, unit: Unit) -> None:
        for account, address in enumerate(self.addresses):
            fleet.add_account(unit, account, address)
        for row in fleet.all_accounts(unit.conn):
            if row.account >= len(self.addresses) or row.address != self.addresses[row.account]:
                raise Refused(
                    "config_invalid",
                    f"account {row.account} of this fleet is {row.address}, which is not among the "
                    f"{len(self.addresses)} accounts of this keystore. Use the fleet's recovery words, "
                    "keystore.account and wallet.accounts",
                )
        self._register(unit, self._context.ports.clock.now_ms())

    def _check_records(self, unit: Unit) -> None:
        """Called on the writer's thread."""
        failover.check_records(unit, self.seat, fleet.database_ms(unit.conn, self._context.ports.clock.now_ms()))

    def _register(self, unit: Unit, now_ms: int) -> None:
        """Add this daemon to those of the fleet, and forget those that do not return.

        Refused: as `join`, by a daemon that was not there when this one last renewed, or that has its id.
        """
        clock_ms = fleet.database_ms(unit.conn, now_ms)
        failover.note_awaited(unit, clock_ms)
        for one in fleet.all_daemons(unit.conn):
            is_own = fleet.own_id(one.host) == fleet.own_id(self.me.host)
            if fleet.is_living(one, clock_ms):
                if is_own:
                    raise Refused(
                        "already_running",
                        f"{one.host} runs, and this daemon has its id: one machine is a copy of the other. "
                        "Nothing was changed. Give the copy a data folder of its own, as a new machine gets one",
                        seen_ms=one.seen_at_ms,
                    )
                if one.id not in self._known:
                    require_alike(one, self.me)
            elif is_own or not fleet.may_return(one, clock_ms):
                fleet.forget_daemon(unit, one.id)
        fleet.register_daemon(unit, replace(self.me, seen_at_ms=now_ms))

    async def leave(self, serving: Mapping[str, asyncio.Task[None]]) -> None:
        """Stop what runs for the accounts, wait for what is served, and give all accounts back.

        Writes nothing without `join`.
        """
        async with self._lock:
            for held in self.held.values():
                self._stop(held)
            self.held.clear()
            renewing = asyncio.ensure_future(every(fleet.RENEW_EVERY_S, self.renew_meanwhile))
            try:
                await asyncio.gather(*serving.values(), *self._stopping, return_exceptions=True)
            finally:
                renewing.cancel()  # a renewal that is queued already comes before the next commit
            if not self._has_joined:
                return

            def job(unit: Unit) -> None:
                for account in sorted(self.seat.held):
                    self._let_go(unit, account)
                fleet.forget_host(unit, self.me.host)

            with suppress(Refused):  # without the database the leases end by themselves
                await self._context.write("lease", job)

    def note_settings(self, unit: Unit, config_hash: str) -> None:
        """Inside the commit of a reload: this daemon has other settings now."""
        fleet.set_config_hash(unit, self.me.id, config_hash)
        unit.undo(partial(setattr, self, "me", self.me))
        self.me = replace(self.me, config_hash=config_hash)

    # --- keep

    async def keep(self) -> None:
        """Renew the leases, take what is free up to this daemon's part, and give back what is above it.

        A daemon that cannot read the chain does neither: others that can take its accounts.
        """
        async with self._lock:
            if (part := await self._renew(may_take=True)) is None:
                return
            taken = {one: epoch for one, epoch in sorted(self.seat.held.items()) if one not in self.held}
            for account, epoch in taken.items():
                held = self.held[account] = await self.parts.start(account)
                if self.seat.held.get(account) == epoch:
                    self.note_proofs()
                    log.warning("fleet.account_taken", account=account, epoch=epoch)
                else:  # lost meanwhile
                    held.agent.context.is_lost = True
                    self.lose(account)
            for account in sorted(self.held, reverse=True)[: max(len(self.held) - part, 0)]:
                if account in self.held and not self.held[account].agent.signing.claimed:
                    await self._give_back(account)

    async def renew_meanwhile(self) -> None:
        """Renew what is held, also what is being given back, while `keep` starts and stops accounts."""
        if self._lock.locked():
            await self._renew(may_take=False)

    async def take_what_is_free(self) -> None:
        """Take an account that was given back, or whose holder died, before the next renewal is due."""
        conn = self._context.conn
        clock_ms = fleet.database_ms(conn, self._context.ports.clock.now_ms())
        if any(self._is_free(row, clock_ms) for row in fleet.all_accounts(conn)):
            await self.keep()

    async def _renew(self, *, may_take: bool) -> int | None:
        """Renew the leases. Returns this daemon's part of the accounts; None if it cannot read the chain."""
        now_ms, me, before = self._context.ports.clock.now_ms(), self.me.id, self.seat.held

        def job(unit: Unit) -> tuple[int, bool, frozenset[str]] | None:
            clock_ms = fleet.database_ms(unit.conn, now_ms)
            self.seat.behind_seq, _, _ = onchain.last_of_wallet(unit.conn, "ledger_behind")
            if self._is_blind(clock_ms):
                return None
            if me not in {one.id for one in fleet.living_daemons(unit.conn, clock_ms)}:
                self._register(unit, now_ms)  # others took it for dead, and may have joined meanwhile
            fleet.renew(unit, me, sorted(self.seat.held), now_ms)
            living = len(fleet.living_daemons(unit.conn, clock_ms))
            rows = fleet.all_accounts(unit.conn)
            part = -(-len(rows) // max(living, 1))
            wanted = self._wanted(rows, part, clock_ms) if may_take else []
            self.seat.hold(unit, fleet.take_accounts(unit, me, wanted, now_ms) if wanted else {})
            known = frozenset(one.id for one in fleet.all_daemons(unit.conn))
            return part, failover.prove(unit, self.seat, clock_ms), known

        if (found := await self._context.write("lease", job)) is None:
            return None
        part, has_proven, self._known = found
        self._renewed_s = self._loop.time()
        if has_proven or self.seat.held != before:
            # its fence reads what the last commits wrote
            await self._context.write("lease", lambda _unit: None)
        return part

    def _wanted(self, rows: list[AccountRow], part: int, clock_ms: int) -> list[int]:
        """The accounts to take: those that were lost and have no other holder, and free ones up to the part."""
        held = self.seat.held
        own = [row.account for row in rows if row.account not in held and row.holder == self.me.id]
        free = [row.account for row in rows if row.holder != self.me.id and self._is_free(row, clock_ms)]
        return own + free[: max(part - len(held) - len(own), 0)]

    def _is_free(self, row: AccountRow, clock_ms: int) -> bool:
        """Whether a daemon may take the account, which this one does not hold."""
        return row.account not in self.seat.held and (row.holder is None or row.until_ms < clock_ms)

    def _is_blind(self, clock_ms: int) -> bool:
        """Whether no pass has believed a provider for a while."""
        if self._saw_chain_ms is None or None in self._context.providers.values():
            self._saw_chain_ms = clock_ms
        return clock_ms > self._saw_chain_ms + BLIND_MS

    def note_proofs(self) -> None:
        """Let each account held here sign only if it is proven, as of the last commit."""
        for account, held in self.held.items():
            if account in self.seat.held:  # else it was lost, and no commit may be missing
                held.agent.context.chain.unproven = (
                    None if self.seat.is_proven(account) else unproven(account).detail
                )

    # --- give back and lose

    async def _give_back(self, account: int) -> None:
        if (held := self.held.pop(account, None)) is None:
            return  # it was lost while another was given back
        await self.parts.stop(held)
        held.agent.context.is_lost = True
        await self._context.write("lease", partial(self._let_go, account=account))
        log.warning("fleet.account_given_back", account=account)

    def _let_go(self, unit: Unit, account: int) -> None:
        fleet.give_back(unit, self.me.id, account)
        self.seat.let_go(unit, account)

    def _note_lost(self, account: int) -> None:
        """Called on the writer's thread, before the same commit may take the account again."""
        if (held := self.held.get(account)) is not None:
            held.agent.context.is_lost = True
        self._loop.call_soon_threadsafe(self.lose, account)

    def lose(self, account: int) -> None:
        """Another daemon has the account, or it must be taken again: drop what this one knows of it."""
        if (held := self.held.pop(account, None)) is not None:
            log.warning("fleet.account_lost", account=account)
            self._stop(held)

    def begin_anew_if_behind(self) -> None:
        """Begin each account held here anew, as after a takeover: a daemon noticed that the ledger is behind."""
        behind_seq, _, _ = onchain.last_of_wallet(self._context.conn, "ledger_behind")
        if behind_seq != self._behind_seq:  # lower, in an older ledger
            self._behind_seq = behind_seq
            for account, held in tuple(self.held.items()):
                held.agent.context.is_lost = True
                self.lose(account)

    def _stop(self, held: HeldAccount) -> None:
        task = asyncio.ensure_future(self.parts.stop(held))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


async def every(seconds: float, run_once: Callable[[], Awaitable[None]]) -> None:
    """Run again and again, until cancelled. An error delays only the next run."""
    failure = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            await run_once()
            failure = ""
        except Exception as error:
            if repr(error) != failure:
                failure = repr(error)
                log.warning("fleet.failed", error=failure, exc_info=not isinstance(error, Refused))


def require_alike(one: DaemonRow, me: DaemonRow) -> None:
    """Refuse (`config_invalid`) to join a fleet whose living daemon has a newer version or another config."""
    if _release(one.version) > _release(me.version):
        raise Refused(
            "config_invalid",
            f"the daemon on {one.host} runs payagent {one.version}, this is {me.version}. Nothing was changed. "
            f"Install {one.version} here too",
        )
    theirs, ours = json.loads(one.config_hash), json.loads(me.config_hash)
    if sections := sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name)):
        raise Refused(
            "config_invalid",
            f"the daemon on {one.host} has other settings in {', '.join(sections)}. Nothing was changed. Give both"
            " the same values",
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
