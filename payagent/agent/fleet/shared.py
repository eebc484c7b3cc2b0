"""`SharedFleet`: one of several daemons on one ledger. It takes accounts, renews their leases and gives some back.

A request goes to the account that its payment has. For a new purchase that is the merchant's home account if it
sells prepaid balance, else an account held here that has the funds, else one held elsewhere. What the holder of
another account must do is a row in `admission_requests`: the holder does it and ends the row, and the daemon that
asked answers as its own. Both see it by polling the ledger.
Start at `run`.

Never: signs for an account that it does not hold; keeps more than its part of the accounts while nothing of them
is being signed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import TopupSource, overlaid
from payagent.agent.base.requests import (
    AdmittedPayment,
    Approver,
    PaymentIntent,
    PaymentQuote,
    PaymentRequest,
    PrepaidQuote,
)
from payagent.agent.chain_sync.providers import ProviderSelection
from payagent.agent.fleet import failover
from payagent.agent.fleet.fleet import Fleet, FleetStatus, HeldAccount, no_account
from payagent.agent.fleet.requests import (
    Outcome,
    dump_payment_request,
    dump_refusal,
    load_payment_request,
    read_outcome,
)
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.lifecycle import SIGNING_PATIENCE_S
from payagent.agent.topups.orders import TopupGoal
from payagent.agent.topups.runner import TopupPlan
from payagent.core.address import Address, parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import is_batch
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import UNSIGNED
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.store.db.fence import Seat, unproven
from payagent.store.db.unit import Unit
from payagent.store.rows import events, fleet, intents, onchain, payments, prepaid, topups
from payagent.store.rows.attempts_and_utxos import free_units
from payagent.store.rows.fleet import AdmissionRequest, DaemonRow, RequestKind
from payagent.store.rows.topups import TopupRow

T = TypeVar("T")

POLL_S = 0.1
"""How often a daemon looks whether anything was committed."""

TAKE_S = 1
"""How often a daemon looks for an account that nobody holds."""

LOOK_S = 10
"""How often a daemon without accounts asks for the newest block."""

BLIND_MS = 30_000
"""How long a daemon keeps its accounts from the others without a provider that it believes."""

ASK_MS = 30_000
"""How long the holder of an account may take to begin what it is asked. A takeover fits into it."""

TRIES = 3
"""How often a request is made again after this daemon lost the account that was to carry it out."""

LACKS_FUNDS = frozenset({"funds_pending", "not_enough_funds", "utxos_too_small"})
"""Refusals by an account whose UTxOs do not suffice now. Another account's may."""

log = structlog.get_logger("payagent.fleet")


@dataclass(frozen=True, slots=True)
class Parts:
    """Starts and stops what runs for an account. `visit` makes the same without a job, to quote from it."""

    visit: Callable[[int], HeldAccount]
    start: Callable[[int], Awaitable[HeldAccount]]
    stop: Callable[[HeldAccount], Awaitable[None]]


