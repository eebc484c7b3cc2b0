"""Renders values as the JSON of responses. A payment itself is rendered by `agent.base.payment_view`.

Amounts are strings of digits.

May import: core, agent, store.rows.
Never: does I/O.
"""

from collections.abc import Iterable, Mapping, Sequence

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.requests import Advice, PaymentQuote, PrepaidQuote
from payagent.agent.operator.limits import LimitStatus as LimitStanding
from payagent.agent.operator.merchants import MerchantStatus
from payagent.core.findings import Finding
from payagent.core.invoice import calls_of
from payagent.core.ledger import HELD, WALLET, add
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.core.retry_schedule import MerchantReadiness
from payagent.core.timestamps import iso_time
from payagent.store.rows.approvals import ApprovalRow, DecisionRow
from payagent.store.rows.apps import AppRow, TokenRow
from payagent.store.rows.attempts_and_utxos import UtxoRow
from payagent.store.rows.journal import EntryRow, SpendKey, SpendRow
from payagent.store.rows.pauses import Pause
from payagent.store.rows.payments import PaymentRow

Json = dict[str, object]
Balance = tuple[str, str, int]
UTXO_STATES = ("free", "reserved", "pending", "locked", "missing")


def quote_view(quote: PaymentQuote, terms: AgentConfig) -> Json:
    """A quote for a payment. `total` is the spend in the invoice's asset, with the fee if that is ADA."""
    invoice, plan = quote.invoice, quote.plan
    spend = plan.spend
    view: Json = {
        "prepaid": False,
        "network": terms.network.name,
        "dialect": invoice.dialect,
        "origin": invoice.origin,
        "invoice_id": invoice.invoice_id,
        "batch_target": invoice.batch_target,
        "outputs": [
            {"role": o.role, "address": o.address.text, "asset": o.asset, "units": str(o.units)}
            for o in invoice.outputs
        ],
        "fee": str(plan.fee_lovelace),
        "total": str(spend[invoice.asset]),
        "spend": {asset: str(units) for asset, units in spend.items()},
        "size": plan.size,
        "expires_at": None if invoice.expires_at_ms is None else iso_time(invoice.expires_at_ms),
        "within_limits": quote.refusal is None,
    }
    return view | verdict_view(quote)


def prepaid_quote_view(quote: PrepaidQuote | None, terms: AgentConfig) -> Json:
    """What a request would use of a prepaid balance. If no balance would serve it, only `"prepaid": false`."""
    if quote is None:
        return {"prepaid": False}
    view: Json = {
        "prepaid": True,
        "network": terms.network.name,
        "origin": quote.origin,
        "unit": quote.unit,
        "units": None if quote.units is None else str(quote.units),
        "within_limits": quote.refusal is None,
    }
    return view | _refusal_view(quote.refusal)


def verdict_view(quote: PaymentQuote) -> Json:
    """What stops a quoted payment: required approval or a refusal. Empty when nothing does."""
    view: Json = {}
    if quote.reasons:
        view["approval"] = [_reason_view(reason) for reason in quote.reasons]
    return view | _refusal_view(quote.refusal)


def _refusal_view(refusal: Refused | None) -> Json:
    return {} if refusal is None else {"refusal": refusal.record}


def _reason_view(reason: Finding) -> Json:
    return {"code": reason.code, "reason": None, "detail": reason.detail}


def approval_view(
    approval: ApprovalRow, row: PaymentRow, at_most: Mapping[str, int], decided: DecisionRow | None
) -> Json:
    """An approval of a payment, as the payment's own app may see it."""
    return {
        "calls": calls_of(row.batch_target),
        "reasons": [_reason_view(reason) for reason in approval.reasons],
        "terms_hash": approval.terms_hash,
        "transaction": approval.plan,
        "at_most": {asset: str(units) for asset, units in at_most.items()},
        "asked_at": iso_time(approval.asked_at_ms),
        "ends_at": iso_time(approval.ends_at_ms),
        "decision": None if decided is None else decided.decision,
        "via": None if decided is None else decided.via,
        "decided_at": None if decided is None else iso_time(decided.at_ms),
    }


def advice_view(advice: Advice) -> Json:
    """The merchant's answer to a retry, and when to present the same proof again."""
    return {
        "said": advice.answer.said,
        "reason": advice.answer.reason,
        "again_after_s": advice.again_after_s,
        "poll_query": advice.answer.poll_query,
    }


