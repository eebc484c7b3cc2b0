"""What may be paid: the limits and the guards, asked in the commit that a payment is decided in.

They are asked before it too, of who would stand in line for a coin (agent.utxos.queue); that decides nothing else.

May import: core, store, agent.base. Never: writes; looks at coins; signs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from payagent.agent.base import merchant_trust as trust
from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.orders import PaymentIntent
from payagent.agent.base.prepaid import require_may_buy
from payagent.core import merchant_rules as guards
from payagent.core import policy
from payagent.core.findings import Finding, Reasons, above, judge
from payagent.core.hard_caps import WITH_FEE, Caps, require_within_caps
from payagent.core.invoice import Invoice
from payagent.core.merchant_rules import MerchantRules, Moment
from payagent.core.money import LOVELACE, format_amount
from payagent.core.policy import Limit, LimitCheck, SpendSpan, Window
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows import apps, topups
from payagent.store.rows import limit_counters as spending
from payagent.store.rows.payments import PaymentRow


@dataclass(slots=True)
class PaymentRules:
    """The file's limits, the signer's caps, and what is known of each merchant; by the chain's clock."""

    limits: Sequence[Limit]
    chain: ChainView
    caps: Caps | None = None
    approval_above: Mapping[str, int] = field(default_factory=dict)
    merchants: Mapping[str, MerchantConfig] = field(default_factory=dict)

    def take(self, terms: AgentConfig) -> None:
        """As `Admission.take`."""
        self.limits, self.merchants, self.approval_above = terms.limits, terms.merchants, terms.approval_above

    def clock_ms(self, conn: Connection, now_ms: int) -> int:
        """The clock of the limits: the chain's, which no other clock moves on and nothing puts back."""
        return spending.clock_ms(conn, self.chain.block_ms(now_ms))

    def require_within_limits(
        self,
        conn: Connection,
        purchase: PaymentIntent,
        spend: Mapping[str, int],
        paid_asset: str,
        now_ms: int,
        count: int = 1,
        fee: str = WITH_FEE,
    ) -> tuple[LimitCheck, ...]:
        """Decide by the sums as they stand there, for so many payments of that size. `fee`: whether it is in that.

        Refused: `merchant_not_allowed`, `asset_not_allowed`, `limit_exceeded` by the tightest limit.
        """
        self.require_within_caps(spend, fee)
        app, origin = purchase.app_id, purchase.invoice.origin
        asker = apps.require(conn, app)
        asker.require_may_pay(origin, paid_asset)
        _require_bound_on(purchase, paid_asset, spend)
        clock_ms = self.clock_ms(conn, now_ms)
        limits = in_force_for(conn, self.limits, app, origin)
        binding = policy.concerning(limits, app, origin, spend)
        asked = {
            policy.ask(limit, spending.counted(conn, limit, clock_ms), spend, count): limit for limit in binding
        }
        bounds = policy.ask_bounds(
            spend, paid_asset, purchase.most_units(paid_asset), self._topup_left(conn, purchase, clock_ms), count
        )
        tight = policy.tightest((*asked, *bounds))
        if tight is not None:
            frees_at = when_it_frees(conn, asked.get(tight), tight, clock_ms)
            raise policy.refusal(tight, frees_at, asker.name, f"payment takes {{}} {fee}")
        return (*asked, *bounds)

    def require_within_caps(self, spend: Mapping[str, int], fee: str = WITH_FEE) -> None:
        """What the signer would refuse is held for by nobody; without caps only the signer knows."""
        if self.caps is not None:
            require_within_caps(spend, self.caps, fee)

    def _topup_left(self, conn: Connection, purchase: PaymentIntent, clock_ms: int) -> int | None:
        """What the merchant's own limit for top-ups leaves of the day."""
        part = purchase.topup
        if part is None or part.per_day_lovelace is None:
            return None
        since_ms = clock_ms - policy.LENGTH_MS[Window.DAY]
        return part.per_day_lovelace - topups.lovelace_since(conn, purchase.invoice.origin, since_ms)

    def reasons(
        self, conn: Connection, purchase: PaymentIntent, invoice: Invoice, spend: Mapping[str, int]
    ) -> Reasons:
        """For which reasons a person is to be asked whether the invoice may be paid; none: nobody is asked.

        By the thresholds, and by what is known of the merchant there. Refused: `merchant_stopped`,
        `merchant_busy`.
        """
        return judge((*self.look(conn, purchase, invoice), *above(self.approval_above, spend)))

    def look(
        self, conn: Connection, purchase: PaymentIntent, invoice: Invoice, moment: Moment = Moment.PAYMENT
    ) -> tuple[Finding, ...]:
        """What the guards find against an invoice."""
        rules, claim = self.rules(invoice.origin), trust.claim_of_invoice(invoice)
        is_measured = purchase.topup is None or purchase.topup.is_auto
        known = trust.known_of(conn, rules, invoice.origin, purchase.request, is_measured)
        return guards.look(claim, rules, known, moment)

    def why_stopped(self, conn: Connection, row: PaymentRow, now_ms: int) -> Refused | None:
        """Why a payment is not signed (again) by what was decided before; None: that stands.

        Who asked for it has ended, or its merchant may not be paid any more.
        """
        try:
            require_may_have(conn, row, now_ms)
            if row.origin is not None:
                self.require_merchant(row.origin)
                rules, claim = self.rules(row.origin), trust.claim_of_payment(row)
                judge(guards.look(claim, rules, trust.known_of(conn, rules, row.origin, None), Moment.SAME_TERMS))
        except Refused as refusal:
            return refusal
        return None

    def require_merchant(self, origin: str | None) -> None:
        """Refused: `merchant_not_allowed`, where a merchant was removed after its invoice was read."""
        if origin not in self.merchants:
            raise Refused("merchant_not_allowed", f"{origin} may not be paid any more", origin=origin)

    def rules(self, origin: str) -> MerchantRules:
        """What the guards go by for a merchant."""
        merchant = self.merchants.get(origin)
        return MerchantRules() if merchant is None else merchant.rules


