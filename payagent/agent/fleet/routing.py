"""Which account serves a request, held here or not.

It is the account that the request's payment has. For a new purchase it is the merchant's home account if it sells
prepaid balance, else an account held here that has the funds, else one held elsewhere. Start at
`Routing.accounts_for`.

Never: pays; asks another daemon.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.requests import PaymentIntent, PaymentRequest
from payagent.agent.fleet.fleet import HeldAccount
from payagent.agent.fleet.leases import Leases
from payagent.agent.pay.lookup import find_payment
from payagent.agent.topups.orders import TopupGoal
from payagent.core.invoice import is_batch
from payagent.core.money import LOVELACE
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import fleet, prepaid, topups
from payagent.store.rows.attempts_and_utxos import free_units

T = TypeVar("T")

TRIES = 3
"""How often a request is made again after this daemon lost the account that was to carry it out."""

LACKS_FUNDS = frozenset({"funds_pending", "not_enough_funds", "utxos_too_small"})
"""Refusals by an account whose UTxOs do not suffice now. Another account's may."""


class Routing:
    """Chooses by what the ledger says of all accounts, and by which of them are held here."""

    def __init__(self, front: HeldAccount, leases: Leases) -> None:
        self._context = front.agent.context
        self._front = front
        self._leases = leases
        self.accounts = range(len(leases.addresses))

    async def trying(self, accounts: Callable[[], Awaitable[list[int]]], work: Callable[[int], Awaitable[T]]) -> T:
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
                    raise Refused(
                        refusal.name,
                        f"{refusal.detail}; account {first} was to pay, and accounts are not paid from together",
                        **refusal.context,
                    ) from None
                if refusal.code != "lease_lost":
                    raise
                self._leases.lose(first)
        first, *_ = await accounts()
        return await work(first)

    async def accounts_for(self, payment_request: PaymentRequest) -> list[int]:
        """The accounts that may pay, best first: the purchase's own, the merchant's home, or who has the funds."""
        conn, part = self._context.conn, payment_request.topup
        if (known := self.known_account(payment_request.app_id, payment_request.key(None))) is not None:
            return [known]
        if part is not None and (topup := topups.find(conn, part.topup)) is not None:
            return [prepaid.pool(conn, topup.pool_id).account]
        if (intent := self._intent(payment_request)) is None:
            return self._of_channel(payment_request.origin) or self.able()
        if (known := self.known_account(intent.app_id, intent.key)) is not None:
            return [known]
        needed = [(offer.asset, offer.total_units) for offer in intent.offers]
        if part is not None or any(is_batch(offer.batch_target) for offer in intent.offers):
            return await self._home(payment_request.origin, intent.buyer.partner, *needed)
        return list(dict.fromkeys([*self._of_channel(payment_request.origin), *self.able(*needed)]))

    def _of_channel(self, origin: str) -> list[int]:
        """The account held here that has the merchant's channel: it may pay by a voucher."""
        parts = self._front.agent.channels
        return [account for account in self._leases.held if parts and parts.calls.account_at(origin) == account]

    def _intent(self, payment_request: PaymentRequest) -> PaymentIntent | None:
        """The purchase; None if its 402 is not understood, which any account refuses alike."""
        now_ms, intake = self._context.ports.clock.now_ms(), self._front.agent.intake
        try:
            merchant = self._context.config.merchant(payment_request.origin)
            return intake.intent(payment_request, intake.offers(merchant, payment_request, now_ms), now_ms)
        except Refused:
            return None

    def known_account(self, app_id: str, key: str | None) -> int | None:
        """The account that the intent of this key has a payment from; None if it has none."""
        return find_payment(self._context.conn, app_id, key).account

    async def of_payment(self, payment_id: str) -> list[int]:
        """The account of a payment."""
        return [self._context.payment(payment_id).account]

    async def of_step(self, app_id: str, asked: Mapping[str, Any]) -> list[int]:
        """The account of a channel. For one that is to be opened, that of the repeated key, or one with funds."""
        from payagent.store.rows.channels import channel

        if "channel_id" in asked:
            return [channel(self._context.conn, asked["channel_id"]).account]
        known = self.known_account(app_id, f"key:{asked['key']}")
        return self.able((LOVELACE, asked["units"] or 1)) if known is None else [known]

    async def of_topup(self, topup_id: str) -> list[int]:
        """The account of a top-up's balance."""
        return [prepaid.pool(self._context.conn, self._front.topups.find(topup_id).pool_id).account]

    async def home_of_topup(self, goal: TopupGoal) -> list[int]:
        """The home account alone of the merchant that a top-up buys at."""
        partner = self._context.config.merchant(goal.origin).partner or ""
        return await self._home(
            goal.origin, partner, (LOVELACE, 1) if goal.unit == CALLS else (goal.unit, goal.units)
        )

    async def _home(self, origin: str, partner: str, *needed: tuple[str, int]) -> list[int]:
        """The home account of the merchant alone. It is set when it is first needed."""
        if (home := fleet.home_of(self._context.conn, origin, partner)) is not None:
            return [home]
        chosen, now_ms = self.able(*needed)[0], self._context.ports.clock.now_ms()

        def job(unit: Unit) -> int:
            if (home := fleet.home_of(unit.conn, origin, partner)) is not None:
                return home
            fleet.set_home(unit, origin, partner, chosen, now_ms)
            return chosen

        return [await self._context.write("home", job)]

    def able(self, *needed: tuple[str, int]) -> list[int]:
        """The accounts that have one of the needed (asset, units), or will once change confirms.

        First those held here that may sign, then those that have it now, then those with most ADA. If none has
        enough, the one that has most.
        """
        conn, now_ms = self._context.conn, self._context.ports.clock.now_ms()
        needed = needed or ((LOVELACE, 1),)
        free = {asset: free_units(conn, asset) for asset in {LOVELACE, *dict(needed)}}
        coming = {asset: free_units(conn, asset, "pending") for asset, _ in needed}

        def units_of(account: int, asset: str) -> int:
            return free[asset].get(account, 0) + coming[asset].get(account, 0)

        def rank(account: int) -> tuple[bool, bool, bool, int, int]:
            held = self._leases.held.get(account)
            is_ready = held is not None and held.agent.context.chain.is_ready(now_ms)
            has_now = any(free[asset].get(account, 0) >= units for asset, units in needed)
            return is_ready, held is not None, has_now, free[LOVELACE].get(account, 0), -account

        ranked = sorted(self.accounts, key=rank, reverse=True)
        able = [one for one in ranked if any(units_of(one, asset) >= units for asset, units in needed)]
        return able or [max(ranked, key=lambda account: units_of(account, needed[0][0]))]

    def richest(self) -> int:
        """The account with most available ADA."""
        free = free_units(self._context.conn, LOVELACE)
        return max(self.accounts, key=lambda one: (free.get(one, 0), -one))

    def visit(self, account: int) -> HeldAccount:
        """What answers for an account without a commit of its own, held or not."""
        if (held := self._leases.held.get(account)) is None:
            held = self._leases.parts.visit(account)
            held.agent.context.account = None
            copy_view(self._context.chain, held.agent.context.chain)
        return held


def copy_view(source: ChainView, target: ChainView) -> None:
    """What one account's pass saw of the chain, for what is read on behalf of all."""
    for one in fields(ChainView):
        setattr(target, one.name, getattr(source, one.name))