def merchant_view(merchant: MerchantConfig, readiness: MerchantReadiness, terms: AgentConfig) -> Json:
    """The merchant details that an app needs to make requests."""
    return {
        "name": merchant.name,
        "origin": merchant.origin,
        "known_as": sorted(merchant.known_as),
        "ready": merchant.ready,
        "accepted_depth": readiness.accepted_depth,
        "refused_early": readiness.refused_early,
        "call_headers": merchant.buyer_headers(terms.own.text),
        "set_by": "config" if merchant.is_filed else "operator",
    }


def standing_view(known: MerchantStatus, terms: AgentConfig) -> Json:
    """A merchant with the rules for its invoices and its recorded pins, prices and counts."""
    rules, stopped_at_ms = known.merchant.rules, known.unserved_streak.stopped_at_ms
    addresses = [(pin, "config") for pin in sorted(rules.filed)]
    addresses += [(pin, "daemon") for pin in known.pins if pin not in rules.filed]
    return {
        **merchant_view(known.merchant, known.readiness, terms),
        "pin": "config" if rules.filed else "first_use" if rules.first_use else "off",
        "addresses": [{"role": pin.role, "address": pin.address, "set_by": by} for pin, by in addresses],
        "drift_percent": rules.drift_percent,
        "prices": [
            {
                **{"method": one.method, "path": one.path, "asset": one.asset},
                **{"calls": one.calls, "units": str(one.units)},
            }
            for one in known.prices
        ],
        "stop_after": rules.stop_after,
        "strikes": known.unserved_streak.count,
        "stopped_at": None if stopped_at_ms is None else iso_time(stopped_at_ms),
        "in_flight": known.in_flight,
        "in_flight_max": rules.in_flight_max,
    }


def address_view(terms: AgentConfig, chain: ChainView, now_ms: int) -> Json:
    """The wallet details that an app needs to make requests."""
    return {
        "network": terms.network.name,
        "address": terms.own.text,
        "assets": None,
        "coins": None,
        "frozen_by": None,
        "chain": _chain_view(chain, now_ms),
    }


def wallet_view(
    terms: AgentConfig, chain: ChainView, utxos: Sequence[UtxoRow], balances: Iterable[Balance], now_ms: int
) -> Json:
    """Wallet balances per asset. `total` is what the ledger says is ours; `held` is kept for payments.

    `available` is what UTxO selection may use now. It can be less than total minus held, because unconfirmed
    change and locked or missing UTxOs are ours but cannot be spent.
    """
    states = [utxo_state(utxo) for utxo in utxos]
    return {
        "network": terms.network.name,
        "address": terms.own.text,
        "assets": [
            {"asset": asset, **{part: str(units) for part, units in parts.items()}}
            for asset, parts in wallet_units(utxos, balances).items()
        ],
        "coins": {state: states.count(state) for state in UTXO_STATES},
        "frozen_by": list(chain.foreign),
        "chain": _chain_view(chain, now_ms),
    }


def wallet_units(utxos: Sequence[UtxoRow], balances: Iterable[Balance]) -> dict[str, dict[str, int]]:
    """Available, held and total units by asset, for `wallet_view`."""
    free = [utxo for utxo in utxos if utxo_state(utxo) == "free"]
    available = add({LOVELACE: utxo.lovelace, **utxo.assets} for utxo in free)
    owned: dict[str, int] = {}
    held: dict[str, int] = {}
    for account, asset, units in balances:
        if account in (WALLET, HELD):
            owned[asset] = owned.get(asset, 0) + units
        if account == HELD:
            held[asset] = units
    names = sorted({LOVELACE, *available, *owned}, key=lambda asset: (asset != LOVELACE, asset))
    parts = (("available", available), ("held", held), ("total", owned))
    return {asset: {part: units.get(asset, 0) for part, units in parts} for asset in names}


def utxo_state(utxo: UtxoRow) -> str:
    """The UTxO state to show: a reserved UTxO is "reserved", whether it is free or pending."""
    return "reserved" if utxo.reserved_for is not None else utxo.state


def utxo_view(utxo: UtxoRow) -> Json:
    return {
        "ref": utxo.ref,
        "lovelace": str(utxo.lovelace),
        "assets": {asset: str(units) for asset, units in utxo.assets.items()},
        "state": utxo_state(utxo),
        "reserved_for": utxo.reserved_for,
    }


def limits_view(standing: Iterable[LimitStanding], names: Mapping[str, str]) -> Json:
    """The current limits, with apps and merchants by name."""
    return {"limits": [limit_view(one, names) for one in standing]}


