"""Limits, caps and merchant rules: whether a payment is allowed, decided in the commit that admits it.

They are also checked earlier, to decide whether a payment may wait for a UTxO (agent.utxos.queue).

Never: writes; reads UTxOs; signs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from payagent.agent.base import merchant_trust
from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import require_may_buy
from payagent.agent.base.requests import PaymentIntent
from payagent.core import merchant_rules, policy
from payagent.core.aggregate import PaymentRow
from payagent.core.findings import Finding, Reasons, above, judge
from payagent.core.hard_caps import WITH_FEE, require_within_caps
from payagent.core.invoice import Invoice
from payagent.core.merchant_rules import Moment
from payagent.core.money import LOVELACE, format_amount
from payagent.core.policy import Limit, LimitCheck, SpendSpan, Window
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows import apps, limit_counters, topups


@dataclass(slots=True)
class PaymentRules:
    """Checks a payment against limits, hard caps and merchant rules, by the chain's clock."""

    config: AgentConfig
    """Each decision uses one config. Replace it in a job alone."""
    chain: ChainView

    def clock_ms(self, conn: Connection, now_ms: int) -> int:
        """The clock of the limits (store.rows.limit_counters): only blocks advance it, nothing sets it back."""
        return limit_counters.clock_ms(conn, self.chain.block_ms(now_ms))

    def require_within_limits(
        self,
        conn: Connection,
        intent: PaymentIntent,
        spend: Mapping[str, int],
        paid_asset: str,
        now_ms: int,
        count: int = 1,
        fee: str = WITH_FEE,
    ) -> tuple[LimitCheck, ...]:
        """Check `count` payments of this `spend` against caps and limits. `fee`: whether `spend` includes it.

        Returns the checks made. Refused: `merchant_not_allowed`, `asset_not_allowed`, `limit_exceeded` by the
        tightest limit.
        """
        self.require_within_caps(spend, fee)
        app, origin = intent.app_id, intent.invoice.origin
        app_row = apps.require(conn, app)
        app_row.require_may_pay(origin, paid_asset)
        _require_bound_on(intent, paid_asset, spend)
        clock_ms = self.clock_ms(conn, now_ms)
        limits = in_force_for(conn, self.config.limits, app, origin)
        binding = policy.concerning(limits, app, origin, spend)
        counted = limit_counters.counted_for_each(conn, binding, clock_ms)
        checks = {policy.ask(limit, units, spend, count): limit for limit, units in counted.items()}
        bounds = policy.ask_bounds(
            spend, paid_asset, intent.most_units(paid_asset), self._topup_left(conn, intent, clock_ms), count
        )
        tightest = policy.tightest((*checks, *bounds))
        if tightest is not None:
            frees_at_ms = when_it_frees(conn, checks.get(tightest), tightest, clock_ms)
            raise policy.refusal(tightest, frees_at_ms, app_row.name, f"payment takes {{}} {fee}")
        return (*checks, *bounds)

    def require_within_caps(self, spend: Mapping[str, int], fee: str = WITH_FEE) -> None:
        """Refuse a spend above the signer's caps before anything is held. Without caps only the signer checks."""
        if self.config.caps is not None:
            require_within_caps(spend, self.config.caps, fee)

    def _topup_left(self, conn: Connection, intent: PaymentIntent, clock_ms: int) -> int | None:
        """Lovelace that the merchant's daily top-up limit leaves; None without one."""
        part = intent.topup
        if part is None or part.per_day_lovelace is None:
            return None
        since_ms = clock_ms - policy.LENGTH_MS[Window.DAY]
        return part.per_day_lovelace - topups.lovelace_since(conn, intent.invoice.origin, since_ms)

    def reasons(
        self, conn: Connection, intent: PaymentIntent, invoice: Invoice, spend: Mapping[str, int]
    ) -> Reasons:
        """Why the invoice needs an approval; empty if it needs none.

        Reasons are amounts above the thresholds and findings of the merchant rules. Refused: `merchant_stopped`,
        `merchant_in_flight_limit`.
        """
        return judge((*self.check(conn, intent, invoice), *above(self.config.approval_required_above, spend)))

    def check(
        self, conn: Connection, intent: PaymentIntent, invoice: Invoice, moment: Moment = Moment.PAYMENT
    ) -> tuple[Finding, ...]:
        """The findings of the merchant rules against an invoice."""
        rules, claim = self.config.rules(invoice.origin), merchant_trust.claim_of_invoice(invoice)
        is_measured = intent.topup is None or intent.topup.is_auto
        facts = merchant_trust.facts_of(conn, rules, invoice.origin, intent.request, is_measured)
        return merchant_rules.check(claim, rules, facts, moment)

    def why_stopped(self, conn: Connection, row: PaymentRow, now_ms: int) -> Refused | None:
        """Why an admitted payment may no longer be signed; None if it may.

        Its app or its top-up has ended, or its merchant may no longer be paid. A channel's transaction is signed
        at once or never: it is not built again.
        """
        try:
            if row.is_channel_step:
                raise Refused("payment_void/expired", "a channel's transaction is not built again")
            require_may_have(conn, row, now_ms)
            if row.invoice.origin is not None:
                self.require_merchant(row.invoice.origin)
                rules, claim = self.config.rules(row.invoice.origin), merchant_trust.claim_of_payment(row)
                judge(
                    merchant_rules.check(
                        claim,
                        rules,
                        merchant_trust.facts_of(conn, rules, row.invoice.origin, None),
                        Moment.SAME_TERMS,
                    )
                )
        except Refused as refusal:
            return refusal
        return None

    def require_merchant(self, origin: str | None) -> None:
        """Refused: `merchant_not_allowed` if the merchant was removed after its invoice was read."""
        if origin not in self.config.merchants:
            raise Refused("merchant_not_allowed", f"{origin} may no longer be paid", origin=origin)