class SharedFleet(Fleet):
    """One daemon of a fleet. `front` holds no account: its context's `account` is None, and its signer refuses."""

    def __init__(self, front: HeldAccount, me: DaemonRow, seat: Seat, addresses: tuple[str, ...], parts: Parts):
        super().__init__(front)
        front.agent.context.account = None
        self.held: dict[int, HeldAccount] = {}
        self._me = me
        self._seat = seat
        self._addresses = addresses
        self._parts = parts
        self._providers = ProviderSelection(front.agent.context)
        self._seq = 0
        self._asked: set[str] = set()
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._leases = asyncio.Lock()
        self._has_joined = False
        self._known: frozenset[str] = frozenset()
        self._renewed_s = self._loop.time()
        self._behind_seq = 0
        self._saw_chain_ms: int | None = None

    def status(self) -> FleetStatus:
        conn, now_ms = self.context.conn, self.context.ports.clock.now_ms()
        at_ms, rows, daemons = fleet.database_ms(conn, now_ms), fleet.all_accounts(conn), fleet.all_daemons(conn)
        living = {one.id: one for one in daemons if fleet.is_living(one, at_ms)}
        free = [row.account for row in rows if row.holder not in living]
        lag_s = self._loop.time() - self._renewed_s
        problem = None
        if lag_s * 1000 > fleet.LEASE_MS:
            problem = f"this daemon renewed its leases {lag_s:.0f} s ago, so another may take its accounts"
        elif len(free) == len(rows):  # one that is free is soon taken, and others pay meanwhile
            problem = "no daemon holds an account"
        return FleetStatus(tuple(sorted(self.held)), tuple(rows), tuple(daemons), living, at_ms, lag_s, problem)

    # --- joining, leases

    async def join(self) -> None:
        """Register this daemon and take its part of the accounts.

        Waits while the lease of a killed daemon of this id runs on.
        Refused: `config_invalid` if the fleet has a newer version, or another config or wallet; `already_running`
        if another daemon has this id and renews.
        """

        def job(unit: Unit) -> None:
            for account, address in enumerate(self._addresses):
                fleet.add_account(unit, account, address)
            for row in fleet.all_accounts(unit.conn):
                if row.account >= len(self._addresses) or row.address != self._addresses[row.account]:
                    raise Refused(
                        "config_invalid",
                        f"account {row.account} of this fleet is {row.address}, which is not among the "
                        f"{len(self._addresses)} accounts of this keystore. Use the fleet's recovery words, "
                        "keystore.account and wallet.accounts",
                    )
            self._register(unit, self.context.ports.clock.now_ms())

        seen: set[object] = set()
        while not self._has_joined:
            try:
                await self.context.write("join", job)
                self._has_joined = True
            except Refused as refused:
                seen.add(refused.context.get("seen_ms"))
                if refused.code != "already_running" or len(seen) > 2:  # a last renewal may land after its death
                    raise
                log.info("fleet.join_waits", why=refused.detail)
                await asyncio.sleep(TAKE_S)
        self._behind_seq, _, _ = onchain.last_of_wallet(self.context.conn, "ledger_behind")
        self._seat.on_lost, self._seat.on_connect = self._tell_lost, self._check_records
        await self.keep_leases()

    def _check_records(self, unit: Unit) -> None:
        """Called on the writer's thread."""
        now_ms = fleet.database_ms(unit.conn, self.context.ports.clock.now_ms())
        failover.check_records(unit, self._seat, now_ms)

    def _register(self, unit: Unit, now_ms: int) -> None:
        """Add this daemon to those of the fleet, and forget those that do not return.

        Refused: as `join`, by a daemon that was not there when this one last renewed, or that has its id.
        """
        clock_ms = fleet.database_ms(unit.conn, now_ms)
        failover.note_awaited(unit, clock_ms)
        for one in fleet.all_daemons(unit.conn):
            is_own = fleet.own_id(one.host) == fleet.own_id(self._me.host)
            if fleet.is_living(one, clock_ms):
                if is_own:
                    raise Refused(
                        "already_running",
                        f"{one.host} runs, and this daemon has its id: one machine is a copy of the other. "
                        "Nothing was changed. Give the copy a data folder of its own, as a new machine gets one",
                        seen_ms=one.seen_at_ms,
                    )
                if one.id not in self._known:
                    require_alike(one, self._me)
            elif is_own or not fleet.may_return(one, clock_ms):
                fleet.forget_daemon(unit, one.id)
        fleet.register_daemon(unit, replace(self._me, seen_at_ms=now_ms))

    async def keep_leases(self) -> None:
        """Renew the leases, take what is free up to this daemon's part, and give back what is above it.

        A daemon that cannot read the chain does neither: others that can take its accounts.
        """
        async with self._leases:
            if (part := await self._renew(may_take=True)) is None:
                return
            taken = {one: epoch for one, epoch in sorted(self._seat.held.items()) if one not in self.held}
            for account, epoch in taken.items():
                held = self.held[account] = await self._parts.start(account)
                if self._seat.held.get(account) != epoch:  # lost meanwhile
                    held.agent.context.is_lost = True
                    self._lose(account)
                    continue
                self._note_proofs()
                log.warning("fleet.account_taken", account=account, epoch=epoch)
            for account in sorted(self.held, reverse=True)[: max(len(self.held) - part, 0)]:
                if account in self.held and not self.held[account].agent.signing.claimed:
                    await self._give_back(account)

    async def renew_meanwhile(self) -> None:
        """Renew what is held, also what is being given back, while `keep_leases` starts and stops accounts."""
        if self._leases.locked():
            await self._renew(may_take=False)

    async def _renew(self, *, may_take: bool) -> int | None:
        """Renew the leases. Returns this daemon's part of the accounts; None if it cannot read the chain."""
        now_ms, me, before = self.context.ports.clock.now_ms(), self._me.id, self._seat.held

        def job(unit: Unit) -> tuple[int, bool, frozenset[str]] | None:
            clock_ms = fleet.database_ms(unit.conn, now_ms)
            self._seat.behind_seq, _, _ = onchain.last_of_wallet(unit.conn, "ledger_behind")
            if self._is_blind(clock_ms):
                return None
            if me not in {one.id for one in fleet.living_daemons(unit.conn, clock_ms)}:
                self._register(unit, now_ms)  # others took it for dead, and may have joined meanwhile
            fleet.renew(unit, me, sorted(self._seat.held), now_ms)
            living = len(fleet.living_daemons(unit.conn, clock_ms))
            rows, held = fleet.all_accounts(unit.conn), self._seat.held
            part = -(-len(rows) // max(living, 1))
            lost = [row for row in rows if may_take and row.account not in held]
            own = [row.account for row in lost if row.holder == me]  # nobody else takes these
            free = [
                row.account for row in lost if row.holder != me and (row.holder is None or row.until_ms < clock_ms)
            ]
            wanted = own + free[: max(part - len(held) - len(own), 0)]
            self._seat.hold(unit, fleet.take_accounts(unit, me, wanted, now_ms) if wanted else {})
            known = frozenset(one.id for one in fleet.all_daemons(unit.conn))
            return part, failover.prove(unit, self._seat, clock_ms), known

        found = await self.context.write("lease", job)
        if found is None:
            return None
        part, has_proven, self._known = found
        self._renewed_s = self._loop.time()
        if has_proven or self._seat.held != before:
            # its fence reads what the last commits wrote
            await self.context.write("lease", lambda _unit: None)
        return part

    def _is_blind(self, clock_ms: int) -> bool:
        """Whether no pass has believed a provider for a while."""
        if self._saw_chain_ms is None or None in self.context.providers.values():
            self._saw_chain_ms = clock_ms
        return clock_ms > self._saw_chain_ms + BLIND_MS

    def _note_proofs(self) -> None:
        for account, held in self.held.items():
            if account not in self._seat.held:
                continue  # it was lost, and no commit may be missing
            is_proven = self._seat.is_proven(account)
            held.agent.context.chain.unproven = None if is_proven else unproven(account).detail

    async def take_what_is_free(self) -> None:
        """Take an account that was given back, or whose holder died, before the next renewal is due."""
        conn, held = self.context.conn, self._seat.held
        clock_ms = fleet.database_ms(conn, self.context.ports.clock.now_ms())
        rows = fleet.all_accounts(conn)
        if any(row.account not in held and (row.holder is None or row.until_ms < clock_ms) for row in rows):
            await self.keep_leases()

    async def _give_back(self, account: int) -> None:
        if (held := self.held.pop(account, None)) is None:
            return  # it was lost while another was given back
        await self._parts.stop(held)
        held.agent.context.is_lost = True

        def job(unit: Unit) -> None:
            fleet.give_back(unit, self._me.id, account)
            self._seat.let_go(unit, account)

        await self.context.write("lease", job)
        log.warning("fleet.account_given_back", account=account)

    def _tell_lost(self, account: int) -> None:
        """Called on the writer's thread, before the same commit may take the account again."""
        if (held := self.held.get(account)) is not None:
            held.agent.context.is_lost = True
        self._loop.call_soon_threadsafe(self._lose, account)

    def _lose(self, account: int) -> None:
        """Another daemon has the account, or it must be taken again: drop what this one knows of it."""
        held = self.held.pop(account, None)
        if held is not None:
            log.warning("fleet.account_lost", account=account)
            self._spawn(self._parts.stop(held))

    async def leave(self) -> None:
        """Stop what runs for the accounts, give them all back and end. Without `join` it writes nothing."""
        for task in self._serving.values():
            task.cancel()
        async with self._leases:
            for held in self.held.values():
                self._spawn(self._parts.stop(held))
            self.held.clear()
            renewing = asyncio.ensure_future(self._every(fleet.RENEW_EVERY_S, self.renew_meanwhile))
            try:
                await asyncio.gather(*self._serving.values(), *self._tasks, return_exceptions=True)
            finally:
                renewing.cancel()  # a renewal that is queued already comes before the next commit
            if not self._has_joined:
                return

            def job(unit: Unit) -> None:
                for account in sorted(self._seat.held):
                    fleet.give_back(unit, self._me.id, account)
                    self._seat.let_go(unit, account)
                fleet.forget_host(unit, self._me.host)

            with suppress(Refused):  # without the database the leases end by themselves
                await self.context.write("lease", job)

    def note_settings(self, unit: Unit, config_hash: str) -> None:
        """Inside the commit of a reload: this daemon has other settings now."""
        fleet.set_config_hash(unit, self._me.id, config_hash)
        unit.undo(partial(setattr, self, "_me", self._me))
        self._me = replace(self._me, config_hash=config_hash)

    async def run(self) -> None:
        """Keep leases and poll, until cancelled. An error delays only the next run."""
        await asyncio.gather(
            self._every(fleet.RENEW_EVERY_S, self.keep_leases),
            self._every(fleet.RENEW_EVERY_S, self.renew_meanwhile),
            self._every(POLL_S, self.poll),
            self._every(LOOK_S, self.look),
            self._every(TAKE_S, self.take_what_is_free),
        )

    async def _every(self, seconds: float, run_once: Callable[[], Awaitable[None]]) -> None:
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

    def _spawn(self, work: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- polling

    async def poll(self) -> None:
        """Take in what other daemons committed, and begin what they ask of the accounts held here."""
        context = self.context
        seq = fleet.event_seq(context.conn)
        if seq != self._seq:
            changed, self._seq = events.payments_after(context.conn, self._seq), seq
            self._take_in_what_all_share()
            self._begin_anew_if_behind()
            for name in sorted(changed | self._asked):
                context.changes.notify(name)
        self._note_proofs()
        if self.held:
            now_ms = context.ports.clock.now_ms()
            contexts = [self.held[account].agent.context for account in sorted(self.held)]
            # an account that was just taken has to read the chain first
            best = next((one for one in contexts if one.chain.is_ready(now_ms)), contexts[0])
            _copy(best.chain, context.chain)
            context.providers, context.submit_providers = best.providers, best.submit_providers
            self._serve_requests()

    async def look(self) -> None:
        """Read the newest block while no account is held here: quotes and `readyz` need it."""
        if not self.held and (view := await self._providers.observe()) is not None:
            chain = self.context.chain
            self.context.take_tip(view.tip)
            chain.is_compared = True  # by the accounts' holders
            chain.behind = chain.unproven = None  # as an account that was held here may have been

    def _take_in_what_all_share(self) -> None:
        """The config with what was changed at run time, and whether an external spend froze the wallet."""
        front = self.context
        config, frozen = overlaid(front.from_file, front.conn), onchain.frozen_by(front.conn)
        if config != front.config:
            front.config = config
            front.admission.take(config)
        for context in (front, *(one.agent.context for one in self.held.values())):
            context.chain.external_spends = frozen
            if replace(context.config, own=config.own, account=config.account) != config:
                context.adopt(front)

    def _begin_anew_if_behind(self) -> None:
        """Begin each account held here anew, as after a takeover: a daemon noticed that the ledger is behind."""
        behind_seq, _, _ = onchain.last_of_wallet(self.context.conn, "ledger_behind")
        if behind_seq != self._behind_seq:  # lower, in an older ledger
            self._behind_seq = behind_seq
            for account, held in tuple(self.held.items()):
                held.agent.context.is_lost = True
                self._lose(account)

    def _serve_requests(self) -> None:
        now_ms = fleet.database_ms(self.context.conn, self.context.ports.clock.now_ms())
        # an account that was just taken has to read the chain first
        ready = [number for number, held in self.held.items() if held.agent.context.chain.tip is not None]
        for one in fleet.open_requests(self.context.conn, sorted(ready)):
            if one.id not in self._serving:
                is_late = one.ends_at_ms < now_ms
                self._serving[one.id] = task = asyncio.ensure_future(self._serve(one, is_late=is_late))
                task.add_done_callback(partial(self._served, one.id))

    def _served(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._serving[name]

    async def _serve(self, one: AdmissionRequest, *, is_late: bool) -> None:
        """Do what another daemon asks, and end its request."""
        try:
            if is_late:
                raise _not_taken(one.account)
            held = self.held[one.account]
            if one.kind == "pay":
                outcome = json.dumps(await self._pay_for(one, held))
            else:
                outcome = json.dumps(await self._carry_out(one.kind, json.loads(one.request), held))
        except Refused as refusal:
            if refusal.code == "lease_lost":
                return  # its next holder finds it open
            outcome = dump_refusal(refusal)
        now_ms = self.context.ports.clock.now_ms()
        await self.context.write("request", lambda unit: fleet.end_request(unit, one.id, outcome, now_ms))

    async def _pay_for(self, one: AdmissionRequest, held: HeldAccount) -> Outcome:
        now_ms = self.context.ports.clock.now_ms()

        def end(unit: Unit, admitted: AdmittedPayment) -> None:
            refusal = admitted.refusal
            outcome = _found(admitted.payment_id, admitted.is_new) if refusal is None else None
            text = json.dumps(outcome) if refusal is None else dump_refusal(refusal)
            fleet.end_request(unit, one.id, text, now_ms)

        row, is_new = await held.agent.pay(load_payment_request(one.request), end)
        return _found(row.id, is_new)

    async def _carry_out(self, kind: RequestKind, asked: Mapping[str, Any], held: HeldAccount) -> Outcome:
        """Do for an account held here what was asked of this daemon or of another."""
        if kind == "transfer":
            row, is_new = await self._transfer(held, **asked)
            return _found(row.id, is_new)
        if kind == "topup" and "goal" in asked:
            goal, source = asked["goal"], asked["goal"]["request"]
            source = None if source is None else TopupSource(**source)
            topup, is_new = await held.topups.order(
                asked["app_id"], asked["key"], TopupGoal(goal["origin"], goal["unit"], goal["units"], source)
            )
            return {"topup": topup.id, "is_new": is_new}
        if kind == "topup":
            return {"topup": (await held.topups.cancel(asked["topup_id"], asked["app_id"])).id}
        if kind == "cancel":
            return {"payment": (await held.agent.lifecycle.resolve(asked["payment_id"], asked["app_id"])).id}
        decide = held.agent.decisions.approve if kind == "approve" else held.agent.decisions.deny
        return {"payment": (await decide(asked["payment_id"], Approver(**asked["by"]))).id}

    async def _do(self, kind: RequestKind, asked: Mapping[str, object], account: int) -> Outcome:
        """Carry out what is asked of an account, here or at its holder."""
        if (held := self.held.get(account)) is not None:
            return await self._carry_out(kind, asked, held)
        return await self._ask(account, kind, json.dumps(asked))

    async def _ask(self, account: int, kind: RequestKind, request: str) -> Outcome:
        """Ask the account's holder, and wait for the outcome. Refused: as the holder refuses; `daemon_timeout`."""
        context = self.context
        name, now_ms = context.ports.new_id("ask"), context.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            ends_at_ms = fleet.database_ms(unit.conn, now_ms) + ASK_MS
            fleet.add_request(unit, AdmissionRequest(name, account, kind, self._me.id, request, ends_at_ms))

        self._asked.add(name)
        try:
            await context.write("ask", job)
            async with asyncio.timeout(ASK_MS / 1000):
                while (row := fleet.request_of(context.conn, name)) is None or row.outcome is None:
                    await context.changes.wait(name, POLL_S)
        except TimeoutError:
            raise _not_taken(account) from None
        finally:
            self._asked.discard(name)
        return read_outcome(row.outcome)

    # --- what the API asks

    async def pay(self, payment_request: PaymentRequest) -> tuple[PaymentRow, bool]:
        async def pay(account: int) -> tuple[PaymentRow, bool]:
            if (held := self.held.get(account)) is not None:
                return await held.agent.pay(payment_request)
            if (row := self.front.agent.existing(payment_request)) is not None and row.state not in UNSIGNED:
                return row, False
            found = await self._ask(account, "pay", dump_payment_request(payment_request))
            return await self._once_signed(found["payment"]), found["is_new"]

        row, is_new = await self._trying(lambda: self._accounts_for(payment_request), pay)
        return await self._once_noted(row), is_new

    async def quote(self, payment_request: PaymentRequest, count: int = 1) -> PaymentQuote:
        account, *_ = await self._accounts_for(payment_request)
        return await self._at(account).agent.quote(payment_request, count)

    def deliveries(self, payment_id: str) -> Deliveries:
        return self.held.get(self.context.payment(payment_id).account, self.front).agent.deliveries

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        return await self._order("approve", payment_id, by=asdict(by))

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        return await self._order("deny", payment_id, by=asdict(by))

    async def resolve(self, payment_id: str, app_id: str) -> PaymentRow:
        return await self._order("cancel", payment_id, app_id=app_id)

    async def _order(self, kind: RequestKind, payment_id: str, **asked: object) -> PaymentRow:
        async def accounts() -> list[int]:
            return [self.context.payment(payment_id).account]

        await self._trying(accounts, partial(self._do, kind, {"payment_id": payment_id, **asked}))
        return self.context.payment(payment_id)

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        return await self._ask_transfer(app_id, key, (asset, units), to=to.text, asset=asset, units=units)

    async def send_all(
        self, app_id: str, to: Address, key: str | None = None, account: int | None = None
    ) -> tuple[PaymentRow, bool]:
        if account is not None and account not in range(len(self._addresses)):
            raise no_account(account)
        if account is None and (key is None or self._known_account(app_id, f"key:{key}") is None):
            free = free_units(self.context.conn, LOVELACE)
            account = max(range(len(self._addresses)), key=lambda one: (free.get(one, 0), -one))
        return await self._ask_transfer(app_id, key, (LOVELACE, 1), account, to=to.text)

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        return await self._ask_transfer(app_id, key, (LOVELACE, count * lovelace), count=count, units=lovelace)

    async def _ask_transfer(
        self, app_id: str, key: str | None, needed: tuple[str, int], account: int | None = None, **asked: object
    ) -> tuple[PaymentRow, bool]:
        """`account`: the only one that may send; None: one that has what is needed.

        Without a key it gets one here, so it stays one transfer if the account's next holder carries it out.
        """
        key = self.context.ports.new_id("order") if key is None else key

        async def accounts() -> list[int]:
            known = self._known_account(app_id, f"key:{key}")
            chosen = account if known is None else known
            return self._able(needed) if chosen is None else [chosen]

        found = await self._trying(
            accounts, partial(self._do, "transfer", {"app_id": app_id, "key": key, **asked})
        )
        return await self._once_signed(found["payment"]), found["is_new"]

    async def _transfer(
        self,
        held: HeldAccount,
        app_id: str,
        key: str | None,
        to: str | None = None,
        asset: str | None = None,
        units: int = 0,
        count: int = 0,
    ) -> tuple[PaymentRow, bool]:
        transfers = held.agent.transfers
        if to is None:
            return await transfers.split(app_id, count, units, key)
        address = parse_address(to, held.agent.context.config.network)
        if asset is None:
            return await transfers.send_all(app_id, address, key)
        return await transfers.send(app_id, address, asset, units, key)

    async def order_topup(self, app_id: str, key: str | None, goal: TopupGoal) -> tuple[TopupRow, bool]:
        key = self.context.ports.new_id("order") if key is None else key  # as of a transfer
        asked = {"app_id": app_id, "key": key, "goal": asdict(goal)}
        found = await self._trying(lambda: self._home_of_topup(goal), partial(self._do, "topup", asked))
        return self.topups.find(found["topup"]), found["is_new"]

    async def plan_topup(self, app_id: str, goal: TopupGoal) -> TopupPlan | PrepaidQuote:
        (account,) = await self._home_of_topup(goal)
        return await self._at(account).topups.plan(app_id, goal)

    async def cancel_topup(self, topup_id: str, app_id: str) -> TopupRow:
        async def accounts() -> list[int]:
            return [prepaid.pool(self.context.conn, self.topups.find(topup_id).pool_id).account]

        await self._trying(accounts, partial(self._do, "topup", {"topup_id": topup_id, "app_id": app_id}))
        return self.topups.find(topup_id)

    # --- which account

    async def _trying(
        self, accounts: Callable[[], Awaitable[list[int]]], work: Callable[[int], Awaitable[T]]
    ) -> T:
        """Do the work for the first of the accounts. For the second, if the first lacks the funds.

        Done again if this daemon loses the account: its next holder finds what was done.
        """
        for _ in range(TRIES - 1):
            first, *others = await accounts()
            try:
                return await work(first)
            except Refused as refusal:
                if refusal.code in LACKS_FUNDS and others:
                    return await work(others[0])
                if refusal.code == "not_enough_funds":
                    detail = (
                        f"{refusal.detail}; account {first} was to pay, and accounts are not paid from together"
                    )
                    raise Refused(refusal.name, detail, **refusal.context) from None
                if refusal.code != "lease_lost":
                    raise
                self._lose(first)
        first, *_ = await accounts()
        return await work(first)

    async def _accounts_for(self, payment_request: PaymentRequest) -> list[int]:
        """The accounts that may pay, best first: the purchase's own, the merchant's home, or who has the funds."""
        known = self._known_account(payment_request.app_id, payment_request.key(None))
        if known is not None:
            return [known]
        if payment_request.topup is not None:
            row = topups.find(self.context.conn, payment_request.topup.topup)
            if row is not None:
                return [prepaid.pool(self.context.conn, row.pool_id).account]
        intent = self._intent(payment_request)
        if intent is None:
            return self._able()
        known = self._known_account(intent.app_id, intent.key)
        if known is not None:
            return [known]
        needed = [(offer.asset, offer.total_units) for offer in intent.offers]
        if payment_request.topup is not None or any(is_batch(offer.batch_target) for offer in intent.offers):
            return await self._home(payment_request.origin, intent.buyer.partner, *needed)
        return self._able(*needed)

    def _intent(self, payment_request: PaymentRequest) -> PaymentIntent | None:
        """The purchase; None if its 402 is not understood, which any account refuses alike."""
        now_ms, intake = self.context.ports.clock.now_ms(), self.intake
        try:
            merchant = self.context.config.merchant(payment_request.origin)
            return intake.intent(payment_request, intake.offers(merchant, payment_request, now_ms), now_ms)
        except Refused:
            return None

    def _known_account(self, app_id: str, key: str | None) -> int | None:
        stored = None if key is None else intents.live_intent(self.context.conn, app_id, key)
        return None if stored is None else payments.account_of_intent(self.context.conn, stored.id)

    async def _home_of_topup(self, goal: TopupGoal) -> list[int]:
        partner = self.context.config.merchant(goal.origin).partner or ""
        return await self._home(
            goal.origin, partner, (LOVELACE, 1) if goal.unit == CALLS else (goal.unit, goal.units)
        )

    async def _home(self, origin: str, partner: str, *needed: tuple[str, int]) -> list[int]:
        """The home account of the merchant alone. It is set when it is first needed."""
        if (home := fleet.home_of(self.context.conn, origin, partner)) is not None:
            return [home]
        chosen, now_ms = self._able(*needed)[0], self.context.ports.clock.now_ms()

        def job(unit: Unit) -> int:
            if (home := fleet.home_of(unit.conn, origin, partner)) is not None:
                return home
            fleet.set_home(unit, origin, partner, chosen, now_ms)
            return chosen

        return [await self.context.write("home", job)]

    def _able(self, *needed: tuple[str, int]) -> list[int]:
        """The accounts that have one of the needed (asset, units), or will once change confirms.

        First those held here that may sign, then those that have it now, then those with most ADA. If none has
        enough, the one that has most.
        """
        conn, now_ms = self.context.conn, self.context.ports.clock.now_ms()
        needed = needed or ((LOVELACE, 1),)
        free = {asset: free_units(conn, asset) for asset in {LOVELACE, *dict(needed)}}
        coming = {asset: free_units(conn, asset, "pending") for asset, _ in needed}

        def units_of(account: int, asset: str) -> int:
            return free[asset].get(account, 0) + coming[asset].get(account, 0)

        def rank(account: int) -> tuple[bool, bool, bool, int, int]:
            held = self.held.get(account)
            is_ready = held is not None and held.agent.context.chain.is_ready(now_ms)
            has_now = any(free[asset].get(account, 0) >= units for asset, units in needed)
            return is_ready, held is not None, has_now, free[LOVELACE].get(account, 0), -account

        ranked = sorted(range(len(self._addresses)), key=rank, reverse=True)
        able = [one for one in ranked if any(units_of(one, asset) >= units for asset, units in needed)]
        return able or [max(ranked, key=lambda account: units_of(account, needed[0][0]))]

    def _at(self, account: int) -> HeldAccount:
        """What answers for an account without a commit of its own, held or not."""
        if (held := self.held.get(account)) is None:
            held = self._parts.visit(account)
            held.agent.context.account = None
            _copy(self.context.chain, held.agent.context.chain)
        return held

    async def _once_signed(self, payment_id: str) -> PaymentRow:
        return await self.front.agent.lifecycle.once_signed(self.context.payment(payment_id))

    async def _once_noted(self, row: PaymentRow) -> PaymentRow:
        """The payment once its proof may be shown: its holder tells so just after it signed.

        If the holder does not, because it died, the payment is answered without its proof.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(SIGNING_PATIENCE_S):
                while not row.is_noted:
                    await self.context.changes.wait(row.id, POLL_S)
                    row = self.context.payment(row.id)
        return row


class NoSigner:
    """The signer of an agent that holds no account."""

    public_key = bytes(32)

    async def signature(self, body: bytes, paid: int) -> bytes:
        raise Refused("lease_lost", "this daemon does not hold the account. Nothing was signed. Send it again")


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


def _copy(source: ChainView, target: ChainView) -> None:
    """What one account's pass saw of the chain, for what is read on behalf of all."""
    for one in fields(ChainView):
        setattr(target, one.name, getattr(source, one.name))


def _found(payment_id: str, is_new: bool) -> Outcome:
    return {"payment": payment_id, "is_new": is_new}


def _not_taken(account: int) -> Refused:
    return Refused(
        "daemon_timeout",
        f"the holder of account {account} has not answered in {ASK_MS // 1000} s, and may still carry this out. "
        "Send the same request again with its key. Without a key, look at the payments first",
    )