def limit_view(one: LimitStanding, names: Mapping[str, str]) -> Json:
    limit = one.limit
    app, merchant = (names.get(name, name) or None for name in limit.scope)
    return {
        "app": app,
        "merchant": merchant,
        "asset": limit.asset,
        "limit": limit.window,
        "most": str(limit.most_units),
        "spent": str(one.spent_units),
        "left": None if one.left_units is None else str(one.left_units),
        "frees_at": None if one.frees_at_ms is None else iso_time(one.frees_at_ms),
        "set_by": "config" if one.is_filed else "operator",
    }


def merchant_names(terms: AgentConfig) -> dict[str, str]:
    """The merchants' names by origin."""
    return {origin: merchant.name for origin, merchant in terms.merchants.items()}


def app_view(app: AppRow, token: TokenRow | None, names: Mapping[str, str], *, is_active: bool) -> Json:
    """An app and its last token, without the token itself. `is_active` says whether that token is valid."""
    expires_at_ms = None if token is None else token.expires_at_ms
    revoked_at_ms = None if token is None else token.revoked_at_ms
    return {
        "id": app.id,
        "name": app.name,
        "scopes": sorted(app.scopes),
        "merchants": None if app.merchants is None else sorted(names.get(one, one) for one in app.merchants),
        "assets": None if app.assets is None else sorted(app.assets),
        "active": is_active,
        "token_made_at": None if token is None else iso_time(token.created_at_ms),
        "expires_at": None if expires_at_ms is None else iso_time(expires_at_ms),
        "revoked_at": None if revoked_at_ms is None else iso_time(revoked_at_ms),
    }


def pause_view(pause: Pause | None, by: str | None, *, tells_all: bool) -> Json:
    """Whether signing is paused. With `tells_all`, also by which app and why."""
    return {
        "paused": pause is not None,
        "since": None if pause is None else iso_time(pause.at_ms),
        "by": by if tells_all else None,
        "reason": pause.reason if pause is not None and tells_all else None,
    }


def entry_view(entry: EntryRow) -> Json:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "payment": entry.payment_id,
        "ref": entry.ref,
        "at": iso_time(entry.at_ms),
        "postings": [
            {"account": account, "asset": asset, "units": str(units)} for account, asset, units in entry.postings
        ],
    }


def balance_view(balances: Sequence[Balance]) -> Json:
    """Every account, and the sum over all accounts per asset. A sum other than zero means a broken ledger."""
    sums = add({asset: units} for _, asset, units in balances)
    return {
        "balances": [
            {"account": account, "asset": asset, "units": str(units)} for account, asset, units in balances
        ],
        "sums": {asset: str(units) for asset, units in sums.items()},
    }


def spend_view(keys: Sequence[SpendKey], rows: Sequence[SpendRow], terms: AgentConfig) -> Json:
    """The spend of each group, and the totals per asset. Merchants have their names from the config."""
    groups = [_group_view(keys, row, terms) | _spent_view(row.asset, [row]) for row in rows]
    assets = sorted({row.asset for row in rows}, key=lambda asset: (asset != LOVELACE, asset))
    totals = [_spent_view(asset, [row for row in rows if row.asset == asset]) for asset in assets]
    return {"spend": groups, "totals": totals}


def _group_view(keys: Sequence[SpendKey], row: SpendRow, terms: AgentConfig) -> Json:
    view: Json = dict(zip(keys, row.group, strict=True))
    if "merchant" in keys:
        origin = row.group[keys.index("merchant")]
        merchant = terms.merchants.get(origin or "")
        view |= {"merchant": merchant.name if merchant else origin, "origin": origin}
    return view


def _spent_view(asset: str, rows: Sequence[SpendRow]) -> Json:
    return {
        "asset": asset,
        "paid": str(sum(row.paid for row in rows)),
        "fees": str(sum(row.fees for row in rows)),
        "sent": str(sum(row.sent for row in rows)),
        "total": str(sum(row.total for row in rows)),
        "payments": sum(row.payments for row in rows),
    }


def chain_problem(chain: ChainView, now_ms: int) -> str | None:
    """Why nothing is signed now; None when the view of the chain is good enough."""
    refused = chain_refusal(chain, now_ms)
    return None if refused is None else refused.detail


def chain_refusal(chain: ChainView, now_ms: int) -> Refused | None:
    """The refusal that the chain view causes now; None when there is none."""
    try:
        chain.require_ready(now_ms)
    except Refused as refused:
        return refused
    return None


def _chain_view(chain: ChainView, now_ms: int) -> Json:
    tip = chain.tip
    return {
        "slot": None if chain.slots is None else chain.slots.slot_at(now_ms),
        "tip_height": None if tip is None else tip.height,
        "tip_slot": None if tip is None else tip.slot,
        "tip_hash": None if tip is None else tip.hash,
        "problem": chain_problem(chain, now_ms),
    }
