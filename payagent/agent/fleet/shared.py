"""`SharedFleet`: one of several daemons on one ledger.

`leases` takes accounts, renews their leases and gives some back. `routing` chooses the account for a request. If
another daemon holds it, `holder` asks that one by a row in the ledger, and this daemon answers as its own. Every
daemon sees what the others committed by polling the ledger. Start at `SharedFleet.run`.

Never: signs for an account that it does not hold.
"""

import asyncio
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

from payagent.agent.base.config import overlaid
from payagent.agent.base.requests import Approver, PaymentQuote, PaymentRequest, PrepaidQuote
from payagent.agent.chain_sync.providers import ProviderSelection
from payagent.agent.fleet.fleet import Fleet, FleetStatus, HeldAccount, no_account
from payagent.agent.fleet.holder import POLL_S, HolderRequests, dump_payment_request
from payagent.agent.fleet.leases import TAKE_S, Leases, Parts, every
from payagent.agent.fleet.routing import Routing, copy_view
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.lifecycle import SIGNING_PATIENCE_S
from payagent.agent.topups.orders import TopupGoal
from payagent.agent.topups.runner import TopupPlan
from payagent.core.address import Address
from payagent.core.aggregate import CHANNEL_CALL, PaymentRow
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import AWAITING_SIGNATURE
from payagent.core.problems import Refused
from payagent.store.db.fence import Seat, lease_lost
from payagent.store.rows import events, fleet, onchain
from payagent.store.rows.fleet import DaemonRow, RequestKind
from payagent.store.rows.topups import TopupRow

TIP_EVERY_S = 10
"""How often a daemon without accounts asks for the newest block."""