def require_may_have(conn: Connection, row: PaymentRow, now_ms: int) -> None:
    """Check that the payment's app may still pay. Refused: `forbidden`; for a top-up as `require_may_buy`."""
    if row.prepaid.topup_id is not None and (topup := topups.find(conn, row.prepaid.topup_id)) is not None:
        require_may_buy(conn, topup, now_ms)
    if apps.has_ended(conn, row.app_id, now_ms):
        name = apps.require(conn, row.app_id).name
        raise Refused("forbidden", f"the app {name} that made the request is revoked or has expired")


def _require_bound_on(intent: PaymentIntent, asset: str, spend: Mapping[str, int]) -> None:
    """A `max_total` in one asset allows no other asset. Refused: `limit_exceeded`."""
    bound_asset, most_units = intent.max_total_asset, intent.max_total_units
    if bound_asset is None or most_units is None or bound_asset == asset:
        return
    bound, name = format_amount(bound_asset, most_units), "ADA" if asset == LOVELACE else asset
    detail = f"{policy.CALLS_OWN} is {bound} and allows nothing else, this payment is in {name}"
    context = {"limit": "max_total", "asset": asset, "left": "0", "asked": str(spend.get(asset, 0))}
    raise Refused("limit_exceeded", detail, fix=policy.CHANGE_OWN, **context)


def visible_to_app(conn: Connection, app_id: str, refused: Refused) -> Refused:
    """The refusal as its app may see it: without figures, unless the app sees all or has no scope (our own)."""
    app = apps.require(conn, app_id)
    return refused if app.sees_all or not app.scopes else policy.without_figures(refused)


def in_force_for(conn: Connection, from_file: Sequence[Limit], app: str, origin: str) -> tuple[Limit, ...]:
    """The limits that may bind a payment: a limit set at run time overrides the config file's."""
    return policy.in_force(from_file, limit_counters.limits_binding(conn, app, origin))


def when_it_frees(conn: Connection, limit: Limit | None, check: LimitCheck, clock_ms: int) -> int | None:
    """When an exceeded limit has room again; None if its window does not roll or it is below the amount."""
    if limit is None or limit.window not in policy.LENGTH_MS or check.asked_units > limit.most_units:
        return None
    spans = limit_counters.spans(conn, limit, clock_ms)
    return policy.frees_at_ms(limit.window, spans, _excess(limit, spans, check))


def _excess(limit: Limit, spans: Sequence[SpendSpan], check: LimitCheck) -> int:
    return sum(span.units for span in spans) + check.asked_units - limit.most_units