def require_may_have(conn: Connection, row: PaymentRow, now_ms: int) -> None:
    """Who asked for it may still have it. Refused: `forbidden`; of a top-up as `require_may_buy` does."""
    if row.topup is not None and (order := topups.find(conn, row.topup)) is not None:
        require_may_buy(conn, order, now_ms)
    if apps.has_ended(conn, row.app_id, now_ms):
        name = apps.require(conn, row.app_id).name
        raise Refused("forbidden", f"the app {name}, which asked for it, is revoked or has expired")


def _require_bound_on(purchase: PaymentIntent, asset: str, spend: Mapping[str, int]) -> None:
    """The caller's own bound on one asset allows nothing of another. Refused: `limit_exceeded`."""
    bound_asset, most_units = purchase.max_total_asset, purchase.max_total_units
    if bound_asset is None or most_units is None or bound_asset == asset:
        return
    bound, name = format_amount(bound_asset, most_units), "ADA" if asset == LOVELACE else asset
    detail = f"max_total is {bound} and allows nothing else, this payment is in {name}"
    told = {"limit": "max_total", "asset": asset, "left": "0", "asked": str(spend.get(asset, 0))}
    raise Refused("limit_exceeded", detail, **told)


def as_told(conn: Connection, app_id: str, refused: Refused) -> Refused:
    """A refusal as its app is told it; payagent's own app, which has no scope, tells its operator."""
    app = apps.require(conn, app_id)
    return refused if app.sees_all or not app.scopes else policy.without_figures(refused)


def in_force_for(conn: Connection, filed: Sequence[Limit], app: str, origin: str) -> tuple[Limit, ...]:
    """The limits that may bind a payment: the file's, and over them those that were set at run time."""
    return policy.in_force(filed, spending.limits_binding(conn, app, origin))


def when_it_frees(conn: Connection, limit: Limit | None, asked: LimitCheck, clock_ms: int) -> int | None:
    """When a limit that is exceeded has room; None for what does not roll, or never has as much."""
    if limit is None or limit.window not in policy.LENGTH_MS or asked.asked_units > limit.most_units:
        return None
    spans = spending.spans(conn, limit, clock_ms)
    return policy.frees_at_ms(limit.window, spans, _excess(limit, spans, asked))


def _excess(limit: Limit, spans: Sequence[SpendSpan], asked: LimitCheck) -> int:
    return sum(span.units for span in spans) + asked.asked_units - limit.most_units