class SharedFleet(Fleet):
    """One daemon of a fleet. `front` holds no account: its context's `account` is None, and its signer refuses."""

    def __init__(self, front: HeldAccount, me: DaemonRow, seat: Seat, addresses: tuple[str, ...], parts: Parts):
        super().__init__(front)
        self.context.account = None
        self.leases = Leases(self.context, me, seat, addresses, parts)
        self.held = self.leases.held
        self.routing = Routing(front, self.leases)
        self.holder = HolderRequests(self.context, me.id, self.held)
        self._providers = ProviderSelection(self.context)
        self._seq = 0

    def status(self) -> FleetStatus:
        conn, now_ms = self.context.conn, self.context.ports.clock.now_ms()
        at_ms, rows, daemons = fleet.database_ms(conn, now_ms), fleet.all_accounts(conn), fleet.all_daemons(conn)
        living = {one.id: one for one in daemons if fleet.is_living(one, at_ms)}
        lag_s, problem = self.leases.lag_s, None
        if lag_s * 1000 > fleet.LEASE_MS:
            problem = f"this daemon renewed its leases {lag_s:.0f} s ago, so another may take its accounts"
        elif not any(row.holder in living for row in rows):  # a free one is soon taken, and others pay meanwhile
            problem = "no daemon holds an account"
        return FleetStatus(tuple(sorted(self.held)), tuple(rows), tuple(daemons), living, at_ms, lag_s, problem)

    async def run(self) -> None:
        """Keep leases and poll, until cancelled. An error delays only the next run."""
        await asyncio.gather(
            every(fleet.RENEW_EVERY_S, self.leases.keep),
            every(fleet.RENEW_EVERY_S, self.leases.renew_meanwhile),
            every(POLL_S, self.poll),
            every(TIP_EVERY_S, self.read_tip),
            every(TAKE_S, self.leases.take_what_is_free),
        )

    async def leave(self) -> None:
        """Stop what runs for the accounts, give them all back and end. Without a join it writes nothing."""
        for task in self.holder.serving.values():
            task.cancel()
        await self.leases.leave(self.holder.serving)

    # --- polling

    async def poll(self) -> None:
        """Take in what other daemons committed, and begin what they ask of the accounts held here."""
        context = self.context
        seq = fleet.event_seq(context.conn)
        if seq != self._seq:
            changed, self._seq = events.payments_after(context.conn, self._seq), seq
            self._take_in_what_all_share()
            self.leases.begin_anew_if_behind()
            for name in sorted(changed | self.holder.asked):
                context.changes.notify(name)
        self.leases.note_proofs()
        if self.held:
            now_ms = context.ports.clock.now_ms()
            contexts = [self.held[account].agent.context for account in sorted(self.held)]
            # an account that was just taken has to read the chain first
            best = next((one for one in contexts if one.chain.is_ready(now_ms)), contexts[0])
            copy_view(best.chain, context.chain)
            context.providers, context.submit_providers = best.providers, best.submit_providers
            self.holder.serve_open()

    async def read_tip(self) -> None:
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

    # --- what the API asks

    async def pay(self, payment_request: PaymentRequest) -> tuple[PaymentRow, bool]:
        async def pay(account: int) -> tuple[PaymentRow, bool]:
            if (held := self.held.get(account)) is not None:
                return await held.agent.pay(payment_request)
            row = self.front.agent.existing(payment_request)
            if row is not None and row.state not in AWAITING_SIGNATURE:
                return row, False
            found = await self.holder.ask(account, "pay", dump_payment_request(payment_request))
            return await self._once_signed(found["payment"]), found["is_new"]

        row, is_new = await self.routing.trying(partial(self.routing.accounts_for, payment_request), pay)
        return await self._once_noted(row), is_new

    async def quote(self, payment_request: PaymentRequest, count: int = 1) -> PaymentQuote:
        account, *_ = await self.routing.accounts_for(payment_request)
        return await self.routing.visit(account).agent.quote(payment_request, count)

    def deliveries(self, payment_id: str) -> Deliveries:
        row = self.context.payment(payment_id)
        if row.account not in self.held and row.kind == CHANNEL_CALL:
            raise lease_lost(row.account)
        return self.held.get(row.account, self.front).agent.deliveries_of(payment_id)

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        return await self._order("approve", payment_id, by=asdict(by))

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        return await self._order("deny", payment_id, by=asdict(by))

    async def resolve(self, payment_id: str, app_id: str) -> PaymentRow:
        return await self._order("cancel", payment_id, app_id=app_id)

    async def _order(self, kind: RequestKind, payment_id: str, **asked: object) -> PaymentRow:
        await self.routing.trying(
            partial(self.routing.of_payment, payment_id),
            partial(self.holder.do, kind, {"payment_id": payment_id, **asked}),
        )
        return self.context.payment(payment_id)

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        return await self._transfer(app_id, key, (asset, units), to=to.text, asset=asset, units=units)

    async def send_all(
        self, app_id: str, to: Address, key: str | None = None, account: int | None = None
    ) -> tuple[PaymentRow, bool]:
        if account is not None and account not in self.routing.accounts:
            raise no_account(account)
        chosen = self.routing.richest() if account is None else account
        return await self._transfer(app_id, key, (LOVELACE, 1), chosen, to=to.text)

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        return await self._transfer(app_id, key, (LOVELACE, count * lovelace), count=count, units=lovelace)

    async def _transfer(
        self, app_id: str, key: str | None, needed: tuple[str, int], account: int | None = None, **asked: object
    ) -> tuple[PaymentRow, bool]:
        """Carry out a transfer from the account that its key has a payment from.

        Without one, `account` is the only one that may send; None: one that has what is needed. Without a key it
        gets one here, so it stays one transfer if the account's next holder carries it out.
        """
        key = self.context.ports.new_id("order") if key is None else key

        async def accounts() -> list[int]:
            known = self.routing.known_account(app_id, f"key:{key}")
            chosen = account if known is None else known
            return self.routing.able(needed) if chosen is None else [chosen]

        found = await self.routing.trying(
            accounts, partial(self.holder.do, "transfer", {"app_id": app_id, "key": key, **asked})
        )
        return await self._once_signed(found["payment"]), found["is_new"]

    async def order_channel(self, step: str, app_id: str, **asked: object) -> list[str]:
        """By the holder of its account. Each account's holder recovers that account's channels."""
        if "key" in asked:  # as of a transfer
            asked["key"] = asked["key"] or self.context.ports.new_id("order")
        order = partial(self.holder.do, "transfer", {"step": step, "app_id": app_id, **asked})
        if step == "recover":
            return [one for account in self.routing.accounts for one in (await order(account))["channels"]]
        accounts = partial(self.routing.of_step, app_id, asked)
        return list((await self.routing.trying(accounts, order))["channels"])

    async def order_topup(self, app_id: str, key: str | None, goal: TopupGoal) -> tuple[TopupRow, bool]:
        key = self.context.ports.new_id("order") if key is None else key  # as of a transfer
        asked = {"app_id": app_id, "key": key, "goal": asdict(goal)}
        found = await self.routing.trying(
            partial(self.routing.home_of_topup, goal), partial(self.holder.do, "topup", asked)
        )
        return self.topups.find(found["topup"]), found["is_new"]

    async def plan_topup(self, app_id: str, goal: TopupGoal) -> TopupPlan | PrepaidQuote:
        (account,) = await self.routing.home_of_topup(goal)
        return await self.routing.visit(account).topups.plan(app_id, goal)

    async def cancel_topup(self, topup_id: str, app_id: str) -> TopupRow:
        await self.routing.trying(
            partial(self.routing.of_topup, topup_id),
            partial(self.holder.do, "topup", {"topup_id": topup_id, "app_id": app_id}),
        )
        return self.topups.find(topup_id)

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

    async def channel(self, kind: str, **fields: object) -> bytes:
        return await self.signature(b"", 0)
