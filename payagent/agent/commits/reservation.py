"""Decides on a payment, places its hold and reserves its UTxOs, in one commit.

Never: signs; waits for anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from payagent.agent.base import merchant_trust
from payagent.agent.base.free_utxos import FreeUtxoIndex, row_of_utxo, utxo_of
from payagent.agent.base.requests import PaymentIntent
from payagent.agent.commits.rules import PaymentRules
from payagent.agent.commits.tx_planner import Planner
from payagent.core import policy
from payagent.core.aggregate import LoadedPayment
from payagent.core.changes import AgreePrice, PinAddress
from payagent.core.hard_caps import BEFORE_FEE
from payagent.core.money import LOVELACE, check_supply
from payagent.core.payment.apply import apply
from payagent.core.payment.events import ReserveFunds
from payagent.core.policy import LimitCheck
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.load import load_row
from payagent.store.rows import attempts_and_utxos, payments, prepaid
from payagent.wallet.transaction import TxPlan
from payagent.wallet.utxo_index import Utxo


@dataclass(frozen=True, slots=True)
class Reservation:
    """Combines the payment rules with the planner."""

    rules: PaymentRules
    planner: Planner

    def decide(
        self, unit: Unit, intent: PaymentIntent, nonce_utxo: Utxo | None, expires_at_ms: int | None, now_ms: int
    ) -> tuple[TxPlan, tuple[LimitCheck, ...]]:
        """The plan and the limit checks it passed.

        A limit that the amount alone exceeds is reported before lack of funds.
        """
        invoice = intent.invoice
        checks = self.require_before_fee(unit, intent, now_ms)
        plan = self.planner.plan(unit, invoice, expires_at_ms, intent.min_window_s, now_ms, nonce_utxo)
        self.rules.require_within_caps(plan.spend)
        with_fee = policy.ask_again(checks, plan.spend)
        if policy.tightest(with_fee) is not None or not plan.spend.keys() <= {LOVELACE, invoice.asset}:
            with_fee = self.rules.require_within_limits(unit.conn, intent, plan.spend, invoice.asset, now_ms)
        return plan, with_fee

    def require_before_fee(
        self, unit: Unit, intent: PaymentIntent, now_ms: int, count: int = 1
    ) -> tuple[LimitCheck, ...]:
        """As `PaymentRules.require_within_limits`, for the invoice's amount without a fee."""
        asset = intent.invoice.asset
        spend = {LOVELACE: 0} | {asset: intent.invoice.total_units}
        return self.rules.require_within_limits(unit.conn, intent, spend, asset, now_ms, count, fee=BEFORE_FEE)

    def hold(
        self,
        unit: Unit,
        payment_id: str,
        event: type[ReserveFunds],
        plan: TxPlan,
        now_ms: int,
        checks: Sequence[LimitCheck] | None = None,
        learnt: Iterable[PinAddress | AgreePrice] = (),
        detail: Mapping[str, object] | None = None,
    ) -> None:
        """Place the hold, reserve the plan's inputs and fix the nonce UTxO; the payment is `reserved`.

        `checks`: the limits it counts against; None: none. `learnt`: what the merchant rules learn. `detail` is
        added to its event.
        """
        for asset, units in plan.spend.items():
            check_supply(asset, units, "what the transaction takes")
        reserved = event(
            nonce_utxo=plan.nonce_utxo.ref,
            ttl_slot=plan.ttl_slot,
            inputs=tuple(map(row_of_utxo, plan.inputs)),
            spend=plan.spend,
            clock_ms=self.rules.clock_ms(unit.conn, now_ms),
            is_counted=checks is not None,
            learnt=tuple(learnt),
            detail=({"limits": [_limit_view(check) for check in checks]} if checks else {}) | dict(detail or {}),
        )
        payment = LoadedPayment(load_row(unit.conn, payment_id))
        write(unit, apply(payment, reserved), now_ms, FreeUtxoIndex(self.planner.utxos))


def _limit_view(check: LimitCheck) -> dict[str, str]:
    whose = {name: value for name, value in check.scope._asdict().items() if value != policy.ANY}
    view = {
        "limit": check.name,
        "asset": check.asset,
        "left": str(check.left_units),
        "asked": str(check.asked_units),
    }
    most = {} if check.most_units is None else {"most": str(check.most_units)}
    return view | most | whose


def note_price(unit: Unit, intent: PaymentIntent) -> None:
    """Note the price of a request that answered 402. If it is served unpaid later, it uses a prepaid balance.

    A price that only the app claims may be false. It is noted once money is held for it, and never lowers the
    known price.
    """
    is_call = intent.topup is None or intent.topup.is_call
    if intent.request is None or not is_call:
        return
    invoice, call = intent.invoice, merchant_trust.priced_call(intent.request)
    recorded = prepaid.price(unit.conn, invoice.origin, *call)
    is_more = recorded is None or (recorded[0] == invoice.asset and recorded[1] < invoice.total_units)
    if intent.is_heard or is_more:
        prepaid.note_price(unit, invoice.origin, *call, invoice.asset, invoice.total_units)


def is_priced(conn: Connection, intent: PaymentIntent) -> bool:
    """Whether the request's price is known already, so that `note_price` adds no row."""
    if intent.request is None:
        return True
    return prepaid.price(conn, intent.invoice.origin, *merchant_trust.priced_call(intent.request)) is not None


def nonce_utxo_of(unit: Unit, intent_id: str, account: int) -> Utxo | None:
    """The nonce UTxO, of this account, for a payment whose intent has cancelled payments; None without any.

    It descends from every cancel, so no two payments of the intent can land, even if a rollback removes a cancel
    (exactly-once.md R8). Refused: `cancel_too_recent` while no such UTxO is available.
    """
    cancels = payments.watched_voids_of(unit.conn, intent_id)
    if not cancels:
        return None
    first, *others = [attempts_and_utxos.free_descendants(unit.conn, cancel, account) for cancel in cancels]
    for row in first:
        if all(row in other for other in others):
            return utxo_of(row)
    raise Refused("cancel_too_recent", f"the UTxOs that the cancel {cancels[-1]} returned are in use")
