"""Values into the JSON of answers. A payment's own form is `payagent.agent.view.payment_view`.

May import: core, agent, store.queries. Never: I/O. Amounts are strings of digits.
"""

from collections.abc import Iterable, Mapping, Sequence

from payagent.agent.agent import Advice, Quote
from payagent.agent.chainview import ChainView
from payagent.agent.terms import MerchantTerms, Terms
from payagent.core.ledger import HELD, WALLET, add
from payagent.core.money import LOVELACE
from payagent.core.payment import ON_CHAIN
from payagent.core.problem import Refused
from payagent.core.times import iso_time
from payagent.store.queries import CoinRow, EntryRow, PaymentRow, SpendKey, SpendRow

Json = dict[str, object]
Balance = tuple[str, str, int]
COIN_STATES = ("free", "reserved", "pending", "locked", "missing")


def quote_view(quote: Quote, terms: Terms) -> Json:
    """What a payment would be; `total` is what leaves in the invoice's asset, with the fee where that is ADA."""
    invoice, plan = quote.invoice, quote.plan
    spend = plan.spend
    view: Json = {
        "network": terms.network.name,
        "dialect": invoice.dialect,
        "origin": invoice.origin,
        "invoice_id": invoice.invoice_id,
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
    if quote.refusal is not None:
        view["refusal"] = {"code": quote.refusal.code, "detail": quote.refusal.detail}
    return view


def advice_view(advice: Advice) -> Json:
    """What a merchant said to a retry, and when the same proof is to be shown again."""
    return {
        "said": advice.answer.said,
        "reason": advice.answer.reason,
        "again_after_s": advice.again_after_s,
        "poll_query": advice.answer.poll_query,
    }


def depth_of(row: PaymentRow, chain: ChainView) -> int | None:
    """How many blocks there are from the payment's own, which counts, to the tip; None while it is in none."""
    if row.block_height is None or row.state not in ON_CHAIN or chain.tip is None:
        return None
    return max(chain.tip.height - row.block_height + 1, 1)


def merchant_view(merchant: MerchantTerms, terms: Terms) -> Json:
    """A merchant as its callers need to know it."""
    return {
        "name": merchant.name,
        "origin": merchant.origin,
        "ready": merchant.ready,
        "call_headers": merchant.buyer_headers(terms.own.text),
    }


def wallet_view(
    terms: Terms, chain: ChainView, coins: Sequence[CoinRow], balances: Iterable[Balance], now_ms: int
) -> Json:
    """Balances per asset. `total` is what the books say is ours: `held` for payments, the rest at our address.

    `available` is what selection may take now. It can be less than total minus held: change that is in no
    block yet, and coins that are locked or missing, are ours and cannot be spent.
    """
    free = [coin for coin in coins if coin_state(coin) == "free"]
    available = add({LOVELACE: coin.lovelace, **coin.assets} for coin in free)
    owned: dict[str, int] = {}
    held: dict[str, int] = {}
    for account, asset, units in balances:
        if account in (WALLET, HELD):
            owned[asset] = owned.get(asset, 0) + units
        if account == HELD:
            held[asset] = units
    names = sorted({LOVELACE, *available, *owned}, key=lambda asset: (asset != LOVELACE, asset))
    states = [coin_state(coin) for coin in coins]
    return {
        "network": terms.network.name,
        "address": terms.own.text,
        "assets": [
            {
                "asset": asset,
                "available": str(available.get(asset, 0)),
                "held": str(held.get(asset, 0)),
                "total": str(owned.get(asset, 0)),
            }
            for asset in names
        ],
        "coins": {state: states.count(state) for state in COIN_STATES},
        "chain": _chain_view(chain, now_ms),
    }


def coin_state(coin: CoinRow) -> str:
    """A coin's state as it matters to its owner: reserved goes before free and pending."""
    return "reserved" if coin.reserved_for is not None else coin.state


def utxo_view(coin: CoinRow) -> Json:
    return {
        "ref": coin.ref,
        "lovelace": str(coin.lovelace),
        "assets": {asset: str(units) for asset, units in coin.assets.items()},
        "state": coin_state(coin),
        "reserved_for": coin.reserved_for,
    }


def limits_view(terms: Terms, spent: Mapping[str, int]) -> Json:
    """The limits as they stand: what was spent or is held counts for 24 hours."""
    return {
        "limits": [
            {
                "asset": asset,
                "per_payment": str(limit.per_payment_units),
                "per_day": str(limit.per_day_units),
                "spent_day": str(spent.get(asset, 0)),
                "left_day": str(max(limit.per_day_units - spent.get(asset, 0), 0)),
            }
            for asset, limit in terms.limits.items()
        ]
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
    """Every account, and the sum over all of them per asset: zero, or the books are broken."""
    sums = add({asset: units} for _, asset, units in balances)
    return {
        "balances": [
            {"account": account, "asset": asset, "units": str(units)} for account, asset, units in balances
        ],
        "sums": {asset: str(units) for asset, units in sums.items()},
    }


def spend_view(keys: Sequence[SpendKey], rows: Sequence[SpendRow], terms: Terms) -> Json:
    """Each group's spend, and the totals per asset; a merchant by its name in the config."""
    groups = [_group_view(keys, row, terms) | _spent_view(row.asset, [row]) for row in rows]
    assets = sorted({row.asset for row in rows}, key=lambda asset: (asset != LOVELACE, asset))
    totals = [_spent_view(asset, [row for row in rows if row.asset == asset]) for asset in assets]
    return {"spend": groups, "totals": totals}


def _group_view(keys: Sequence[SpendKey], row: SpendRow, terms: Terms) -> Json:
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
    """Why nothing is signed now; None when the chain is seen well enough."""
    try:
        chain.require_ready(now_ms)
    except Refused as refused:
        return refused.detail
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
